"""A session removed: every version and every mark of deletion of whatever the bucket holds of it.

    {session_id}.zip                         all versions of the archive
    runs/{run_id}/…                          its runs, with all that was asked, staged and answered
    index/hours/…, index/sessions/…, index/refused/…    where those are listed
    ledger/sessions/{session_id}/…           what failed runs count against it
    uploads/{upload}/…, extracts/{session_id}/…    what its runs were given, and files of it that were linked to
    locks/{session_id}.json                  the lease

What stays is `STAYS`. The archive goes when its runs are gone, its newest version last, and the lease at the very end:
whatever cuts a removal off, the session is either still there, as it was, to be removed again, or gone. The lease lasts
as long as the removal is at work, and a minute more if it is cut off; no run begins meanwhile, and no other removal.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from lambdas.bucket import lease, ledger, listing, versions
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket, Missing, storage
from lambdas.bucket.versions import BATCH, Version, session_key
from lambdas.strict import Json

LEASE_SECONDS = 60
"""How long a removal that was cut off may keep runs away, and the next one."""

UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")

STAYS = (
    "What stays until it expires, after 30 days: in the ledger, what its runs cost, by their ids and a hash of the "
    "caller's name, since the day's limits count it; in the log of the executions, what was asked and "
    "answered, with files that came in a request's body. And sessions that were forked from it, and copies that others "
    "made."
)
"""What a removal leaves, for whoever asked for it."""


@dataclass(frozen=True)
class Removed:
    """What is gone."""

    versions: int
    """Of the session's archive."""
    runs: int
    objects: int
    """Versions and marks of deletion of all objects together, the archive's included, the lease's not."""


@dataclass(frozen=True)
class Owned:
    """All that is a caller's."""

    sessions: dict[str, set[str]] = field(default_factory=dict)
    """The runs of each session, of those too that were never kept."""
    uploads: set[str] = field(default_factory=set)


def remove(
    bucket: Bucket, session_id: str, runs: Collection[str] = (), clock: Callable[[], float] = time.time
) -> Removed:
    """Remove a session, whoever owns it; `runs` are of it too, besides those that the index names. `clock` tells epoch
    seconds.

    Raises `SessionBusy` while a run works on it, or another removal, and `StorageUnavailable`: then it can be removed
    again.
    """
    with _held(bucket, session_id, clock) as hold:
        return _removed(bucket, session_id, runs, hold)


def remove_upload(bucket: Bucket, upload: str) -> int:
    """Remove what a caller sent; how many versions and marks are gone."""
    return _delete(bucket, versions.below(bucket, f"uploads/{upload}/"))


def owner_of(bucket: Bucket, session_id: str) -> str | None:
    """Whose a session is, by its newest version, though that was deleted, or by a run of it where none was kept; None
    where there is nothing of it."""
    archive = next((each for each in _of(bucket, session_key(session_id)) if not each.is_mark), None)
    head: Any = bucket.head(archive.key, VersionId=archive.version_id) if archive else None
    if head:
        return str(head["Metadata"].get("owner"))
    for prefix in _indexed(session_id):
        for entry in bucket.listed(prefix):
            if asked := bucket.read(f"runs/{entry['Key'].rpartition('/')[2]}/request.json"):
                return str(asked["owner"])
    return None


def owned(bucket: Bucket, owner: str) -> Owned:
    """What is this caller's, by the record of every run, every archive and every upload, deleted ones included: as
    many requests as there are runs."""
    found = Owned()
    for run_id, asked in _said(bucket, "runs/", "request.json"):
        if asked.get("owner") == owner:
            found.sessions.setdefault(asked["session_id"], set()).add(run_id)
    for upload, offer in _said(bucket, "uploads/", "offer.json"):
        if offer.get("owner") == owner:
            found.uploads.add(upload)
    for session_id in _sessions_of(bucket, owner):
        found.sessions.setdefault(session_id, set())
    return found


@contextmanager
def _held(bucket: Bucket, session_id: str, clock: Callable[[], float]) -> Iterator[Callable[[], None]]:
    """Takes the session's lease, and leaves nothing of it. What it gives, asked all the time, makes the lease last;
    it raises `SessionBusy` where that is another's by then."""
    name, until = f"remove-{uuid.uuid4()}", 0.0

    def hold() -> None:
        nonlocal until
        now = clock()
        if until - now < LEASE_SECONDS / 2:
            until = now + LEASE_SECONDS
            lease.take(bucket, session_id, Lease(name, name, until), now)

    hold()
    try:
        yield hold
    finally:
        _give_back(bucket, session_id, name)


