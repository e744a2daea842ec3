"""Runs that were at work when the engine ended, whose executions are lost with it.

One engine alone runs on a state directory. So before its workflow can be asked anything, every lease there is a dead
execution's, however long it would last, and so is every reservation of money.
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
    is_long: bool
    """Whether it goes on without its caller, who was answered 202."""
    ended: bool
    """Whether it was done, or had failed, and its session only was not free yet."""


def settle(bucket: Bucket) -> list[Lost]:
    """Frees what they held, and writes down what they spent in place of what they had reserved; all of it can be
    repeated. Raises `StorageUnavailable`."""
    held = [*lease.every(bucket)]
    for day in _days(each for _, each in held):
        ledger.entries(bucket, day, inf)
    found = []
    for session_id, dead in held:
        ledger.lost(bucket, session_id, dead.run_id)
        found.append(_found(bucket, dead))
        lease.free(bucket, session_id, partial(eq, dead))
    return found


def _days(held: Iterable[Lease]) -> set[str]:
    """The days on which the holders can have reserved something: no lease lasts as long as a day."""
    ends = [each.expires_at for each in held]
    return {f"{datetime.fromtimestamp(end - ago, UTC):%Y-%m-%d}" for end in ends for ago in (0, DAY)}


def _found(bucket: Bucket, dead: Lease) -> Lost:
    asked, failure = record.request(bucket, dead.run_id) or {}, record.failure(bucket, dead.run_id) or {}
    ended = record.response(bucket, dead.run_id) is not None or failure.get("execution") == dead.execution
    return Lost(dead.run_id, bool(asked.get("long")), ended)
