"""The definition on another interpreter than the local engine's, of other people's writing: each of its ways.

This one keeps the machine's time limit and the limit of 256 KiB, which the local engine does not.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdas.settings import Clocks, Legs
from lambdas.strict import Json
from stacks.definition import ITSELF, definition
from tests.support.interpreter import Interpreter, interpreting
from tests.support.ways import WAYS, Walk, Way, assert_went, recorded

RAN = "RestoreSession RunClaude"
OWN: list[Way] = [
    *(
        recorded(
            f"{state}: too much data", {state: {"fills": 300_000}}, f"{calls} RecordFailure", "States.DataLimitExceeded"
        )
        for state, calls in (
            ("RestoreSession", "RestoreSession"),
            ("RunClaude", RAN),
            ("PersistSession", f"{RAN} PersistSession"),
        )
    ),
    Way(
        "RestoreSession and PersistSession too slow, once each",
        {"RestoreSession": {"waits": 4, "times": 1}, "PersistSession": {"waits": 4, "times": 1}},
        f"{RAN} PersistSession RestoreSession PersistSession",
        {"of": "PersistSession"},
    ),
    recorded("RunClaude too slow", {"RunClaude": {"waits": 4}}, f"{RAN} RecordFailure", "States.Timeout"),
    Way(
        "RecordFailure too slow",
        {"RunClaude": {"raises": "AgentCrashed"}, "RecordFailure": {"waits": 4}},
        f"{RAN} RecordFailure",
        {"session_id": "session-1", "run_id": "run-1", "cost_usd": None},
        "Internal",
    ),
]
"""Where the error is Step Functions' own: with two seconds for each function."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with interpreting() as running:
        yield running


@pytest.fixture(scope="module")
def walked(interpreter: Interpreter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """All ways of the local engine, as many at once as do not hold each other up."""
    scripts = {way.name: way.script for way in WAYS if not way.forged}
    long_machine = interpreter.machine(definition(Clocks(29), Legs(3600)), ITSELF)
    machine = interpreter.machine(definition(Clocks(29)), long_machine)
    return interpreter.walk(machine, scripts, tmp_path_factory.mktemp("walked"))


@pytest.mark.parametrize("way", [way for way in WAYS if not way.forged], ids=lambda way: way.name)
def test_every_way_is_as_it_has_to_be(walked: dict[str, Walk], way: Way) -> None:
    """The table is the local engine's, too: both read the definition alike."""
    assert_went(walked[way.name], way)


@pytest.fixture(scope="module")
def hurried(interpreter: Interpreter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    scripts = {way.name: way.script for way in OWN}
    return interpreter.walk(interpreter.machine(_limited(states=2)), scripts, tmp_path_factory.mktemp("hurried"))


@pytest.mark.parametrize("way", OWN, ids=lambda way: way.name)
def test_what_step_functions_itself_raises_is_caught(hurried: dict[str, Walk], way: Way) -> None:
    """States.Timeout and States.DataLimitExceeded, by what brings them about."""
    assert_went(hurried[way.name], way)


def test_the_machine_has_a_time_limit_of_its_own(interpreter: Interpreter, tmp_path: Path) -> None:
    """Nothing of the definition catches it: the answer is the gateway's."""
    machine = interpreter.machine(_limited(machine=1))
    walk = interpreter.walk(machine, {"slow": {"RestoreSession": {"waits": 3}}}, tmp_path)["slow"]
    assert walk.execution["status"] == "TIMED_OUT"
    assert not walk.calls["RecordFailure"]


def test_what_cannot_be_handed_over_is_recorded(interpreter: Interpreter, tmp_path: Path) -> None:
    """RestoreSession's claim is there by then, and what it holds is given back."""
    machine = interpreter.machine(definition(Clocks(29)))
    failure = {"raised": "StepFunctions.StateMachineDoesNotExistException", "claimed": True}
    calls, script = "RestoreSession RecordFailure", {"next": "hand_over"}
    way = Way("nowhere", script, calls, failure, "Internal", fails_at="HandOver")
    assert_went(interpreter.walk(machine, {"nowhere": script}, tmp_path)["nowhere"], way)


def _limited(*, states: int | None = None, machine: int | None = None) -> str:
    """The definition with other time limits, in seconds."""
    read: Json = json.loads(definition(Clocks(29)))
    read["TimeoutSeconds"] = machine or read["TimeoutSeconds"]
    for state in read["States"].values():
        if states and "TimeoutSeconds" in state:
            state["TimeoutSeconds"] = states
    return json.dumps(read)
