"""What a run came to, for people: an answer or a failure, and what to do then."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from claude_workflow.cli.client import Document
from claude_workflow.cli.endings import dollars, is_cancelled, lasted, provider_failed
from claude_workflow.cli.endpoint import KEY_VARIABLE, STAND_IN, Endpoint, typed
from claude_workflow.cli.printing import document, line, whole

CALL_CHARS = 500
"""Of a call that waits to be approved."""
PATH_CHARS = 4096
"""What Linux allows in a path."""
CAUSE_CHARS = 1000
"""Of the end of a failure's cause; `show` has all that is recorded."""

FAILED, NO_TEXT = 1, 3
"""The exit codes of a failure, and of a run that ended without a final text."""


def give(
    answer: Document,
    console: Console,
    endpoint: Endpoint,
    again: Sequence[str] | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Prints it to stdout and all else to the console, and returns the command's exit code.

    `again` is what `ask` was given, to be typed again; None where the run was asked for elsewhere.
    """
    if as_json:
        print(document(answer, sys.stdout))
    elif answer["success"]:
        _show(answer, console, endpoint)
    else:
        _show_failure(answer, console, endpoint, again)
    return code(answer)


def code(answer: Document) -> int:
    """The exit code of whoever asked."""
    return FAILED if not answer["success"] else 0 if answer["result"] else NO_TEXT


def _show_failure(answer: Document, console: Console, endpoint: Endpoint, again: Sequence[str] | None) -> None:
    said = whole(f"{answer['code']}: {answer['error']}", console.file)
    console.print(Text(said, "red"), soft_wrap=True)
    if answer["code"] == "Forbidden":
        console.print(f"The API's key is taken from {KEY_VARIABLE} where that is set.", style="dim", soft_wrap=True)
    run_id = answer.get("run_id")
    if run_id and endpoint.state:
        for sentence in _cause(endpoint.state, run_id):
            console.print(sentence, soft_wrap=True)
    if run_id:
        # Whoever has a URL alone cannot look into the record.
        look = "" if "--url" in endpoint.options else f". What happened: {typed('show', run_id, *endpoint.options)}"
        console.print(f"This is {line(run_id, 100)}{look}", style="dim", soft_wrap=True)
    if answer["retryable"] and again is not None:
        sentence = "Asking the same again can help, and pays for nothing twice"
        console.print(f"{sentence}: {typed('ask', *again)}", style="dim", soft_wrap=True)


def _cause(state: Path, run_id: str) -> Iterator[str]:
    """What the record says of a failure on this machine, whose user may read it anyway."""
    from botocore.exceptions import BotoCoreError, ClientError  # a third of a second that only a failure costs

    from claude_workflow.cli import backend
    from lambdas.bucket import record
    from lambdas.bucket.objects import Bucket
    from lambdas.errors import StorageUnavailable

    try:
        with backend.found(state, None, starts=False) as found:
            failure = record.failure(Bucket(found.client("s3"), found.bucket), run_id) or {}
    except (BotoCoreError, ClientError, StorageUnavailable) as error:
        why = error.detail if isinstance(error, StorageUnavailable) else error
        yield f"Its cause could not be read: {why}"
        return
    if detail := str(failure.get("detail") or "").strip():
        yield f"Its cause: {whole(detail[-CAUSE_CHARS:], sys.stderr)}"


def _show(answer: Document, console: Console, endpoint: Endpoint) -> None:
    """The final text on stdout; what it took, and how to go on, on stderr."""
    if answer["result"]:
        print(whole(answer["result"], sys.stdout), flush=True)
    if is_cancelled(answer):
        console.print("The run was cancelled. What was done until then is saved.", style="yellow", soft_wrap=True)
    elif waits := answer.get("pending"):
        call = line(f"{waits['tool']} {json.dumps(waits['input'], ensure_ascii=False)}", CALL_CHARS)
        console.print(f"A call waits to be approved: {call}", style="yellow", soft_wrap=True)
        for verb in ("approve", "deny"):
            answers = ("--session", answer["session_id"], f"--{verb}", waits["digest"], *endpoint.options)
            console.print(f"  {typed('ask', *answers)}", soft_wrap=True)
    elif not answer["result"]:
        stopped = line(str(answer.get("stop_reason")), 40)
        console.print(f"There is no final text: the run stopped at {stopped}.", style="yellow", soft_wrap=True)
    for file in answer["files"][:20]:
        change = Text(f"  {line(file['change'], 20)}", "dim")
        console.print(change + Text(f" {line(file['path'], PATH_CHARS)} ({_bytes(file['size'])})"), soft_wrap=True)
    if sentence := provider_failed(answer):
        console.print(sentence, style="yellow", soft_wrap=True)
    seconds, calls = answer["duration_ms"] / 1000, answer["num_turns"]  # a turn of the conversation is one POST
    cost = "no real cost" if endpoint.answering == STAND_IN else dollars(answer["cost_usd"])
    took = f"{calls} model call{'s' * (calls != 1)}, {lasted(seconds)}, {cost}"
    on = typed("ask", "--session", answer["session_id"], *endpoint.options)
    console.print(f"{took}. Go on with: {on} …", style="dim", soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size:,} byte{'s' * (size != 1)}"
