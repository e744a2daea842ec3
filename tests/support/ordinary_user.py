"""An ordinary user of this machine, for tests that root runs.

`python -m tests.support.ordinary_user STATE` is an engine of that user's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest

from claude_workflow.local import engine
from claude_workflow.local.engine import Engine

USER = 54321
"""Nobody's id."""
ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = Path(claude_agent_sdk.__file__).parent.parent


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root can read everything: be nobody for a while, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def python() -> str:
    """An interpreter that another user can start: a version manager's is in somebody's home directory."""
    if os.geteuid() != 0:
        return sys.executable
    same = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([candidate, "-c", same], user=USER, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip("This test wants a Python of this version that every user can start.")


@contextmanager
def running(state: Path) -> Iterator[Engine]:
    """An ordinary user's engine, which no file of its own is open to by force."""
    if os.geteuid() != 0:
        with engine.running(state) as started:
            yield started
        return
    os.chown(state, USER, USER)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [_with_packages(Path(place)), "-m", "tests.support.ordinary_user", str(state)]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, **_user(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as service:  # fmt: skip
            assert service.stdout is not None
            url, pid, root = json.loads(service.stdout.readline())
            yield Engine(url, pid, state, root)
            service.communicate()


def limit(pid: int, file_bytes: int) -> None:
    """How large a file of this process, which is that user's, may grow."""
    program = f"from resource import *; prlimit({pid}, RLIMIT_FSIZE, ({file_bytes}, prlimit({pid}, RLIMIT_FSIZE)[1]))"
    subprocess.run([python(), "-c", program], check=True, **_user())


def _user() -> Any:
    return {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}


def _with_packages(place: Path) -> str:
    """The same with this project's packages, which the engine's built environment does not name."""
    subprocess.run([python(), "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(f"{PACKAGES}\n")
    return str(place / "bin" / "python")


if __name__ == "__main__":
    with engine.running(Path(sys.argv[1])) as own:
        print(json.dumps([own.url, own.pid, own.root]), flush=True)
        sys.stdin.read()
