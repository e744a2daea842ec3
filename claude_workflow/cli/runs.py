"""`claude-workflow runs`: what ran, how it ended, what it cost."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import cut_short, dollars, is_cut_short, lasted
from claude_workflow.cli.printing import document, line, to_stderr
from claude_workflow.cli.record import READERS, Requests, Run, each, look
from claude_workflow.cli.tables import Columns
from lambdas.bucket.listing import DONE, OUTCOMES, UNFINISHED, Entry, of_session, since
from lambdas.bucket.objects import Bucket

DAY = 86_400.0

LINE: Columns = {
    ("time (UTC)",): 14,
    ("run",): 36,
    ("session",): 44,
    ("owner",): 10,
    ("outcome",): 27,
    ("cost",): 9,
    ("took",): 7,
    ("prompt",): None,
}
TAKEN = sum(width or 0 for width in LINE.values()) + 2 * (len(LINE) - 1)
"""Characters of a line before its prompt."""
PROMPT_LEAST, BLOCK_PROMPT = 25, 44
"""Characters of the prompt that a line has to have room for, and those in a block."""
BLOCK: Columns = {
    ("time (UTC)", "took", "cost"): 14,
    ("run", "session", "prompt"): 44,
    ("owner", "outcome"): None,
}

PROMPT_CHARS = 200
SESSIONS_NAMED = 10

STYLES = {"done": "green", "failed": "red", "lost": "red", "running": "yellow", "cancelled": "yellow"}


@dataclass(frozen=True)
class Row:
    """One run, in a line."""

    requested_at: float
    """Epoch seconds of the first request."""
    run_id: str
    session_id: str
    owner: str
    outcome: str
    """`done`, `running`, `failed`, `cancelled` or `lost`."""
    code: str | None
    """What it failed with."""
    cost_usd: float | None
    """Over all its attempts; None while nobody knows."""
    duration_ms: int | None
    stop_reason: str | None
    model_failure: dict[str, Any] | None
    """What the model's provider failed with while a completed run was at work, and how often: `{status, times}`."""
    prompt: str
    """Its beginning, in one line."""
    replay_of: str | None
    copy_of: str | None
    """The session that this run's own began as a copy of."""
    long: bool
    """Whether it may last longer than a POST, and works in legs."""

    @classmethod
    def of(cls, run: Run) -> "Row":
        """The run's line."""
        answer, failure, body = run.answer or {}, run.failure or {}, run.request.get("body") or {}
        source = body.get("session_id")
        return cls(
            requested_at=run.request["requested_at"],
            run_id=run.run_id,
            session_id=run.session_id,
            owner=run.request["owner"],
            outcome=run.outcome,
            code=failure.get("code"),
            cost_usd=answer.get("cost_usd", failure.get("cost_usd")),
            duration_ms=answer.get("duration_ms"),
            stop_reason=answer.get("stop_reason"),
            model_failure=answer.get("model_failure"),
            prompt=" ".join(str(body.get("prompt", "")).split())[:PROMPT_CHARS],
            replay_of=run.request.get("replay_of"),
            copy_of=source if source != run.session_id else None,
            long=run.long,
        )

    @property
    def ending(self) -> str:
        """The outcome with what it was: a code, a limit, the provider's failure."""
        what = {"done": cut_short(asdict(self)), "cancelled": ""}.get(self.outcome, line(self.code or "", 40))
        outcome = f"{self.outcome} (long)" if self.long else self.outcome
        return f"{outcome}, {what}" if what else outcome


@dataclass
class Sums:
    """What the runs cost together."""

    runs: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    owners: dict[str, float] = field(default_factory=dict)
    """US dollars by owner."""
    sessions: dict[str, float] = field(default_factory=dict)
    """US dollars by session."""

    def add(self, row: Row) -> None:
        """Count one run more."""
        self.runs[row.outcome] += 1
        for sums, name in ((self.owners, row.owner), (self.sessions, row.session_id)):
            sums[name] = sums.get(name, 0.0) + (row.cost_usd or 0.0)


