"""The handlers' core on a real S3, with Step Functions' part and RunClaude's played by hand, on a clock of its own.

A session holds here a file for each run whose turn it has, and one with their names, so that its history can be read.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from botocore.exceptions import ClientError

from lambdas.agent.transfer import Transfer
from lambdas.archive.directory import NOTHING, Directory
from lambdas.archive.format import RATIO, Ending, Limits, end_record
from lambdas.archive.merge import merge
from lambdas.bucket import lease, record
from lambdas.bucket.commit import Commit, Rules, of_archive
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import session_key
from lambdas.bus import RunEnded
from lambdas.contract import Claim, Restored, Result, RunResult, Task
from lambdas.errors import AgentCrashed, ModelOverloaded, Refused, WorkflowError
from lambdas.persist_session import PersistSession
from lambdas.pricing import Prices
from lambdas.receipt import Receipt
from lambdas.record_failure import RecordFailure
from lambdas.request import asked_run
from lambdas.restore_session import Execution as Asking
from lambdas.restore_session import RestoreSession
from lambdas.settings import LEASE_MARGIN, Caps, Clocks, Legs, RestoreSettings
from lambdas.strict import Json
from tests.support.archives import session
from tests.support.metered import receipt_of
from tests.support.opened import Opened

CALLER = "alice"
CLOCKS, LEGS = Clocks(29), Legs(3600)
LEASE_SECONDS = CLOCKS.machine + LEASE_MARGIN
RULES = Rules(Limits(1000, 1 << 30, RATIO), 0.5)
HISTORY = "history"
COST = 0.25
"""US dollars that a run costs, where it is not said otherwise."""
RESULT = Result(
    result="done",
    structured_output=None,
    stop_reason="end_turn",
    model_failure=None,
    num_turns=1,
    cost_usd=COST,
    usage={"input_tokens": 1},
    duration_ms=900,
    files=[{"path": "notes.txt", "change": "added", "size": 12}],
    files_total=1,
    last_message={"type": "result", "result": "done"},
    session_files=3,
    session_directory=300,
    staged_bytes=100,
)
"""What RunClaude says of a turn."""
WRITES = (
    "put_object",
    "delete_object",
    "create_multipart_upload",
    "upload_part",
    "upload_part_copy",
    "complete_multipart_upload",
    "abort_multipart_upload",
)


class Killed(BaseException):
    """The process is gone; no `except` of it runs any more."""


@dataclass
class Fuse:
    """Kills whoever writes through it at the `at`-th write, before or after that is carried out; at 0 never.

    The dead write no more, whichever of their threads it is. Where `of` says so, only objects whose keys end thus
    count: what is written side by side comes in any order.
    """

    at: int = 0
    after: bool = False
    of: str = ""
    writes: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, write: Callable[[], Any], key: str = "") -> Any:
        with self.guard:
            counts = key.endswith(self.of)
            self.writes += counts
            dead = 0 < self.at < self.writes + (not counts)
            fatal = counts and self.writes == self.at
        if dead or (fatal and not self.after):
            raise Killed
        done = write()
        if fatal:
            raise Killed
        return done


class FusedS3:
    """An S3 client whose writes go through a fuse."""

    def __init__(self, s3: Any, fuse: Fuse) -> None:
        self._s3 = s3
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._s3, name)
        if name not in WRITES:
            return method
        return lambda **arguments: self._fuse(lambda: method(**arguments), arguments["Key"])


@dataclass
class Execution:
    """One execution of the state machine."""

    name: str
    key: str
    body: Json
    caller: str = CALLER
    restored: Restored | None = None
    started: float | None = None
    """Epoch seconds; the same for every try of its states."""
    returned: RunResult | None = None
    """What RunClaude returned."""
    envelope: Json = field(default_factory=dict)
    """What it is given otherwise than usual: `replay`, `requested_at`."""

    @property
    def run(self) -> str:
        return asked_run(self.caller, self.key, self.envelope.get("replay"))


class Workflow:
    """The states, one call each. `now` is in epoch seconds."""

    def __init__(self, bucket: Bucket) -> None:
        self.s3 = bucket.s3
        self.bucket = bucket.name
        self.store = bucket
        self.settings = RestoreSettings(bucket.name, CLOCKS, LEGS, Caps(50, 1.0, None), Prices.of())
        self.transfer = Transfer()
        self.now = 1_800_000_000.0
        self.conversations: Counter[str] = Counter()
        """How often the model was asked, by run."""
        self.told: list[RunEnded] = []

    def restore(self, execution: Execution, fuse: Fuse | None = None) -> Restored:
        """RestoreSession."""
        state = RestoreSession(self.settings, Bucket(FusedS3(self.s3, fuse or Fuse()), self.bucket), lambda: self.now)
        envelope = {"caller": execution.caller, "key": execution.key, "key_given": True, "body": execution.body}
        envelope |= {"requested_at": self.now * 1000, "oversize": False}
        request = state.request(envelope | execution.envelope)
        execution.started = execution.started or self.now
        execution.restored = state.restore(request, Asking(execution.name, execution.started, execution.started))
        return execution.restored

    def run(
        self,
        task: Task,
        fuse: Fuse | None = None,
        *,
        fails: WorkflowError | None = None,
        after: str = "started",
        archive: bytes | None = None,
        receipt: Receipt | None = None,
        **said: Any,
    ) -> RunResult:
        """RunClaude: a conversation adds one line to the session, or changes what `archive` says.

        It `fails` once it has put `after`: started, checkpoint or result. Its result is what is `said`, and else usual;
        its `receipt` one call of that cost, if no other is given.
        """
        put, grants = fuse or Fuse(), task.grants
        said = {"cost_usd": receipt.usd} | said if receipt else said
        if not put(lambda: self.transfer.put(grants.started, b"", 0)):
            raise AgentCrashed
        if after == "checkpoint":
            for calls in (b"one call", b"two calls"):
                half = session(**{task.run_id: calls})
                put(partial(self.transfer.put, grants.checkpoint, half, len(half)))
        cost = said.get("cost_usd", COST) if fails is None else fails.cost_usd or 0.0
        calls_made = json.dumps((receipt or receipt_of(cost)).dump()).encode()
        put(lambda: self.transfer.put(grants.receipt, calls_made, len(calls_made)))
        if self.now > task.deadline or (fails and after != "result"):
            raise fails or ModelOverloaded
        last = self.transfer.read(grants.session) if grants.session else None
        self.conversations[task.run_id] += 1
        staged = archive or with_turn(last, task.run_id)
        result = replace(a_result(last, staged), **said)
        text = json.dumps(result.dump()).encode()
        put(lambda: self.transfer.put(grants.changes, staged, len(staged)))
        put(lambda: self.transfer.put(grants.messages, b"[]", 2))
        put(lambda: self.transfer.put(grants.result, text, len(text)))
        if fails:
            raise fails
        return RunResult.of(task.run_id, result)

    def persist(self, claim: Claim, returned: RunResult | None = None, fuse: Fuse | None = None) -> Json:
        """PersistSession."""
        return self.persist_session(fuse).persist(claim, returned.dump() if returned else None)

    def persist_session(self, fuse: Fuse | None = None) -> PersistSession:
        """PersistSession's."""
        return PersistSession(Bucket(FusedS3(self.s3, fuse or Fuse()), self.bucket), RULES, self.told.append)

    def record(
        self, execution: Execution, error: WorkflowError, fuse: Fuse | None = None, state: str = "PersistSession"
    ) -> Json:
        """RecordFailure."""
        state_of = RecordFailure(Bucket(FusedS3(self.s3, fuse or Fuse()), self.bucket), self.told.append)
        raised = {"Error": type(error).__name__, "Cause": json.dumps({"errorMessage": str(error)})}
        claim = execution.restored.dump()["claim"] if execution.restored else None
        told: Json = {"state": state, "error": raised, "caller": execution.caller, "key": execution.key}
        told |= {"replay": execution.envelope.get("replay")}
        started = datetime.fromtimestamp(execution.started or self.now, UTC).isoformat()
        return state_of.record(told | {"claim": claim, "execution": execution.name, "started_at": started})

    def execute(self, execution: Execution, fuse: Fuse | None = None, **played: Any) -> Json:
        """All of it, as the definition has it, and as RunClaude is `played`. Raises `Refused`; another failure is
        recorded and returned."""
        state = "RestoreSession"
        try:
            restored = self.restore(execution, fuse)
            if restored.response is not None:
                return restored.response
            state = "RunClaude"
            returned = self.run(restored.task, fuse, **played) if restored.task else None
            state = "PersistSession"
            return self.persist(restored.claim, returned, fuse)
        except Refused:
            raise
        except WorkflowError as error:
            return self.record(execution, error, fuse, state)

    def new_session(self, key: str) -> str:
        """A session with one turn."""
        answer = self.execute(Execution(f"first-{key}", key, {"prompt": "first"}))
        return str(answer["session_id"])

    def staged(self, run: str) -> str | None:
        """The attempt whose whole result would be committed by whoever comes next."""
        return record.left(self.store, run).staged.result

    def lease(self, session: str) -> Lease | None:
        return lease.holder(self.store, session)

    def history(self, session: str) -> list[str]:
        """The runs whose turns the session holds, in order."""
        archive = self.s3.get_object(Bucket=self.bucket, Key=f"{session}.zip")["Body"].read()
        with ZipFile(BytesIO(archive)) as opened:
            assert opened.testzip() is None
            assert set(runs_in(archive)) == {name[10:] for name in opened.namelist() if name[10:14] == "run-"}
        return runs_in(archive)

    def objects(self) -> dict[str, str]:
        """Everything in the bucket, with its version."""
        pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket)
        return {v["Key"]: v["VersionId"] for page in pages for v in page.get("Versions", []) if v["IsLatest"]}


