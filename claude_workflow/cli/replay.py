"""`claude-workflow replay`: failed runs again, without paying for what was done."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import cut_short, dollars
from claude_workflow.cli.printing import line, to_stderr
from claude_workflow.cli.prospect import REFUSED, envelope, prospect
from claude_workflow.cli.record import READERS, Requests, Run, each, is_held, look
from claude_workflow.cli.runs import DAY
from claude_workflow.cli.tables import Columns
from lambdas.bucket import record
from lambdas.bucket.listing import UNFINISHED, Entry, since
from lambdas.bucket.objects import Bucket
from lambdas.errors import RunCancelled, StorageUnavailable
from lambdas.strict import Json

AT_A_TIME = 4
"""Executions: a replay shares the account's concurrency, and the model's rate limit, with those who are waiting."""

LOOKS_EVERY = (1, 2, 4, 8)
"""Seconds between two looks at a long run that was replayed; the last one from then on. A look is some four requests of
S3."""

LINE: Columns = {("run",): 36, ("outcome",): 22, ("cost",): 9, ("what came of it",): None}
BLOCK: Columns = {("run", "what came of it"): 54, ("outcome", "cost"): None}
LINE_COLUMNS = 160
"""From which on a run takes one line."""

RUNNING, GOES_ON = "running", "It goes on in the long machine."
"""How it stands with a run that has been handed over, as a 202 and as a record have it; and in a sentence."""

PAGE = 200
"""Rows of the table that are kept before they are printed."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run, or would."""

    run_id: str
    ok: bool
    """Whether it was replayed, or can be."""
    said: str
    """A code, or what it would do."""
    sentence: str
    cost_usd: float | None = None
    new_run: str | None = None
    """The run that a fork or a rebase made."""
    session_id: str | None = None


@dataclass(frozen=True)
class Replay:
    """How runs are replayed: `again`, `fork` or `rebase`."""

    backend: Backend
    bucket: Bucket
    machine: Any
    verb: str
    since: float
    """Epoch seconds; of runs found by the index, those that began before are left alone."""
    waits: bool = False
    """Whether a long run, which the machine hands over, is waited for until it ends."""
    left: threading.Event = field(default_factory=threading.Event)
    """Whether nobody waits any more, as after Ctrl-C."""

    def look(self, entry: Entry) -> Outcome | None:
        """What a replay would do."""
        run = look(self.bucket, entry, time.time())
        if run is None:
            return None if entry.hour else _unknown(entry)
        if entry.hour and (run.request["requested_at"] < self.since or run.outcome not in ("failed", "lost")):
            return None
        found = prospect(self.bucket, run, self.verb)
        return Outcome(run.run_id, found.does not in REFUSED, found.does, found.sentence, session_id=run.session_id)

    def start(self, entry: Entry) -> Outcome | None:
        """Replays it; None where the index named a run that is not meant."""
        try:
            asked = record.request(self.bucket, entry.run_id)
            if asked is None:
                return None if entry.hour else _unknown(entry)
            if entry.hour and asked["requested_at"] < self.since:
                return None
            if entry.outcome == "claimed" and is_held(self.bucket, asked, time.time()):
                return None
            outcome = _outcome(entry.run_id, self._execute(asked))
            if entry.hour and outcome.said == RunCancelled.__name__:
                return None  # which only its caller can want again, by another key
            return self._waited_for(outcome) if self.waits and outcome.said == RUNNING else outcome
        except StorageUnavailable as failed:
            return Outcome(entry.run_id, False, type(failed).__name__, failed.detail)
        except (BotoCoreError, ClientError) as error:
            return Outcome(entry.run_id, False, type(error).__name__, str(error))

    def _waited_for(self, outcome: Outcome) -> Outcome:
        """What came of a run that goes on in the long machine, once it has ended. Raises `StorageUnavailable`."""
        waits = iter(LOOKS_EVERY)
        entry = Entry(outcome.new_run or outcome.run_id)
        while (run := look(self.bucket, entry, time.time())) and run.outcome == RUNNING:
            if self.left.wait(next(waits, LOOKS_EVERY[-1])):
                return outcome
        return _came_of(outcome.run_id, run) if run else _unknown(entry)

    def _execute(self, asked: Json) -> Json:
        done: Json = self.machine.start_sync_execution(
            stateMachineArn=self.backend.state_machine_arn, input=json.dumps(envelope(asked, self.verb))
        )
        return done


def _unknown(entry: Entry) -> Outcome:
    return Outcome(entry.run_id, False, "Unknown", "There is no such run.")


