"""Runs, failures and cost over time, as bars to be drawn, split by caller or by code; and what they come to by each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from claude_workflow.cli.endings import dollars
from claude_workflow.cli.runs import Row
from claude_workflow.console.pages import moment

WIDTH, HEIGHT, BARS = 600, 90, 60
"""Of a chart, in its own units; and how many spans of time it has."""

COLOURS = 5
"""How many callers, and how many codes, have a colour of their own: the first ones."""
OTHERS = 0
"""The colour of all others."""

FAILED = ("failed", "lost")


@dataclass(frozen=True)
class Bar:
    """One caller, or code, in one span of time; it stands on those before it."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    says: str


@dataclass(frozen=True)
class Chart:
    """One figure over time."""

    name: str
    by: str
    """What its bars are split by: `caller` or `code`."""
    bars: list[Bar]
    most: str
    """What the highest bars stand for together."""
    begin: str
    end: str
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Sum:
    """What the runs of one caller, or with one code, come to."""

    name: str
    runs: int
    failed: int
    usd: float
    colour: int


def caller(row: Row) -> str:
    """Who asked for it."""
    return row.owner


def code(row: Row) -> str | None:
    """What it ended with instead of an answer; None where it did not."""
    return row.code or ("lost" if row.outcome == "lost" else None)


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Of rows in the order of time; none of them for none."""
    if not rows:
        return []
    return [
        _chart(rows, "Runs", caller, lambda _: 1.0, lambda value: f"{value:,.0f}"),
        _chart(rows, "Failed or lost", code, lambda row: float(row.outcome in FAILED), lambda value: f"{value:,.0f}"),
        _chart(rows, "Cost", caller, lambda row: row.cost_usd or 0.0, dollars),
    ]


def _chart(
    rows: Sequence[Row],
    name: str,
    by: Callable[[Row], str | None],
    figure: Callable[[Row], float],
    said: Callable[[float], str],
) -> Chart:
    begin, end = rows[0].requested_at, rows[-1].requested_at
    span = (end - begin) / BARS or 1.0
    parts = sums(rows, by)
    colours = {part.name: part.colour for part in parts}
    values = [[0.0] * (COLOURS + 1) for _ in range(BARS)]
    for row in rows:
        if part := by(row):
            values[min(int((row.requested_at - begin) / span), BARS - 1)][colours[part]] += figure(row)
    most, names = max(map(sum, values)), ["others", *(part.name for part in parts[:COLOURS])]
    width = WIDTH / BARS

    def bar(at: int, colour: int, y: float, height: float) -> Bar:
        says = f"{moment(begin + at * span)}, {names[colour]}: {said(values[at][colour])}"
        return Bar(round(at * width, 1), y, width - 1.5, height, colour, says)

    bars = [bar(at, *one) for at, value in enumerate(values) for one in _stacked(value, most)]
    return Chart(name, by.__name__, bars, said(most), moment(begin), moment(begin + BARS * span))


def _stacked(value: Sequence[float], most: float) -> Iterator[tuple[int, float, float]]:
    """Of one span of time the colours that are there, each with y and height: the first below, the others on top."""
    below = 0.0
    for colour in (*range(1, COLOURS + 1), OTHERS):
        if value[colour]:
            below += value[colour]
            yield colour, round(HEIGHT * (1 - below / most), 1), round(HEIGHT * value[colour] / most, 1)


def sums(rows: Sequence[Row], by: Callable[[Row], str | None]) -> list[Sum]:
    """By what `by` says of a row, the dearest first; what it says nothing of is left out."""
    runs, failed, usd = Counter[str](), Counter[str](), dict[str, float]()
    for row in rows:
        if (name := by(row)) is None:
            continue
        runs[name] += 1
        failed[name] += row.outcome in FAILED
        usd[name] = usd.get(name, 0.0) + (row.cost_usd or 0.0)
    names = sorted(runs, key=lambda name: (usd[name], runs[name]), reverse=True)
    colours = dict(zip(names, range(1, COLOURS + 1), strict=False))
    return [Sum(name, runs[name], failed[name], usd[name], colours.get(name, OTHERS)) for name in names]
