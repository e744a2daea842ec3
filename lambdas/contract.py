"""What flows between the states, in one direction: Request → Restored → RunResult → Response.

State data carry references and grants, never prompts or files: those are in the run's record, in the bucket.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, NotRequired, TypedDict

from lambdas.request import DIGEST, Allowance
from lambdas.strict import Json

FORMAT = 1
"""Version of everything stored: written into records and metadata, so that later code knows what it reads."""

ANSWER_BYTES = 200 * 1024
"""The whole answer, in UTF-8: below the 256 KiB of a state's output, links and envelope included."""


@dataclass(frozen=True)
class Base:
    """The version of a session that a run works on, as pinned in `base.json`."""

    session_id: str
    version_id: str
    etag: str
    created: str
    turns: int
    """0 where its operator put files there, and nobody has asked anything yet: it holds no conversation."""
    cost_usd: float
    claude_session: str
    size: int
    """Bytes of the archive."""
    directory: int
    """Bytes of its directory, with which it ends: all that a commit reads of a large one."""


def attempt(execution: str, began_at: float) -> str:
    """The name of an execution's attempt that began at `began_at` (epoch seconds)."""
    return f"{round(began_at * 1000):013d}-{hashlib.sha256(execution.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Claim:
    """What RestoreSession established, and what PersistSession and RecordFailure alone believe."""

    run_id: str
    session_id: str
    owner: str
    execution: str
    staging: str
    """Where this attempt's work is staged, or that of an earlier one lies: `runs/{run_id}/{attempt}/`."""
    recorded_at: float
    """Epoch seconds of the run's first request; the index sorts by its hour."""
    repeated: bool
    """Whether there was an attempt before this one."""
    claude_session: str
    base: Base | None
    """None for a new session; of another session for a fork."""
    long: bool = False
    """Whether it is the long machine's, in which the run works in legs."""

    @classmethod
    def of(cls, record: Json, execution: str, began_at: float, *, repeated: bool, long: bool = False) -> "Claim":
        """An execution's claim of the run in `record` (request.json), before it has a base.

        An attempt is an execution or, in the long machine, a leg of one, which began at `began_at` (epoch seconds): it
        is the same for its retries, and later ones sort behind it.
        """
        return cls(
            run_id=record["run_id"],
            session_id=record["session_id"],
            owner=record["owner"],
            execution=execution,
            staging=f"runs/{record['run_id']}/{attempt(execution, began_at)}/",
            recorded_at=record["requested_at"],
            repeated=repeated,
            claude_session=record["claude_session"],
            base=None,
            long=long,
        )

    def pinned(self, base: Base | None, number: int) -> "Claim":
        """The claim with its base; what an attempt stages says by its name to which pin of the run it belongs."""
        staging = f"{self.staging.removesuffix('/')}-{number}/" if number else self.staging
        return replace(self, base=base, staging=staging)

    @classmethod
    def load(cls, data: Json) -> "Claim":
        """Out of a state's data."""
        base = data["base"]
        return cls(**{**data, "base": Base(**base) if base else None})


@dataclass(frozen=True)
class Grant:
    """The right to one S3 request, signed: a URL and the headers it was signed with."""

    url: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Grants:
    """All that RunClaude can do to the bucket, for as long as the run may last."""

    request: Grant
    cancel: Grant
    """The mark by which the run's caller ends it: there is none until then."""
    session: Grant | None
    """The version that the run is pinned to; None for a new session."""
    resumed: Grant | None
    """What a checkpoint of an earlier attempt changed of it, to be gone on with."""
    approved: Grant | None
    """The mark that the call is made which this request approves: it can be written once, by one attempt of one run."""
    started: Grant
    receipt: Grant
    checkpoint: Grant
    changes: Grant
    messages: Grant
    result: Grant
    detail: Grant
    upload: Grant | None = None
    """What was uploaded for the run's workspace, if anything was; None where a checkpoint holds it already."""


@dataclass(frozen=True)
class Task:
    """What RunClaude is given."""

    run_id: str
    session_id: str
    claude_session: str
    resume: bool
    """Whether what is restored holds a conversation to go on with."""
    cut: bool
    """Whether a checkpoint of this very run is, whose turn is to be gone on with instead of being asked anew."""
    deadline: float
    """Epoch seconds at which the agent is interrupted."""
    gate: float | None
    """Epoch seconds from which a leg of a long run ends, as soon as nothing is lost by it; None: there is one leg."""
    limit: float | None
    """Epoch seconds at which such a leg is ended in any case."""
    handed_at: float
    """Epoch seconds at which RestoreSession gave it out: what goes by until RunClaude has it, it took to start."""
    size: int
    """Bytes of the session's archive; 0 for a new session."""
    directory: int
    """Bytes of the directory with which it ends."""
    allowance: Allowance
    grants: Grants

    @classmethod
    def load(cls, data: Json) -> "Task":
        """Out of a state's data."""
        grants: Json = {name: Grant(**grant) if grant else None for name, grant in data["grants"].items()}
        return cls(**{**data, "allowance": Allowance(**data["allowance"]), "grants": Grants(**grants)})


WARM_UP: Json = {"warm": True}
"""What RunClaude is given instead of a task, when a deploy is done, so that the first run finds it warm."""


@dataclass(frozen=True)
class Look:
    """What a POST looks for that waits for another execution of its run."""

    run_id: str
    session_id: str
    execution: str
    """The one at work."""
    until: float
    """Epoch seconds: how long it waits."""


@dataclass(frozen=True)
class Restored:
    """RestoreSession's result: the next step and what it needs."""

    next: str
    """`run`, `persist`, `done`; of a run that the long machine takes over `hand_over`, or `look` where another
    execution is at work on it."""
    claim: Claim
    task: Task | None = None
    response: Json | None = None
    name: str | None = None
    """Of the long machine's execution, where it is handed over."""
    look: Look | None = None

    def dump(self) -> Json:
        """For a state's data."""
        return asdict(self)


