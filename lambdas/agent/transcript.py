"""The conversation as Claude Code keeps it: a file of JSON lines among the agent's own.

So anything may be in its place, and is told from a transcript without waiting and without following a link.

**Who ended a turn.** Claude Code (2.1.332) takes an interruption for the user's, and lets the model read so in the next
turn: the user did not want to proceed, and it should stop and wait. Where it was a limit of the service, or the caller
ended the run from outside, the lines that say so are written anew, when the run's processes are dead.
"""

import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from lambdas.agent import frames
from lambdas.agent.scratch import Scratch

REFUSED = "The user doesn't want to "
"""How the result begins of a tool that was at work or waited for its turn."""

INTERRUPTED = "[Request interrupted by user"
"""How the text begins that ends the turn."""

ENDERS = {
    "deadline": "by a time limit of the service, not by the user",
    "cancelled": "because the caller of the service ended the run",
}
"""Who ends a turn, in words, by its `stop_reason`."""

STOPPED = (
    "[This call was stopped {}. It may have run in part or in full, and what it changed may be there; it does not run "
    "any more.]"
)
ENDED = "[This turn was ended here {}.]"

LAST_BYTES = 1024 * 1024
"""In how much of its end a call that waits is looked for, which is among the last lines."""

NEWS_BYTES = 64 * 1024 * 1024
"""How much of one run's conversation is looked through; what is longer stays as it is."""


NAMED = re.compile(rb'"(?:file|notebook)_path":("(?:[^"\\]++|\\.)*+")')
"""A file by which a tool was called. Possessive: what could be gone back to takes 130 bytes for each of a string."""

NAMED_MOST = 100_000
"""How often files are looked for; whatever is named after that, the model may have to read again."""


def only_uuid(text: str) -> str:
    """Only a UUID: `--resume` takes paths and titles, too. Raises ValueError."""
    return str(uuid.UUID(text))


@dataclass(frozen=True)
class Transcript:
    """That of one session, whether or not it is there."""

    scratch: Scratch
    claude_session: str

    @property
    def waits(self) -> bool:
        """Whether it may end with a call that waits for an approval, which Claude Code makes when it is resumed."""
        opened = self.open()
        if opened is None:
            return False
        with opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - LAST_BYTES))
            return b'"hook_deferred_tool"' in opened.read(LAST_BYTES)

    def open(self, flags: int = os.O_RDONLY) -> BinaryIO | None:
        """The file, opened (without a buffer if for writing); None if there is none, or it is empty."""
        name = f"{only_uuid(self.claude_session)}.jsonl"
        with suppress(OSError), _folder(str(self.scratch.claude)) as claude, _folder("projects", claude) as projects:
            with os.scandir(projects) as entries:
                names = sorted(entry.name for entry in entries)
            for each in names:
                with suppress(OSError), _folder(each, projects) as folder:
                    found = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
                    seen = os.fstat(found)
                    if stat.S_ISREG(seen.st_mode) and seen.st_size:
                        return os.fdopen(found, "rb" if flags == os.O_RDONLY else "r+b")
                    os.close(found)
        return None

    def named(self) -> set[str]:
        """Files by which tools were called, as the model named them. Claude Code (2.1.332) looks at those that it has
        written when it resumes, and need not have them read again before it changes them."""
        file = self.open()
        if file is None:
            return set()
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - NEWS_BYTES))
            said = {each[1] for each in islice(NAMED.finditer(file.read(NEWS_BYTES)), NAMED_MOST)}
        return set(filter(None, map(_path, said)))

    @property
    def size(self) -> int:
        """Bytes; 0 if there is none."""
        file = self.open()
        if file is None:
            return 0
        with file:
            return os.fstat(file.fileno()).st_size

    def total_usd(self) -> float:
        """The total from which Claude Code (2.1.330) will count on: that of the last record which it wrote of it."""
        total, file = 0.0, self.open()
        if file is None:
            return total
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - NEWS_BYTES))
            for line in file.read(NEWS_BYTES).split(b"\n"):
                if line.startswith(b'{"type":"cost-state"'):
                    with suppress(ValueError, KeyError, TypeError, RecursionError):  # Claude Code passes over it, too
                        total = float(json.loads(line)["totalCostUSD"])
        return total

    def reword(self, since: int, ender: str) -> None:
        """Say after the byte `since` who it was that ended the turn, in words of `ENDERS`. Raises OSError."""
        file = self.open(os.O_RDWR)
        if file is None:
            return
        with file:
            file.seek(since)
            news = file.read(NEWS_BYTES)
            said = b"\n".join(_reworded(line, ender) for line in news.split(b"\n"))
            if said != news and not file.read(1):
                file.seek(since)
                file.write(said)
                file.truncate()


def _path(said: bytes) -> str | None:
    """What a JSON string says, if a file can be named so."""
    try:
        path = str(json.loads(said))
        os.fsencode(path)
    except ValueError:
        return None
    return path


@contextmanager
def _folder(name: str, parent: int | None = None) -> Iterator[int]:
    """A directory, opened. Raises `OSError`, also where a link is in its place."""
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield folder
    finally:
        os.close(folder)


def _reworded(line: bytes, ender: str) -> bytes:
    """A line of the transcript; as it is unless it says that the user ended something."""
    if REFUSED.encode() not in line and INTERRUPTED.encode() not in line:
        return line
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the agent's writing, or Claude Code's that was cut
        return line
    blocks = frames.blocks(record) if isinstance(record, dict) and frames.kind(record) == "user" else []
    changed = [_reword(block, ender) for block in blocks]
    if not any(changed):
        return line
    return json.dumps(record, separators=(",", ":")).encode()


def _reword(block: dict[str, Any], ender: str) -> bool:
    """Change a block in place, if it is one of these."""
    name, begins, instead = {
        "tool_result": ("content", REFUSED, STOPPED),
        "text": ("text", INTERRUPTED, ENDED),
    }.get(frames.kind(block), ("", "", ""))
    text = block.get(name)
    applies = bool(name) and isinstance(text, str) and text.startswith(begins)
    if applies:
        block[name] = instead.format(ender)
    return applies
