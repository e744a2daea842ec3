"""`claude-workflow sessions purge`: what was removed from a session is gone from the bucket, too."""

from collections.abc import Iterator

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.printing import to_stderr
from claude_workflow.cli.sessions.held import held
from lambdas.bucket import versions
from lambdas.bucket.commit import compact
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import Version, session_key

CONTENT = ("changes.zip", "checkpoint.zip", "messages.json", "result.json", "detail.txt")
"""What runs stage that can hold something of a session's files. When they began, and what they cost, stays."""

STAYS = (
    "What stays: what its runs were asked and what they answered, until it expires after 30 days; sessions that were "
    "forked from it; copies that others made. A run of it that failed cannot go on from what it had staged any more."
)


def run(backend: Backend, session_id: str) -> int:
    """0. Raises `Unusable` where there is no such session, or a run is working on it, and botocore's errors."""
    out = to_stderr()
    out.print(purged(Bucket(backend.client("s3"), backend.bucket), session_id), soft_wrap=True)
    out.print(STAYS, style="dim", soft_wrap=True)
    return 0


def purged(bucket: Bucket, session_id: str) -> str:
    """Purges it, and says in a sentence what is gone. Raises `Unusable`."""
    with held(bucket, session_id, "purge"):
        dead, size = _compacted(bucket, session_id)
        old = _old_versions(bucket, session_id)
        staged = list(_staged(bucket, session_id))
        versions.delete(bucket, [*old, *staged])
    if size is None and not old:
        raise Unusable(f"There is no session {session_id}.")
    left = "No version of it is left: it was deleted before." if size is None else f"{size:,} bytes are left of it."
    gone = f"{dead:,} dead bytes, {len(old):,} older versions and {len(staged):,} staged objects are gone."
    return f"{gone} {left}"


def _compacted(bucket: Bucket, session_id: str) -> tuple[int, int | None]:
    """How many dead bytes the newest version had, and how many bytes it has now: None where there is none."""
    found = versions.newest(bucket, session_id)
    if found is None:
        return 0, None
    dead = compact(bucket, *found)
    again = versions.newest(bucket, session_id)
    return dead, again[0].size if again else None


def _old_versions(bucket: Bucket, session_id: str) -> list[Version]:
    """All versions but the newest; all, where the session was deleted."""
    key = session_key(session_id)
    found = versions.newest(bucket, session_id)
    keep = found[0].version_id if found else None
    return [each for each in versions.below(bucket, key) if each.key == key and each.version_id != keep]


def _staged(bucket: Bucket, session_id: str) -> Iterator[Version]:
    """What the session's runs staged: changes, checkpoints, messages."""
    prefix = f"index/sessions/{session_id}/"
    for run_id in [entry["Key"].removeprefix(prefix) for entry in bucket.listed(prefix)]:
        yield from (
            each for each in versions.below(bucket, f"runs/{run_id}/") if each.key.rpartition("/")[2] in CONTENT
        )
