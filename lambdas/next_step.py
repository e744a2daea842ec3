"""What becomes of a run, from what is recorded of it: decided here, once, and by nothing but its arguments.

RestoreSession acts by it; `show` and `replay --dry-run` tell it. What it is decided from is read by
`bucket/situation.py`; `tests/test_next_step.py` has every case as a sentence.
"""

from dataclasses import dataclass, field

from lambdas.contract import Base
from lambdas.errors import RunCancelled, SessionMoved, SessionNotFound, WorkflowError
from lambdas.strict import Json


@dataclass(frozen=True)
class Staging:
    """What earlier attempts of a run left, each as the prefix of its attempt; None where there is none."""

    result: str | None = None
    """The newest attempt that staged a whole result."""
    checkpoint: str | None = None
    """The newest attempt that left a checkpoint."""

    def __bool__(self) -> bool:
        return bool(self.result or self.checkpoint)


@dataclass(frozen=True)
class Pin:
    """The session's version that a run works on, as `base.json` has it."""

    base: Base | None
    """None for a new session."""
    number: int = 0
    """How often the run was pinned anew. What an attempt stages is of the pin whose number its name ends with."""
    etag: str = field(default="", compare=False)
    """Of `base.json`: it is replaced only where it still is this one."""
    execution: str = field(default="", compare=False)
    """Who wrote it."""


@dataclass(frozen=True)
class Left:
    """What a run left behind."""

    pin: Pin | None = None
    staged: Staging = Staging()
    """Of the attempts that worked on what the run is pinned to."""
    cancelled: bool = False
    """Whether its caller has ended it."""


@dataclass(frozen=True)
class Situation:
    """All that decides."""

    left: tuple[Left, ...]
    """By the run itself; of a replay by `fork` then by the run that it forks, by the one which that forks, and on."""
    asks: bool = False
    """Whether it wants a session that is there already."""
    newest: Base | None = None
    """That session's newest version; None where it is not there, or another caller's."""
    copies: bool = False
    """Whether its answer goes to a new session that starts as a copy: what the other is by then does not matter."""
    answer: Json | None = None
    """Its committed one."""
    held: type[WorkflowError] | None = None
    """What it is refused with because another execution is at work: on this run, or on its session."""
    committed: bool = False
    """Whether the session has gone on from what the run is pinned to by a commit of this very run."""


@dataclass(frozen=True)
class Done:
    """Its answer is given again."""

    answer: Json


@dataclass(frozen=True)
class Persist:
    """What is staged is committed; the model is not asked."""

    pin: Pin
    staging: str


@dataclass(frozen=True)
class Run:
    """The model is asked: to go on from a checkpoint or, where there is none, from the start."""

    pin: Pin
    checkpoint: str | None = None


@dataclass(frozen=True)
class Refuse:
    """Nothing is done, and this is said."""

    error: type[WorkflowError]


Step = Done | Persist | Run | Refuse


def next_step(at: Situation) -> Step:
    """What is staged binds a run to the version that it was made on. A run of which nothing is staged has nothing to
    lose: it begins as if it had been asked just now, whatever has become of the session meanwhile."""
    if at.answer:
        return Done(at.answer)
    if at.held:
        return Refuse(at.held)
    staged = goes_on_from(at.left)
    if at.left[0].cancelled and not at.left[0].staged:
        return Refuse(RunCancelled)
    pin = _pin(at.left) if staged or len(at.left) > 1 else None
    if at.asks and at.newest is None and not (at.copies and pin):
        return Refuse(SessionNotFound)
    if pin is None:
        return _begin(at)
    if _moved(at, pin) and not (staged.result and at.committed):
        return Refuse(SessionMoved)
    return Persist(pin, staged.result) if staged.result else Run(pin, staged.checkpoint)


def goes_on_from(left: tuple[Left, ...]) -> Staging:
    """What is staged on the version that the run is pinned to: by itself or, if it stages nothing, by what it forks."""
    pin = _pin(left)
    fitting = (each.staged for each in left if each.pin and pin and each.pin.base == pin.base)
    return next((staged for staged in fitting if staged), Staging())


def _begin(at: Situation) -> Step:
    """From the start, on the newest version: pinned to it, or pinned anew."""
    old = at.left[0].pin
    if old is None:
        return Run(Pin(at.newest))
    if not _differ(old.base, at.newest):
        return Run(old)
    # Its turn is in the session, and nothing is left from which its answer could be given.
    return Refuse(SessionMoved) if at.committed else Run(Pin(at.newest, old.number + 1))


def _pin(left: tuple[Left, ...]) -> Pin | None:
    """The run's own; where it has none, one of its own to what the run that it forks is pinned to."""
    return left[0].pin or next((Pin(each.pin.base) for each in left if each.pin), None)


def _moved(at: Situation, pin: Pin) -> bool:
    return not at.copies and _differ(pin.base, at.newest)


def _differ(one: Base | None, other: Base | None) -> bool:
    return (one and one.version_id) != (other and other.version_id)
