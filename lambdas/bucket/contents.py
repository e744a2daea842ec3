"""The files of a session's version, read out of its archive by ranges: its directory, and of a member its own bytes.

What is held in memory is the directory and some blocks, however large the archive is, or the file. The archive is an
attacker's (`archive/unpack.py`), so nothing here is written to a disk, and a file is what its record says, or an error.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Self

from lambdas.archive.directory import Directory
from lambdas.archive.format import Member, beside, damaged, misshapen
from lambdas.archive.inflate import inflated
from lambdas.archive.prefetch import Prefetch, blocks, needed
from lambdas.archive.tree import shown
from lambdas.bucket.objects import Bucket
from lambdas.bucket.parts import Source
from lambdas.bucket.versions import session_key
from lambdas.contract import Base
from lambdas.errors import FileNotFound, SessionNotFound

ROOT = "workspace/"
"""Where the caller's files lie in an archive; the conversation, beside them, is none of them."""


class File(NamedTuple):
    """One file, link or folder of a workspace."""

    path: str
    """Below the workspace; where it is not UTF-8, as `os.fsdecode` has it (see `archive.tree.shown`)."""
    kind: Literal["file", "link", "folder"]
    size: int
    """Bytes of its content: of a link, those of its target."""
    modified: int
    """Nanoseconds since 1970."""
    mode: int
    """The nine permission bits."""


class Contents:
    """What is in the workspace of one version. Raises SessionNotFound where the version is gone, SessionDamaged where
    it is not what a commit makes, and StorageUnavailable."""

    def __init__(self, source: Source, session_id: str) -> None:
        self._source = source
        self._directory = Directory.of(source)
        self._session_id = session_id

    @classmethod
    def of(cls, bucket: Bucket, base: Base) -> Self:
        """Those of this version; its directory is read, in one request."""
        gone = SessionNotFound(session_id=base.session_id)
        pinned = (base.version_id, base.etag)
        return cls(Source(bucket, session_key(base.session_id), base.directory, pinned, gone), base.session_id)

    @property
    def files(self) -> Iterator[File]:
        """All of them, in the directory's order: a folder before what is in it, names by their bytes."""
        inside = self._directory.inside(ROOT.rstrip("/"))
        return (_file(self._directory.member(number)) for number in inside[1:])

    def file(self, path: str) -> File:
        """The one of this path, which is read in one way: byte for byte. Raises FileNotFound."""
        return _file(self._directory.member(self._number(path)))

    def under(self, path: str) -> Iterator[File]:
        """The one of this path and, of a folder, all that is in it. Raises FileNotFound."""
        number = self._number(path)
        members = range(number, self._directory.below(number))
        return (_file(self._directory.member(each)) for each in members)

    def several(self, paths: Iterable[str]) -> Iterator[tuple[File, Iterator[bytes]]]:
        """Files and links of these paths, each with its content, in the order in which they lie, read as one stream: of
        one, whatever is wanted is to be taken before the next. Raises what `open` raises."""
        numbers = sorted(map(self._number, paths), key=self._directory.offsets.__getitem__)
        with Prefetch(self._source, needed(self._directory, numbers)) as content:
            for number in numbers:
                member = self._checked(number)
                content.seek(member.offset)
                yield _file(member), inflated(content, member, beside(self._directory.record(number), member))

    def open(self, path: str) -> Iterator[bytes]:
        """A file's content, or a link's target, in pieces; whether it is as it was kept is known at its end.

        Raises FileNotFound for what is not there, or is a folder; SessionDamaged where size or checksum differ, or
        the member is none that a session may have.
        """
        number = self._number(path)
        member = self._checked(number)
        return self._content(member, beside(self._directory.record(number), member))

    def _content(self, member: Member, header: bytes) -> Iterator[bytes]:
        with Prefetch(self._source, blocks(member.offset, member.end)) as content:
            content.seek(member.offset)
            yield from inflated(content, member, header)

    def _checked(self, number: int) -> Member:
        member = self._directory.member(number)
        if member.is_folder:
            raise FileNotFound("This is a folder of the session, not a file.", session_id=self._session_id)
        if reason := misshapen(member) or (member.end > self._directory.at and "it lies behind the members"):
            raise damaged(f"{shown(member.path)}: {reason}")
        return member

    def _number(self, path: str) -> int:
        number = self._directory.number(ROOT + path)
        if number is None:
            raise FileNotFound(f"The session has no file {shown(path)[:200]}.", session_id=self._session_id)
        return number


def _file(member: Member) -> File:
    kind: Literal["file", "link", "folder"]
    kind = "folder" if member.is_folder else "link" if member.is_link else "file"
    return File(member.path.removeprefix(ROOT), kind, member.size, member.mtime, member.mode & 0o777)
