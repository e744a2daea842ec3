"""Archives made by hand: honest ones, and with one thing spoiled, others."""

import stat
import struct
import zlib
from collections.abc import Callable
from typing import Any

from lambdas.archive.format import SECOND, Ending, Member, central_record, end_record, local_header, order

FILE, LINK, DIR = stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR

Item = tuple[Member, bytes]


def item(path: str, content: bytes = b"", mode: int = FILE | 0o644) -> Item:
    """A member and its bytes as they should be: each case spoils one thing."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(content) + deflate.flush() if content and stat.S_ISREG(mode) else content
    return Member(path, mode, SECOND, len(content), len(data), zlib.crc32(content)), data


def lying(entry: Item, **lies: Any) -> Item:
    """The same bytes under a member that says something else."""
    return entry[0]._replace(**lies), entry[1]


ROOTS = (item("claude", mode=DIR | 0o755), item("workspace", mode=DIR | 0o755))


def unchanged(record: bytes) -> bytes:
    """What an honest writer does to a record."""
    return record


def forged(
    *items: Item,
    local: Callable[[bytes], bytes] = unchanged,
    record: Callable[[bytes], bytes] = unchanged,
    directory: Callable[[Ending], Ending] = unchanged,  # type: ignore[assignment] # the same identity
    at: int | None = None,
    ordered: bool = True,
) -> bytes:
    """An archive of these members; the last one's records, its offset, the end, or the directory's order are spoiled
    as asked."""
    out, entries = bytearray(), list[tuple[bytes, bytes]]()
    for number, (member, data) in enumerate(items):
        last = number == len(items) - 1
        placed = member if member.is_whiteout else member._replace(offset=len(out))
        header = b"" if member.is_whiteout else local_header(placed)
        out += (local(header) if last else header) + data
        entry = central_record(placed if at is None or not last else placed._replace(offset=at))
        entries.append((order(member.path), record(entry) if last else entry))
    records = b"".join(entry for _, entry in (sorted(entries) if ordered else entries))
    end = directory(Ending(len(items), len(out), len(records), zlib.crc32(records)))
    return bytes(out + records + end_record(end))


def patched(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    """A record with one field overwritten."""

    def patch(record: bytes) -> bytes:
        size = struct.calcsize(form)
        return record[:offset] + struct.pack(form, value) + record[offset + size :]

    return patch


def staged(*items: Item, **spoiled: Any) -> bytes:
    """What a run stages: in the directory's order."""
    return forged(*sorted(items, key=lambda item: order(item[0].path)), **spoiled)


def session(**files: bytes) -> bytes:
    """A session, or staged changes of one, with these files in its workspace."""
    return staged(*ROOTS, *(item(f"workspace/{name}", content) for name, content in files.items()))
