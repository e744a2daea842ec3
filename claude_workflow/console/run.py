"""One run: what is known of it, and its replay."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import STANDING, cut_short, provider_failed
from claude_workflow.cli.history import LEGS_ENDED, Story, legs, named, story_of, unsigned
from claude_workflow.cli.printing import line
from claude_workflow.cli.prospect import REFUSED, Prospect, prospect
from claude_workflow.cli.record import Run, look
from claude_workflow.cli.replay import AT_A_TIME, Outcome, Replay
from claude_workflow.cli.runs import PROMPT_CHARS, Row
from claude_workflow.console import conversation, graph, timeline
from claude_workflow.console.conversation import Conversations
from lambdas.bucket import lease, record
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.receipt import Receipt

TOLD = 200
"""Executions whose stories are kept in memory; one of some hundred events takes 100 KB."""
TITLE = 160
"""Characters of a page's title; of a prompt's beginning, it is the first line."""
CALLS = 500
"""Of a run's receipts that a page lists."""
VISITS = 300
"""Of states that a page lists: those that came last."""

VERBS = {
    "again": "Replay",
    "fork": "Fork: a new session, on the version that it began with",
    "rebase": "Rebase: ask again on the newest version, and pay",
}
"""How a run is replayed, and what the button says."""


@dataclass
class Begun:
    """A replay that was begun here."""

    verb: str
    ended: Outcome | None = None
    """None while it goes on."""


class Replays:
    """Replays that go on beside the pages, as many at a time as the command has. The end of the console does not wait
    for them: in AWS they go on by themselves."""

    def __init__(self, backend: Backend, bucket: Bucket) -> None:
        self._backend = backend
        self._bucket = bucket
        self._machine = backend.client("stepfunctions")
        self._room = threading.Semaphore(AT_A_TIME)
        self._begun: OrderedDict[str, Begun] = OrderedDict()

    def begin(self, run_id: str, verb: str) -> None:
        """Begins one, unless one of this run goes on."""
        if (before := self.of(run_id)) and before.ended is None:
            return
        begun = self._begun[run_id] = Begun(verb)
        while len(self._begun) > TOLD:
            self._begun.popitem(last=False)
        threading.Thread(target=self._replay, args=(run_id, begun), daemon=True).start()

    def _replay(self, run_id: str, begun: Begun) -> None:
        ended: Outcome | None = Outcome(run_id, False, "Internal", "The console's command has printed what went wrong.")
        try:
            with self._room:
                replay = Replay(self._backend, self._bucket, self._machine, begun.verb, since=0.0)
                ended = replay.start(Entry(run_id))
        finally:
            begun.ended = ended or Outcome(run_id, False, "Unknown", "There is no such run.")

    def of(self, run_id: str) -> Begun | None:
        """The last one of a run."""
        return self._begun.get(run_id)


class Stories:
    """What executions went through; of runs that ended it is kept."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept: OrderedDict[str, Story] = OrderedDict()

    @property
    def quick(self) -> bool:
        """Whether they are told at once; in AWS a log is asked, which takes seconds."""
        return self._backend.engine is not None

    def of(self, run: Run, also: str | None) -> list[Story]:
        """Those of the executions that the record names, and `also` of one that is at work."""
        begin, names = run.request["requested_at"], [*run.executions]
        names += [also] if also and also not in names else []
        return [self._story(name, begin, ended=not run.running) for name in names]

    def _story(self, execution: str, begin: float, *, ended: bool) -> Story:
        if execution in self._kept:
            return self._kept[execution]
        try:
            story = story_of(self._backend, execution, begin)
        except (BotoCoreError, ClientError, TimeoutError) as error:
            return Story(execution, None, [], f"Its history could not be read ({error}).")
        if ended and story.visits and story.visits[-1].left is not None:
            self._kept[execution] = story
            while len(self._kept) > TOLD:
                self._kept.popitem(last=False)
        return story


@dataclass(frozen=True)
class Looked:
    """A run as a page has it."""

    run: Run
    row: Row
    planned: Prospect | None
    """What a replay would do; None for one that is done."""
    receipts: Mapping[str, Receipt | None]
    messages: list[bytes]
    at_work: str | None
    """The execution that has the session's lease for it."""


