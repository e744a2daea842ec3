"""`claude-workflow serve`: everything in one command, until Ctrl-C."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cli.endpoint import Endpoint, Unusable, announce, api_key, withdraw
from local import service
from local.deploy import DeployFailed
from local.engine import EngineFailed
from local.model import ScriptedModel
from local.service import Model, Service

ANTHROPIC = "https://api.anthropic.com"

REMEMBERED = 1
"""Requests that the stand-in keeps; only tests look at them."""


@contextmanager
def answering(environ: Mapping[str, str]) -> Iterator[tuple[Model, str]]:
    """Who answers, and what to call it: the user's provider if there is a key, else the scripted stand-in."""
    if key := environ.get("ANTHROPIC_API_KEY"):
        url = environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC
        yield Model(url, key), f"the model at {url} (your ANTHROPIC_API_KEY pays)"
        return
    with ScriptedModel(kept=REMEMBERED) as scripted:
        yield Model(scripted.url, "stand-in"), "a scripted stand-in, no real model: set ANTHROPIC_API_KEY for Claude"


@contextmanager
def serving(state: Path, host: str, port: int, console: Console) -> Iterator[tuple[Service, str]]:
    """The service with who answers. Raises `Unusable`, in one sentence, where it cannot run."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = api_key(state)
    with answering(os.environ) as (model, name), console.status("Starting …") as status:
        try:
            with service.running(state, model, key, host=host, port=port, say=status.update) as running:
                status.stop()
                announce(state, Endpoint(running.url, key))
                try:
                    yield running, name
                finally:
                    withdraw(state)
        except (EngineFailed, DeployFailed) as failed:
            raise Unusable(str(failed)) from failed
        except OSError as error:
            if error.filename is not None:
                raise
            raise Unusable(f"Port {port} on {host} is not free ({error.strerror}). Choose another: --port") from error


def run(state: Path, host: str, port: int) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    console = Console(stderr=True, highlight=False)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with serving(state, host, port, console) as (running, name):
        console.print(f"Answering: {name}\nSessions are kept in {state}. Ctrl-C ends the service.\n", soft_wrap=True)
        print(f"{running.url} is ready:\n\n{_curl(running)}\n", flush=True)
        while not ended.wait(1):
            if not _alive(running.engine.pid):
                raise Unusable(f"The engine ended; its log is {running.engine.state / 'engine.log'}. Start it again.")
    console.print("Ended.")
    return 0


def _curl(running: Service) -> str:
    return (
        f"curl -sS {running.url} -H 'content-type: application/json' \\\n"
        f'  -H {shlex.quote(f"x-api-key: {running.key}")} -d \'{{"prompt": "Hello"}}\''
    )


def _alive(pid: int) -> bool:
    """Whether a child still runs; a dead one is reaped by who started it."""
    found, _ = os.waitpid(pid, os.WNOHANG)
    return found == 0
