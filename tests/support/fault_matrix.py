"""The fault matrix: what is done to the workflow at which instant, and what comes of it.

`PYTHONPATH=. python -m tests.support.fault_matrix` writes `docs/faults.md`; `tests/test_faults.py` plays every row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lambdas.bucket.record import WHOLE
from tests.support.long_fault_matrix import long_document
from tests.support.s3_faults import KILLED_AFTER, KILLED_BEFORE, LOST, SILENT

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "faults.md"

ALWAYS = 1000
"""More often than anything is tried."""

WRITES = {
    "request.json": ("PUT", r"runs/{run}/request\.json"),
    "lease": ("PUT", r"locks/{session}\.json"),
    "base.json": ("PUT", r"runs/{run}/base\.json"),
    "index: session": ("PUT", r"index/sessions/{session}/{run}"),
    "index: claimed": ("PUT", r"index/hours/[^/]+/claimed/{run}"),
    "ledger: reserved": ("PUT", r"ledger/[^/]+/[^/]+~{run}~[^/]+~reserved~"),
    "ledger: spent": ("PUT", r"ledger/[^/]+/[^/]+~{run}~[^/]+~spent~"),
    "ledger: given back": ("DELETE", r"ledger/[^/]+/[^/]+~{run}~[^/]+~reserved~"),
    "ledger: failed": ("PUT", r"ledger/sessions/{session}/{run}~"),
    "receipt.json": ("PUT", r"runs/{run}/[^/]+/receipt\.json"),
    "started": ("PUT", r"runs/{run}/[^/]+/started"),
    "checkpoint.zip": ("PUT", r"runs/{run}/[^/]+/checkpoint\.zip"),
    "changes.zip": ("PUT", r"runs/{run}/[^/]+/changes\.zip"),
    "messages.json": ("PUT", r"runs/{run}/[^/]+/messages\.json"),
    "result.json": ("PUT", r"runs/{run}/[^/]+/result\.json"),
    "detail.txt": ("PUT", r"runs/{run}/[^/]+/detail\.txt"),
    "commit": ("PUT", r"{session}\.zip$"),
    "large commit: create": ("POST", r"{session}\.zip\?uploads"),
    "large commit: copy": ("PUT", r"{session}\.zip\?.*partNumber=1\b"),
    "large commit: the rest": ("PUT", r"{session}\.zip\?.*partNumber=2\b"),
    "large commit: complete": ("POST", r"{session}\.zip\?uploadId="),
    "response.json": ("PUT", r"runs/{run}/response\.json"),
    "index: done": ("PUT", r"index/hours/[^/]+/done/{run}"),
    "index: claimed, gone": ("DELETE", r"index/hours/[^/]+/claimed/{run}"),
    "lease, freed": ("DELETE", r"locks/{session}\.json"),
    "failure.json": ("PUT", r"runs/{run}/failure\.json"),
    "index: failed": ("PUT", r"index/hours/[^/]+/failed/{run}"),
}
"""Everything that a run writes, as the method and a regular expression for the path of the request to S3."""

WORK = "run echo new > n.txt"
"""What a run does: two calls of the model, one of them for a tool."""

FAILS = f"status 403 times 1\n{WORK}"
"""A run that the provider refuses once, so that there is a failure to record."""

THINKS = f"{WORK}\nThink until the run has a checkpoint."
"""The same, with a model that takes its time after the tool call: there is a checkpoint before it has answered."""

REFUSED = "connection refused"

LEASE = "lease"


@dataclass(frozen=True)
class Row:
    """A fault, and what has to come of it. The replay, which is the same POST again, ends in the answer every time."""

    state: str
    """The state it befalls; `Model` for the model's own."""
    at: str
    """A key of `WRITES`; for the model, what it does."""
    fault: str
    """An action of `tests.support.s3_faults`; empty for the model, which is told by its prompt."""
    times: int
    answer: str
    """Status and code of the first POST."""
    session: str
    """`old` or `new`: the version that opens after it; `none` where there is none yet."""
    left: str
    """What is left behind until it expires: the lease."""
    calls: int
    """Of the model, by the first POST."""
    again: int
    """Of the model, by the replay."""
    prompt: str = WORK
    timeout: float | None = None
    """The request's own `timeout_seconds`."""
    fresh: bool = False
    """Whether it asks for a new session, instead of going on with one."""

    @property
    def large(self) -> bool:
        """Whether its session is too large to be written at once."""
        return self.at.startswith("large")

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.state, self.where, self.what) if part)

    @property
    def where(self) -> str:
        return self.at + (", new session" if self.fresh else "")

    @property
    def what(self) -> str:
        often = {1: " once", ALWAYS: " always"}.get(self.times, "")
        return self.fault + (often if self.fault in ("500", "503", SILENT) else "")


