"""The bucket's record of runs, read from outside: by the index and by run, never by scanning all of it.

index/hours/{YYYY-MM-DDTHH}/{claimed|done|failed}/{run_id}    hour (UTC) of the run's first request
index/sessions/{session_id}/{run_id}
runs/{run_id}/…                                               see lambdas/sessions/store.py
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from botocore.exceptions import ClientError

Json = dict[str, Any]

READERS = 8
"""Threads that read records. Three small objects a run: what they cost is the way there and back."""

PAGE = 1000
"""Keys that S3 lists at a time."""

ALL = ("claimed", "done", "failed")
UNFINISHED = ("claimed", "failed")
DONE = ("claimed", "done")
"""A crash between two keys leaves the old one, and what the record says counts."""

Item = TypeVar("Item")
Found = TypeVar("Found")


class Entry(NamedTuple):
    """One run in the index."""

    run_id: str
    hour: str | None = None
    """None where it was found by its session."""
    outcome: str | None = None


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
        return str(self.request["run_id"])

    @property
    def session_id(self) -> str:
        return str(self.request["session_id"])

    @property
    def outcome(self) -> str:
        """`done`, `running`, `failed`, or `lost`: neither answer nor failure, and nobody at work on it."""
        if self.answer:
            return "done"
        if self.running:
            return "running"
        return "failed" if self.failure else "lost"


class Records:
    """The record in one bucket, and how many requests reading it took."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self.s3 = s3
        self.bucket = bucket
        self.requests: Counter[str] = Counter()
        """S3 requests by operation, repetitions included."""
        self._lock = threading.Lock()
        s3.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: Any) -> None:
        with self._lock:
            self.requests[event_name.rsplit(".", 1)[1]] += 1

    def __str__(self) -> str:
        each = ", ".join(f"{number:,} {name}" for name, number in sorted(self.requests.items()))
        return f"{self.requests.total():,} S3 requests: {each}"

    # The index

    def since(self, moment: float, now: float, outcomes: tuple[str, ...] = ALL) -> Iterator[list[Entry]]:
        """Runs of the hours from `moment` to `now` (epoch seconds), oldest first, a page of some 1,000 at a time."""
        first = _hour(moment)
        if outcomes == ALL:
            # One listing through all hours: as few requests as there are thousands of runs.
            yield from self._pages("index/hours/", after=f"index/hours/{first}")
            return
        hour = datetime.fromtimestamp(moment, UTC).replace(minute=0, second=0, microsecond=0)
        while (name := f"{hour:%Y-%m-%dT%H}") <= _hour(now):
            yield from self._together(f"index/hours/{name}/{outcome}/" for outcome in outcomes)
            hour += timedelta(hours=1)

    def of_session(self, session_id: str) -> Iterator[list[Entry]]:
        """Every run of a session, in no order."""
        yield from self._pages(f"index/sessions/{session_id}/")

    def _together(self, prefixes: Iterable[str]) -> Iterator[list[Entry]]:
        """Small pages as one, so that what belongs to one hour can be put in order."""
        found: list[Entry] = []
        for page in (page for prefix in prefixes for page in self._pages(prefix)):
            found += page
            if len(found) >= PAGE:
                yield found
                found = []
        if found:
            yield found

    def _pages(self, prefix: str, after: str = "") -> Iterator[list[Entry]]:
        start = {"StartAfter": after} if after else {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, **start)
        for page in pages:
            if found := [_entry(one["Key"]) for one in page.get("Contents", [])]:
                yield found

    # A run

    def run(self, entry: Entry, now: float) -> Run | None:
        """The run, or None where the index has it elsewhere too, and better.

        A run moves through the index (claimed, then done or failed) by writing the new key before the old one goes. So
        it may stand there twice, after a crash for good; it counts where its record says.
        """
        request = self.read(f"runs/{entry.run_id}/request.json")
        if request is None:
            return None  # expired, as index and record do within the same day
        answer = self.read(f"runs/{entry.run_id}/response.json")
        failure = None if answer else self.read(f"runs/{entry.run_id}/failure.json")
        settled = "done" if answer else "failed" if failure else entry.outcome
        moved = entry.outcome != settled and entry.hour is not None
        if moved and self.head(f"index/hours/{entry.hour}/{settled}/{entry.run_id}"):
            return None
        held = answer is None and entry.outcome != "failed" and self.is_held(request, now)
        return Run(request, answer, failure, held)

    def is_held(self, request: Json, now: float) -> bool:
        """Whether an execution holds the lease for this run."""
        lease = self.read(f"locks/{request['session_id']}.json")
        return bool(lease and lease["run_id"] == request["run_id"] and lease["expires_at"] > now)

    def staged(self, run_id: str) -> dict[str, dict[str, int]]:
        """By attempt, oldest first, the objects it staged with their sizes in bytes."""
        prefix, found = f"runs/{run_id}/", dict[str, dict[str, int]]()
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for one in page.get("Contents", []):
                attempt, _, name = one["Key"].removeprefix(prefix).partition("/")
                if name:
                    found.setdefault(attempt, {})[name] = one["Size"]
        return dict(sorted(found.items()))

    # Objects

    def read(self, key: str) -> Json | None:
        """The object's JSON, or None where there is none. Raises botocore's errors."""
        try:
            got = self.s3.get_object(Bucket=self.bucket, Key=key)
        except self.s3.exceptions.NoSuchKey:
            return None
        found: Json = json.loads(got["Body"].read())
        return found

    def head(self, key: str) -> Json | None:
        """What S3 says of the object, or None where there is none. Raises botocore's errors."""
        try:
            found: Json = self.s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise
        return found


def _hour(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H}"


def _entry(key: str) -> Entry:
    match key.split("/"):
        case ["index", "hours", hour, outcome, run_id]:
            return Entry(run_id, hour, outcome)
        case [*_, run_id]:
            return Entry(run_id)
    raise ValueError(key)


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
