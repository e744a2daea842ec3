"""The corpus of hostile zips, each with what a session's restore refuses it for; and the same as tars and bundles."""

import io
import random
import stat
import tarfile
import zipfile

from lambdas.archive.format import SECOND, Ending, Limits, end_record, whiteout
from tests.support.archives import DIR, FILE, LINK, ROOTS, forged, item, lying, patched
from tests.support.bundles import bundle_of


def with_extra(record: bytes) -> bytes:
    """A directory record with an extra field that nobody knows."""
    return patched(30, "<H", 13)(record) + b"\x99\x99\x00\x00"


def by_zipfile() -> bytes:
    """What Python's own writer makes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("workspace/x", "x")
    return out.getvalue()


X = item("workspace/x", b"content " * 100)
FINE = lying(X, mtime=SECOND + 1)
HUGE = item("workspace/huge", bytes(3 << 20))
NOISE = item("workspace/noise", random.Random(8).randbytes(100_000))
GOOD = forged(*ROOTS, X)
SMALL = Limits(members=4, bytes=1000, ratio=2000)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute path": (forged(*ROOTS, item("/etc/passwd")), "name is not valid"),
    "parent path": (forged(*ROOTS, item("workspace/../../x")), "name is not valid"),
    "dot path": (forged(*ROOTS, item("workspace/./x")), "name is not valid"),
    "empty part": (forged(*ROOTS, item("workspace//x")), "name is not valid"),
    "empty name": (forged(*ROOTS, item("")), "cut or garbled"),
    "NUL in a name": (forged(*ROOTS, item("workspace/a\0b")), "name is not valid"),
    "long part": (forged(*ROOTS, item("workspace/" + "n" * 256)), "name is too long"),
    "long path": (forged(*ROOTS, item("workspace" + "/n" * 2000)), "name is too long"),
    "another root": (forged(*ROOTS, item("other", mode=DIR | 0o755)), "outside of the session's two"),
    "drive letter": (forged(*ROOTS, item("C:\\x")), "outside of the session's two"),
    "root is a file": (forged(item("claude", b"x"), ROOTS[1]), "it is not a directory"),
    "root is a link": (forged(item("claude", b"/tmp", LINK | 0o777), ROOTS[1]), "it is not a directory"),
    "below a link": (
        forged(*ROOTS, item("workspace/l", b"/tmp", LINK | 0o777), item("workspace/l/x", b"x")),
        "not a directory of the archive",
    ),
    "below a link that comes later": (
        forged(*ROOTS, item("workspace/l/x", b"x"), item("workspace/l", b"/tmp", LINK | 0o777)),
        "not a directory of the archive",
    ),
    "below a link to a link": (
        forged(
            *ROOTS,
            item("workspace/a", b"/tmp", LINK | 0o777),
            item("workspace/b", b"a", LINK | 0o777),
            item("workspace/b/d", mode=DIR | 0o755),
        ),
        "not a directory of the archive",
    ),
    "link and directory of one name": (
        forged(
            *ROOTS,
            item("workspace/l", mode=DIR | 0o755),
            item("workspace/l", b"/tmp", LINK | 0o777),
            item("workspace/l/x", b"x"),
        ),
        "there twice",
    ),
    "below a file": (forged(*ROOTS, X, item("workspace/x/y", b"y")), "not a directory of the archive"),
    "no parent": (forged(*ROOTS, item("workspace/no/x")), "not a directory of the archive"),
    "twice": (forged(*ROOTS, X, X), "there twice"),
    "out of order": (forged(*reversed(ROOTS), ordered=False), "out of order"),
    "cut record": (forged(*ROOTS, X, record=lambda record: record[:40]), "cut or garbled"),
    "FIFO": (forged(*ROOTS, item("workspace/f", mode=stat.S_IFIFO | 0o644)), "special file"),
    "device": (forged(*ROOTS, item("workspace/d", mode=stat.S_IFBLK | 0o644)), "special file"),
    "whiteout": (forged(*ROOTS, (whiteout("workspace/x"), b"")), "special file"),
    "socket": (forged(*ROOTS, item("workspace/s", mode=stat.S_IFSOCK | 0o644)), "special file"),
    "no kind": (forged(*ROOTS, item("workspace/n", mode=0o644)), "special file"),
    "set user id": (forged(*ROOTS, item("workspace/s", b"x", FILE | 0o4755)), "user or group id"),
    "set group id": (forged(*ROOTS, item("workspace/s", mode=DIR | 0o2755)), "user or group id"),
    "empty link": (forged(*ROOTS, item("workspace/l", b"", LINK | 0o777)), "not a link target"),
    "NUL in a link": (forged(*ROOTS, item("workspace/l", b"a\0b", LINK | 0o777)), "not a link target"),
    "long link": (forged(*ROOTS, item("workspace/l", b"a" * 5000, LINK | 0o777)), "not a link target"),
    "directory with content": (forged(*ROOTS, item("workspace/d", b"x", DIR | 0o755)), "yet has content"),
    "empty file with content": (forged(*ROOTS, lying(X, size=0)), "no size, yet content"),
    "encrypted": (forged(*ROOTS, X, record=patched(8, "<H", 1)), "encrypted"),
    "strong encryption": (forged(*ROOTS, X, record=patched(8, "<H", 0x41)), "encrypted"),
    "bzip2": (forged(*ROOTS, X, record=patched(10, "<H", 12)), "compression method 12"),
    "stored": (
        forged(*ROOTS, X, record=patched(10, "<H", 0)),
        "not as a session's archive",
    ),
    "data descriptor": (forged(*ROOTS, X, record=patched(8, "<H", 8)), "not as a session's archive"),
    "made on DOS": (forged(*ROOTS, X, record=patched(4, "<H", 20)), "not as a session's archive"),
    "unknown extra field": (forged(*ROOTS, X, record=with_extra), "not as a session's archive"),
    "a fraction of nothing": (forged(*ROOTS, FINE, record=patched(70, "<I", 0)), "not as a session's archive"),
    "a fraction of over a second": (
        forged(*ROOTS, FINE, record=patched(70, "<I", SECOND)),
        "not as a session's archive",
    ),
    "a fraction after the last second": (
        forged(*ROOTS, lying(FINE, mtime=2**31 * SECOND - 1), record=patched(70, "<I", 2**32 - 1)),
        "not as a session's archive",
    ),
    "another local fraction": (forged(*ROOTS, FINE, local=patched(54, "<I", 5)), "local header differs"),
    "ZIP64 without its field": (
        forged(*ROOTS, X, record=patched(42, "<I", 0xFFFFFFFF)),
        "ZIP64 field is cut",
    ),
    "on another disk": (forged(*ROOTS, X, record=patched(34, "<H", 1)), "another disk"),
    "several disks": (GOOD.replace(b"PK\5\6\0\0", b"PK\5\6\1\0"), "several disks"),
    "wrong CRC": (forged(*ROOTS, lying(X, crc=1)), "wrong size or CRC"),
    "link with a wrong CRC": (
        forged(*ROOTS, lying(item("workspace/l", b"a", LINK | 0o777), crc=1)),
        "wrong size or CRC",
    ),
    "bigger than it says": (forged(*ROOTS, lying(X, size=10)), "more than its size"),
    "smaller than it says": (forged(*ROOTS, lying(X, size=5000)), "wrong size or CRC"),
    "compressed data cut": (
        forged(*ROOTS, lying(X, compressed=X[0].compressed - 3)),
        "compressed data are cut",
    ),
    "bytes after the compressed data": (
        forged(*ROOTS, (X[0]._replace(compressed=X[0].compressed + 4), X[1] + b"junk")),
        "compressed data are cut, or more",
    ),
    "no DEFLATE at all": (forged(*ROOTS, (X[0], b"\xff" * len(X[1]))), "invalid"),
    "another local name": (
        forged(*ROOTS, X, local=lambda header: header.replace(b"/x", b"/y")),
        "local header differs",
    ),
    "another local size": (forged(*ROOTS, X, local=patched(22, "<I", 5)), "local header differs"),
    "locally encrypted": (forged(*ROOTS, X, local=patched(6, "<H", 1)), "local header differs"),
    "the same bytes twice": (
        forged(*ROOTS, X, item("workspace/y", b"content " * 100), at=81),
        "another member's too",
    ),
    "into the directory": (forged(*ROOTS, X, at=len(GOOD) - 260), "or the directory's"),
    "beyond the end": (forged(*ROOTS, X, at=1 << 40), "or the directory's"),
    "too many members": (forged(*ROOTS, *(item(f"workspace/{n}") for n in range(3))), "more than 4 files"),
    "too many bytes": (
        forged(*ROOTS, item("workspace/a", b"a" * 500), item("workspace/b", b"b" * 501)),
        "1,000 bytes",
    ),
    "too many bytes of names": (forged(*ROOTS, item("workspace/" + "n" * 2500)), "2,048 bytes of names"),
    "too many bytes, it says": (forged(*ROOTS, lying(X, size=1 << 62)), "1,000 bytes"),
    "bomb": (forged(*ROOTS, HUGE), "archive: it inflates more than 200-fold"),
    "bomb among others": (forged(*ROOTS, HUGE, NOISE), "workspace/huge: it inflates more than 200-fold"),
    "bomb in pieces": (
        forged(*ROOTS, *(item(f"workspace/{number}", bytes(1 << 20)) for number in range(4))),
        "archive: it inflates more than 200-fold",
    ),
    "count too high": (forged(*ROOTS, X, directory=lambda end: end._replace(members=4)), "another number"),
    "count too low": (
        forged(*ROOTS, X, directory=lambda end: end._replace(members=2)),
        "another number",
    ),
    "another checksum": (
        forged(*ROOTS, X, directory=lambda end: end._replace(crc=1)),
        "not what the end record says",
    ),
    "another offset": (forged(*ROOTS, X, directory=lambda end: end._replace(offset=3)), "end record lies"),
    "another size": (forged(*ROOTS, X, directory=lambda end: end._replace(size=9)), "end record lies"),
    "ZIP64 that is not needed": (
        forged(*ROOTS, X, directory=lambda end: end._replace(size=1 << 40)),
        "lies about",
    ),
    "count of ZIP64 without it": (
        GOOD.replace(b"PK\5\6\0\0\0\0\3\0\3\0", b"PK\5\6\0\0\0\0\xff\xff\xff\xff"),
        "end record",
    ),
    "bytes before": (b"#!/bin/sh\n" + GOOD, "end record lies"),
    "bytes after": (GOOD + b"\0", "bytes follow it"),
    "cut": (GOOD[:-1], "it is cut"),
    "its beginning only": (GOOD[: len(GOOD) // 2], "it is cut"),
    "nothing": (b"", "it is cut"),
    "no zip": (b"hello " * 100, "it is cut"),
    "empty directory": (end_record(Ending(0, 5, 0, 0)), "end record lies"),
    "another program's": (by_zipfile(), "no end record"),
}
TIGHT = {"too many members", "too many bytes", "too many bytes of names", "too many bytes, it says"}


DEEP = 200
"""Folders in folders, which are made here by recursion."""
Told = tuple[tuple[bytes, int, bytes], ...]
"""Paths, modes and contents."""


def told(archive: bytes) -> Told:
    """What a hostile zip says of its members, as far as another program reads it; none where none does."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return tuple(_told(opened, entry) for entry in opened.infolist())
    except zipfile.BadZipFile:
        return ()


