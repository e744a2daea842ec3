"""A run as it is seen while it goes on: where it stands, and its messages, read from `runs/{run_id}/` alone.

    done      response.json is there
    failed    failure.json is there, and nothing began after the attempts that it tells of
    lost      neither, and what began last did so long ago that nobody can be at work any more
    running   else

Message n of a run, from 1, is the n-th over the messages.json of its attempts, in the attempts' order. Such a file
holds a message a line and only ever grows by lines, so it is read on from where it was read to.

What lies under an attempt was written by RunClaude, which runs strangers' code: of whatever it holds so much is read
as is set here, and nothing of it is believed but that it was written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lambdas import strict
from lambdas.bucket import record
from lambdas.bucket.objects import Bucket
from lambdas.errors import RunNotFound
from lambdas.request import RUN_ID
from lambdas.strict import DEPTH, ENVELOPE, Json

RUNNING, DONE, FAILED, LOST = "running", "done", "failed", "lost"
"""Where a run stands."""

PIECE = 1024 * 1024
"""Bytes that are read at a time."""
GROWN = 64 * 1024
"""Bytes that are asked for beyond those that there were when a file was looked for."""
MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest message that is given out."""
UNREADABLE = b'{"type": "unreadable"}'
"""What stands for a larger one, or for what is no message."""

STARTED_BYTES = 1024
"""No honest mark of a start is larger."""
YEAR_9999 = 253_402_300_800
"""Epoch seconds; later there are no dates."""
END_BYTES = 64 * 1024
"""How far back the newest message is looked for."""
DOING_CHARS = 120

PUBLIC = (
    *("success", "error", "code", "retryable", "session_id", "run_id", "cost_usd"),
    *("retry_after", "start_seconds", "resumes"),
)
"""What a caller may know of failure.json."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    asked: Json
    """Its request.json."""
    status: str
    attempts: Mapping[str, int]
    """The bytes of messages.json, by attempt (`runs/{run_id}/{attempt}/`), in the attempts' order."""
    ended: Json | None
    """Its response.json, or its failure.json."""
    cancelled: bool
    """Whether its caller has asked for its end."""


def asked(bucket: Bucket, run_id: str, owner: str) -> Json:
    """The request.json of a caller's run. Raises `RunNotFound`, of another caller's too."""
    found = record.request(bucket, run_id) if RUN_ID.fullmatch(run_id) else None
    if found is None or found["owner"] != owner:
        raise RunNotFound
    return found


def standing(bucket: Bucket, asked: Json, lease: float, now: float, since: str = "") -> Standing:
    """Where the run in `asked` stands at `now` (epoch seconds), of which an attempt can be at work for `lease` seconds;
    of its attempts, those before `since` are left out."""
    run_id = asked["run_id"]
    prefix = f"runs/{run_id}/"
    sizes = {one["Key"]: one["Size"] for page in bucket.pages(prefix, since) for one in page}
    attempts: dict[str, int] = {}
    for key, size in sizes.items():
        attempt, _, name = key.rpartition("/")
        if attempt + "/" != prefix:
            attempts[attempt + "/"] = size if name == "messages.json" else attempts.get(attempt + "/", 0)
    status, ended = RUNNING, None
    newest = max(attempts, default="")
    again = record.handed_over_again(bucket, run_id) if f"{prefix}again.json" in sizes else 0.0
    if f"{prefix}response.json" in sizes:
        status, ended = DONE, record.response(bucket, run_id)
    elif f"{prefix}failure.json" in sizes:
        failure = record.failure(bucket, run_id) or {}
        told = max(failure.get("costs", {}), default="")
        if newest <= told and again < _began(told) + 0.001:
            status, ended = FAILED, failure
    began = max(float(asked["requested_at"]), again, _began(newest))
    if status == RUNNING and now > began + lease:
        status = LOST
    return Standing(asked, status, attempts, ended, f"{prefix}cancel" in sizes)


def _began(attempt: str) -> float:
    """When an attempt began, which its name has in milliseconds; 0 for what is none."""
    name = attempt.rstrip("/").rpartition("/")[2].partition("-")[0]
    return int(name) / 1000 if name.isdigit() else 0.0


def public(failure: Json) -> Json:
    """A failure as its caller may know it."""
    return {name: failure[name] for name in PUBLIC if name in failure}


def progress(bucket: Bucket, seen: Standing, messages: int) -> Json:
    """What a caller is told of a run that has not ended, of which there are so many `messages`."""
    receipts = [one for one in record.receipts(bucket, seen.asked["run_id"]).values() if one]
    newest = max(seen.attempts, default=None)
    deadline = _deadline(bucket, newest) if newest else None
    return {
        "success": True,
        "status": seen.status,
        "session_id": seen.asked["session_id"],
        "run_id": seen.asked["run_id"],
        "since": _iso(seen.asked["requested_at"]),
        "deadline": _iso(deadline) if deadline else None,
        "turns": sum(receipt.turns for receipt in receipts),
        "cost_usd": round(sum(receipt.usd for receipt in receipts), 10),
        "doing": _doing(bucket, seen),
        "messages": messages,
    }


