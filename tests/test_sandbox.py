"""The scratch directory, the environment and the processes of a run."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lambdas.agent.sandbox import HELD, UNSEEN, Processes, Scratch, crowded, environment, sweep, wipe
from lambdas.agent.wall import Wall
from lambdas.errors import Internal, SessionBusy
from tests import ordinary
from tests.commands import ROOT
from tests.eventually import eventually

linux = pytest.mark.skipif(sys.platform != "linux", reason="a kernel interface of Linux")


def alive(pid: int) -> bool:
    """Whether a process with this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_scratch_is_empty_private_and_gone_afterwards(tmp_path: Path) -> None:
    """What an earlier run left is not there, only this user can look in, and nothing stays."""
    root = tmp_path / "agents" / "session-1"
    root.mkdir(parents=True)
    (root / "left-over").write_text("secret of an earlier run")
    with Scratch(root) as scratch:
        assert not (root / "left-over").exists()
        for directory in (root, scratch.workspace, scratch.claude, scratch.home, scratch.tmp, scratch.private):
            assert directory.stat().st_mode & 0o777 == 0o700
        (scratch.workspace / "file").write_text("x")
    assert list(root.parent.iterdir()) == []


def test_scratch_is_wiped_after_a_failure(tmp_path: Path) -> None:
    """An exception leaves as little behind as a success."""
    with pytest.raises(ZeroDivisionError), Scratch(tmp_path / "session-1"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_session_exclude_each_other(tmp_path: Path) -> None:
    """The second would wipe the first one's files; it is refused, and another session's is not."""
    with Scratch(tmp_path / "session-1") as scratch:
        (scratch.workspace / "file").write_text("x")
        with pytest.raises(SessionBusy), Scratch(tmp_path / "session-1"):
            pass
        with Scratch(tmp_path / "session-2"):
            pass
        assert (scratch.workspace / "file").exists()
    with Scratch(tmp_path / "session-1"):
        pass


def test_scratch_is_not_made_where_a_link_leads(tmp_path: Path) -> None:
    """A parent that is a link, as another user might have put into /tmp, is refused."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "agents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Internal), Scratch(tmp_path / "agents" / "session-1"):
        pass


def test_wiping_hostile_trees(tmp_path: Path) -> None:
    """Modes, links, pipes, odd names and a tree deeper than any path are no hindrance; links are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    root = tmp_path / "session-1"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"\xff\n -rf")).mkdir()
    locked = root / "locked"
    (locked / "in").mkdir(parents=True)
    (locked / "in" / "file").write_text("x")
    (locked / "in").chmod(0)
    locked.chmod(0)
    deep = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 100, dir_fd=deep)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    wipe(root)
    assert not root.exists()
    assert (outside / "kept").read_text() == "x"


def test_wiping_what_was_closed_to_its_owner() -> None:
    """By an ordinary user, whom a mode stops: at the top, and below."""
    program = "import sys; from pathlib import Path; from lambdas.agent.sandbox import wipe; wipe(Path(sys.argv[1]))"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder) / "session-1"
        (root / "locked" / "in").mkdir(parents=True)
        (root / "locked" / "in" / "file").touch()
        tree = [root / "locked" / "in", root / "locked", root]
        user = ordinary.USER if os.geteuid() == 0 else None
        for path in (*tree, Path(folder)):
            os.chown(path, user or -1, user or -1)
        for path in tree:
            path.chmod(0)
        command = [str(ordinary.python()), "-c", program, str(root)]
        done = subprocess.run(command, cwd=ROOT, user=user, group=user, capture_output=True, text=True)
        assert (done.stderr, root.exists()) == ("", False)


