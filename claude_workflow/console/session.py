"""A session: its turns over its versions, and the files of any of them, as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from claude_workflow.cli.record import READERS, each
from claude_workflow.cli.runs import Row
from claude_workflow.cli.sessions.stored import Stored, stored
from claude_workflow.console.conversation import picture
from claude_workflow.console.runs import Runs, Wanted
from lambdas.archive.tree import shown as readable
from lambdas.bucket import versions
from lambdas.bucket.contents import Contents, File
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.errors import SessionDamaged, SessionNotFound

VERSIONS = 100
"""Of a session that a page looks at: the newest."""
ENTRIES = 20_000
"""Files of a folder, and below it, that are looked at for a page."""
TEXT_BYTES = 200_000
"""Of a file that a page shows."""
PICTURE_BYTES = 20_000_000


@dataclass(frozen=True)
class Turn:
    """A version, or a run that made none."""

    at: float
    """Epoch seconds: when it was asked for, or, where that is not known any more, committed."""
    row: Row | None
    """The run; None where its record has expired."""
    version_id: str | None
    number: int | None
    """How many turns the session has with it."""
    usd: float | None
    """What the session has cost until then."""
    size: int | None
    """Bytes of the archive."""


@dataclass(frozen=True)
class Session:
    """A session as a page has it."""

    stored: Stored
    turns: list[Turn]
    """The newest first."""
    more: bool
    """Whether there are more than are looked at."""
    forked_from: str | None
    """The session that it is a copy of, where its first turn is known."""


def looked(bucket: Bucket, runs: Runs, session_id: str) -> Session | None:
    """None where there is no such session (any more)."""
    found = stored(bucket, session_id)
    if found is None:
        return None
    page = runs.page(Wanted(session=session_id))
    rows = {row.run_id: row for row in page.rows}
    kept = versions.of(bucket, session_id, found.owner) if found.owner else []
    turns = list(each(lambda one: _turn(bucket, session_id, one, rows), kept[:VERSIONS], READERS))
    committed = {turn.row.run_id for turn in turns if turn.row}
    turns += [Turn(row.requested_at, row, None, None, None, None) for row in page.rows if row.run_id not in committed]
    turns.sort(key=lambda turn: turn.at, reverse=True)
    first = next((turn.row for turn in reversed(turns) if turn.row), None)
    return Session(found, turns, len(kept) > VERSIONS or page.older is not None, first.copy_of if first else None)


def _turn(bucket: Bucket, session_id: str, kept: versions.SessionVersion, rows: dict[str, Row]) -> Turn:
    at = kept.at.timestamp()
    try:
        told = versions.told(bucket, session_id, kept.version_id)
    except SessionDamaged:
        told = None
    if told is None:
        return Turn(at, None, kept.version_id, None, None, kept.size)
    base, metadata = told
    row = rows.get(metadata.get("run", ""))
    return Turn(row.requested_at if row else at, row, kept.version_id, base.turns, base.cost_usd, kept.size)


def base_of(bucket: Bucket, session_id: str, version_id: str | None) -> Base:
    """A version of a session, or its newest. Raises `SessionNotFound` and `SessionDamaged`."""
    found = versions.told(bucket, session_id, version_id) if version_id else versions.newest(bucket, session_id)
    if found is None:
        raise SessionNotFound(session_id=session_id)
    return found[0]


@dataclass(frozen=True)
class Folder:
    """What is directly in a folder of a version."""

    path: str
    """Empty for the workspace itself; else with a slash at its end."""
    above: list[tuple[str, str]]
    """The folders that it is in, and itself: paths and names."""
    entries: list[File]
    """Folders first."""
    whole: bool
    """Whether all of it was looked at."""


def folder(contents: Contents, path: str) -> Folder:
    """Raises `FileNotFound`."""
    found = contents.under(path.rstrip("/")) if path else contents.files
    some = list(islice(found, ENTRIES))
    direct = [file for file in some if (name := file.path.removeprefix(path)) and "/" not in name]
    direct = [file for file in direct if file.path != path.rstrip("/")]
    parts = path.rstrip("/").split("/") if path else []
    above = [("/".join(parts[: number + 1]) + "/", readable(name)) for number, name in enumerate(parts)]
    entries = sorted(direct, key=lambda file: (file.kind != "folder", file.path))
    return Folder(path, above, entries, next(found, None) is None)


@dataclass(frozen=True)
class Text:
    """A file as a page shows it."""

    text: str
    kind: str
    """`text`, `picture`, or `bytes`, of which none is shown."""
    whole: bool


def text_of(contents: Contents, file: File) -> Text:
    """Its beginning. Raises `SessionDamaged`, as far as it is read."""
    begins = head(contents.open(file.path), TEXT_BYTES)
    if picture(begins) and file.size <= PICTURE_BYTES:
        return Text("", "picture", whole=True)
    whole = len(begins) == file.size
    try:
        text = begins.decode()
    except UnicodeDecodeError as error:
        if whole or error.start < len(begins) - 4:
            return Text("", "bytes", whole)
        text = begins[: error.start].decode()
    return Text(text, "bytes" if "\0" in text else "text", whole)


def head(pieces: Iterator[bytes], most: int) -> bytes:
    """The beginning of what comes in pieces, of which no more is read."""
    found = b""
    for piece in pieces:
        found += piece
        if len(found) >= most:
            break
    return found[:most]
