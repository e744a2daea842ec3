"""The state machine's definition, read: its states, its errors, its expressions, its time limits."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonata
import pytest

from lambdas import errors
from lambdas.errors import RunTimedOut
from lambdas.settings import Clocks, Legs
from stacks.definition import DEFINITION, definition
from tests.conftest import Synthesize

ROOT = DEFINITION.parent.parent
MACHINE: dict[str, Any] = json.loads(DEFINITION.read_text())
STATES: dict[str, dict[str, Any]] = MACHINE["States"]
TASKS = {name: state for name, state in STATES.items() if state.get("Resource") == "arn:aws:states:::lambda:invoke"}
"""Those that call one of the workflow's functions."""
WORK = sorted(TASKS.keys() - {"ReadRun"})
"""Those of a run; the other one only looks."""


def _next(state: dict[str, Any]) -> set[str]:
    ways = [state, *state.get("Catch", []), *state.get("Choices", [])]
    return {way[key] for way in ways for key in ("Next", "Default") if key in way}


def _caught(state: dict[str, Any]) -> list[str]:
    return [name for clause in (*state.get("Retry", []), *state.get("Catch", [])) for name in clause["ErrorEquals"]]


def _expressions(value: Any) -> Iterator[str]:
    match value:
        case str() if value.startswith("{%"):
            yield value.removeprefix("{%").removesuffix("%}")
        case dict():
            for item in value.values():
                yield from _expressions(item)
        case list():
            for item in value:
                yield from _expressions(item)


def _cfn_lint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("cfn-lint")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cfn_lint_has_nothing_to_say(synthesized: Synthesize) -> None:
    """The template, with the definition inline and with a private network, passes cfn-lint."""
    (template,) = synthesized(network="private").glob("*.template.json")
    # W3005 is about the DependsOn that the CDK writes beside references: redundant, and not ours.
    said = _cfn_lint("--ignore-checks", "W3005", "--", str(template))
    assert said.returncode == 0, said.stdout + said.stderr


def test_cfn_lint_reads_the_definition(prepared: Path, tmp_path: Path) -> None:
    """A definition with a misspelt field does not pass cfn-lint, so its silence means something."""
    broken = tmp_path / "broken.template.json"
    broken.write_text(prepared.read_text().replace(r"\"StartAt\"", r"\"StartsAt\""))
    assert "E3601" in _cfn_lint("--", str(broken)).stdout


@pytest.mark.parametrize("state", STATES)
def test_every_way_leads_to_a_state(state: str) -> None:
    """No state names a next one that is not there, and only the ends name none."""
    assert _next(STATES[state]) <= STATES.keys()
    assert bool(_next(STATES[state])) == (STATES[state]["Type"] not in ("Succeed", "Fail"))


def test_every_state_is_reached() -> None:
    """From the start, some way leads to each state."""
    reached: set[str] = set()
    ahead = {MACHINE["StartAt"]}
    while ahead:
        state = ahead.pop()
        reached.add(state)
        ahead |= _next(STATES[state]) - reached
    assert reached == STATES.keys()


@pytest.mark.parametrize("state", STATES)
def test_expressions_are_jsonata(state: str) -> None:
    """Every expression is closed and parses."""
    texts = re.findall(r"\{%|%\}", json.dumps(STATES[state]))
    assert texts.count("{%") == texts.count("%}")
    for expression in _expressions(STATES[state]):
        jsonata.Jsonata(expression)


def test_task_states_placeholders_and_files_share_their_names() -> None:
    """State `RunClaude` invokes `${RunClaude}`, which is `lambdas/run_claude.py`."""
    placeholders = {name: state["Arguments"]["FunctionName"] for name, state in TASKS.items()}
    assert placeholders == {name: f"${{{name}}}" for name in TASKS}
    for name in TASKS:
        module = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        assert (ROOT / "lambdas" / f"{module}.py").is_file()


def test_the_text_holds_no_other_placeholder() -> None:
    """Whatever is substituted is a function, or the machine that is handed over to."""
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION.read_text())) == TASKS.keys() | {"LongMachine"}


def test_no_error_stands_alone() -> None:
    """`ErrorEquals` names what errors.py knows, and a state's catch-all; what errors.py knows is caught or repeated."""
    ours = {kind.__name__ for kind in errors.tree()}
    caught = {name for state in TASKS.values() for name in _caught(state)}
    assert caught - {"States.ALL"} <= ours | errors.FOREIGN.keys()
    assert errors.FOREIGN.keys() <= caught
    assert {kind.__name__ for kind in errors.tree() if kind.passing} <= caught


def test_refusals_lead_past_the_record() -> None:
    """RestoreSession's first Catch lists every class below Refused. They end the express machine; in the long one, who
    asked was answered before, so that they are recorded."""
    first = STATES["RestoreSession"]["Catch"][0]
    assert (first["ErrorEquals"], first["Next"]) == (
        [kind.__name__ for kind in errors.tree(errors.Refused)[1:]],
        "Refused",
    )
    assert [choice["Next"] for choice in STATES["Refused"]["Choices"]] == ["RecordFailure", "Failed"]


