"""What a run changed of its session's files, as differences between the version it began with and the one it made."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from itertools import islice

from claude_workflow.cli.record import Run
from claude_workflow.console.session import head
from lambdas.bucket import record, versions
from lambdas.bucket.contents import Contents
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.errors import FileNotFound, SessionDamaged, SessionNotFound

FILES = 50
"""Of a run, whose differences are shown."""
BYTES = 100_000
"""Of a file that is compared; a larger one is only named."""
LINES = 2000
"""Of a file that is compared: to compare takes the square of it at worst, which is a second."""
SECONDS = 5.0
"""Of the processor, for all files of a run together."""
SHOWN = 600
"""Lines of a difference."""
LOOKED = 100
"""Versions among which that of the run is looked for: those that were committed first after it was asked for."""
CLOCKS = 60.0
"""Seconds by which S3's clock and the functions' may differ, and more."""


@dataclass(frozen=True)
class Line:
    """One line of a difference."""

    kind: str
    """`plus`, `minus`, `at` (where it is) or `same`."""
    text: str


@dataclass(frozen=True)
class Change:
    """One file."""

    path: str
    change: str
    lines: list[Line]
    why: str | None
    """Why there are no lines."""


def of(bucket: Bucket, run: Run) -> Iterator[Change]:
    """Of a run that was answered, file by file."""
    files = [file for file in (run.answer or {}).get("files", []) if isinstance(file.get("path"), str)]
    pinned = record.pinned(bucket, run.run_id)
    before = _contents(bucket, pinned.base if pinned else None)
    after = _contents(bucket, _made(bucket, run))
    until = time.thread_time() + SECONDS
    for file in files[:FILES]:
        path, change = str(file["path"]), str(file.get("change"))
        if time.thread_time() < until:
            yield _change(path, change, before, after)
        else:
            yield Change(path, change, [], "Those before it have taken all the time that there is to compare here.")


def _made(bucket: Bucket, run: Run) -> Base | None:
    """The version that the run committed; None where it is not found."""
    found = versions.newest(bucket, run.session_id)
    kept = versions.of(bucket, run.session_id, found[1]["owner"]) if found else []
    begin = float(run.request["requested_at"]) - CLOCKS
    since = [one for one in reversed(kept) if one.at.timestamp() >= begin]
    for one in since[:LOOKED]:
        told = versions.told(bucket, run.session_id, one.version_id)
        if told and told[1].get("run") == run.run_id:
            return told[0]
    return None


def _contents(bucket: Bucket, base: Base | None) -> Contents | None:
    try:
        return Contents.of(bucket, base) if base else None
    except (SessionNotFound, SessionDamaged):
        return None


def _change(path: str, change: str, before: Contents | None, after: Contents | None) -> Change:
    if after is None:
        return Change(path, change, [], f"The version that the run made is gone, or came after {LOOKED} others.")
    if before is None and change != "added":
        return Change(path, change, [], "The version that the run began with is gone.")
    try:
        old, new = _lines(before, path), _lines(after, path)
    except (SessionDamaged, SessionNotFound) as error:
        return Change(path, change, [], error.detail or error.said)
    except ValueError as error:
        return Change(path, change, [], str(error))
    found = [_line(line) for line in islice(unified_diff(old, new, lineterm="", n=3), 2, SHOWN + 2)]
    return Change(path, change, found, None if found else "Its content is the same.")


def _lines(contents: Contents | None, path: str) -> Sequence[str]:
    """None of a file that is not there. Raises `ValueError` for what is not compared, and `SessionDamaged`."""
    if contents is None:
        return ()
    try:
        content = head(contents.open(path), BYTES + 1)
    except FileNotFound:
        return ()
    if len(content) > BYTES or content.count(b"\n") > LINES:
        raise ValueError("It is too large to be compared here.")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("It is no text.")
    return text.split("\n")


def _line(text: str) -> Line:
    return Line({"+": "plus", "-": "minus", "@": "at"}.get(text[:1], "same"), text)
