"""Every row of the fault matrix, on the engine with the real CLI: a fault, its answer, what is left, and the replay."""

import asyncio
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from claude_workflow.cli.books import opened
from claude_workflow.cli.verify import faults
from claude_workflow.local.model import RecordedRequest, ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas.archive.format import ROOTS
from lambdas.archive.pack import pack
from lambdas.archive.unpack import unpack
from lambdas.bucket.objects import Bucket
from lambdas.bucket.record import WHOLE
from lambdas.request import run_id
from lambdas.settings import LEASE_MARGIN
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import patched_service
from tests.support.client import ANY, Client
from tests.support.fault_matrix import (
    DOCUMENT,
    FAILS,
    INTERNAL,
    LEASE,
    REFUSED,
    THINKS,
    TITLES,
    WORK,
    WRITES,
    Row,
    cells,
    document,
    rows,
)
from tests.support.opened import Opened
from tests.support.s3_faults import KILLED_AFTER, KILLED_BEFORE, SILENT, Fault, Injector, Line
from tests.support.waiting import eventually

SECONDS = 40
"""The integration timeout of the template that is `unhurried`."""
AT_ONCE = 4
SWEPT_SECONDS = 20
"""How long a directory may stay whose function was killed; a process has to start to remove it."""
KILLS = (KILLED_BEFORE, KILLED_AFTER)
UNRECORDED = "its failure could not be recorded"
"""What the state machine says by itself, where RecordFailure does not."""
NOBODY = {"session_id": "none", "claude_session": "none"}
"""What a run is about that has no record."""


class Patient(ScriptedModel):
    """Takes its time where a row asks for that: until the run has a checkpoint, and what befalls it then has."""

    def __init__(self, injector: Injector) -> None:
        super().__init__()
        self._injector = injector

    async def record(self, request: RecordedRequest) -> None:
        await super().record(request)
        prompt = request.conversation.prompts[-1]
        if THINKS in prompt and request.conversation.results:
            saved = partial(self._injector.is_over, run_of(prompt) + CHECKPOINT)
            await asyncio.to_thread(eventually, lambda: saved() and self._injector.is_over(run_of(prompt)))


CHECKPOINT = r"[^/]+/checkpoint\.zip"


def run_of(prompt: str) -> str:
    """Where a row's run has its record."""
    (key,) = re.findall(r"row-[-0-9a-f]{36}", prompt)
    return f"runs/{run_id('default', key)}/"


