"""The state machine as a picture, out of its definition: states in layers, with what a run made of each.

Drawn as graphs are usually drawn (Sugiyama's way): a state stands one layer below the last that leads to it, edges
that go back left out of that; an edge that passes layers has a place in each of them, so that it crosses no state; and
within a layer each goes to the middle of its neighbours, back and forth some times.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from claude_workflow.cli.history import Story, Visit
from lambdas.strict import Json
from stacks.definition import DEFINITION

WIDTH, HEIGHT = 150, 44
"""Of a state's box."""
PASSING = 26
"""What an edge takes of a layer that it passes."""
GAP, DOWN = 22, 46
"""Between two boxes of a layer, and between two layers."""
SIDE = 14
"""How far beside the boxes an edge goes that leads back up."""
SWEEPS = 12


class Edge(NamedTuple):
    """From one state to another."""

    begin: str
    end: str
    caught: bool
    """Whether an error leads there."""


@dataclass(frozen=True)
class Box:
    """A state, where it stands, and what became of it."""

    name: str
    kind: str
    x: float
    y: float
    outcome: str
    """`done`, `failed` (its last try was an error), `running`, or empty: it was not entered."""
    says: str
    """How long it took, and how often it was entered."""


@dataclass(frozen=True)
class Line:
    """An edge."""

    path: str
    """As SVG has it."""
    caught: bool
    taken: bool


@dataclass(frozen=True)
class Drawing:
    """The picture."""

    width: float
    height: float
    boxes: list[Box]
    lines: list[Line]


def drawn(stories: Sequence[Story]) -> Drawing:
    """The machine with what these executions went through."""
    layout = _layout()
    visits: dict[str, list[Visit]] = {}
    taken: set[tuple[str, str]] = set()
    for story in stories:
        for visit in story.visits:
            visits.setdefault(visit.name, []).append(visit)
        taken |= {(first.name, second.name) for first, second in pairwise(story.visits)}
    boxes = [
        Box(name, layout.kinds[name], x, y, _outcome(visits.get(name, [])), _says(visits.get(name, [])))
        for name, (x, y) in layout.places.items()
    ]
    lines = [Line(path, edge.caught, (edge.begin, edge.end) in taken) for edge, path in layout.paths]
    return Drawing(layout.width, layout.height, boxes, sorted(lines, key=lambda line: line.taken))


def _outcome(visits: Sequence[Visit]) -> str:
    if not visits:
        return ""
    last = visits[-1]
    if last.left is None and not last.errors:
        return "running"
    return "failed" if (last.errors and last.output is None) or last.name == "Failed" else "done"


def _says(visits: Sequence[Visit]) -> str:
    took = sum(visit.left - visit.entered for visit in visits if visit.left is not None)
    tries = sum(len(visit.errors) for visit in visits)
    words = [f"{took:.2f} s"] if took >= 0.005 else []
    words += [f"{len(visits)} times"] if len(visits) > 1 else []
    words += [f"{tries} error{'s' * (tries > 1)}"] if tries else []
    return ", ".join(words)


@dataclass(frozen=True)
class _Layout:
    kinds: Mapping[str, str]
    places: Mapping[str, tuple[float, float]]
    """The left upper corner of each state's box."""
    paths: Sequence[tuple[Edge, str]]
    width: float
    height: float


@cache
def _layout() -> _Layout:
    return laid_out(json.loads(DEFINITION.read_text()))


def laid_out(machine: Json) -> _Layout:
    """Where each state of a definition stands, and how its edges go."""
    states = machine["States"]
    edges = list(dict.fromkeys(edge for name, state in states.items() for edge in edges_of(name, state)))
    order = _depth_first(machine["StartAt"], edges)
    forward = [edge for edge in edges if (edge.begin, edge.end) not in order.back]
    layer = _layers(order.states, forward)
    chains = {edge: _chain(edge, layer) for edge in forward}
    rows = _ordered(layer, chains)
    across = _across(rows, chains)
    width = max(across[one] + _width(one) / 2 for row in rows for one in row) + 3 * SIDE
    top = {one: number * (HEIGHT + DOWN) for number, row in enumerate(rows) for one in row}
    places = {name: (across[name] - WIDTH / 2, float(top[name])) for name in layer}
    paths = [(edge, _path([(across[one], top[one]) for one in chain])) for edge, chain in chains.items()]
    backs = [edge for edge in edges if edge not in chains and edge.begin in layer]
    paths += [(edge, _back(places[edge.begin], places[edge.end])) for edge in backs]
    kinds = {name: states[name]["Type"] for name in layer}
    return _Layout(kinds, places, paths, width, len(rows) * (HEIGHT + DOWN) - DOWN)


def edges_of(name: str, state: Json) -> Iterator[Edge]:
    """Where a state leads."""
    for target in [state.get("Next"), state.get("Default"), *(each["Next"] for each in state.get("Choices", []))]:
        if target:
            yield Edge(name, target, caught=False)
    for each in state.get("Catch", []):
        yield Edge(name, each["Next"], caught=True)


