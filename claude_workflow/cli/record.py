"""A run as its record has it, read from outside: by the index and by run, never by scanning all of the bucket."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from claude_workflow.cli.endings import is_cancelled
from lambdas.bucket import lease, listing, record
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.errors import RunInProgress
from lambdas.strict import Json

READERS = 8
"""Threads that read records. Three small objects a run: what they cost is the way there and back."""

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Run:
    """What the record says of one run."""

    request: Json
    answer: Json | None
    failure: Json | None
    running: bool
    """Whether its lease holds: an execution is at work on it."""

    @property
    def run_id(self) -> str:
        """Its name."""
        return str(self.request["run_id"])

    @property
    def session_id(self) -> str:
        """The session that it goes on with, or began."""
        return str(self.request["session_id"])

    @property
    def outcome(self) -> str:
        """`done`, `running`, `failed`, `cancelled` (with an answer or without), or `lost`: neither answer nor failure,
        and nobody at work on it."""
        if self.running:
            return "running"
        ended = self.answer or self.failure
        if ended and is_cancelled(ended):
            return "cancelled"
        return "done" if self.answer else "failed" if self.failure else "lost"

    @property
    def executions(self) -> list[str]:
        """Those that the record names: the first, and the one that failed last, or answered."""
        named = [each.get("execution") for each in (self.request, self.failure or {}, self.answer or {})]
        return list(dict.fromkeys(name for name in named if name))

    @property
    def long(self) -> bool:
        """Whether it may last longer than a POST, and works in legs."""
        return bool(self.request.get("long"))


class Requests:
    """How many requests of S3 a command took, by operation, repetitions included."""

    def __init__(self, s3: Any) -> None:
        self.counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        s3.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: Any) -> None:
        with self._lock:
            self.counted[event_name.rsplit(".", 1)[1]] += 1

    def sentence(self) -> str:
        """For whoever pays for them."""
        each = ", ".join(f"{number:,} {name}" for name, number in sorted(self.counted.items()))
        return f"{self.counted.total():,} S3 requests: {each}"


def look(bucket: Bucket, entry: Entry, now: float) -> Run | None:
    """The run, or None where it is expired, or the index has it elsewhere too, and better. Raises
    `StorageUnavailable`."""
    request = record.request(bucket, entry.run_id)
    if request is None:
        return None  # expired, as index and record do within the same day
    answer = record.response(bucket, entry.run_id)
    failure = None if answer else record.failure(bucket, entry.run_id)
    counts = "done" if answer else "failed" if failure else "claimed"
    if counts != entry.outcome and listing.stands(bucket, entry, counts):
        return None
    held = answer is None and entry.outcome != "failed" and is_held(bucket, request, now)
    return Run(request, answer, failure, held)


def is_held(bucket: Bucket, request: Json, now: float) -> bool:
    """Whether an execution holds the lease for this run. Raises `StorageUnavailable`."""
    held = lease.holder(bucket, request["session_id"])
    return lease.in_the_way(held, request["run_id"], now) is RunInProgress


def staged(bucket: Bucket, run_id: str) -> dict[str, dict[str, int]]:
    """By attempt, oldest first, the objects it staged with their sizes in bytes. Raises `StorageUnavailable`."""
    prefix, found = f"runs/{run_id}/", dict[str, dict[str, int]]()
    for one in bucket.listed(prefix):
        attempt, _, name = one["Key"].removeprefix(prefix).partition("/")
        if name:
            found.setdefault(attempt, {})[name] = one["Size"]
    return dict(sorted(found.items()))


def each(work: Callable[[Item], Found], items: Iterable[Item], threads: int) -> Iterator[Found]:
    """What `work` makes of the items, as it comes. Never more than twice `threads` of them are taken at a time."""
    pool = ThreadPoolExecutor(threads)
    waiting: set[Future[Found]] = set()
    try:
        for item in items:
            waiting.add(pool.submit(work, item))
            if len(waiting) >= 2 * threads:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
