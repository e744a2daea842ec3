"""What the commands print: strangers' texts without what a terminal would obey, and texts as they are.

A stranger is whoever wrote a text that is not this command's own: the model, a file it named, a caller's prompt or
name, another server. At a terminal ESC, BEL, a C1 control or a carriage return would set titles, fill the clipboard and
write over lines; a mark that turns the direction of writing, or has no width, would make a name look like another's.
"""

import json
import os
import sys
import unicodedata
from typing import IO, Any, TextIO

from rich.console import Console

MARK = "\N{REPLACEMENT CHARACTER}"
"""Stands for each character that is left out, so that nothing is left out unseen."""

OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is no letter, sign or space: controls, marks of format, half pairs, line breaks."""


def harmless(text: str) -> str:
    """A stranger's text as a terminal may have it; its lines and tabs stay."""
    return "".join(MARK if unicodedata.category(char) in OBEYED and char not in "\n\t" else char for char in text)


def line(text: str, most: int) -> str:
    """The beginning of a stranger's text in one line, as a terminal may have it."""
    return harmless(" ".join(text[: 4 * most].split()))[:most]


def whole(text: str, stream: IO[str]) -> str:
    """A stranger's text for `stream`: harmless where that is a terminal, to a pipe or a file as it is."""
    return harmless(text) if stream.isatty() else text


def document(data: Any, stream: TextIO, indent: int | None = 2) -> str:
    """JSON for `stream`, in one line for a pipe. At a terminal what it would obey stands as `\\uXXXX`, which means the
    same; so does what the stream's encoding lacks.
    """
    in_ascii = "utf" not in stream.encoding.lower()
    if not stream.isatty():
        return json.dumps(data, ensure_ascii=in_ascii)
    text = json.dumps(data, ensure_ascii=in_ascii, indent=indent)
    return "".join(char if harmless(char) == char else json.dumps(char)[1:-1] for char in text)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """For the command to tell, as of what it prints without a console."""
        raise


def to_stdout(**options: Any) -> Console:
    """A console that shows texts as they are: no markup, no emoji codes, no colors for numbers."""
    return _Console(highlight=False, markup=False, emoji=False, **options)


def to_stderr() -> Console:
    """The same on standard error."""
    return _Console(stderr=True, highlight=False, markup=False, emoji=False)


def open_all() -> None:
    """Puts something in the place of standard streams that are closed (`>&-`), else the next file gets their number.

    Reading and writing fail there, as they would have; on standard error they do not, as it is nobody's result.
    """
    for number, name, use in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            found = os.open(os.devnull, use)  # the lowest free number, which is this one
            # By its number, and open for as long as the process lives.
            setattr(sys, name, os.fdopen(found, "r" if number == 0 else "w", encoding="utf-8"))


def carry_all() -> None:
    """Lets both streams take what their encoding lacks (half a surrogate pair, an umlaut in ASCII), as an escape."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper, in a command