def commit(bucket: Bucket, claim: Claim, result: Result, metadata: dict[str, str], rules: Rules = RULES) -> None:
    """What PersistSession commits by, alone."""
    with ThreadPoolExecutor(1) as pool, Commit(pool, bucket, claim, rules) as begun:
        metadata = metadata | of_archive(result.session_files, result.session_directory)
        begun.begin(result.staged_bytes, metadata)
        begun.make(result, metadata)


def result_of(bucket: Bucket, claim: Claim) -> Result:
    """What the run says of what it staged."""
    base = claim.base
    last = _object(bucket, session_key(base.session_id), VersionId=base.version_id) if base else None
    return a_result(last, _object(bucket, f"{claim.staging}changes.zip") or b"")


def _object(bucket: Bucket, key: str, **version: str) -> bytes | None:
    with suppress(ClientError):
        return bytes(bucket.s3.get_object(Bucket=bucket.name, Key=key, **version)["Body"].read())
    return None


def with_turn(last: bytes | None, run: str) -> bytes:
    """What a run stages that adds its line to the session's last version."""
    history = "".join(f"{each}\n" for each in [*(runs_in(last) if last else []), run])
    return session(**{run: b"a turn", HISTORY: history.encode()})


def runs_in(archive: bytes) -> list[str]:
    """The runs whose turns a session holds, in order."""
    return ZipFile(BytesIO(archive)).read(f"workspace/{HISTORY}").decode().split()


def a_result(last: bytes | None, staged: bytes) -> Result:
    """What RunClaude says of what it staged on the session's last version."""
    files, directory = _seen(last, staged)
    return replace(RESULT, session_files=files, session_directory=directory, staged_bytes=len(staged))


def _seen(last: bytes | None, staged: bytes) -> tuple[int, int]:
    """Files of the session and bytes of its directory, as a run sees them in its tree; none where it staged rubbish."""
    try:
        base = Directory.of(Opened(last)) if last else NOTHING
        merged = merge(base, Directory.of(Opened(staged)), Limits(1 << 30, 1 << 60, 1 << 30))
    except WorkflowError:
        return 0, 0
    return merged.files, merged.weight + len(end_record(Ending(merged.members, 0, 0, 0)))


def unlinked(answer: Json) -> Json:
    """An answer without its links, which are signed anew each time."""
    return {name: value for name, value in answer.items() if not name.endswith("_url") or name == "s3_url"}
