"""The records of a session's zip: how a member, the directory and the end are written, and read back.

The archive is a plain zip that any tool opens, but of all the ways to write one this file knows one: every
byte of a record follows from the `Member` it describes. So reading is parsing, writing again, and comparing:
whatever this file would not have written (flags, fields that lie, unknown extra fields, a local header that
differs from the directory) is refused without a rule of its own. Only what deserves a better reason is
looked at first.

Per member: UNIX mode in the external attributes (a link is S_IFLNK with its target as content, as Info-ZIP
stores it), mtime in the UT extra field (0x5455, whole seconds, signed, so before 1980 too) and, where it has a
fraction of a second, that in a field of our own (`ns`, nanoseconds in 32 bits), which other tools pass over; the
UTF-8 flag where the name is UTF-8 and not ASCII, raw bytes where it is neither, sizes before the data and never
in a data descriptor, ZIP64 where needed. The archive's comment holds the CRC-32 of the directory: modes stand
nowhere else, and nothing else would notice damage. Bytes that belong to no member are legal: they are what
an incremental commit leaves of replaced members. The directory's order is `order`'s, wherever members lie.

What a run staged is an archive too, of what it changed. It may hold **whiteouts**: records without a local
header, which say that the path is gone, with all that was below it (OverlayFS marks it alike).
"""

import os
import stat
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from lambdas.archive.tree import PATH_BYTES, shown
from lambdas.errors import SessionDamaged

ROOTS = ("workspace", "claude")
"""What an archive holds: the agent's working directory, and what Claude needs to resume."""

RECORD_BYTES = 512
"""What a directory record may weigh on average, so that the limit on members limits the directory too."""

RATIO = 1100
"""DEFLATE makes at most 1,032 bytes of one: zeros are honest; more can only be members that share their bytes."""

RATIO_FROM = 1 << 20
"""Bytes from which a ratio says something: 4 KiB of zeros deflate 200-fold and harm nobody."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_NUMBERS = struct.Struct("<16x3IH8x2I")  # of _CENTRAL, without what only writing again checks
_TOLD = struct.Struct("<4s4x2H22xH2xI4x")  # of _CENTRAL, what a refusal gives as its reason
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_UT = struct.Struct("<5si")  # the extra field of the modification time
_NS = struct.Struct("<4sI")  # that of its fraction; sessions from before there was one open as they are
SECOND = 1_000_000_000
"""Nanoseconds."""
WIDE_BYTES = 28
"""The most that a ZIP64 field takes in the directory."""
_ZIP64_BYTES = 20  # its field in a local header, which has both sizes
_COMMENT = b"CRC-32 of the directory: %08x"
_END_BYTES = _END.size + len(_COMMENT % 0)
END_BYTES = _END_BYTES + _LOCATOR.size + _END64.size
"""The most that an archive's end record takes, ZIP64's included."""
_ZIP64_SIZE = 0xFF00_0000  # not 2**32-1: deflating may make 4 GiB of noise 0.03 % longer
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_NAMELESS = {"", ".", ".."}
_MAX16, _MAX32 = 0xFFFF, 0xFFFF_FFFF
_UNIX = 3 << 8 | 45


@dataclass(frozen=True)
class Limits:
    """What a session may weigh: packing refuses to make what unpacking would refuse to open."""

    members: int
    """Files, links and folders together."""
    bytes: int
    """Uncompressed content of all members."""
    ratio: int
    """Uncompressed by compressed bytes, of each member and of all together, where that is over 1 MiB."""

    @property
    def doubled(self) -> "Limits":
        """Those of staged changes: all of a session may be gone, and another in its place."""
        return Limits(2 * self.members, self.bytes, self.ratio)

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
    """One file, link or folder of an archive."""

    path: str
    """`workspace/…` or `claude/…`, no slash at its end; where it is not UTF-8, as `os.fsdecode` has it."""
    mode: int
    """As `st_mode` has it: the kind, and the nine permission bits."""
    mtime: int
    """Nanoseconds since 1970; whole seconds that 32 bits can't say (before 1901, after 2038) as near as they can."""
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
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether it says that the path is gone: only among staged changes."""
        return self.mode == stat.S_IFCHR

    @property
    def data(self) -> int:
        """Where its content begins."""
        name = path_bytes(self.path) + self.is_folder
        times = _UT.size + (_NS.size if self.mtime % SECOND else 0)
        return self.offset + _LOCAL.size + name + times + (_ZIP64_BYTES if _is_wide(self) else 0)

    @property
    def end(self) -> int:
        """The first byte after its content: `offset` to `end` can be copied as it is into another archive."""
        return self.data + self.compressed


class Ending(NamedTuple):
    """What the end of an archive says of its directory."""

    members: int
    offset: int
    size: int
    crc: int


def whiteout(path: str) -> Member:
    """The record that says that a path is gone, with all below it."""
    return Member(path, stat.S_IFCHR, 0)


def order(path: str) -> bytes:
    """The key by which a directory is sorted: a folder directly before what is in it, names by their bytes."""
    return os.fsencode(path).replace(b"/", b"\0")


def path_bytes(path: str) -> int:
    """Bytes of a path in the directory, without the slash that a folder's has."""
    return len(path) if path.isascii() else len(os.fsencode(path))


