"""A session's zip unpacked into the two directories of a run.

**The archive is an attacker's.** What a run leaves was written by a model and its commands, so `unpack`
trusts nothing: every rule is checked on the whole directory before the first byte is written, every member's
size and checksum while it is. Restoring refuses, as `SessionDamaged` with the reason in `detail`: names
outside the two roots, absolute, with `.`, `..`, NUL or empty parts, too long or twice; parents that are not
directories of the archive itself; members that overlap or reach into the directory; special files, set-id
bits, encryption, foreign compression; headers that differ from the directory; more members, bytes or ratio
than the limits; anything cut, and anything that does not check.

**Links are kept as they are, wherever they point, and never followed.** An honest workspace has links that
lead out of it (a virtual environment's `bin/python`), or to nothing, and must open again. A link is only a
danger to privileged code that goes through it; so none of ours does. No member may lie below a link; and
unpacking makes all directories, then all files, and links last, each exclusively, in a directory that was
empty: while it writes, there is no link to go through, on file systems that fold names too. Whoever reads
the tree later with more rights than the agent opens with O_NOFOLLOW.

**Fast.** The directory comes first, with the end of the archive. Members that lie side by side are then asked for
together, some megabytes at a time, by a few threads, each of which makes files of the bytes as they come: what is
held in memory depends on no file's size, and the archive never lies on a disk.
"""

import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from zlib_ng import zlib_ng  # inflates 2.3 times as fast as zlib, and tells of trailing bytes as strictly

from lambdas.sessions.records import (
    ROOTS,
    Limits,
    Member,
    bomb,
    damaged,
    find_directory,
    local_header,
    misshapen,
    read_members,
)
from lambdas.sessions.tree import Fingerprint, fingerprint, shown

SPAN_BYTES = 8 << 20
"""What one request asks for at most, but for a member that is larger."""

GAP_BYTES = 1 << 20
"""Bytes of no member from which it is faster to ask twice than to read them, at 600 Mbit/s and 15 ms a request."""

THREADS = 4
"""Connections at work. Files are made no faster by more than two, but one that waits for S3 makes none."""

_CHUNK = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFIT = (errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ)


class Archive(Protocol):
    """Where an archive lies. Several threads read at once."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces as they come; raises rather than giving fewer."""


def unpack(archive: Archive, into: Path, limits: Limits, owner: int | None = None) -> dict[str, Fingerprint]:
    """Restore an archive into the directories `into/workspace` and `into/claude`, empty or not there, nobody else's.

    With `owner`, all of it is that user's. Returns what is there now, by its path in the archive, as
    `archive.snapshot` would find it. Raises SessionDamaged, with the reason in `detail`, for whatever is not exactly
    an archive that `pack` could have made under these limits; what is in the two is then only good for throwing away.
    OSError is the disk's own trouble (full, read-only).
    """
    for root in ROOTS:
        (into / root).mkdir(mode=0o700, exist_ok=True)
        if any((into / root).iterdir()):
            raise ValueError(f"{into / root} is not empty")
    members = contents(archive, limits)
    directories = sorted(member for member in members if member.is_directory)
    making = _Making(into, owner)
    try:
        for member in directories:
            if member.path not in ROOTS:
                os.mkdir(f"{into}/{member.path}", 0o700)  # noqa: PTH102 (a Path costs as much as the directory)
        for member, target in _restore_files(archive, members, making):
            making.link(member, target)
        for member in reversed(directories):
            making.directory(member)
    except OSError as error:
        if error.errno in _UNFIT:
            raise damaged(f"this file system can't hold it: {error}") from error
        raise
    return making.made


def contents(archive: Archive, limits: Limits) -> list[Member]:
    """The members of an archive in their directory's order, checked in all that can be without their content.

    Raises SessionDamaged. `archive` is read from near its end only.
    """
    window = _Window(archive)
    directory = find_directory(window)
    members = list(read_members(window, directory, limits))
    directories = {""} | {member.path for member in members if member.is_directory}
    seen: set[str] = set()
    for member in members:
        if reason := misshapen(member) or _misplaced(member, directories, seen):
            raise damaged(f"{shown(member.path)}: {reason}")
        seen.add(member.path)
    if excess := limits.exceeded(len(members), sum(member.size for member in members)):
        raise damaged(f"the archive has {excess}")
    if dense := bomb(members, limits):
        raise damaged(f"{dense}: it inflates more than {limits.ratio}-fold")
    end = 0
    for member in sorted(members, key=_offset):
        if member.offset < end or (end := member.end) > directory.offset:
            raise damaged(f"{shown(member.path)}: its bytes are another member's too, or the directory's")
    return members


class _Window:
    """An archive as the file that records are read from."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + (self._archive.size if whence == os.SEEK_END else 0)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        end = self._archive.size if size < 0 else min(self._at + size, self._archive.size)
        return b"".join(self._archive.read(self._at, end)) if self._at < end else b""


class _Stream:
    """Pieces of an archive as they come, and how many of their bytes were taken."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """The next bytes, at least one and at most so many; none if they have ended."""
        if not self._held:
            self._held = memoryview(next(self._pieces, b""))
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def take(self, size: int) -> bytes | memoryview:
        """Exactly so many, unless they end before."""
        taken = self.some(size)
        if len(taken) == size:
            return taken
        parts = [taken]
        while (size := size - len(parts[-1])) and parts[-1]:
            parts.append(self.some(size))
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size and (passed := len(self.some(size))):
            size -= passed


def _misplaced(member: Member, directories: set[str], seen: set[str]) -> str | None:
    """What is wrong with a member's place in a session; None if nothing is."""
    if member.path in seen:
        return "it is there twice"
    if member.path.rpartition("/")[0] not in directories:
        return "what it is in is not a directory of the archive"
    return "it is a special file" if member.is_whiteout else None


