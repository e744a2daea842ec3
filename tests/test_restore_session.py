"""RestoreSession on a real S3: what a repeat comes to, whatever has become of the run and its session meanwhile."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lambdas.bucket import lease, ledger, listing, record
from lambdas.bucket.situation import from_outside
from lambdas.errors import (
    AgentCrashed,
    BudgetExhausted,
    InvalidRequest,
    ModelOverloaded,
    SessionBusy,
    SessionDamaged,
    SessionMoved,
    SessionNotFound,
    UnpricedModel,
)
from lambdas.next_step import Done, Persist, Run, next_step
from lambdas.request import Request, asked_run
from lambdas.strict import Json
from tests.support.played_workflow import CALLER, CLOCKS, LEASE_SECONDS, Execution, Fuse, Workflow


def asking(key: str, session: str | None = None, **envelope: Any) -> Execution:
    """An execution of the run `key`, by a name of its own."""
    body: Json = {"prompt": key} | ({"session_id": session} if session else {})
    return Execution(str(uuid.uuid4()), key, body, envelope=envelope)


def refused(workflow: Workflow, execution: Execution) -> Json:
    """A whole execution whose model refuses before anything is spent."""
    answer = workflow.execute(execution, fails=ModelOverloaded())
    assert (answer["code"], answer["retryable"]) == (ModelOverloaded.__name__, True)
    return answer


def staged(workflow: Workflow, execution: Execution) -> Execution:
    """The execution, dead with its result staged, and its lease over."""
    task = workflow.restore(execution).task
    assert task
    execution.returned = workflow.run(task)
    workflow.now += LEASE_SECONDS + 1
    return execution


def would(workflow: Workflow, key: str, verb: str = "again") -> str:
    """What `--dry-run` tells."""
    asked = record.request(workflow.store, asked_run(CALLER, key, None))
    assert asked
    request = Request.recall({"replay": verb, "requested_at": workflow.now * 1000}, asked)
    known = record.request(workflow.store, request.run_id)
    return type(next_step(from_outside(workflow.store, request, known, workflow.now))).__name__


def test_a_run_that_was_told_to_come_again_can(workflow: Workflow) -> None:
    """The model refused, and another's turn came between: nothing had been spent, so it runs on the newest version."""
    session = workflow.new_session("first")
    refused(workflow, asking("a", session))
    other = asking("b", session)
    assert workflow.execute(other)["success"]
    assert would(workflow, "a") == Run.__name__
    again = asking("a", session)
    assert workflow.execute(again)["success"]
    assert workflow.history(session)[1:] == [other.run, again.run]
    assert workflow.conversations[again.run] == 1


def test_who_staged_something_has_moved(workflow: Workflow) -> None:
    """It is paid for, and fits another version only: that is for its operator to decide."""
    session = workflow.new_session("first")
    staged(workflow, asking("a", session))
    workflow.execute(asking("b", session))
    with pytest.raises(SessionMoved):
        workflow.restore(asking("a", session))
    assert would(workflow, "a") == "Refuse"


def test_what_comes_late_on_another_version_is_not_committed(workflow: Workflow) -> None:
    """The run was pinned anew while its first execution still worked: that one's result is of the version before."""
    session = workflow.new_session("first")
    late = asking("a", session)
    task = workflow.restore(late).task
    assert task
    workflow.now += LEASE_SECONDS + 1
    workflow.execute(asking("b", session))
    second = asking("a", session)
    workflow.restore(second)  # and dies
    workflow.now = task.deadline
    workflow.run(task)
    assert late.restored
    with pytest.raises(SessionMoved):
        workflow.persist(late.restored.claim)
    workflow.now += 2 * LEASE_SECONDS
    assert workflow.execute(asking("a", session))["success"]
    assert workflow.history(session)[1:] == [asked_run(CALLER, "b", None), second.run]


