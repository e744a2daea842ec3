"""`claude-workflow demo`, that is `make run`: two questions of one session, the second knowing the first."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cli import ask, endpoint
from cli.endpoint import Endpoint, command
from cli.serve import serving

FIRST = "write notes.txt: Remember the milk."
SECOND = "read notes.txt"
"""Claude understands these as well as the stand-in does."""


def run(state: Path) -> int:
    """Exits with 0 if both were answered."""
    console = ask.plain()
    with _service(state, console) as service:
        first = _asked(service, FIRST, None, console)
        second = first and _asked(service, SECOND, first["session_id"], console)
    return 0 if second else 1


def _asked(service: Endpoint, prompt: str, session: str | None, console: Console) -> ask.Answer | None:
    print(f"\n> {prompt}", flush=True)
    key = str(uuid.uuid4())
    answer = ask.post(service, {"prompt": prompt} | ({"session_id": session} if session else {}), console, key)
    ask.report(answer, console, key)
    return answer if answer["success"] else None


@contextmanager
def _service(state: Path, console: Console) -> Iterator[Endpoint]:
    """The service that runs, or one of its own on a free port."""
    if running := endpoint.local(state):
        console.print(f"A service is running: {running.url}\nAnswering: {running.answering}", soft_wrap=True)
        yield running
        return
    with serving(state, "127.0.0.1", 0, console) as (started, name):
        console.print(f"Answering: {name}", soft_wrap=True)
        yield Endpoint(started.url, started.key)
    console.print(f"\nThe service is ended. Start it yourself: {command()} serve", soft_wrap=True)