INTERNAL, CRASHED, TIMED_OUT, OK = "500 Internal", "502 AgentCrashed", "504 RunTimedOut", "200"
UNAUTHORIZED, LIMITED, OVERLOADED = "502 ModelUnauthorized", "429 ModelRateLimited", "503 ModelOverloaded"


def rows() -> list[Row]:
    """The whole matrix; what takes long comes first."""
    return sorted(in_order(), key=lambda row: (row.fault == SILENT, row.times == ALWAYS), reverse=True)


def _restore() -> Iterator[Row]:
    state = "RestoreSession"
    for at in ("request.json", "lease", "ledger: reserved", "base.json", "index: session", "index: claimed"):
        yield Row(state, at, KILLED_BEFORE, 1, OK, "new", "", 2, 0)
    yield Row(state, at, KILLED_AFTER, 1, OK, "new", "", 2, 0)
    yield Row(state, "request.json", "500", 1, OK, "new", "", 2, 0)
    yield Row(state, "request.json", "503", ALWAYS, INTERNAL, "old", "", 0, 2)
    yield Row(state, "lease", LOST, 1, OK, "new", "", 2, 0)
    yield Row(state, "base.json", "503", ALWAYS, INTERNAL, "old", "", 0, 2)
    yield Row(state, "base.json", SILENT, ALWAYS, TIMED_OUT, "old", "", 0, 2)


def _run() -> Iterator[Row]:
    state = "RunClaude"
    for fault in (KILLED_BEFORE, KILLED_AFTER):
        yield Row(state, "started", fault, 1, INTERNAL, "old", "", 0, 2)
    yield Row(state, "started", LOST, 1, CRASHED, "old", "", 0, 2)
    yield Row(state, "checkpoint.zip", KILLED_BEFORE, 1, INTERNAL, "old", "", 2, 2, THINKS)
    yield Row(state, "checkpoint.zip", KILLED_AFTER, 1, INTERNAL, "old", "", 2, 1, THINKS)
    yield Row(state, "receipt.json", KILLED_AFTER, 1, INTERNAL, "old", "", 2, 1, THINKS)
    yield Row(state, "receipt.json", "503", ALWAYS, OVERLOADED, "old", "", 0, 2)
    for at in WHOLE:
        yield Row(state, at, KILLED_BEFORE, 1, INTERNAL, "old", "", 2, 1, THINKS)
    yield Row(state, at, KILLED_AFTER, 1, INTERNAL, "old", "", 2, 0, THINKS)
    for fault in (KILLED_BEFORE, KILLED_AFTER):
        yield Row(state, "detail.txt", fault, 1, INTERNAL, "old", "", 1, 2, FAILS)
    yield Row(state, "detail.txt", "503", ALWAYS, UNAUTHORIZED, "old", "", 1, 2, FAILS)
    yield Row(state, "checkpoint.zip", "503", ALWAYS, OK, "new", "", 2, 0, THINKS)
    yield Row(state, "changes.zip", "500", 1, OK, "new", "", 2, 0)
    yield Row(state, "changes.zip", "503", ALWAYS, INTERNAL, "old", "", 2, 1, THINKS)
    yield Row(state, "result.json", LOST, 1, OK, "new", "", 2, 0)
    yield Row(state, "result.json", SILENT, ALWAYS, TIMED_OUT, "old", "", 2, 1, THINKS)


