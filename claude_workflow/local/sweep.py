"""Removes what runs left whose function was killed before it could, whoever killed it.

A run wipes its own scratch directory. Where its function is ended, by its time limit above all, the worker that
outlives it has this done (`beside`); where the worker was killed too, the service does it, at its start and all the
time (`sweeping`). Elsewhere the agent can write only in bubblewrap's `/tmp`, which goes with the run, and unsandboxed.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lambdas.agent.scratch import sweep
from lambdas.errors import Internal

EVERY_SECONDS = 3.0
"""How often the service looks; to see that there is nothing is to list one directory."""


def beside(shelf: str) -> None:
    """Sweep in a process of its own, which is not waited for and which the end of this one's session does not end."""
    nowhere = subprocess.DEVNULL  # who reads the worker's output would wait for its end
    command = [sys.executable, "-m", "claude_workflow.local.sweep", shelf]
    subprocess.Popen(command, cwd="/", stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)


@contextmanager
def sweeping(shelf: Path) -> Iterator[None]:
    """Sweep now and every few seconds, in a thread, as long as the `with` block lasts."""
    ended = threading.Event()

    def work() -> None:
        printed: set[str] = set()
        while True:
            try:
                sweep(shelf)
            except (OSError, Internal) as failure:  # told once; tried again, since it may be a disk's passing mood
                if str(failure) not in printed:
                    print(f"{shelf} cannot be swept: {failure}", file=sys.stderr)
                printed.add(str(failure))
            if ended.wait(EVERY_SECONDS):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()  # what it is just emptying, the next start empties


if __name__ == "__main__":
    sweep(Path(sys.argv[1]))
