"""What becomes, at the next start, of runs that were at work when the engine ended."""

from pathlib import Path

import pytest

from claude_workflow.cli.resume import goes_on, said
from claude_workflow.local.lost import Lost, free, settle
from lambdas.bucket import lease, ledger, record
from lambdas.bucket.lease import Lease
from lambdas.bucket.ledger import SPENT
from lambdas.errors import SessionBusy, StorageUnavailable, WorkflowError
from tests.support.played_workflow import COST, Execution, Fuse, Killed, Workflow


def reserved_or_spent(workflow: Workflow) -> list[tuple[str, float]]:
    """What the ledger says, of whatever day."""
    keys = [one["Key"] for one in workflow.store.listed("ledger/2")]
    return [(entry.kind, entry.micros / 1e6) for entry in map(ledger.Entry.read, keys)]


def died(workflow: Workflow, execution: Execution, *, paid: bool = True) -> str:
    """An execution that was gone when it had asked the model, or before; its session."""
    restored = workflow.restore(execution)
    if paid:
        assert restored.task
        with pytest.raises(Killed):  # what it staged last
            workflow.run(restored.task, Fuse(at=3))
    return restored.claim.session_id


def test_with_nothing_at_work_there_is_nothing_to_settle(workflow: Workflow) -> None:
    """What has ended has freed its session by itself."""
    workflow.new_session("one")
    assert settle(workflow.store, workflow.now) == []


def test_a_lost_runs_session_is_free_and_what_it_reserved_is_what_it_spent(workflow: Workflow) -> None:
    """However long its lease would have lasted; what it cost counts against its session."""
    session = died(workflow, Execution("first", "one", {"prompt": "x"}))
    assert settle(workflow.store, workflow.now) == [Lost(Execution("", "one", {}).run, session, False, False)]
    assert workflow.lease(session) is None
    assert reserved_or_spent(workflow) == [(SPENT, COST)]
    assert ledger.failed_usd(workflow.store, session) == COST
    assert settle(workflow.store, workflow.now) == []


def test_a_run_that_had_not_begun_has_spent_nothing(workflow: Workflow) -> None:
    """It had its lease, and a reservation, and no receipt."""
    died(workflow, Execution("first", "one", {"prompt": "x"}), paid=False)
    (found,) = settle(workflow.store, workflow.now)
    assert not found.ended
    assert reserved_or_spent(workflow) == [(SPENT, 0.0)]


def test_what_had_freed_its_session_and_not_given_back_yet_is_settled_too(workflow: Workflow) -> None:
    """The two go side by side, so the end of the engine comes between them."""
    session = died(workflow, Execution("first", "one", {"prompt": "x"}))
    lease.free(workflow.store, session, lambda _: True)
    assert settle(workflow.store, workflow.now) == []
    assert reserved_or_spent(workflow) == [(SPENT, COST)]


def test_who_asks_again_need_not_wait(workflow: Workflow) -> None:
    """Neither the lost run, which goes on and counts no more against its session, nor the session's next one."""
    session = workflow.new_session("one")
    body = {"prompt": "x", "session_id": session}
    died(workflow, Execution("second", "two", body))
    with pytest.raises(SessionBusy):
        workflow.execute(Execution("third", "three", body))
    settle(workflow.store, workflow.now)
    assert workflow.execute(Execution("again", "two", body))["success"]
    assert workflow.execute(Execution("third", "three", body))["success"]
    assert ledger.failed_usd(workflow.store, session) == 0


@pytest.mark.parametrize("after_midnight", [0, 10])
def test_a_day_that_ended_meanwhile_is_settled_too(workflow: Workflow, after_midnight: int) -> None:
    """What is reserved stands in the ledger of the day on which its attempt began."""
    workflow.now = 1_800_057_600 - 10 + after_midnight
    died(workflow, Execution("first", "one", {"prompt": "x"}))
    settle(workflow.store, workflow.now)
    assert reserved_or_spent(workflow) == [(SPENT, COST)]


@pytest.mark.parametrize("fails", [None, StorageUnavailable(cost_usd=0.0)])
def test_a_run_that_had_ended_is_told_from_one_at_work(workflow: Workflow, fails: WorkflowError | None) -> None:
    """Its answer, or its failure, is there; it died before it could free its session."""
    execution = Execution("first", "one", {"prompt": "x"})
    answer = workflow.execute(execution, fails=fails)
    held = Lease(execution.run, execution.name, workflow.now + 30)
    lease.take(workflow.store, answer["session_id"], held, workflow.now)
    assert settle(workflow.store, workflow.now) == [Lost(execution.run, answer["session_id"], False, True)]
    assert workflow.lease(answer["session_id"]) is None


def test_a_failed_run_that_was_asked_again_was_at_work(workflow: Workflow) -> None:
    """What it died of before is no end of it."""
    workflow.execute(Execution("first", "one", {"prompt": "x"}), fails=StorageUnavailable(cost_usd=0.0))
    died(workflow, Execution("again", "one", {"prompt": "x"}), paid=False)
    (found,) = settle(workflow.store, workflow.now)
    assert not found.ended


def test_a_long_run_is_found_until_it_goes_on(workflow: Workflow) -> None:
    """Its record says that it is one. A start that is killed before it goes on with it leaves it to the next, and it
    is only free where it is to be left alone."""
    execution = Execution("first", "one", {"prompt": "x"})
    session = died(workflow, execution)
    asked = record.request(workflow.store, execution.run)
    assert asked
    workflow.store.write(f"runs/{execution.run}/request.json", asked | {"long": True})
    run = Lost(execution.run, session, True, False)
    assert settle(workflow.store, workflow.now) == settle(workflow.store, workflow.now) == [run]
    assert workflow.lease(session)
    free(workflow.store, run)
    assert settle(workflow.store, workflow.now) == []


STATE = Path("/somewhere")
SYNC, LONG, ENDED = (Lost("run-1", "s", *kind) for kind in ((False, False), (True, False), (True, True)))


@pytest.mark.parametrize(
    ("run", "leave", "on", "line"),
    [
        (LONG, False, True, "run-1 was at work when the service ended: goes on."),
        (LONG, True, False, "claude-workflow replay run-1 --state /somewhere"),
        (SYNC, False, False, "claude-workflow replay run-1 --state /somewhere"),
        (ENDED, False, False, "run-1 had ended when the service did: its session is free."),
    ],
)
def test_serve_goes_on_with_what_nobody_waits_for(run: Lost, leave: bool, on: bool, line: str) -> None:
    """A run whose caller waited is left to the caller, who asks again; and it says so in a line."""
    assert goes_on(run, leave=leave) == on
    assert said(run, STATE, leave=leave).endswith(line)