class _Walk(NamedTuple):
    states: list[str]
    """Each before those that it leads to, back edges left out."""
    back: set[tuple[str, str]]


def _depth_first(start: str, edges: Sequence[Edge]) -> _Walk:
    done, open_, back = list[str](), list[str](), set[tuple[str, str]]()

    def visit(name: str) -> None:
        open_.append(name)
        for edge in edges:
            if edge.begin == name and edge.end in open_:
                back.add((name, edge.end))
            elif edge.begin == name and edge.end not in done:
                visit(edge.end)
        open_.pop()
        done.append(name)

    visit(start)
    return _Walk(done[::-1], back)


def _layers(states: Sequence[str], forward: Sequence[Edge]) -> dict[str, int]:
    layer = dict.fromkeys(states, 0)
    for name in states:
        for edge in forward:
            if edge.begin == name:
                layer[edge.end] = max(layer[edge.end], layer[name] + 1)
    return layer


def _chain(edge: Edge, layer: Mapping[str, int]) -> list[str]:
    """The places that an edge has in the layers from its beginning to its end."""
    passed = range(layer[edge.begin] + 1, layer[edge.end])
    return [edge.begin, *(f"{edge.begin}>{edge.end}>{number}" for number in passed), edge.end]


def _ordered(layer: Mapping[str, int], chains: Mapping[Edge, list[str]]) -> list[list[str]]:
    rows: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for name, number in layer.items():
        rows[number].append(name)
    for edge, chain in chains.items():
        for offset, one in enumerate(chain[1:-1], layer[edge.begin] + 1):
            if one not in rows[offset]:
                rows[offset].append(one)
    above, below = _neighbours(chains.values())
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for number in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            other = rows[number - 1 if down else number + 1]
            beside = above if down else below
            at = {one: place / max(len(other) - 1, 1) for place, one in enumerate(other)}
            own = {one: place / max(len(rows[number]) - 1, 1) for place, one in enumerate(rows[number])}
            wish = {one: _middle([at[each] for each in beside.get(one, []) if each in at], own[one]) for one in own}
            rows[number].sort(key=wish.__getitem__)
    return rows


def _neighbours(chains: Iterable[list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above, below = dict[str, list[str]](), dict[str, list[str]]()
    for chain in chains:
        for first, second in pairwise(chain):
            above.setdefault(second, []).append(first)
            below.setdefault(first, []).append(second)
    return above, below


def _middle(found: Sequence[float], otherwise: float) -> float:
    return sum(found) / len(found) if found else otherwise


def _across(rows: Sequence[list[str]], chains: Mapping[Edge, list[str]]) -> dict[str, float]:
    """The middle of each, from the left: where its neighbours are, as far as there is room."""
    above, below = _neighbours(chains.values())
    across: dict[str, float] = {}
    for row in rows:
        x = 0.0
        for one in row:
            across[one] = x + _width(one) / 2
            x += _width(one) + GAP
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            beside = above if sweep % 2 == 0 else below
            wish = [_middle([across[each] for each in beside.get(one, [])], across[one]) for one in row]
            _place(row, wish, across)
    left = min(across[one] - _width(one) / 2 for row in rows for one in row) - 3 * SIDE
    return {one: round(x - left, 1) for one, x in across.items()}


def _place(row: Sequence[str], wish: Sequence[float], across: dict[str, float]) -> None:
    """As near to their wishes as their order and widths allow: what overlaps moves as one, to the middle of its wishes
    (pool adjacent violators)."""
    offsets = [0.0]
    for first, second in pairwise(row):
        offsets.append(offsets[-1] + (_width(first) + _width(second)) / 2 + GAP)
    blocks: list[tuple[float, int]] = []
    for want, offset in zip(wish, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    places = [mean for mean, count in blocks for _ in range(count)]
    across.update({one: place + offset for one, place, offset in zip(row, places, offsets, strict=True)})


def _width(one: str) -> int:
    return PASSING if ">" in one else WIDTH


def _path(points: Sequence[tuple[float, float]]) -> str:
    """From the bottom of the first to the top of the last, down through the others."""
    x, y = points[0][0], points[0][1] + HEIGHT
    path = f"M{x:.0f} {y:.0f}"
    for number, (to, top) in enumerate(points[1:], 2):
        bend = DOWN / 2
        path += f" C{x:.0f} {y + bend:.0f} {to:.0f} {top - bend:.0f} {to:.0f} {top:.0f}"
        x, y = to, float(top)
        if number < len(points):
            y += HEIGHT
            path += f" V{y:.0f}"
    return path


def _back(begin: tuple[float, float], end: tuple[float, float]) -> str:
    """Beside the boxes, from the left of one up to the left of the other."""
    x, y, to, top = begin[0], begin[1] + HEIGHT / 2, end[0], end[1] + HEIGHT / 2
    beside = min(x, to) - 2 * SIDE
    return f"M{x:.0f} {y:.0f} C{beside:.0f} {y:.0f} {beside:.0f} {top:.0f} {to:.0f} {top:.0f}"
