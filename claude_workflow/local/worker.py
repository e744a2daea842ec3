"""One function's process on this machine: Lambda's own runtime client, and the end of all that a handler started.

On AWS a sandbox that times out is gone with everything in it. Here this small parent sees to that: it runs the
runtime client in a session of its own and, when the engine ends it or is itself gone, kills every process below and has
what the run left on disk removed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import FrameType

from claude_workflow.local import sweep

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""linux/prctl.h: the signal that a process gets when its parent dies; orphans below become this process's children,
however they detached themselves."""

POLL_SECONDS = 1.0


def main() -> None:
    """Runs `python -m claude_workflow.local.runtime HANDLER` (the first argument) until it, or the engine, ends."""
    engine = os.getppid()
    os.setsid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _end)
    # Should this process be killed, the handler does not go on alone: nobody would take its answer.
    die_too = partial(_prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
    runtime = subprocess.Popen([sys.executable, "-m", "claude_workflow.local.runtime", sys.argv[1]], preexec_fn=die_too)
    while os.getppid() == engine:
        try:
            runtime.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    _end(signal.SIGTERM, None)


def _end(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    if shelf := os.environ.get("SCRATCH"):
        sweep.beside(shelf)
    os.killpg(0, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Direct children. Killed ones hand theirs to this process, so asking again until there are none finds all."""
    if sys.platform == "linux":
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


if __name__ == "__main__":
    main()
