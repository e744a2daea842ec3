"""PersistSession begins with what RunClaude returned, and believes what it staged."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from lambdas.errors import AgentCrashed
from lambdas.strict import Json
from tests.support.metered import receipt_of
from tests.support.played_workflow import Execution, Workflow


def test_it_needs_nothing_of_what_run_claude_returned(workflow: Workflow) -> None:
    """An attempt that died after its last write is persisted by the next, which has only what was staged."""
    session = workflow.new_session(str(uuid.uuid4()))
    restored = workflow.restore(Execution("two", str(uuid.uuid4()), {"prompt": "x", "session_id": session}))
    assert restored.task
    workflow.run(restored.task)
    assert workflow.persist(restored.claim, None)["cost_usd"] == 0.25


@pytest.mark.parametrize("lie", [{"cost_usd": 0.0}, {"session_files": 7}, {"session_directory": 0}])
def test_what_run_claude_returned_has_to_be_what_it_staged(workflow: Workflow, lie: dict[str, Any]) -> None:
    """Its function runs strangers' code: a session's metadata are not what it says, but what it says twice."""
    session = workflow.new_session(str(uuid.uuid4()))
    restored = workflow.restore(Execution("two", str(uuid.uuid4()), {"prompt": "x", "session_id": session}))
    assert restored.task
    told = workflow.run(restored.task)
    history = workflow.history(session)
    with pytest.raises(AgentCrashed):
        workflow.persist(restored.claim, replace(told, **lie))
    assert workflow.history(session) == history
    workflow.persist(restored.claim, told)
    assert workflow.history(session) == [*history, restored.claim.run_id]


@pytest.mark.parametrize(
    "receipt", [receipt_of(0.0).dump(), receipt_of(0.26).dump(), {}, receipt_of(0.25).dump() | {"format": 2}]
)
def test_a_result_costs_what_its_receipt_adds_up_to(workflow: Workflow, receipt: Json) -> None:
    """Or it is none, and the session stays as it is."""
    session = workflow.new_session(str(uuid.uuid4()))
    restored = workflow.restore(Execution("two", str(uuid.uuid4()), {"prompt": "x", "session_id": session}))
    assert restored.task
    told, history = workflow.run(restored.task), workflow.history(session)
    workflow.store.write(f"{restored.claim.staging}receipt.json", receipt)
    with pytest.raises(AgentCrashed, match=r"receipt\.json"):
        workflow.persist(restored.claim, told)
    assert workflow.history(session) == history


@pytest.mark.parametrize("told", [[], "x", {}, {"cost_usd": 1}, {"run_id": "run-1", "next": "done"}])
def test_what_is_no_result_of_run_claudes_is_passed_over(workflow: Workflow, told: object) -> None:
    """A stranger may have returned anything, and a service may hand on something else where nothing ran: what was
    staged is committed, and nothing but that."""
    restored = workflow.restore(Execution("one", str(uuid.uuid4()), {"prompt": "x"}))
    assert restored.task
    workflow.run(restored.task)
    assert workflow.persist_session().persist(restored.claim, told)["cost_usd"] == 0.25
    assert workflow.history(restored.claim.session_id) == [restored.claim.run_id]
