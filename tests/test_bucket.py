"""The bucket's layout, the lease and the commit, on a real S3 server that honours conditions."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from lambdas.agent.transfer import Transfer
from lambdas.bucket import lease, listing, record, versions
from lambdas.bucket.grants import grants
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket
from lambdas.bucket.record import WHOLE
from lambdas.contract import Base, Claim
from lambdas.errors import AgentCrashed, RunInProgress, SessionBusy, SessionDamaged, SessionMoved, WorkflowError
from lambdas.next_step import Left, Pin, Staging
from tests.support.archives import session
from tests.support.commits import a_claim, archive_of, commit_of, files_of, metadata, stage
from tests.support.played_workflow import commit, result_of


def turn(bucket: Bucket, base: Base | None, content: bytes) -> Base:
    """Commit one: the session's file is then `content`."""
    return commit_of(bucket, base, session(n=content))


def content_of(bucket: Bucket) -> bytes:
    return files_of(archive_of(bucket))["n"]


def uploads(bucket: Bucket) -> list[Any]:
    return list(bucket.s3.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))


def test_a_commit_makes_what_was_staged_the_session(bucket: Bucket) -> None:
    """The object is the staged bytes, and its metadata say whose it is and what is in it."""
    base = turn(bucket, None, b"first")
    assert content_of(bucket) == b"first"
    assert (base.turns, base.cost_usd, base.created) == (1, 0.5, "then")
    assert uploads(bucket) == []


def test_a_session_is_found_by_its_owner_alone(bucket: Bucket) -> None:
    """To anybody else it is not there."""
    turn(bucket, None, b"first")
    assert versions.newest_of(bucket, "session-1", "bob") is None
    assert versions.newest_of(bucket, "session-2", "alice") is None


def test_a_second_writer_from_the_same_version_is_refused(bucket: Bucket) -> None:
    """Whoever commits second would undo the first, so the session stays as the first left it."""
    base = turn(bucket, None, b"first")
    turn(bucket, base, b"second")
    with pytest.raises(SessionMoved):
        turn(bucket, base, b"third")
    assert content_of(bucket) == b"second"
    assert uploads(bucket) == []


def test_two_new_sessions_of_one_id_cannot_both_be(bucket: Bucket) -> None:
    """A new session is written only where there is none."""
    turn(bucket, None, b"first")
    with pytest.raises(SessionMoved):
        turn(bucket, None, b"second")
    assert content_of(bucket) == b"first"


def test_a_repeated_commit_recognises_its_own(bucket: Bucket) -> None:
    """The first answer was lost: the repeat is answered, and nothing is written twice."""
    base = turn(bucket, None, b"first")
    claim = a_claim(base)
    staged = stage(bucket, claim, session(n=b"second"))
    commit(bucket, claim, staged, metadata(claim))
    commit(bucket, claim, staged, metadata(claim))
    assert content_of(bucket) == b"second"
    versions = bucket.s3.list_object_versions(Bucket=bucket.name, Prefix="session-1.zip")["Versions"]
    assert len(versions) == 2


def test_a_repeated_commit_recognises_its_own_behind_a_later_one(bucket: Bucket) -> None:
    """A run that came after it does not make a committed turn undone."""
    base = turn(bucket, None, b"first")
    claim = a_claim(base)
    staged = stage(bucket, claim, session(n=b"second"))
    commit(bucket, claim, staged, metadata(claim))
    later = versions.newest_of(bucket, "session-1", "alice")
    turn(bucket, later, b"third")
    commit(bucket, claim, staged, metadata(claim))
    assert content_of(bucket) == b"third"


def test_a_commit_of_nothing_staged_is_the_agents_failure(bucket: Bucket) -> None:
    """A result of what is not there commits nothing."""
    claim = a_claim()
    with pytest.raises(AgentCrashed):
        commit(bucket, claim, result_of(bucket, claim), metadata(claim))
    assert versions.newest_of(bucket, "session-1", "alice") is None
    assert uploads(bucket) == []


