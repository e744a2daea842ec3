"""What a run may touch: its scratch directory, its environment, and the processes it leaves behind.

Everything of a run lies under one directory and is started through one launcher script, with an environment that
is built and not inherited, behind a wall (`lambdas.agent.wall`).
"""

import ctypes
import fcntl
import itertools
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from lambdas.agent import launch
from lambdas.agent.wall import Wall
from lambdas.errors import CarelessDeployment, Internal, SessionBusy

PATH = ":".join(
    (
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/var/lang/bin",  # Python of Lambda's base images
        "/opt/homebrew/bin",
    )
)

SWITCHES = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",  # else an agent in the background ends the run with a second result
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # else a cut stream is paid for twice
    "CLAUDE_CODE_MAX_RETRIES": "2",
    "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "60000",  # nothing else ends a silent stream
    # A restored tree has new inodes and ctimes; without these, git reads every file to see that none has changed.
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "core.checkStat",
    "GIT_CONFIG_VALUE_0": "minimal",
    "GIT_CONFIG_KEY_1": "core.trustctime",
    "GIT_CONFIG_VALUE_1": "false",
}
"""Switches of the CLI (2.1.330) and of git, the same in every run."""

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

LOCK_SECONDS = 1.0
"""How long a run waits for its directory: who takes away what was left there holds it for some milliseconds."""

UNSEEN, ENTRY_BYTES = 20_000, 12
"""For how many files a directory counts that cannot be looked into: for `UNSEEN`, which is as many as there is always
time for, or for what its own size has room for at ext4's least, whichever is more."""

HELD = 100
"""How many directories a count holds open; a tree that branches at more levels than that is taken for crowded."""

OPEN = Wall()

SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The name of a run's scratch directory: Claude's id of the session."""

GONE = ".gone-"
"""Follows that name in the name of a directory on its way out."""


class Scratch:
    """The directory of one run, empty on entering and gone on leaving. A context manager.

    `root` is to be the same for every run of a session, because transcripts hold absolute paths, and of no other
    session. `wall` says whose the agent's directories are. What an earlier run left there is removed first. Entering
    raises SessionBusy if another run in this machine uses it, and Internal if its parent belongs to someone else.
    """

    def __init__(self, root: Path, wall: Wall = OPEN) -> None:
        self.root = root
        self.wall = wall
        self.workspace = root / "workspace"
        """The agent's working directory."""
        self.claude = root / "claude"
        """CLAUDE_CONFIG_DIR: transcripts are in its `projects/`."""
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.private = root / "private"
        """Ours: the launcher, and what is handed to the CLI as a file."""

    def __enter__(self) -> Self:
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(self.root.parent):
            raise Internal(detail=f"{self.root.parent} is not ours")
        self._lock = _lock(self.root, LOCK_SECONDS)
        try:
            wipe(self.root)
            for directory in (self.root, self.private, *self._its_own):
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
        uid = self.wall.uid
        if uid is None:
            return
        self.root.parent.chmod(0o711)  # to be passed through, not to be listed
        for directory in (self.root, self.private):
            os.chown(directory, -1, uid)
            directory.chmod(0o750)
        for own in self._its_own:
            os.chown(own, uid, uid)

    def launcher(self, program: Path, environment: Mapping[str, str], ports: Sequence[int] = ()) -> Path:
        """Write a script that becomes `program` behind the wall, with its own arguments and exactly this environment.

        `ports` are those that it may connect to on loopback. The SDK starts the CLI with the whole environment of
        this process below the one it is given. Between its fork and this script's exec no code of the model's runs
        yet.
        """
        shown = self.wall.reachable(program, self.root.parent)
        orders = self.wall.orders(shown, environment, [self.private], self._its_own, ports)
        written = self.private / "orders.py"
        place = str(Path(launch.__file__).parent)
        lines = [
            "import sys",
            f"sys.path.append({place!r})",
            "import launch",
            f"orders = {orders!r}",
            "launch.main(orders)",
        ]
        written.write_text("\n".join(lines) + "\n")  # a traceback shows the line that fails, so no token is in that one
        script = self.private / "launch"
        command = shlex.join([sys.executable, "-I", "-S", str(written)])
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        return script


def environment(scratch: Scratch) -> dict[str, str]:
    """The agent's environment, without what leads to the model: an allow list, nothing inherited."""
    places = {
        "PATH": PATH,
        "HOME": str(scratch.home),
        "TMPDIR": str(scratch.tmp),
        "CLAUDE_CONFIG_DIR": str(scratch.claude),
        "CLAUDE_CODE_TMPDIR": str(scratch.tmp),
        "PWD": str(scratch.workspace),
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
    }
    # The CLI refuses bypassPermissions to root unless told that it is in a sandbox.
    root = {"IS_SANDBOX": "1"} if os.geteuid() == 0 and scratch.wall.uid is None else {}
    return places | root | SWITCHES


CREDENTIAL = re.compile(r".*(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)|AWS_.*|ANTHROPIC_.*")
"""Names of variables that may hold a credential."""


def refuse_credentials(built: Mapping[str, str], lent: Mapping[str, str]) -> None:
    """Raises CarelessDeployment if the agent's environment holds what may be a credential and is not the proxy's.

    `lent` is what the proxy gave: its own address, and tokens that end with the run. Nothing else that looks like a
    credential is in an environment that is built; so what is, was put there by a change that forgot why.
    """
    found = [name for name, value in built.items() if CREDENTIAL.fullmatch(name) and lent.get(name) != value]
    if found:
        raise CarelessDeployment(detail=f"the agent's environment would hold {', '.join(sorted(found))}")


def refuse_careless(environ: Mapping[str, str]) -> None:
    """Raises CarelessDeployment if this function's own environment holds a credential, other than its role's.

    It is the deployment's secret that holds them. An environment is seen by whoever may describe the function, and
    is inherited by every process that somebody forgets to give another.
    """
    found = [name for name in environ if CREDENTIAL.fullmatch(name) and not name.startswith("AWS_")]
    if found := [name for name in found if name not in ("ANTHROPIC_BASE_URL", "SECRET_ARN")]:
        raise CarelessDeployment(detail=f"RunClaude's environment holds {', '.join(sorted(found))}; use the secret")


def seal() -> None:
    """Make this process unreadable for others of its user: environment, memory, open files (Linux only).

    To be called once, when the handler is loaded. Elsewhere it does nothing: macOS shows a process' environment to
    its user, and has no such switch.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_DUMPABLE, 0)


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
        _kill_the_rest(root)
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


def _kill_the_rest(root: Path) -> None:
    """Kill what still runs of a run whose function is dead. Raises Internal if something does not die.

    It is known by its user, where that is its session's own, and else by its environment, which names `root`; in
    bubblewrap nothing outlives the function.
    """
    wall, until = Wall.of("landlock", root.name), time.monotonic() + KILL_SECONDS
    uid = wall.uid if wall.its_own_uid else None
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

    def __init__(self, root: Path, wall: Wall = OPEN) -> None:
        self._root = root
        self._wall = wall

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

        A chain of forks of which each makes a group of its own may be faster. Where the wall says that a user's
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
        """Kill every process of a user who has none but the run's: kill(2) with -1, where the wall allows it.

        No fork escapes that: the kernel holds the list of processes for all of them, and a fork that is under way
        fails by the signal. It leaves out whoever calls, which is this process, or one that has become that user.
        """
        if self._wall.alone and os.geteuid() != 0:
            _signal(-1, signal.SIGKILL)
        elif self._wall.its_own_uid and self._wall.uid is not None:
            _kill_user(self._wall.uid)

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
