"""The processes of a run: frozen for a checkpoint, and dead before the handler returns."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from lambdas.agent.sandbox import OPEN, Sandbox
from lambdas.errors import Internal

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
"""From Linux' `prctl.h`."""

STOP_SECONDS = 1.0
"""How long the stopping of a run's processes may take; it takes some milliseconds."""

KILL_SECONDS = 5.0
"""How long the killing of a run's processes may take; a thousand of them take a tenth of a second."""

SEARCH_SECONDS = 0.5
"""How long processes are looked for one by one, before a user whose processes are all the run's loses them at once."""

KILLER = ("/bin/sh", "-c", "kill -s KILL -- -1")
"""Kills all processes of whoever runs it, but for init and itself."""


def seal() -> None:
    """Make this process unreadable for others of its user: environment, memory, open files (Linux only).

    To be called once, when the handler is loaded. Elsewhere it does nothing: macOS shows a process' environment to
    its user, and has no such switch.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_DUMPABLE, 0)


class Process(NamedTuple):
    """A process as it is told from a later one with the same number."""

    pid: int
    started: str


class _Row(NamedTuple):
    process: Process
    parent: int
    state: str
    """Its letter in proc_pid_stat(5) or ps(1)."""
    ours: bool
    """By its environment, where that is the only trace (macOS)."""
    group: int = 0
    """Its process group, where that is of a session that began below this process: nobody else can be in it."""

    @property
    def dead(self) -> bool:
        return self.state in ("Z", "X")

    @property
    def stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def waits(self) -> bool:
        """For a disk, or in vfork(2) for its child, and then it does not stop before that."""
        return self.state in ("D", "U")


class Processes:
    """All that is started below this process while the `with` block lasts; dead when it ends, or Internal is raised.

    On Linux this process adopts what is daemonized below it (`PR_SET_CHILD_SUBREAPER`), so nothing escapes by
    `setsid` or a double fork. On macOS, which has no such thing, a daemon is recognised by its environment, that
    names `root`; one that has cleared it escapes. Children that were there before are left alone, with theirs.
    """

    def __init__(self, root: Path, sandbox: Sandbox = OPEN) -> None:
        self._root = root
        self._sandbox = sandbox

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._before = {row.process for row in _table(self._root) if row.parent == os.getpid()}
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.kill()
        finally:
            self._reap()
            if sys.platform == "linux":
                _prctl(PR_SET_CHILD_SUBREAPER, 0)

    def kill(self) -> None:
        """Kill all of them: whole process groups at once, which none of their children escapes; and what is in no
        group of its own is stopped first, so that it cannot fork faster than it is found.

        A chain of forks of which each makes a group of its own may be faster. Where the sandbox says that a user's
        processes are all the run's, those are then killed by one call. Elsewhere such a chain ends at the run's limit
        of processes, to which its dead count, since they are not buried before the end.

        Raises Internal if some still live after `KILL_SECONDS`.
        """
        began = time.monotonic()
        for alive, new in self._until_none(lambda rows: [row for row in rows if not row.dead]):
            if time.monotonic() > began + KILL_SECONDS:
                raise Internal(detail=f"processes of the run do not die: {_states(alive)}")
            if time.monotonic() > began + SEARCH_SECONDS:
                self._kill_at_once()
            for group in {row.group for row in (*alive, *new) if row.group}:
                _signal(-group, signal.SIGKILL)
            fresh = [row for row in new if not row.dead]
            for row in fresh or alive:
                _signal(row.process.pid, signal.SIGSTOP if fresh else signal.SIGKILL)

    def _kill_at_once(self) -> None:
        """Kill every process of a user who has none but the run's: kill(2) with -1, where the sandbox allows it.

        No fork escapes that: the kernel holds the list of processes for all of them, and a fork that is under way
        fails by the signal. It leaves out whoever calls, which is this process, or one that has become that user.
        """
        if self._sandbox.alone and os.geteuid() != 0:
            _signal(-1, signal.SIGKILL)
        elif self._sandbox.its_own_uid and self._sandbox.uid is not None:
            _kill_user(self._sandbox.uid)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of them stand still while this lasts; what was stopped before stays so.

        Raises Internal if some still run after `STOP_SECONDS`: they fork faster than they are found, or wait for a
        disk.
        """
        until = time.monotonic() + STOP_SECONDS
        stopped: set[Process] = set()
        try:
            for running, _ in self._until_none(_running):
                if time.monotonic() > until:
                    raise Internal(detail=f"processes of the run do not stop: {_states(running)}")
                for row in running:
                    _signal(row.process.pid, signal.SIGSTOP)
                    stopped.add(row.process)
            yield
        finally:
            for process in stopped:
                _signal(process.pid, signal.SIGCONT)

    def _until_none(self, chosen: Callable[[list[_Row]], list[_Row]]) -> Iterator[tuple[list[_Row], list[_Row]]]:
        """What is chosen of the processes below, scan by scan, and what is new, until two scans show neither.

        A scan is no snapshot: a process that ends after forking hides its child from it. The next one shows that child,
        or its remains: this process has adopted it, and buries nothing meanwhile. So one that shows nothing could be
        the last, but for what ends below a parent that ignores SIGCHLD: of that nothing remains.
        """
        seen: set[Process] = set()
        quiet = 0
        while quiet < 2:
            rows = self._below()
            new = [row for row in rows if row.process not in seen]
            found = chosen(rows)
            if found or new:
                yield found, new
            quiet = 0 if found or new else quiet + 1
            seen.update(row.process for row in new)
            if found and not new:
                time.sleep(0.002)  # they are dying

    def _below(self) -> list[_Row]:
        """All descendants of this process that are not of its earlier children, dead ones too."""
        rows = [row for row in _table(self._root) if row.process not in self._before]
        children: dict[int, list[_Row]] = {}
        for row in rows:
            children.setdefault(os.getpid() if row.ours else row.parent, []).append(row)
        found = children.get(os.getpid(), []).copy()
        for row in found:  # grows while it is walked
            found += children.get(row.process.pid, [])
        return found

    def _reap(self) -> None:
        """Bury those that this process adopted; who started a child by a library has waited for it already."""
        for row in self._below():
            with suppress(ChildProcessError):
                os.waitpid(row.process.pid, os.WNOHANG)


