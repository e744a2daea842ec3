"""The next version's directory, out of the last one's and of what a run changed: record by record, content unseen.

Both are sorted (`records.order`), so a change is found by bisection, and everything between two changes is copied as
the bytes that it is. The last version's directory was checked when it was committed, and its checksum is compared: of
its records no more is read than where each begins and where its member lies. What the run staged is a stranger's:
every record of it goes through the strict reader, and what comes of both obeys the rules by which a session is
restored, so that nothing is committed whose directory a restore would refuse.
"""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import NamedTuple

from lambdas.archive.directory import Directory, Span
from lambdas.archive.format import Ending, Limits, Member, central_record, damaged, end_record, misshapen, order
from lambdas.archive.tree import shown
from lambdas.errors import SessionTooLarge


class Placed(NamedTuple):
    """A span of an archive, and where it is in another."""

    span: Span
    at: int


_OFFSET = struct.Struct("<I")
_OFFSET_AT = 42
_WIDE = 0xFFFF_FFFF


class Edit(NamedTuple):
    """Records of the last version, `old` up to `old_end`, that give way to the changes `new` up to `new_end`."""

    old: int
    old_end: int
    new: int
    new_end: int


class Merged:
    """The two as one: which records go and which come, and what the whole then holds."""

    def __init__(self, base: Directory, changes: Directory, edits: Sequence[Edit]) -> None:
        self.base = base
        self.changes = changes
        self.edits = edits
        self.members = len(base)
        self.files, self.size, self.compressed = base.files, base.size, base.compressed
        self.weight = len(base.raw)
        """Bytes of the directory, nearly: offsets beyond 4 GiB take some more."""
        for edit in edits:
            self._add(base, edit.old, edit.old_end, -1)
            self._add(changes, edit.new, edit.new_end, 1)

    def _add(self, directory: Directory, first: int, behind: int, sign: int) -> None:
        self.members += sign * (behind - first)
        self.weight += sign * (directory.starts[behind] - directory.starts[first])
        if behind - first == len(directory):
            files, size, compressed = directory.files, directory.size, directory.compressed
        else:
            found = [directory.member(number) for number in range(first, behind)]
            files = sum(not member.is_folder for member in found)
            size, compressed = sum(member.size for member in found), sum(member.compressed for member in found)
        self.files += sign * files
        self.size += sign * size
        self.compressed += sign * compressed

    def come(self) -> Iterator[Member]:
        """The changes, without whiteouts."""
        for edit in self.edits:
            yield from map(self.changes.member, range(edit.new, edit.new_end))

    def gone(self) -> Iterator[Member]:
        """The members of the last version that are no more, or are replaced."""
        for edit in self.edits:
            yield from map(self.base.member, range(edit.old, edit.old_end))

    def live(self) -> list[Span]:
        """Where the members lie that stay: in ascending order, as few spans as they make."""
        stays = bytearray(b"\1") * len(self.base)
        for first, behind, *_ in self.edits:
            stays[first:behind] = bytes(behind - first)
        offsets, ends, spans = self.base.offsets, self.base.ends, list[Span]()
        begin = end = 0
        for number in sorted(compress(range(len(stays)), stays), key=offsets.__getitem__):
            if offsets[number] != end:
                spans.append((begin, end))
                begin = offsets[number]
            end = ends[number]
        return [span for span in [*spans, (begin, end)] if span[0] < span[1]]

    def directory(self, base: Sequence[Placed], changes: int, offset: int) -> list[bytes | memoryview]:
        """The new directory with its end record, in pieces.

        `base` are the spans of the last version that the new one holds, ascending, `changes` is where the changes'
        bytes begin in it, and `offset` where the directory does.
        """
        old = _Records(self.base, base, offset)
        new = _Records(self.changes, [Placed((0, offset), changes)], offset)
        pieces, at = list[bytes | memoryview](), 0
        for edit in self.edits:
            pieces += [old.between(at, edit.old), new.between(edit.new, edit.new_end)]
            at = edit.old_end
        pieces.append(old.between(at, len(self.base)))
        size = crc = 0
        for piece in pieces:
            size, crc = size + len(piece), zlib.crc32(piece, crc)
        return [*pieces, end_record(Ending(self.members, offset, size, crc))]


