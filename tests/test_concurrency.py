"""Many at once: one key, one session, a holder that died, and two executions of one run."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas.bucket import record
from lambdas.errors import (
    AgentCrashed,
    IdempotencyMismatch,
    Internal,
    Refused,
    RunInProgress,
    SessionBusy,
    SessionMoved,
    SessionNotFound,
)
from lambdas.request import run_id
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import patched_service
from tests.support.client import Client
from tests.support.played_workflow import CALLER, LEASE_SECONDS, Execution, Fuse, Killed, Workflow, unlinked

CLIENTS = 20


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def running(
    model: ScriptedModel, unhurried: Json, in_memory: InMemory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    state = in_memory("concurrency")
    added = {"SCRATCH": str(tmp_path_factory.mktemp("scratch"))}
    with patched_service.serving(state, unhurried, Model(model.url, "sk-scripted"), added) as started:
        yield started


def asked(model: ScriptedModel, marker: str) -> int:
    return sum(any(marker in prompt for prompt in r.conversation.prompts) for r in list(model.requests))


def test_twenty_clients_with_one_key_are_one_conversation(running: Service, model: ScriptedModel) -> None:
    """Each gets the one answer, or is told to come again, and then gets it; the model is asked once."""
    client, key = Client(running), str(uuid.uuid4())
    body = {"prompt": f"{key}\nwait 2"}
    with ThreadPoolExecutor(CLIENTS) as pool:
        came = list(pool.map(lambda _: client.post(body, idempotency_key=key), range(CLIENTS)))
    assert any(status == 200 for status, _, _ in came)
    for status, answer, headers in came:
        assert (status, answer.get("code")) in ((200, None), (409, "RunInProgress")), answer
        assert status == 200 or int(headers["retry-after"]) > 0
    again = [client.post(body, idempotency_key=key) for _ in range(3)]
    given = [unlinked(answer) for status, answer, _ in came + again if status == 200]
    assert all(answer == given[0] for answer in given)
    assert asked(model, key) == 1


def test_twenty_clients_in_one_session_lose_no_turn(running: Service, model: ScriptedModel) -> None:
    """Every 200 is in the history, once, and nothing else is; the others were told when to come again."""
    client = Client(running)
    session = client.ask("the first")["session_id"]
    until = time.monotonic() + 8

    def insist(_: int) -> tuple[str, list[tuple[int, Json, dict[str, str]]]]:
        key = str(uuid.uuid4())
        came: list[tuple[int, Json, dict[str, str]]] = []
        while not came or (came[-1][0] != 200 and time.monotonic() < until):
            came.append(client.post({"prompt": f"turn {key}", "session_id": session}, idempotency_key=key))
            time.sleep(1)
        return key, came

    with ThreadPoolExecutor(CLIENTS) as pool:
        came = dict(pool.map(insist, range(CLIENTS)))
    for status, answer, headers in (each for tries in came.values() for each in tries if each[0] != 200):
        assert (status, answer["code"]) == (409, "SessionBusy"), answer
        assert int(headers["retry-after"]) > 0
    done = {key for key, tries in came.items() if tries[-1][0] == 200}
    assert done
    assert client.metadata({"session_id": session})["turns"] == str(1 + len(done))
    client.ask("the last", {"session_id": session})
    said = model.requests[-1].conversation.prompts
    assert {prompt.removeprefix("turn ").strip() for prompt in said[1:-1]} == done
    assert len(said) == 2 + len(done)


def test_a_dead_holders_lease_is_free_at_its_expiry_and_its_late_commit_is_refused(workflow: Workflow) -> None:
    """Until then others are told how long; after it the next takes over, and who comes back late changes nothing."""
    session = workflow.new_session("first")
    dead = Execution("dead", "a", {"prompt": "a", "session_id": session})
    claimed = workflow.restore(dead)
    assert claimed.task is not None
    workflow.run(claimed.task)
    other = Execution("other", "b", {"prompt": "b", "session_id": session})
    workflow.now += LEASE_SECONDS - 1
    with pytest.raises(SessionBusy) as busy:
        workflow.restore(other)
    assert busy.value.retry_after == 1
    workflow.now += 1
    workflow.execute(other)
    history = workflow.history(session)
    with pytest.raises(SessionMoved):
        workflow.persist(claimed.claim)
    workflow.record(dead, SessionMoved())
    assert workflow.history(session) == history
    assert history[1:] == [other.run]


def test_a_late_holder_does_not_free_its_successors_lease(workflow: Workflow) -> None:
    """It finds another's name on it."""
    session = workflow.new_session("first")
    dead = Execution("dead", "a", {"prompt": "a", "session_id": session})
    workflow.restore(dead)
    workflow.now += LEASE_SECONDS
    workflow.restore(Execution("successor", "b", {"prompt": "b", "session_id": session}))
    workflow.record(dead, AgentCrashed())
    lease = workflow.lease(session)
    assert lease is not None
    assert lease.execution == "successor"