def test_of_many_writers_at_once_one_commits(bucket: Bucket) -> None:
    """However they race, one turn follows the version they all began with."""
    base = turn(bucket, None, b"first")
    start = threading.Barrier(8)

    def race(number: int) -> str:
        claim = a_claim(base)
        staged = stage(bucket, claim, session(n=f"by {number}".encode()))
        start.wait()
        try:
            commit(bucket, claim, staged, metadata(claim))
        except WorkflowError as error:
            return type(error).__name__
        return "committed"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(10, 18)))
    assert sorted(outcomes) == ["SessionMoved"] * 7 + ["committed"]
    assert uploads(bucket) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": None},
        {"turns": None},
        {"turns": "many"},
        {"turns": "-1"},
        {"cost-usd": "nan"},
        {"cost-usd": "-1"},
        {"directory": "all"},
        {"directory": "1000000"},
        {"claude-session": "../x"},
        {"format": None},
        {"format": "2"},
    ],
)
def test_a_session_with_wrong_metadata_is_damaged(bucket: Bucket, wrong: dict[str, str | None]) -> None:
    """What is not as a commit writes it is not guessed at, and is not told to be not there, but to others."""
    sound = metadata(a_claim()) | {"directory": "1"}
    for meant in (wrong, {}):
        told = {name: value for name, value in (sound | meant).items() if value is not None}
        bucket.s3.put_object(Bucket=bucket.name, Key="session-1.zip", Body=b"x", Metadata=told)
        if meant:
            with pytest.raises(SessionDamaged):
                versions.newest_of(bucket, "session-1", "alice")
        else:
            assert versions.newest_of(bucket, "session-1", "alice") is not None
        assert "owner" in wrong or versions.newest_of(bucket, "session-1", "bob") is None


def test_whatever_is_settled_first_stands(bucket: Bucket) -> None:
    """Record, base and answer are written once; a second writer gets the first one's."""
    assert record.open_run(bucket, "run-1", {"n": 1}) == ({"n": 1}, True)
    assert record.open_run(bucket, "run-1", {"n": 2}) == ({"n": 1}, False)
    assert record.answer(bucket, "run-1", {"a": 1}) == {"a": 1}
    assert record.answer(bucket, "run-1", {"a": 2}) == {"a": 1}
    assert record.response(bucket, "run-1") == {"a": 1}


def test_a_run_is_pinned_by_one_and_anew_only_over_what_was_read(bucket: Bucket) -> None:
    """An execution that has no lease any more cannot undo what its successor was pinned to; who repeats its own request
    finds its own work."""
    base = turn(bucket, None, b"first")
    first = Pin(base, execution="one")
    assert record.pinned(bucket, "run-1") is None
    assert record.pin(bucket, "run-1", first, None)
    assert record.pin(bucket, "run-1", first, None)
    assert not record.pin(bucket, "run-1", Pin(base, execution="two"), None)
    old = record.pinned(bucket, "run-1")
    assert old == first
    assert record.pin(bucket, "run-1", Pin(None, 1, execution="two"), old)
    assert not record.pin(bucket, "run-1", Pin(base, 1, execution="one"), old)
    assert record.pinned(bucket, "run-1") == Pin(None, 1)


def a_lease(run: str, execution: str = "", expires_at: float = 100) -> Lease:
    return Lease(run, execution or f"execution-of-{run}", expires_at)


def test_a_lease_keeps_others_out_and_says_when_to_come_again(bucket: Bucket) -> None:
    """Another run is told that the session is busy, another execution of the same run that it is in progress: to come
    again soon, and later after as long as the holder has been at work by then, but not when it must be over."""
    lease.take(bucket, "session-1", a_lease("run-1"), now=60)
    lease.take(bucket, "session-1", a_lease("run-1"), now=61)
    for now, wait in ((61, 5), (66, 6), (72, 12), (84, 16), (99.5, 1)):
        with pytest.raises(SessionBusy) as busy:
            lease.take(bucket, "session-1", a_lease("run-2", expires_at=now + 40), now=now)
        assert busy.value.retry_after == wait
        assert busy.value.said.endswith(f"Try again in {wait} seconds." if wait > 1 else "Try again in a second.")
    with pytest.raises(RunInProgress, match="Ask again in 5 seconds"):
        lease.take(bucket, "session-1", a_lease("run-1", "another execution"), now=61)


