"""What a tree of folders holds, and what of it a run changed: by looking at it, never by reading content."""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, Self

from lambdas.errors import SessionTooLarge, SessionUnreadable

PATH_BYTES = 3000
"""The longest path that a session carries: Linux takes 4,096, and the scratch directory needs some."""


class Fingerprint(NamedTuple):
    """What tells that a file, link or folder changed: no rewrite was seen that kept all four.

    Size and mtime alone miss a rewrite that restores its mtime; the ctime can't be set back. The clock of file times
    may tick every few milliseconds only: see `await_clock_tick`.
    """

    mode: int
    """As `st_mode` has it: the kind too."""
    size: int
    ctime_ns: int
    inode: int


class Change(NamedTuple):
    """One file or link that a run changed."""

    path: str
    """In the archive; where it is not UTF-8, as `os.fsdecode` has it (see `shown`)."""
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


Keep = Callable[[str], bool]
"""Whether a path is of interest; a folder that is not is not entered."""


class Unlocked:
    """What a run shut against its own user, opened to him while this lasts; a context manager. Afterwards all modes are
    as the run left them.

    Nothing may change the tree meanwhile.
    """

    def __init__(self) -> None:
        self._modes: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path, mode in reversed(self._modes):
            os.chmod(path, mode)  # noqa: PTH101 - a Path costs as much again

    def folder(self, path: str, facts: os.stat_result) -> None:
        """Let it be listed, and passed through; `facts` are its `lstat`. Raises OSError where it is another user's."""
        if facts.st_mode & _OPEN != _OPEN and not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            mode = stat.S_IMODE(facts.st_mode)
            os.chmod(path, mode | _OPEN)  # noqa: PTH101 - likewise
            self._modes.append((path, mode))

    def file(self, path: str) -> int:
        """Open a regular file to read, which may be anything by now: nothing here follows a link, or waits."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(path, flags)
        except PermissionError:
            mode = stat.S_IMODE(os.lstat(path).st_mode)
            os.chmod(path, mode | stat.S_IRUSR)  # noqa: PTH101 - likewise
            try:
                return os.open(path, flags)
            finally:
                os.chmod(path, mode)  # noqa: PTH101 - likewise


Look = Callable[[str, os.stat_result], None]
"""Sees a path with its `lstat`."""


def walk(
    root: Path, prefix: str, keep: Keep | None = None, unlocked: Unlocked | None = None, look: Look | None = None
) -> Iterator[list[tuple[str, os.stat_result]]]:
    """Every file, link and folder below `root` with its `lstat`: all of a folder at a time, before what is below.

    Paths begin with `prefix`. Sockets, FIFOs and devices are left out, and not opened: a FIFO would hang; `look` sees
    them, too. Links are never followed. `keep` is asked about every path once. What can't be listed is `unlocked`.
    Raises SessionUnreadable, by name, for what can't be read, and SessionTooLarge for a path of over 3,000 bytes.
    """
    with naming(root.name):
        # A run may have put a link in its place: to / for instance.
        facts = root.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise NotADirectoryError(str(root))
        if unlocked:
            unlocked.folder(str(root), facts)
    base, pending = os.fspath(root), [""]
    while pending:
        parent = pending.pop()
        head, found = f"{parent}/" if parent else "", []
        with naming(parent or root.name), _listing(f"{base}/{parent}") as entries:
            for entry in entries:  # this loop is what a turn costs for what it did not change
                below = head + entry.name
                path = prefix + below
                try:  # no context manager, for its time
                    facts = entry.stat(follow_symlinks=False)
                except OSError as error:
                    raise unreadable(path, str(error)) from error
                kind = facts.st_mode & _KIND
                if look:
                    look(path, facts)
                if kind not in _CARRIED or (keep and not keep(path)):
                    continue
                if len(below) > PATH_BYTES // 4 and len(os.fsencode(below)) > PATH_BYTES:
                    raise SessionTooLarge(
                        f"The session has a path of more than {PATH_BYTES:,} bytes: {shown(path[:100])}…"
                    )
                found.append((path, facts))
                if kind == stat.S_IFDIR:
                    pending.append(below)
                    if unlocked and facts.st_mode & _OPEN != _OPEN:
                        with naming(path):
                            unlocked.folder(f"{base}/{below}", facts)
        yield found


@contextmanager
def _listing(path: str) -> Iterator[Iterator["os.DirEntry[str]"]]:
    """A folder's entries. Through its handle, `lstat` finds each a sixth faster than by the whole path."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(handle) as entries:
            yield entries
    finally:
        os.close(handle)


class Amount(NamedTuple):
    """How much a run has changed by now."""

    changed: int
    """Files, links and folders."""
    size: int
    """Bytes that those hold."""
    seen: int
    """How many there are in all."""


def amount(root: Path, prefix: str, since: Mapping[str, Fingerprint], keep: Keep | None = None) -> Amount:
    """What of the tree that `walk` goes through is not as in a snapshot. The tree may be changing: what is gone
    meanwhile, or shut, is not counted."""
    base, pending = os.fspath(root), [""]
    changed = size = seen = 0
    while pending:
        parent = pending.pop()
        head = f"{parent}/" if parent else ""
        with suppress(OSError), _listing(f"{base}/{parent}" if parent else base) as entries:  # never a link to /
            for entry in entries:
                below = head + entry.name
                path = prefix + below
                if keep and not keep(path):
                    continue
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    seen += 1
                    if since.get(path) != (facts.st_mode, facts.st_size, facts.st_ctime_ns, facts.st_ino):
                        changed += 1
                        size += facts.st_size
                    if stat.S_ISDIR(facts.st_mode):
                        pending.append(below)
    return Amount(changed, size, seen)


def fingerprint(facts: os.stat_result) -> Fingerprint:
    """Out of a file's `lstat`."""
    return Fingerprint(facts.st_mode, facts.st_size, facts.st_ctime_ns, facts.st_ino)


def never(mode: int) -> Fingerprint:
    """What nothing has: that of something which was there, and was replaced before a snapshot could be taken."""
    return Fingerprint(mode, -1, 0, 0)


def await_clock_tick(known: Mapping[str, Fingerprint], where: Path) -> None:
    """Wait until whatever is written next has another ctime than anything `known`: some milliseconds at the most.

    `where` is a folder of the same file system, in which a probe is made and removed.
    """
    newest = max((each.ctime_ns for each in known.values()), default=0)
    probe = where / "probe"
    probe.touch()
    while probe.stat().st_ctime_ns == newest:
        time.sleep(0.001)
        probe.chmod(0o600)
    probe.unlink()


_OPEN = stat.S_IRUSR | stat.S_IXUSR
_CARRIED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_KIND = 0o170000  # what stat.S_IFMT takes of a mode
