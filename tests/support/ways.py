"""The ways through the state machine's definition: what its functions do, and what has to come of it.

`test_engine.py` walks them on the local engine, `test_interpreter.py` on another interpreter of the language, both with
the functions of `stand_in.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdas import errors
from lambdas.strict import Json
from stacks.definition import DEFINITION
from tests.support.waiting import eventually

STATES = ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure", "ReadRun")
CALLER = "default"


@dataclass(frozen=True)
class Way:
    """One way through the definition."""

    name: str
    script: Json
    """What the functions do, by their states (`stand_in.py`)."""
    calls: str
    """The functions that are called, each as often."""
    answer: Json
    """What holds in the answer: the execution's output, or its cause."""
    error: str | None = None
    """The execution's error, where it fails."""
    locally: bool = True
    """Whether the local engine walks it too, which takes half a second: every kind of way, if not every error."""

    disbelieved: bool = False
    """Whether what RunClaude returned is not acted by."""
    fails_at: str | None = None
    """The state whose error is recorded, where it is none of a function's."""

    @property
    def forged(self) -> bool:
        """Whether a function raises what is Step Functions' own, which not every interpreter lets it."""
        return '"States.' in json.dumps(self.script)


@dataclass(frozen=True)
class Walk:
    """What came of a way."""

    execution: Json
    """As DescribeExecution and StartSyncExecution tell it."""
    calls: dict[str, list[Json]]

    @classmethod
    def of(cls, machines: Any, execution: Json, folder: Path) -> "Walk":
        """With what the functions wrote down in `folder`, when the execution that it was handed over to has ended, too.

        `machines` is Step Functions' client.
        """
        assert eventually(lambda: "RUNNING" not in set(_handed_over(machines, folder)))
        calls = {state: sorted(folder.glob(f"{state}/*")) for state in STATES}
        return cls(
            execution, {state: [json.loads(path.read_text()) for path in paths] for state, paths in calls.items()}
        )


def _handed_over(machines: Any, folder: Path) -> Iterator[str]:
    """The status of the execution that the functions name after their folder, where there is one."""
    for machine in machines.list_state_machines()["stateMachines"]:
        long_execution = machine["stateMachineArn"].replace(":stateMachine:", ":execution:") + f":{folder.name}-long"
        with suppress(machines.exceptions.ExecutionDoesNotExist):
            yield machines.describe_execution(executionArn=long_execution)["status"]


def _retried(state: str) -> list[str]:
    """The errors after which the definition calls the state's function once more."""
    found: list[str] = json.loads(DEFINITION.read_text())["States"][state]["Retry"][0]["ErrorEquals"]
    return found


def envelope(folder: Path, script: Json) -> str:
    """An execution's input, whose key is the folder of its functions."""
    folder.mkdir(parents=True, exist_ok=True)
    return json.dumps({"caller": CALLER, "key": str(folder), "body": {"folder": str(folder), **script}})


def assert_went(walk: Walk, way: Way) -> None:
    """It ended as it has to, called what it has to as often as it has to, and gave each what is its own."""
    execution, calls = walk.execution, walk.calls
    key = json.loads(execution["input"])["key"]
    status = "FAILED" if way.error else "SUCCEEDED"
    assert (execution["status"], execution.get("error")) == (status, way.error), execution
    answer = json.loads(execution["cause" if way.error else "output"])
    assert {name: answer.get(name) for name in way.answer} == way.answer, answer
    called = [state for state in STATES for _ in calls[state][: 1 if state == "ReadRun" else None]]
    assert Counter(called) == Counter(way.calls.split()), called
    for call in calls["RestoreSession"]:
        assert set(call) == {"envelope", "execution", "started_at", "began_at", "before", "long_machine"}
        assert call["envelope"]["key"] == key
        assert call["before"] in (None, "leg/")
        assert (call["began_at"] == call["started_at"]) == (call["before"] is None)
    assert execution["executionArn"] in [call["execution"] for call in calls["RestoreSession"]]
    for call in calls["RunClaude"]:
        assert set(call) == {"script", "task"}
    for call in calls["PersistSession"]:
        assert (set(call), call["claim"]["staging"]) == ({"claim", "told"}, "leg/")
        assert call["told"].get("of") == ("RunClaude" if calls["RunClaude"] and not way.disbelieved else None)
    for call in calls["RecordFailure"]:
        told = {"caller": CALLER, "key": key, "replay": None}
        assert call.keys() == told.keys() | {"claim", "state", "error", "started_at", "execution"}
        assert {name: call[name] for name in told} == told
        assert call["execution"] == _last(calls["RestoreSession"])
        assert set(call["error"]) == {"Error", "Cause"}
        assert (call["state"] == "RestoreSession") == (call["claim"] is None)
        assert call["state"] == way.fails_at or [state for state in STATES[:3] if calls[state]][-1]


def _last(restored: list[Json]) -> str:
    """The execution that was asked last: of a run that is handed over, the long machine's."""
    executions = [str(call["execution"]) for call in restored]
    return next((each for each in executions if each.endswith("-long")), executions[0])