def _told(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[bytes, int, bytes]:
    try:
        content = opened.read(entry)
    except Exception:  # whatever is wrong with it, a tar can be right about it
        content = b"content"
    return entry.orig_filename.encode("utf-8", "surrogateescape"), entry.external_attr >> 16, content


KINDS = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
}


def as_tar(members: Told) -> bytes:
    """They in a tar, in GNU's format, which takes every name as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, mode, content in members:
            entry = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
            entry.type, entry.mode = KINDS.get(stat.S_IFMT(mode), tarfile.REGTYPE), mode & 0o7777
            if entry.issym():
                entry.linkname = content.decode("utf-8", "surrogateescape")
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def as_bundle(members: Told) -> bytes:
    """They as the tree of a commit: each part of a path as it is, whatever git thinks of it."""
    files = {path: (mode, content) for path, mode, content in members if not stat.S_ISDIR(mode)}
    return bundle_of({path: file for path, file in files.items() if path.count(b"/") < DEEP})


def corpus(form: str) -> dict[str, bytes]:
    """The cases as zips; or as tars or bundles, and then of those with the same paths and kinds the first."""
    if form == "zip":
        return {case: archive for case, (archive, _) in HOSTILE.items()}
    written = {"tar": as_tar, "bundle": as_bundle}[form]
    members = {case: told(archive) for case, (archive, _) in reversed(HOSTILE.items())}
    shapes = {tuple(map(_shape, said)): case for case, said in members.items()}
    return {case: written(members[case]) for case in shapes.values()}


def _shape(member: tuple[bytes, int, bytes]) -> tuple[bytes, int, bytes]:
    path, mode, content = member
    return path, stat.S_IFMT(mode), content if stat.S_ISLNK(mode) else b""