def test_wiping_what_is_a_link_removes_the_link(tmp_path: Path) -> None:
    """The directory behind a link that stands in the scratch directory's place stays."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "session-1").symlink_to(tmp_path / "outside")
    wipe(tmp_path / "session-1")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_a_directory_that_its_run_left_is_swept(tmp_path: Path) -> None:
    """Its lock is free, since who held it is dead. What another service's run uses stays, and what is no run's."""
    left, used, going = (str(uuid.uuid4()) for _ in range(3))
    (tmp_path / left / "workspace").mkdir(parents=True)
    (tmp_path / f"{going}.gone-{'0' * 32}" / "half").mkdir(parents=True)
    (tmp_path / f"{uuid.uuid4()}.lock").touch()
    (tmp_path / "program-0123").touch()
    (tmp_path / "other").mkdir()
    with Scratch(tmp_path / used) as scratch:
        (scratch.workspace / "file").touch()
        sweep(tmp_path)
        assert (scratch.workspace / "file").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "program-0123"]


def test_sweeping_does_not_make_the_next_run_wait(tmp_path: Path) -> None:
    """What a run left is out of its way before it is emptied; its successor and sweepers do not disturb each other."""
    session = str(uuid.uuid4())
    for number in range(1000):
        (tmp_path / session / str(number)).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        sweepers = [pool.submit(sweep, tmp_path) for _ in range(4)]
        for _ in range(20):
            with Scratch(tmp_path / session) as scratch:
                (scratch.workspace / "file").touch()
                sweep(tmp_path)
                assert (scratch.workspace / "file").exists()
        for each in sweepers:
            each.result()
    assert list(tmp_path.iterdir()) == []


SLEEP = ("/bin/sleep", "60")


@linux
@pytest.mark.parametrize("known_by", ["its environment", "its user"])
def test_what_runs_on_of_a_run_that_was_killed_is_killed_before_it_is_swept(tmp_path: Path, known_by: str) -> None:
    """Nobody is left whose children they are: they are known by the run's directory, or by the session's own user."""
    root = tmp_path / str(uuid.uuid4())
    root.mkdir()
    wall = Wall.of("landlock", root.name)
    if known_by == "its user" and not wall.its_own_uid:
        pytest.skip("Only root gives user ids away.")
    user = wall.uid if known_by == "its user" else None
    marked, other = ({"CLAUDE_CONFIG_DIR": f"{root}{suffix}/claude"} for suffix in ("", "0"))
    left = subprocess.Popen(SLEEP, env=marked if user is None else {}, start_new_session=True, user=user, cwd="/")
    with subprocess.Popen(SLEEP, env=other) as untouched:
        sweep(tmp_path)
        assert left.wait() == -signal.SIGKILL
        assert untouched.poll() is None
        untouched.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_counted_however_deep_it_is(tmp_path: Path) -> None:
    """A path that is longer than any can be named, and links, which are not followed."""
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d" * 100, dir_fd=deep)
        os.symlink(tmp_path, "link", dir_fd=deep)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    assert crowded(tmp_path, 299)
    assert not crowded(tmp_path, 300)
    wipe(tmp_path / ("d" * 100))


def test_a_tree_that_branches_at_every_level_is_crowded(tmp_path: Path) -> None:
    """To count it would take more open directories than a function may have."""
    here = tmp_path / "all"
    for _level in range(4 * HELD):
        for _ in range(3):  # in whatever order they are listed, the last made is mostly not the last
            below = here / uuid.uuid4().hex[:6]
            below.mkdir(parents=True)
        here = below
    assert crowded(tmp_path, 100 * HELD)
    wipe(tmp_path / "all")


def test_what_cannot_be_looked_into_counts_for_many() -> None:
    """A directory of mode 0300 can be filled, and read by root alone."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be passed through by another user
        hidden = Path(folder) / "run/hidden"
        hidden.mkdir(parents=True)
        (hidden / "file").touch()
        hidden.chmod(0o300)
        Path(folder).chmod(0o711)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = [pool.submit(is_crowded_to_a_user, hidden, most).result() for most in (UNSEEN, UNSEEN + 1)]
        hidden.chmod(0o700)
    assert found == [True, False]


def is_crowded_to_a_user(hidden: Path, most: int) -> bool:
    """For a process of its own, which is one's from now on."""
    if os.geteuid() == 0:
        os.chown(hidden, 12_345, -1)
        os.setresuid(12_345, 12_345, 12_345)
    return crowded(hidden.parent, most)


def test_launcher_gives_exactly_the_environment_and_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is inherited, and values with quotes, spaces, newlines and dollars arrive as they are."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    wanted = {"PLAIN": "1", "HARD": "a 'b' \"c\" $HOME `id`\nline \\ 🦊", "EMPTY": ""}
    with Scratch(tmp_path / "session 1'") as scratch:
        code = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
        launch = scratch.launcher(Path(sys.executable), wanted)
        said = subprocess.run([launch, "-c", code, "--flag", "x y"], capture_output=True, check=True).stdout
    seen, arguments = json.loads(said)
    seen.pop("LC_CTYPE", None)  # Python's own doing
    assert (seen, arguments) == (wanted, ["--flag", "x y"])