def ways() -> Iterator[Way]:
    """All of them."""
    restored, ran, persisted = "RestoreSession", "RestoreSession RunClaude", "RestoreSession RunClaude PersistSession"
    done = {"of": "PersistSession"}
    yield Way("run", {}, persisted, done)
    yield Way("persist", {"next": "persist"}, "RestoreSession PersistSession", done)
    yield Way("done", {"next": "done"}, restored, {"answered": "before"})
    for kind in errors.Refused.__subclasses__():
        facts = {"success": False, "code": kind.code(), "retryable": kind.retryable, "session_id": "session-1"}
        yield Way(f"refused: {kind.__name__}", _raising("RestoreSession", kind.__name__), restored, facts, kind.code())
    for name in _retried("RestoreSession"):
        once = {"raises": name, "times": 1}
        script = {"RestoreSession": once, "PersistSession": once}
        calls = f"{persisted} RestoreSession PersistSession"
        yield Way(f"{name}, waited out", script, calls, done, locally=name == "StorageUnavailable")
    for state, before in (("RestoreSession", restored), ("PersistSession", persisted)):
        script, calls = _raising(state, "StorageUnavailable"), f"{before} {state} {state} RecordFailure"
        yield recorded(f"{state} gives up", script, calls, "StorageUnavailable", locally=state == "PersistSession")
    for name in ("SessionMoved", "SessionDamaged", "KeyError"):
        script, locally = _raising("RestoreSession", name), name == "SessionMoved"
        yield recorded(f"RestoreSession: {name}", script, f"{restored} RecordFailure", name, locally=locally)
    for name in [*errors.FOREIGN, "AgentCrashed", "ModelRateLimited", "StorageUnavailable", "KeyError"]:
        if name not in _retried("RunClaude"):
            script, locally = _raising("RunClaude", name), name.startswith(("A", "S"))
            yield recorded(f"RunClaude: {name}", script, f"{ran} RecordFailure", name, locally=locally)
    throttle = "Lambda.TooManyRequestsException"
    script = {"RunClaude": {"raises": throttle, "times": 1}}
    yield Way("a throttle of RunClaude, waited out", script, f"{persisted} RunClaude", done)
    script, calls = _raising("RunClaude", throttle), f"{ran} RunClaude RunClaude RecordFailure"
    yield recorded("RunClaude stays throttled", script, calls, throttle, locally=False)
    for state, before in (("RestoreSession", restored), ("PersistSession", persisted)):
        script, calls = _raising(state, "States.DataLimitExceeded"), f"{before} RecordFailure"
        yield recorded(f"{state}: too much data", script, calls, "States.DataLimitExceeded")
    crashed = _raising("RunClaude", "AgentCrashed")
    for name in ("StorageUnavailable", "Lambda.ServiceException"):
        script, calls = crashed | {"RecordFailure": {"raises": name, "times": 1}}, f"{ran} RecordFailure RecordFailure"
        yield recorded(f"RecordFailure: {name}, waited out", script, calls, "AgentCrashed", locally=False)
    unrecorded = _raising("RecordFailure", "StorageUnavailable")
    twice = "RecordFailure RecordFailure"
    yield from handed_over()
    ids: Json = {"session_id": "session-1", "run_id": "run-1", "cost_usd": None, "retryable": True, "success": False}
    yield Way("unrecorded, with a claim", crashed | unrecorded, f"{ran} {twice}", ids, "Internal")
    none = {"session_id": None, "run_id": None}
    damaged = _raising("RestoreSession", "SessionDamaged")
    yield Way("unrecorded, without a claim", damaged | unrecorded, f"{restored} {twice}", ids | none, "Internal")


def handed_over() -> Iterator[Way]:
    """Those of a request that prefers to be answered asynchronously, through both machines."""
    handed, running = "RestoreSession RestoreSession RunClaude PersistSession", {"status": "running", "run_id": "run-1"}
    over: Json = {"next": "hand_over"}
    waits: Json = over | {"wait": 30, "says": "answered"}
    answered = {"answered": "by another"}
    yield Way("handed over", over, handed, running)
    yield Way("handed over and waited for", waits, f"{handed} ReadRun", answered)
    failed = waits | {"says": "failed"}
    yield Way("handed over, and failed", failed, f"{handed} ReadRun", {"error": "x"}, "AgentCrashed")
    yield Way("handed over, not done in time", waits | {"wait": 3, "says": "look"}, f"{handed} ReadRun", running)
    blind = waits | {"wait": 3} | _raising("ReadRun", "StorageUnavailable")
    yield Way("handed over, and read in vain", blind, f"{handed} ReadRun", running)
    yield Way("at work in another execution", waits | {"next": "look"}, "RestoreSession ReadRun", answered)
    yield Way("three legs", over | {"legs": 2}, f"{handed} RestoreSession RunClaude RestoreSession RunClaude", running)
    died = {"raises": "Runtime.ExitError", "times": 1}
    yield Way("a leg died", over | {"RunClaude": died}, f"{handed} RestoreSession RunClaude", running)
    dying, leg = over | _raising("RunClaude", "AgentCrashed"), "RestoreSession RunClaude"
    yield Way("legs die", dying, f"RestoreSession {leg} {leg} {leg} {leg} RecordFailure", running)
    rejected = over | _raising("RunClaude", "ModelRejected")
    yield Way("a leg failed", rejected, f"RestoreSession {leg} RecordFailure", running)
    refused = over | {"refuses": "SessionBusy"}
    yield Way("refused after it was handed over", refused, "RestoreSession RestoreSession RecordFailure", running)
    yield Way(
        "no leg", {"legs": 1}, "RestoreSession RunClaude PersistSession", {"of": "PersistSession"}, disbelieved=True
    )


def _raising(state: str, name: str) -> Json:
    return {state: {"raises": name}}


def recorded(name: str, script: Json, calls: str, raised: str, *, locally: bool = True) -> Way:
    """A way that ends in RecordFailure, after `raised`."""
    claimed = not calls.startswith(("RestoreSession RecordFailure", "RestoreSession RestoreSession"))
    answer = {"code": "Internal", "error": "recorded", "raised": raised, "claimed": claimed}
    return Way(name, script, calls, answer, "Internal", locally)


WAYS = list(ways())
