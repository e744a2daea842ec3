"""Runs, failures and cost over time, as bars to be drawn; and what they come to by caller and by code."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from claude_workflow.cli.endings import dollars
from claude_workflow.cli.runs import Row
from claude_workflow.console.pages import moment

WIDTH, HEIGHT, BARS = 600, 90, 60
"""Of a chart, in its own units; and how many spans of time it has."""

FAILED = ("failed", "lost")


@dataclass(frozen=True)
class Bar:
    """One span of time."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Chart:
    """One figure over time."""

    name: str
    kind: str
    bars: list[Bar]
    most: str
    """What the highest bar stands for."""
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


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Of rows in the order of time; none of them for none."""
    if not rows:
        return []
    begin, end = rows[0].requested_at, rows[-1].requested_at
    span = max((end - begin) / BARS, 1.0)
    figures: list[tuple[str, str, Callable[[Row], float], Callable[[float], str]]] = [
        ("Runs", "runs", lambda _: 1.0, lambda value: f"{value:,.0f}"),
        ("Failed or lost", "failed", lambda row: float(row.outcome in FAILED), lambda value: f"{value:,.0f}"),
        ("Cost", "cost", lambda row: row.cost_usd or 0.0, dollars),
    ]
    return [_chart(rows, begin, span, *figure) for figure in figures]


def _chart(
    rows: Sequence[Row],
    begin: float,
    span: float,
    name: str,
    kind: str,
    figure: Callable[[Row], float],
    said: Callable[[float], str],
) -> Chart:
    values = [0.0] * BARS
    for row in rows:
        values[min(int((row.requested_at - begin) / span), BARS - 1)] += figure(row)
    most, width = max(values), WIDTH / BARS
    bars = [
        Bar(
            round(number * width, 1),
            round(HEIGHT * (1 - value / most), 1),
            round(width - 1.5, 1),
            round(HEIGHT * value / most, 1),
            f"{moment(begin + number * span)}: {said(value)}",
        )
        for number, value in enumerate(values)
        if value
    ]
    return Chart(name, kind, bars, said(most), moment(begin), moment(begin + BARS * span))


def sums(rows: Sequence[Row], name_of: Callable[[Row], str | None]) -> list[Sum]:
    """By what `name_of` says of a row, the dearest first; what it says nothing of is left out."""
    runs, failed, usd = Counter[str](), Counter[str](), dict[str, float]()
    for row in rows:
        if (name := name_of(row)) is None:
            continue
        runs[name] += 1
        failed[name] += row.outcome in FAILED
        usd[name] = usd.get(name, 0.0) + (row.cost_usd or 0.0)
    found = [Sum(name, runs[name], failed[name], usd[name]) for name in runs]
    return sorted(found, key=lambda each: (each.usd, each.runs), reverse=True)
