"""Which bytes of the last version stay where they are in the next one, copied inside S3, and which are moved.

    the last version   [ live | dead | live      | dead | live | dead | directory ]
    the next one       [ copied: live, dead, live ][ the changes ][ moved: live ][ directory ]

Bytes of replaced members are dead. To copy them along costs nothing now, so small gaps stay; they are won back

- at the end, always: what changes in one turn mostly changes in the next, and what was written last is what dies first.
  As long as fewer live bytes are moved than dead ones are won, the end is cut off there;
- in gaps of over 1 MiB, where both sides can be copied;
- elsewhere when they pass their share of the whole: then whole stretches are moved, those first that win the most for
  what they cost, until half of that share is left. What one commit moves is bounded, since it goes through memory and
  has to be done in time; the next commit goes on with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lambdas.archive.directory import Span
from lambdas.archive.merge import Placed

PART = 5 * 1024 * 1024
"""S3 copies no less into a part that is not the last. An archive up to this is written anew, in one request."""

STRETCH = 8 * 1024 * 1024
"""What is won back at a time: about so many bytes."""

GAP = 1024 * 1024
"""Dead bytes that are worth a part of their own behind them."""

MOVED = 1024 * 1024
"""The most that is moved for the dead bytes at the end."""

BUDGET = 64 * 1024 * 1024
"""The most that one commit moves for the sake of the share."""


@dataclass(frozen=True)
class Relocation:
    """Spans of the last version: those that are copied, and those that are moved through memory, each ascending."""

    copied: list[Span]
    moved: list[Span]

    def placed(self, behind: int) -> list[Placed]:
        """Where they are in the next version; the moved ones are behind its byte `behind`."""
        places, at = list[Placed](), 0
        for span in self.copied:
            places.append(Placed(span, at))
            at += length(span)
        at = behind
        for span in self.moved:
            places.append(Placed(span, at))
            at += length(span)
        return sorted(places)


def length(span: Span) -> int:
    """Bytes of a span."""
    return span[1] - span[0]


def relocate(live: Sequence[Span], end: int, share: float) -> Relocation:
    """What becomes of the live spans of an archive whose members' bytes end at `end`.

    `share` is how much of the whole may be dead. With 0 nothing is, whatever has to be moved for that.
    """
    if end <= PART or not share:
        return Relocation(
            [span for span in live if length(span) >= PART], [span for span in live if length(span) < PART]
        )
    kept = _without_end(live, end)
    stretches = _stretches(live[:kept])
    moving = _moving(stretches, sum(map(length, live)), share)
    copied, moved = _joined(stretches, moving)
    return Relocation(copied, sorted([*moved, *live[kept:]]))


def _without_end(live: Sequence[Span], end: int) -> int:
    """How many of the spans stay where they are; those behind are moved, for the dead bytes among and behind them."""
    kept, moved = len(live), 0
    for number in range(len(live) - 1, 0, -1):
        moved += length(live[number])
        if moved > MOVED:
            break
        if moved <= end - live[number - 1][1] - moved:
            kept = number
    return kept


def _stretches(live: Sequence[Span]) -> list[list[Span]]:
    """The spans in groups: no large gap in one, and a new one after some MiB."""
    stretches: list[list[Span]] = []
    for span in live:
        last = stretches[-1] if stretches else None
        if last and span[0] - last[-1][1] < GAP and last[-1][1] - last[0][0] < STRETCH:
            last.append(span)
        else:
            stretches.append([span])
    return stretches


def _moving(stretches: list[list[Span]], live: int, share: float) -> set[int]:
    """The numbers of the stretches that are moved."""
    budget = BUDGET
    wins = [_won(stretches, number) for number in range(len(stretches))]
    costs = [sum(length(span) for span in stretch if length(span) < PART) for stretch in stretches]
    dead, moving = sum(wins), set[int]()
    if dead <= share * (dead + live):
        return moving
    best = sorted((n for n, won in enumerate(wins) if won), key=lambda n: wins[n] / (costs[n] + 1), reverse=True)
    for number in best:
        if dead <= share / 2 * (dead + live):
            break
        if costs[number] <= budget:
            budget -= costs[number]
            dead -= wins[number]
            moving.add(number)
    return moving


def _won(stretches: list[list[Span]], number: int) -> int:
    """The dead bytes in a stretch, and behind it where they are not won anyway."""
    whole = _whole(stretches[number])
    inside = length(whole) - sum(map(length, stretches[number]))
    if number + 1 == len(stretches):
        return inside
    following = _whole(stretches[number + 1])
    gap = following[0] - whole[1]
    return inside + (gap if _worth_joining(whole, following) else 0)


def _whole(stretch: list[Span]) -> Span:
    return stretch[0][0], stretch[-1][1]


def _worth_joining(span: Span, following: Span) -> bool:
    """Whether the gap between the two is copied along: it is small, or one of them is too small for a copy."""
    return following[0] - span[1] < GAP or min(length(span), length(following)) < PART


def _joined(stretches: list[list[Span]], moving: set[int]) -> tuple[list[Span], list[Span]]:
    """What is copied and what is moved. Of a stretch that is moved, a span that is large enough is copied as well."""
    copied, moved = list[Span](), list[Span]()
    open_end = False  # whether the last one copied may grow
    for number, stretch in enumerate(stretches):
        if number in moving:
            copied += [span for span in stretch if length(span) >= PART]
            moved += [span for span in stretch if length(span) < PART]
            open_end = False
            continue
        whole = _whole(stretch)
        if open_end and _worth_joining(copied[-1], whole):
            copied[-1] = (copied[-1][0], whole[1])
        else:
            copied.append(whole)
        open_end = True
    too_small = [span for span in copied if length(span) < PART]
    return [span for span in copied if length(span) >= PART], moved + too_small