def looked(bucket: Bucket, conversations: Conversations, run_id: str) -> Looked | None:
    """The run; None where there is none. Raises `StorageUnavailable`."""
    run = look(bucket, Entry(run_id), time.time())
    if run is None:
        return None
    held = lease.holder(bucket, run.session_id) if run.running else None
    return Looked(
        run,
        Row.of(run),
        None if run.answer else prospect(bucket, run),
        record.receipts(bucket, run_id),
        conversations.of(run_id),
        held.execution if held else None,
    )


def facts(found: Looked, begin: int | None, begun: Begun | None, *, acts: bool) -> dict[str, Any]:
    """For the template; the conversation from message `begin` on, or its end. `acts`: whether runs can be replayed."""
    run, row = found.run, found.row
    first = begin or max(1, len(found.messages) - conversation.ON_A_PAGE + 1)
    staged = found.planned.staged if found.planned else {}
    each = legs(staged) if run.long else {}
    calls = [call for receipt in found.receipts.values() if receipt for call in receipt.calls]
    return {
        "run": run,
        "row": row,
        "title": _title(run),
        "live": run.running or (begun is not None and begun.ended is None),
        "happened": _happened(run),
        "detail": unsigned(str((run.failure or {}).get("detail") or "")).strip(),
        "planned": found.planned,
        "refused": found.planned is not None and found.planned.does in REFUSED,
        "verbs": VERBS if acts and found.planned and run.outcome in ("failed", "lost") else {},
        "begun": begun,
        "staged": [(at, each.get(at, ""), objects) for at, objects in staged.items()],
        "receipts": [(at.split("/")[2], receipt) for at, receipt in found.receipts.items()],
        "calls": calls[-CALLS:],
        "calls_left_out": max(0, len(calls) - CALLS),
        "conversation": conversation.read(found.messages, first),
        "first": begin,
        "page_of": conversation.ON_A_PAGE,
    }


def states(found: Looked, stories: list[Story]) -> dict[str, Any]:
    """The same, of what it went through."""
    visited = [(story, name, visit) for story in stories for name, visit in named(story.visits)]
    return {
        "stories": stories,
        "visits": visited[-VISITS:],
        "visits_left_out": max(0, len(visited) - VISITS),
        "graph": graph.drawn(stories),
        "box": graph.WIDTH,
        "box_height": graph.HEIGHT,
        "timeline": timeline.drawn(found.row.requested_at, stories, found.receipts, found.messages, time.time()),
        "legs_ended": LEGS_ENDED,
    }


def _title(run: Run) -> str:
    """The first line of its prompt that says something."""
    prompt = str((run.request.get("body") or {}).get("prompt", ""))[:PROMPT_CHARS]
    return next((shown for each in prompt.splitlines() if (shown := line(each, TITLE))), "–")


def _happened(run: Run) -> list[tuple[str, str]]:
    """What is said of it first: how good or bad that is, and a sentence."""
    answer, failure, said = run.answer, run.failure, list[tuple[str, str]]()
    if answer and run.outcome == "cancelled":
        said.append(("warns", "Cancelled by its caller; what was done until then is saved."))
    elif answer and (stopped := cut_short(answer | {"model_failure": None})):
        said.append(("warns", f"Answered, though it stopped at {stopped[:40]}; what was done until then is saved."))
    if answer and (sentence := provider_failed(answer)):
        said.append(("warns", sentence))
    if not answer and run.outcome in STANDING:
        said.append(("runs" if run.outcome == "running" else "warns", STANDING[run.outcome]))
    if failure and not answer:
        before = "Before: " if run.outcome == "running" else ""
        said.append(("fails", f"{before}{failure['code']} in {failure.get('state')}: {failure['error']}"))
    return said
