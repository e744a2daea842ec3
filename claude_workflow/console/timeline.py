"""What a run's time went into, to scale: states, and within RunClaude the calls of the model and the tools."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from claude_workflow.cli.history import Story, named
from lambdas.receipt import Receipt

Receipts = Mapping[str, Receipt | None]
"""By attempt; None for one that does not add up."""

WIDTH, ROW, LABEL = 1000, 26, 190
"""Of the picture, of a row, and of the names before the bars, in its own units."""
BARS = 1500
"""At the most; a run of hours has more calls than anybody can tell apart."""


@dataclass(frozen=True)
class Bar:
    """Some time in a row."""

    begin: float
    """Epoch seconds."""
    end: float
    kind: str
    says: str
    x: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class Row:
    """What went on of one kind."""

    name: str
    inner: bool
    """Whether it is a part of the state above."""
    bars: list[Bar]
    y: int = 0


@dataclass(frozen=True)
class Timeline:
    """The picture."""

    rows: list[Row]
    ticks: list[tuple[float, str]]
    """Where a line stands, and which time that is."""
    height: int
    label: int = LABEL
    width: int = WIDTH


def drawn(
    asked_at: float,
    stories: Sequence[Story],
    receipts: Receipts,
    messages: Sequence[bytes],
    now: float,
) -> Timeline | None:
    """To scale; None where nothing is known of it. What goes on still has lasted until `now` (epoch seconds)."""
    rows = list(_rows(asked_at, stories, receipts, messages, now))
    bars = [bar for row in rows for bar in row.bars]
    if not bars:
        return None
    begin, end = min(bar.begin for bar in bars), max(bar.end for bar in bars)
    scale = (WIDTH - LABEL) / max(end - begin, 0.001)

    def placed(row: Row, number: int) -> Row:
        bars = [
            Bar(
                bar.begin,
                bar.end,
                bar.kind,
                f"{bar.says}: {bar.end - bar.begin:.3f} s, at {bar.begin - begin:.3f} s",
                round(LABEL + (bar.begin - begin) * scale, 2),
                round(max(1.5, (bar.end - bar.begin) * scale), 2),
            )
            for bar in row.bars[:BARS]
        ]
        return Row(row.name, row.inner, bars, (number + 1) * ROW)

    return Timeline(
        [placed(row, number) for number, row in enumerate(rows)], _ticks(end - begin), (len(rows) + 1) * ROW
    )


def _rows(
    asked_at: float,
    stories: Sequence[Story],
    receipts: Receipts,
    messages: Sequence[bytes],
    now: float,
) -> Iterator[Row]:
    calls = sorted(_calls(receipts), key=lambda bar: bar.begin)
    tools = list(_tools(messages, calls))
    first = True
    for story in sorted((story for story in stories if story.visits), key=lambda story: story.visits[0].entered):
        if first and 0 < story.visits[0].entered - asked_at < 60:
            yield Row("Gateway", inner=False, bars=[Bar(asked_at, story.visits[0].entered, "gateway", "Gateway")])
        first = False
        for name, visit in named(story.visits):
            end = visit.left if visit.left is not None else max(now, visit.entered)
            kind = "failed" if visit.errors else "running" if visit.left is None else "state"
            yield Row(name, inner=False, bars=[Bar(visit.entered, end, kind, name)])
            if visit.name == "RunClaude":
                yield from _inside(visit.entered, end, calls, tools)


def _calls(receipts: Receipts) -> Iterator[Bar]:
    for call in (call for receipt in receipts.values() if receipt for call in receipt.calls):
        kind = "call" if call.end == "whole" else "failed"
        yield Bar(call.at, call.at + call.seconds, kind, f"{call.model[:60]}, {call.end}")


def _inside(begin: float, end: float, calls: Sequence[Bar], tools: Sequence[Bar]) -> Iterator[Row]:
    """What went on in one visit of RunClaude."""
    asked, used = ([bar for bar in bars if begin <= bar.begin <= end] for bars in (calls, tools))
    if not asked:
        return
    last = max(bar.end for bar in [*asked, *used])
    start = Bar(begin, asked[0].begin, "start", "Session restored, Claude Code started")
    packing = Bar(last, end, "start", "What it changed packed and staged")
    for name, bars in (("restore, start", [start]), ("model", asked), ("tools", used), ("packing", [packing])):
        if bars and bars[-1].end > bars[0].begin:
            yield Row(name, inner=True, bars=bars)


def _tools(messages: Sequence[bytes], calls: Sequence[Bar]) -> Iterator[Bar]:
    """Each from the end of what was before it, a call or another tool, until its result came: what Claude Code prints
    has times of results alone."""
    ends = sorted(bar.end for bar in calls)
    names: dict[str, str] = {}
    before = 0.0
    for message in messages:
        if b'"tool_use"' not in message and b'"tool_result"' not in message:
            continue
        try:
            found: Any = json.loads(message)
            content = found["message"]["content"]
            for block in content:
                if block.get("type") == "tool_use":
                    names[str(block["id"])] = str(block["name"])[:60]
                elif block.get("type") == "tool_result" and found.get("timestamp"):
                    came = datetime.fromisoformat(str(found["timestamp"])).timestamp()
                    begun = max(before, ends[bisect_right(ends, came) - 1] if ends and ends[0] <= came else 0.0)
                    kind = "failed" if block.get("is_error") is True else "tool"
                    if begun:
                        yield Bar(begun, came, kind, names.get(str(block["tool_use_id"]), "tool"))
                    before = came
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue  # a stranger's message, which is shown as what it is in the conversation


def _ticks(span: float) -> list[tuple[float, str]]:
    """Some five, at round times."""
    step = next((each for each in STEPS if span / each <= 6), STEPS[-1] * max(1, round(span / STEPS[-1] / 6)))
    scale = (WIDTH - LABEL) / max(span, 0.001)
    return [(round(LABEL + number * step * scale, 1), _said(number * step)) for number in range(int(span / step) + 1)]


STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""Seconds."""


def _said(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"
