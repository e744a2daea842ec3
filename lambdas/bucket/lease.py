"""The lease on a session, `locks/{session_id}.json`: a courtesy that spares a second writer its work.

It is taken and given back by conditional writes. What decides who may commit is the commit's own condition.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import ceil

from lambdas.bucket.objects import Bucket, ConditionFailed, Missing
from lambdas.errors import RunInProgress, SessionBusy, WorkflowError

FIRST_WAIT = 5
"""Seconds after which whoever meets a lease is asked to come again, at first."""


@dataclass(frozen=True)
class Lease:
    """Who works on a session, and until when (epoch seconds)."""

    run_id: str
    execution: str
    expires_at: float


Seen = tuple[Lease, str]
"""A lease, and the ETag that it was seen with."""


def take(bucket: Bucket, session_id: str, wanted: Lease, now: float) -> Lease | None:
    """Take the session's lease, or find it mine and make it last as long as is wanted, or take it over if it is expired
    (`now` in epoch seconds). Returns the one that was taken over, whose run was lost.

    Raises `RunInProgress` where another execution of this run holds it, `SessionBusy` where another run does. Both
    say when to come again: soon, then after as long as the other has been at work by then. So whoever comes again
    sees it end soon after it does, and with five tries outlasts a lease of half a minute.
    """
    key = _key(session_id)
    for _ in range(5):
        try:
            bucket.write(key, asdict(wanted), IfNoneMatch="*")
        except ConditionFailed:
            held = seen(bucket, session_id)
        else:
            return None
        if held is None:
            continue
        lease, etag = held
        own = lease.execution == wanted.execution
        if own and lease.expires_at >= wanted.expires_at:
            return None
        if not own and (busy := in_the_way(lease, wanted.run_id, now)):
            ahead = wanted.expires_at - lease.expires_at  # leases are of one length
            wait = ceil(min(lease.expires_at - now, max(FIRST_WAIT, ahead)))
            raise busy(retry_after=wait, session_id=session_id, run_id=wanted.run_id)
        try:
            bucket.write(key, asdict(wanted), IfMatch=etag)
        except (ConditionFailed, Missing):  # taken over, or given back
            continue
        return None if own else lease
    raise SessionBusy(retry_after=1, session_id=session_id, run_id=wanted.run_id)


def holder(bucket: Bucket, session_id: str) -> Lease | None:
    """Who holds the session's lease, expired or not."""
    held = seen(bucket, session_id)
    return held[0] if held else None


def every(bucket: Bucket) -> Iterator[tuple[str, Lease]]:
    """Who holds which session, by its id, expired or not."""
    for one in bucket.listed("locks/"):
        session_id = one["Key"].removeprefix("locks/").removesuffix(".json")
        if held := holder(bucket, session_id):
            yield session_id, held


def in_the_way(lease: Lease | None, run_id: str, now: float) -> type[WorkflowError] | None:
    """What a run is refused with as long as another execution has this lease."""
    if lease is None or lease.expires_at <= now:
        return None
    return RunInProgress if lease.run_id == run_id else SessionBusy


def free(bucket: Bucket, session_id: str, mine: Callable[[Lease], bool]) -> None:
    """Give the session's lease back, if it is `mine`."""
    held = seen(bucket, session_id)
    if held and mine(held[0]):
        _free(bucket, session_id, held)


def free_seen(bucket: Bucket, session_id: str, held: Seen | None, execution: str) -> None:
    """Give the session's lease back, if it was the execution's when it was seen, and still is that one."""
    if held and held[0].execution == execution:
        _free(bucket, session_id, held)


def _free(bucket: Bucket, session_id: str, held: Seen) -> None:
    try:
        bucket.delete(_key(session_id), IfMatch=held[1])
    except (ConditionFailed, Missing):
        return  # Expired and taken over between the look and the delete: it is another's now, or nobody's.


def seen(bucket: Bucket, session_id: str) -> Seen | None:
    """The session's lease, expired or not."""
    found = bucket.read_with_etag(_key(session_id))
    return (Lease(**found[0]), found[1]) if found else None


def _key(session_id: str) -> str:
    return f"locks/{session_id}.json"
