"""The versions of a session, `{session_id}.zip`: what their metadata say, and which run committed which."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

from lambdas.bucket.objects import Bucket, storage
from lambdas.contract import FORMAT, Base
from lambdas.errors import SessionDamaged, StorageUnavailable

CLAUDE_SESSION = re.compile(r"[0-9A-Za-z-]{1,80}")
"""A conversation's id names directories, so it is nothing but a name."""


BATCH = 1000
"""Versions that S3 deletes at a time."""


class Version(NamedTuple):
    """One version of an object, or a mark that it was deleted."""

    key: str
    version_id: str
    is_mark: bool = False


class SessionVersion(NamedTuple):
    """One version of a session."""

    version_id: str
    at: datetime
    """When it was committed."""
    size: int
    """Bytes of its archive."""


def session_key(session_id: str) -> str:
    """Where a session lies in the bucket."""
    return f"{session_id}.zip"


def newest_of(bucket: Bucket, session_id: str, owner: str) -> Base | None:
    """The newest version of a session, or None if there is none for this owner. Raises `SessionDamaged` where its
    metadata are not what a commit writes, or do not say whose it is."""
    head = bucket.head(session_key(session_id))
    if head is None or head["Metadata"].get("owner", owner) != owner:
        return None
    return _base(session_id, head)


def of(bucket: Bucket, session_id: str, owner: str) -> list[SessionVersion]:
    """The versions of a session that is there, newest first; none if there is none for this owner."""
    key = session_key(session_id)
    head = bucket.head(key)
    if head is None or head["Metadata"].get("owner") != owner:
        return []
    with storage("listing versions"):
        pages = bucket.s3.get_paginator("list_object_versions").paginate(Bucket=bucket.name, Prefix=key)
        found = [each for page in pages for each in page.get("Versions", []) if each["Key"] == key]
    return [SessionVersion(each["VersionId"], each["LastModified"], each["Size"]) for each in found]


def told(bucket: Bucket, session_id: str, version_id: str) -> tuple[Base, dict[str, str]] | None:
    """One version of a session, whoever owns it, with its metadata; None where it is gone. Raises `SessionDamaged`."""
    head = bucket.head(session_key(session_id), VersionId=version_id)
    return (_base(session_id, head), head["Metadata"]) if head else None


def newest(bucket: Bucket, session_id: str) -> tuple[Base, dict[str, str]] | None:
    """The newest version of a session, whoever owns it, with its metadata; for its operator."""
    head = bucket.head(session_key(session_id))
    return (_base(session_id, head), head["Metadata"]) if head else None


def committed(bucket: Bucket, run_id: str, session_id: str, base: Base | None) -> bool:
    """Whether a version between the base and now was committed by this very run."""
    key = session_key(session_id)
    with storage("listing versions"):
        pages = bucket.s3.get_paginator("list_object_versions").paginate(Bucket=bucket.name, Prefix=key)
        versions = [v for page in pages for v in page.get("Versions", []) if v["Key"] == key]
    for version in versions:
        if base and version["VersionId"] == base.version_id:
            return False
        head = bucket.head(key, VersionId=version["VersionId"])
        if head and head["Metadata"].get("run") == run_id:
            return True
    return False


def committed_by(bucket: Bucket, base: Base) -> str | None:
    """The run that committed a version; None where the version is gone."""
    head = bucket.head(session_key(base.session_id), VersionId=base.version_id)
    return head["Metadata"].get("run") if head else None


def below(bucket: Bucket, prefix: str) -> Iterator[Version]:
    """Every version of every object below a prefix, marks of deletion included."""
    with storage(f"listing versions of {prefix}"):
        pages = bucket.s3.get_paginator("list_object_versions").paginate(Bucket=bucket.name, Prefix=prefix)
        for page in pages:
            yield from (Version(entry["Key"], entry["VersionId"]) for entry in page.get("Versions", []))
            yield from (Version(entry["Key"], entry["VersionId"], True) for entry in page.get("DeleteMarkers", []))


def delete(bucket: Bucket, gone: Sequence[Version]) -> None:
    """Deletes versions for good. Raises `StorageUnavailable` also where S3 leaves one of them."""
    for start in range(0, len(gone), BATCH):
        objects = [{"Key": each.key, "VersionId": each.version_id} for each in gone[start : start + BATCH]]
        with storage("deleting versions"):
            done = bucket.s3.delete_objects(Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True})
        for error in done.get("Errors", []):
            why = error.get("Message", error.get("Code"))
            raise StorageUnavailable(detail=f"Not everything is gone: {error['Key']}: {why}")


def _base(session_id: str, head: Any) -> Base:
    metadata = head["Metadata"]
    try:
        base = Base(
            session_id=session_id,
            version_id=head["VersionId"],
            etag=head["ETag"],
            created=metadata["created"],
            turns=int(metadata["turns"]),
            cost_usd=float(metadata["cost-usd"]),
            claude_session=metadata["claude-session"],
            size=head["ContentLength"],
            directory=int(metadata["directory"]),
        )
        wrong = _wrong(base, metadata)
    except (KeyError, ValueError) as error:
        raise SessionDamaged(session_id=session_id, detail=f"metadata of the session: {error!r}") from error
    if wrong:
        raise SessionDamaged(session_id=session_id, detail=f"metadata of the session: {', '.join(wrong)}")
    return base


def _wrong(base: Base, metadata: dict[str, str]) -> list[str]:
    """The names of metadata that no commit writes like this."""
    sane = {
        "owner": bool(metadata["owner"]),
        "format": metadata["format"] == str(FORMAT),
        "turns": base.turns >= 0,
        "cost-usd": isfinite(base.cost_usd) and base.cost_usd >= 0,
        "claude-session": CLAUDE_SESSION.fullmatch(base.claude_session) is not None,
        "directory": 0 < base.directory <= base.size,
    }
    return [name for name, is_sane in sane.items() if not is_sane]
