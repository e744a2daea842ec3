"""The next version's directory, out of the last one's and of what a run changed: record by record, content unseen.

Both are sorted (`records.order`), so a change is found by bisection, and everything between two changes is copied as
the bytes that it is. The last version's directory was checked when it was committed, and its checksum is compared: of
its records no more is read than where each begins and where its member lies. What the run staged is a stranger's:
every record of it goes through the strict reader, and what comes of both obeys the rules by which a session is
restored, so that nothing is committed whose directory a restore would refuse.
"""

import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import compress
from typing import NamedTuple

from lambdas.errors import SessionTooLarge
from lambdas.sessions.records import (
    Directory,
    Limits,
    Member,
    central_record,
    damaged,
    end_record,
    misshapen,
    order,
    parsed,
    read_members,
)
from lambdas.sessions.tree import shown

NOTHING = Directory(0, 0, 0, 0)
"""That of a session which is not there yet."""

Run = tuple[int, int]
"""Bytes of an archive: from the first up to, and without, the second."""


class Placed(NamedTuple):
    """A run of an archive, and where it is in another."""

    run: Run
    at: int


_FIELDS = struct.Struct("<20x2I2H10xI")  # compressed size, size, lengths of name and extra fields, offset
_OFFSET = struct.Struct("<I")
_RECORD, _OFFSET_AT = 46, 42
_HEADER = 30 + 9
"""A local header without its name; that of a member of over 4 GiB is longer."""
_WIDE = 0xFFFF_FFFF


class Index:
    """A directory as its raw records, with where each begins and where its member lies: 24 bytes a member.

    Each of its records was read strictly before, now or when it was committed. Raises SessionDamaged if it is not the
    one that the end record tells of, or not sorted.
    """

    def __init__(self, raw: bytes, directory: Directory) -> None:
        self.raw = raw
        self.starts, self.offsets, self.ends = array("Q"), array("Q"), array("Q")
        self.files = self.size = self.compressed = 0
        if zlib.crc32(raw) != directory.crc:
            raise damaged("the directory is not what the end record says")
        self._scan()
        if len(self) != directory.members:
            raise damaged("the directory has another number of members than the end record says")

    def _scan(self) -> None:
        raw, position, last, fields = self.raw, 0, b"", _FIELDS.unpack_from
        while position < len(raw):
            compressed, size, names, extras, offset = fields(raw, position)
            start, named = position, position + _RECORD
            name, end = raw[named : named + names], offset + _HEADER + names + compressed
            position = named + names + extras
            if size == _WIDE or offset == _WIDE:
                member = parsed(raw[start:position])
                compressed, size, offset, end = member.compressed, member.size, member.offset, member.end
            self.starts.append(start)
            self.offsets.append(offset)
            self.ends.append(end)
            self.size += size
            self.compressed += compressed
            self.files += name[-1] != 47  # a directory's ends with a slash
            key = name.removesuffix(b"/").replace(b"/", b"\0")
            if key <= last:
                raise damaged(f"{shown(parsed(raw[start:position]).path)}: it is there twice, or out of order")
            last = key
        self.starts.append(position)

    def __len__(self) -> int:
        return len(self.offsets)

    def member(self, number: int) -> Member:
        """What one record says."""
        return parsed(self.raw[self.starts[number] : self.starts[number + 1]])

    def find(self, key: bytes) -> tuple[int, bool]:
        """Where a key of `records.order` is, or would be, and whether it is there."""
        number = bisect_left(range(len(self)), key, key=self._key)
        return number, number < len(self) and self._key(number) == key

    def below(self, number: int) -> int:
        """The first record after this one that is not below it."""
        return bisect_left(range(len(self)), self._key(number) + b"\1", lo=number, key=self._key)

    def _key(self, number: int) -> bytes:
        named = self.starts[number] + _RECORD
        names = int.from_bytes(self.raw[named - 18 : named - 16], "little")
        return self.raw[named : named + names].removesuffix(b"/").replace(b"/", b"\0")


class Edit(NamedTuple):
    """Records of the last version, `first` up to `behind`, that give way to changes, `change` up to `last`."""

    first: int
    behind: int
    change: int
    last: int


class Merged:
    """The two as one: which records go and which come, and what the whole then holds."""

    def __init__(self, base: Index, changes: Index, edits: Sequence[Edit]) -> None:
        self.base = base
        self.changes = changes
        self.edits = edits
        self.members = len(base)
        self.files, self.size, self.compressed = base.files, base.size, base.compressed
        self.weight = len(base.raw)
        """Bytes of the directory, nearly: offsets beyond 4 GiB take some more."""
        for edit in edits:
            self._add(base, edit.first, edit.behind, -1)
            self._add(changes, edit.change, edit.last, 1)

    def _add(self, index: Index, first: int, behind: int, sign: int) -> None:
        self.members += sign * (behind - first)
        self.weight += sign * (index.starts[behind] - index.starts[first])
        if behind - first == len(index):
            files, size, compressed = index.files, index.size, index.compressed
        else:
            found = [index.member(number) for number in range(first, behind)]
            files = sum(not member.is_directory for member in found)
            size, compressed = sum(member.size for member in found), sum(member.compressed for member in found)
        self.files += sign * files
        self.size += sign * size
        self.compressed += sign * compressed

    def come(self) -> Iterator[Member]:
        """The changes, without whiteouts."""
        for edit in self.edits:
            yield from map(self.changes.member, range(edit.change, edit.last))

    def gone(self) -> Iterator[Member]:
        """The members of the last version that are no more, or are replaced."""
        for edit in self.edits:
            yield from map(self.base.member, range(edit.first, edit.behind))

    def live(self) -> list[Run]:
        """Where the members lie that stay: in ascending order, as few runs as they make."""
        stays = bytearray(b"\1") * len(self.base)
        for first, behind, *_ in self.edits:
            stays[first:behind] = bytes(behind - first)
        offsets, ends, runs = self.base.offsets, self.base.ends, list[Run]()
        begin = end = 0
        for number in sorted(compress(range(len(stays)), stays), key=offsets.__getitem__):
            if offsets[number] != end:
                runs.append((begin, end))
                begin = offsets[number]
            end = ends[number]
        return [run for run in [*runs, (begin, end)] if run[0] < run[1]]

    def directory(self, base: Sequence[Placed], changes: int, offset: int) -> list[bytes | memoryview]:
        """The new directory with its end record, in pieces.

        `base` are the runs of the last version that the new one holds, ascending, `changes` is where the changes'
        bytes begin in it, and `offset` where the directory does.
        """
        old = _Records(self.base, base, offset)
        new = _Records(self.changes, [Placed((0, offset), changes)], offset)
        pieces, at = list[bytes | memoryview](), 0
        for edit in self.edits:
            pieces += [old.between(at, edit.first), new.between(edit.change, edit.last)]
            at = edit.behind
        pieces.append(old.between(at, len(self.base)))
        size = crc = 0
        for piece in pieces:
            size, crc = size + len(piece), zlib.crc32(piece, crc)
        return [*pieces, end_record(Directory(self.members, offset, size, crc))]