def test_a_result_that_cannot_be_committed_is_not_committed_again(workflow: Workflow) -> None:
    """It says that a repeat can help, so the repeat asks the model anew."""
    session = workflow.new_session("first")
    execution = staged(workflow, asking("a", session))
    assert execution.restored
    at = f"{execution.restored.claim.staging}changes.zip"
    workflow.s3.put_object(Bucket=workflow.bucket, Key=at, Body=b"no archive")
    failure = workflow.execute(asking("a", session))
    assert (failure["code"], failure["retryable"], failure["resumes"]) == ("AgentCrashed", True, False)
    again = asking("a", session)
    assert workflow.execute(again)["success"]
    assert workflow.conversations[again.run] == 2


def test_a_replay_of_a_fork_stays_one(workflow: Workflow) -> None:
    """Its base is what was pinned, and what the forked run staged is used, though that one's session is gone by now."""
    session = workflow.new_session("first")
    origin = staged(workflow, asking("a", session))
    workflow.execute(asking("b", session))
    assert would(workflow, "a", "fork") == Persist.__name__
    fork = asking("a", replay="fork")
    workflow.restore(fork)  # and dies
    asked = record.request(workflow.store, fork.run)
    assert asked
    assert (asked["verb"], asked["replay_of"]) == ("fork", origin.run)
    workflow.now += LEASE_SECONDS + 1
    workflow.s3.delete_object(Bucket=workflow.bucket, Key=f"{session}.zip")
    assert would(workflow, asked["key"]) == would(workflow, "a", "fork") == Persist.__name__
    answer = workflow.execute(asking(asked["key"], replay="again"))
    assert answer["run_id"] == fork.run
    assert answer["session_id"] == asked["session_id"] != session
    assert workflow.history(asked["session_id"])[1:] == [origin.run]
    assert workflow.conversations[fork.run] == 0
    assert would(workflow, "a", "fork") == Done.__name__


def test_a_fork_of_a_fork_uses_what_the_first_run_staged(workflow: Workflow) -> None:
    """Nobody pays twice for it."""
    origin = staged(workflow, asking("a", workflow.new_session("first")))
    fork = asking("a", replay="fork")
    workflow.restore(fork)
    asked = record.request(workflow.store, fork.run)
    assert asked
    answer = workflow.execute(asking(asked["key"], replay="fork"))
    assert workflow.history(answer["session_id"])[1:] == [origin.run]
    assert workflow.conversations.total() == 2


def test_a_fork_of_a_run_that_never_began_has_its_sessions_conversation(workflow: Workflow) -> None:
    """It was refused before it was pinned to anything."""
    session = workflow.new_session("first")
    workflow.restore(asking("holder", session))
    execution = asking("a", session)
    with pytest.raises(SessionBusy, match=r"Another run is working on this session\. Try again in 5 seconds\."):
        workflow.restore(execution)
    answer = workflow.execute(asking("a", replay="fork"))
    assert answer["session_id"] != session
    assert workflow.history(answer["session_id"])[:-1] == workflow.history(session)


@dataclass
class Meanwhile(Fuse):
    """Something else happens before the `at`-th write."""

    happens: Callable[[], Any] = lambda: None

    def __call__(self, write: Callable[[], Any], key: str = "") -> Any:  # noqa: ARG002 - a signature needs it
        self.writes += 1
        if self.writes == self.at:
            self.happens()
        return write()


@pytest.mark.parametrize("goes_on", [True, False])
def test_who_wrote_the_record_and_then_was_slow_finds_the_answer(workflow: Workflow, goes_on: bool) -> None:
    """Another execution of the key did all of it before the first one took the lease: the model is not asked again."""
    session = workflow.new_session("first") if goes_on else None
    slow, fast = asking("a", session), asking("a", session)
    given = workflow.restore(slow, Meanwhile(2, happens=lambda: workflow.execute(fast)))
    assert given.response
    assert given.response["run_id"] == fast.run
    assert workflow.conversations[fast.run] == 1


