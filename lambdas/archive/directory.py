"""A directory as its raw records, and where each of them and its member lies: as much of it as is known at once.

To read ten thousand records takes some hundredths of a second, to find their borders a few thousandths. So what only
needs the borders (a merge, which copies most records as they are; a restore, which begins to ask for the members'
bytes) does not wait for the rest.
"""

import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, Self

from lambdas.archive.format import END_BYTES, Ending, Limits, Member, damaged, ending, order, parsed
from lambdas.archive.tree import shown

_FIELDS = struct.Struct("<20x2I2H10xI")  # compressed size, size, lengths of name and extra fields, offset
_RECORD = 46
_HEADER = 30
"""A local header without its name and its extra fields; those are the record's, but for a member of over 4 GiB."""
_WIDE = 0xFFFF_FFFF
_SLASH = ord("/")


Span = tuple[int, int]
"""Bytes of an archive: from the first up to, and without, the second."""


class Archive(Protocol):
    """Where an archive lies. Several threads read at once."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces as they come; raises rather than giving fewer."""


class Directory:
    """A directory as its raw records, with where each begins and where its member lies: 24 bytes a member.

    Raises SessionDamaged if it is not the one that the end record tells of, or not sorted. What its records say holds
    once `member` has read them, or did when it was committed: until then, a stranger may have written them.
    """

    def __init__(self, raw: bytes, ending: Ending) -> None:
        self.raw = raw
        self.at = ending.offset
        """Where it lies in the archive, and the members' bytes end."""
        self.starts, self.offsets, self.ends = array("Q"), array("Q"), array("Q")
        self.folders = array("Q")
        """The numbers of those whose names end with a slash."""
        self.size = self.compressed = 0
        if len(raw) != ending.size or zlib.crc32(raw) != ending.crc:
            raise damaged("the directory is not what the end record says")
        try:
            self._scan()
        except (struct.error, IndexError) as error:
            raise damaged("the directory is cut or garbled") from error
        if len(self) != ending.members:
            raise damaged("the directory has another number of members than the end record says")

    @classmethod
    def of(cls, archive: Archive, limits: Limits | None = None) -> Self:
        """That of an archive, of which nothing but the end is read. Raises SessionDamaged, also over the limits."""
        end = archive.size
        said = ending(b"".join(archive.read(max(0, end - END_BYTES), end)), end)
        if limits and (excess := limits.exceeded(said.members, 0, said.size)):
            raise damaged(f"the archive has {excess}")
        return cls(b"".join(archive.read(said.offset, said.offset + said.size)), said)

    def _scan(self) -> None:
        raw, position, last, fields = self.raw, 0, b"", _FIELDS.unpack_from
        while position < len(raw):
            compressed, size, names, extras, offset = fields(raw, position)
            start, named = position, position + _RECORD
            name, end = raw[named : named + names], offset + _HEADER + names + extras + compressed
            position = named + names + extras
            if size == _WIDE or offset == _WIDE:
                member = parsed(raw[start:position])
                compressed, size, offset, end = member.compressed, member.size, member.offset, member.end
            self.starts.append(start)
            self.offsets.append(offset)
            self.ends.append(end)
            self.size += size
            self.compressed += compressed
            if name[-1] == _SLASH:
                self.folders.append(len(self.offsets) - 1)
            key = name.removesuffix(b"/").replace(b"/", b"\0")
            if key <= last:
                raise damaged(f"{shown(parsed(raw[start:position]).path)}: it is there twice, or out of order")
            last = key
        self.starts.append(position)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def files(self) -> int:
        """How many are no folders."""
        return len(self) - len(self.folders)

    @cached_property
    def lying(self) -> list[int]:
        """The numbers of the records in the order in which their members lie."""
        return sorted(range(len(self)), key=self.offsets.__getitem__)

    def record(self, number: int) -> bytes:
        """One record, raw."""
        return self.raw[self.starts[number] : self.starts[number + 1]]

    def member(self, number: int) -> Member:
        """What one record says. Raises SessionDamaged unless it is exactly as we write them."""
        return parsed(self.record(number))

    def members(self) -> Iterator[Member]:
        """What all of them say, in their order."""
        return map(self.member, range(len(self)))

    def find(self, key: bytes) -> tuple[int, bool]:
        """Where a key of `format.order` is, or would be, and whether it is there. A path is looked up by `number`."""
        number = bisect_left(range(len(self)), key, key=self._key)
        return number, number < len(self) and self._key(number) == key

    def number(self, path: str) -> int | None:
        """The number of the record of this very path; None where there is none."""
        number, is_there = self.find(order(path))
        # The order has NUL for a slash, so not every path of a key is this path.
        return number if is_there and self.member(number).path == path else None

    def below(self, number: int) -> int:
        """The first record after this one that is not below it."""
        return bisect_left(range(len(self)), self._key(number) + b"\1", lo=number, key=self._key)

    def inside(self, folder: str) -> range:
        """The numbers of a folder's record and of all below it; none where there is no such record."""
        number = self.number(folder)
        return range(0) if number is None else range(number, self.below(number))

    def _key(self, number: int) -> bytes:
        named = self.starts[number] + _RECORD
        names = int.from_bytes(self.raw[named - 18 : named - 16], "little")
        return self.raw[named : named + names].removesuffix(b"/").replace(b"/", b"\0")


NOTHING = Directory(b"", Ending(0, 0, 0, 0))
"""That of a session which is not there yet."""
