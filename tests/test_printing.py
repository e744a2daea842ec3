"""What a stranger wrote does nothing at a terminal, and arrives as it is in a pipe."""

import io
import json

import pytest

from claude_workflow.cli.printing import MARK, document, harmless, line, whole

ALIVE = {
    "a title": "\x1b]0;mine\x07",
    "the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "a link": "\x1b]8;;http://evil.example\x1b\\docs\x1b]8;;\x1b\\",
    "an empty screen": "\x1b[2J\x1b[H",
    "a C1 control": "\x9b31m",
    "a line written over": "rm -rf ~\rls     ",
    "a bell and a backspace": "\x07\x08",
    "a turned direction": "report\u202efdp.exe",
    "isolates": "\u2066x\u2069",
    "no width": "a\u200bb\ufeffc\u00add",
    "lines of other kinds": "a\u2028b\u2029c\x0bd\x0ce\x85f",
    "half a pair": "\ud83d",
    "tags": "\U000e0041",
}


class Terminal(io.StringIO):
    """A stream that says it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Pipe(Terminal):
    """One that is none."""

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("text", ALIVE.values(), ids=ALIVE)
def test_nothing_of_it_is_obeyed(text: str) -> None:
    """A mark stands for each such character, and JSON says which it was."""
    told = whole(text, Terminal())
    assert MARK in told
    assert all(char.isprintable() for char in told)
    assert all(char.isprintable() for char in line(text, 80))
    written = document({text: text}, Terminal())
    assert all(char.isprintable() or char == "\n" for char in written)
    assert json.loads(written) == {text: text}


@pytest.mark.parametrize("text", ALIVE.values(), ids=ALIVE)
def test_a_pipe_gets_it_as_it_is(text: str) -> None:
    """Whoever reads it decides what it may do."""
    assert whole(text, Pipe()) == text
    assert json.loads(document({text: text}, Pipe())) == {text: text}


def test_what_is_harmless_stays() -> None:
    """Lines, tabs, every script, accents of their own, emoji that this Python does not know yet."""
    text = "all:\n\tmake\n naïve café e\u0301 日本語\u3000العربية [red]:smile: \U0001fadc"
    assert harmless(text) == text


def test_an_encoding_without_it_gets_an_escape() -> None:
    """In JSON one that means the same."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert document({"é": "\U0001f600"}, stream) == '{"\\u00e9": "\\ud83d\\ude00"}'