def test_five_tries_outlast_a_lease_of_half_a_minute(bucket: Bucket) -> None:
    """A client that waits as it is told, from the moment the other began, sees the session free."""
    now = 1000.0
    lease.take(bucket, "session-1", a_lease("run-1", expires_at=now + 33), now)
    tries = 1
    while tries < 10:
        try:
            lease.take(bucket, "session-1", a_lease("run-2", expires_at=now + 33), now)
            break
        except SessionBusy as busy:
            now, tries = now + (busy.retry_after or 0), tries + 1
    assert tries <= 5


def test_an_expired_lease_is_taken_over_by_one(bucket: Bucket) -> None:
    """Its holder died; of those who want it next, one gets it."""
    lease.take(bucket, "session-1", a_lease("run-1"), now=0)
    start = threading.Barrier(6)

    def race(number: int) -> str:
        start.wait()
        try:
            lease.take(bucket, "session-1", a_lease(f"run-{number}", expires_at=300), now=101)
        except SessionBusy:
            return "busy"
        return "mine"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(race, range(10, 16))) == ["busy"] * 5 + ["mine"]


def test_a_lease_that_was_taken_over_since_it_was_seen_is_not_freed(bucket: Bucket) -> None:
    """It is looked at long before it is given back."""
    lease.take(bucket, "session-1", a_lease("run-1", "one"), now=0)
    seen = lease.seen(bucket, "session-1")
    lease.take(bucket, "session-1", a_lease("run-2", "two", expires_at=300), now=101)
    lease.free_seen(bucket, "session-1", seen, "one")
    assert lease.holder(bucket, "session-1") == a_lease("run-2", "two", expires_at=300)
    lease.free_seen(bucket, "session-1", lease.seen(bucket, "session-1"), "one")
    assert lease.holder(bucket, "session-1")
    lease.free_seen(bucket, "session-1", lease.seen(bucket, "session-1"), "two")
    assert lease.holder(bucket, "session-1") is None


def test_a_lease_is_freed_by_its_holder_alone(bucket: Bucket) -> None:
    """A late finisher must not free what is another's by now."""
    lease.take(bucket, "session-1", a_lease("run-1"), now=0)
    lease.free(bucket, "session-1", lambda held: held.run_id == "run-2")
    with pytest.raises(SessionBusy):
        lease.take(bucket, "session-1", a_lease("run-2"), now=1)
    lease.free(bucket, "session-1", lambda held: held.execution == "execution-of-run-1")
    lease.take(bucket, "session-1", a_lease("run-2"), now=1)
    lease.free(bucket, "session-3", bool)


@contextmanager
def answering(s3: Any, operation: str, status: int, code: str, times: int = 1, header: str = "") -> Iterator[list[str]]:
    """S3 answers this operation, where it has this header, with an error, so many times; the URLs that were asked."""
    met: list[str] = []

    class Raw(BytesIO):
        def stream(self) -> Iterator[bytes]:
            yield self.read()

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        if len(met) == times or (header and header not in request.headers):
            return None
        met.append(request.url)
        body = f"<Error><Code>{code}</Code><Message>as S3 words it</Message></Error>".encode()
        return AWSResponse(request.url, status, {"content-type": "application/xml"}, Raw(body))

    s3.meta.events.register(f"before-send.s3.{operation}", answer)
    try:
        yield met
    finally:
        s3.meta.events.unregister(f"before-send.s3.{operation}", answer)


CONFLICT = (409, "ConditionalRequestConflict")
GONE = (404, "NoSuchKey")


def test_an_expired_lease_that_is_given_back_meanwhile_is_taken(bucket: Bucket) -> None:
    """S3 answers 404 to If-Match where there is nothing any more; then it is there to be taken."""
    first, second = Lease("run-1", "one", 100.0), Lease("run-2", "two", 300.0)
    lease.take(bucket, "session-1", first, 0.0)
    with answering(bucket.s3, "PutObject", *GONE, header="If-Match") as met:
        lease.take(bucket, "session-1", second, 200.0)
    assert met
    assert lease.holder(bucket, "session-1") == second