def directory_bytes(members: int, folders: int, fractions: int, paths: int) -> int:
    """What an archive of so many members ends with; `fractions` of them have an mtime between two seconds, and `paths`
    are the bytes of all their paths.

    Each member whose size or offset needs more than 32 bits takes up to `WIDE_BYTES` more.
    """
    records = members * (_CENTRAL.size + _UT.size) + fractions * _NS.size + paths + folders
    return records + len(end_record(Ending(members, 0, 0, 0)))


def local_header(member: Member) -> bytes:
    """What stands before a member's content; its length depends on path and size alone."""
    name, wide = _name(member), _is_wide(member)
    sizes = (_MAX32, _MAX32) if wide else (member.compressed, member.size)
    extra = (_zip64(member.size, member.compressed) if wide else b"") + _times(member)
    fields = (*_common(member, name), member.crc, *sizes, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", 45 if wide else 20, *fields) + name + extra


def beside(record: bytes, member: Member) -> bytes:
    """The member's local header; out of its record, in a third of the time, where that has the same fields."""
    if _is_wide(member) or member.offset >= _MAX32:
        return local_header(member)
    return b"PK\3\4" + record[6:32] + record[_CENTRAL.size :]


def central_record(member: Member) -> bytes:
    """What the directory says of a member."""
    name, wide, far = _name(member), _is_wide(member), member.offset >= _MAX32
    sizes = (_MAX32, _MAX32) if wide else (member.compressed, member.size)
    extra = b""
    if wide or far:
        extra = _zip64(*((member.size, member.compressed) if wide else ()), *((member.offset,) if far else ()))
    extra += _times(member)
    lengths = (len(name), len(extra), 0, 0, 0)
    attributes = member.mode << 16 | (0x10 if member.is_folder else 0)
    fields = (*_common(member, name), member.crc, *sizes, *lengths, attributes, _MAX32 if far else member.offset)
    return _CENTRAL.pack(b"PK\1\2", _UNIX, 45 if wide or far else 20, *fields) + name + extra


def end_record(ending: Ending) -> bytes:
    """What closes the archive: the end record, before it those of ZIP64 where a number needs them."""
    count, offset, size, crc = ending
    comment = _COMMENT % crc
    plain = (min(count, _MAX16), min(count, _MAX16), min(size, _MAX32), min(offset, _MAX32))
    end = _END.pack(b"PK\5\6", 0, 0, *plain, len(comment)) + comment
    if count < _MAX16 and size < _MAX32 and offset < _MAX32:
        return end
    wide = _END64.pack(b"PK\6\6", _END64.size - 12, _UNIX, 45, 0, 0, count, count, size, offset)
    return wide + _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1) + end


def misshapen(member: Member) -> str | None:
    """What is wrong with a member's name or kind, wherever it stands; None if nothing is."""
    return _misnamed(member) or _inconsistent(member)


def _misnamed(member: Member) -> str | None:
    path = member.path
    parts = path.split("/")
    if "\0" in path or not _NAMELESS.isdisjoint(parts):
        return "its name is not valid"
    if parts[0] not in ROOTS:
        return "it is outside of the session's two directories"
    if path_bytes(path) > PATH_BYTES + len("workspace/") or path_bytes(parts[-1]) > 255:
        return "its name is too long"
    if len(parts) == 1 and not member.is_folder:
        return "it is not a directory"
    return None