@dataclass(frozen=True)
class RunResult:
    """RunClaude's result, for the reader of the console and for PersistSession to begin with.

    Nothing that it says holds before result.json has said the same.
    """

    run_id: str
    stop_reason: str
    model_failure: Json | None
    num_turns: int
    cost_usd: float
    duration_ms: int
    files_total: int
    session_files: int
    session_directory: int
    staged_bytes: int

    @classmethod
    def of(cls, run_id: str, result: "Result") -> "RunResult":
        """That of a staged result."""
        return cls(run_id, *(getattr(result, field.name) for field in fields(cls)[1:]))

    def dump(self) -> Json:
        """For a state's data."""
        return asdict(self)

    @classmethod
    def load(cls, data: object) -> "RunResult":
        """Raises `ValueError` for anything that is not exactly this shape: strangers' code may have returned it."""
        return cls(**_checked(cls, data, "RunClaude's result"))


@dataclass(frozen=True)
class LegEnded:
    """RunClaude's result where a leg of a long run ended before the run did: its checkpoint is staged."""

    run_id: str
    leg: str
    """By what: `gate`, where nothing is lost, or `limit`."""

    def dump(self) -> Json:
        """For a state's data."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """`result.json`: what a run came to. Written by RunClaude: untrusted."""

    result: str | None
    structured_output: Any
    stop_reason: str
    model_failure: Json | None
    """`{"status", "times"}` where the model answered nothing but errors when the run ended: with which status (None for
    no connection), and how often in a row."""
    num_turns: int
    cost_usd: float
    """Of this attempt alone, in US dollars."""
    usage: Json
    duration_ms: int
    files: list[Json]
    files_total: int
    last_message: Json
    """The CLI's `result` message, which stays in the answer when the others do not fit."""
    session_files: int
    """How many files and links the session has now."""
    session_directory: int
    """Bytes of its archive's directory, but for what numbers over 4 GiB take there."""
    staged_bytes: int
    """Bytes of `changes.zip`: what the run changed of the version that it is pinned to."""
    pending: Json | None = None
    """The call that waits for an approval: `tool`, `input`, `digest`."""
    format: int = FORMAT

    def dump(self) -> Json:
        """As it is staged."""
        return asdict(self)

    @classmethod
    def load(cls, data: object) -> "Result":
        """Raises `ValueError` for anything that is not exactly this shape: strangers' code may have written it."""
        stored = {"pending": None} | data if isinstance(data, dict) else data  # earlier ones do not say it
        return cls(**_checked(cls, stored, "result.json"))


class Response(TypedDict):
    """The answer to a POST whose run is completed, as it is stored: its links are signed when it is given out."""

    success: bool
    session_id: str
    messages: list[Json]
    run_id: str
    result: str | None
    structured_output: Any
    stop_reason: str
    model_failure: Json | None
    num_turns: int
    cost_usd: float
    """Of the run, over all its attempts, in US dollars."""
    session_cost_usd: float
    """Of all the session's committed runs."""
    usage: Json
    duration_ms: int
    files: list[Json]
    files_total: int
    format: int
    """This and what follows is for the operator, and not given out."""
    execution: str
    pending: NotRequired[Json]
    """The call that waits for an approval; its input is None where it is too long for the answer."""
    messages_truncated: NotRequired[bool]
    receipt_at: NotRequired[str]
    """Where the attempt's receipt is."""
    messages_at: NotRequired[str]
    """Where all messages are, if they are too many for the answer."""


def _checked(kind: type[Result | RunResult], data: object, what: str) -> Json:
    """The fields of a shape of ours, as a stranger says them, if they are these, and each is what it should be."""
    if not isinstance(data, dict) or set(data) != {field.name for field in fields(kind)}:
        raise ValueError(f"{what} has other fields than a result")
    if wrong := [name for name, sane in _SANE.items() if name in data and not sane(data[name])]:
        raise ValueError(f"{what}: {', '.join(wrong)} are not what they should be")
    return data


def _whole(value: object) -> bool:
    """Whether it is a count, as JSON carries one exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def dollars(value: object) -> bool:
    """Whether a stranger's figure can be what a run cost, in US dollars."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _failure(value: object) -> bool:
    """Whether it says how the model failed in the end, or that it did not."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"status", "times"}:
        return False
    status = value["status"]
    return _whole(value["times"]) and (status is None or (_whole(status) and 400 <= status < 600))


def _pending(value: object) -> bool:
    """Whether it says which call waits, or that none does."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"tool", "input", "digest"}:
        return False
    texts = all(isinstance(value[name], str) for name in ("tool", "digest"))
    return texts and isinstance(value["input"], dict) and DIGEST.fullmatch(value["digest"]) is not None


_SANE: Mapping[str, Callable[[object], bool]] = {
    "run_id": lambda value: isinstance(value, str),
    "result": lambda value: value is None or isinstance(value, str),
    "stop_reason": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z_]{1,40}", value) is not None,
    "model_failure": _failure,
    "pending": _pending,
    "num_turns": _whole,
    "cost_usd": dollars,
    "usage": lambda value: isinstance(value, dict),
    "duration_ms": _whole,
    "files": lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
    "files_total": _whole,
    "session_files": _whole,
    "session_directory": _whole,
    "staged_bytes": _whole,
    "last_message": lambda value: isinstance(value, dict),
    "format": lambda value: value == FORMAT,
}


def epoch(timestamp: str) -> float:
    """Epoch seconds of a moment as Step Functions writes it (ISO 8601)."""
    return datetime.fromisoformat(timestamp).timestamp()