def test_a_lease_that_is_gone_is_free(bucket: Bucket) -> None:
    """404 for the delete: an expired lease was taken over and given back between the look and the delete."""
    mine = Lease("run-1", "one", 100.0)
    lease.take(bucket, "session-1", mine, 0.0)
    with answering(bucket.s3, "DeleteObject", *GONE) as met:
        lease.free(bucket, "session-1", lambda lease: lease == mine)
    assert met


def test_a_write_that_meets_another_asks_again_who_was_first(bucket: Bucket) -> None:
    """409 decides nothing: for the lease, its end, what is settled, a pin and a small commit alike."""
    mine = Lease("run-1", "one", 100.0)
    with answering(bucket.s3, "PutObject", *CONFLICT, times=2):
        lease.take(bucket, "session-1", mine, 0.0)
    with answering(bucket.s3, "DeleteObject", *CONFLICT, times=2):
        lease.free(bucket, "session-1", lambda lease: lease == mine)
    assert lease.holder(bucket, "session-1") is None
    with answering(bucket.s3, "PutObject", *CONFLICT):
        assert record.open_run(bucket, "run-1", {"prompt": "x"}) == ({"prompt": "x"}, True)
    with answering(bucket.s3, "PutObject", *CONFLICT):
        assert record.pin(bucket, "run-1", Pin(None, 0, "", "one"), None)
    claim = a_claim()
    result = stage(bucket, claim, session(hello=b"x"))
    with answering(bucket.s3, "PutObject", *CONFLICT):
        commit(bucket, claim, result, metadata(claim))
    assert versions.newest_of(bucket, "session-1", "alice")


def test_an_attempt_starts_once(bucket: Bucket) -> None:
    """The grant to start is conditional: a second invocation of the same attempt learns that it ran."""
    granted = grants(bucket, a_claim(), None, 60)
    assert Transfer().put(granted.started, b"", 0)
    assert not Transfer().put(granted.started, b"", 0)


def test_a_grant_reads_the_pinned_version(bucket: Bucket) -> None:
    """The run works on the version it was pinned to, whatever has come since."""
    base = turn(bucket, None, b"first")
    first = bucket.s3.get_object(Bucket=bucket.name, Key="session-1.zip")["Body"].read()
    turn(bucket, base, b"second")
    granted = grants(bucket, a_claim(base), None, 60)
    assert granted.session is not None
    assert Transfer().read(granted.session) == first


def test_a_staged_result_of_any_other_shape_is_the_agents_failure(bucket: Bucket) -> None:
    """Garbage, lies and floods end in an error that names the agent, not in a commit."""
    claim = a_claim()
    for body in (b"", b"not json", b"[]", json.dumps({"result": "x"}).encode(), b" " * (9 * 1024 * 1024)):
        Transfer().put(grants(bucket, claim, None, 60).result, body, len(body))
        with pytest.raises(AgentCrashed):
            record.result(bucket, claim)


def test_the_newest_attempts_are_the_ones_to_go_on_with(bucket: Bucket) -> None:
    """An attempt that staged some of a result staged none, but may have left a checkpoint."""
    assert record.left(bucket, "run-1") == Left()
    left = {"0001-aa": WHOLE, "0002-bb": [*WHOLE, "checkpoint.zip"], "0003-cc": ["checkpoint.zip", "result.json"]}
    left |= {f"0004-{missing}": [name for name in WHOLE if name != missing] for missing in WHOLE}
    for attempt, names in left.items():
        for name in names:
            bucket.s3.put_object(Bucket=bucket.name, Key=f"runs/run-1/{attempt}/{name}", Body=b"{}")
    assert record.left(bucket, "run-1").staged == Staging("runs/run-1/0002-bb/", "runs/run-1/0003-cc/")
    assert record.left(bucket, "run-1", ["runs/run-1/0002-bb/"]).staged.result == "runs/run-1/0001-aa/"


