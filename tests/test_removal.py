"""A session removed: nothing of it is in the bucket any more, all versions included, and nothing else is touched."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import pytest

from lambdas.bucket import lease, ledger, removal
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket
from lambdas.bucket.removal import Owned, Removed
from lambdas.bucket.versions import below
from lambdas.errors import AgentCrashed, SessionBusy
from lambdas.remove_session import RemoveSession
from lambdas.strict import Json
from tests.support.archives import ROOTS, item, staged
from tests.support.played_workflow import Execution, Fuse, FusedS3, Killed, Workflow
from tests.support.reading import door, of_session
from tests.support.whole_bucket import mentions


def turn(workflow: Workflow, caller: str, key: str, session: str | None = None, **played: Any) -> str:
    """A turn of this caller's, with whose name are its words and its files; the session."""
    body: dict[str, Any] = {"prompt": f"{caller} asks"} | ({"session_id": session} if session else {})
    archive = staged(*ROOTS, item(f"workspace/{key}", f"{caller} wrote".encode()))
    asked = Execution(f"e-{caller}-{key}", f"{caller}-{key}", body, caller)
    return str(workflow.execute(asked, **{"archive": archive} | played)["session_id"])


def given(workflow: Workflow, session: str, *uploads: str) -> None:
    """Let runs of the session have been asked to work on these uploads."""
    runs = sorted({each.key for each in below(workflow.store, "runs/") if each.key.endswith("/request.json")})
    for key in runs:
        record = workflow.store.read(key)
        if uploads and record and record["session_id"] == session:
            record["body"]["workspace"] = {"upload": uploads[0]}
            workflow.store.write(key, record)
            uploads = uploads[1:]


def lived(workflow: Workflow, caller: str) -> str:
    """A session with a turn, a run that failed, an upload and a file that was linked to."""
    session = turn(workflow, caller, "first")
    turn(workflow, caller, "failed", session, fails=AgentCrashed(cost_usd=0.5), after="checkpoint")
    workflow.store.write(f"uploads/up-{caller}/offer.json", {"owner": caller})
    workflow.store.touch(f"uploads/up-{caller}/content")
    workflow.store.touch(f"extracts/{session}/{caller}")
    return session


class Dying(FusedS3):
    """Whose deletions of many go through the fuse, too."""

    def delete_objects(self, **arguments: Any) -> Any:
        return self._fuse(lambda: self._s3.delete_objects(**arguments))


def test_nothing_is_left_of_a_session(workflow: Workflow) -> None:
    """No version of its archive, no run, no upload, no key with its id in it. A run at work is not robbed of it; what
    is cut off is done again; another's is left alone, though it was named."""
    store = workflow.store
    lived(workflow, "bob")
    bobs = {each for each in below(store, "") if not each.key.startswith("ledger/2")}
    session = lived(workflow, "alice")
    turn(workflow, "alice", "second", session)
    given(workflow, session, "up-alice", "up-bob")
    now = time.time()
    lease.take(store, session, Lease("run-1", "execution", now + 60), now)
    before = [*below(store, "")]
    with pytest.raises(SessionBusy):
        removal.remove(store, session)
    assert [*below(store, "")] == before
    lease.free(store, session, lambda held: held.run_id == "run-1")

    with pytest.raises(Killed):
        removal.remove(Bucket(Dying(workflow.s3, Fuse(6)), workflow.bucket), session)
    assert store.head(f"{session}.zip")
    workflow.now = now
    with pytest.raises(SessionBusy):
        turn(workflow, "alice", "meanwhile", session)

    with pytest.raises(SessionBusy):
        removal.remove(store, session)  # it may be another's that is at work
    removed = removal.remove(store, session, clock=lambda: time.time() + removal.LEASE_SECONDS)
    assert removed.versions == 2
    assert mentions(store, "alice", session) == set()
    left = {each for each in below(store, "") if not each.key.startswith("ledger/2")}
    assert left == bobs
    spent = [key for key in workflow.objects() if key.startswith("ledger/2")]
    assert len(spent) == 5, "what runs cost counts against their day"
    assert removal.remove(store, session) == Removed(0, 0, 0)


@contextmanager
def before_each(s3: Any, does: Callable[[int], None]) -> Iterator[None]:
    """Does it before each request of the client's, which are counted; not before those that it makes itself."""
    numbers, busy = count(), False

    def sent(**_: Any) -> None:
        nonlocal busy
        if not busy:
            busy = True
            does(next(numbers))
            busy = False

    s3.meta.events.register("before-send.s3", sent)
    try:
        yield
    finally:
        s3.meta.events.unregister("before-send.s3", sent)


@pytest.mark.parametrize("late", [0, 2 * removal.LEASE_SECONDS], ids=["in time", "after the removal's lease"])
def test_who_takes_the_lease_of_a_removal_keeps_it(workflow: Workflow, late: float) -> None:
    """Before which of its requests that may be: a removal gives its own lease back, and deletes no other."""
    store, now, taken = workflow.store, time.time(), set[int]()
    run = Lease("run-1", "execution", now + 3 * removal.LEASE_SECONDS)

    def removed_while_a_run_comes(session: str, moment: int) -> None:
        def comes(number: int) -> None:
            if number == moment:
                with suppress(SessionBusy):
                    lease.take(store, session, run, now + late)
                    taken.add(moment)

        with suppress(SessionBusy), before_each(store.s3, comes):
            removal.remove(store, session)

    for moment in range(12):
        removed_while_a_run_comes(f"session-{moment}", moment)
        assert lease.holder(store, f"session-{moment}") == (run if moment in taken else None), moment
        assert moment in taken or not [*below(store, f"locks/session-{moment}.json")], moment
    assert 0 in taken
    assert 11 not in taken


