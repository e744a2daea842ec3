"""The records of a session's zip: how a member, the directory and the end are written, and read back.

The archive is a plain zip that any tool opens, but of all the ways to write one this file knows one: every
byte of a record follows from the `Member` it describes. So reading is parsing, writing again, and comparing:
whatever this file would not have written (flags, fields that lie, unknown extra fields, a local header that
differs from the directory) is refused without a rule of its own. Only what deserves a better reason is
looked at first.

Per member: UNIX mode in the external attributes (a link is S_IFLNK with its target as content, as Info-ZIP
stores it), mtime in the UT extra field (0x5455, whole seconds, signed, so before 1980 too), the UTF-8 flag
where the name is UTF-8 and not ASCII, raw bytes where it is neither, sizes before the data and never in a
data descriptor, ZIP64 where needed. The archive's comment holds the CRC-32 of the directory: modes stand
nowhere else, and nothing else would notice damage. Bytes that belong to no member are legal: they are what
an incremental commit leaves of replaced members.
"""

import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from lambdas.errors import SessionDamaged
from lambdas.sessions.tree import shown

RECORD_BYTES = 512
"""What a directory record may weigh on average, so that the limit on members limits the directory too."""

RATIO_FROM = 1 << 20
"""Bytes from which a ratio says something: 4 KiB of zeros deflate 200-fold and harm nobody."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_PARSED = struct.Struct("<4s4x2H4x3I2H2xH2x2I")  # of _CENTRAL, without what only writing again checks
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_COMMENT = b"CRC-32 of the directory: %08x"
_END_BYTES = _END.size + len(_COMMENT % 0)
_ZIP64_SIZE = 0xFF00_0000  # not 2**32-1: deflating may make 4 GiB of noise 0.03 % longer
_MAX16, _MAX32 = 0xFFFF, 0xFFFF_FFFF
_UNIX = 3 << 8 | 45


@dataclass(frozen=True)
class Limits:
    """What a session may weigh: packing refuses to make what unpacking would refuse to open."""

    members: int
    """Files, links and directories together."""
    bytes: int
    """Uncompressed content of all members."""
    ratio: int
    """Uncompressed by compressed bytes, of each member and of all together, where that is over 1 MiB."""

    def exceeded(self, members: int, size: int, directory: int = 0) -> str | None:
        """In words, the limit that so many members and bytes of content and directory are over; or None."""
        if members > self.members:
            return f"more than {self.members:,} files, links and directories"
        if size > self.bytes:
            return f"more than {self.bytes:,} bytes"
        if directory > self.members * RECORD_BYTES:
            return f"more than {self.members * RECORD_BYTES:,} bytes of names"
        return None

    def inflated(self, size: int, compressed: int) -> bool:
        """Whether so many bytes out of so few are more than the ratio allows."""
        return size > RATIO_FROM and size > self.ratio * compressed


class Member(NamedTuple):
    """One file, link or directory of an archive."""

    path: str
    """`workspace/…` or `claude/…`, no slash at its end; where it is not UTF-8, as `os.fsdecode` has it."""
    mode: int
    """As `st_mode` has it: the kind, and the nine permission bits."""
    mtime: int
    """Whole seconds since 1970; what 32 bits can't say (before 1901, after 2038) as near as they can."""
    size: int = 0
    compressed: int = 0
    crc: int = 0
    offset: int = 0
    """Where its local header begins."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file: what is asked for a transcript must ask this too."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def data(self) -> int:
        """Where its content begins."""
        return self.offset + len(local_header(self))

    @property
    def end(self) -> int:
        """The first byte after its content: `offset` to `end` can be copied as it is into another archive."""
        return self.data + self.compressed


class Directory(NamedTuple):
    """What the end of an archive says of its directory."""

    members: int
    offset: int
    size: int
    crc: int


def local_header(member: Member) -> bytes:
    """What stands before a member's content; its length depends on path and size alone."""
    sizes, wide = _sizes(member)
    extra = (struct.pack("<2H2Q", 1, 16, *reversed(wide)) if wide else b"") + _ut(member)
    name = _name(member)
    fields = (*_common(member, name), member.crc, *sizes, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", 45 if wide else 20, *fields) + name + extra


def central_record(member: Member) -> bytes:
    """What the directory says of a member."""
    sizes, wide = _sizes(member)
    far = (member.offset,) if member.offset >= _MAX32 else ()
    numbers = (*reversed(wide), *far)
    extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    extra += _ut(member)
    name = _name(member)
    attributes = member.mode << 16 | (0x10 if member.is_directory else 0)
    lengths = (len(name), len(extra), 0, 0, 0)
    fields = (*_common(member, name), member.crc, *sizes, *lengths, attributes, min(member.offset, _MAX32))
    return _CENTRAL.pack(b"PK\1\2", _UNIX, 45 if numbers else 20, *fields) + name + extra


def end_record(directory: Directory) -> bytes:
    """What closes the archive: the end record, before it those of ZIP64 where a number needs them."""
    count, offset, size, crc = directory
    comment = _COMMENT % crc
    plain = (min(count, _MAX16), min(count, _MAX16), min(size, _MAX32), min(offset, _MAX32))
    end = _END.pack(b"PK\5\6", 0, 0, *plain, len(comment)) + comment
    if count < _MAX16 and size < _MAX32 and offset < _MAX32:
        return end
    wide = _END64.pack(b"PK\6\6", _END64.size - 12, _UNIX, 45, 0, 0, count, count, size, offset)
    return wide + _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1) + end


