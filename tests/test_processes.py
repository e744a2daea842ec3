"""Processes of a run: dead afterwards, still while frozen, whatever they do against it."""

import multiprocessing
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lambdas.agent.processes import Processes
from lambdas.agent.sandbox import Sandbox
from lambdas.errors import Internal
from tests.support.waiting import eventually

linux = pytest.mark.skipif(sys.platform != "linux", reason="a kernel interface of Linux")


def alive(pid: int) -> bool:
    """Whether a process with this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
        time.sleep(0.004)
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
os.write(1, b".")
while left:
    try:
        if os.fork():
            os._exit(0)
    except BlockingIOError:
        continue
    os.setsid()
    time.sleep(0.004)
    left -= 1
"""
CHAINS, GENERATIONS = 8, 1500
"""Together they take a third of a machine's process ids, and more than six seconds, should nobody stop them."""


def outrun(uid: int, kind: str, root: Path) -> None:
    """Chains of which each process has a session of its own, and is gone when the search has found it.

    For a process of its own, since it may become that user.
    """
    sandbox = {"its own user id": Sandbox(uid=uid), "alone": Sandbox(alone=True), "a limit": Sandbox()}[kind]
    limit = 1000 if kind == "a limit" else 2 * CHAINS * GENERATIONS
    begun, write = os.pipe()
    with Processes(root, sandbox):
        for _ in range(CHAINS):
            chain = [sys.executable, "-I", "-S", "-c", CHAIN, *map(str, (uid, limit, GENERATIONS))]
            subprocess.Popen(chain, stdout=write)
        for _ in range(CHAINS):
            os.read(begun, 1)
        time.sleep(1)  # their dead make the search slow, on a machine where nothing else runs, too
        if sandbox.alone:
            os.setresuid(uid, uid, uid)


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can make processes of a user who has no others.")
@pytest.mark.parametrize("kind", ["its own user id", "alone", "a limit"])
def test_chains_that_outrun_the_search_end_all_the_same(kind: str, tmp_path: Path) -> None:
    """By one call where all that a user has is the run's; else at the limit of processes, where they are found."""
    sandbox = Sandbox.of("landlock", str(uuid.uuid4()))
    if not sandbox.its_own_uid:
        pytest.skip("This container has no user ids to give away.")
    child = multiprocessing.get_context("spawn").Process(target=outrun, args=(sandbox.uid, kind, tmp_path))
    child.start()
    child.join(60)
    left = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and owner(entry) == sandbox.uid]
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
        "import ctypes; from lambdas.agent.processes import seal\n"
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