@dataclass(frozen=True)
class Wanted:
    """Which runs are meant."""

    begin: float
    """Epoch seconds."""
    session: str | None = None
    failed: bool = False
    """Only those that failed or were lost."""
    cut_short: bool = False
    """Only completed ones that stopped at a limit, or whose model's provider failed."""

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Where the index has them."""
        return UNFINISHED if self.failed else DONE if self.cut_short else OUTCOMES

    def means(self, row: Row) -> bool:
        """Whether the run is one of them."""
        if row.requested_at < self.begin:
            return False
        if self.cut_short:
            return row.outcome == "done" and is_cut_short(asdict(row))
        return not self.failed or row.outcome in ("failed", "lost")


def listed(bucket: Bucket, wanted: Wanted, now: float) -> Iterator[list[Row]]:
    """The rows in pages of some 1,000; hours in order, and each page of them by time."""
    pages = of_session(bucket, wanted.session) if wanted.session else since(bucket, wanted.begin, now, wanted.outcomes)

    def read(entry: Entry) -> Row | None:
        run = look(bucket, entry, now)
        return Row.of(run) if run else None

    for page in pages:
        rows = [row for row in each(read, page, READERS) if row and wanted.means(row)]
        yield sorted(rows, key=lambda row: row.requested_at)


def run(backend: Backend, wanted: Wanted, now: float, as_json: bool) -> int:
    """Prints the table, or a line of JSON a run, to stdout as it is read; what it took to stderr."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    sums = Sums()
    out = tables.console()
    columns, prompt = (LINE, out.width - TAKEN) if out.width >= TAKEN + PROMPT_LEAST else (BLOCK, BLOCK_PROMPT)
    for rows in listed(bucket, wanted, now):
        first = not sums.runs
        for row in rows:
            sums.add(row)
            if as_json:
                print(document(asdict(row), sys.stdout, None))
        if rows and not as_json:
            cells = (_cells(row, prompt) for row in rows)
            out.print(tables.table(columns, cells, head=first, width=out.width))
    if not as_json:
        _print_sums(sums, out)
    sys.stdout.flush()
    to_stderr().print(requests.sentence(), style="dim", soft_wrap=True)
    return 0


def _cells(row: Row, prompt: int) -> dict[str, Text]:
    """What stands under each head, `prompt` characters of the prompt."""
    return {
        "time (UTC)": Text(f"{datetime.fromtimestamp(row.requested_at, UTC):%m-%d %H:%M:%S}"),
        "run": Text(row.run_id),
        "session": Text(line(row.session_id, 100)),
        "owner": Text(line(row.owner, 40)),
        "outcome": Text(row.ending, STYLES[row.outcome]),
        "cost": Text(dollars(row.cost_usd)),
        "took": Text("" if row.duration_ms is None else lasted(row.duration_ms / 1000)),
        "prompt": Text(line(row.prompt, prompt)),
    }


def _dearest(sums: dict[str, float]) -> list[tuple[str, float]]:
    """The dearest first."""
    return sorted(sums.items(), key=lambda item: -item[1])


def _print_sums(sums: Sums, out: Console) -> None:
    """By owner, by session (the dearest), and in all."""
    if not sums.runs:
        out.print("No runs.")
        return
    out.print()
    for owner, cost in _dearest(sums.owners):
        out.print(f"{dollars(cost):>10}  owner {line(owner, 100)}")
    named = _dearest(sums.sessions)[:SESSIONS_NAMED]
    for session, cost in named:
        out.print(f"{dollars(cost):>10}  {session}")
    if others := len(sums.sessions) - len(named):
        rest = sum(sums.sessions.values()) - sum(cost for _, cost in named)
        out.print(f"{dollars(rest):>10}  {others:,} more sessions")
    counts = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(sums.runs.items()))
    out.print(f"{dollars(sum(sums.sessions.values())):>10}  in all: {sums.runs.total():,} runs, {counts}")