def damaged(reason: str) -> SessionDamaged:
    """The error of an archive that is refused; the reason is for the operator."""
    return SessionDamaged(detail=f"the session's archive is refused: {reason}")


def find_directory(source: BinaryIO) -> Directory:
    """Read the end of an archive (its last 131 bytes); SessionDamaged if it is not whole, or not ours."""
    length = source.seek(0, os.SEEK_END)
    source.seek(max(0, length - _END_BYTES - _LOCATOR.size - _END64.size))
    tail = source.read()
    end = tail[-_END_BYTES:]
    if len(end) < _END_BYTES or not end.startswith(b"PK\5\6"):
        raise damaged("no end record where the archive ends: it is cut, or bytes follow it")
    _, disk, start_disk, _, count, size, offset, _ = _END.unpack_from(end)
    if disk or start_disk:
        raise damaged("the archive spans several disks")
    if count == _MAX16 or size == _MAX32 or offset == _MAX32:
        if len(tail) < _END64.size + _LOCATOR.size + _END_BYTES:
            raise damaged("no ZIP64 end record")
        *_, count, size, offset = _END64.unpack_from(tail)
    digits = end[-8:]
    crc = int(digits, 16) if all(digit in b"0123456789abcdef" for digit in digits) else 0
    directory = Directory(count, offset, size, crc)
    record = end_record(directory)
    if not tail.endswith(record) or offset + size + len(record) != length:
        raise damaged("the end record lies about the archive")
    return directory


def read_members(source: BinaryIO, directory: Directory, limits: Limits) -> Iterator[Member]:
    """Read the directory record by record, none of it checked beyond its form: see `unpack.contents`.

    `source` is only read from `directory.offset` to its end: a window onto a stored object will do.
    """
    if excess := limits.exceeded(directory.members, 0, directory.size):
        raise damaged(f"the archive has {excess}")
    source.seek(directory.offset)
    left, crc = directory.size, 0
    for _ in range(directory.members):
        raw = _read(source, _CENTRAL.size, left)
        names, extras, comments = _CENTRAL.unpack(raw)[10:13]
        raw += _read(source, names + extras + comments, left - len(raw))
        left, crc = left - len(raw), zlib.crc32(raw, crc)
        yield _member(raw)
    if left or crc != directory.crc:
        raise damaged("the directory is not what the end record says")


def _member(raw: bytes) -> Member:
    """The member that a record of the directory describes."""
    fields = _PARSED.unpack_from(raw)
    signature, flags, method, crc, compressed, size, names, extras, disk, attributes, offset = fields
    name, extra = raw[_CENTRAL.size :][:names], raw[_CENTRAL.size + names :][:extras]
    mode, path = attributes >> 16, os.fsdecode(name.removesuffix(b"/"))
    reasons = {
        "the directory is cut or garbled": signature != b"PK\1\2",
        "it is encrypted": flags & 0x2041,
        f"its compression method {method} is unknown": method not in (0, 8),
        "it is on another disk": disk,
        "it is a special file": stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK),
        "it sets the user or group id": mode & 0o7000,
    }
    for reason, applies in reasons.items():
        if applies:
            raise damaged(f"{shown(path)}: {reason}")
    if size == compressed == _MAX32:
        size, compressed, extra = *_numbers(extra, 2), extra[:4] + extra[20:]
    if offset == _MAX32:
        (offset,) = _numbers(extra, 1)
    mtime = int.from_bytes(extra[-4:], "little", signed=True)
    member = Member(path, mode, mtime, size, compressed, crc, offset)
    if central_record(member) != raw:
        raise damaged(f"{shown(path)}: its record is not as a session's archive has it")
    return member


def _numbers(extra: bytes, count: int) -> tuple[int, ...]:
    """The first numbers of a ZIP64 extra field; writing the record again checks the rest of it."""
    if len(extra) < 4 + 8 * count:
        raise damaged("a ZIP64 field is cut")
    return struct.unpack_from(f"<{count}Q", extra, 4)


def _read(source: BinaryIO, size: int, left: int) -> bytes:
    """Exactly so many bytes, from the directory's own."""
    data = source.read(size) if size <= left else b""
    if len(data) != size:
        raise damaged("the directory is cut or garbled")
    return data


def _name(member: Member) -> bytes:
    """The path as the archive has it: raw bytes, a slash after a directory's."""
    return os.fsencode(member.path) + (b"/" if member.is_directory else b"")


def _common(member: Member, name: bytes) -> tuple[int, int, int, int]:
    """Flags, method, and the MS-DOS time and date (UTC, from 1980) for tools that don't read UT."""
    deflated = member.is_file and member.size > 0
    moment = time.gmtime(max(315_532_800, member.mtime))
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    date = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
    return 0 if name.isascii() or not _is_utf8(name) else 0x800, 8 if deflated else 0, clock, date


def _sizes(member: Member) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Compressed and uncompressed size: for the record itself, and for its ZIP64 field if they need one."""
    both = (member.compressed, member.size)
    return ((_MAX32, _MAX32), both) if member.size >= _ZIP64_SIZE else (both, ())


def _ut(member: Member) -> bytes:
    """The extra field of the modification time."""
    return struct.pack("<2HBi", 0x5455, 5, 1, member.mtime)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
