"""Where a run stands, read from the bucket: all that `next_step` decides by."""

from collections.abc import Collection

from lambdas.bucket import lease, record, versions
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.next_step import Left, Situation
from lambdas.request import Request, recorded_verb
from lambdas.strict import Json


def situation(bucket: Bucket, request: Request, *, begun: bool) -> Situation:
    """For whoever has the session's lease, or no record yet. Raises `SessionDamaged` and `StorageUnavailable`.

    `begun`: whether another execution may have been at work on the run before. If none was, none of its own is read.
    """
    if begun and (answer := record.response(bucket, request.run_id)):
        return Situation((Left(),), answer=answer)
    left = left_by(bucket, request.run_id if begun else None, request.verb, request.replay_of)
    newest = _newest(bucket, request, left)
    base = left[0].pin.base if left[0].pin else None
    committed = False
    if base and newest and newest.version_id != base.version_id and not request.copies:
        committed = versions.committed(bucket, request.run_id, newest.session_id, base)
    return Situation(left, request.session_id is not None, newest, request.copies, committed=committed)


def left_by(
    bucket: Bucket, run: str | None, verb: str | None, replay_of: str | None, unfit: Collection[str] = ()
) -> tuple[Left, ...]:
    """What a run left (nothing, if it is None), the run that it forks, the one that this forks if it is a fork itself,
    and so on; without the results of `unfit` attempts."""
    unfit = [*unfit, *(record.unfit(bucket, run) if run else [])]
    left = [record.left(bucket, run, unfit) if run else Left()]
    while verb == "fork" and replay_of:
        unfit += record.unfit(bucket, replay_of)
        left.append(record.left(bucket, replay_of, unfit))
        asked = record.request(bucket, replay_of) or {}
        verb, replay_of = recorded_verb(asked), asked.get("replay_of")
    return tuple(left)


def from_outside(bucket: Bucket, request: Request, asked: Json | None, now: float) -> Situation:
    """For whoever only looks (at `now`, in epoch seconds); `asked` is the run's request.json, if it has one."""
    if asked and (answer := record.response(bucket, request.run_id)):
        return Situation((Left(),), answer=answer)
    session_id = asked["session_id"] if asked else None if request.copies else request.session_id
    held = lease.in_the_way(lease.holder(bucket, session_id), request.run_id, now) if session_id else None
    return Situation((Left(),), held=held) if held else situation(bucket, request, begun=asked is not None)


def _newest(bucket: Bucket, request: Request, left: tuple[Left, ...]) -> Base | None:
    """What the session that it asks for is now; a replay by `fork` of a run that was pinned asks for that version."""
    if request.session_id is None or (len(left) > 1 and any(each.pin for each in left)):
        return None
    return versions.newest_of(bucket, request.session_id, request.caller)
