"""ReadSession: a session of the caller's, as it is and as it was (GET).

    /claude-code/sessions/{session_id}                 turns, cost, size, when, its versions
    /claude-code/sessions/{session_id}/files           what is in its workspace
    /claude-code/sessions/{session_id}/files/{path+}   one of these files
    /claude-code/sessions/{session_id}/archive         all of it, as a zip: a link

Each takes `?version=`. Answers go out as they are made (`streaming.py`), so that a file's bytes come as they are. A
file is a stranger's: it goes out under a type that no browser shows, to be saved. One that is too large, and the
archive, is a link of some minutes: 303, or 200 for who accepts JSON, since no page can read a redirect.

It changes nothing, and writes nothing but extracts (`bucket/extracts.py`).
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from urllib.parse import quote, unquote_to_bytes

from lambdas import strict
from lambdas.answer import LINK_SECONDS
from lambdas.archive.tree import shown
from lambdas.bucket import versions
from lambdas.bucket.client import s3_client
from lambdas.bucket.contents import Contents, File
from lambdas.bucket.extracts import CONTENT_TYPE, disposition, extract
from lambdas.bucket.grants import link
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import SessionVersion, session_key
from lambdas.contract import Base
from lambdas.errors import InvalidRequest, SessionNotFound, WorkflowError
from lambdas.proxied import Answer, Asked, common
from lambdas.request import SESSION_ID
from lambdas.settings import DoorSettings
from lambdas.streaming import Streamed
from lambdas.strict import Json

THROUGH_BYTES = 6 * 1000 * 1000
"""The largest file that goes through the function: of an answer, Lambda sends so much as fast as it can, and all beyond
at 2 MB/s, where S3 is faster."""

PIECE = 256 * 1024
"""Bytes of an answer that are sent at a time."""

VERSIONS = 100
"""How many of a session's versions are told of, the newest."""

