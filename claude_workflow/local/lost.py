"""Runs that were at work when the engine ended, whose executions are lost with it.

One engine alone runs on a state directory. So before its workflow can be asked anything, every lease there is a dead
execution's, however long it would last, and so is every reservation of money.

A long run that goes on keeps its lease: it is taken over in its name, and a start that is cut off before that finds it
again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from operator import eq

from lambdas.bucket import lease, ledger, record
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket

DAY = 86_400.0


@dataclass(frozen=True)
class Lost:
    """A run that held its session when the engine ended."""

    run_id: str
    session_id: str
    is_long: bool
    """Whether it goes on without its caller, who was answered 202."""
    ended: bool
    """Whether it was done, or had failed, and its session only was not free yet."""

    @property
    def at_work(self) -> bool:
        """Whether it can go on without its caller."""
        return self.is_long and not self.ended


def settle(bucket: Bucket, now: float) -> list[Lost]:
    """At a start, `now` (epoch seconds): frees what they held, but for long runs at work, and writes down what they
    spent in place of what they had reserved; all of it can be repeated. Raises `StorageUnavailable`."""
    held = [*lease.every(bucket)]
    for day in _days([now, *(each.expires_at for _, each in held)]):
        ledger.entries(bucket, day, inf)
    found = []
    for session_id, dead in held:
        ledger.lost(bucket, session_id, dead.run_id)
        found.append(_found(bucket, session_id, dead))
        if not found[-1].at_work:
            lease.free(bucket, session_id, partial(eq, dead))
    return found


def free(bucket: Bucket, run: Lost) -> None:
    """Frees the session of a long run that is left to who asks for it. Raises `StorageUnavailable`."""
    lease.free(bucket, run.session_id, lambda held: held.run_id == run.run_id)


def _days(ends: Iterable[float]) -> set[str]:
    """The days on which what ends then can have been reserved: no lease lasts as long as a day. Who had freed the
    session may not have given back yet what was reserved, so `now` is an end, too."""
    return {f"{datetime.fromtimestamp(end - ago, UTC):%Y-%m-%d}" for end in ends for ago in (0, DAY)}


def _found(bucket: Bucket, session_id: str, dead: Lease) -> Lost:
    asked, failure = record.request(bucket, dead.run_id) or {}, record.failure(bucket, dead.run_id) or {}
    ended = record.response(bucket, dead.run_id) is not None or failure.get("execution") == dead.execution
    return Lost(dead.run_id, session_id, bool(asked.get("long")), ended)
