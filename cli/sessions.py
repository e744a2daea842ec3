"""`claude-workflow sessions purge`: what was removed from a session is gone from the bucket, too."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cli.backend import Backend
from cli.endpoint import Unusable
from cli.printing import to_stderr
from lambdas.errors import SessionBusy, WorkflowError
from lambdas.sessions.commit import compact
from lambdas.sessions.store import Lease, Missing, Refusal, Store, session_key

LEASE_SECONDS = 900
"""How long a purge may keep runs away. If it takes longer, a run that comes makes it fail, and undoes nothing."""

BATCH = 1000
"""Versions that S3 deletes at a time."""

CONTENT = ("changes.zip", "checkpoint.zip", "messages.json", "result.json", "detail.txt")
"""What runs stage that can hold something of a session's files. When they began, and what they cost, stays."""

STAYS = (
    "What stays: what its runs were asked and what they answered, until it expires after 30 days; sessions that were "
    "forked from it; copies that others made. A run of it that failed cannot go on from what it had staged any more."
)


class Version(NamedTuple):
    """One version of an object, or a mark that it was deleted."""

    key: str
    version_id: str


def purge(backend: Backend, session_id: str) -> int:
    """0. Raises `Unusable` where there is no such session, or a run is working on it, and botocore's errors."""
    store = Store(backend.client("s3"), backend.bucket)
    try:
        with _leased(store, session_id):
            dead, size = _compacted(store, session_id)
            old = _old_versions(store, session_id)
            staged = list(_staged(store, session_id))
            delete(store, [*old, *staged])
    except (Refusal, Missing):
        raise Unusable(f"The session {session_id} has gone on meanwhile. Try again.") from None
    except SessionBusy as busy:
        raise Unusable(f"A run is working on {session_id}. Try again in {busy.retry_after} seconds.") from None
    except WorkflowError as error:
        raise Unusable(error.detail or error.said) from error
    if size is None and not old:
        raise Unusable(f"There is no session {session_id}.")
    left = "No version of it is left: it was deleted before." if size is None else f"{size:,} bytes are left of it."
    out = to_stderr()
    gone = f"{dead:,} dead bytes, {len(old):,} older versions and {len(staged):,} staged objects are gone."
    out.print(f"{gone} {left}", soft_wrap=True)
    out.print(STAYS, style="dim", soft_wrap=True)
    return 0


@contextmanager
def _leased(store: Store, session_id: str) -> Iterator[None]:
    """No run works on the session meanwhile."""
    name = f"purge-{uuid.uuid4()}"
    now = time.time()
    store.lease(session_id, Lease(name, name, now + LEASE_SECONDS), now)
    try:
        yield
    finally:
        store.free(session_id, lambda lease: lease.execution == name)


def _compacted(store: Store, session_id: str) -> tuple[int, int | None]:
    """How many dead bytes the newest version had, and how many bytes it has now: None where there is none."""
    found = store.newest(session_id)
    if found is None:
        return 0, None
    dead = compact(store, *found)
    again = store.newest(session_id)
    return dead, again[0].size if again else None


def _old_versions(store: Store, session_id: str) -> list[Version]:
    """All versions but the newest; all, where the session was deleted."""
    key = session_key(session_id)
    found = store.newest(session_id)
    keep = found[0].version_id if found else None
    return [each for each in versions(store, key) if each.key == key and each.version_id != keep]


def _staged(store: Store, session_id: str) -> Iterator[Version]:
    """What the session's runs staged: changes, checkpoints, messages."""
    prefix = f"index/sessions/{session_id}/"
    pages = store.s3.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix)
    for run_id in [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]:
        yield from (each for each in versions(store, f"runs/{run_id}/") if each.key.rpartition("/")[2] in CONTENT)


def versions(store: Store, prefix: str) -> Iterator[Version]:
    """Every version below a prefix, marks of deletion included. Raises botocore's errors."""
    pages = store.s3.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=prefix)
    for page in pages:
        for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            yield Version(entry["Key"], entry["VersionId"])


def delete(store: Store, gone: list[Version]) -> None:
    """For good. Raises `Unusable` where S3 leaves one of them, and botocore's errors."""
    for start in range(0, len(gone), BATCH):
        objects = [{"Key": key, "VersionId": version} for key, version in gone[start : start + BATCH]]
        done: Any = store.s3.delete_objects(Bucket=store.bucket, Delete={"Objects": objects, "Quiet": True})
        for error in done.get("Errors", []):
            raise Unusable(f"Not everything is gone: {error['Key']}: {error.get('Message', error.get('Code'))}")