HARMLESS = {
    "Content-Type": CONTENT_TYPE,
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""The headers of a file: whatever it says it is, nobody is to believe it in this API's name."""


def handler(event: Json) -> Streamed:
    """The entry point (`lambdas.streaming`): API Gateway's proxy event → the answer, as it comes."""
    return state().answer(event)


@cache
def state() -> "ReadSession":
    """ReadSession by the function's environment, made once in a warm function."""
    settings = DoorSettings.read(os.environ)
    return ReadSession(settings, Bucket(s3_client(), settings.bucket), time.time)


@dataclass(frozen=True)
class ReadSession:
    """Shows sessions to their callers."""

    settings: DoorSettings
    bucket: Bucket
    now: Callable[[], float]

    def answer(self, event: Json) -> Streamed:
        """The answer to a request. Its pieces raise where what is stored is damaged, or cannot be read."""
        try:
            asked = Asked.of(event, self.settings)
            if asked.method != "GET":
                is_session = asked.resource.endswith("{session_id}")
                return self._whole(Answer.not_allowed("GET, DELETE" if is_session else "GET"))
            return self._seen(asked)
        except WorkflowError as error:
            return self._whole(Answer.refused(error))

    def _seen(self, asked: Asked) -> Streamed:
        stored, base, metadata = self._version(asked)
        match asked.resource.rpartition("{session_id}")[2]:
            case "":
                return self._whole(Answer(200, _session(stored, base, metadata)))
            case "/archive":
                key = session_key(base.session_id)
                url = link(self.bucket, key, LINK_SECONDS, base.version_id)
                return self._whole(_linked(asked, base, url, base.size))
            case "/files":
                contents = Contents.of(self.bucket, base)
                return self._streamed({"Content-Type": "application/json"}, _listed(base, contents))
            case _:
                return self._file(asked, base, _path(asked))

    def _version(self, asked: Asked) -> tuple[list[SessionVersion], Base, dict[str, str]]:
        """The session's versions, and the one that is asked for. Raises `SessionNotFound`, of another caller's too."""
        missing = SessionNotFound(session_id=asked.session_id)
        stored = versions.of(self.bucket, asked.session_id, asked.caller) if _is_id(asked.session_id) else []
        wanted = asked.query.get("version")
        found = next((each for each in stored if wanted in (None, each.version_id)), None)
        told = versions.told(self.bucket, asked.session_id, found.version_id) if found else None
        if told is None or told[1]["owner"] != asked.caller:
            raise missing
        return stored, *told

    def _file(self, asked: Asked, base: Base, path: str) -> Streamed:
        contents = Contents.of(self.bucket, base)
        size = contents.file(path).size
        if size > THROUGH_BYTES:
            key = extract(self.bucket, contents, base, path, self.now())
            return self._whole(_linked(asked, base, link(self.bucket, key, LINK_SECONDS), size))
        content = b"".join(contents.open(path))  # whole, since what is wrong with it is known at its end
        pieces = (content[at : at + PIECE] for at in range(0, size, PIECE))
        return self._streamed({**HARMLESS, "Content-Disposition": disposition(path)}, pieces)

    def _whole(self, answer: Answer) -> Streamed:
        headers = {"Content-Type": "application/json", **common(self.settings), **answer.headers}
        return Streamed(answer.status, headers, iter([answer.text]))

    def _streamed(self, headers: dict[str, str], pieces: Iterator[bytes]) -> Streamed:
        return Streamed(200, {**common(self.settings), **headers}, pieces)


def _is_id(text: str) -> bool:
    return SESSION_ID.fullmatch(text) is not None


def _path(asked: Asked) -> str:
    """The file's path, which is read out of the request's in one way: percent-decoded once, byte for byte.

    Raises `InvalidRequest` for a percent sign that stands for nothing. What path there is none of is nothing's name.
    """
    raw = asked.path.partition(f"/sessions/{asked.session_id}/files/")[2]
    if not raw.isascii() or "%" in re.sub("%[0-9A-Fa-f]{2}", "", raw):
        raise InvalidRequest("The path must be percent-encoded UTF-8, as the list of files has it.")
    return os.fsdecode(unquote_to_bytes(raw))


def _session(stored: list[SessionVersion], base: Base, metadata: dict[str, str]) -> Json:
    at = next(each.at for each in stored if each.version_id == base.version_id)
    return {
        "success": True,
        "session_id": base.session_id,
        "version": base.version_id,
        "created": metadata["created"].replace("+00:00", "Z"),
        "committed": _iso(at.timestamp()),
        "turns": base.turns,
        "cost_usd": base.cost_usd,
        "size": base.size,
        "file_count": int(metadata["file-count"]),
        "versions": [
            {"version": each.version_id, "committed": _iso(each.at.timestamp()), "size": each.size}
            for each in stored[:VERSIONS]
        ],
        "versions_total": len(stored),
    }


def _listed(base: Base, contents: Contents) -> Iterator[bytes]:
    """The list, in pieces: a large session's is of some ten megabytes."""
    head = strict.written({"success": True, "session_id": base.session_id, "version": base.version_id})
    held, total = bytearray(head[:-1] + b', "files": ['), 0
    for file in contents.files:
        held += (b"," if total else b"") + strict.written(_told(file))
        total += 1
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    yield bytes(held) + b'], "files_total": %d}' % total


def _told(file: File) -> Json:
    """A file as the list has it. A name that is no text cannot stand in JSON: then `quoted` is what a request says."""
    name = shown(file.path)
    told = {"path": name, "kind": file.kind, "size": file.size, "modified": _iso(file.modified / 1e9)}
    return told | ({"quoted": quote(os.fsencode(file.path))} if os.fsencode(file.path) != name.encode() else {})


def _linked(asked: Asked, base: Base, url: str, size: int) -> Answer:
    facts = {"success": True, "session_id": base.session_id, "version": base.version_id}
    body = facts | {"url": url, "expires_in": LINK_SECONDS, "size": size}
    takes_json = "application/json" in asked.headers.get("accept", "")
    return Answer(200, body) if takes_json else Answer(303, body, {"Location": url})


def _iso(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
