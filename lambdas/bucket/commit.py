"""The commit of a turn: the session's next version from the one before and from what the run staged, inside S3.

What did not change is copied by S3 from the version that the run was pinned to; what did, from the staged archive,
raw as it was deflated; only a new directory goes through this function. Nothing is taken from the staged archive but
its members' records, each of them checked, and their bytes, unseen: restoring checks those against the records. One
conditional write decides.
"""

from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Self

from lambdas.archive.directory import NOTHING, Archive, Directory
from lambdas.archive.format import WIDE_BYTES, Limits
from lambdas.archive.merge import Merged, merge
from lambdas.bucket.objects import Bucket, ConditionFailed, Missing
from lambdas.bucket.parts import Carried, Layout, Piece, Source, Writing
from lambdas.bucket.relocate import PART, length, relocate
from lambdas.bucket.versions import committed, session_key
from lambdas.contract import Base, Claim, Result
from lambdas.errors import AgentCrashed, SessionDamaged, SessionMoved

DIRECTORY = 1024 * 1024
"""What is read at once of the end of staged changes that are too large to be read whole."""


@dataclass(frozen=True)
class Rules:
    """What a session may become."""

    limits: Limits
    dead_share: float
    """How much of an archive may be bytes of replaced members."""


@dataclass(frozen=True)
class Opened:
    """An archive with its directory; without a source it is that of a session which is not there yet."""

    source: Source | None
    """In the bucket."""
    directory: Directory
    at_hand: Archive | None = None
    """Where it lies if that is not in the bucket: then all of it goes through memory."""


class Commit:
    """A session's next version; a context manager, which leaves nothing behind of one that was not made."""

    def __init__(self, pool: Executor, bucket: Bucket, claim: Claim, rules: Rules) -> None:
        self._pool = pool
        self._bucket = bucket
        self._claim = claim
        self._rules = rules
        self._source = _source(bucket, claim.base) if claim.base else None
        self._begun: _Begun | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self._begun.writing.close()

    def begin(self, staged_bytes: int, metadata: dict[str, str]) -> "_Begun":
        """Read what was staged and the version before, and copy what of it is likely to stay, under what the metadata
        are likely to be: S3 wants them before the first byte. The copies take longest, so they are asked for first.

        Nothing is waited for, and nothing raised. `staged_bytes` is how many are likely to be staged.
        """
        claim = self._claim
        writing = Writing(self._bucket, session_key(claim.session_id), _condition(claim), metadata)
        if claim.base and self._source:
            writing.begin(self._source, claim.base.size - claim.base.directory)
        last = self._pool.submit(_opened, self._source)
        changes = self._pool.submit(_changes, self._bucket, claim, staged_bytes, self._rules.limits)
        self._begun = _Begun(metadata, last, changes, writing)
        return self._begun

    def make(self, result: Result, metadata: dict[str, str]) -> None:
        """Make what was staged the session's next version, if it still is where the run began.

        What is copied first does not wait for what the changes are. Raises `SessionMoved`, unless the version in the
        way is this run's own commit; `AgentCrashed` where what was staged is not there, or nothing that a run of ours
        stages, or the metadata are not those begun with; `SessionTooLarge`; `SessionDamaged` for the version before.
        """
        claim = self._claim
        begun = self._begun or self.begin(result.staged_bytes, metadata)
        if begun.metadata != metadata:
            raise _crashed(claim, "it is not what RunClaude returned")
        try:
            last, changes = begun.last.result(), begun.changes.result()
            merged = _merged(claim, last, changes, self._rules.limits)
            layout = _layout(last, changes, merged, self._rules.dead_share)
            _check(claim, result, merged, layout)
            begun.writing.write(layout)
        except (ConditionFailed, Missing):
            if not committed(self._bucket, claim.run_id, claim.session_id, claim.base):
                raise SessionMoved(session_id=claim.session_id, run_id=claim.run_id) from None


class _Begun(NamedTuple):
    """What is under way."""

    metadata: dict[str, str]
    last: Future[Opened]
    changes: Future[Opened]
    writing: Writing


def compact(bucket: Bucket, base: Base, metadata: dict[str, str]) -> int:
    """Write a session's newest version anew without a dead byte, where it has one; how many bytes it is smaller.

    Raises `ConditionFailed` where the session went on meanwhile, and SessionDamaged.
    """
    last = _opened(_source(bucket, base))
    merged = Merged(last.directory, NOTHING, [])
    dead = last.directory.at - sum(map(length, merged.live()))
    if dead:
        layout = _layout(last, Opened(None, NOTHING), merged, 0.0)
        described = metadata | of_archive(merged.files, layout.directory)
        with closing(Writing(bucket, session_key(base.session_id), {"IfMatch": base.etag}, described)) as writing:
            writing.write(layout)
    return dead