def _inconsistent(member: Member) -> str | None:
    content = member.compressed or member.crc
    if member.is_file:
        return "it has no size, yet content" if content and not member.size else None
    if member.is_folder:
        return "it is a directory, yet has content" if content or member.size else None
    if member.is_link:
        return None if 0 < member.size == member.compressed < 4096 else "it is not a link target"
    return "it is said to be gone, yet is there" if content or member.size or member.offset else None


def damaged(reason: str) -> SessionDamaged:
    """The error of an archive that is refused; the reason is for the operator."""
    return SessionDamaged(detail=f"the session's archive is refused: {reason}")


def ending(tail: bytes, length: int) -> Ending:
    """What the last bytes of an archive of `length` bytes say; SessionDamaged if it is not whole, or not ours."""
    tail = tail[-END_BYTES:]
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
    said = Ending(count, offset, size, crc)
    record = end_record(said)
    if not tail.endswith(record) or offset + size + len(record) != length:
        raise damaged("the end record lies about the archive")
    return said


def parsed(raw: bytes) -> Member:
    """The member that a record of the directory describes; SessionDamaged unless it is exactly as written here."""
    crc, compressed, size, names, attributes, offset = _NUMBERS.unpack_from(raw)
    name, extra = raw[_CENTRAL.size : _CENTRAL.size + names].removesuffix(b"/"), raw[_CENTRAL.size + names :]
    path = name.decode() if name.isascii() else os.fsdecode(name)
    if size == compressed == _MAX32:
        size, compressed, extra = *_wide(extra, 2), extra[:4] + extra[20:]
    if offset == _MAX32:
        (offset,) = _wide(extra, 1)
    times = raw[-_UT.size :] if raw[-_UT.size :].startswith(b"UT") else raw[-_UT.size - _NS.size :]
    seconds, fraction = int.from_bytes(times[5:9], "little", signed=True), int.from_bytes(times[13:], "little")
    mode = attributes >> 16
    member = Member(path, mode, seconds * SECOND + fraction, size, compressed, crc, offset)
    known = (mode & ~0o777 in _KINDS or member.is_whiteout) and fraction < SECOND
    if not known or central_record(member) != raw:
        raise damaged(f"{shown(path)}: {_reason(raw)}")
    return member


def _reason(raw: bytes) -> str:
    """Why a record is refused: what deserves a better reason than that this file would not have written it."""
    signature, flags, method, disk, attributes = _TOLD.unpack_from(raw)
    mode = attributes >> 16
    reasons = {
        "the directory is cut or garbled": signature != b"PK\1\2",
        "it is encrypted": flags & 0x2041,
        f"its compression method {method} is unknown": method not in (0, 8),
        "it is on another disk": disk,
        "it is a special file": stat.S_IFMT(mode) not in _KINDS,
        "it sets the user or group id": mode & 0o7000,
        "its record is not as a session's archive has it": True,
    }
    return next(reason for reason, applies in reasons.items() if applies)


def _wide(extra: bytes, count: int) -> tuple[int, ...]:
    """The first numbers of a ZIP64 extra field; writing the record again checks the rest of it."""
    if len(extra) < 4 + 8 * count:
        raise damaged("a ZIP64 field is cut")
    return struct.unpack_from(f"<{count}Q", extra, 4)


def _name(member: Member) -> bytes:
    """The path as the archive has it: raw bytes, a slash after a folder's."""
    path = member.path
    name = path.encode() if path.isascii() else os.fsencode(path)
    return name + b"/" if member.is_folder else name


def _common(member: Member, name: bytes) -> tuple[int, int, int, int]:
    """Flags, method, and the MS-DOS time and date."""
    flags = 0 if name.isascii() or not _is_utf8(name) else 0x800
    return flags, 8 if member.size and member.is_file else 0, *_dos(member.mtime // SECOND)


def _times(member: Member) -> bytes:
    """The extra fields of the modification time."""
    seconds, fraction = divmod(member.mtime, SECOND)
    field = _UT.pack(b"UT\5\0\1", seconds)
    return field + _NS.pack(b"ns\4\0", fraction) if fraction else field


@lru_cache(4096)
def _dos(seconds: int) -> tuple[int, int]:
    """Time and date in UTC, from 1980, for tools that don't read UT; many files are of one second."""
    moment = time.gmtime(max(315_532_800, seconds))
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    return clock, moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday


def _is_wide(member: Member) -> bool:
    """Whether its sizes need a ZIP64 field."""
    return member.size >= _ZIP64_SIZE


def _zip64(*numbers: int) -> bytes:
    """The extra field of numbers that 32 bits don't hold."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
