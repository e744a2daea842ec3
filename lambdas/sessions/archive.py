"""What a run changed, packed: an archive like a session's, with a whiteout for what is gone.

**What changed** is told by fingerprints (see tree.py), against a snapshot of what was restored. Without a snapshot all
is new, and what is packed is a whole session. Members lie one behind the other, in the directory's order; of what is
gone, the topmost path stands for all that was below it.

What is not kept: set-id and sticky bits (a session must not carry privilege into the next run), owners,
fractions of a second, hard links (they become files of their own), sockets, FIFOs and devices.

DEFLATE at level 6: by libdeflate, which takes half of zlib's time for the same size, where a file is deflated at once;
by zlib, streamed, above some MiB, so that memory does not depend on any file's size.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import deflate

from lambdas.errors import SessionTooLarge
from lambdas.sessions.records import (
    WIDE_BYTES,
    Directory,
    Limits,
    Member,
    central_record,
    directory_bytes,
    end_record,
    local_header,
    order,
    path_bytes,
    whiteout,
)
from lambdas.sessions.tree import Change, Fingerprint, Keep, naming, shown, unreadable, walk

LEVEL = 6
"""Of DEFLATE."""

_CHUNK = 1 << 20
_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    members: list[Member]
    """In the archive's order, without whiteouts."""
    changes: list[Change]
    """By their paths in the archive, sorted."""
    size: int
    """Bytes of the archive."""
    session_files: int
    """How many files and links there are, changed or not."""
    session_directory: int
    """Bytes of the directory of an archive of all that is there (see `records.directory_bytes`)."""


