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
from lambdas.settings import Clocks
from stacks.definition import DEFINITION, definition

ROOT = DEFINITION.parent.parent
MACHINE: dict[str, Any] = json.loads(DEFINITION.read_text())
STATES: dict[str, dict[str, Any]] = MACHINE["States"]
TASKS = {name: state for name, state in STATES.items() if state["Type"] == "Task"}


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


def test_cfn_lint_has_nothing_to_say(prepared: Path) -> None:
    """The template, with the definition inline, passes cfn-lint."""
    # W3005 is about the DependsOn that the CDK writes beside references: redundant, and not ours.
    said = _cfn_lint("--ignore-checks", "W3005", "--", str(prepared))
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
    """Whatever is substituted is a function."""
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION.read_text())) == TASKS.keys()


def test_no_error_stands_alone() -> None:
    """`ErrorEquals` names what errors.py knows, and a state's catch-all; what errors.py knows is caught or repeated."""
    ours = {kind.__name__ for kind in errors.tree()}
    caught = {name for state in STATES.values() for name in _caught(state)}
    assert caught - {"States.ALL"} <= ours | errors.FOREIGN.keys()
    assert errors.FOREIGN.keys() <= caught
    assert {kind.__name__ for kind in errors.tree() if kind.passing} <= caught


def test_refusals_lead_past_the_record() -> None:
    """RestoreSession's first Catch lists every class below Refused."""
    first = STATES["RestoreSession"]["Catch"][0]
    assert (first["ErrorEquals"], first["Next"]) == (
        [kind.__name__ for kind in errors.tree(errors.Refused)[1:]],
        "Failed",
    )


@pytest.mark.parametrize("state", sorted(TASKS.keys() - {"RecordFailure"}))
def test_every_other_error_is_recorded(state: str) -> None:
    """States.ALL leaves out States.DataLimitExceeded, so both lead to RecordFailure."""
    recorded = [c["ErrorEquals"] for c in TASKS[state]["Catch"] if c["Next"] == "RecordFailure"]
    assert recorded == [["States.DataLimitExceeded"], ["States.ALL"]]


@pytest.mark.parametrize("state", sorted(TASKS.keys() - {"RunClaude"}))
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
