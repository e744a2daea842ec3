"""`claude-workflow show`: what happened in one run and why, what a replay would do, and what its states took."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import STANDING, cut_short, dollars, provider_failed
from claude_workflow.cli.endpoint import Unusable, typed
from claude_workflow.cli.history import LEGS_ENDED, Story, Visit, clock, legs, named, story_of, unsigned
from claude_workflow.cli.printing import document, line, to_stderr, whole
from claude_workflow.cli.prospect import REFUSED, Prospect, prospect
from claude_workflow.cli.record import Requests, Run, look
from claude_workflow.cli.runs import PROMPT_CHARS, STYLES, Row
from lambdas.bucket import record
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.receipt import Receipt

SHOWN_CHARS = 3000
"""Of one input or output; `--json` has all of it."""
BEFORE_BAR = 52
"""Columns of a state's line before its bar."""
BAR = 100
"""Columns of a bar at the most."""


def run(backend: Backend, run_id: str, as_json: bool, verbose: bool) -> int:
    """Prints to stdout. Raises `Unusable` where there is no such run."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    found = look(bucket, Entry(run_id), time.time())
    if found is None:
        raise Unusable(f"There is no run {run_id}.")
    begin = found.request["requested_at"]
    stories = [story_of(backend, execution, begin) for execution in found.executions]
    planned, receipts = prospect(bucket, found), record.receipts(bucket, run_id)
    if as_json:
        print(document(_whole(found, stories, planned, receipts), sys.stdout))
    else:
        _Screen(tables.console(), verbose).show(found, stories, planned, receipts, backend.options)
    sys.stdout.flush()
    to_stderr().print(requests.sentence(), style="dim", soft_wrap=True)
    return 0


Receipts = Mapping[str, Receipt | None]
"""By attempt; None for one that does not add up."""


def _whole(found: Run, stories: list[Story], planned: Prospect, receipts: Receipts) -> dict[str, Any]:
    return asdict(Row.of(found)) | {
        "request": found.request,
        "answer": found.answer,
        "failure": unsigned(found.failure),
        "executions": [asdict(story) for story in stories],
        "staged": planned.staged,
        "receipts": {attempt: receipt and receipt.dump() for attempt, receipt in receipts.items()},
        "replay": planned.does,
    }


class _Screen:
    """A run, for people. Sentences are broken between words at a terminal; what is to be pasted is not."""

    def __init__(self, out: Console, verbose: bool) -> None:
        self._out = out
        self._verbose = verbose

    def show(
        self, found: Run, stories: list[Story], planned: Prospect, receipts: Receipts, options: tuple[str, ...]
    ) -> None:
        row = Row.of(found)
        self._say(
            Text.assemble((row.run_id, "bold"), "  ", (row.ending, STYLES[row.outcome]), f"  {dollars(row.cost_usd)}")
        )
        self._say(f"{line(row.owner, 100)} in {line(row.session_id, 100)}")
        asked = f"{datetime.fromtimestamp(row.requested_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        self._say(f"asked {asked}{f', a replay of {row.replay_of}' if row.replay_of else ''}")
        self._say(f"> {line(row.prompt, PROMPT_CHARS)}")
        self._say("")
        self._what_happened(found)
        if found.answer is None:
            self._say(f"A replay would {planned.sentence}.")
            if planned.does not in REFUSED:
                self._out.print(f"  {typed('replay', row.run_id, *options)}", soft_wrap=True)
        each = legs(planned.staged) if found.long else {}
        for attempt, objects in planned.staged.items():
            named = (f"{name} ({size:,} bytes)" for name, size in objects.items() if name != "receipt.json")
            self._say(f"Staged in {attempt}{each.get(attempt, '')}: {', '.join(named)}")
        for at, receipt in receipts.items():
            attempt = at.split("/")[2]
            self._receipt(f"{attempt}{each.get(attempt, '')}", receipt)
        for story in stories:
            self._story(story, _name(story, row.run_id))
        if found.answer and found.answer.get("result"):
            self._say("\nAnswer", "bold")
            self._out.print(whole(str(found.answer["result"]), sys.stdout), soft_wrap=True)
        if not self._verbose:
            more = typed("show", row.run_id, "--verbose", *options)
            self._say("\nWhat each state got and gave:", "dim")
            self._out.print(f"  {more}", style="dim", soft_wrap=True)

    def _what_happened(self, found: Run) -> None:
        answer, failure = found.answer, found.failure
        if answer and found.outcome == "cancelled":
            self._say("Cancelled by its caller; what was done until then is saved.", "yellow")
        elif answer and (stopped := cut_short(answer | {"model_failure": None})):
            self._say(
                f"Answered, though it stopped at {line(stopped, 40)}; what was done until then is saved.", "yellow"
            )
        elif answer:
            self._say("Answered.")
        if answer and (sentence := provider_failed(answer)):
            self._say(sentence, "yellow")
        if not answer and found.outcome in STANDING:
            self._say(STANDING[found.outcome], STYLES[found.outcome])
        if failure and not answer:
            before = "Before: " if found.outcome == "running" else ""
            state, said = line(str(failure.get("state")), 40), whole(failure["error"], sys.stdout)
            self._say(f"{before}{line(failure['code'], 40)} in {state}: {said}", "bold red")
            if detail := str(failure.get("detail") or "").strip():
                self._say(whole(unsigned(detail), sys.stdout))

    def _receipt(self, attempt: str, receipt: Receipt | None) -> None:
        if receipt is None:
            return self._say(f"The receipt of {attempt} does not add up.", "bold red")
        models = ", ".join(sorted({line(call.model, 60) for call in receipt.calls})) or "no model"
        said = f"; Claude Code itself says {dollars(receipt.claude_code_usd)}" if receipt.differs else ""
        calls = f"{len(receipt.calls)} call{'' if len(receipt.calls) == 1 else 's'}"
        self._say(f"Receipt of {attempt}: {calls} of {models}, {dollars(receipt.usd)}{said}")
        for each in receipt.refused:
            times = f" {each.times} times" if each.times > 1 else ""
            self._say(f"  refused{times}: {line(each.what, 100)}: {line(each.why, 200)}", "yellow")
        for call in receipt.calls if self._verbose else ():
            answer = f"{call.status or 'no answer'}, {call.end}"
            name = line(str(call.request_id), 100)
            self._say(f"  {clock(call.at)}  {call.seconds:8.3f} s  {dollars(call.usd)}  {answer}  {name}", "dim")
        return None

    def _story(self, story: Story, name: str) -> None:
        self._say("")
        if not story.visits:
            self._say(f"Execution {name}", "bold")
            self._say(f"  {story.damage or 'Its history is gone, or not there yet.'}", "dim")
        else:
            begin, end = story.visits[0].entered, max(visit.left or visit.entered for visit in story.visits)
            self._say(Text.assemble((f"Execution {name}", "bold"), f"  {clock(begin)} UTC"))
            for state, visit in named(story.visits):
                self._visit(state, visit, begin, end)
        if self._verbose:
            self._out.print(f"  {story.execution}", style="dim", soft_wrap=True)
        if story.link:
            self._out.print(f"  {story.link}", soft_wrap=True)

    def _visit(self, state: str, visit: Visit, begin: float, end: float) -> None:
        took = f"{visit.left - visit.entered:8.3f} s" if visit.left is not None else f"{'…':>8}  "
        bar = _bar(visit, begin, end, min(BAR, self._out.width - BEFORE_BAR))
        times = f"  {line(state, 20):<16} at {visit.entered - begin:8.3f} s  took {took}  "
        self._say(Text.assemble(times.ljust(BEFORE_BAR), (bar, "red" if visit.errors else "green")))
        if isinstance(visit.output, dict) and (leg := visit.output.get("leg")):
            self._say(f"    {LEGS_ENDED.get(leg, 'ended')}; the next leg goes on", "dim")
        for error in visit.errors:
            self._say(f"    failed with {line(str(error['error']), 200)}", "red")
            if self._verbose:
                self._data("cause ", error["cause"])
        if self._verbose:
            self._data("input ", visit.input)
            if visit.output is not None:
                self._data("output", visit.output)

    def _data(self, what: str, data: Any) -> None:
        text = whole(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False), sys.stdout)
        if len(text) > SHOWN_CHARS:
            text = f"{text[:SHOWN_CHARS]} … ({len(text):,} characters: --json has all)"
        self._out.print(f"    {what} {text}", style="dim", soft_wrap=True)

    def _say(self, text: str | Text, style: str = "") -> None:
        self._out.print(text, style=style, soft_wrap=not self._out.is_terminal)


def _name(story: Story, run_id: str) -> str:
    """Of `arn:…:express:MACHINE:NAME:ID`, or `arn:…:execution:MACHINE:RUN-NAME`, what names it to people."""
    return ([*story.execution.split(":")[7:], story.execution])[0].removeprefix(f"{run_id}-")


def _bar(visit: Visit, begin: float, end: float, columns: int) -> str:
    """The state's time in that of its execution, to scale; one column at the least."""
    scale = (columns - 1) / max(end - begin, 0.001)
    before = round((visit.entered - begin) * scale)
    until = round(((visit.left or end) - begin) * scale)
    return " " * before + "=" * max(1, until - before)
