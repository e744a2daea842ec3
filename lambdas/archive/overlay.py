"""A version of a session, and what a checkpoint changed of it, read as the one archive that a commit would make."""

from collections.abc import Iterator, Mapping

from lambdas.archive.directory import NOTHING, Archive, Directory
from lambdas.archive.format import Limits
from lambdas.archive.merge import Placed, merge
from lambdas.archive.tree import Fingerprint, never


class Overlay:
    """An `Archive` out of two; `session` is None where there was none before the run.

    Raises SessionDamaged and SessionTooLarge as `merge` does: the checkpoint is a stranger's.
    """

    def __init__(self, session: Archive | None, checkpoint: Archive, limits: Limits) -> None:
        self._checkpoint = checkpoint
        self._session = session
        last = Directory.of(session) if session else NOTHING
        changes = Directory.of(checkpoint, limits.doubled)
        merged = merge(last, changes, limits)
        self._border, self._end = last.at, last.at + changes.at
        self._directory = b"".join(merged.directory([Placed((0, self._border), 0)], self._border, self._end))
        self.size = self._end + len(self._directory)
        self._come = {member.path for member in merged.come()}
        self._gone = {member.path: never(member.mode) for member in merged.gone()}

    def known(self, found: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
        """Of a snapshot of what was restored, the session's own: what the checkpoint changed is still a change."""
        return {path: each for path, each in found.items() if path not in self._come} | self._gone

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces as they come."""
        if self._session and start < min(end, self._border):
            yield from self._session.read(start, min(end, self._border))
        start = max(start, self._border)
        if start < min(end, self._end):
            yield from self._checkpoint.read(start - self._border, min(end, self._end) - self._border)
        start = max(start, self._end)
        if start < end:
            yield self._directory[start - self._end : end - self._end]
