"""`claude-workflow check`: what only a deployed stack can show, asked of one, row by row, and reported.

row.py      what a row is, and how its answer is judged
kit.py      what rows ask with: posts under a budget; and what is removed afterwards
account.py  what CloudFormation says of the stack
asking.py   asks them all; report.py words what came of it
rows.toml   all rows in their order, each with who asks; who that is, is in the file of its subject:
            contract, storage, rights, kept, network, shell, ways, told
reach.py    a program that the agent runs for `ways`
"""

import argparse
from pathlib import Path

CHECK = """Asks a stack what nobody can show without one, once: ten minutes at the most, less than a dollar. Prints a
report in Markdown, a row for each question: held, broken, or not asked and why. Removes what it leaves in the bucket.
Of a service on this machine it asks what can be asked there. Exits with 1 where a row is broken."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Those that are the kit's alone."""
    command.add_argument("--json", action="store_true", help="print the report as JSON, with every raw answer whole")
    command.add_argument("--record", type=Path, metavar="DIR", help="keep that JSON in DIR/check.json, too")
    command.add_argument(
        "--max-dollars",
        type=float,
        default=1.0,
        metavar="N",
        help="start no run that could pass it (default: %(default)s)",
    )
    command.add_argument("--model", help="the model that runs ask (default: haiku; on Bedrock the stack's usual one)")
    command.add_argument("--redeploy", metavar="COMMAND", help="deploy with this command, under a post a second")


def run(chosen: argparse.Namespace) -> int:
    """The command's exit code. Raises `Unusable` where there is no service, or AWS refuses to be asked."""
    from claude_workflow.cli.check import asking  # with botocore: a third of a second that other commands do not need

    return asking.run(chosen)
