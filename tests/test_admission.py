"""Seats and the line before them: the order, how long a seat is held, who leaves, and who is sent back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from claude_workflow.local.admission import HELD_SECONDS, PATIENCE_SECONDS, Admission, Full
from tests.support.waiting import eventually


class Left(Exception):
    """A client hung up."""


@dataclass
class Clock:
    """Goes when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Visitor:
    """One who wants a seat, and keeps it until told to go."""

    admission: Admission
    kept: bool = False
    looked: int = 0
    """How often it was looked after while it waited."""
    sits: threading.Event = field(default_factory=threading.Event)
    goes: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def comes(self) -> "Visitor":
        self.thread = threading.Thread(target=self._visit, daemon=True)
        self.thread.start()
        assert eventually(lambda: self.sits.is_set() or self.looked)  # it sits, or stands in the line
        return self

    def ends(self) -> None:
        self.goes.set()
        self.is_gone()

    def is_gone(self) -> None:
        assert self.thread
        self.thread.join(60)

    def _visit(self) -> None:
        with suppress(Left), self.admission.seat(self._still_wanted) as seat:
            seat.kept = self.kept
            self.sits.set()
            self.goes.wait(60)

    def _still_wanted(self) -> None:
        self.looked += 1
        if self.left.is_set():
            raise Left


@pytest.fixture
def come() -> Iterator[Callable[..., Visitor]]:
    came: list[Visitor] = []

    def comes(admission: Admission, *, kept: bool = False) -> Visitor:
        came.append(Visitor(admission, kept).comes())
        return came[-1]

    yield comes
    for each in came:
        each.left.set()
        each.goes.set()
    for each in came:
        each.is_gone()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_seats_are_given_in_the_order_of_coming(come: Callable[..., Visitor], clock: Clock) -> None:
    """As many as there are sit; each that ends makes room for the one that has waited longest, and for one only."""
    admission = Admission(2, clock)
    visitors = [come(admission) for _ in range(5)]
    for number in range(3):
        assert [each.sits.is_set() for each in visitors] == [at < number + 2 for at in range(5)]
        visitors[number].ends()
        assert visitors[number + 2].sits.wait(60)


def test_who_leaves_the_line_takes_no_seat(come: Callable[..., Visitor], clock: Clock) -> None:
    """Whoever stands behind it moves up."""
    admission = Admission(1, clock)
    first, second, third = (come(admission) for _ in range(3))
    second.left.set()
    second.is_gone()
    first.ends()
    assert third.sits.wait(60)
    assert not second.sits.is_set()


def test_a_seat_is_free_when_its_time_is_over(come: Callable[..., Visitor], clock: Clock) -> None:
    """However long the first one's model thinks, the line moves on; and its end frees no second seat."""
    admission = Admission(1, clock)
    first, second = come(admission), come(admission)
    clock.now += HELD_SECONDS
    assert second.sits.wait(60)
    assert not first.goes.is_set()
    third = come(admission)
    first.ends()
    assert not third.sits.wait(0.1)


def test_a_run_that_goes_on_keeps_its_seat_after_its_answer(come: Callable[..., Visitor], clock: Clock) -> None:
    """Else any number of long runs could start at once: their answers come before their agents have started."""
    admission = Admission(1, clock)
    come(admission, kept=True).ends()
    second = come(admission)
    assert not second.sits.is_set()
    clock.now += HELD_SECONDS
    assert second.sits.wait(60)


def test_who_would_wait_too_long_is_sent_back_at_once(come: Callable[..., Visitor], clock: Clock) -> None:
    """It is told to come again when half of those before it are gone, by how long seats were held of late."""
    admission = Admission(1, clock)
    for _ in range(15):
        come(admission)
    with pytest.raises(Full) as full, admission.seat(lambda: pytest.fail("It waits.")):
        pass
    assert full.value.retry_after == 15  # 15 of 2 s each are before it


def test_who_has_waited_too_long_is_sent_back(come: Callable[..., Visitor], clock: Clock) -> None:
    """Where the others took longer than was thought."""
    admission = Admission(1, clock)
    come(admission)

    def time_passes() -> None:
        clock.now += PATIENCE_SECONDS + 1

    with pytest.raises(Full), admission.seat(time_passes):
        pass
