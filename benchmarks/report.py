"""What a benchmark has to say: Markdown tables, checks of what was promised, and plots drawn as plain SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 70, 190, 40, 50
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#cb912f")


class Check(NamedTuple):
    """Something that was promised, beside what was measured."""

    promise: str
    measured: str
    met: bool | None
    """None where it was not promised, and is there to compare."""

    @classmethod
    def at_least(cls, promise: str, measured: float, least: float, unit: str = "×") -> "Check":
        """Met where `measured` is `least` or more."""
        return cls(promise, f"{figure(measured)}{unit}", measured >= least)

    @classmethod
    def at_most(cls, promise: str, measured: float, most: float, unit: str) -> "Check":
        """Met where `measured` is `most` or less."""
        return cls(promise, f"{figure(measured)}{unit}", measured <= most)


@dataclass
class Section:
    """One benchmark's part of the report."""

    title: str
    blocks: list[str] = field(default_factory=list)
    """Paragraphs and tables of Markdown."""
    plots: dict[str, str] = field(default_factory=dict)
    """SVG by the stem of its file's name."""
    checks: list[Check] = field(default_factory=list)

    def markdown(self) -> str:
        """The part of the page; its plots are beside it."""
        pictures = [f"![{name}](benchmarks/{name}.svg)" for name in self.plots]
        return "\n\n".join([f"## {self.title}", *self.blocks, *pictures])


def figure(value: float) -> str:
    """A number with two or three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) < 100 else f"{value:,.0f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers are shown as figures."""
    lines = [[figure(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    every = [list(heads), ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def checks(sections: Iterable[Section]) -> str:
    """All checks of a run, in one table; nothing where there are none."""
    rows = [
        (check.promise, check.measured, {True: "met", False: "**not met**", None: ""}[check.met])
        for one in sections
        for check in one.checks
    ]
    return table(("promised", "measured", ""), rows) if rows else ""


def write(folder: Path, machine: str, sections: Sequence[Section]) -> None:
    """`benchmarks.md` and its plots, into `folder`."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for name, svg in section.plots.items():
            (pictures / f"{name}.svg").write_text(svg)
    parts = ["# Benchmarks", machine, "## What was promised", checks(sections)]
    (folder / "benchmarks.md").write_text("\n\n".join([*parts, *(one.markdown() for one in sections)]) + "\n")


def plot(title: str, x: str, y: str, lines: Mapping[str, Points], *, logarithmic: bool = True) -> str:
    """Lines with a mark at each point, on two logarithmic axes or two that begin at 0."""
    points = [point for line in lines.values() for point in line]
    across = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT, logarithmic)
    along = _Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [*_frame(title, x, y), *_grid(across, along)]
    for number, (name, line) in enumerate(lines.items()):
        parts += _line(name, [(across.at(a), along.at(b)) for a, b in line], number)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" role="img">'
    return "\n".join([head, *parts, "</svg>", ""])


class _Axis:
    def __init__(self, values: Sequence[float], start: float, end: float, logarithmic: bool) -> None:
        self._start, self._end, self._logarithmic = start, end, logarithmic
        if logarithmic:
            low = math.floor(math.log10(min(values)))
            high = max(low + 1, math.ceil(math.log10(max(values))))
            self.ticks = [10.0**power for power in range(low, high + 1)]
        else:
            step = 10.0 ** math.floor(math.log10(max(values) or 1.0))
            step = step if max(values) / step >= 4 else step / 4
            self.ticks = [step * count for count in range(math.ceil(max(values) / step) + 1)]

    def at(self, value: float) -> float:
        low, high, value = (self._scaled(one) for one in (self.ticks[0], self.ticks[-1], value))
        return self._start + (self._end - self._start) * (value - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._logarithmic else value


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="#37352f" {more}>{escape(text)}</text>'


def _frame(title: str, x: str, y: str) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 22, title, 'font-size="15" font-weight="bold"'),
        _text(middle, HEIGHT - 12, x, 'text-anchor="middle"'),
        _text(16, HEIGHT / 2, y, f'text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2:.0f})"'),
    ]


def _grid(across: _Axis, along: _Axis) -> list[str]:
    parts = []
    for tick in across.ticks:
        at = across.at(tick)
        parts.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e9e9e7"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 16, f"{tick:g}", 'text-anchor="middle"'))
    for tick in along.ticks:
        at = along.at(tick)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e9e9e7"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{tick:g}", 'text-anchor="end"'))
    return parts


def _line(name: str, line: Points, number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line] if len(line) < 40 else []
    key = TOP + 10 + 18 * number
    return [
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *marks,
        f'<rect x="{WIDTH - RIGHT + 14}" y="{key - 9}" width="10" height="10" fill="{colour}"/>',
        _text(WIDTH - RIGHT + 30, key, name),
    ]