@pytest.mark.parametrize("known", [True, False])
def test_an_old_input_is_a_request_of_now(workflow: Workflow, known: bool) -> None:
    """The console's "New execution" sends the input of a past one: its run has all the time that it needs, and stands
    in the index where it stood."""
    session, asked_at = workflow.new_session("first"), workflow.now
    if known:
        refused(workflow, asking("a", session))
    workflow.now += 7200
    execution = asking("a", session, requested_at=asked_at * 1000)
    restored = workflow.restore(execution)
    assert restored.task
    assert restored.task.deadline == workflow.now + CLOCKS.agent
    assert restored.claim.recorded_at == asked_at + (0 if known else 7200)
    workflow.run(restored.task)
    assert workflow.persist(restored.claim)["success"]


def test_a_damaged_session_is_not_told_to_be_gone(workflow: Workflow) -> None:
    """Nor can a repeat help."""
    session = workflow.new_session("first")
    head = workflow.s3.head_object(Bucket=workflow.bucket, Key=f"{session}.zip")["Metadata"]
    damaged = {name: value for name, value in head.items() if name != "owner"}
    workflow.s3.put_object(Bucket=workflow.bucket, Key=f"{session}.zip", Body=b"x" * 1000, Metadata=damaged)
    with pytest.raises(SessionDamaged) as found:
        workflow.restore(asking("a", session))
    assert (found.value.status, found.value.retryable) == (500, False)


def limited(workflow: Workflow, **limits: Any) -> None:
    """What the deployment allows at most."""
    workflow.settings = replace(workflow.settings, caps=replace(workflow.settings.caps, **limits))


def test_a_run_gets_what_is_left_of_the_day_or_is_refused(workflow: Workflow) -> None:
    """Less than its budget, and then nothing until the next day; what was refused is not in the index, and holds no
    session. Of another caller nothing is taken."""
    limited(workflow, max_caller_usd_per_day=0.4)
    session = workflow.new_session("first")
    restored = workflow.restore(asking("a", session))
    assert restored.task
    assert restored.task.allowance.max_budget_usd == pytest.approx(0.15)
    workflow.persist(restored.claim, workflow.run(restored.task, cost_usd=0.15))
    with pytest.raises(BudgetExhausted) as refused:
        workflow.restore(asking("b", session))
    facts = refused.value.facts()
    assert (facts["session_id"], facts["run_id"]) == (session, asked_run(CALLER, "b", None))
    assert lease.holder(workflow.store, session) is None
    (listed,) = listing.of_session(workflow.store, session)
    assert asked_run(CALLER, "b", None) not in {entry.run_id for entry in listed}
    other = Execution(str(uuid.uuid4()), "c", {"prompt": "x"}, caller="bob")
    assert workflow.execute(other)["success"]
    workflow.now += 86_400
    assert workflow.execute(asking("b", session))["success"]


def test_a_session_that_goes_before_the_lease_is_taken_reserves_nothing(workflow: Workflow) -> None:
    """The money is reserved before the version under the lease is known."""
    session = workflow.new_session("first")

    def removed() -> None:
        workflow.s3.delete_object(Bucket=workflow.bucket, Key=f"{session}.zip")

    asked = asking("a", session)
    with pytest.raises(SessionNotFound):
        workflow.restore(asked, Meanwhile(2, happens=removed))
    day = f"{datetime.fromtimestamp(workflow.now, UTC):%Y-%m-%d}"
    mine = [each for each in ledger.entries(workflow.store, day, workflow.now) if each.run_id == asked.run]
    assert [(each.kind, each.micros) for each in mine] == [(ledger.SPENT, 0)]
    assert lease.holder(workflow.store, session) is None


def test_a_request_can_lower_a_limit_and_raise_none(workflow: Workflow) -> None:
    """Each of them, by its own field."""
    limited(workflow, max_usd_per_day=10.0, max_session_usd=5.0)
    names = ("max_session_usd", "max_usd_per_day", "max_caller_usd_per_day")
    for name in names:
        low = asking(name)
        low.body[name] = 0.1
        restored = workflow.restore(low)
        assert restored.task
        assert restored.task.allowance.max_budget_usd == pytest.approx(0.1)
        workflow.persist(restored.claim, workflow.run(restored.task, cost_usd=0.0))
    for name in names[:2]:
        high = asking(f"{name} high")
        high.body[name] = 11
        with pytest.raises(InvalidRequest, match=name):
            workflow.restore(high)


