"""The fault matrix of long runs and of cancels, which `tests/test_long_faults.py` plays, and `docs/faults.md` shows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.support.played_machines import (
    CANCELLED_AFTER,
    CANCELLED_BEFORE,
    ENDED_AFTER,
    ENDED_BEFORE,
    POSTED_AFTER,
    POSTED_BEFORE,
    REFUSED,
)
from tests.support.s3_faults import KILLED_AFTER, KILLED_BEFORE, LOST

ALWAYS = 1000
"""More often than anything is tried."""

LONG, SYNC = "long", "POST"

START = "StartExecution"

POSTED, CANCEL, ANOTHER = "POST again at once", "DELETE", "another run"
"""What comes next, before the repeat."""


@dataclass(frozen=True)
class LongRow:
    """What befalls a run in two legs, or one that its client waits for, and what has to come of it."""

    way: str
    state: str
    at: str
    """A key of `fault_matrix.WRITES`, or `START`."""
    fault: str
    answer: str = ""
    """Of the POST."""
    meanwhile: str = ""
    """Of the DELETE, or of the POST that comes again."""
    ends: str = ""
    """Of a GET, when nothing is at work any more."""
    session: str = ""
    """`none`, `old` or `new`, then."""
    left: str = ""
    """What is left then, until it expires: `lease`, `reservation`."""
    calls: int = 0
    again: int = 0
    """Of the model, until then, and by the repeat."""
    repeat: str = ""
    """What the same POST comes to, when what was left has expired: a GET's answer after it."""
    times: int = 1
    first: int = 1
    """The how manieth such write it befalls."""
    fresh: bool = False
    then: str = ""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.way, self.state, self.where, self.what) if part)

    @property
    def where(self) -> str:
        nth = f" ({self.first})" if self.first > 1 else ""
        return self.at + nth + (", new session" if self.fresh else "")

    @property
    def what(self) -> str:
        often = " always" if self.times == ALWAYS else " twice" if self.times == 2 else ""
        return self.fault + often + (f", then {self.then}" if self.then else "")


def long_rows() -> list[LongRow]:
    """All of them, as they are read."""
    return [*_handing_over(), *_between_legs(), *_at_the_gate(), *_ending(), *_cancelled(LONG), *_cancelled(SYNC)]


LOST_RUN = {"ends": "200 lost", "session": "old", "again": 2, "calls": 0}
"""Nobody is at work on it, and nothing of it is staged."""
ON_ITS_WAY = {"answer": "504 RunTimedOut"}
"""What is answered when the express execution is gone."""
CANCELLED = {"meanwhile": "202 cancelling", "ends": "200 cancelled", "calls": 1, "repeat": "200 cancelled"}
NEVER_BEGUN = {"ends": "409 RunCancelled", "session": "old", "calls": 0, "repeat": "409 RunCancelled"}
TOO_LATE = {"meanwhile": "202 cancelling"}
FAILED = {"ends": "500 Internal", "session": "old"}


def _row(state: str, at: str, fault: str, *came: dict[str, Any], **more: Any) -> LongRow:
    """A row that ends as if nothing had been, but for what `came`."""
    said: dict[str, Any] = {"way": LONG, "answer": "202 running", "ends": "200", "session": "new", "repeat": "200"}
    for each in (*came, more):
        said |= each
    if said.get("fresh") and said["session"] == "old":
        said["session"] = "none"
    return LongRow(state=state, at=at, fault=fault, **({"calls": 2} | said))