def _running(rows: list[_Row]) -> list[_Row]:
    stopped = {row.parent for row in rows if row.stopped}
    return [row for row in rows if not (row.dead or row.stopped or (row.waits and row.process.pid in stopped))]


def _states(rows: list[_Row]) -> str:
    return f"{len(rows)}, in state {''.join(sorted(row.state for row in rows))[:50]}"


def kill_left(root: Path) -> None:
    """Kill what still runs of a run whose function is dead. Raises Internal if something does not die.

    It is known by its user, where that is its session's own, and else by its environment, which names `root`; in
    bubblewrap nothing outlives the function.
    """
    sandbox, until = Sandbox.of("landlock", root.name), time.monotonic() + KILL_SECONDS
    uid = sandbox.uid if sandbox.its_own_uid else None
    while left := _left_of(root, uid):
        if time.monotonic() > until:
            raise Internal(detail=f"processes of a run that is over do not die: {left}")
        if uid is not None:
            _kill_user(uid)
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.01)


def _left_of(root: Path, uid: int | None) -> list[int]:
    """The living processes whose environment names `root`, or whose user is `uid`."""
    if sys.platform != "linux":
        return [row.process.pid for row in _from_ps(root) if row.ours and not row.dead]
    mark, found = _mark(root) + b"\0", []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # gone
                status = (entry / "status").read_text(errors="replace")
                dead = re.search(r"^State:\s+[ZX]", status, re.M)
                user = re.search(r"^Uid:\s+(\d+)", status, re.M)
                of_user = uid is not None and user is not None and int(user[1]) == uid
                if not dead and (of_user or mark in _environment_of(entry)):
                    found.append(int(entry.name))
    return found


def _environment_of(entry: Path) -> bytes:
    try:
        return (entry / "environ").read_bytes()
    except PermissionError:  # another's
        return b""


def _mark(root: Path) -> bytes:
    """What `environment` puts into that of every process of a run."""
    return f"CLAUDE_CONFIG_DIR={root}/claude".encode()


def _kill_user(uid: int) -> None:
    """Kill every process of `uid` by one call, if there is room for the process that makes it."""
    with suppress(OSError, subprocess.TimeoutExpired):  # the search goes on
        subprocess.run(KILLER, user=uid, group=uid, extra_groups=[], env={}, cwd="/", timeout=SEARCH_SECONDS)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _table(root: Path) -> Iterator[_Row]:
    """The processes of this machine but this one."""
    rows = _from_proc() if sys.platform == "linux" else _from_ps(root)
    return (row for row in rows if row.process.pid != os.getpid())


def _from_proc() -> Iterator[_Row]:
    own = os.getsid(0)
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a thousand Path objects for nothing
        if entry.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{entry}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - by a Path, half as slow again
                    text = file.read()
                # The name, in parentheses, may hold anything. Fields by number: see proc_pid_stat(5).
                fields = text.rpartition(b")")[2].split()
                # A leader that has ended shows as a zombie while other threads of its process run on.
                state = "R" if fields[0] == b"Z" and int(fields[17]) > 1 else fields[0].decode()
                parent, group, session = map(int, fields[1:4])
                process = Process(int(entry), fields[19].decode())
                yield _Row(process, parent, state, ours=False, group=group if session != own else 0)


def _from_ps(root: Path) -> Iterator[_Row]:
    """-E shows the environment behind the command, of one's own processes."""
    columns = ["-o", "pid=", "-o", "ppid=", "-o", "stat=", "-o", "lstart=", "-o", "command="]
    listing = subprocess.run(["/bin/ps", "-axEww", *columns], capture_output=True, check=True).stdout
    mark = _mark(root)
    for line in listing.splitlines():
        pid, parent, state, *started, command = line.split(None, 8)
        process = Process(int(pid), b" ".join(started).decode())
        yield _Row(process, int(parent), state[:1].decode(), ours=mark in command)


def _prctl(option: int, value: int) -> None:
    """Raises OSError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