def opened(bucket: Bucket, base: Base | None) -> Opened:
    """A session's version, of which no more is read than its directory. Raises SessionDamaged."""
    return _opened(_source(bucket, base) if base else None)


def put(
    bucket: Bucket,
    session_id: str,
    base: Base | None,
    last: Opened,
    changes: Archive,
    metadata: dict[str, str],
    limits: Limits,
) -> None:
    """Make what was packed at hand a session's next version, without a dead byte: by its operator, without a run.

    It was packed on the version `base`, which is `last`; None for a new session. `run` of the metadata is a name that
    no other commit has. Raises `ConditionFailed` where the session went on meanwhile, SessionTooLarge, SessionDamaged.
    """
    packed = Opened(None, Directory.of(changes), changes)
    merged = merge(last.directory, packed.directory, limits)
    layout = _layout(last, packed, merged, 0.0)
    described = metadata | of_archive(merged.files, layout.directory)
    condition = {"IfMatch": base.etag} if base else {"IfNoneMatch": "*"}
    try:
        with closing(Writing(bucket, session_key(session_id), condition, described)) as writing:
            writing.write(layout)
    except (ConditionFailed, Missing):
        if not committed(bucket, metadata["run"], session_id, base):  # else it met its own work: see bucket/objects.py
            raise ConditionFailed("putting files into a session") from None


def of_archive(files: int, directory: int) -> dict[str, str]:
    """What the metadata say of a session's archive: how many files it has, and bytes of its directory."""
    return {"file-count": str(files), "directory": str(directory)}


def _check(claim: Claim, result: Result, merged: Merged, layout: Layout) -> None:
    """What the metadata say was the run's word; it must be true."""
    more = layout.directory - result.session_directory
    if result.session_files != merged.files or not 0 <= more <= WIDE_BYTES * merged.members:
        detail = f"it told of {result.session_files} files and a directory of {result.session_directory} bytes, and "
        raise _crashed(claim, detail + f"staged {merged.files} and {layout.directory}")


def _source(bucket: Bucket, base: Base) -> Source:
    """The version that the run is pinned to."""
    tail = base.size if base.size <= PART else base.directory
    return Source(bucket, session_key(base.session_id), tail, (base.version_id, base.etag))


def _opened(source: Source | None) -> Opened:
    return Opened(source, Directory.of(source) if source else NOTHING)


def _changes(bucket: Bucket, claim: Claim, size: int, limits: Limits) -> Opened:
    """What the run staged, of about `size` bytes; a stranger's, so whatever is wrong with it is its fault."""
    lost = AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail="what it staged is not there")
    source = Source(bucket, f"{claim.staging}changes.zip", size if size < PART else DIRECTORY, lost=lost)
    try:
        return Opened(source, Directory.of(source, limits.doubled))
    except SessionDamaged as error:
        raise _crashed(claim, error.detail) from error


def _merged(claim: Claim, last: Opened, changes: Opened, limits: Limits) -> Merged:
    try:
        return merge(last.directory, changes.directory, limits)
    except SessionDamaged as error:
        raise _crashed(claim, error.detail) from error


def _crashed(claim: Claim, reason: str) -> AgentCrashed:
    return AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=f"what it staged: {reason}")


def _layout(last: Opened, changes: Opened, merged: Merged, share: float) -> Layout:
    """Where the bytes of the next version come from: what is copied, what goes through memory, the directory."""
    chosen = relocate(merged.live(), last.directory.at, share)
    kept, moved = ([(last.source, span) for span in spans if last.source] for spans in (chosen.copied, chosen.moved))
    end = changes.directory.at
    staged: list[Piece] = [(changes.source, (0, end))] if changes.source and end else []
    at_hand: list[Carried] = [(changes.at_hand, (0, end))] if changes.at_hand and end else []
    large = bool(staged) and end >= PART
    copied: list[Piece] = [*kept, *staged] if large else kept
    carried: list[Carried] = [*moved] if large else [*moved, *staged, *at_hand]
    moved_at = sum(length(span) for _, span in copied)
    offset = moved_at + sum(length(span) for _, span in carried)
    changes_at = (moved_at if large else offset) - end
    return Layout(copied, carried, merged.directory(chosen.placed(moved_at), changes_at, offset))


def _condition(claim: Claim) -> dict[str, str]:
    """The commit holds only if the session still is the version that was restored, or still is not there."""
    same = claim.base is not None and claim.base.session_id == claim.session_id
    return {"IfMatch": claim.base.etag} if claim.base and same else {"IfNoneMatch": "*"}