def _persist() -> Iterator[Row]:
    state = "PersistSession"
    for at in (
        "commit",
        "large commit: create",
        "large commit: copy",
        "large commit: the rest",
        "large commit: complete",
        "response.json",
        "ledger: spent",
        "ledger: given back",
        "index: done",
        "index: claimed, gone",
        "lease, freed",
    ):
        yield Row(state, at, KILLED_BEFORE, 1, OK, "new", "", 2, 0)
    yield Row(state, at, KILLED_AFTER, 1, OK, "new", "", 2, 0)
    for at in ("commit", "large commit: complete"):
        yield Row(state, at, KILLED_AFTER, 1, OK, "new", "", 2, 0)
        yield Row(state, at, "500", 1, OK, "new", "", 2, 0)
        yield Row(state, at, "503", ALWAYS, INTERNAL, "old", "", 2, 0)
        yield Row(state, at, LOST, 1, OK, "new", "", 2, 0)
    yield Row(state, "large commit: copy", "503", ALWAYS, INTERNAL, "old", "", 2, 0)
    yield Row(state, "large commit: copy", SILENT, 1, OK, "new", "", 2, 0)
    yield Row(state, "response.json", LOST, 1, OK, "new", "", 2, 0)
    yield Row(state, "response.json", "503", ALWAYS, INTERNAL, "new", "", 2, 0)
    yield Row(state, "response.json", SILENT, ALWAYS, TIMED_OUT, "new", LEASE, 2, 0)


def _record() -> Iterator[Row]:
    state = "RecordFailure"
    for at in (
        "ledger: spent",
        "ledger: failed",
        "failure.json",
        "index: failed",
        "index: claimed, gone",
        "lease, freed",
    ):
        yield Row(state, at, KILLED_BEFORE, 1, UNAUTHORIZED, "old", "", 1, 2, FAILS)
    yield Row(state, at, KILLED_AFTER, 1, UNAUTHORIZED, "old", "", 1, 2, FAILS)
    yield Row(state, "failure.json", "500", 1, UNAUTHORIZED, "old", "", 1, 2, FAILS)
    yield Row(state, "failure.json", "503", ALWAYS, INTERNAL, "old", LEASE, 1, 2, FAILS)
    yield Row(state, "failure.json", SILENT, ALWAYS, INTERNAL, "old", LEASE, 1, 2, FAILS)


def _fresh() -> Iterator[Row]:
    def row(state: str, at: str, fault: str, answer: str, session: str, calls: int, again: int, left: str = "") -> Row:
        times = ALWAYS if fault == "503" else 1
        prompt = FAILS if state == "RecordFailure" else WORK
        return Row(state, at, fault, times, answer, session, left, calls, again, prompt, fresh=True)

    yield row("RestoreSession", "request.json", KILLED_BEFORE, OK, "new", 2, 0)
    yield row("RestoreSession", "request.json", "503", INTERNAL, "none", 0, 2)
    yield row("RestoreSession", "lease", KILLED_AFTER, OK, "new", 2, 0)
    yield row("RestoreSession", "base.json", "503", INTERNAL, "none", 0, 2)
    yield row("RunClaude", "started", KILLED_AFTER, INTERNAL, "none", 0, 2)
    yield row("RunClaude", "result.json", KILLED_AFTER, INTERNAL, "none", 2, 0)
    yield row("PersistSession", "commit", KILLED_AFTER, OK, "new", 2, 0)
    yield row("PersistSession", "commit", "503", INTERNAL, "none", 2, 0)
    yield row("PersistSession", "response.json", "503", INTERNAL, "new", 2, 0)
    yield row("RecordFailure", "failure.json", KILLED_AFTER, UNAUTHORIZED, "none", 1, 2)


