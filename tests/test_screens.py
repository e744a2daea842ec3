"""What the commands show at terminals of 80 and of 200 columns, without colour, and in a pipe: kept in `tests/screens`.

Where a screen is meant to change: `UPDATE_SCREENS=1 pytest tests/test_screens.py`, and read the diff.
"""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from claude_workflow.cli.endpoint import announced
from tests.support.alike import kept, same
from tests.support.commands import Serve, at_terminal, command
from tests.support.long_runs import RUN, Script, playing
from tests.support.waiting import eventually

WIDTHS = pytest.mark.parametrize("columns", [80, 200, None], ids=["80", "200", "piped"])


class Asked(NamedTuple):
    """Two runs of one session."""

    state: Path
    session: str
    well: str
    failed: str


@pytest.fixture(scope="module")
def asked(serve: Serve) -> Asked:
    """One that was answered, whose key is `screens`, and one that failed."""
    well = json.loads(serve.ask(PROMPT, "--json", "--key", "screens").stdout)
    session = well["session_id"]
    failed = json.loads(serve.ask("status 401 times 3", "--json", "--session", session).stdout)
    return Asked(serve.state, session, well["run_id"], failed["run_id"])


PROMPT = "write notes.txt: Remember the milk."


COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9]m")


def check(name: str, seen: str, columns: int | None) -> None:
    """Compares a screen with the one that is kept; nothing on it drives a terminal or is too wide for it."""
    file = kept(f"{name}-{columns or 'piped'}")
    text = same(seen)
    if os.environ.get("UPDATE_SCREENS"):
        file.write_text(text)
    assert not COLOUR.search(seen)
    assert text == file.read_text()


def screen(columns: int | None, *arguments: str | Path) -> str:
    """What the command shows; of a pipe both streams, one after the other."""
    if columns:
        return at_terminal(*arguments, columns=columns, NO_COLOR="1")[1]
    done = command(*arguments)
    return done.stdout + done.stderr


@WIDTHS
def test_ask(asked: Asked, columns: int | None) -> None:
    """The answer, its files, what it took, how to go on; its key gets it again, without a model call."""
    check("ask", screen(columns, "ask", PROMPT, "--key", "screens", "--state", asked.state), columns)


@WIDTHS
def test_watch(columns: int | None) -> None:
    """A line a step, cut where the terminal ends; a subagent's stands further in. Texts are whole, and the last one is
    the answer."""
    with playing(Script()) as url:
        check("watch", screen(columns, "watch", RUN, "--url", url), columns)


@WIDTHS
def test_runs(asked: Asked, columns: int | None) -> None:
    """Whole ids at any width, a head for every column; a block of lines a run where there is no room for one."""
    check("runs", screen(columns, "runs", "--session", asked.session, "--state", asked.state), columns)


@WIDTHS
@pytest.mark.parametrize("which", ["show", "show-failed"])
def test_show(asked: Asked, which: str, columns: int | None) -> None:
    """What happened comes first, then what to do, then where the time went."""
    run = asked.well if which == "show" else asked.failed
    check(which, screen(columns, "show", run, "--state", asked.state), columns)


@WIDTHS
def test_replay(asked: Asked, columns: int | None) -> None:
    """What would become of it."""
    check("replay", screen(columns, "replay", "--dry-run", asked.failed, "--state", asked.state), columns)


def served(state: Path, columns: int, like: Path) -> str:
    """A service at a terminal, that is asked once and ended by Ctrl-C."""
    state.mkdir()
    (template,) = like.glob("template-*.json")
    (state / template.name).write_bytes(template.read_bytes())
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(screen, columns, "serve", "--port", "0", "--state", state)
        assert eventually(lambda: announced(state) or shown.done(), 60)
        word = announced(state)
        assert word, shown.result()
        assert command("ask", "Hello", "--state", state).returncode == 0
        os.kill(word["pid"], signal.SIGINT)
        return shown.result()


def test_serve(serve: Serve, tmp_path: Path) -> None:
    """Who answers, what keeps it in, where sessions are; the line to paste, a line a request, and the end."""
    check("serve", serve.said().split("\n\n")[0] + "\n\n" + serve.printed(), None)
    with ThreadPoolExecutor(2) as pool:
        shown = {columns: pool.submit(served, tmp_path / str(columns), columns, serve.state) for columns in (80, 200)}
    for columns, seen in shown.items():
        check("serve", seen.result(), columns)