def test_a_refused_request_leaves_no_trace_in_anothers_record(workflow: Workflow) -> None:
    """Busy, in progress, another body, not found: what was there is there, and of new things only its own request."""
    session = workflow.new_session("first")
    workflow.restore(Execution("holder", "a", {"prompt": "a", "session_id": session}))
    before = workflow.objects()
    refusals: list[tuple[type[Refused], Execution]] = [
        (RunInProgress, Execution("second", "a", {"prompt": "a", "session_id": session})),
        (IdempotencyMismatch, Execution("third", "a", {"prompt": "b", "session_id": session})),
        (SessionNotFound, Execution("fourth", "c", {"prompt": "c", "session_id": f"session-{uuid.uuid4()}"})),
        (SessionBusy, Execution("fifth", "b", {"prompt": "b", "session_id": session})),
    ]
    for refusal, execution in refusals:
        with pytest.raises(refusal):
            workflow.execute(execution)
        fresh = {key: version for key, version in workflow.objects().items() if before.get(key) != version}
        own = {f"runs/{execution.run}/request.json", f"index/refused/{session}/{execution.run}"}
        assert set(fresh) in (set(), own)
        assert before.keys() <= workflow.objects().keys()
        assert not fresh or refusal is SessionBusy


def test_a_restore_that_dies_leaves_its_failure_and_nothing_else(workflow: Workflow) -> None:
    """The run is in the record and in the index as failed, its session free, and it goes on when it is asked again."""
    session = workflow.new_session("first")
    for number in range(2, 6):
        execution = Execution(f"dies-{number}", f"key-{number}", {"prompt": "a", "session_id": session})
        with pytest.raises(Killed):
            workflow.restore(execution, Fuse(number))
        told = workflow.record(execution, Internal())
        assert record.failure(workflow.store, execution.run) is not None
        assert [key.split("/")[3] for key in workflow.objects() if key.endswith(execution.run) and "hours" in key] == [
            "failed"
        ]
        assert (told["run_id"], told["session_id"], told["cost_usd"]) == (execution.run, session, 0.0)
        assert workflow.lease(session) is None
        assert workflow.execute(Execution(f"again-{number}", execution.key, execution.body))["success"]


def test_a_restore_that_dies_says_nothing_of_a_run_that_another_holds(workflow: Workflow) -> None:
    """Two executions of one key: the one that works is not told to have failed."""
    session = workflow.new_session("first")
    body = {"prompt": "a", "session_id": session}
    dies, works = Execution("dies", "a", body), Execution("works", "a", body)
    with pytest.raises(Killed):
        workflow.restore(dies, Fuse(2))
    workflow.restore(works)
    workflow.record(dies, Internal())
    assert record.failure(workflow.store, works.run) is None
    assert workflow.lease(session) is not None


def test_an_answer_given_again_frees_what_its_writer_held(workflow: Workflow) -> None:
    """PersistSession died between the answer and the lease: the next to ask does not leave the session locked."""
    session = workflow.new_session("first")
    execution = Execution("dies", "a", {"prompt": "a", "session_id": session})
    restored = workflow.restore(execution)
    assert restored.task
    workflow.run(restored.task)
    for number in range(1, 20):  # until it dies with its answer written and the lease in its hands
        with suppress(Killed):
            workflow.persist(restored.claim, fuse=Fuse(number))
        if record.response(workflow.store, execution.run):
            break
    assert workflow.lease(session) is not None
    assert workflow.execute(Execution("again", "a", execution.body))["success"]
    assert workflow.lease(session) is None


def test_two_executions_of_one_key_killed_at_each_write_are_one_conversation(workflow: Workflow) -> None:
    """Started at once, one of them dies before its n-th write; whoever comes later finishes, and nothing is lost."""
    for number in range(1, 23):
        _race(workflow, str(number), Fuse(number))


def _race(workflow: Workflow, key: str, fuse: Fuse) -> None:
    session = workflow.new_session(f"first-{key}")
    one, two = (Execution(f"{name}-{key}", key, {"prompt": key, "session_id": session}) for name in ("one", "two"))

    def attempt(execution: Execution, fuse: Fuse) -> None:
        with suppress(Killed, Refused):
            workflow.execute(execution, fuse)

    with ThreadPoolExecutor(2) as pool:
        for racing in [pool.submit(attempt, one, fuse), pool.submit(attempt, two, Fuse())]:
            racing.result()
    run = run_id(CALLER, key)
    assert workflow.conversations[run] <= 1
    staged = workflow.staged(run) is not None
    workflow.now += LEASE_SECONDS
    answer = workflow.execute(Execution(f"three-{key}", key, one.body))
    assert answer["success"] is True
    assert workflow.history(session)[1:] == [run]
    lease = workflow.lease(session)
    assert lease is None or lease.expires_at <= workflow.now
    assert workflow.conversations[run] == 1 or not staged