def _model() -> Iterator[Row]:
    def row(at: str, prompt: str, answer: str, calls: int, again: int, timeout: float | None = None) -> Row:
        return Row("Model", at, "", 1, answer, "new" if answer == OK else "old", "", calls, again, prompt, timeout)

    yield row("401", f"status 401 times 3\n{WORK}", UNAUTHORIZED, 3, 2)
    yield row("403", f"status 403 times 1\n{WORK}", UNAUTHORIZED, 1, 2)
    yield row("429", f"status 429 times 3\n{WORK}", LIMITED, 3, 2)
    yield row("429, Retry-After: 1", f"status 429 retry-after 1 times 3\n{WORK}", LIMITED, 3, 2)
    yield row("429, Retry-After: 300", f"status 429 retry-after 300 times 1\n{WORK}", LIMITED, 1, 2)
    yield row("500", f"status 500 times 3\n{WORK}", OVERLOADED, 3, 2)
    yield row("529", f"status 529 times 3\n{WORK}", OVERLOADED, 3, 2)
    yield row("429 twice, after a tool call", f"{WORK}\nstatus 429 retry-after 1 times 2", OK, 4, 0)
    yield row("529 twice, after a tool call", f"{WORK}\nstatus 529 times 2", OK, 4, 0)
    yield row("529 until the deadline, after a tool call", f"{WORK}\nstatus 529 retry-after 60", OK, 2, 0, 16)
    yield row("stream cut once", f"cut times 1\n{WORK}", OK, 3, 0)
    yield row("stream cut, before a tool call", f"cut times 3\n{WORK}", OVERLOADED, 3, 2)
    yield row("stream cut, after a tool call", f"{WORK}\ncut times 3", OVERLOADED, 4, 1)
    yield row("no answer", f"wait 30 silent\nstatus 500 times 1\n{WORK}", OVERLOADED, 1, 1, 16)
    yield row("stream silent, before a tool call", f"wait 30 silent\n{WORK}", OK, 1, 0, 16)
    yield row("stream silent, after a tool call", f"{WORK}\nwait 30 silent", OK, 2, 0, 16)
    yield row(REFUSED, WORK, OVERLOADED, 0, 2, 16)
    yield row("garbage", f"garbage times 1\n{WORK}", OVERLOADED, 1, 2)


TITLES = ("state", "its write, or the model", "fault", "first answer", "session", "left behind", "model calls")

INTRODUCTION = """\
# What happens when something fails

Every row is played by `tests/test_faults.py` on the local engine with the real Claude Code CLI and an integration
timeout of 40 s, and compared with this table, which `PYTHONPATH=. python -m tests.support.fault_matrix` writes. A
row works on a session of its own that has one turn, or asks for a *new session*:

1. A POST under the fault. Its HTTP status and code are the *first answer*. The *session* is then opened whole: it is
   the *old* version or the *new* one, never anything between; of a new session there may be *none* yet. What the
   failure says it cost is checked too: nothing where the model was not asked, else something, and `null` only where
   the function that knew was killed before it had told.
2. Time passes: a lease that was *left behind* is free at its expiry, 5 seconds after the state machine's own timeout.
3. The same POST again, with its `Idempotency-Key`, as `replay` does. **It ends in the answer in every row**: 200, the
   session one turn further and not two, no lease left, and the run stands as done in the index.

*Model calls* are counted in the stand-in: by the first POST + by the replay. A run without a fault makes two, one for a
tool call and one for the final text. `2 + 0` means that nothing was paid twice, `2 + 1` that the replay went on from
a checkpoint after the tool call, `2 + 2` that there was nothing to go on from.

Faults: *killed before / after*: `kill -9` of the function that makes the write, before S3 gets it, or when S3 has
carried it out. Writes follow each other, so that a state's last one has both, and of the others *before* is mostly
enough: it is *after* for the write above. *500*, *503* (SlowDown): S3's answer. *answer lost*: S3 carries it out, and
the connection breaks. *silent*: S3 takes the request and says nothing; where it does so always, a function's or a
state's timeout ends the wait. S3 takes an object whole or not at all, so between *before* and *after* there is no third
instant.

A *large commit* is that of a session of 9 MiB, which is copied inside S3 in parts; of others the version is one write.

Nothing of a run stays on the machine in any row: a function that was killed is swept up after by the process that
outlives it, within a moment, which is waited for and checked. In AWS that goes with the function's sandbox.

What no table lists, a hundred kills of any process at any instant, is `PYTHONPATH=. python -m tests.chaos`; with
`--disk full` or `--disk refusing` the engine's disk is in trouble, too.
"""


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    return row.state, row.where, row.what, row.answer, row.session, row.left, f"{row.calls} + {row.again}"


def in_order() -> list[Row]:
    """The rows as they are read: by state, in the order of its writes."""
    return [*_restore(), *_run(), *_persist(), *_record(), *_fresh(), *_model()]


def document() -> str:
    """`docs/faults.md`."""
    lines = [TITLES, ("---",) * len(TITLES), *map(cells, in_order())]
    return INTRODUCTION + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + long_document()


if __name__ == "__main__":
    DOCUMENT.write_text(document())
