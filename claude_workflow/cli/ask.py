"""`claude-workflow ask`: one POST, with progress while it runs."""

import ssl
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import urllib3
from rich.console import Console
from rich.text import Text

from claude_workflow.cli.endings import dollars, provider_failed
from claude_workflow.cli.endpoint import KEY_VARIABLE, STAND_IN, Endpoint, Unusable, typed
from claude_workflow.cli.printing import document, line, to_stderr, whole

LONGEST = 305
"""Seconds to wait for an answer: above the API's longest integration timeout, so that its own answer arrives."""
CONNECT = 10
"""Seconds to wait for a connection."""

ENDS_OF_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""What can happen after the request was sent; the rest of TLS's errors come before."""

PATH_CHARS = 4096
"""What Linux allows in a path."""
CAUSE_CHARS = 1000
"""Of the end of a failure's cause; `show` has all that is recorded."""
PROMPT_CHARS = 200
"""What of a prompt stands in a line to be pasted."""

NO_TEXT = 3
"""The exit code of a run that ended without a final text."""

Answer = dict[str, Any]

ANSWER: dict[str, type | UnionType] = {
    "session_id": str,
    "result": str | None,
    "files": list,
    "duration_ms": int | float,
    "num_turns": int,
    "cost_usd": int | float,
}
FAILURE: dict[str, type | UnionType] = {"code": str, "error": str, "retryable": bool}
FILE: dict[str, type | UnionType] = {"path": str, "change": str, "size": int}
"""What is shown, with its types."""


class Unanswered(Unusable):
    """The service has the request, but its answer did not come: the run may go on."""


def post(endpoint: Endpoint, body: dict[str, Any], console: Console, key: str) -> Answer:
    """The service's answer, whatever its status. Raises `Unusable` where none came."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    if endpoint.key:
        headers["x-api-key"] = endpoint.key
    timeout = urllib3.Timeout(connect=CONNECT, read=LONGEST)
    with console.status("Claude is working…"):
        try:
            response = urllib3.request("POST", endpoint.url, json=body, headers=headers, timeout=timeout, retries=False)
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise Unusable(f"{endpoint.url} does not answer ({error}). Is the service running?") from error
        except urllib3.exceptions.LocationValueError as error:
            raise Unusable(f"{endpoint.url} is no URL ({error}).") from error
        except urllib3.exceptions.SSLError as error:
            if isinstance(error.args[0], ENDS_OF_TLS):
                raise Unanswered(f"{endpoint.url} was asked, but gave no answer ({error}).") from error
            raise Unusable(f"{endpoint.url} cannot be asked by HTTPS ({error}). Nothing was sent.") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unanswered(f"{endpoint.url} was asked, but gave no answer ({error}).") from error
        except (ValueError, UnicodeError) as error:  # of http.client, for what no header or URL can hold
            raise Unusable(f"The key, or the URL, holds what cannot be sent ({error}).") from error
    try:
        answer: Answer = response.json()
    except (ValueError, RecursionError):
        answer = {}
    if _is_answer(answer):
        return answer
    raise Unusable(f"{endpoint.url} answered {response.status}, but not as this API does. Is the URL right?")


def _is_answer(found: Any) -> bool:
    """Whether it has all that is shown of an answer or a failure: another server may say anything."""
    if not isinstance(found, dict) or not isinstance(found.get("success"), bool):
        return False
    if not _has(found, ANSWER if found["success"] else FAILURE):
        return False
    return all(isinstance(file, dict) and _has(file, FILE) for file in found.get("files", []))


def _has(found: Answer, shape: dict[str, type | UnionType]) -> bool:
    return all(isinstance(found.get(name), kind) for name, kind in shape.items())


def run(endpoint: Endpoint, prompt: str, session: str | None, key: str | None, as_json: bool) -> int:
    """Asks, prints the answer to stdout and all else to stderr.

    0 for a final text, 1 for a failure, 3 for a run that ended without a final text.
    """
    console, key = to_stderr(), key or str(uuid.uuid4())
    of_session = ("--session", session) if session else ()
    asked = (*("--key", key), *of_session, *endpoint.options, *_again(prompt))
    body = {"prompt": prompt} | ({"session_id": session} if session else {})
    try:
        answer = post(endpoint, body, console, key)
    except (KeyboardInterrupt, Unanswered):
        console.print(f"The run may go on. Its answer, once it is there: {typed('ask', *asked)}", soft_wrap=True)
        raise
    if as_json:
        print(document(answer, sys.stdout))
    else:
        report(answer, console, endpoint, asked)
    return 1 if not answer["success"] else 0 if answer["result"] else NO_TEXT


def _again(prompt: str) -> tuple[str, ...]:
    """The prompt as an argument; a long one, or one of several lines, comes from a file better."""
    return ("--", prompt) if len(prompt) <= PROMPT_CHARS and prompt.isprintable() else ("-",)


def report(answer: Answer, console: Console, endpoint: Endpoint, asked: tuple[str, ...]) -> None:
    """An answer or a failure, for people. `asked` is what `ask` was given, to be typed again."""
    if answer["success"]:
        _show(answer, console, endpoint)
        return
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
    if answer["retryable"]:
        again = "Asking the same again can help, and pays for nothing twice"
        console.print(f"{again}: {typed('ask', *asked)}", style="dim", soft_wrap=True)


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


def _show(answer: Answer, console: Console, endpoint: Endpoint) -> None:
    """The final text on stdout; what it took, and how to go on, on stderr."""
    if answer["result"]:
        print(whole(answer["result"], sys.stdout), flush=True)
    else:
        stopped = line(str(answer.get("stop_reason")), 40)
        console.print(f"There is no final text: the run stopped at {stopped}.", style="yellow", soft_wrap=True)
    for file in answer["files"][:20]:
        change = Text(f"  {line(file['change'], 20)}", "dim")
        console.print(change + Text(f" {line(file['path'], PATH_CHARS)} ({_bytes(file['size'])})"), soft_wrap=True)
    if sentence := provider_failed(answer):
        console.print(sentence, style="yellow", soft_wrap=True)
    seconds, calls = answer["duration_ms"] / 1000, answer["num_turns"]  # a turn of the conversation is one POST
    cost = "no real cost" if endpoint.answering == STAND_IN else dollars(answer["cost_usd"])
    took = f"{calls} model call{'s' * (calls != 1)}, {seconds:.1f} s, {cost}"
    on = typed("ask", "--session", answer["session_id"], *endpoint.options)
    console.print(f"{took}. Go on with: {on} …", style="dim", soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size:,} byte{'s' * (size != 1)}"