def _handing_over() -> Iterator[LongRow]:
    state = "RestoreSession, hands over"
    for fresh in (False, True):
        for at in ("request.json", "lease"):
            for fault in (KILLED_BEFORE, KILLED_AFTER, LOST):
                yield _row(state, at, fault, fresh=fresh)
        yield _row(state, "lease", KILLED_AFTER, times=2, fresh=fresh)
        unknown = {"answer": "500 Internal", "ends": "404 RunNotFound", "session": "old", "calls": 0, "again": 2}
        yield _row(state, "request.json", REFUSED, unknown, times=ALWAYS, fresh=fresh)
        yield _row(state, "lease", REFUSED, LOST_RUN, answer="500 Internal", times=ALWAYS, fresh=fresh)
        yield _row(state, "lease", ENDED_AFTER, LOST_RUN, ON_ITS_WAY, left="lease", fresh=fresh)
    state = "HandOver"
    yield _row(state, START, REFUSED)
    yield _row(state, START, REFUSED, FAILED, answer="500 Internal", calls=0, again=2, times=ALWAYS)
    yield _row(state, START, LOST)
    yield _row(state, START, LOST, answer="500 Internal", times=ALWAYS)
    for fresh in (False, True):
        yield _row(state, START, ENDED_BEFORE, LOST_RUN, ON_ITS_WAY, left="lease", fresh=fresh)
        yield _row(state, START, ENDED_BEFORE, ON_ITS_WAY, meanwhile="202 running", then=POSTED, fresh=fresh)
    yield _row(state, START, ENDED_BEFORE, LOST_RUN, ON_ITS_WAY, left="lease", meanwhile="202 running", then=ANOTHER)
    yield _row(state, START, ENDED_AFTER, ON_ITS_WAY)
    for fault in (POSTED_BEFORE, POSTED_AFTER):
        yield _row(state, START, fault, meanwhile="202 running")
    yield _row("RunClaude, first leg", "receipt.json", POSTED_AFTER, meanwhile="202 running")
    yield _row("PersistSession", "commit", POSTED_AFTER, meanwhile="202 running")
    yield _row("PersistSession", "response.json", POSTED_AFTER, meanwhile="200")
    state = "RestoreSession, first leg"
    for at, first in (("lease", 3), ("ledger: reserved", 1), ("base.json", 1), ("index: claimed", 1)):
        yield _row(state, at, KILLED_BEFORE, first=first)
    yield _row(state, at, KILLED_AFTER, first=first)
    yield _row(state, "lease", REFUSED, FAILED, calls=0, again=2, times=ALWAYS, first=3)
    yield _row(state, "base.json", REFUSED, FAILED, calls=0, again=2, times=ALWAYS)


def _between_legs() -> Iterator[LongRow]:
    state = "RestoreSession, second leg"
    writes = (("lease", 5), ("ledger: spent", 1), ("ledger: failed", 1), ("ledger: given back", 1))
    for at, first in (*writes, ("ledger: reserved", 2), ("index: claimed", 2)):
        yield _row(state, at, KILLED_BEFORE, first=first)
        left = "reservation" if at in ("lease", "ledger: spent") else ""
        yield _row(state, at, REFUSED, FAILED, left=left, calls=1, again=1, times=ALWAYS, first=first)
    yield _row(state, at, KILLED_AFTER, first=first)
    lost = LOST_RUN | {"left": "lease, reservation", "calls": 1, "again": 1}
    yield _row(state, "lease", ENDED_BEFORE, lost, first=5)
    yield _row(state, "ledger: reserved", ENDED_AFTER, lost, first=2)


def _at_the_gate() -> Iterator[LongRow]:
    state = "RunClaude, at the gate"
    for at, first in (("messages.json", 1), ("receipt.json", 2)):
        yield _row(state, at, KILLED_BEFORE, calls=3, first=first)
        yield _row(state, at, KILLED_AFTER, calls=3, first=first)
        yield _row(state, at, REFUSED, first=first)
    yield _row(state, "messages.json", REFUSED, FAILED, calls=4, again=1, times=ALWAYS)
    yield _row(state, "receipt.json", REFUSED, FAILED, calls=1, again=1, times=ALWAYS, first=2)
    yield _row(state, "checkpoint.zip", KILLED_BEFORE, calls=3)
    yield _row(state, "checkpoint.zip", KILLED_AFTER)
    yield _row(state, "checkpoint.zip", REFUSED, calls=3)
    yield _row(state, "checkpoint.zip", REFUSED, FAILED, calls=4, again=2, times=ALWAYS)
    lost = LOST_RUN | {"left": "lease, reservation", "calls": 1}
    yield _row(state, "checkpoint.zip", ENDED_BEFORE, lost)
    yield _row(state, "checkpoint.zip", ENDED_AFTER, lost, again=1)


def _ending() -> Iterator[LongRow]:
    state = "RunClaude, second leg"
    yield _row(state, "started", KILLED_BEFORE, first=2)
    yield _row(state, "started", KILLED_AFTER, first=2)
    yield _row(state, "result.json", KILLED_BEFORE, calls=3)
    yield _row(state, "result.json", KILLED_AFTER)
    state = "PersistSession"
    for at in ("commit", "response.json", "ledger: spent", "lease, freed"):
        yield _row(state, at, KILLED_AFTER, first=2 if at == "ledger: spent" else 1)
    yield _row(state, "commit", REFUSED, FAILED, times=ALWAYS)
    yield _row(state, "response.json", REFUSED, ends="500 Internal", times=ALWAYS)


