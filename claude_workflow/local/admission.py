"""Who may start an agent now: as many at a time as the machine runs well; the others wait in the order they came.

An agent takes most of what it takes of the machine while it starts, and later waits for its model. So a seat is held
until the run is answered, but no longer than `HELD_SECONDS`: however long the models of those who sit think, the line
moves on. Nothing that has started waits here: no leg of a long run, no replay.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HELD_SECONDS = 5.0
"""How long a seat is held at the most, and for a run that goes on after its answer: longer than a run takes whose model
answers at once, with all seats taken."""
PATIENCE_SECONDS = 29.0
"""The longest wait: as long as an API of AWS makes its clients wait by default. An answer may take so much longer."""
LOOK_SECONDS = 0.25
"""How often who waits is looked after."""
USUAL_SECONDS = 2.0
"""How long a seat is thought to be held before one was."""


def seats() -> int:
    """How many agents at a time this machine runs well (`python -m benchmarks --only many`)."""
    return 2 * (os.cpu_count() or 1)


class Full(Exception):
    """The line is longer than anyone waits; it is worth to come again after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


@dataclass(eq=False)
class Seat:
    """One of them."""

    waited: float = 0.0
    """Seconds, before it was free."""
    taken: float = 0.0
    """When."""
    kept: bool = False
    """Whether the run goes on after its answer, so that its seat is free only when its time is over."""


class Admission:
    """The seats, and the line before them."""

    def __init__(self, seats: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seats, self._clock = seats, clock
        self._taken: list[Seat] = []
        self._line: list[Seat] = []
        self._usual = USUAL_SECONDS
        self._changed = threading.Condition()

    @contextmanager
    def seat(self, still_wanted: Callable[[], None]) -> Iterator[Seat]:
        """A seat, once it is this one's turn. Raises `Full`; and what `still_wanted` raises, which is asked as long as
        this one waits."""
        seat = Seat()
        self._wait(seat, still_wanted)
        try:
            yield seat
        finally:
            with self._changed:
                if not seat.kept:
                    self._free(seat)
                    self._changed.notify_all()

    def _wait(self, seat: Seat, still_wanted: Callable[[], None]) -> None:
        came = self._clock()
        with self._changed:
            if self._expected() > PATIENCE_SECONDS:
                raise self._full()
            self._line.append(seat)
            try:
                while not self._is_next(seat):
                    still_wanted()
                    if self._clock() - came > PATIENCE_SECONDS:
                        raise self._full()
                    self._changed.wait(LOOK_SECONDS)
                    seat.waited = self._clock() - came
                seat.taken = self._clock()
                self._taken.append(seat)
            finally:
                self._line.remove(seat)
                self._changed.notify_all()

    def _is_next(self, seat: Seat) -> bool:
        """Whether it is its turn, and there is one free."""
        self._free_overdue()
        return self._line[0] is seat and len(self._taken) < self._seats

    def _free_overdue(self) -> None:
        for each in [each for each in self._taken if self._clock() - each.taken >= HELD_SECONDS]:
            self._free(each)

    def _free(self, seat: Seat) -> None:
        """Once; how long it was held says how long the next ones will be."""
        if seat in self._taken:
            self._taken.remove(seat)
            self._usual += (min(self._clock() - seat.taken, HELD_SECONDS) - self._usual) / (2 * self._seats)

    def _expected(self) -> float:
        """Seconds that one who comes now will wait."""
        self._free_overdue()
        before = len(self._line) + len(self._taken) - self._seats + 1
        return max(0, before) * self._usual / self._seats

    def _full(self) -> Full:
        """Come again when half of the line is gone: it is not empty by then."""
        return Full(max(1, math.ceil(self._expected() / 2)))
