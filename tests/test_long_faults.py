"""Every row of the fault matrix of long runs and of cancels, on both machines as the definition has them, played."""

import uuid
from dataclasses import dataclass, replace
from typing import Any

import pytest

from claude_workflow.cli.books import opened
from claude_workflow.cli.verify import faults
from lambdas.bucket import ledger
from lambdas.bucket.ledger import RESERVED, SPENT, Entry
from lambdas.errors import statuses
from lambdas.request import run_id
from lambdas.strict import Json
from tests.support.buckets import a_bucket
from tests.support.fault_matrix import WRITES
from tests.support.long_fault_matrix import ANOTHER, CANCEL, LONG, POSTED, LongRow, long_rows
from tests.support.played_machines import ASYNC, CALL_USD, CALLER, Machines, Mishap
from tests.support.played_workflow import LEGS, Workflow


class Theatre:
    """A service in whose bucket each row has a session of its own."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.machines = Machines(workflow)
        self.first = str(self.machines.post(str(uuid.uuid4()), {"prompt": "first"}, "")["session_id"])
        self.calls: dict[str, int] = {}
        """Of the model, by run."""

    def session(self) -> str:
        """One with a turn: the first one's version, under a name of its own."""
        bucket, session = self.workflow.store, f"session-{uuid.uuid4()}"
        source = {"Bucket": bucket.name, "Key": f"{self.first}.zip"}
        bucket.s3.copy_object(Bucket=bucket.name, Key=f"{session}.zip", CopySource=source)
        return session


@dataclass
class Stage:
    """A row on its way."""

    theatre: Theatre
    row: LongRow
    key: str
    session: str
    """That it asks for; empty where it asks for a new one."""
    meanwhile: str = ""

    @property
    def run(self) -> str:
        return run_id(CALLER, self.key)

    @property
    def workflow(self) -> Workflow:
        return self.theatre.workflow

    def mishap(self) -> Mishap:
        """What befalls the row's run."""
        method, there = WRITES.get(self.row.at, ("POST", r"executions/{run}"))
        there = there.format(run=self.run, session="session-[-0-9a-f]+")
        comes = self.delete if self.row.fault.startswith("DELETE") else self.post

        def meanwhile() -> None:
            self.meanwhile = comes()

        return Mishap(method, there, self.row.fault, self.row.times, self.row.first, meanwhile)

    def post(self, *mishap: Mishap, key: str = "") -> str:
        """What its POST is answered, or that of another run of its session."""
        body = {"prompt": "x"} | ({"session_id": self.session} if self.session else {})
        prefer = ASYNC if self.row.way == LONG else ""
        return said(*self._status(self.theatre.machines.post(key or self.key, body, prefer, *mishap)))

    def _status(self, answer: Json) -> tuple[int, Json]:
        return 202 if "status" in answer else 200, answer

    def delete(self) -> str:
        return said(*self.theatre.machines.ask("DELETE", self.key))

    def seen(self, calls: int) -> str:
        """By a GET. What the run says that it cost is what was asked of the model."""
        status, answer = self.theatre.machines.ask("GET", self.key)
        if answer["cost_usd"] is not None:
            assert answer["cost_usd"] == pytest.approx(CALL_USD * calls), answer
        return said(status, answer)

    def version(self) -> str:
        """Of the run's session: as it was, or with the run's turn, once."""
        asked = self.workflow.store.read(f"runs/{self.run}/request.json")
        session = asked["session_id"] if asked else self.session
        if not session or self.workflow.store.head(f"{session}.zip") is None:
            return "none"
        history = self.workflow.history(session)
        assert len(set(history)) == len(history)
        return "new" if self.run in history else "old"

    def left(self) -> str:
        """What is held of the session, and of the money."""
        found = [Entry.read(one["Key"]) for one in self.workflow.store.listed("ledger/2")]
        mine = [entry for entry in found if entry.run_id == self.run]
        spent = {entry.attempt for entry in mine if entry.kind == SPENT}
        held = [entry for entry in mine if entry.kind == RESERVED and entry.attempt not in spent]
        asked = self.workflow.store.read(f"runs/{self.run}/request.json")
        leased = asked is not None and self.workflow.lease(asked["session_id"]) is not None
        alive = any(entry.ends > self.workflow.now for entry in held)
        return ", ".join([*["lease"] * leased, *["reservation"] * alive])

    def time_passes(self) -> None:
        """What the dead hold is theirs no longer."""
        self.workflow.now += LEGS.lease + 1


def said(status: int, answer: Json) -> str:
    """An answer in short: what the caller learns."""
    if not answer["success"]:
        return f"{statuses().get(answer['code'], 500)} {answer['code']}"
    told = answer.get("status") or (answer["stop_reason"] if answer["stop_reason"] != "end_turn" else "")
    return f"{status} {told}".strip()


@pytest.fixture(scope="module")
def theatre(s3: Any) -> Theatre:
    return Theatre(Workflow(a_bucket(s3)))


def play(theatre: Theatre, row: LongRow) -> LongRow:
    """POST under the mishap, let all that was started end, look, let time pass, POST the same again, look again."""
    stage = Stage(theatre, row, str(uuid.uuid4()), "" if row.fresh else theatre.session())
    machines, mishap, before = theatre.machines, stage.mishap(), theatre.machines.calls
    answer = stage.post(mishap)
    machines.rest()
    assert mishap.met
    if row.then == POSTED:
        stage.meanwhile = stage.post()
        machines.rest()
    calls, version, left = machines.calls - before, stage.version(), stage.left()
    stage.time_passes()
    ends = stage.seen(calls)
    if row.then == CANCEL:
        stage.meanwhile = stage.delete()
    others = 0
    if row.then == ANOTHER:
        stage.meanwhile = stage.post(key=str(uuid.uuid4()))
        machines.rest()
        others = machines.calls - before - calls
    stage.post()
    machines.rest()
    again = machines.calls - before - calls - others
    repeat = stage.seen(calls + again)
    stage.time_passes()
    assert stage.left() == ""
    theatre.calls[stage.run] = calls + again
    came = replace(row, answer=answer, ends=ends, session=version, left=left, calls=calls, again=again, repeat=repeat)
    return replace(came, meanwhile=stage.meanwhile)


@pytest.mark.parametrize("row", long_rows(), ids=lambda row: row.name)
def test_a_row_of_the_matrix(row: LongRow, theatre: Theatre) -> None:
    """The answers, the session, what is left, the model's calls, and the repeat are what the matrix says."""
    came = play(theatre, row)
    assert came == row


def test_the_books_balance(theatre: Theatre) -> None:
    """After all rows: the answers, the ledger, the sessions and the receipts say the same, no execution was started
    twice, and the ledger has of each run what it asked the model for."""
    store, now = theatre.workflow.store, theatre.workflow.now
    assert faults(opened(store, 0.0, now)) == []
    days = {one["Key"].split("/")[1] for one in store.listed("ledger/2")}
    entries = [entry for day in days for entry in ledger.entries(store, day, now)]
    assert not [entry for entry in entries if entry.kind == RESERVED]
    for run, calls in theatre.calls.items():
        spent = sum(entry.micros for entry in entries if entry.run_id == run) / 1e6
        assert spent == pytest.approx(CALL_USD * calls), run
    started = theatre.machines.executions
    assert len(set(started)) == len(started)
