"""Where a run stands, read from the bucket: all that `next_step` decides by."""

from collections.abc import Collection

from lambdas.contract import Base, Json, Request, recorded_verb
from lambdas.next_step import Left, Situation
from lambdas.sessions.store import Store, in_the_way


def situation(store: Store, request: Request, *, begun: bool) -> Situation:
    """For whoever has the session's lease, or no record yet. Raises `SessionDamaged` and `StorageUnavailable`.

    `begun`: whether another execution may have been at work on the run before. If none was, none of its own is read.
    """
    if begun and (answer := store.response(request.run_id)):
        return Situation((Left(),), answer=answer)
    left = left_by(store, request.run_id if begun else None, request.verb, request.replay_of)
    newest = _newest(store, request, left)
    base = left[0].pin.base if left[0].pin else None
    committed = False
    if base and newest and newest.version_id != base.version_id and not request.copies:
        committed = store.committed(request.run_id, newest.session_id, base)
    return Situation(left, request.session_id is not None, newest, request.copies, committed=committed)


def left_by(
    store: Store, run: str | None, verb: str | None, replay_of: str | None, unfit: Collection[str] = ()
) -> tuple[Left, ...]:
    """What a run left (nothing, if it is None), the run that it forks, the one that this forks if it is a fork itself,
    and so on; without the results of `unfit` attempts."""
    unfit = [*unfit, *(store.unfit(run) if run else [])]
    left = [store.left(run, unfit) if run else Left()]
    while verb == "fork" and replay_of:
        unfit += store.unfit(replay_of)
        left.append(store.left(replay_of, unfit))
        record = store.run(replay_of) or {}
        verb, replay_of = recorded_verb(record), record.get("replay_of")
    return tuple(left)


def from_outside(store: Store, request: Request, record: Json | None, now: float) -> Situation:
    """For whoever only looks (at `now`, in epoch seconds); `record` is the run's request.json, if it has one."""
    if record and (answer := store.response(request.run_id)):
        return Situation((Left(),), answer=answer)
    session_id = record["session_id"] if record else None if request.copies else request.session_id
    held = in_the_way(store.holder(session_id), request.run_id, now) if session_id else None
    return Situation((Left(),), held=held) if held else situation(store, request, begun=record is not None)


def _newest(store: Store, request: Request, left: tuple[Left, ...]) -> Base | None:
    """What the session that it asks for is now; a replay by `fork` of a run that was pinned asks for that version."""
    if request.session_id is None or (len(left) > 1 and any(each.pin for each in left)):
        return None
    return store.session(request.session_id, request.caller)