class _Records:
    """The records of a directory as they are after their members were moved."""

    def __init__(self, directory: Directory, placed: Sequence[Placed], most: int) -> None:
        self._directory = directory
        self._begins = [span[0] for span, _ in placed]
        self._shifts = [at - span[0] for span, at in placed]
        self._wide = most >= _WIDE or max(directory.offsets, default=0) >= _WIDE
        self._raw = memoryview(directory.raw if self._wide or not any(self._shifts) else self._patched())

    def between(self, first: int, behind: int) -> bytes | memoryview:
        """From one record up to another."""
        starts = self._directory.starts
        if not self._wide:
            return self._raw[starts[first] : starts[behind]]
        members = map(self._directory.member, range(first, behind))
        return b"".join(central_record(m._replace(offset=m.offset + self._shift(m.offset))) for m in members)

    def _patched(self) -> bytearray:
        """The raw records with their new offsets, of which none needs more than 32 bits."""
        raw = bytearray(self._directory.raw)
        for start, offset in zip(self._directory.starts, self._directory.offsets, strict=False):
            # One that is in no span is gone, and its record is not used.
            _OFFSET.pack_into(raw, start + _OFFSET_AT, max(0, offset + self._shift(offset)))
        return raw

    def _shift(self, offset: int) -> int:
        return self._shifts[max(0, bisect_right(self._begins, offset) - 1)]


def merge(base: Directory, changes: Directory, limits: Limits) -> Merged:
    """The last version and what was staged on it as one.

    Raises SessionDamaged, with the reason in `detail`, for changes that no run of ours stages, and SessionTooLarge
    where the whole is over a limit.
    """
    merging, end = _Merging(base), 0
    for number, member in enumerate(changes.members()):
        if limits.inflated(member.size, member.compressed):
            raise damaged(f"{shown(member.path)}: it inflates more than {limits.ratio}-fold")
        if not member.is_whiteout:
            if member.offset != end:
                raise damaged(f"{shown(member.path)}: it does not lie behind the member before it")
            end = member.end
        merging.take(number, member)
    if end != changes.at:
        raise damaged("bytes lie between the last member and the directory")
    merged = Merged(base, changes, merging.edits)
    if excess := limits.exceeded(merged.members, merged.size, merged.weight):
        raise SessionTooLarge(f"The session has outgrown the deployment's limit: {excess}.")
    if limits.inflated(merged.size, merged.compressed):
        raise SessionTooLarge(f"The session deflates more than {limits.ratio}-fold, the limit.")
    return merged


class _Merging:
    """Takes the changes in their order, finds the place of each, and checks that it can stand there."""

    def __init__(self, base: Directory) -> None:
        self.edits: list[Edit] = []
        self._base = base
        self._folders: set[bytes] = {b""}
        """Those in which a change was found to stand, or which is one."""
        self._end: bytes = b"\0"
        """The last change that is no folder: nothing is below it any more."""

    def take(self, number: int, member: Member) -> None:
        key = order(member.path)
        place, there = self._base.find(key)
        if reason := self._refusal(member, key, there):
            raise damaged(f"{shown(member.path)}: {reason}")
        behind = place
        if member.is_folder:
            self._folders.add(key)
            behind += there
        else:
            self._end = key
            behind = self._base.below(place) if there else place
        self._edit(Edit(place, behind, number, number + (not member.is_whiteout)))

    def _edit(self, edit: Edit) -> None:
        """What comes in a row is one edit."""
        if self.edits and (self.edits[-1].old_end, self.edits[-1].new_end) == (edit.old, edit.new):
            before = self.edits.pop()
            edit = Edit(before.old, edit.old_end, before.new, edit.new_end)
        self.edits.append(edit)

    def _refusal(self, member: Member, key: bytes, there: bool) -> str | None:
        reason = misshapen(member)
        if reason:
            return reason
        if member.is_whiteout and not there:
            return "it is said to be gone, and never was there"
        if not self._is_folder(key.rpartition(b"\0")[0]) or key.startswith(self._end + b"\0"):
            return "what it is in is not a directory of the archive"
        return None

    def _is_folder(self, key: bytes) -> bool:
        if key not in self._folders:
            place, there = self._base.find(key)
            if not there or not self._base.member(place).is_folder:
                return False
            self._folders.add(key)
        return True
