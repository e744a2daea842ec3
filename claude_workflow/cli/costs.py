"""`claude-workflow costs`: what runs cost, added up from their receipts."""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.accounts import Account, Attempt, accounts, counted, day
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import dollars
from claude_workflow.cli.endpoint import typed
from claude_workflow.cli.printing import document, line, to_stderr, whole
from claude_workflow.cli.record import Requests
from claude_workflow.cli.tables import Columns
from lambdas.bucket.objects import Bucket
from lambdas.pricing import COUNTS
from lambdas.receipt import Called

NONE = "–"
"""The model of what has no receipt."""

WIDE: Columns = {
    ("runs",): 7,
    ("calls",): 8,
    ("input",): 13,
    ("output",): 12,
    ("written",): 13,
    ("read",): 14,
    ("cost",): 12,
    ("share",): 6,
}
"""Tokens `written` into the cache, and `read` from it."""
NARROW: Columns = {("runs", "calls"): 6, ("input", "output"): 6, ("written", "read"): 7, ("cost", "share"): 9}
FIGURES = [names[0] for names in WIDE]
TOKENS = {"input": "input", "output": "output", "written": "cache_write", "read": "cache_read"}
KEY = 44
"""Columns of what the sums are by: a session's id."""
BESIDE = KEY + sum(2 + (width or 0) for width in WIDE.values()) + 2
BAR_LEAST, BAR_MOST = 10, 60
"""Columns of the longest bar beside the figures; where there are fewer it stands below its name."""


@dataclass
class Sum:
    """What belongs together."""

    of: str
    runs: set[str] = field(default_factory=set)
    calls: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """By `COUNTS`."""
    usd: float = 0.0
    rest: float | None = 0.0
    """US dollars that may come on top: calls that were cut off, or go on, have not announced all that they cost. None
    where nobody can tell how much."""
    without_receipt: int = 0
    """Attempts that count with what their run's record says."""
    unknown: int = 0
    """Attempts that are not in the sum: nobody knows what they cost."""

    def add(self, account: Account, attempt: Attempt, call: Called | None) -> None:
        """A call, or an attempt that has none."""
        self.runs.add(account.run.run_id)
        if call:
            self.calls += 1
            self.tokens.update({name: call.usage.get(name, 0) for name in COUNTS})
            self.usd += call.usd
            self.rest = None if self.rest is None or call.most is None else self.rest + call.most - call.usd
        elif attempt.receipt is None:
            self.usd += attempt.usd or 0.0
            self.without_receipt += attempt.usd is not None
            self.unknown += attempt.usd is None and not account.run.running

    def row(self, by: str, all_usd: float) -> dict[str, Any]:
        """As CSV and JSON have it."""
        sent, said, written, read = (self.tokens[name] for name in COUNTS)
        return {
            by: self.of,
            "runs": len(self.runs),
            "calls": self.calls,
            "input_tokens": sent,
            "output_tokens": said,
            "cache_write_tokens": written,
            "cache_read_tokens": read,
            "usd": round(self.usd, 10),
            "rest_usd": None if self.rest is None else round(self.rest, 10),
            "share": round(self.usd / all_usd, 4) if all_usd else 0.0,
            "without_receipt": self.without_receipt,
            "unknown": self.unknown,
        }


def _key(by: str, account: Account, attempt: Attempt, call: Called | None) -> str:
    """Where a call counts, or an attempt that has none."""
    if by == "model":
        return call.model if call else NONE
    if by == "day":
        return day(call.at if call else attempt.began)
    return str(account.run.request["owner"]) if by == "caller" else account.run.session_id


def sums(found: Iterable[Account], by: str) -> tuple[list[Sum], Sum]:
    """By day in order, else the dearest first; and of all."""
    made: dict[str, Sum] = {}
    everything = Sum("in all")
    for account in found:
        for attempt in account.attempts:
            for call in (attempt.receipt.calls if attempt.receipt else ()) or (None,):
                of = _key(by, account, attempt, call)
                made.setdefault(of, Sum(of)).add(account, attempt, call)
                everything.add(account, attempt, call)
    rows = sorted(made.values(), key=lambda one: one.of if by == "day" else (-one.usd, one.of))
    return rows, everything


def run(backend: Backend, begin: float, now: float, by: str, form: str) -> int:
    """Prints a table, CSV or a line of JSON a row (`form`) to stdout; what it took to stderr."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    rows, everything = sums(accounts(bucket, begin, now), by)
    if form == "table":
        _print(by, rows, everything, backend.options)
    else:
        _print_rows([row.row(by, everything.usd) for row in rows], by, form)
    sys.stdout.flush()
    to_stderr().print(requests.sentence(), style="dim", soft_wrap=True)
    return 0


def _print_rows(rows: list[dict[str, Any]], by: str, form: str) -> None:
    if form == "json":
        for row in rows:
            print(document(row, sys.stdout, None))
        return
    writer = csv.DictWriter(sys.stdout, list(Sum("").row(by, 0.0)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {by: whole(row[by], sys.stdout)})


def _print(by: str, rows: list[Sum], everything: Sum, options: tuple[str, ...]) -> None:
    out = tables.console()
    if not rows:
        out.print("No runs.")
        return
    bar = min(BAR_MOST, out.width - BESIDE) if out.is_terminal else 0
    narrow = out.is_terminal and bar < BAR_LEAST
    columns: Columns = {(by, ""): KEY, **NARROW} if narrow else {(by,): KEY, **WIDE, ("",): None}
    most, cells = max(row.usd for row in rows), []
    for row in [*rows, everything]:
        share = row.usd / most if most and row is not everything else 0.0
        drawn = Text("=" * round(share * (KEY if narrow else bar)), "green")
        cells.append(_cells(row.row(by, everything.usd), by, narrow) | {"": drawn})
    width = tables.NARROW if narrow else out.width
    out.print(tables.table(columns, cells, head=True, width=width, figures=FIGURES))
    for sentence in _remarks(everything, options):
        out.print(sentence, soft_wrap=not out.is_terminal)


def _cells(row: dict[str, Any], by: str, narrow: bool) -> dict[str, Text]:
    counts = {name: row[f"{kind}_tokens"] for name, kind in TOKENS.items()}
    counts |= {name: row[name] for name in ("runs", "calls")}
    figures = {name: _short(count) if narrow else f"{count:,}" for name, count in counts.items()}
    usd = row["usd"]
    figures |= {"cost": dollars(usd) if usd < 1000 else f"${usd:,.0f}", "share": f"{row['share']:.0%}"}
    return {by: Text(line(row[by], 100))} | {name: Text(text) for name, text in figures.items()}


def _short(count: int) -> str:
    """In six characters at the most, as far as there is a name for so many."""
    for size, name in ((10**9, "G"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f}{name}"
    return f"{count:,}" if count < 100_000 else f"{count // 1000}K"


def _remarks(everything: Sum, options: tuple[str, ...]) -> Iterator[str]:
    """What the sums do not say."""
    if bare := everything.without_receipt:
        yield f"Without a receipt: {counted(bare, 'attempt')}, by what the runs' records say."
    if lost := everything.unknown:
        yield f"Not in the sums: {counted(lost, 'attempt')}, whose cost nobody knows. See {typed('verify', *options)}"
    if everything.rest is None or everything.rest > 0:
        most = "Nobody can tell how much" if everything.rest is None else f"Up to {dollars(everything.rest)}"
        yield f"{most} more: not all is announced of calls that were cut off, or go on."
