"""A long run at the two ends that have rights: handed over, in legs, with the whole of its answer, or cancelled."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lambdas.bucket import ledger, record
from lambdas.contract import attempt
from lambdas.errors import AgentCrashed, IdempotencyMismatch, InvalidRequest, RunCancelled, SessionBusy
from lambdas.request import Preference
from lambdas.restore_session import Execution
from tests.support.handed_over import EXECUTIONS, LONG_MACHINE, Long
from tests.support.played_workflow import CLOCKS, LEGS, Workflow
from tests.support.played_workflow import Execution as Posted


@pytest.mark.parametrize(
    ("header", "preference"),
    [
        ("respond-async", Preference(True, 0.0)),
        ("respond-async, wait=20", Preference(True, 20.0)),
        ('Wait="5" , Respond-Async;x=y', Preference(True, 5.0)),
        ("wait=20", Preference()),
        ("respond-async, wait=-1", Preference(True, 0.0)),
        ("respond-asynchronously", Preference()),
        ("", Preference()),
        (None, Preference()),
    ],
)
def test_a_preference_is_read_as_the_rfc_has_it(header: str | None, preference: Preference) -> None:
    """Names in any case, values quoted or not; what is unknown or malformed is passed over."""
    assert Preference.parse(header) == preference


def test_only_who_says_so_may_ask_for_more_time_than_a_post_has(workflow: Workflow) -> None:
    """Up to the deployment's longest run."""
    long = Long(workflow, timeout_seconds=LEGS.run)
    assert long.post().next == "hand_over"
    with pytest.raises(InvalidRequest, match=f"at most {CLOCKS.agent} .* respond-async, {LEGS.run}"):
        long.post(prefer="wait=3")
    with pytest.raises(InvalidRequest, match=f"at most {LEGS.run} in"):
        Long(workflow, "l", timeout_seconds=LEGS.run + 1).post()


def test_a_run_is_handed_over_with_its_session(workflow: Workflow) -> None:
    """Its record is there and says that it is long, and the session is the long machine's execution's, until the first
    leg has it for as long as a leg may last."""
    long = Long(workflow)
    posted = long.post()
    run, held = posted.claim.run_id, workflow.lease(posted.claim.session_id)
    assert posted.name == f"{run}-{attempt('express:1', workflow.now)}"
    assert len(posted.name) <= 80  # of Step Functions
    assert posted.look
    assert held
    assert posted.look.execution == held.execution == f"{EXECUTIONS}:{posted.name}"
    assert posted.look.until == workflow.now + 5
    asked = record.request(workflow.store, run)
    assert asked
    assert asked["long"] is True
    task = long.next().task
    assert task is not None
    assert (task.gate, task.limit) == (workflow.now + LEGS.gate, workflow.now + LEGS.limit)
    assert task.deadline == workflow.now + LEGS.run
    renewed = workflow.lease(posted.claim.session_id)
    assert renewed
    assert renewed.expires_at == workflow.now + LEGS.lease > held.expires_at


def test_a_repeat_waits_for_the_same_execution(workflow: Workflow) -> None:
    """Whoever posts again hands over under the name that has the session: it starts what was never started, and
    nothing twice. Another body is refused, as is another run of the session."""
    busy = workflow.new_session("s")
    long = Long(workflow, session_id=busy)
    first = long.post()
    again = long.post("express:2")
    assert (again.next, again.name, again.look) == ("hand_over", first.name, first.look)
    with pytest.raises(IdempotencyMismatch):
        Long(workflow, prompt="another").post("express:3")
    with pytest.raises(SessionBusy):
        Long(workflow, "other", session_id=busy).post("express:4")


def test_a_synchronous_execution_at_work_is_waited_for(workflow: Workflow) -> None:
    """The same key without the preference was first: its answer is looked for, and nothing is started."""
    workflow.restore(Posted("express:sync", "k", {"prompt": "a long story"}))
    found = Long(workflow).post()
    assert (found.next, found.name) == ("look", None)
    assert found.look
    assert found.look.execution == "express:sync"


