"""`claude-workflow ask`: one POST, with progress while it runs."""

import sys
import uuid
from types import UnionType
from typing import Any

import urllib3
from rich.console import Console
from rich.text import Text

from cli.endings import provider_failed
from cli.endpoint import KEY_VARIABLE, Endpoint, Unusable, typed
from cli.printing import document, line, to_stderr, whole

LONGEST = 305
"""Seconds to wait for an answer: above the API's longest integration timeout, so that its own answer arrives."""
CONNECT = 10
"""Seconds to wait for a connection."""

PATH_CHARS = 4096
"""What Linux allows in a path."""

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


def post(endpoint: Endpoint, body: dict[str, Any], console: Console, key: str) -> Answer:
    """The service's answer, whatever its status. Raises `Unusable` where none came."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    if endpoint.key:
        headers["x-api-key"] = endpoint.key
    timeout = urllib3.Timeout(connect=CONNECT, read=LONGEST)
    with console.status("Claude is working…"):
        try:
            response = urllib3.request("POST", endpoint.url, json=body, headers=headers, timeout=timeout, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise Unusable(f"{endpoint.url} does not answer ({error}). Is the service running?") from error
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
    """Asks, prints the answer to stdout and all else to stderr; 0 if it succeeded, else 1."""
    console, key = to_stderr(), key or str(uuid.uuid4())
    answer = post(endpoint, {"prompt": prompt} | ({"session_id": session} if session else {}), console, key)
    if as_json:
        print(document(answer, sys.stdout))
    else:
        report(answer, console, key)
    return 0 if answer["success"] else 1


def report(answer: Answer, console: Console, key: str) -> None:
    """An answer or a failure, for people."""
    if answer["success"]:
        _show(answer, console)
        return
    said = whole(f"{answer['code']}: {answer['error']}", console.file)
    console.print(Text(said, "red"), soft_wrap=True)
    if answer["code"] == "Forbidden":
        console.print(f"The API's key is taken from {KEY_VARIABLE} where that is set.", style="dim", soft_wrap=True)
    if answer["retryable"]:
        again = "Asking the same again can help, and pays for nothing twice"
        console.print(f"{again}: {typed('ask', '--key', key)} …", style="dim", soft_wrap=True)


def _show(answer: Answer, console: Console) -> None:
    """The final text on stdout; what it took, and how to go on, on stderr."""
    result = answer["result"] or f"(no final text: the run stopped at {answer['stop_reason']})"
    print(whole(result, sys.stdout), flush=True)
    for file in answer["files"][:20]:
        change = Text(f"  {line(file['change'], 20)}", "dim")
        console.print(change + Text(f" {line(file['path'], PATH_CHARS)} ({_bytes(file['size'])})"), soft_wrap=True)
    if sentence := provider_failed(answer):
        console.print(sentence, style="yellow", soft_wrap=True)
    seconds, turns = answer["duration_ms"] / 1000, answer["num_turns"]
    took = f"{turns} turn{'s' * (turns != 1)}, {seconds:.1f} s, ${answer['cost_usd']:.4f}"
    on = typed("ask", "--session", answer["session_id"])
    console.print(f"{took}. Go on with: {on} …", style="dim", soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size:,} byte{'s' * (size != 1)}"