def test_a_removal_holds_its_session_alone_to_its_end(workflow: Workflow) -> None:
    """However long it takes, no run begins, and no other removal, which would free the session as it ends."""
    store, begun = workflow.store, time.time()
    session, now = lived(workflow, "alice"), begun
    for number in range(4):
        turn(workflow, "alice", f"turn-{number}", session)

    def tries(_: int) -> None:
        nonlocal now
        now += 1
        if held := lease.holder(store, session):
            with pytest.raises(SessionBusy):
                removal.remove(store, session, clock=lambda: now)
            assert lease.holder(store, session) == held

    with before_each(store.s3, tries):
        assert removal.remove(store, session, clock=lambda: now).runs == 6
    assert now > begun + removal.LEASE_SECONDS
    assert mentions(store, session) == set()


def test_what_a_lost_run_spent_counts_though_its_session_is_removed(workflow: Workflow) -> None:
    """It died without a word, and its receipt goes with it: else who removes begins the day anew."""
    store = workflow.store
    session, later = turn(workflow, "alice", "first"), workflow.now + 10_000
    lost = Execution("e-lost", "lost", {"prompt": "x", "session_id": session}, "alice")
    task = workflow.restore(lost).task
    assert task
    with pytest.raises(AgentCrashed):
        workflow.run(task, fails=AgentCrashed(cost_usd=2.0))
    removal.remove(store, session, clock=lambda: later)
    assert mentions(store, session) == set()
    spent = ledger.entries(store, "2027-01-15", later)
    assert sorted(each.micros / 1e6 for each in spent) == [0.25, 2.0]


def test_an_upload_goes_with_the_run_that_took_it(workflow: Workflow) -> None:
    """Another that named it was refused."""
    store = workflow.store
    taker, other = turn(workflow, "alice", "takes"), turn(workflow, "alice", "names-it-too")
    store.write("uploads/up-1/offer.json", {"owner": "alice"})
    store.write("uploads/up-1/used", {"run_id": Execution("", "alice-takes", {}, "alice").run})
    for session in (taker, other):
        given(workflow, session, "up-1")
    removal.remove(store, other)
    assert [*below(store, "uploads/")]
    removal.remove(store, taker)
    assert not [*below(store, "uploads/")]


def test_all_of_a_caller_is_found(workflow: Workflow) -> None:
    """Sessions that were never kept, or were deleted, runs that were refused, uploads that no run named; without them,
    nothing of the caller's is in the bucket."""
    store = workflow.store
    bobs = turn(workflow, "bob", "first")
    session, deleted = lived(workflow, "alice"), turn(workflow, "alice", "deleted")
    store.delete(f"{deleted}.zip")
    never = turn(workflow, "alice", "never", fails=AgentCrashed(cost_usd=0.5))
    lease.take(store, session, Lease("run-1", "execution", workflow.now + 60), workflow.now)
    with pytest.raises(SessionBusy):
        turn(workflow, "alice", "refused", session)
    lease.free(store, session, bool)
    found = removal.owned(store, "alice")
    assert found.sessions.keys() == {session, deleted, never}
    assert found.uploads == {"up-alice"}
    for each, runs in found.sessions.items():
        removal.remove(store, each, runs)
    for upload in found.uploads:
        removal.remove_upload(store, upload)
    assert mentions(store, "alice", session, deleted, never) == set()
    assert removal.owned(store, "alice") == Owned()
    assert removal.owned(store, "bob").sessions.keys() == {bobs}


def test_a_caller_removes_its_own_sessions_alone(workflow: Workflow) -> None:
    """Also one whose archive was deleted, and what there is of one that was never kept; not while a run is at work.
    What is gone was never there."""
    store = workflow.store

    def removed(session: str, key: str = "key-1") -> tuple[int, Json, Json]:
        answer = RemoveSession(door(store), store).answer(of_session(session, method="DELETE", key=key))
        return answer["statusCode"], answer["headers"], json.loads(answer["body"])

    session, deleted = (turn(workflow, "default", key) for key in ("first", "deleted"))
    store.delete(f"{deleted}.zip")
    never = turn(workflow, "default", "never", fails=AgentCrashed(cost_usd=0.5))
    now = time.time()
    lease.take(store, session, Lease("run-1", "execution", now + 60), now)
    before = [*below(store, "")]
    status, headers, said = removed(session)
    assert (status, headers["Retry-After"], said["code"]) == (409, "5", "SessionBusy")
    for one, key in (
        (session, "key-3"),
        (deleted, "key-3"),
        (never, "key-3"),
        ("session-no", "key-1"),
        ("x/y", "key-1"),
    ):
        status, _, said = removed(one, key)
        assert (status, said["code"]) == (404, "SessionNotFound")
    assert [*below(store, "")] == before
    lease.free(store, session, bool)
    for one, kept in ((session, 1), (deleted, 1), (never, 0)):
        status, _, said = removed(one)
        assert (status, said["success"], said["removed"]["versions"], said["removed"]["runs"]) == (200, True, kept, 1)
        assert removed(one)[0] == 404
    assert {key.partition("/")[0] for key in workflow.objects()} == {"ledger"}
