"""What a run changed, packed: an archive like a session's, with a whiteout for what is gone.

**What changed** is told by fingerprints (see tree.py), against a snapshot of what was restored. Without a snapshot all
is new, and what is packed is a whole session. Members lie one behind the other, in the directory's order; of what is
gone, the topmost path stands for all that was below it.

What is not kept: set-id and sticky bits (a session must not carry privilege into the next run), owners, extended
attributes and access lists, hard links (they become files of their own), holes, sockets, FIFOs and devices.

DEFLATE at level 6: by libdeflate, which takes half of zlib's time for the same size, where a file is deflated at once;
by zlib-ng, streamed, above some MiB, so that memory does not depend on any file's size.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import deflate
from zlib_ng import zlib_ng

from lambdas.archive.format import (
    SECOND,
    WIDE_BYTES,
    Ending,
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
from lambdas.archive.tree import Change, Fingerprint, Keep, Look, Unlocked, amount, naming, shown, unreadable, walk
from lambdas.errors import SessionTooLarge

LEVEL = 6
"""Of DEFLATE."""

NOISE, SAMPLE_BYTES, SAMPLES = 0.97, 512, 64
"""What a sample is deflated to at least, where its file is taken for noise (pictures, archives) and kept as it is: so
much of its bytes. How large a sample is, and of how many the one of a large file is made."""

LOOK_SECONDS, MEMBER_SECONDS, BYTE_SECONDS = 4e-6, 120e-6, 1 / 60e6
"""What looking at a file, packing and committing it, and packing and sending each of its bytes take on a machine that
does nothing else. Measured were 3 µs, and 45 and 40 µs; 80 MB/s are what a function's network gives for what does not
deflate, and what does is not packed faster."""

BUSIEST, PAUSE_SECONDS = 3.0, 0.01
"""How many times longer it takes at the most on a busy machine; and a pause that says nothing of how busy it is."""

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
    """Bytes of the directory of an archive of all that is there (see `format.directory_bytes`)."""


def pack(
    roots: Mapping[str, Path],
    out: BinaryIO,
    limits: Limits,
    keep: Mapping[str, Keep] | None = None,
    since: Mapping[str, Fingerprint] | None = None,
    go_on: Callable[[], None] = lambda: None,
    look: Look | None = None,
) -> Packed:
    """Write what changed in the folders of `roots` (by name in the archive) to `out`: empty, seekable.

    `since` is the snapshot to compare with; without one, all is new. `keep`, for roots of which not all is kept, is
    asked about every path (`claude/projects/…`) once, a folder before its content, and what it refuses is left out,
    a folder with all that is in it. `go_on` is asked for every folder, member and MiB, and may
    raise; `look` sees whatever is there, what is not kept too, before anything is written. Nothing may change the tree
    meanwhile: the run's processes are dead.

    What the run shut against its own user is read all the same, and its mode kept.

    Raises SessionTooLarge, naming the limit that the whole is over, before anything is written (after it for the
    ratio); SessionUnreadable, naming the file, for one that can't be read.
    """
    since = since or {}
    with Unlocked() as unlocked:
        survey = _survey(_listed(roots, keep or {}, unlocked, go_on, look), limits, since)
        writing = _Writing(out, roots, unlocked, go_on)
        members = list(map(writing.member, sorted(survey.changed, key=lambda member: order(member.path))))
    offset, size, crc = out.tell(), 0, 0
    records = sorted([*members, *_whiteouts(members, survey.gone)], key=lambda member: order(member.path))
    for record in map(central_record, records):
        size, crc = size + out.write(record), zlib_ng.crc32(record, crc)
    out.write(end_record(Ending(len(records), offset, size, crc)))
    if dense := _bomb(members, limits):
        raise SessionTooLarge(f"The session's {dense} deflates more than {limits.ratio}-fold, the limit.")
    changes = _changes(members, since, survey.gone)
    return Packed(members, changes, out.tell(), survey.files, survey.directory)


def packing_seconds(
    roots: Mapping[str, Path], keep: Mapping[str, Keep], since: Mapping[str, Fingerprint], clock: Callable[[], float]
) -> float:
    """About how long `pack` would take, sending what it makes, and its commit, if the run ended now. It may go on.

    How long looking takes, by `clock` (in seconds), tells how busy the machine is.
    """
    began = clock()
    found = [amount(root, f"{name}/", since, keep.get(name)) for name, root in roots.items()]
    took = clock() - began
    changed, size, seen = map(sum, zip(*found, strict=True))
    busy = (took - PAUSE_SECONDS) / (LOOK_SECONDS * max(seen, 1))
    return min(max(busy, 1.0), BUSIEST) * (changed * MEMBER_SECONDS + size * BYTE_SECONDS)


Listed = Iterator[list[tuple[str, os.stat_result]]]
"""What is there with its `lstat`, some of it at a time."""


def _listed(
    roots: Mapping[str, Path],
    keep: Mapping[str, Keep],
    unlocked: Unlocked,
    go_on: Callable[[], None],
    look: Look | None,
) -> Listed:
    for name, root in roots.items():
        with naming(name):
            facts = root.lstat()
            if look:
                look(name, facts)
            yield [(name, facts)]
        for entries in walk(root, f"{name}/", keep.get(name), unlocked, look):
            go_on()
            yield entries


class _Survey(NamedTuple):
    """What there is."""

    changed: list[Member]
    """As `lstat` sees it now."""
    gone: set[str]
    files: int
    directory: int


def _survey(listed: Listed, limits: Limits, since: Mapping[str, Fingerprint]) -> _Survey:
    """Raises SessionTooLarge if the whole is."""
    changed, there = list[Member](), list[str]()
    size = folders = fractions = paths = 0
    for entries in listed:
        for path, facts in entries:
            mode, length = facts.st_mode, facts.st_size
            if stat.S_ISDIR(mode):
                folders += 1
            else:
                size += length
            fractions += facts.st_mtime_ns % SECOND != 0
            if since.get(path) != (mode, length, facts.st_ctime_ns, facts.st_ino):  # as in a Fingerprint
                changed.append(_described(path, facts))
        names = [path for path, _ in entries]
        there += names
        paths += sum(map(path_bytes, names))
        directory = directory_bytes(len(there), folders, fractions, paths)
        if excess := limits.exceeded(len(there), size, directory + WIDE_BYTES * len(there)):
            raise SessionTooLarge(f"The session has outgrown the deployment's limit: {excess}.")
    return _Survey(changed, since.keys() - there, len(there) - folders, directory)


def _bomb(members: list[Member], limits: Limits) -> str | None:
    """The member that deflates better than the limits allow, or the whole; None if it is all right."""
    for member in members:
        if limits.inflated(member.size, member.compressed):
            return shown(member.path)
    size, compressed = sum(member.size for member in members), sum(member.compressed for member in members)
    return "archive" if limits.inflated(size, compressed) else None


def _whiteouts(members: list[Member], gone: set[str]) -> Iterator[Member]:
    """Those of what is gone, but for what was in a folder that is gone too, or that is none any more."""
    none = gone | {member.path for member in members if not member.is_folder}
    return (whiteout(path) for path in gone if path.rpartition("/")[0] not in none)


def _changes(members: list[Member], since: Mapping[str, Fingerprint], gone: set[str]) -> list[Change]:
    """What became of files and links; folders are not listed."""

    def was_file(path: str) -> bool:
        return path in since and not stat.S_ISDIR(since[path].mode)

    found = [Change(path, "removed", 0) for path in gone if was_file(path)]
    for member in members:
        if not member.is_folder:
            found.append(Change(member.path, "modified" if was_file(member.path) else "added", member.size))
        elif was_file(member.path):
            found.append(Change(member.path, "removed", 0))
    return sorted(found)


def _described(path: str, facts: os.stat_result) -> Member:
    """A member as far as `lstat` tells it."""
    kind = stat.S_IFMT(facts.st_mode)
    permissions = 0o777 if stat.S_ISLNK(kind) else facts.st_mode & 0o777
    seconds, fraction = divmod(facts.st_mtime_ns, SECOND)
    mtime = min(max(seconds, -(2**31)), 2**31 - 1) * SECOND + fraction
    return Member(path, kind | permissions, mtime, 0 if stat.S_ISDIR(kind) else facts.st_size)


class _Writing:
    """Writes members, one behind the other."""

    def __init__(self, out: BinaryIO, roots: Mapping[str, Path], unlocked: Unlocked, go_on: Callable[[], None]) -> None:
        self._out = out
        self._places = {name: os.fspath(root) for name, root in roots.items()}
        self._unlocked = unlocked
        self._go_on = go_on

    def member(self, described: Member) -> Member:
        """Write one member, which is there as `described` says; as it is in the archive."""
        self._go_on()
        root, _, below = described.path.partition("/")
        start, source = described._replace(offset=self._out.tell()), f"{self._places[root]}/{below}"
        if start.is_file and start.size > _AT_ONCE:
            return self._streamed(start, source)
        content = self._content(start, source)
        _check_size(start, len(content))
        data = _deflated(content) if start.is_file and content else content
        member = start._replace(compressed=len(data), crc=zlib_ng.crc32(content))
        self._out.write(local_header(member) + data)
        return member

    def _content(self, member: Member, source: str) -> bytes:
        """The content of a small file, or the target of a link."""
        if member.is_folder:
            return b""
        if member.is_link:
            with naming(member.path):
                return os.readlink(os.fsencode(source))  # noqa: PTH115 (a Path would tidy the target up)
        with self._opened(member, source) as file:
            return file.read(member.size + 1)

    def _streamed(self, start: Member, source: str) -> Member:
        """Write a large file; its header is written twice, since only the content tells its checksum and size."""
        out = self._out
        out.write(local_header(start))
        size = compressed = crc = 0
        with self._opened(start, source) as file:
            level = 0 if _is_noise(_sample(file, start.size)) else LEVEL
            stream = zlib_ng.compressobj(level, zlib_ng.DEFLATED, -zlib_ng.MAX_WBITS)
            while size <= start.size and (piece := file.read(_CHUNK)):
                self._go_on()
                size, crc = size + len(piece), zlib_ng.crc32(piece, crc)
                compressed += out.write(stream.compress(piece))
        compressed += out.write(stream.flush())
        _check_size(start, size)
        member = start._replace(compressed=compressed, crc=crc)
        end = out.tell()
        out.seek(start.offset)
        out.write(local_header(member))
        out.seek(end)
        return member

    def _opened(self, member: Member, source: str) -> BinaryIO:
        with naming(member.path):
            return os.fdopen(self._unlocked.file(source), "rb", buffering=0)


def _check_size(member: Member, size: int) -> None:
    if size != member.size:
        raise unreadable(member.path, "it changed while it was read")


def _deflated(content: bytes) -> bytes | bytearray:
    middle = len(content) // 2
    noise = len(content) >= 8 * SAMPLE_BYTES and _is_noise(content[middle : middle + SAMPLE_BYTES])
    return deflate.deflate_compress(content, 0 if noise else LEVEL)


def _sample(file: BinaryIO, size: int) -> bytes:
    """Some of a large file, from all over it."""
    pieces = []
    for number in range(SAMPLES):
        file.seek(size // SAMPLES * number)
        pieces.append(file.read(SAMPLE_BYTES))
    file.seek(0)
    return b"".join(pieces)


def _is_noise(sample: bytes) -> bool:
    """Whether DEFLATE makes nothing of it, nor then, it is supposed, of what it is a sample of."""
    return len(deflate.deflate_compress(sample, 1)) > NOISE * len(sample)
