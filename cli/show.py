"""`claude-workflow show`: one run, state by state, and what a replay of it would do."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from cli.backend import Backend
from cli.endings import dollars, provider_failed
from cli.endpoint import Unusable
from cli.history import Story, Visit, clock, told
from cli.plan import SENTENCES, Plan, plan
from cli.printing import document, line, to_stderr, to_stdout, whole
from cli.records import Entry, Records, Run
from cli.runs import PROMPT_CHARS, STYLES, Row

SHOWN_CHARS = 3000
"""Of one input or output; `--json` has all of it."""


def run(backend: Backend, run_id: str, as_json: bool) -> int:
    """Prints to stdout. Raises `Unusable` where there is no such run."""
    records = Records(backend.client("s3"), backend.bucket)
    found = records.run(Entry(run_id), time.time())
    if found is None:
        raise Unusable(f"There is no run {run_id}.")
    begin = found.request["requested_at"]
    stories = [told(backend, execution, begin) for execution in executions(found)]
    planned = plan(records, found)
    if as_json:
        print(document(_whole(found, stories, planned), sys.stdout))
    else:
        _print(found, stories, planned, to_stdout(soft_wrap=True))
    sys.stdout.flush()
    to_stderr().print(str(records), style="dim", soft_wrap=True)
    return 0


def executions(found: Run) -> list[str]:
    """Those that the record names: the first, and the one that failed last."""
    named = [record.get("execution") for record in (found.request, found.failure or {}, found.answer or {})]
    return list(dict.fromkeys(name for name in named if name))


def _whole(found: Run, stories: list[Story], planned: Plan) -> dict[str, Any]:
    return asdict(Row.of(found)) | {
        "request": found.request,
        "answer": found.answer,
        "failure": found.failure,
        "executions": [asdict(story) for story in stories],
        "staged": planned.staged,
        "replay": planned.does,
    }


def _print(found: Run, stories: list[Story], planned: Plan, out: Console) -> None:
    row = Row.of(found)
    out.print(Text(row.run_id, "bold"), Text(row.told, STYLES[row.outcome]), dollars(row.cost_usd))
    of = f", a replay of {row.replay_of}" if row.replay_of else ""
    out.print(f"{line(row.owner, 100)} in {row.session_id}{of}\n> {line(row.prompt, PROMPT_CHARS)}")
    if sentence := provider_failed(found.answer or {}):
        out.print(sentence, style="yellow")
    for story in stories:
        _print_story(story, out)
    if found.failure and not found.answer:
        _print_failure(found.failure, out)
    if planned.staged:
        out.print("\nStaged", style="bold")
    for attempt, objects in planned.staged.items():
        out.print(f"  {attempt}: {', '.join(f'{name} ({size:,} bytes)' for name, size in objects.items())}")
    out.print(f"\nA replay would {SENTENCES[planned.does]}." if found.answer is None else "\nAnswer", style="bold")
    if found.answer:
        out.print(whole(str(found.answer.get("result") or f"(none: {found.answer.get('stop_reason')})"), sys.stdout))


def _print_story(story: Story, out: Console) -> None:
    out.print(f"\nExecution {story.execution}", style="bold")
    if story.link:
        out.print(story.link)
    if not story.visits:
        out.print("  Its history is gone, or not there yet.", style="dim")
    for visit in story.visits:
        for text, style in _visit(visit):
            out.print(text, style=style)


def _visit(visit: Visit) -> Iterator[tuple[str, str]]:
    took = f"{visit.left - visit.entered:8.3f} s" if visit.left is not None else "          "
    yield f"  {clock(visit.entered)} {took}  {visit.name}", "red" if visit.errors else "green"
    for error in visit.errors:
        yield f"      error   {line(str(error['error']), 200)}: {_shown(error['cause'])}", "red"
    yield f"      input   {_shown(visit.input)}", "dim"
    if visit.output is not None:
        yield f"      output  {_shown(visit.output)}", "dim"


def _print_failure(failure: dict[str, Any], out: Console) -> None:
    out.print(f"\n{failure['code']} in {failure.get('state')}", style="bold red")
    out.print(whole(failure["error"], sys.stdout))
    if detail := failure.get("detail"):
        out.print(whole(detail, sys.stdout), style="dim")


def _shown(data: Any) -> str:
    text = whole(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False), sys.stdout)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} … ({len(text):,} characters: --json has all)"
