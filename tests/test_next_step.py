"""What becomes of a run: every case a sentence. RestoreSession acts by the same function as `--dry-run` tells."""

from dataclasses import replace
from typing import Any

import pytest

from lambdas.contract import Base
from lambdas.errors import RunInProgress, SessionBusy, SessionMoved, SessionNotFound
from lambdas.next_step import Done, Left, Persist, Pin, Refuse, Run, Situation, Staging, Step, next_step

OLD = Base("session-1", "v1", '"1"', "2026", 1, 0.5, "claude", 100, 10)
NEW = replace(OLD, version_id="v2", etag='"2"')
RESULT, CHECKPOINT, BOTH = Staging("r/", None), Staging(None, "c/"), Staging("r/", "c/")
PINNED, FIRST = Pin(OLD), Pin(None)
NOTHING = Left()


def new(left: Left = NOTHING, **more: Any) -> Situation:
    """A run that asks for no session."""
    return replace(Situation((left,)), **more)


def goes_on(left: Left = NOTHING, newest: Base | None = OLD, **more: Any) -> Situation:
    """A run that goes on with a session."""
    return replace(Situation((left,), asks=True, newest=newest), **more)


def copies(left: Left = NOTHING, newest: Base | None = OLD) -> Situation:
    """A request with `fork`."""
    return goes_on(left, newest, copies=True)


def forks(*left: Left, newest: Base | None = None) -> Situation:
    """A replay by `fork`: of its own work, then of the run's that it forks, and so on."""
    return Situation(left, asks=True, newest=newest, copies=True)


CASES: list[tuple[str, Situation, Step]] = [
    ("a new session begins with nothing", new(), Run(FIRST)),
    ("a session goes on from its newest version", goes_on(), Run(PINNED)),
    ("a session that is not there is not found", goes_on(newest=None), Refuse(SessionNotFound)),
    ("a copy begins with the session's newest version", copies(), Run(PINNED)),
    ("a copy of what is not there is not found", copies(newest=None), Refuse(SessionNotFound)),
    ("an answer is given again", goes_on(answer={"a": 1}), Done({"a": 1})),
    ("an answer is given again, whoever works on the session", new(answer={"a": 1}, held=SessionBusy), Done({"a": 1})),
    ("an answer is given again, though the session is gone", goes_on(newest=None, answer={"a": 1}), Done({"a": 1})),
    ("a run that is at work is in progress", goes_on(Left(PINNED, BOTH), held=RunInProgress), Refuse(RunInProgress)),
    ("a session that another run works on is busy", goes_on(held=SessionBusy), Refuse(SessionBusy)),
    ("of a new session a staged result is committed", new(Left(FIRST, RESULT)), Persist(FIRST, "r/")),
    ("of a new session a checkpoint is gone on with", new(Left(FIRST, CHECKPOINT)), Run(FIRST, "c/")),
    ("of a new session nothing staged is started over", new(Left(FIRST)), Run(FIRST)),
    ("a staged result is committed", goes_on(Left(PINNED, RESULT)), Persist(PINNED, "r/")),
    ("a staged result is better than a checkpoint", goes_on(Left(PINNED, BOTH)), Persist(PINNED, "r/")),
    ("a checkpoint is gone on with", goes_on(Left(PINNED, CHECKPOINT)), Run(PINNED, "c/")),
    ("nothing staged is started over", goes_on(Left(PINNED)), Run(PINNED)),
    ("a staged result does not fit another version", goes_on(Left(PINNED, RESULT), NEW), Refuse(SessionMoved)),
    ("a checkpoint does not fit another version", goes_on(Left(PINNED, CHECKPOINT), NEW), Refuse(SessionMoved)),
    ("with nothing staged it is pinned anew", goes_on(Left(PINNED), NEW), Run(Pin(NEW, 1))),
    ("and anew again", goes_on(Left(Pin(OLD, 3)), NEW), Run(Pin(NEW, 4))),
    ("pinned anew, it goes on as pinned", goes_on(Left(Pin(NEW, 1), RESULT), NEW), Persist(Pin(NEW, 1), "r/")),
    ("what was committed is answered", goes_on(Left(PINNED, RESULT), NEW, committed=True), Persist(PINNED, "r/")),
    ("what was committed is not asked again", goes_on(Left(PINNED), NEW, committed=True), Refuse(SessionMoved)),
    ("nor is it cut off", goes_on(Left(PINNED, CHECKPOINT), NEW, committed=True), Refuse(SessionMoved)),
    ("a result of a session that was deleted", goes_on(Left(PINNED, RESULT), None), Refuse(SessionNotFound)),
    ("a run on a session that was deleted", goes_on(Left(PINNED), None), Refuse(SessionNotFound)),
    ("a copy's result is committed, whatever the session", copies(Left(PINNED, RESULT), NEW), Persist(PINNED, "r/")),
    ("a copy's result is committed without the session", copies(Left(PINNED, RESULT), None), Persist(PINNED, "r/")),
    ("a copy's checkpoint is gone on with", copies(Left(PINNED, CHECKPOINT), NEW), Run(PINNED, "c/")),
    ("a copy with nothing staged begins anew", copies(Left(PINNED), NEW), Run(Pin(NEW, 1))),
    ("a copy with nothing staged, of what was deleted", copies(Left(PINNED), None), Refuse(SessionNotFound)),
    ("a fork is pinned to what the run was", forks(Left(), Left(Pin(OLD, 2))), Run(PINNED)),
    ("a fork commits what the run staged", forks(Left(), Left(PINNED, RESULT)), Persist(PINNED, "r/")),
    ("a fork goes on from its checkpoint", forks(Left(), Left(PINNED, CHECKPOINT)), Run(PINNED, "c/")),
    ("a fork of a new session begins like it", forks(Left(), Left(FIRST, CHECKPOINT)), Run(FIRST, "c/")),
    ("a fork of what was never pinned begins on the newest", forks(Left(), Left(), newest=NEW), Run(Pin(NEW))),
    ("a fork of what was never pinned and is gone", forks(Left(), Left()), Refuse(SessionNotFound)),
    ("a fork asked again stays on its version", forks(Left(PINNED), Left(Pin(NEW, 1))), Run(PINNED)),
    ("a fork asked again uses what the run staged", forks(Left(PINNED), Left(PINNED, RESULT)), Persist(PINNED, "r/")),
    ("but not on another version", forks(Left(PINNED), Left(Pin(NEW, 1), RESULT)), Run(PINNED)),
    ("its own work comes first", forks(Left(PINNED, CHECKPOINT), Left(PINNED, RESULT)), Run(PINNED, "c/")),
    ("a fork of a fork", forks(Left(), Left(PINNED), Left(PINNED, RESULT)), Persist(PINNED, "r/")),
    ("a fork of a fork that never began", forks(Left(), Left(), Left(PINNED, CHECKPOINT)), Run(PINNED, "c/")),
]


@pytest.mark.parametrize(("at", "step"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_next_step(at: Situation, step: Step) -> None:
    """What is staged binds to its version; with nothing staged a run begins as if it were asked just now."""
    assert next_step(at) == step
