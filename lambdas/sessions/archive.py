"""A session as one zip: packed from the two directories of a run.

What is not kept: set-id and sticky bits (a session must not carry privilege into the next run), owners,
fractions of a second, hard links (they become files of their own), sockets, FIFOs and devices.

Python's zlib at level 6 throughout, streamed, so that memory does not depend on any file's size.
"""

import os
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lambdas.errors import SessionTooLarge
from lambdas.sessions.records import (
    Directory,
    Limits,
    Member,
    central_record,
    end_record,
    local_header,
)
from lambdas.sessions.tree import naming, shown, unreadable, walk

ROOTS = ("workspace", "claude")
"""What an archive holds: the agent's working directory, and what Claude needs to resume."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    members: list[Member]
    """In the archive's order."""
    size: int
    """Bytes of the archive."""

    @property
    def files(self) -> int:
        """Files and links, without directories."""
        return sum(not member.is_directory for member in self.members)

    @property
    def bytes(self) -> int:
        """Uncompressed content."""
        return sum(member.size for member in self.members)


def pack(
    roots: Mapping[str, Path], out: BinaryIO, limits: Limits, keep: Callable[[str], bool] = lambda _: True
) -> Packed:
    """Write the directories of `roots` (by name in the archive) as one zip to `out`: empty, seekable.

    `keep` is asked about every path (`claude/projects/…`) once, a directory before its content, and what it
    refuses is left out, a directory with all that is in it. Nothing may change the tree meanwhile: the run's
    processes are dead.

    Raises SessionTooLarge, naming the limit, before anything is written (after it for the ratio); SessionUnreadable,
    naming the file, for one that can't be read.
    """
    planned = _plan(roots, limits, keep)
    members = [_write(out, member, source) for member, source in planned]
    offset, size, crc = out.tell(), 0, 0
    for member in members:
        record = central_record(member)
        size, crc = size + out.write(record), zlib.crc32(record, crc)
    out.write(end_record(Directory(len(members), offset, size, crc)))
    packed = Packed(members, out.tell())
    if dense := bomb(members, limits):
        raise SessionTooLarge(f"The session's {dense} deflates more than {limits.ratio}-fold, the limit.")
    return packed


def _plan(roots: Mapping[str, Path], limits: Limits, keep: Callable[[str], bool]) -> list[tuple[Member, Path]]:
    """All that is to be packed, as `lstat` sees it now, and where it is; or SessionTooLarge."""
    planned: list[tuple[Member, Path]] = []
    size = names = 0
    for name, root in roots.items():
        with naming(name):
            planned.append((_described(name, root.lstat()), root))
        for path, facts in walk(root, _below(name, keep)):
            member = _described(f"{name}/{path}", facts)
            planned.append((member, root / path))
            size, names = size + member.size, names + len(central_record(member))
            if excess := limits.exceeded(len(planned), size, names):
                raise SessionTooLarge(f"The session has outgrown the deployment's limit: {excess}.")
    return planned


def _below(name: str, keep: Callable[[str], bool]) -> Callable[[str], bool]:
    """The predicate on archive paths, as one on paths relative to a root."""
    return lambda path: keep(f"{name}/{path}")


def _described(path: str, facts: os.stat_result) -> Member:
    """A member as far as `lstat` tells it."""
    kind = stat.S_IFMT(facts.st_mode)
    permissions = 0o777 if stat.S_ISLNK(kind) else facts.st_mode & 0o777
    mtime = min(max(facts.st_mtime_ns // 1_000_000_000, -(2**31)), 2**31 - 1)
    return Member(path, kind | permissions, mtime, 0 if stat.S_ISDIR(kind) else facts.st_size)


def _write(out: BinaryIO, planned: Member, source: Path) -> Member:
    """Write one member; its header is written twice, since only the content tells its checksum and size."""
    start = planned._replace(offset=out.tell())
    out.write(local_header(start))
    size, compressed, crc = _write_content(out, start, source)
    if size != planned.size:
        raise unreadable(planned.path, "it changed while it was read")
    member = start._replace(compressed=compressed, crc=crc)
    end = out.tell()
    out.seek(start.offset)
    out.write(local_header(member))
    out.seek(end)
    return member


def _write_content(out: BinaryIO, member: Member, source: Path) -> tuple[int, int, int]:
    """Write a member's content; its size, its compressed size and its CRC-32."""
    if member.is_directory:
        return 0, 0, 0
    if member.is_link:
        with naming(member.path):
            target = os.readlink(os.fsencode(source))  # noqa: PTH115 (a Path would tidy the target up)
        return len(target), out.write(target), zlib.crc32(target)
    with naming(member.path):
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    size = compressed = crc = 0
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    with os.fdopen(handle, "rb", buffering=0) as file:
        while size <= member.size and (piece := file.read(_CHUNK)):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            compressed += out.write(deflate.compress(piece))
    return size, compressed + (out.write(deflate.flush()) if size else 0), crc


def bomb(members: list[Member], limits: Limits) -> str | None:
    """The member that deflates better than the limits allow, or the whole; None if it is all right."""
    for member in members:
        if limits.inflated(member.size, member.compressed):
            return shown(member.path)
    size, compressed = sum(member.size for member in members), sum(member.compressed for member in members)
    return "archive" if limits.inflated(size, compressed) else None
