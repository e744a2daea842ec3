"""What a replay of a run would do: told by what RestoreSession acts by, from the same objects."""

import time
from dataclasses import dataclass

from claude_workflow.cli.record import Run, staged
from lambdas import next_step as steps
from lambdas.bucket import record
from lambdas.bucket.objects import Bucket
from lambdas.bucket.situation import from_outside
from lambdas.errors import (
    RunCancelled,
    RunInProgress,
    SessionBusy,
    SessionDamaged,
    SessionMoved,
    SessionNotFound,
    WorkflowError,
)
from lambdas.next_step import next_step
from lambdas.request import Request
from lambdas.strict import Json

SENTENCES = {
    "answer": "give its answer again: the run is done",
    "wait": "fail with RunInProgress, for an execution is at work on it",
    "cancelled": "fail with RunCancelled, for its caller has ended it",
    "busy": "fail with SessionBusy, for another run is at work on its session",
    "gone": "fail with SessionNotFound, for the session was deleted: replay with --fork (a new session, on the version "
    "that the run was pinned to)",
    "moved": "fail with SessionMoved, for the session has gone on: replay with --fork (commits what is staged as a new "
    "session) or --rebase (asks again, on the newest version, and pays)",
    "damaged": "fail with SessionDamaged, for the session is not as a run leaves it",
    "commit": "finish without a model call: the result is staged, only the commit is missing",
    "resume": "go on with the conversation where its checkpoint stands",
    "restart": "start over: nothing of it is staged",
    "rebase": "ask again as a new run, on the session's newest version, and pay for that",
}

STARTS = ("commit", "resume", "restart", "rebase")
"""Those that go on with a run, of a long one in the machine of the long ones."""

REFUSALS: dict[type[WorkflowError], str] = {
    RunCancelled: "cancelled",
    RunInProgress: "wait",
    SessionBusy: "busy",
    SessionNotFound: "gone",
    SessionMoved: "moved",
}
REFUSED = (*REFUSALS.values(), "damaged")
"""Those that end in an error at once: nothing is replayed."""


@dataclass(frozen=True)
class Prospect:
    """What is staged, and what follows from it."""

    does: str
    """A name of `SENTENCES`."""
    staged: dict[str, dict[str, int]]
    """By attempt, the objects with their sizes in bytes."""
    long: bool = False
    """Whether the run is one that works in legs."""

    @property
    def sentence(self) -> str:
        """What a replay would do, in words."""
        where = " (in the long machine)" if self.long and self.does in STARTS else ""
        return f"{SENTENCES[self.does]}{where}"


def prospect(bucket: Bucket, run: Run, verb: str = "again") -> Prospect:
    """`verb` is `again`, `fork` or `rebase`. Raises `StorageUnavailable`."""
    found = staged(bucket, run.run_id)
    request = Request.recall(envelope(run.request, verb), run.request)
    try:
        asked = record.request(bucket, request.run_id)
        step = next_step(from_outside(bucket, request, asked, time.time()))
    except SessionDamaged:
        return Prospect("damaged", found, run.long)
    return Prospect(_word(step, anew=verb == "rebase" and asked is None), found, run.long)


def envelope(asked: Json, verb: str) -> Json:
    """The input of an execution that replays a run."""
    return {
        "caller": asked["owner"],
        "key": asked["key"],
        "key_given": True,
        "requested_at": round(time.time() * 1000),
        "oversize": False,
        "body": None,
        "replay": verb,
    }


def _word(step: steps.Step, *, anew: bool) -> str:
    match step:
        case steps.Done():
            return "answer"
        case steps.Refuse(error):
            return REFUSALS[error]
        case steps.Persist():
            return "commit"
        case steps.Run(_, checkpoint):
            return "resume" if checkpoint else "rebase" if anew else "restart"