def _iso(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _deadline(bucket: Bucket, attempt: str) -> float | None:
    """Epoch seconds, as the attempt's mark of its start says them; older ones are empty."""
    try:
        said: Any = bucket.read(f"{attempt}started", STARTED_BYTES)
    except ValueError:
        return None
    moment: Any = said.get("deadline") if isinstance(said, dict) else None
    number = isinstance(moment, int | float) and not isinstance(moment, bool)
    return moment if number and 0 < moment < YEAR_9999 else None


def _doing(bucket: Bucket, seen: Standing) -> str | None:
    """What the agent is at, by the newest message, in one short line."""
    newest = next((attempt for attempt in reversed(list(seen.attempts)) if seen.attempts[attempt]), None)
    if newest is None:
        return "starting" if seen.status == RUNNING else None
    for line in reversed(bucket.read_end(f"{newest}messages.json", END_BYTES).split(b"\n")):
        if (bare := line.strip(SEPARATORS)) and (message := _read(bare)) is not None:
            said = _told(message)
            return "".join(each for each in " ".join(said.split()) if each.isprintable())[:DOING_CHARS]
    return None


def _told(message: Json) -> str:
    """What a message says of what comes next: a tool at work, or the model."""
    said = message.get("message")
    content = said.get("content") if message.get("type") == "assistant" and isinstance(said, dict) else None
    last = content[-1] if isinstance(content, list) and content else None
    if not isinstance(last, dict) or last.get("type") != "tool_use":
        return "finishing" if message.get("type") == "result" else "thinking"
    given = last.get("input")
    texts = [value for value in given.values() if isinstance(value, str)] if isinstance(given, dict) else []
    about = f": {texts[0][: 10 * DOING_CHARS]}" if texts else ""
    return f"{str(last.get('name'))[:DOING_CHARS]}{about}"


SEPARATORS = b", \t\r"


class Messages:
    """The messages of a run as they come, each of them once."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.attempt = ""
        """The attempt that was read last."""
        self._size = 0
        """Of what is read of it, the bytes that there were."""
        self._at = 0
        """Where what is not read of it begins."""
        self.count = 0
        """How many were given so far: the number of the last one."""

    def new(self, attempts: Mapping[str, int]) -> Iterator[bytes]:
        """Those that came since, each of which is to be `shown`."""
        for attempt, size in attempts.items():
            if attempt < self.attempt:
                continue
            if attempt > self.attempt:
                self.attempt, self._size, self._at = attempt, 0, 0
            if size > self._size:
                for line in self._lines(f"{attempt}messages.json", size):
                    for message in _split(line):
                        self.count += 1
                        yield message
                self._size = size

    def _lines(self, key: str, size: int) -> Iterator[bytes]:
        """Those that hold messages, of a whole file from where it was read to; of one that is too long, its end. It had
        `size` bytes when it was looked for, and may have more by now."""
        begins, rest = self._at, b""
        while True:
            most = min(PIECE, max(0, size - begins - len(rest)) + GROWN)
            piece = self._bucket.read_part(key, begins + len(rest), most)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                begins += len(line) + 1
                if bare := _bare(line):
                    self._at = begins - 1  # what follows then is a separator, or the end
                    yield bare
            if len(rest) > MESSAGE_BYTES:
                begins, rest = begins + len(rest) - 1, b"!"  # whatever follows, that is no JSON
            elif not _bare(rest):
                begins, rest = begins + len(rest), b""  # the end, where there may be a message by now
            if len(piece) < most:
                break
        if bare := _bare(rest):
            self._at = begins + len(rest)
            yield bare


def _bare(line: bytes) -> bytes:
    """A line without what separates it from others; empty for one that holds nothing else."""
    bare = line.strip(SEPARATORS)
    return b"" if bare in (b"[", b"]") else bare


def _split(line: bytes) -> list[bytes]:
    """The messages of a line: one, but in files of version 0.3 and before, whose array is one line."""
    if not line.startswith(b"["):
        return [line]
    try:
        found = strict.read(line.decode(), DEPTH + ENVELOPE)
    except ValueError:
        return [line]
    return [strict.written(message) for message in found]


def shown(message: bytes) -> bytes:
    """A message as it was printed, in one line; `UNREADABLE` for what is none."""
    return message.replace(b"\r", b" ") if _read(message) is not None else UNREADABLE


def _read(message: bytes) -> Json | None:
    if len(message) > MESSAGE_BYTES:
        return None
    try:
        found = strict.read(message.decode(), DEPTH + ENVELOPE)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