@pytest.mark.parametrize("state", [*(state for state in WORK if state != "RecordFailure"), "HandOver"])
def test_every_other_error_is_recorded(state: str) -> None:
    """States.ALL leaves out States.DataLimitExceeded, so both lead to RecordFailure; those of RunClaude where no other
    leg follows."""
    ways = ("RecordFailure", "RunClaudeFailed")
    recorded = [c["ErrorEquals"] for c in STATES[state]["Catch"] if c["Next"] in ways]
    assert recorded == [["States.DataLimitExceeded"], ["States.ALL"]]


def test_a_leg_follows_on_what_the_next_one_may_not_meet() -> None:
    """Whatever ended RunClaude's function, a passing error of its own, and Claude Code's death."""
    condition = STATES["RunClaudeFailed"]["Choices"][0]["Condition"]
    foreign = [name for name, error in errors.FOREIGN.items() if error.passing]
    ours = [kind.__name__ for kind in errors.tree() if kind.passing]
    assert re.findall(r"'([\w.]+)'", condition) == [*foreign, *ours, "AgentCrashed"]


@pytest.mark.parametrize("state", [state for state in WORK if state != "RunClaude"])
def test_what_may_be_over_in_a_second_is_repeated(state: str) -> None:
    """Those functions are idempotent. RecordFailure is not repeated after a time limit: no time is left."""
    limits = state != "RecordFailure"
    foreign = [name for name, e in errors.FOREIGN.items() if e.passing and (limits or e.kind is not RunTimedOut)]
    ours = [kind.__name__ for kind in errors.tree() if kind.passing]
    assert TASKS[state]["Retry"][0]["ErrorEquals"] == foreign + ours


def test_run_claude_is_repeated_on_throttles_only() -> None:
    """Every other error of Lambda's can come after the model was paid."""
    assert [name for name, e in errors.FOREIGN.items() if e.passing and not e.ran] == [
        "Lambda.TooManyRequestsException"
    ]
    assert [clause["ErrorEquals"] for clause in STATES["RunClaude"]["Retry"]] == [["Lambda.TooManyRequestsException"]]


def test_persist_session_does_not_believe_run_claude() -> None:
    """PersistSession gets RestoreSession's claim; apart from it, what the function with strangers' code returned."""
    assert STATES["PersistSession"]["Arguments"]["Payload"] == {"claim": "{% $claim %}", "told": "{% $states.input %}"}
    assert "claim" not in STATES["RunClaude"].get("Assign", {})


def test_the_text_is_what_is_deployed_by_default() -> None:
    """Its numbers are those of 29 seconds, so that it is true when read alone."""
    assert json.loads(definition(Clocks(29))) == MACHINE


@pytest.mark.parametrize("seconds", [15, 29, 60, 300])
def test_time_limits_nest(seconds: int) -> None:
    """agent < function < state < machine < gateway, and an express machine stays within its 300 seconds."""
    clocks = Clocks(seconds)
    machine = json.loads(definition(clocks))
    states = machine["States"]
    run = states["RunClaude"]["TimeoutSeconds"]
    assert 0 < clocks.agent < clocks.run_function < run < machine["TimeoutSeconds"] < seconds
    assert machine["TimeoutSeconds"] <= 300
    assert 0 < clocks.restore_function < states["RestoreSession"]["TimeoutSeconds"]
    assert 0 < clocks.persist_function < states["PersistSession"]["TimeoutSeconds"]
    assert 0 < clocks.record_function < states["RecordFailure"]["TimeoutSeconds"]


@pytest.mark.parametrize("seconds", [15, 29, 60, 300])
def test_the_long_machine_differs_in_its_time_limits_alone(seconds: int) -> None:
    """It has the express one's states; a leg's function ends before its state, and the machine after the last leg."""
    clocks, legs = Clocks(seconds), Legs(3600)
    express, long = json.loads(definition(clocks)), json.loads(definition(clocks, legs))
    assert legs.limit < legs.function < long["States"]["RunClaude"]["TimeoutSeconds"] == legs.state
    assert long["TimeoutSeconds"] == legs.machine > legs.run + legs.state
    express["TimeoutSeconds"] = legs.machine
    express["States"]["RunClaude"]["TimeoutSeconds"] = legs.state
    assert long == express


@pytest.mark.parametrize("seconds", [15, 29, 60, 300])
def test_a_lease_outlives_its_leg(seconds: int) -> None:
    """However often the definition repeats what a leg consists of: until its end nobody else has the session."""
    states = json.loads(definition(Clocks(seconds), Legs(3600)))["States"]
    throttled = 2 * states["RunClaude"]["TimeoutSeconds"]  # a throttle comes at once
    longest = sum(_longest(states[name]) for name in ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure"))
    assert longest - throttled < Legs(3600).lease


@pytest.mark.parametrize("seconds", [15, 29, 60, 300])
def test_an_express_execution_ends_after_its_last_look(seconds: int) -> None:
    """Whoever waits for a run that was handed over is answered within the gateway's time."""
    clocks = Clocks(seconds)
    assert clocks.agent + STATES["Pause"]["Seconds"] + STATES["ReadRun"]["TimeoutSeconds"] < clocks.machine


def _longest(state: dict[str, Any]) -> int:
    """Seconds of a state that is repeated as often as it may be, each time to its limit."""
    longest: int = state["TimeoutSeconds"]
    for retry in state["Retry"]:
        pauses = [retry["IntervalSeconds"] * retry["BackoffRate"] ** n for n in range(retry["MaxAttempts"])]
        longest += sum(pauses) + retry["MaxAttempts"] * state["TimeoutSeconds"]
    return longest
