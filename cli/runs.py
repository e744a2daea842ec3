"""`claude-workflow runs`: what ran, how it ended, what it cost."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.backend import Backend
from cli.printing import document, line, to_stderr, to_stdout
from cli.records import ALL, READERS, UNFINISHED, Entry, Records, Run, each

DAY = 86_400.0
WIDE = 180
"""Columns that a row takes; a narrower terminal breaks it, so that a run's id always stands there whole."""

PROMPT_CHARS = 200
SESSIONS_NAMED = 10

STYLES = {"done": "green", "failed": "red", "lost": "red", "running": "yellow"}


@dataclass(frozen=True)
class Row:
    """One run, in a line."""

    requested_at: float
    """Epoch seconds of the first request."""
    run_id: str
    session_id: str
    owner: str
    outcome: str
    """`done`, `running`, `failed` or `lost`."""
    code: str | None
    """What it failed with."""
    cost_usd: float | None
    """Over all its attempts; None while nobody knows."""
    duration_ms: int | None
    stop_reason: str | None
    prompt: str
    """Its beginning, in one line."""
    replay_of: str | None

    @classmethod
    def of(cls, run: Run) -> "Row":
        answer, failure = run.answer or {}, run.failure or {}
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
            prompt=" ".join(str((run.request.get("body") or {}).get("prompt", "")).split())[:PROMPT_CHARS],
            replay_of=run.request.get("replay_of"),
        )


@dataclass
class Sums:
    """What the runs cost together."""

    runs: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    owners: Counter[str] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        self.runs[row.outcome] += 1
        self.owners[row.owner] += row.cost_usd or 0.0  # type: ignore[assignment]  # a Counter takes any number
        self.sessions[row.session_id] += row.cost_usd or 0.0  # type: ignore[assignment]  # likewise


def listed(records: Records, failed: bool, begin: float, session: str | None, now: float) -> Iterator[list[Row]]:
    """The rows in pages of some 1,000; hours in order, and each page of them by time."""
    pages = records.of_session(session) if session else records.since(begin, now, UNFINISHED if failed else ALL)

    def look(entry: Entry) -> Row | None:
        run = records.run(entry, now)
        return Row.of(run) if run else None

    for page in pages:
        rows = [row for row in each(look, page, READERS) if row and row.requested_at >= begin]
        shown = [row for row in rows if not failed or row.outcome in ("failed", "lost")]
        yield sorted(shown, key=lambda row: row.requested_at)


def run(backend: Backend, failed: bool, span: float | None, session: str | None, as_json: bool) -> int:
    """Prints the table, or a line of JSON a run, to stdout as it is read; what it took to stderr."""
    now = time.time()
    records = Records(backend.client("s3"), backend.bucket)
    default = now if session else DAY  # of a session, all
    begin = now - (default if span is None else span)
    sums = Sums()
    out = to_stdout(width=max(WIDE, Console().width))
    for rows in listed(records, failed, begin, session, now):
        first = not sums.runs
        for row in rows:
            sums.add(row)
            if as_json:
                print(document(asdict(row), sys.stdout, None))
        if rows and not as_json:
            out.print(_table(rows, first))
    if not as_json:
        _print_sums(sums, out)
    sys.stdout.flush()
    to_stderr().print(str(records), style="dim", soft_wrap=True)
    return 0


def _table(rows: list[Row], first: bool) -> Table:
    """A page. Its widths are fixed, so that pages printed one below the other make one table."""
    table = Table(box=None, show_header=first, pad_edge=False, width=WIDE, header_style="bold")
    for name, width in (("time (UTC)", 14), ("run", 36), ("session", 17), ("owner", 12), ("outcome", 7), ("code", 17)):
        table.add_column(name, width=width, no_wrap=True)
    table.add_column("cost", width=9, justify="right", no_wrap=True)
    table.add_column("took", width=18, no_wrap=True)
    table.add_column("prompt", ratio=1, no_wrap=True)
    for row in rows:
        took = "" if row.duration_ms is None else f"{row.duration_ms / 1000:.1f} s {row.stop_reason}"
        table.add_row(
            f"{datetime.fromtimestamp(row.requested_at, UTC):%m-%d %H:%M:%S}",
            row.run_id,
            row.session_id[:17],
            line(row.owner, 40),
            Text(row.outcome, STYLES[row.outcome]),
            row.code or "",
            dollars(row.cost_usd),
            took,
            line(row.prompt, PROMPT_CHARS),
        )
    return table


def dollars(amount: float | None) -> str:
    """A cost, or a dash where nobody knows it."""
    return "–" if amount is None else f"${amount:.4f}"


def _print_sums(sums: Sums, out: Console) -> None:
    """By owner, by session (the dearest), and in all."""
    if not sums.runs:
        out.print("No runs.")
        return
    out.print()
    for owner, cost in sums.owners.most_common():
        out.print(f"{dollars(cost):>10}  owner {line(owner, 100)}")
    named = sums.sessions.most_common(SESSIONS_NAMED)
    for session, cost in named:
        out.print(f"{dollars(cost):>10}  {session}")
    if others := len(sums.sessions) - len(named):
        rest = sum(sums.sessions.values()) - sum(cost for _, cost in named)
        out.print(f"{dollars(rest):>10}  {others:,} more sessions")
    counts = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(sums.runs.items()))
    out.print(f"{dollars(sum(sums.sessions.values())):>10}  in all: {sums.runs.total():,} runs, {counts}")