def test_what_was_staged_on_another_version_is_none_to_go_on_with(bucket: Bucket) -> None:
    """A run that is pinned anew does not go on from an attempt that still worked on what it was pinned to before."""
    record.pin(bucket, "run-1", Pin(None, 1), None)
    for attempt in ("0001-aa", "0002-bb-1", "0003-cc", "0004-dd-2"):
        bucket.s3.put_object(Bucket=bucket.name, Key=f"runs/run-1/{attempt}/checkpoint.zip", Body=b"{}")
    assert record.left(bucket, "run-1").staged == Staging(None, "runs/run-1/0002-bb-1/")
    claim = a_claim()
    assert claim.pinned(None, 2).staging == f"runs/{claim.run_id}/0001-aa-2/"
    assert claim.pinned(None, 0) == claim


def test_the_index_says_where_a_run_stands(bucket: Bucket) -> None:
    """One empty key by hour and outcome, which moves, and one by session, which stays."""
    claim = replace(a_claim(), run_id="run-1")

    def index() -> list[str]:
        listed = bucket.s3.list_objects_v2(Bucket=bucket.name, Prefix="index/").get("Contents", [])
        return [entry["Key"].removeprefix("index/") for entry in listed]

    listing.mark(bucket, claim, "claimed")
    assert index() == ["hours/1970-01-01T00/claimed/run-1", "sessions/session-1/run-1"]
    listing.mark(bucket, claim, "failed")
    assert index()[0] == "hours/1970-01-01T00/failed/run-1"
    again = replace(claim, repeated=True)
    listing.mark(bucket, again, "claimed")
    assert index()[0] == "hours/1970-01-01T00/claimed/run-1"
    listing.mark(bucket, again, "done")
    assert index() == ["hours/1970-01-01T00/done/run-1", "sessions/session-1/run-1"]


def test_a_claim_survives_the_state_machine(bucket: Bucket) -> None:
    """It travels as JSON from RestoreSession to PersistSession."""
    base = turn(bucket, None, b"first")
    for claim in (a_claim(), a_claim(base)):
        assert Claim.load(json.loads(json.dumps(asdict(claim)))) == claim


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"7", b'"x"', b"{}", b"[7]", b"\xff", b"[" * 100_000, b"[" + b" " * 300_000 + b"]"]
)
def test_messages_of_any_other_shape_are_left_out(bucket: Bucket, body: bytes) -> None:
    """The turn is committed by then, and what a stranger staged as its messages cannot undo that."""
    claim = a_claim()
    assert Transfer().put(grants(bucket, claim, None, 60).messages, body, len(body))
    assert record.messages(bucket, [claim.staging], 200_000) is None


def test_of_a_version_a_range_is_given_as_s3_gives_it(bucket: Bucket) -> None:
    """Of the newest and of an older one, from either end; of one that has none of it, nothing."""
    key = {"Bucket": bucket.name, "Key": "x"}
    old, new = (bucket.s3.put_object(**key, Body=body)["VersionId"] for body in (b"older", b"newest"))
    for version, asked, given, which in (
        (old, "bytes=1-2", b"ld", "bytes 1-2/5"),
        (new, "bytes=-4", b"west", "bytes 2-5/6"),
        (new, "bytes=3-99", b"est", "bytes 3-5/6"),
    ):
        got = bucket.s3.get_object(**key, VersionId=version, Range=asked)
        assert (got["ResponseMetadata"]["HTTPStatusCode"], got["ContentRange"]) == (206, which)
        assert got["Body"].read() == given
    assert bucket.s3.get_object(**key, VersionId=old)["Body"].read() == b"older"
    with pytest.raises(ClientError, match="InvalidRange"):
        bucket.s3.get_object(**key, VersionId=old, Range="bytes=5-9")
    with pytest.raises(ClientError, match="Precondition"):
        bucket.s3.get_object(**key, VersionId=old, Range="bytes=0-1", IfMatch='"another"')