def _offset(member: Member) -> int:
    return member.offset


def _spans(members: list[Member]) -> Iterator[list[Member]]:
    """Members that are asked for together, by where they lie: bytes between them that are nobody's come along."""
    span, last = list[Member](), 0
    for member in sorted(members, key=_offset):
        end = member.end
        if span and (member.offset - last >= GAP_BYTES or end - span[0].offset > SPAN_BYTES):
            yield span
            span = []
        span.append(member)
        last = end
    if span:
        yield span


def _restore_files(archive: Archive, members: list[Member], making: "_Making") -> list[tuple[Member, bytes]]:
    """Make all files, and return the links, which are to be made after them."""
    with ThreadPoolExecutor(THREADS, "unpack") as threads:
        spans = [threads.submit(_restore_span, archive, span, making) for span in _spans(members)]
        wait(spans, return_when=FIRST_EXCEPTION)
        threads.shutdown(cancel_futures=True)
    # What failed is raised here: it was begun, so it comes before all that was cancelled.
    return [link for span in spans for link in span.result()]


def _restore_span(archive: Archive, span: list[Member], making: "_Making") -> list[tuple[Member, bytes]]:
    """Make the files of one span; of a link nothing is made yet, and of a directory only the header is looked at."""
    stream, at, links = _Stream(archive.read(span[0].offset, span[-1].end)), span[0].offset, []
    for member in span:
        stream.skip(member.offset - at)
        if member.is_file:
            making.file(member, _inflated(stream, member))
        elif target := b"".join(_inflated(stream, member)):
            links.append((member, target))
        at = member.end
    return links


def _inflated(stream: _Stream, member: Member) -> Iterator[bytes]:
    """A member's content, in pieces; SessionDamaged unless header, size and CRC-32 are the directory's."""
    header = local_header(member)
    if stream.take(len(header)) != header:
        raise damaged(f"{shown(member.path)}: its local header differs from the directory")
    size = crc = 0
    try:
        for piece in _inflate(stream, member) if member.is_file and member.size else _stored(stream, member):
            size, crc = size + len(piece), zlib_ng.crc32(piece, crc)
            yield piece
    except zlib_ng.error as error:  # type: ignore[misc] # its stub declares an instance where there is a class
        raise damaged(f"{shown(member.path)}: {error}") from error
    if size != member.size or crc != member.crc:
        raise damaged(f"{shown(member.path)}: wrong size or CRC")


def _inflate(stream: _Stream, member: Member) -> Iterator[bytes]:
    """Raw DEFLATE, never more than the member's size and a byte, and exactly to the end of its bytes."""
    inflate, left, room = zlib_ng.decompressobj(-zlib_ng.MAX_WBITS), member.compressed, member.size + 1
    while not inflate.eof and room:
        data: bytes | memoryview = inflate.unconsumed_tail
        if not data:
            data = stream.some(min(_CHUNK, left)) if left else b""
            left -= len(data)
        piece = inflate.decompress(data, min(_CHUNK, room))
        if not data and not piece:
            break
        room -= len(piece)
        yield piece
    if not inflate.eof or left or inflate.unused_data:
        raise damaged(f"{shown(member.path)}: its compressed data are cut, or more than its size")


def _stored(stream: _Stream, member: Member) -> Iterator[bytes]:
    """The content of what is not compressed: a link's target; of a directory or an empty file, none."""
    if member.size:
        yield bytes(stream.take(member.size))


class _Making:
    """Makes what is in an archive; threads may share it. After the last change to each, its fingerprint is taken."""

    def __init__(self, into: Path, owner: int | None) -> None:
        self.made: dict[str, Fingerprint] = {}
        self._into = os.fspath(into)
        self._owner = owner

    def file(self, member: Member, content: Iterator[bytes]) -> None:
        """Exclusively, so that nothing that is there is opened or followed."""
        handle = os.open(f"{self._into}/{member.path}", _NEW, 0o600)
        try:
            for piece in content:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            if self._owner is not None:
                os.fchown(handle, self._owner, self._owner)
            os.fchmod(handle, stat.S_IMODE(member.mode))
            os.utime(handle, (member.mtime, member.mtime))
            self.made[member.path] = fingerprint(os.fstat(handle))
        finally:
            os.close(handle)

    def link(self, member: Member, target: bytes) -> None:
        """Its target is text here, and is not looked at."""
        if b"\0" in target:
            raise damaged(f"{shown(member.path)}: it is no link target")
        path = Path(self._into, member.path)
        path.symlink_to(os.fsdecode(target))
        self._finish(member, path)

    def directory(self, member: Member) -> None:
        """Its mode and mtime come after all that is in it; the roots stay open to their owner."""
        path = Path(self._into, member.path)
        path.chmod(stat.S_IMODE(member.mode) | (0o700 if member.path in ROOTS else 0))
        self._finish(member, path)

    def _finish(self, member: Member, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner, self._owner, follow_symlinks=False)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
        self.made[member.path] = fingerprint(path.lstat())