class Theatre:
    """A service whose functions reach S3 through an injector, and a session to clone for each row."""

    def __init__(self, running: Service, injector: Injector, model: ScriptedModel, line: Line, scratch: Path) -> None:
        self.client = Client(running)
        self.injector = injector
        self.model = model
        self.line = line
        self.scratch = scratch
        self.bucket = running.deployed.bucket
        origin = self.client.ask("write n.txt: old")
        got = self.client.s3.get_object(Bucket=self.bucket, Key=f"{origin['session_id']}.zip")
        self._zip, self._metadata = got["Body"].read(), got["Metadata"]

    def session(self, large: bool = False) -> Json:
        """A session like the first, with a conversation and ids of its own, which are named as in a run's record."""
        fresh, old = str(uuid.uuid4()), self._metadata["claude-session"]
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as archive:
            unpack(Opened(self._zip), Path(folder), ANY)
            for transcript in Path(folder).glob(f"claude/projects/*/{old}.jsonl"):
                transcript.with_name(f"{fresh}.jsonl").write_text(transcript.read_text().replace(old, fresh))
                transcript.unlink()
            if large:
                (Path(folder) / "workspace/noise").write_bytes(random.Random(1).randbytes(9 * 1024 * 1024))
            pack({root: Path(folder) / root for root in ROOTS}, archive, ANY)
            archive.seek(0)
            self.client.s3.put_object(
                Bucket=self.bucket,
                Key=f"session-{fresh}.zip",
                Body=archive.read(),
                Metadata=self._metadata | {"claude-session": fresh},
            )
        return {"session_id": f"session-{fresh}", "claude_session": fresh, "cloned": True}

    def record(self, run: str) -> Json:
        """The run's request.json; empty as long as there is none."""
        key = f"runs/{run}/request.json"
        if not self.client.keys(key):
            return {}
        found: Json = json.loads(self.client.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        return found

    def calls(self, marker: str) -> int:
        return sum(any(marker in prompt for prompt in r.conversation.prompts) for r in list(self.model.requests))

    def fault(self, row: Row, run: str, prompt: str, known: Json) -> Fault:
        """What the row does to S3, where it does anything."""
        method, pattern = WRITES.get(row.at, ("", "never"))

        def there(path: str) -> bool:
            session = (known or self.record(run) or NOBODY)["session_id"]
            return re.search(pattern.format(run=run, session=session), path) is not None

        def due() -> bool:
            """What is staged as the run goes on is staged when the model has been asked on; what is staged at its end,
            when the rest of that is."""
            going = ("checkpoint.zip", "receipt.json", "messages.json")
            if row.at in WHOLE and row.at not in going:
                return all(self.injector.is_over(f"{run_of(prompt)}[^/]+/{name}") for name in WHOLE if name != row.at)
            saved = row.at not in going[1:] or self.injector.is_over(run_of(prompt) + CHECKPOINT)
            return row.at not in going or (saved and self.calls(prompt) == 2)

        return Fault(method, there, row.fault, row.times if row.fault else 0, due)

    def version(self, named: Json) -> str:
        """`none`, `old` as it was cloned, or `new` with one turn more; its archive is tested whole."""
        if not self.client.keys(f"{named['session_id']}.zip"):
            return "none"
        cloned = named.get("cloned", False)
        turns = int(self.client.metadata(named)["turns"])
        assert turns in ((1, 2) if cloned else (1,))
        assert not cloned or turns == 2 or self.content(named["session_id"]) == "old"
        return "old" if cloned and turns == 1 else "new"

    def content(self, session: str) -> str:
        """What the session's file says."""
        archive = self.client.archive({"session_id": session})
        assert archive.testzip() is None
        return archive.read("workspace/n.txt").decode().strip()

    def left(self, named: Json) -> str:
        """The lease, or nothing. The run's directory is gone whatever ended its function, a moment later at most."""
        assert eventually(lambda: not list(self.scratch.glob(f"{named['claude_session']}*")), SWEPT_SECONDS)
        return LEASE if self.client.keys(f"locks/{named['session_id']}.json") else ""

    def let_expire(self, session: str) -> None:
        """Time passes: what the dead hold is theirs no longer."""
        key = f"locks/{session}.json"
        if self.client.keys(key):
            lease = json.loads(self.client.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())
            assert lease["expires_at"] < time.time() + SECONDS + LEASE_MARGIN
            body = json.dumps(lease | {"expires_at": time.time()})
            self.client.s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def outcomes(self, run: str) -> list[str]:
        """Where the run stands in the index."""
        return [key.split("/")[-2] for key in self.client.keys("index/hours/") if key.endswith(run)]


@pytest.fixture(scope="module")
def theatre(in_memory: InMemory, tmp_path_factory: pytest.TempPathFactory, unhurried: Json) -> Iterator[Theatre]:
    state, scratch = in_memory("faults"), tmp_path_factory.mktemp("scratch")
    with Injector() as injector, Patient(injector) as model, closing(Line(model.url)) as line:
        added = {"AWS_ENDPOINT_URL_S3": injector.url, "SCRATCH": str(scratch)}
        with patched_service.serving(state, unhurried, Model(line.url, "sk-scripted"), added) as running:
            injector.upstream = running.engine.url
            running.engine.seal()
            yield Theatre(running, injector, model, line, scratch)


@dataclass(frozen=True)
class Played:
    """What came of a row: the row as it turned out, and what the replay came to."""

    row: Row
    befell: int
    first: Json
    status: int
    replay: Json
    version: str
    content: str
    left: str
    outcomes: list[str]


def await_end(fault: Fault) -> None:
    """A function can outlive its state's timeout: wait until nobody asks the silent S3 any more."""
    quiet = 0
    while fault.action == SILENT and fault.times > 1 and quiet < 10:
        time.sleep(0.2)
        quiet = 0 if fault.held else quiet + 1


def play(theatre: Theatre, row: Row) -> Played:
    """POST under the fault, look, let time pass, POST the same again, look again."""
    key = f"row-{uuid.uuid4()}"
    run = run_id("default", key)
    known = {} if row.fresh else theatre.session(row.large)
    body = {"prompt": f"({key})\n{row.prompt}"} | {name: known[name] for name in known if name == "session_id"}
    body |= {"timeout_seconds": row.timeout} if row.timeout else {}
    with theatre.injector.injecting(theatre.fault(row, run, key, known)) as fault:
        with theatre.line.cut() if row.at == REFUSED else nullcontext():
            status, first, _ = theatre.client.post(body, idempotency_key=key)
        await_end(fault)
    named = known or theatre.record(run) or NOBODY
    came = replace(
        row,
        answer=f"{status} {first.get('code', '')}".strip(),
        session=theatre.version(named),
        left=theatre.left(named),
        calls=theatre.calls(key),
    )
    theatre.let_expire(named["session_id"])
    status, replay, _ = theatre.client.post(body, idempotency_key=key)
    named = known or theatre.record(run)
    return Played(
        row=replace(came, again=theatre.calls(key) - came.calls),
        befell=fault.met,
        first=first,
        status=status,
        replay=replay,
        version=theatre.version(named),
        content=theatre.content(named["session_id"]),
        left=theatre.left(named),
        outcomes=theatre.outcomes(run),
    )


def play_in_time(theatre: Theatre, row: Row) -> Played:
    """RecordFailure has three seconds, in which a process may have to start: where this machine was too busy for that,
    the row is played again, at most twice."""
    meant = row.state == "RecordFailure" and row.answer == INTERNAL
    came = play(theatre, row)
    for _ in range(2):
        if meant or UNRECORDED not in came.first.get("error", ""):
            break
        came = play(theatre, row)
    return came


UNTOLD = ("started", "receipt.json", "detail.txt")
"""Who dies here has not said what it cost."""


def cost_is_honest(came: Played) -> bool:
    """Nothing where the model was not asked, and what was answered before a tool's result, at least, where it was. That
    nobody knows is said only where whoever knew is dead, or could not be asked."""
    cost, row = came.first["cost_usd"], came.row
    if cost is None:
        return row.state == "RecordFailure" or row.at in UNTOLD or row.fault == SILENT
    return row.state == "Model" or (row.calls == 1 or (cost > 0) == (row.calls > 0))


def playable(row: Row) -> bool:
    """Whether the process that is to be killed can be found here."""
    if row.fault not in KILLS:
        return True
    return Path("/proc/net/tcp").exists() and (row.state != "RunClaude" or os.geteuid() == 0)


@pytest.fixture(scope="module")
def played(theatre: Theatre, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Played]]]:
    """The rows that are to be tested, several at once."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    params = [item.callspec.params for item in items if item.originalname == "test_a_row_of_the_matrix"]
    wanted = [row for each in params if isinstance(row := each["row"], Row) and playable(row)]
    alone = Future[Played]()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        if refused := [row for row in wanted if row.at == REFUSED]:
            alone.set_result(play(theatre, refused[0]))  # all of them share the line that it cuts
        yield {row.name: alone if row.at == REFUSED else pool.submit(play_in_time, theatre, row) for row in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The rows as they turned out, printed at the end (`pytest -s`)."""
    found = Table(*TITLES, title="Fault matrix")
    yield found
    Console(width=140).print(found)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_row_of_the_matrix(row: Row, played: dict[str, Future[Played]], table: Table) -> None:
    """The answer, the session, the lease, the model's calls, and the replay are what the matrix says."""
    if not playable(row):
        pytest.skip("which process to kill is read from /proc, and of RunClaude's, which is sealed, by root alone")
    came = played[row.name].result()
    table.add_row(*cells(came.row))
    # Where S3 is silent for ever, RecordFailure may just have the time to free the session, or not.
    left = row.left if row.fault == SILENT and not came.row.left else came.row.left
    assert replace(came.row, left=left) == row, came
    assert cost_is_honest(came), came
    assert came.befell >= (1 if row.fault else 0)
    assert (came.status, came.version) == (200, "new"), came
    assert came.content == "new" or came.replay["stop_reason"] == "deadline"
    assert came.left == ""
    assert "done" in came.outcomes


