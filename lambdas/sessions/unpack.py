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
"""

import errno
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lambdas.sessions.archive import ROOTS, bomb
from lambdas.sessions.records import Limits, Member, damaged, find_directory, local_header, read_members
from lambdas.sessions.tree import PATH_BYTES, shown

_CHUNK = 1 << 20
_UNFIT = (errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ)


def unpack(source: BinaryIO, into: Path, limits: Limits) -> list[Member]:
    """Restore an archive into the empty directory `into`, nobody else's, and return what it held.

    `into/workspace` and `into/claude` exist afterwards. Raises SessionDamaged, with the reason in `detail`,
    for whatever is not exactly an archive that `pack` could have made under these limits; what is in `into`
    then is only good for throwing away. OSError is the disk's own trouble (full, read-only).
    """
    if any(into.iterdir()):
        raise ValueError(f"{into} is not empty")
    members = contents(source, limits)
    files = [member for member in members if member.is_file]
    links = [member for member in members if member.is_link]
    directories = sorted(member for member in members if member.is_directory)
    try:
        for path in sorted({*ROOTS, *(member.path for member in directories)}):
            (into / path).mkdir(mode=0o700)
        for member in sorted(files, key=lambda file: file.offset):
            _restore_file(source, member, into / member.path)
        for member in links:
            _restore_link(source, member, into / member.path)
        for member in reversed(directories):
            _restore_directory(source, member, into / member.path)
    except OSError as error:
        if error.errno in _UNFIT:
            raise damaged(f"this file system can't hold it: {error}") from error
        raise
    return members


def contents(source: BinaryIO, limits: Limits) -> list[Member]:
    """The members of an archive in their directory's order, checked in all that can be without their content.

    Raises SessionDamaged. `source` is read from near its end only.
    """
    directory = find_directory(source)
    members = list(read_members(source, directory, limits))
    directories = {""} | {member.path for member in members if member.is_directory}
    seen: set[str] = set()
    for member in members:
        if reason := _refusal(member, directories, seen):
            raise damaged(f"{shown(member.path)}: {reason}")
        seen.add(member.path)
    if excess := limits.exceeded(len(members), sum(member.size for member in members)):
        raise damaged(f"the archive has {excess}")
    if dense := bomb(members, limits):
        raise damaged(f"{dense}: it inflates more than {limits.ratio}-fold")
    end = 0
    for member in sorted(members, key=lambda member: member.offset):
        if member.offset < end or member.end > directory.offset:
            raise damaged(f"{shown(member.path)}: its bytes are another member's too, or the directory's")
        end = member.end
    return members


def inflated(source: BinaryIO, member: Member) -> Iterator[bytes]:
    """A member's content, in pieces; SessionDamaged unless header, size and CRC-32 are the directory's."""
    header = local_header(member)
    source.seek(member.offset)
    if source.read(len(header)) != header:
        raise damaged(f"{shown(member.path)}: its local header differs from the directory")
    size = crc = 0
    try:
        for piece in _inflate(source, member) if member.is_file and member.size else _stored(source, member):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            yield piece
    except zlib.error as error:
        raise damaged(f"{shown(member.path)}: {error}") from error
    if size != member.size or crc != member.crc:
        raise damaged(f"{shown(member.path)}: wrong size or CRC")


def _refusal(member: Member, directories: set[str], seen: set[str]) -> str | None:
    """What is wrong with a member's name, place or kind; None if nothing is."""
    parent, _, name = member.path.rpartition("/")
    parts = member.path.split("/")
    content = bool(member.compressed or member.crc)
    length, last = len(os.fsencode(member.path)), len(os.fsencode(name))
    reasons = {
        "it is there twice": member.path in seen,
        "its name is not valid": "\0" in member.path or not {"", ".", ".."}.isdisjoint(parts),
        "it is outside of the session's two directories": parts[0] not in ROOTS,
        "its name is too long": length > PATH_BYTES + len("workspace/") or last > 255,
        "what it is in is not a directory of the archive": parent not in directories,
        "it is not a directory": not parent and not member.is_directory,
        "it is a directory, yet has content": member.is_directory and (member.size or content),
        "it is no link target": member.is_link and not 0 < member.size == member.compressed < 4096,
        "it has no size, yet content": member.is_file and not member.size and content,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _inflate(source: BinaryIO, member: Member) -> Iterator[bytes]:
    """Raw DEFLATE, never more than the member's size and a byte, and exactly to the end of its bytes."""
    inflate, left, room = zlib.decompressobj(-zlib.MAX_WBITS), member.compressed, member.size + 1
    while not inflate.eof and room:
        data = inflate.unconsumed_tail or source.read(min(_CHUNK, left))
        left -= 0 if inflate.unconsumed_tail else len(data)
        piece = inflate.decompress(data, min(_CHUNK, room))
        if not data and not piece:
            break
        room -= len(piece)
        yield piece
    if not inflate.eof or left or inflate.unused_data:
        raise damaged(f"{shown(member.path)}: its compressed data are cut, or more than its size")


def _stored(source: BinaryIO, member: Member) -> Iterator[bytes]:
    """The content of what is not compressed: a link's target; of a directory or an empty file, none."""
    yield source.read(member.size)


def _restore_file(source: BinaryIO, member: Member, path: Path) -> None:
    """Make one file: exclusively, so that nothing there is opened or followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for piece in inflated(source, member):
            file.write(piece)
        file.flush()
        os.fchmod(file.fileno(), stat.S_IMODE(member.mode))
        os.utime(file.fileno(), (member.mtime, member.mtime))


def _restore_link(source: BinaryIO, member: Member, path: Path) -> None:
    """Make one link: its target is text here, and is not looked at."""
    target = b"".join(inflated(source, member))
    if b"\0" in target:
        raise damaged(f"{shown(member.path)}: it is no link target")
    path.symlink_to(os.fsdecode(target))
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _restore_directory(source: BinaryIO, member: Member, path: Path) -> None:
    """Give a directory its mode and mtime, after all that is in it; the roots stay open to their owner."""
    b"".join(inflated(source, member))
    mode = stat.S_IMODE(member.mode) | (0o700 if member.path in ROOTS else 0)
    path.chmod(mode)
    os.utime(path, (member.mtime, member.mtime))
