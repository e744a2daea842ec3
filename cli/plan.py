"""What a replay of a run would do. RestoreSession decides it when it comes to that; this looks at the same objects."""

from dataclasses import dataclass

from cli.records import Records, Run
from lambdas.sessions.store import WHOLE

SENTENCES = {
    "answer": "give its answer again: the run is done",
    "wait": "fail with RunInProgress, for an execution is at work on it",
    "gone": "fail with SessionNotFound, for the session was deleted: replay with --fork (a new session, on the version "
    "that the run was pinned to)",
    "moved": "fail with SessionMoved, for the session has gone on: replay with --fork (commits what is staged as a new "
    "session) or --rebase (asks again, on the newest version, and pays)",
    "commit": "finish without a model call: the result is staged, only the commit is missing",
    "resume": "go on with the conversation where its checkpoint stands",
    "restart": "start over: nothing of it is staged",
    "rebase": "ask again as a new run, on the session's newest version, and pay for that",
}

REFUSED = ("wait", "gone", "moved")
"""Those that end in an error at once: nothing is replayed."""


@dataclass(frozen=True)
class Plan:
    """What is staged, and what follows from it."""

    does: str
    """A name of `SENTENCES`."""
    staged: dict[str, dict[str, int]]
    """By attempt, the objects with their sizes in bytes."""


def plan(records: Records, run: Run, verb: str = "again") -> Plan:
    """`verb` is `again`, `fork` or `rebase`; a fork does the same as a new session. Raises botocore's errors."""
    staged = records.staged(run.run_id)
    if run.answer and verb == "again":
        return Plan("answer", staged)
    if verb != "fork" and records.gone(run.request):
        return Plan("gone", staged)
    if verb == "rebase":
        return Plan("rebase", staged)
    if run.running:
        return Plan("wait", staged)
    if verb == "again" and records.moved(run.request):
        return Plan("moved", staged)
    if any(objects.keys() >= set(WHOLE) for objects in staged.values()):
        return Plan("commit", staged)
    saved = any("checkpoint.zip" in objects for objects in staged.values())
    return Plan("resume" if saved else "restart", staged)
