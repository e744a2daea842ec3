"""What is told of a run that ends: when, and how much."""

import socket
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from botocore.session import Session

from lambdas.bus import Bus, RunEnded
from lambdas.contract import Claim
from lambdas.errors import AgentCrashed, ModelOverloaded, RunCancelled, SessionNotFound, StorageUnavailable
from lambdas.strict import Json
from tests.support.played_workflow import Execution, Fuse, Killed, Workflow

CLAIM = Claim("run-1", "session-1", "alice", "arn:execution-1", "runs/run-1/0001-aa/", 0.0, False, "uuid", None)
ANSWER: Json = {"success": True, "stop_reason": "end_turn", "cost_usd": 0.5, "num_turns": 3, "result": "a secret"}
FAILED: Json = AgentCrashed("a secret", cost_usd=None).facts()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ANSWER, ("done", None, "end_turn", 0.5, 3)),
        (ANSWER | {"stop_reason": "max_turns"}, ("done", None, "max_turns", 0.5, 3)),
        (ANSWER | {"stop_reason": "cancelled"}, ("cancelled", None, "cancelled", 0.5, 3)),
        (FAILED, ("failed", "AgentCrashed", None, None, None)),
        (RunCancelled().facts(), ("cancelled", "RunCancelled", None, 0.0, None)),
    ],
)
def test_ids_and_figures_are_told_and_no_content(answer: Json, outcome: tuple[Any, ...]) -> None:
    """Neither the answer's text nor the failure's."""
    told = asdict(RunEnded.of(CLAIM, answer))
    assert told.pop("at").endswith("+00:00")
    assert told == {
        "run_id": "run-1",
        "session_id": "session-1",
        "caller": "alice",
        "execution": "arn:execution-1",
        **dict(zip(("outcome", "code", "stop_reason", "cost_usd", "num_turns"), outcome, strict=True)),
    }


def test_a_run_that_ends_is_told_of_once_it_is_recorded(workflow: Workflow) -> None:
    """Done or failed; one that was refused has not begun."""
    session = workflow.new_session("one")
    body = {"prompt": "x", "session_id": session}
    workflow.execute(Execution("second", "two", body), fails=ModelOverloaded(cost_usd=0.5))
    with pytest.raises(SessionNotFound):
        workflow.execute(Execution("third", "three", body, caller="eve"))
    assert [(each.outcome, each.code, each.cost_usd) for each in workflow.told] == [
        ("done", None, 0.25),
        ("failed", "ModelOverloaded", 0.5),
    ]
    assert [each.session_id for each in workflow.told] == [session, session]


def test_an_answer_that_is_given_again_is_told_of_no_more(workflow: Workflow) -> None:
    """The run has ended before."""
    for name in ("first", "again"):
        workflow.execute(Execution(name, "one", {"prompt": "x"}))
    assert len(workflow.told) == 1


def test_a_failed_run_that_is_repeated_is_told_of_by_its_new_end(workflow: Workflow) -> None:
    """It has ended twice."""
    workflow.execute(Execution("first", "one", {"prompt": "x"}), fails=ModelOverloaded(cost_usd=0.5))
    workflow.execute(Execution("again", "one", {"prompt": "x"}))
    assert [(each.outcome, each.cost_usd) for each in workflow.told] == [("failed", 0.5), ("done", 0.75)]


def test_who_dies_after_its_commit_is_told_of_as_done(workflow: Workflow) -> None:
    """PersistSession wrote the answer and was gone before it could tell: RecordFailure does."""
    execution = Execution("first", "one", {"prompt": "x"})
    restored = workflow.restore(execution)
    assert restored.task
    returned = workflow.run(restored.task)
    workflow.persist(restored.claim, returned)
    workflow.told.clear()
    assert workflow.record(execution, StorageUnavailable())["success"] is False
    assert [(each.outcome, each.code, each.cost_usd) for each in workflow.told] == [("done", None, 0.25)]


def test_what_is_not_recorded_is_not_told(workflow: Workflow) -> None:
    """A process that died while it wrote the answer has told nothing."""
    restored = workflow.restore(Execution("first", "one", {"prompt": "x"}))
    assert restored.task
    returned = workflow.run(restored.task)
    with pytest.raises(Killed):  # the commit is its first write, the answer its second
        workflow.persist(restored.claim, returned, Fuse(at=2))
    assert workflow.told == []


@pytest.fixture(params=["closed", "silent"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where nobody listens, or where connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        number = door.getsockname()[1]
        if request.param == "closed":
            door.close()
        yield number


def test_a_bus_that_takes_nothing_fails_nothing(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run has ended all the same; the function's log says what could not be told."""
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    Bus(Session()).tell(RunEnded.of(CLAIM, ANSWER))
    assert "The end of run-1 could not be told" in caplog.text


def test_a_deployment_that_names_no_region_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even a client can be made."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    Bus(Session()).tell(RunEnded.of(CLAIM, ANSWER))
    assert "The end of run-1 could not be told" in caplog.text