def test_a_sessions_failed_runs_count_against_its_limit(workflow: Workflow) -> None:
    """What they cost is in no committed turn, and is spent all the same."""
    limited(workflow, max_session_usd=0.8)
    session = workflow.new_session("first")
    answer = workflow.execute(asking("a", session), fails=AgentCrashed(cost_usd=0.5))
    assert answer["cost_usd"] == 0.5
    task = workflow.restore(lost := asking("b", session)).task
    assert task
    assert task.allowance.max_budget_usd == pytest.approx(0.05)
    workflow.record(lost, AgentCrashed(cost_usd=0.0), state="RunClaude")
    workflow.execute(asking("c", session), fails=AgentCrashed(cost_usd=0.05))
    with pytest.raises(BudgetExhausted, match=r"max_session_usd\."):
        workflow.restore(asking("d", session))


def test_a_sessions_lost_runs_count_against_its_limit(workflow: Workflow) -> None:
    """Nobody wrote down that it died; who takes over its lease reads its receipt. Once it is committed after all, it
    counts in the session's own sum alone."""
    limited(workflow, max_session_usd=0.8)
    session = workflow.new_session("first")
    first = workflow.restore(asking("a", session)).task
    assert first
    with pytest.raises(AgentCrashed):
        workflow.run(first, fails=AgentCrashed(cost_usd=0.5))
    workflow.now += LEASE_SECONDS + 1
    task = workflow.restore(second := asking("b", session)).task
    assert task
    assert task.allowance.max_budget_usd == pytest.approx(0.05)
    workflow.record(second, AgentCrashed(cost_usd=0.0), state="RunClaude")
    assert ledger.failed_usd(workflow.store, session) == 0.5
    workflow.settings = replace(workflow.settings, caps=replace(workflow.settings.caps, max_session_usd=None))
    assert workflow.execute(asking("a", session))["session_cost_usd"] == pytest.approx(1.0)
    assert ledger.failed_usd(workflow.store, session) == 0


def test_twenty_clients_share_a_callers_last_dollar(workflow: Workflow) -> None:
    """Each spends all that it is given: together they spend the dollar and not more, and what they leave is for
    who comes after them."""
    limited(workflow, max_caller_usd_per_day=1.0)
    start = threading.Barrier(20)

    def client(number: int) -> float:
        asked = asking(f"{number}")
        asked.body["max_budget_usd"] = 0.25
        task = (restored := workflow.restore(asked)).task
        assert task
        workflow.persist(restored.claim, workflow.run(task, cost_usd=task.allowance.max_budget_usd))
        return task.allowance.max_budget_usd

    def at_once(number: int) -> float:
        start.wait()
        try:
            return client(number)
        except BudgetExhausted:  # also who has looked often enough whether those ahead give way
            return 0.0

    with ThreadPoolExecutor(20) as pool:
        spent = sum(pool.map(at_once, range(20)))
    assert 0.25 <= round(spent, 6) <= 1.0
    for number in range(20, 24):
        if round(spent, 6) < 1.0:
            spent += client(number)
    assert round(spent, 6) == 1.0
    with pytest.raises(BudgetExhausted, match="free again at 00:00 UTC"):
        client(24)


def test_a_model_without_a_price_is_refused_by_its_name(workflow: Workflow) -> None:
    """Before anything is claimed; what Claude Code resolves itself is judged where it is called."""
    unpriced = asking("a")
    unpriced.body["model"] = "claude-unheard-of"
    with pytest.raises(UnpricedModel, match="claude-unheard-of"):
        workflow.restore(unpriced)
    alias = asking("b")
    alias.body["model"] = "opus"
    assert workflow.restore(alias).task
