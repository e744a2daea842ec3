"""The ways through the state machine's definition: what its functions do, and what has to come of it.

`test_engine.py` walks them on the local engine, `test_interpreter.py` on another interpreter of the language, both with
the functions of `stand_in.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lambdas import errors
from lambdas.strict import Json
from stacks.definition import DEFINITION

STATES = ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure")
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
    def of(cls, execution: Json, folder: Path) -> "Walk":
        """With what the functions wrote down in `folder`."""
        calls = {state: sorted(folder.glob(f"{state}/*")) for state in STATES}
        return cls(
            execution, {state: [json.loads(path.read_text()) for path in paths] for state, paths in calls.items()}
        )


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
    called = [state for state in STATES for _ in calls[state]]
    assert Counter(called) == Counter(way.calls.split()), called
    for call in calls["RestoreSession"]:
        assert set(call) == {"envelope", "execution", "started_at"}
        assert (call["execution"], call["envelope"]["key"]) == (execution["executionArn"], key)
    for call in calls["RunClaude"]:
        assert set(call) == {"script", "task"}
    for call in calls["PersistSession"]:
        assert (set(call), set(call["claim"])) == ({"claim", "told"}, {"script", "session_id", "run_id"})
        assert call["told"].get("of") == ("RunClaude" if calls["RunClaude"] else None)
    for call in calls["RecordFailure"]:
        told = {"execution": execution["executionArn"], "caller": CALLER, "key": key, "replay": None}
        assert call.keys() == told.keys() | {"claim", "state", "error", "started_at"}
        assert {name: call[name] for name in told} == told
        assert set(call["error"]) == {"Error", "Cause"}
        assert (call["state"] == "RestoreSession") == (call["claim"] is None)
        assert call["state"] == [state for state in STATES[:3] if calls[state]][-1]


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
    ids: Json = {"session_id": "session-1", "run_id": "run-1", "cost_usd": None, "retryable": True, "success": False}
    yield Way("unrecorded, with a claim", crashed | unrecorded, f"{ran} {twice}", ids, "Internal")
    none = {"session_id": None, "run_id": None}
    damaged = _raising("RestoreSession", "SessionDamaged")
    yield Way("unrecorded, without a claim", damaged | unrecorded, f"{restored} {twice}", ids | none, "Internal")


def _raising(state: str, name: str) -> Json:
    return {state: {"raises": name}}


def recorded(name: str, script: Json, calls: str, raised: str, *, locally: bool = True) -> Way:
    """A way that ends in RecordFailure, after `raised`."""
    claimed = not calls.startswith(("RestoreSession RecordFailure", "RestoreSession RestoreSession"))
    answer = {"code": "Internal", "error": "recorded", "raised": raised, "claimed": claimed}
    return Way(name, script, calls, answer, "Internal", locally)


WAYS = list(ways())
