"""`claude-workflow console`: the page to look at, over a service of this machine or a deployed stack."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Endpoint, Unusable, deployed, local, of_state
from claude_workflow.cli.printing import to_stderr
from claude_workflow.console import server
from claude_workflow.console.app import Behind
from claude_workflow.local.service import Service


def run(backend: Backend, state: Path, stack: str | None, port: int) -> int:
    """Serves until Ctrl-C, or SIGTERM. Raises `Unusable` where the port is taken."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = to_stderr()
    endpoint, name = (_asked(stack), f"the stack {stack}") if stack else (local(state), _named(state))
    try:
        with server.serving(Behind(backend, endpoint, name), port) as link:
            print(f"Console: {link}", flush=True)
            if endpoint is None and not stack:
                console.print("No service runs: what ran can be looked at, and nothing asked or replayed.")
            console.print("Open the link in a browser on this machine. Ctrl-C ends it.")
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Ended.")
    except (OSError, OverflowError) as error:
        raise Unusable(f"The console cannot listen on port {port} ({error}). Choose another: --port") from error
    return 0


def _asked(stack: str) -> Endpoint | None:
    """Where a stack is asked; None for an operator who may not read its key, and looks all the same."""
    try:
        return deployed(stack)
    except Unusable as refused:
        to_stderr().print(f"{refused} Nothing can be asked here; all else works.", soft_wrap=True)
        return None


@contextmanager
def beside(running: Service, answering: str, state: Path) -> Iterator[str]:
    """The console of a service of this process, on a port of its own; the link that opens it."""
    options = of_state(state)
    backend = Backend(running.deployed.bucket, running.deployed.state_machine_arn, running.engine, options)
    endpoint = Endpoint(running.url, running.key, answering, options, state)
    with server.serving(Behind(backend, endpoint, _named(state))) as link:
        yield link


def _named(state: Path) -> str:
    """What the pages call a service of this machine."""
    return str(state) if of_state(state) else "this machine"
