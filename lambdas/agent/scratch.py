"""The directory of one run: made before it, gone after it, and swept where its function was killed.

Everything of a run lies under it and is started through one launcher script, behind a sandbox.
"""

import fcntl
import itertools
import os
import re
import shlex
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lambdas.agent import launch
from lambdas.agent.processes import kill_left
from lambdas.agent.sandbox import OPEN, Sandbox
from lambdas.errors import Internal, SessionBusy

if TYPE_CHECKING:
    from lambdas.agent.proxy import Proxy

LOCK_SECONDS = 1.0
"""How long a run waits for its directory: who takes away what was left there holds it for some milliseconds."""

UNSEEN, ENTRY_BYTES = 20_000, 12
"""For how many files a directory counts that cannot be looked into: for `UNSEEN`, which is as many as there is always
time for, or for what its own size has room for at ext4's least, whichever is more."""

HELD = 100
"""How many directories a count holds open; a tree that branches at more levels than that is taken for crowded."""

SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The name of a run's scratch directory: Claude's id of the session."""

GONE = ".gone-"
"""Follows that name in the name of a directory on its way out."""


class Scratch:
    """The directory of one run, empty on entering and gone on leaving. A context manager.

    `root` is to be the same for every run of a session, because transcripts hold absolute paths, and of no other
    session. `sandbox` says whose the agent's directories are. What an earlier run left there is removed first. Entering
    raises SessionBusy if another run in this machine uses it, and Internal if its parent belongs to someone else.
    """

    def __init__(self, root: Path, sandbox: Sandbox = OPEN) -> None:
        self.root = root
        self.sandbox = sandbox
        self.workspace = root / "workspace"
        """The agent's working directory."""
        self.claude = root / "claude"
        """CLAUDE_CONFIG_DIR: transcripts are in its `projects/`."""
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.private = root / "private"
        """Ours: the launcher, and what is handed to the CLI as a file."""
        self.landing = root / "landing"
        """Ours, and shut to the agent: where a session lands while the agent has begun."""

    def __enter__(self) -> Self:
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(self.root.parent):
            raise Internal(detail=f"{self.root.parent} is not ours")
        self._lock = _lock(self.root, LOCK_SECONDS)
        try:
            wipe(self.root)
            for directory in (self.root, self.private, *self._its_own, self.landing):
                directory.mkdir(mode=0o700)
            self._hand_over()
        except BaseException:
            _unlock(self.root, self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            wipe(self.root)
        finally:
            _unlock(self.root, self._lock)

    def clear(self) -> None:
        """Remove what no session keeps; a disk that the agent filled has room then."""
        wipe(self.home)
        wipe(self.tmp)

    @property
    def _its_own(self) -> tuple[Path, ...]:
        return (self.workspace, self.claude, self.home, self.tmp)

    def _hand_over(self) -> None:
        """Give the agent's user, if it has one of its own, its directories, which are empty yet."""
        uid = self.sandbox.uid
        if uid is None:
            return
        self.root.parent.chmod(0o711)  # to be passed through, not to be listed
        for directory in (self.root, self.private):
            os.chown(directory, -1, uid)
            directory.chmod(0o750)
        for own in self._its_own:
            os.chown(own, uid, uid)

    def furnish(self, files: Mapping[str, str]) -> None:
        """Put files into the agent's home, by their paths there: its own, before anything of its runs."""
        for path, text in files.items():
            file = self.home / path
            for made in [each for each in (file.parent, file) if each != self.home]:
                made.write_text(text) if made == file else made.mkdir(mode=0o700, exist_ok=True)
                if self.sandbox.uid is not None:
                    os.chown(made, self.sandbox.uid, self.sandbox.uid)
            file.chmod(0o600)

    def launcher(
        self,
        program: Path,
        environment: Mapping[str, str],
        proxy: "Proxy | None" = None,
        *,
        read: Sequence[Path] = (),
        instead: str = "",
    ) -> Path:
        """Write a script that becomes `program` in the sandbox, with its own arguments and exactly this environment.
        It is to be started once.

        `proxy` is what it may reach, if anything; `read` is what it may read beside its own and the system's; `instead`
        names the module of `lambdas.agent` whose `main` it is (see `launch.main`). The SDK starts the CLI with the
        whole environment of this process below the one it is given. Between its fork and this script's exec no code of
        the model's runs yet.
        """
        shown = self.sandbox.reachable(program, self.root.parent)
        handoff = self.private if proxy and self.sandbox.its_own_network else None
        if proxy and handoff:
            proxy.expect(handoff)
        port = proxy.port if proxy else None
        orders = self.sandbox.orders(shown, environment, [self.private, *read], self._its_own, port, handoff)
        written = self.private / "orders.py"
        place = str(Path(launch.__file__).parent)
        lines = [
            "import sys",
            f"sys.path.append({place!r})",
            "import launch",
            *([f"import {instead}"] if instead else []),
            f"orders = {orders!r}",
            f"launch.main(orders{f', {instead}.main' if instead else ''})",
        ]
        written.write_text("\n".join(lines) + "\n")  # a traceback shows the line that fails, so no token is in that one
        script = self.private / "launch"
        command = shlex.join([sys.executable, "-I", "-S", str(written)])
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        return script


@contextmanager
def swept(directories: Sequence[str]) -> Iterator[None]:
    """Before and after, whatever is in these directories and is this user's, is removed.

    For a machine of the function's alone, where the agent may have left something beside its scratch directory.
    """
    try:
        _sweep(directories)
        yield
    finally:
        _sweep(directories)


def _sweep(directories: Sequence[str]) -> None:
    for directory in map(Path, directories):
        with suppress(FileNotFoundError):  # Lambda has no /dev/shm
            for path in directory.iterdir():
                if path.lstat().st_uid == os.geteuid():
                    wipe(path)


def sweep(shelf: Path) -> None:
    """Remove the scratch directories on `shelf` whose function was killed before it could: nobody holds their locks.

    Several services of a user may share a shelf, and several processes sweep it. What still runs of such a run is
    killed first. A directory is moved aside under its lock and emptied under another: the session's next run does not
    wait for that. Raises OSError or Internal for the last that could not be removed, when the others are.
    """
    if not shelf.exists() or not _is_ours(shelf):
        return
    failed: Exception | None = None
    for name in sorted({path.name.removesuffix(".lock") for path in shelf.iterdir()}):
        session, gone, _ = name.partition(GONE)
        if SESSION.fullmatch(session):
            try:
                _empty_aside(shelf / name) if gone else _take_away(shelf / name)
            except SessionBusy:
                continue  # its run goes on, or another sweeps it
            except (OSError, Internal) as error:
                failed = error
    if failed:
        raise failed


def _take_away(root: Path) -> None:
    lock = _lock(root)
    try:
        kill_left(root)
        aside = root.with_name(f"{root.name}{GONE}{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):  # nothing was left but the lock
            root.rename(aside)
    finally:
        _unlock(root, lock)
    _empty_aside(aside)


def _empty_aside(root: Path) -> None:
    lock = _lock(root)
    try:
        wipe(root)
    finally:
        _unlock(root, lock)


def _is_ours(shelf: Path) -> bool:
    facts = shelf.lstat()
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid in (0, os.geteuid())


def _lock_of(root: Path) -> Path:
    return root.with_name(root.name + ".lock")


def _lock(root: Path, patience: float = 0.0) -> int:
    """An open file that holds the lock of `root`, which the kernel frees with this process at the latest.

    Raises SessionBusy where another still has it after `patience` seconds.
    """
    until = time.monotonic() + patience
    while True:
        lock = os.open(_lock_of(root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink != 0:
                return lock
            # Its holder was just leaving, and has removed it.
        except BlockingIOError as taken:
            if time.monotonic() >= until:
                os.close(lock)
                raise SessionBusy(retry_after=5) from taken
        os.close(lock)
        time.sleep(0.005)


def _unlock(root: Path, lock: int) -> None:
    try:
        _lock_of(root).unlink(missing_ok=True)
    finally:
        os.close(lock)


def crowded(root: Path, most: int) -> bool:
    """Whether a tree, which may be changing, holds more than `most` files and directories; links are not followed.

    Each directory is opened from the one above, so that no path grows. What cannot be looked into counts for many
    (`UNSEEN`): it may hold any number, which this process has to remove all the same.
    """
    count, way = _counted(str(root), None, most + 1)
    try:
        while way and len(way) <= HELD and count <= most:
            above, names = way.pop()
            try:
                found, within = _counted(names.pop(), above, most + 1 - count)
            finally:
                if names:
                    way.append((above, names))
                else:
                    os.close(above)
            count += found
            way += within
        return bool(way) or count > most
    finally:
        for directory, _ in way:
            os.close(directory)


DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _counted(name: str, above: int | None, most: int) -> tuple[int, list[tuple[int, list[str]]]]:
    """How many entries a directory has, `most` at the most; and, where it has directories, itself, open, and those."""
    try:
        directory = os.open(name, DIRECTORY, dir_fd=above)
    except PermissionError:
        return _unseen(name, above), []
    except OSError:
        return 0, []  # gone, or something else by now
    try:
        with os.scandir(directory) as entries:
            found = list(itertools.islice(entries, most))
        if below := [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]:
            return len(found), [(os.dup(directory), below)]
        return len(found), []
    finally:
        os.close(directory)


def _unseen(name: str, above: int | None) -> int:
    try:
        return max(UNSEEN, os.stat(name, dir_fd=above, follow_symlinks=False).st_size // ENTRY_BYTES)
    except OSError:
        return UNSEEN


def wipe(root: Path) -> None:
    """Remove a tree, whatever is in it: modes that forbid it, links (not followed), any depth, any length of path.

    Directories are moved up to `root` before they are emptied, so that neither recursion nor a path grows.
    Nothing may write into the tree meanwhile. Raises OSError if something cannot be removed.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(root.lstat().st_mode):
            root.unlink()
            return
        root.chmod(0o700)
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(top)
        finally:
            os.close(top)
        root.rmdir()


def _empty(top: int) -> None:
    numbers = itertools.count()
    waiting = _unlink_files(top)
    while waiting:
        name = waiting.pop()
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            for below in _unlink_files(directory):
                moved = f".wiped-{os.getpid()}-{next(numbers)}-{time.monotonic_ns()}"
                os.rename(below, moved, src_dir_fd=directory, dst_dir_fd=top)
                waiting.append(moved)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=top)


def _unlink_files(directory: int) -> list[str]:
    """Remove all but the directories, whose names are returned; they are made writable, for root is not everyone."""
    left = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.name, 0o700, dir_fd=directory)
                left.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return left
