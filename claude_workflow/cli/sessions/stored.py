"""A session as its newest version has it: what S3 and its metadata say, for its operator."""

from collections.abc import Iterator
from dataclasses import dataclass

from claude_workflow.cli.record import READERS, each
from lambdas.bucket import versions
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import session_key
from lambdas.errors import SessionDamaged
from lambdas.strict import Json


@dataclass(frozen=True)
class Stored:
    """One session."""

    session_id: str
    size: int
    """Bytes of its archive."""
    changed: str
    """When its newest version was made: ISO 8601, as `created`."""
    owner: str | None = None
    """None, as all that follows, where its metadata are damaged."""
    created: str | None = None
    turns: int | None = None
    """0 where files were put there, and nobody has asked anything yet."""
    cost_usd: float | None = None
    """Of all its committed runs."""
    files: int | None = None
    """Files and links, those of its conversation too."""
    damage: str | None = None
    """What is wrong with its metadata."""


def stored(bucket: Bucket, session_id: str) -> Stored | None:
    """One session, or None where there is none."""
    key = session_key(session_id)
    return next((_look(bucket, one) for one in bucket.listed(key) if one["Key"] == key), None)


def every(bucket: Bucket) -> Iterator[list[Stored]]:
    """All of them, some 1,000 at a time; what is deleted meanwhile is left out."""
    for page in bucket.pages("session-"):
        archives = [one for one in page if one["Key"].endswith(".zip")]
        found = each(lambda one: _look(bucket, one), archives, READERS)
        yield sorted((one for one in found if one), key=lambda one: one.changed)


def _look(bucket: Bucket, listed: Json) -> Stored | None:
    session_id, changed = listed["Key"].removesuffix(".zip"), f"{listed['LastModified']:%Y-%m-%dT%H:%M:%S}Z"
    try:
        found = versions.newest(bucket, session_id)
        if found is None:
            return None
        base, metadata = found
        files = int(metadata["file-count"])
    except (SessionDamaged, KeyError, ValueError) as error:
        damage = error.detail if isinstance(error, SessionDamaged) else f"file-count: {error!r}"
        return Stored(session_id, listed["Size"], changed, damage=damage)
    owner = metadata["owner"]
    return Stored(session_id, base.size, changed, owner, base.created, base.turns, base.cost_usd, files)