def pack(
    roots: Mapping[str, Path],
    out: BinaryIO,
    limits: Limits,
    keep: Mapping[str, Keep] | None = None,
    since: Mapping[str, Fingerprint] | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Packed:
    """Write what changed in the directories of `roots` (by name in the archive) to `out`: empty, seekable.

    `since` is the snapshot to compare with; without one, all is new. `keep`, for roots of which not all is kept, is
    asked about every path (`claude/projects/…`) once, a directory before its content, and what it refuses is left out,
    a directory with all that is in it. `go_on` is asked for every directory, and may raise. Nothing may change the tree
    meanwhile: the run's processes are dead.

    Raises SessionTooLarge, naming the limit that the whole is over, before anything is written (after it for the
    ratio); SessionUnreadable, naming the file, for one that can't be read.
    """
    since = since or {}
    plan = _plan(_listed(roots, keep or {}, go_on), limits, since)
    members = [_write(out, member, roots) for member in sorted(plan.changed, key=lambda member: order(member.path))]
    offset, size, crc = out.tell(), 0, 0
    records = sorted([*members, *_whiteouts(members, plan.gone)], key=lambda member: order(member.path))
    for record in map(central_record, records):
        size, crc = size + out.write(record), zlib.crc32(record, crc)
    out.write(end_record(Directory(len(records), offset, size, crc)))
    if dense := _bomb(members, limits):
        raise SessionTooLarge(f"The session's {dense} deflates more than {limits.ratio}-fold, the limit.")
    changes = _changes(members, since, plan.gone)
    return Packed(members, changes, out.tell(), plan.files, plan.directory)


Listed = Iterator[list[tuple[str, os.stat_result]]]
"""What is there with its `lstat`, some of it at a time."""


def _listed(roots: Mapping[str, Path], keep: Mapping[str, Keep], go_on: Callable[[], None]) -> Listed:
    for name, root in roots.items():
        with naming(name):
            yield [(name, root.lstat())]
        for entries in walk(root, f"{name}/", keep.get(name)):
            go_on()
            yield entries


class _Plan(NamedTuple):
    """What there is."""

    changed: list[Member]
    """As `lstat` sees it now."""
    gone: set[str]
    files: int
    directory: int


def _plan(listed: Listed, limits: Limits, since: Mapping[str, Fingerprint]) -> _Plan:
    """Raises SessionTooLarge if the whole is."""
    changed, there = list[Member](), list[str]()
    size = directories = paths = 0
    for entries in listed:
        for path, facts in entries:
            mode, length = facts.st_mode, facts.st_size
            if stat.S_ISDIR(mode):
                directories += 1
            else:
                size += length
            if since.get(path) != (mode, length, facts.st_ctime_ns, facts.st_ino):  # as in a Fingerprint
                changed.append(_described(path, facts))
        names = [path for path, _ in entries]
        there += names
        paths += sum(map(path_bytes, names))
        directory = directory_bytes(len(there), directories, paths)
        if excess := limits.exceeded(len(there), size, directory + WIDE_BYTES * len(there)):
            raise SessionTooLarge(f"The session has outgrown the deployment's limit: {excess}.")
    return _Plan(changed, since.keys() - there, len(there) - directories, directory)


def _bomb(members: list[Member], limits: Limits) -> str | None:
    """The member that deflates better than the limits allow, or the whole; None if it is all right."""
    for member in members:
        if limits.inflated(member.size, member.compressed):
            return shown(member.path)
    size, compressed = sum(member.size for member in members), sum(member.compressed for member in members)
    return "archive" if limits.inflated(size, compressed) else None


def _whiteouts(members: list[Member], gone: set[str]) -> Iterator[Member]:
    """Those of what is gone, but for what was in a directory that is gone too, or that is none any more."""
    none = gone | {member.path for member in members if not member.is_directory}
    return (whiteout(path) for path in gone if path.rpartition("/")[0] not in none)


def _changes(members: list[Member], since: Mapping[str, Fingerprint], gone: set[str]) -> list[Change]:
    """What became of files and links; directories are not listed."""

    def was_file(path: str) -> bool:
        return path in since and not stat.S_ISDIR(since[path].mode)

    found = [Change(path, "removed", 0) for path in gone if was_file(path)]
    for member in members:
        if not member.is_directory:
            found.append(Change(member.path, "modified" if was_file(member.path) else "added", member.size))
        elif was_file(member.path):
            found.append(Change(member.path, "removed", 0))
    return sorted(found)


def _described(path: str, facts: os.stat_result) -> Member:
    """A member as far as `lstat` tells it."""
    kind = stat.S_IFMT(facts.st_mode)
    permissions = 0o777 if stat.S_ISLNK(kind) else facts.st_mode & 0o777
    mtime = min(max(facts.st_mtime_ns // 1_000_000_000, -(2**31)), 2**31 - 1)
    return Member(path, kind | permissions, mtime, 0 if stat.S_ISDIR(kind) else facts.st_size)


def _write(out: BinaryIO, planned: Member, roots: Mapping[str, Path]) -> Member:
    """Write one member."""
    root, _, below = planned.path.partition("/")
    start, source = planned._replace(offset=out.tell()), roots[root] / below
    if start.is_file and start.size > _AT_ONCE:
        return _write_streamed(out, start, source)
    content = _content(start, source)
    data = deflate.deflate_compress(content, LEVEL) if start.is_file and content else content
    member = start._replace(compressed=len(data), crc=zlib.crc32(content))
    out.write(local_header(member) + data)
    return member


def _content(member: Member, source: Path) -> bytes:
    """The content of a small file, or the target of a link."""
    if member.is_directory:
        return b""
    if member.is_link:
        with naming(member.path):
            content = os.readlink(os.fsencode(source))  # noqa: PTH115 (a Path would tidy the target up)
    else:
        with _opened(member, source) as file:
            content = file.read(member.size + 1)
    if len(content) != member.size:
        raise unreadable(member.path, "it changed while it was read")
    return content


def _write_streamed(out: BinaryIO, start: Member, source: Path) -> Member:
    """Write a large file; its header is written twice, since only the content tells its checksum and size."""
    out.write(local_header(start))
    size = compressed = crc = 0
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    with _opened(start, source) as file:
        while size <= start.size and (piece := file.read(_CHUNK)):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            compressed += out.write(stream.compress(piece))
    compressed += out.write(stream.flush())
    if size != start.size:
        raise unreadable(start.path, "it changed while it was read")
    member = start._replace(compressed=compressed, crc=crc)
    end = out.tell()
    out.seek(start.offset)
    out.write(local_header(member))
    out.seek(end)
    return member


def _opened(member: Member, source: Path) -> BinaryIO:
    """A file that the run left, which may be anything by now: nothing here follows a link, or waits."""
    with naming(member.path):
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.fdopen(handle, "rb", buffering=0)