def _outcome(run_id: str, done: Json) -> Outcome:
    """An execution's end, whatever it is."""
    if done["status"] == "SUCCEEDED":
        return _answered(run_id, json.loads(done["output"]))
    try:
        failure = json.loads(done.get("cause") or "")
    except ValueError:
        failure = {}
    failed = {"error": f"The execution ended as {done['status']}."} | failure
    return _failed(run_id, done.get("error") or done["status"], failed)


def _came_of(run_id: str, run: Run) -> Outcome:
    """What a run came to that replayed the one of this id, which may be itself."""
    if run.answer:
        return _answered(run_id, run.answer)
    failure = run.failure if run.outcome != "lost" else None
    return _failed(
        run_id, *((failure["code"], failure) if failure else ("lost", {"error": "Nobody is at work on it."}))
    )


def _answered(run_id: str, answer: Json) -> Outcome:
    """An answer, or that the run goes on in the long machine."""
    said, new = answer.get("status") or cut_short(answer) or answer.get("stop_reason") or "done", answer.get("run_id")
    sentence = GOES_ON if said == RUNNING else line(answer.get("result") or "", 200)
    made = new if new != run_id else None
    return Outcome(run_id, True, said, sentence, answer.get("cost_usd"), made, answer.get("session_id"))


def _failed(run_id: str, code: str, failure: Json) -> Outcome:
    cost, session_id = failure.get("cost_usd"), failure.get("session_id")
    return Outcome(run_id, False, code, str(failure["error"]), cost, session_id=session_id)


def run(
    backend: Backend, run_ids: Sequence[str], span: float | None, verb: str, *, dry: bool = False, waits: bool = True
) -> int:
    """Replays `run_ids` or, where there are none, all that failed or were lost; 0 if every one succeeded, or can.

    Long ones are waited for, or left to themselves.
    """
    now = time.time()
    begin = now - (DAY if span is None else span)
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    replay = Replay(backend, bucket, backend.client("stepfunctions"), verb, begin, waits)
    # All are found before the first is started, since a replay moves what is listed. 100,000 take some 10 MB.
    entries = [Entry(run_id) for run_id in dict.fromkeys(run_ids)]
    entries = entries or [entry for page in since(bucket, begin, now, UNFINISHED) for entry in page]
    console = to_stderr()
    work, threads = (replay.look, READERS) if dry else (replay.start, AT_A_TIME)
    report = Report(tables.console())
    try:
        for outcome in _watched(each(work, entries, threads), len(entries), console):
            report.add(outcome)
    finally:
        replay.left.set()
    report.end(console, dry)
    sys.stdout.flush()
    console.print(requests.sentence(), style="dim", soft_wrap=True)
    return 1 if report.failed else 0


def _watched(outcomes: Iterator[Outcome | None], total: int, console: Console) -> Iterator[Outcome]:
    """The outcomes, under a progress bar."""
    columns = (TextColumn("Replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for outcome in outcomes:
            progress.advance(task)
            if outcome:
                yield outcome


class Report:
    """The table of outcomes, printed a page at a time."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.rows: list[Outcome] = []
        self.printed = self.succeeded = self.failed = self.moved = 0

    def add(self, outcome: Outcome) -> None:
        """One row more, which is printed with its page."""
        self.rows.append(outcome)
        self.succeeded += outcome.ok
        self.failed += not outcome.ok
        self.moved += outcome.said in ("SessionMoved", "moved")
        if len(self.rows) == PAGE:
            self._print()

    def end(self, console: Console, dry: bool) -> None:
        """The rest, and the sum of it."""
        self._print()
        if not self.succeeded + self.failed:
            console.print("Nothing to replay.")
        elif dry:
            console.print(f"{self.succeeded:,} can be replayed, {self.failed:,} cannot.")
        else:
            console.print(f"{self.succeeded:,} succeeded, {self.failed:,} failed.")
        if self.moved:
            console.print(
                f"Of {self.moved:,} the session has gone on. --fork makes what they did a new session, without paying "
                "where it is staged; --rebase asks again on the newest version, and pays.",
                soft_wrap=True,
            )

    def _print(self) -> None:
        if not self.rows:
            return
        columns = LINE if self.out.width >= LINE_COLUMNS else BLOCK
        rows = (_cells(row) for row in self.rows)
        self.out.print(tables.table(columns, rows, head=not self.printed, width=self.out.width))
        self.printed += len(self.rows)
        self.rows.clear()


def _cells(row: Outcome) -> dict[str, Text]:
    what = f"{row.new_run} in {row.session_id}" if row.new_run else row.sentence
    return {
        "run": Text(line(row.run_id, 100)),
        "outcome": Text(line(row.said, 40), "green" if row.ok else "red"),
        "cost": Text(dollars(row.cost_usd)),
        "what came of it": Text(line(what, 200)),
    }