def test_environment_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process' variables none is in it, and every path leads into the scratch directory or the system."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted")
    scratch = Scratch(tmp_path / "session-1")
    built = environment(scratch)
    assert "planted" not in built.values()
    assert not [name for name in built if name.startswith(("AWS_", "ANTHROPIC_"))]
    assert {built[name] for name in ("HOME", "TMPDIR", "CLAUDE_CONFIG_DIR", "PWD")} == {
        str(path) for path in (scratch.home, scratch.tmp, scratch.claude, scratch.workspace)
    }


DAEMON = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.environ.clear()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


def pid_in(path: Path) -> int:
    """The number that a daemon writes down when it is ready."""
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return int(path.read_text())


@linux
def test_daemons_are_dead_afterwards(tmp_path: Path) -> None:
    """A process that forked twice, left its session and ignores signals does not outlive the block."""
    with Processes(tmp_path):
        subprocess.run([sys.executable, "-c", DAEMON, str(tmp_path / "pid")], check=True)
        pid = pid_in(tmp_path / "pid")
        assert alive(pid)
    assert not alive(pid)


@linux
def test_processes_die_after_an_exception(tmp_path: Path) -> None:
    """The block's own failure comes through, and its processes are dead all the same."""

    def run() -> None:
        with Processes(tmp_path):
            subprocess.run([sys.executable, "-c", DAEMON, str(tmp_path / "pid")], check=True)
            pid_in(tmp_path / "pid")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert not alive(pid_in(tmp_path / "pid"))


def test_earlier_children_are_left_alone(tmp_path: Path) -> None:
    """Only what was started in the block is killed."""
    with subprocess.Popen(["/bin/sleep", "60"]) as earlier:
        with Processes(tmp_path), subprocess.Popen(["/bin/sleep", "60"]) as started:
            started.kill()
        assert earlier.poll() is None
        earlier.kill()


FORKER = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
until = time.monotonic() + 20
while time.monotonic() < until:
    if os.fork():
        time.sleep(0.002)
        os._exit(0)
"""


@linux
def test_a_process_that_forks_on_is_caught(tmp_path: Path) -> None:
    """Chains that replace themselves faster than a process list is read come to an end."""
    with Processes(tmp_path) as processes:
        for _ in range(4):
            subprocess.Popen([sys.executable, "-c", FORKER], start_new_session=True).wait()  # as the launcher does
        processes.kill()
        assert not [row for row in processes._below() if not row.dead]


CHAIN = """
import os, resource, signal, sys, time
uid, limit, left = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while left:
    try:
        if os.fork():
            time.sleep(0.004)
            os._exit(0)
    except BlockingIOError:
        continue
    os.setsid()
    left -= 1
"""
CHAINS, GENERATIONS = 8, 1500
"""Together they take a third of a machine's process ids, and some eight seconds, should nobody stop them."""


def outrun(uid: int, kind: str, root: Path) -> None:
    """Chains of which each process has a session of its own, and is gone when the search has found it.

    For a process of its own, since it may become that user.
    """
    wall = {"its own user id": Wall(uid=uid), "alone": Wall(alone=True), "a limit": Wall()}[kind]
    limit = 1000 if kind == "a limit" else 2 * CHAINS * GENERATIONS
    with Processes(root, wall):
        for _ in range(CHAINS):
            subprocess.Popen([sys.executable, "-I", "-S", "-c", CHAIN, *map(str, (uid, limit, GENERATIONS))])
        time.sleep(0.2)
        if wall.alone:
            os.setresuid(uid, uid, uid)


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can make processes of a user who has no others.")
@pytest.mark.parametrize("kind", ["its own user id", "alone", "a limit"])
def test_chains_that_outrun_the_search_end_all_the_same(kind: str, tmp_path: Path) -> None:
    """By one call where all that a user has is the run's; else at the limit of processes, where they are found."""
    wall = Wall.of("landlock", str(uuid.uuid4()))
    if not wall.its_own_uid:
        pytest.skip("This container has no user ids to give away.")
    child = multiprocessing.get_context("spawn").Process(target=outrun, args=(wall.uid, kind, tmp_path))
    child.start()
    child.join(60)
    left = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and owner(entry) == wall.uid]
    assert (child.exitcode, left) == (0, [])