def _cancelled(way: str) -> Iterator[LongRow]:
    long = way == LONG
    before, after = CANCELLED_BEFORE, CANCELLED_AFTER

    def row(state: str, at: str, fault: str, *came: dict[str, Any], **more: Any) -> LongRow:
        made = _row(state, at, fault, *came, way=way, **more)
        return made if long else replace(made, answer=made.ends)

    never = NEVER_BEGUN | {"meanwhile": "202 cancelling"}
    yield row("before the claim", "request.json", before, meanwhile="404 RunNotFound")
    yield row("claimed", "request.json", after, never)
    yield row("claimed", "request.json", after, never, fresh=True)
    if long:
        yield row("handed over", "lease", after, never)
        yield row("handed over", START, before, never)
        yield row("handed over", START, after, never)
    yield row("restoring", "ledger: reserved", before, never)
    yield row("restoring", "base.json", after, never)
    yield row("restored", "index: claimed", after, never)
    yield row("before the first answer", "started", after, never)
    yield row("before the first answer", "started", after, never, fresh=True)
    yield row("working", "receipt.json", after, CANCELLED)
    yield row("working", "receipt.json", after, CANCELLED, fresh=True)
    yield row("at a checkpoint", "checkpoint.zip", after, CANCELLED)
    if long:
        yield row("between legs", "ledger: spent", after, CANCELLED)
        yield row("between legs", "ledger: reserved", after, CANCELLED, first=2)
        yield row("second leg, before its answer", "started", after, CANCELLED, first=2)
    yield row("staging", "changes.zip", before, TOO_LATE)
    yield row("staging", "result.json", after, TOO_LATE)
    yield row("persisting", "commit", before, TOO_LATE)
    yield row("persisting", "commit", after, TOO_LATE)
    yield row("answered", "response.json", after, meanwhile="200")
    yield row("answered", "lease, freed", after, meanwhile="200")
    again = {"session": "old", "left": "lease, reservation", "then": CANCEL, "meanwhile": "202 cancelling"}
    lost = again | {"ends": "200 lost", "repeat": "200 cancelled", "calls": 1}
    none = again | {"ends": "200 lost", "repeat": "409 RunCancelled", "calls": 0}
    answer = "202 running" if long else "504 RunTimedOut"
    yield replace(row("lost, with a checkpoint", "checkpoint.zip", ENDED_AFTER, lost), answer=answer)
    none |= {} if long else {"repeat": "200 lost"}  # its POST says 409 RunCancelled, and nothing of that is recorded
    yield replace(row("lost, before its first answer", "started", ENDED_AFTER, none), answer=answer)
    failed = FAILED | {"then": CANCEL, "meanwhile": "500 Internal", "times": ALWAYS}
    yield row("failed, with a result", "commit", REFUSED, failed)
    yield row("failed, with nothing", "base.json", REFUSED, failed, calls=0, again=2)


TITLES = (
    *("run", "state", "its write", "fault", "POST", "meanwhile", "GET"),
    *("session", "left behind", "model calls", "repeat"),
)

INTRODUCTION = """\

## Long runs, and runs that are cancelled

Every row is played by `tests/test_long_faults.py` on a real S3, with RestoreSession, PersistSession, RecordFailure and
ReadRun as they are; both state machines are walked as the definition has them, and what RunClaude stages is played.
A *long* run is posted with `Prefer: respond-async` and makes its first call of the model in one leg and its second in
the next; of a *POST* the client waits for the answer. Most rows work on a session of one turn.

1. A POST under the fault; a number behind a write says that the fault befalls not the first such write, but that one.
   When all that was started has ended, the *session* is looked at, and what is *left behind*: the session's lease, and
   money that is reserved. Both end by themselves, which is waited for; then a *GET* tells where the run stands.
   *Meanwhile* is what a DELETE is answered, or another POST, that comes before or after the write, or *then*.
2. The same POST again, with its key, is the *repeat*: where the run stands by a GET after it. Nothing is left then.

What a run says that it cost is what was asked of the model, in every row, and so does the ledger; the books balance
(`claude-workflow verify`); and no execution is started twice. *Model calls* are those until the repeat + those by it.

*Execution ended*: the whole of it, as by StopExecution; what it would have written down of that is not there. A *503*
is what S3 says after all tries of a client; of StartExecution it is a refusal.

"""


def long_cells(row: LongRow) -> tuple[str, ...]:
    """A row as the table shows it."""
    calls = f"{row.calls} + {row.again}"
    came = (row.answer, row.meanwhile, row.ends, row.session, row.left, calls, row.repeat)
    return row.way, row.state, row.where, row.what, *came


def long_document() -> str:
    """The second part of `docs/faults.md`."""
    lines = [TITLES, ("---",) * len(TITLES), *map(long_cells, long_rows())]
    return INTRODUCTION + "".join(f"| {' | '.join(line)} |\n" for line in lines)