class _Records:
    """The records of an index as they are after their members were moved."""

    def __init__(self, index: Index, placed: Sequence[Placed], most: int) -> None:
        self._index = index
        self._begins = [run[0] for run, _ in placed]
        self._shifts = [at - run[0] for run, at in placed]
        self._wide = most >= _WIDE or max(index.offsets, default=0) >= _WIDE
        self._raw = memoryview(index.raw if self._wide or not any(self._shifts) else self._patched())

    def between(self, first: int, behind: int) -> bytes | memoryview:
        """From one record up to another."""
        starts = self._index.starts
        if not self._wide:
            return self._raw[starts[first] : starts[behind]]
        members = map(self._index.member, range(first, behind))
        return b"".join(central_record(m._replace(offset=m.offset + self._shift(m.offset))) for m in members)

    def _patched(self) -> bytearray:
        """The raw records with their new offsets, of which none needs more than 32 bits."""
        raw = bytearray(self._index.raw)
        for start, offset in zip(self._index.starts, self._index.offsets, strict=False):
            # One that is in no run is gone, and its record is not used.
            _OFFSET.pack_into(raw, start + _OFFSET_AT, max(0, offset + self._shift(offset)))
        return raw

    def _shift(self, offset: int) -> int:
        return self._shifts[max(0, bisect_right(self._begins, offset) - 1)]


def merge(base: Index, raw: bytes, directory: Directory, limits: Limits) -> Merged:
    """The last version and what was staged on it, whose directory is `raw`, as one.

    Raises SessionDamaged, with the reason in `detail`, for changes that no run of ours stages, and SessionTooLarge
    where the whole is over a limit.
    """
    merging, end = _Merging(base), 0
    for number, member in enumerate(read_members(BytesIO(raw), directory._replace(offset=0), limits.doubled)):
        if limits.inflated(member.size, member.compressed):
            raise damaged(f"{shown(member.path)}: it inflates more than {limits.ratio}-fold")
        if not member.is_whiteout:
            if member.offset != end:
                raise damaged(f"{shown(member.path)}: it does not lie behind the member before it")
            end = member.end
        merging.take(number, member)
    if end != directory.offset:
        raise damaged("bytes lie between the last member and the directory")
    merged = Merged(base, Index(raw, directory), merging.edits)
    if excess := limits.exceeded(merged.members, merged.size, merged.weight):
        raise SessionTooLarge(f"The session has outgrown the deployment's limit: {excess}.")
    if limits.inflated(merged.size, merged.compressed):
        raise SessionTooLarge(f"The session deflates more than {limits.ratio}-fold, the limit.")
    return merged


class _Merging:
    """Takes the changes in their order, finds the place of each, and checks that it can stand there."""

    def __init__(self, base: Index) -> None:
        self.edits: list[Edit] = []
        self._base = base
        self._directories: set[bytes] = {b""}
        """Those in which a change was found to stand, or which is one."""
        self._end: bytes = b"\0"
        """The last change that is no directory: nothing is below it any more."""

    def take(self, number: int, member: Member) -> None:
        key = order(member.path)
        place, there = self._base.find(key)
        if reason := self._refusal(member, key, there):
            raise damaged(f"{shown(member.path)}: {reason}")
        behind = place
        if member.is_directory:
            self._directories.add(key)
            behind += there
        else:
            self._end = key
            behind = self._base.below(place) if there else place
        self._edit(Edit(place, behind, number, number + (not member.is_whiteout)))

    def _edit(self, edit: Edit) -> None:
        """What comes in a row is one edit."""
        if self.edits and (self.edits[-1].behind, self.edits[-1].last) == (edit.first, edit.change):
            before = self.edits.pop()
            edit = Edit(before.first, edit.behind, before.change, edit.last)
        self.edits.append(edit)

    def _refusal(self, member: Member, key: bytes, there: bool) -> str | None:
        reason = misshapen(member)
        if reason:
            return reason
        if member.is_whiteout and not there:
            return "it is said to be gone, and never was there"
        if not self._is_directory(key.rpartition(b"\0")[0]) or key.startswith(self._end + b"\0"):
            return "what it is in is not a directory of the archive"
        return None

    def _is_directory(self, key: bytes) -> bool:
        if key not in self._directories:
            place, there = self._base.find(key)
            if not there or not self._base.member(place).is_directory:
                return False
            self._directories.add(key)
        return True
