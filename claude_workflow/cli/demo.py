"""`claude-workflow demo`, that is `make run`: two questions of one session, the second knowing the first."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from claude_workflow.cli import answers, endpoint
from claude_workflow.cli.ask import Question, post
from claude_workflow.cli.client import Document
from claude_workflow.cli.endpoint import Endpoint, of_state, typed
from claude_workflow.cli.printing import to_stderr
from claude_workflow.cli.serve import kept_in, serving

FIRST = "write notes.txt: Remember the milk."
SECOND = "read notes.txt"
"""Claude understands these as well as the stand-in does."""

WITHOUT_A_SHELL = {"allowed_tools": ["Read", "Write"]}
"""All that the two questions need, and all that a model gets where no sandbox keeps it in."""


def run(state: Path) -> int:
    """Exits with 0 if both were answered."""
    console = to_stderr()
    with _service(state, console) as (service, tools):
        first = _asked(service, {"prompt": FIRST} | tools, console)
        second = first and _asked(service, {"prompt": SECOND, "session_id": first["session_id"]} | tools, console)
    return 0 if second else 1


def _asked(service: Endpoint, body: dict[str, Any], console: Console) -> Document | None:
    print(f"\n> {body['prompt']}", flush=True)
    key = str(uuid.uuid4())
    with console.status("Claude is working…"):
        answer = post(service, body, key)
    again = Question(body["prompt"], body.get("session_id")).again(key, service)
    answers.give(answer, console, service, again)
    return answer if answer["success"] else None


@contextmanager
def _service(state: Path, console: Console) -> Iterator[tuple[Endpoint, dict[str, Any]]]:
    """The service that runs, or one of its own on a free port; and what its requests allow."""
    if running := endpoint.local(state):
        console.print(f"A service is running: {running.url}\nAnswering: {running.answering}", soft_wrap=True)
        yield running, {}
        return
    with serving(state, "127.0.0.1", 0, console) as (started, name):
        console.print(f"Answering: {name}\nThe agent {kept_in(started)}.", soft_wrap=True)
        mine = Endpoint(started.url, started.key, name, of_state(state), state)
        yield mine, {} if started.sandbox else WITHOUT_A_SHELL
    console.print(f"\nThe service is ended. Start it yourself: {typed('serve', *of_state(state))}", soft_wrap=True)
