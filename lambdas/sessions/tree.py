"""What a directory tree holds, and what of it a run changed: by looking at it, never by reading content."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from lambdas.errors import SessionTooLarge, SessionUnreadable

PATH_BYTES = 3000
"""The longest path that a session carries: Linux takes 4,096, and the scratch directory needs some."""


class Fingerprint(NamedTuple):
    """What tells that a file, link or directory changed: no rewrite was seen that kept all four.

    Size and mtime alone miss a rewrite that restores its mtime; the ctime can't be set back. Clocks of older
    kernels tick every few milliseconds: let 20 ms pass between the snapshot and the first write that it is
    to notice.
    """

    mode: int
    """As `st_mode` has it: the kind too."""
    size: int
    ctime_ns: int
    inode: int


class Change(NamedTuple):
    """One file or link that a run changed."""

    path: str
    """Relative to the root; where it is not UTF-8, as `os.fsdecode` has it (see `shown`)."""
    change: Literal["added", "modified", "removed"]
    size: int
    """Bytes it has now: 0 when removed."""


def shown(path: str) -> str:
    r"""A path for people and JSON: bytes that are not UTF-8 appear as `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def unreadable(path: str, reason: str) -> SessionUnreadable:
    """The error of a file that a session can't carry, by name: it is not to be lost in silence."""
    return SessionUnreadable(
        f"The session's {shown(path)} can't be read, so the session was left as it was.", detail=reason
    )


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn the system's refusal to read a path into the error that names it."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, str(error)) from error


def walk(root: Path, keep: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, os.stat_result]]:
    """Every file, link and directory below `root` with its `lstat`, a directory before its content.

    Sockets, FIFOs and devices are left out, and not opened: a FIFO would hang. Links are never followed.
    `keep` is asked about every relative path once; a directory that it refuses is not entered. Raises
    SessionUnreadable, by name, for what can't be read, and SessionTooLarge for a path of over 3,000 bytes.
    """
    with naming(root.name):
        # A run may have put a link in its place: to / for instance.
        if not stat.S_ISDIR(root.lstat().st_mode):
            raise NotADirectoryError(str(root))
    base, pending = os.fspath(root), [""]
    while pending:
        parent = pending.pop()
        with naming(parent or root.name), os.scandir(f"{base}/{parent}") as listing:
            names = sorted(entry.name for entry in listing)
        for name in names:
            path = f"{parent}/{name}" if parent else name
            with naming(path):
                facts = os.lstat(f"{base}/{path}")
            if not _carried(facts.st_mode) or not keep(path):
                continue
            if len(os.fsencode(path)) > PATH_BYTES:
                raise SessionTooLarge(f"The session has a path of more than {PATH_BYTES:,} bytes: {shown(path[:100])}…")
            yield path, facts
            if stat.S_ISDIR(facts.st_mode):
                pending.append(path)


def snapshot(root: Path) -> dict[str, Fingerprint]:
    """What is below `root` now, by relative path, directories included. Raises as `walk` does."""
    return {
        path: Fingerprint(facts.st_mode, facts.st_size, facts.st_ctime_ns, facts.st_ino) for path, facts in walk(root)
    }


def changes(before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint]) -> list[Change]:
    """What became of files and links between two snapshots, sorted by path; directories are not listed."""
    old, new = _without_directories(before), _without_directories(after)
    found = [Change(path, "removed", 0) for path in old.keys() - new.keys()]
    found += [Change(path, "added", new[path].size) for path in new.keys() - old.keys()]
    found += [Change(path, "modified", new[path].size) for path in new.keys() & old.keys() if new[path] != old[path]]
    return sorted(found)


def _without_directories(entries: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    return {path: entry for path, entry in entries.items() if not stat.S_ISDIR(entry.mode)}


def _carried(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
