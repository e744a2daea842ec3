"""A page to look at: runs, one run, a session, for their operator, in a browser on this machine.

It tells what the commands tell (`claude_workflow.cli`), from the same record: nothing is worked out here twice. What
agents and callers wrote is hostile; `guard.py` says who gets in, and what a browser may do with a page.
"""