def test_the_books_balance(played: dict[str, Future[Played]], theatre: Theatre) -> None:
    """Whatever was killed, lost or silent: each run, session and day is the sum of its receipts, and nothing was paid
    twice."""
    for future in played.values():
        future.result()
    assert faults(opened(Bucket(theatre.client.s3, theatre.bucket), 0.0, time.time())) == []


def test_the_document_is_the_matrix() -> None:
    """`docs/faults.md` says what the rows say."""
    assert DOCUMENT.read_text() == document()


def test_no_write_stands_alone(theatre: Theatre) -> None:
    """Whatever the functions write, in a run that succeeds and in one that fails, is in the matrix."""
    session = theatre.session()["session_id"]
    theatre.injector.written.clear()
    theatre.client.post({"prompt": FAILS, "session_id": session})
    key = f"row-{uuid.uuid4()}"
    theatre.client.post({"prompt": f"({key})\n{THINKS}", "session_id": session}, idempotency_key=key)
    theatre.client.ask(WORK, theatre.session(large=True))
    patterns = [(method, pattern.format(run="[^/]+", session="[^/]+")) for method, pattern in WRITES.values()]
    for method, path in theatre.injector.written:
        assert [p for m, p in patterns if m == method and re.search(p, path)], (method, path)
    assert {row.at for row in rows() if row.state != "Model"} == set(WRITES)
