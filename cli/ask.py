"""`claude-workflow ask`: one POST, with progress while it runs."""

import json
import sys
import uuid
from typing import Any

import urllib3
from rich.console import Console
from rich.text import Text

from cli.endpoint import KEY_VARIABLE, Endpoint, Unusable, command

LONGEST = 305
"""Seconds to wait for an answer: above the API's longest integration timeout, so that its own answer arrives."""
CONNECT = 10
"""Seconds to wait for a connection."""

Answer = dict[str, Any]


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
        if answer["success"] in (True, False):
            return answer
    except (ValueError, TypeError, KeyError):
        pass
    raise Unusable(f"{endpoint.url} answered {response.status}, but not as this API does. Is the URL right?")


def plain() -> Console:
    """A console on standard error that shows texts as they are: no markup, no emoji codes, no colors for numbers."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def run(endpoint: Endpoint, prompt: str, session: str | None, key: str | None, as_json: bool) -> int:
    """Asks, prints the answer to stdout and all else to stderr; 0 if it succeeded, else 1."""
    console, key = plain(), key or str(uuid.uuid4())
    answer = post(endpoint, {"prompt": prompt} | ({"session_id": session} if session else {}), console, key)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    else:
        report(answer, console, key)
    return 0 if answer["success"] else 1


def report(answer: Answer, console: Console, key: str) -> None:
    """An answer or a failure, for people."""
    if answer["success"]:
        _show(answer, console)
        return
    console.print(Text(answer["code"], "red") + Text(f": {answer['error']}"), soft_wrap=True)
    if answer["code"] == "Forbidden":
        console.print(f"The API's key is taken from {KEY_VARIABLE} where that is set.", style="dim", soft_wrap=True)
    if answer["retryable"]:
        again = "Asking the same again can help, and pays for nothing twice"
        console.print(f"{again}: {command()} ask --key {key} …", style="dim", soft_wrap=True)


def _show(answer: Answer, console: Console) -> None:
    """The final text on stdout; what it took, and how to go on, on stderr."""
    print(answer["result"] or f"(no final text: the run stopped at {answer['stop_reason']})", flush=True)
    for file in answer["files"][:20]:
        change = Text(f"  {file['change']}", "dim")
        console.print(change + Text(f" {file['path']} ({_bytes(file['size'])})"), soft_wrap=True)
    seconds, turns = answer["duration_ms"] / 1000, answer["num_turns"]
    took = f"{turns} turn{'s' * (turns != 1)}, {seconds:.1f} s, ${answer['cost_usd']:.4f}"
    console.print(
        f"{took}. Go on with: {command()} ask --session {answer['session_id']} …", style="dim", soft_wrap=True
    )


def _bytes(size: int) -> str:
    return f"{size:,} byte{'s' * (size != 1)}"