def test_each_leg_goes_on_with_what_is_left(workflow: Workflow) -> None:
    """Of the checkpoint before it, and of the run's money and turns: what the leg before did not spend is free."""
    long = Long(workflow, max_turns=3, max_budget_usd=1.0)
    long.post()
    first = long.next().task
    assert first
    assert not first.cut
    assert (first.allowance.max_turns, first.allowance.max_budget_usd) == (3, 1.0)
    long.work("one")
    second = long.next()
    assert second.task
    assert second.task.cut
    assert second.task.grants.resumed
    assert (second.task.allowance.max_turns, second.task.allowance.max_budget_usd) == (2, 0.8)
    entries = ledger.entries(workflow.store, ledger.Entry.of(second.claim, ledger.RESERVED, 1, 0).day, workflow.now)
    assert sorted((each.kind, each.micros) for each in entries) == [("reserved", 800_000), ("spent", 200_000)]
    long.work("two")
    third = long.next().task
    assert third
    assert (third.allowance.max_turns, round(third.allowance.max_budget_usd, 6)) == (1, 0.6)


def test_the_answer_is_over_all_legs(workflow: Workflow) -> None:
    """Messages, turns, tokens and cost; and nothing stays reserved."""
    long = Long(workflow)
    long.post()
    for text in ("one", "two"):
        long.next()
        long.work(text)
    last = long.next()
    assert last.task is not None
    answer = workflow.persist(last.claim, workflow.run(last.task))
    assert [message.get("text") for message in answer["messages"]] == ["one", "two"]
    assert (answer["num_turns"], round(answer["cost_usd"], 6)) == (1 + 2, 0.25 + 0.4)
    assert answer["usage"]["output_tokens"] == 20_000
    assert answer["duration_ms"] == 900 + 2 * 250_000
    assert answer["session_cost_usd"] == answer["cost_usd"]
    assert workflow.lease(last.claim.session_id) is None
    assert ledger.failed_usd(workflow.store, last.claim.session_id) == 0
    assert long.post("express:9").response is not None


def test_messages_of_legs_that_are_too_many_are_one_object(workflow: Workflow) -> None:
    """The link of the answer leads to all of them, in their order."""
    long = Long(workflow)
    long.post()
    for text in ("one", "two" * 100_000):
        long.next()
        long.work(text)
    last = long.next()
    assert last.task is not None
    answer = workflow.persist(last.claim, workflow.run(last.task))
    assert answer["messages_truncated"]
    kept: Any = workflow.store.read(f"runs/{last.claim.run_id}/messages.json")
    assert f"runs/{last.claim.run_id}/messages.json" in answer["messages_url"]
    assert [message["text"][:3] for message in kept] == ["one", "two"]


def test_what_was_cancelled_before_an_answer_begins_no_more(workflow: Workflow) -> None:
    """Nothing of it is staged, so nothing is; where a leg has left its work, the next one saves it."""
    long = Long(workflow)
    long.post()
    long.next()
    long.cancel()
    with pytest.raises(RunCancelled):
        long.next()
    assert workflow.lease(long.leg.claim.session_id) is None  # type: ignore[union-attr]
    other = Long(workflow, "other")
    other.post()
    other.next()
    other.work("one")
    other.cancel()
    assert other.next().next == "run"


def test_legs_without_an_answer_are_not_repeated_for_ever(workflow: Workflow) -> None:
    """RunClaude fails then; a third one that says otherwise is the last, and what it held is free."""
    long = Long(workflow)
    long.post()
    for _ in range(3):
        task = long.next().task
        assert task is not None
        empty = json.dumps(replace(record.NOTHING_CALLED, calls=()).dump()).encode()
        long._put(task, "receipt", empty)
        workflow.now += 1
    with pytest.raises(AgentCrashed):
        long.next()


def test_a_replay_of_a_long_run_is_long(workflow: Workflow) -> None:
    """Its record says so; a key alone brings it back, with a deadline of its own."""
    long = Long(workflow)
    long.post()
    long.next()
    workflow.now += LEGS.lease + 1
    asked = long.state.request({"replay": "again", "caller": "alice", "key": "k", "requested_at": 0})
    assert asked.prefers.long
    handed = long.state.hand_over(asked, Execution("express:2", workflow.now, workflow.now, None, LONG_MACHINE))
    assert handed.next == "hand_over"
    assert handed.name
    assert handed.name.endswith(attempt("express:2", workflow.now))