def owner(entry: Path) -> int | None:
    try:
        return entry.stat().st_uid
    except FileNotFoundError:
        return None


@linux
def test_a_leader_that_ended_before_its_threads_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Such a process shows as a zombie and runs on."""
    code = (
        "import ctypes, os, sys, threading, time\n"
        "def on():\n"
        "    time.sleep(0.2); open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)\n"
        "threading.Thread(target=on).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
    )
    with Processes(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")])
        pid_in(tmp_path / "pid")
    child.wait()
    assert not alive(child.pid)


@linux
def test_a_sealed_process_is_not_dumpable() -> None:
    """The kernel then lets no other process of this user read its environment, memory or files (prctl(2))."""
    code = (
        "import ctypes; from lambdas.agent.sandbox import seal\n"
        "assert ctypes.CDLL(None).prctl(3) == 1; seal(); assert ctypes.CDLL(None).prctl(3) == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def started(processes: Processes, *command: str, **environ: str) -> Iterator[None]:
    """A process of the run, dead afterwards with all of them."""
    with subprocess.Popen(command, env={"PATH": os.defpath, **environ}, stderr=subprocess.DEVNULL):
        try:
            yield
        finally:
            processes.kill()


@contextmanager
def patiently(processes: Processes) -> Iterator[None]:
    """Frozen, if not at the first attempt: on a busy machine a process may wait for its disk for seconds."""
    with ExitStack() as stack:
        for attempt in range(20):
            try:
                stack.enter_context(processes.frozen())
                break
            except Internal:
                if attempt == 19:
                    raise
        yield


def test_a_frozen_run_stands_still_and_goes_on(tmp_path: Path) -> None:
    """Daemons too; what had stopped itself stays so afterwards."""
    beat = tmp_path / "beat"
    loop = f"(setsid sh -c 'while :; do echo x >> {beat}; sleep 0.01; done' &); sh -c 'kill -STOP $$'"
    mark = {"CLAUDE_CONFIG_DIR": f"{tmp_path}/claude"}
    with Processes(tmp_path) as processes, started(processes, "/bin/sh", "-c", loop, **mark):
        while not beat.exists() or len(beat.read_bytes()) < 6:
            time.sleep(0.01)
        assert eventually(lambda: any(row.stopped for row in processes._below()))
        with patiently(processes):
            frozen = beat.stat().st_size
            time.sleep(0.2)
            assert beat.stat().st_size == frozen
        until = time.monotonic() + 60
        while beat.stat().st_size == frozen:
            assert time.monotonic() < until
        assert sum(row.stopped for row in processes._below()) == 1


@linux
def test_a_parent_that_waits_for_its_child_to_begin_counts_as_frozen(tmp_path: Path) -> None:
    """In vfork it cannot stop before its stopped child execs; who starts programs all the time is often there."""
    beat = tmp_path / "beat"
    code = (
        "import os, sys\nwhile True: os.posix_spawn('/bin/sh', ['sh', '-c', 'echo x >> ' + sys.argv[1]], {}); os.wait()"
    )
    with Processes(tmp_path) as processes, started(processes, sys.executable, "-c", code, str(beat)):
        while not beat.exists():
            time.sleep(0.01)
        for _ in range(20):
            with patiently(processes):
                size = beat.stat().st_size
        until = time.monotonic() + 60
        while beat.stat().st_size == size:
            assert time.monotonic() < until


@linux
def test_a_run_that_forks_too_fast_is_not_frozen_for_ever(tmp_path: Path) -> None:
    """It is either caught or left alone, in bounded time, and goes on."""
    with Processes(tmp_path) as processes, started(processes, "/bin/sh", "-c", "while :; do sleep 0.01 & done"):
        time.sleep(0.2)
        began = time.monotonic()
        with suppress(Internal), processes.frozen():
            pass
        assert time.monotonic() - began < 30
        assert any(not row.stopped for row in processes._below())
