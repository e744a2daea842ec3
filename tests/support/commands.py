"""`claude-workflow` as users run it: processes of their own, with an environment of their own."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "claude_workflow.cli.main")
ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
    "PYTHONPATH": str(ROOT),
    "PYTHONUTF8": "1",
}
"""Neither a model's key nor an API key of the developer's own."""
START_SECONDS = 120
STOP_SECONDS = 60


def command(*arguments: str | bytes | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs it to its end; `options` are those of `subprocess.run`, and `env` comes on top of the usual environment."""
    environment = ENVIRONMENT | options.pop("env", {})
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, timeout=START_SECONDS, text=True, **options
    )


def at_terminal(*arguments: str | Path, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Runs it to its end at a terminal so wide; its exit code, and all that the terminal was sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=ENVIRONMENT | {"TERM": "xterm"} | environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    sent = b""
    with suppress(OSError):  # what Linux says where nobody has the other end any more
        while piece := os.read(leader, 65536):
            sent += piece
    os.close(leader)
    return process.wait(), sent.decode().replace("\r\n", "\n")


STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[A-K]|\r")
"""Colors, and what a passing line of progress leaves."""


WIPED = re.compile(r"[^\n]*\n(\x1b\[\?25h)?\r\x1b\[1A\x1b\[2K|[^\n]*\r\x1b\[2K")
"""A line that was written over, or the one above that was."""


def plain(text: str) -> str:
    """A screen as text: without colors, lines that passed, and the blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in STYLE.sub("", WIPED.sub("", text)).splitlines())


@dataclass
class Serve:
    """A running `claude-workflow serve`."""

    process: "subprocess.Popen[bytes]"
    state: Path
    port: int = 0

    @classmethod
    def start(cls, state: Path, *arguments: str, **environment: str) -> Self:
        """Starts it on a free port and waits until it is ready."""
        with (state / "stdout").open("wb") as out, (state / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [*COMMAND, "serve", "--port", "0", "--state", state, *arguments],
                env=ENVIRONMENT | environment,
                stdout=out,
                stderr=err,
                start_new_session=True,  # as a terminal has it: Ctrl-C goes to all of the session
            )
        started = cls(process, state)
        started.await_ready()
        return started

    def await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while "-d '" not in self.printed():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def printed(self) -> str:
        return (self.state / "stdout").read_text()

    def said(self) -> str:
        return (self.state / "stderr").read_text()

    @property
    def url(self) -> str:
        return self.printed().split(" ", 1)[0]

    @property
    def curl(self) -> str:
        """The printed line, to be pasted into a shell."""
        return self.printed().split("\n\n")[1]

    @property
    def key(self) -> str:
        found = re.search(r"x-api-key: ([\w-]+)'", self.curl)
        assert found
        return found[1]

    def ask(self, *arguments: str | bytes, **options: Any) -> "subprocess.CompletedProcess[str]":
        return command("ask", *arguments, "--state", self.state, **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it as Ctrl-C does, by a signal to its process group; its exit code."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.wait(STOP_SECONDS)


def processes(state: Path) -> list[str]:
    """What runs with `state` in its command line or environment: the service, its engine, the engine's workers."""
    listing = ["ps", "axEww" if sys.platform == "darwin" else "axeww", "-o", "pid=,args="]
    lines = subprocess.run(listing, capture_output=True, text=True, errors="replace", check=True).stdout.splitlines()
    return [line[:120] for line in lines if str(state) in line]


def assert_nothing_runs(state: Path) -> None:
    """Within some seconds: after a kill the engine has to notice by itself."""
    assert eventually(lambda: not processes(state)), processes(state)
