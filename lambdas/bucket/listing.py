"""The index: where each run stands, in empty keys by hour and outcome, and by session, so that to list costs what is
listed.

    index/hours/{YYYY-MM-DDTHH}/{claimed|done|failed}/{run_id}    hour (UTC) of the run's first request
    index/sessions/{session_id}/{run_id}
    index/refused/{session_id}/{run_id}      recorded, but not begun: nobody lists them, but who removes a session

A run moves through it (claimed, then done or failed) by writing the new key before the old one goes. So it may stand
there twice, after a crash for good; it counts where its record says.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim

OUTCOMES = ("claimed", "done", "failed")
"""Where a run stands in the index."""
UNFINISHED = ("claimed", "failed")
DONE = ("claimed", "done")
"""A crash between two keys leaves the old one, and what the record says counts."""

PAGE = 1000
"""Keys that S3 lists at a time."""


class Entry(NamedTuple):
    """One run in the index."""

    run_id: str
    hour: str | None = None
    """None where it was found by its session."""
    outcome: str | None = None


class Marked(NamedTuple):
    """One run in the index, and when it was marked so: a run that ended, by its end."""

    entry: Entry
    at: float
    """Epoch seconds."""


def mark(bucket: Bucket, claim: Claim, outcome: str) -> None:
    """Say where the run stands; a run that had an attempt before may stand there as failed."""
    enter(bucket, claim, outcome)
    leave(bucket, claim, outcome)


def enter(bucket: Bucket, claim: Claim, outcome: str) -> None:
    """Say where the run stands, or will in a moment: until its record says so too, it counts where it stood."""
    if outcome == "claimed":
        bucket.touch(f"index/sessions/{claim.session_id}/{claim.run_id}")
    bucket.touch(_key(hour_of(claim.recorded_at), outcome, claim.run_id))


def leave(bucket: Bucket, claim: Claim, outcome: str) -> None:
    """Say that it stands nowhere else any more."""
    left = [] if outcome == "claimed" else ["claimed"]
    for name in left + (["failed"] if claim.repeated and outcome != "failed" else []):
        bucket.delete(_key(hour_of(claim.recorded_at), name, claim.run_id))


def refused(bucket: Bucket, claim: Claim) -> None:
    """Say that a run was recorded, whose request was refused then: no list has it, and its record is the session's."""
    bucket.touch(f"index/refused/{claim.session_id}/{claim.run_id}")


def unmark(bucket: Bucket, claim: Claim) -> None:
    """List a run no more that was refused after it was claimed."""
    refused(bucket, claim)
    bucket.delete(_key(hour_of(claim.recorded_at), "claimed", claim.run_id))
    bucket.delete(f"index/sessions/{claim.session_id}/{claim.run_id}")


def stands(bucket: Bucket, entry: Entry, outcome: str) -> bool:
    """Whether a run that was found in its hour stands there with this outcome as well."""
    return entry.hour is not None and bucket.head(_key(entry.hour, outcome, entry.run_id)) is not None


def since(bucket: Bucket, moment: float, now: float, outcomes: tuple[str, ...] = OUTCOMES) -> Iterator[list[Entry]]:
    """Runs of the hours from `moment` to `now` (epoch seconds), oldest first, a page of some 1,000 at a time."""
    first = hour_of(moment)
    if outcomes == OUTCOMES:
        # One listing through all hours: as few requests as there are thousands of runs.
        yield from _pages(bucket, "index/hours/", after=f"index/hours/{first}")
        return
    hour = datetime.fromtimestamp(moment, UTC).replace(minute=0, second=0, microsecond=0)
    while (name := f"{hour:%Y-%m-%dT%H}") <= hour_of(now):
        yield from _together(bucket, (f"index/hours/{name}/{outcome}/" for outcome in outcomes))
        hour += timedelta(hours=1)


def hours(bucket: Bucket) -> list[str]:
    """The hours in which runs were asked for that are still listed, the newest first."""
    return sorted(bucket.folders("index/hours/"), reverse=True)


def of_hour(bucket: Bucket, hour: str, outcomes: tuple[str, ...], most: int) -> tuple[list[Marked], bool]:
    """The runs of an hour, those first that were marked last, and whether that is all: an hour with more than `most`
    keys of an outcome is not listed to its end."""
    each = [_marked(bucket, f"index/hours/{hour}/{outcome}/", most) for outcome in outcomes]
    return _newest_first(one for found, _ in each for one in found), all(whole for _, whole in each)


def newest_of_session(bucket: Bucket, session_id: str, most: int) -> tuple[list[Marked], bool]:
    """The runs of a session, those first that began last, and whether that is all."""
    found, whole = _marked(bucket, f"index/sessions/{session_id}/", most)
    return _newest_first(found), whole


def _marked(bucket: Bucket, prefix: str, most: int) -> tuple[list[Marked], bool]:
    found: list[Marked] = []
    for page in bucket.pages(prefix):
        if len(found) >= most:
            return found, False
        found += [Marked(_entry(one["Key"]), one["LastModified"].timestamp()) for one in page]
    return found, True


def _newest_first(found: Iterable[Marked]) -> list[Marked]:
    return sorted(found, key=lambda marked: (marked.at, marked.entry.run_id), reverse=True)


def of_session(bucket: Bucket, session_id: str) -> Iterator[list[Entry]]:
    """Every run of a session, in no order."""
    yield from _pages(bucket, f"index/sessions/{session_id}/")


def _together(bucket: Bucket, prefixes: Iterable[str]) -> Iterator[list[Entry]]:
    """Small pages as one, so that what belongs to one hour can be put in order."""
    found: list[Entry] = []
    for page in (page for prefix in prefixes for page in _pages(bucket, prefix)):
        found += page
        if len(found) >= PAGE:
            yield found
            found = []
    if found:
        yield found


def _pages(bucket: Bucket, prefix: str, after: str = "") -> Iterator[list[Entry]]:
    for page in bucket.pages(prefix, after):
        yield [_entry(one["Key"]) for one in page]


def _entry(key: str) -> Entry:
    match key.split("/"):
        case ["index", "hours", hour, outcome, run_id]:
            return Entry(run_id, hour, outcome)
        case [*_, run_id]:
            return Entry(run_id)
    raise ValueError(key)


def hour_of(moment: float) -> str:
    """The hour (UTC) of a moment in epoch seconds, as the index names it."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H}"


def _key(hour: str, outcome: str, run_id: str) -> str:
    return f"index/hours/{hour}/{outcome}/{run_id}"