def _give_back(bucket: Bucket, session_id: str, execution: str) -> None:
    """Deletes every version of the lease, the execution's last; nothing where it is another's by now. By versions, so
    that what others take is never theirs to lose."""
    found = [*_of(bucket, f"locks/{session_id}.json")]  # the newest first, as S3 lists them
    held = lease.holder(bucket, session_id)
    if held and held.execution == execution:
        newest = [each for each in found if not each.is_mark][:1]
        _delete(bucket, (each for each in found if each not in newest))
        _delete(bucket, newest)


def _removed(bucket: Bucket, session_id: str, runs: Collection[str], hold: Callable[[], None]) -> Removed:
    indexed = _indexed(session_id)
    named = (each.key.rpartition("/")[2] for prefix in indexed for each in versions.below(bucket, prefix))
    ids = {*runs, *named}
    gone = 0
    for run_id in sorted(ids):
        hold()
        gone += _remove_run(bucket, run_id)
    for prefix in (*indexed, f"ledger/sessions/{session_id}/", f"extracts/{session_id}/"):
        gone += _delete(bucket, versions.below(bucket, prefix))
    archive = [*_of(bucket, session_key(session_id))]  # the newest first, as S3 lists them
    held = [each for each in archive if not each.is_mark]
    older = [each for each in archive if each not in held[:1]]
    hold()
    gone += _delete(bucket, older) + _delete(bucket, held[:1])
    return Removed(len(held), len(ids), gone)


def _indexed(session_id: str) -> tuple[str, str]:
    """Where the index names its runs."""
    return f"index/sessions/{session_id}/", f"index/refused/{session_id}/"


def _remove_run(bucket: Bucket, run_id: str) -> int:
    """What it cost is counted first, by receipts that go. Then goes where it is listed, for its hour stands in its
    record alone."""
    found = [*versions.below(bucket, f"runs/{run_id}/")]
    for attempt in {each.key.split("/")[2] for each in found if each.key.endswith("/receipt.json")}:
        ledger.count_lost(bucket, run_id, attempt)
    asked = next((each for each in found if each.key == f"runs/{run_id}/request.json" and not each.is_mark), None)
    record: Json = (asked and _read(bucket, asked)) or {}
    gone = 0
    if "requested_at" in record:
        hour = listing.hour_of(record["requested_at"])
        for outcome in listing.OUTCOMES:
            gone += _delete(bucket, _of(bucket, f"index/hours/{hour}/{outcome}/{run_id}"))
    if upload := _upload(bucket, run_id, record):
        gone += remove_upload(bucket, upload)
    return gone + _delete(bucket, found)


def _upload(bucket: Bucket, run_id: str, record: Json) -> str | None:
    """What the run was given to work on, by its id. It may have named another caller's, or one that another run had
    taken, and was refused."""
    given = record.get("body", {}).get("workspace")
    upload = given.get("upload") if isinstance(given, dict) else None
    if not isinstance(upload, str) or not UPLOAD_ID.fullmatch(upload):
        return None
    offer, used = (bucket.read(f"uploads/{upload}/{name}") or {} for name in ("offer.json", "used"))
    return upload if offer.get("owner") == record["owner"] and used.get("run_id", run_id) == run_id else None


def _said(bucket: Bucket, prefix: str, name: str) -> Iterator[tuple[str, Json]]:
    """What objects `{prefix}{id}/{name}` hold, by their ids: of each the newest version."""
    keys = groupby(versions.below(bucket, prefix), lambda each: each.key)
    for key, found in keys:
        named = key.removeprefix(prefix)
        newest = next((each for each in found if not each.is_mark), None)
        if newest and named.partition("/")[2] == name and (held := _read(bucket, newest)) is not None:
            yield named.partition("/")[0], held


def _sessions_of(bucket: Bucket, owner: str) -> Iterator[str]:
    for key, found in groupby(versions.below(bucket, "session-"), lambda each: each.key):
        newest = next((each for each in found if not each.is_mark), None)
        head: Any = bucket.head(key, VersionId=newest.version_id) if newest else None
        if head and head["Metadata"].get("owner") == owner:
            yield key.removesuffix(".zip")


def _read(bucket: Bucket, version: Version) -> Json | None:
    """The JSON of one version; None where it is gone."""
    try:
        with storage(f"reading {version.key}"):
            got = bucket.s3.get_object(Bucket=bucket.name, Key=version.key, VersionId=version.version_id)
            found: Json = json.loads(got["Body"].read())
            return found
    except Missing:
        return None


def _of(bucket: Bucket, key: str) -> Iterator[Version]:
    """Every version of one object."""
    return (each for each in versions.below(bucket, key) if each.key == key)


def _delete(bucket: Bucket, gone: Iterable[Version]) -> int:
    """As many at a time as S3 takes."""
    count, rest = 0, iter(gone)
    while some := [*islice(rest, BATCH)]:
        versions.delete(bucket, some)
        count += len(some)
    return count
