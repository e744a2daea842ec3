"""`claude-workflow serve`: everything in one command, until Ctrl-C."""

import errno
import ipaddress
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import certifi
import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from claude_workflow.cli import console as page
from claude_workflow.cli.endings import dollars
from claude_workflow.cli.endpoint import STAND_IN, Endpoint, Unusable, announce, api_key, kept_key, withdraw
from claude_workflow.cli.history import clock
from claude_workflow.cli.printing import line, to_stderr
from claude_workflow.cli.resume import resumed
from claude_workflow.local import sandbox, service
from claude_workflow.local.api import NotUnderstood
from claude_workflow.local.deploy import DeployFailed
from claude_workflow.local.engine import EngineFailed
from claude_workflow.local.gateway import Served
from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas import egress
from lambdas.agent import equipment
from lambdas.errors import StorageUnavailable

ANTHROPIC = "https://api.anthropic.com"

UNSENDABLE = "ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL holds what cannot be sent. Set them anew."

CHECK_SECONDS = 5.0
"""How long the provider may take to answer at the start."""

REMEMBERED = 1
"""Requests that the stand-in keeps; only tests look at them."""


@contextmanager
def answering(environ: Mapping[str, str]) -> Iterator[tuple[Model, str]]:
    """Who answers, and what to call it: the user's provider if there is a key, else the scripted stand-in."""
    if key := environ.get("ANTHROPIC_API_KEY", "").strip():
        url = environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC
        yield Model(url, key), f"the model at {url} (your ANTHROPIC_API_KEY pays)"
        return
    with ScriptedModel(kept=REMEMBERED) as scripted:
        yield Model(scripted.url, "stand-in"), STAND_IN


@contextmanager
def serving(
    state: Path,
    host: str,
    port: int,
    console: Console,
    *,
    unsandboxed: bool = False,
    log: Callable[[Served], None] = lambda _: None,
) -> Iterator[tuple[Service, str]]:
    """The service with who answers. Raises `Unusable`, in one sentence, where it cannot run."""
    key = _prepared(state)
    state = state.resolve()  # the engine works in another directory
    _check_address(host, port)
    with answering(os.environ) as (model, name), console.status("Starting …") as status:
        if warning := _checked(model):
            console.print(warning, style="yellow", soft_wrap=True)
        try:
            with service.running(
                state,
                model,
                key,
                host=host,
                port=port,
                unsandboxed=unsandboxed,
                say=status.update,
                log=log,
                key_of=lambda caller: kept_key(state, f"api-key-{caller}"),
            ) as running:
                status.stop()
                announce(state, Endpoint(running.url, key, name), **_backend(running))
                try:
                    yield running, name
                finally:
                    withdraw(state)
        except (EngineFailed, DeployFailed, NotUnderstood) as failed:
            raise Unusable(str(failed)) from failed
        except equipment.Unusable as wrong:
            raise Unusable(f"agent/: {wrong}") from wrong
        except StorageUnavailable as failed:
            raise Unusable(failed.detail) from failed
        except (BotoCoreError, ClientError) as refused:
            log_file = state / "engine.log"
            raise Unusable(f"The engine refuses ({refused}). Is the disk full? Its log is {log_file}.") from refused


def _checked(model: Model) -> str | None:
    """A warning where no run could reach the model. Raises `Unusable` where the provider refuses the key.

    Asking for the list of models costs nothing. A gateway that is not Anthropic's may not have it, or forbid that path
    alone: so only 401 says that the key is wrong, and 404 or 405 say nothing. The way there is that of runs: straight,
    past any HTTPS_PROXY.
    """
    if not model.url.startswith(("http://", "https://")):
        raise Unusable(f"ANTHROPIC_BASE_URL is no URL: {model.url} does not begin with http:// or https://.")
    if not (model.key.isascii() and model.key.isprintable()):
        raise Unusable(UNSENDABLE)
    headers = {"x-api-key": model.key, "anthropic-version": "2023-06-01"}
    url = f"{model.url.rstrip('/')}/v1/models?limit=1"
    try:
        with urllib3.PoolManager(ca_certs=certifi.where(), retries=False, timeout=CHECK_SECONDS) as pool:
            answer = pool.request("GET", url, headers=headers)
    except ValueError as error:  # what no URL or header can hold
        raise Unusable(UNSENDABLE) from error
    except urllib3.exceptions.HTTPError as error:
        why = str(error.__cause__ or error)
        return f"The model at {model.url} cannot be reached ({why}). Runs fail until it can: check the network."
    said = _provider_said(answer.data).replace(model.key, "…")
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise Unusable(f"{model.url} refuses the key in ANTHROPIC_API_KEY{said}. Set the right one, or none.")
    if answer.status == HTTPStatus.FORBIDDEN:
        return f"{model.url} answered 403 when it was asked for its models{said}. Runs may fail."
    return None


def _provider_said(body: bytes) -> str:
    """The sentence in an error of the Messages API, in brackets; empty where there is none."""
    try:
        return f" ({line(json.loads(body)['error']['message'], 200)})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def _backend(running: Service) -> dict[str, str]:
    return {
        "engine_url": running.engine.url,
        "engine_root": running.engine.root,
        "bucket": running.deployed.bucket,
        "state_machine_arn": running.deployed.state_machine_arn,
    }


def _prepared(state: Path) -> str:
    """Makes the directory where it is missing; the API key in it."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return api_key(state)
    except OSError as error:
        raise Unusable(f"Nothing can be kept in {state} ({error.strerror}). Choose another: --state") from error


def _check_address(host: str, port: int) -> None:
    """A busy port is said before the seconds that a start takes."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
            probe.listen()
    except OverflowError:
        raise Unusable(f"There is no port {port}: the last one is 65535.") from None
    except (TypeError, UnicodeError):
        raise Unusable(f"{host} is no address: it cannot be looked up.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Unusable(f"Port {port} on {host} is in use. End what uses it, or choose another: --port") from error
        raise Unusable(f"The service cannot listen on port {port} of {host} ({error.strerror}).") from error


def _check_sandbox(state: Path) -> None:
    """A real model gets a shell only where the machine keeps it in."""
    _prepared(state)
    try:
        held = not os.environ.get("ANTHROPIC_API_KEY", "").strip() or sandbox.holding(state.resolve())
    except EngineFailed as failed:
        raise Unusable(str(failed)) from failed
    if not held:
        raise Unusable(
            "This machine offers no sandbox that keeps what the model runs from your files (Linux 6.2 with Landlock, "
            "bubblewrap, or serve as root would); with --unsandboxed it runs as you."
        )


def run(state: Path, host: str, port: int, unsandboxed: bool, quiet: bool, leave_runs: bool) -> int:
    """Serves until Ctrl-C or SIGTERM. Raises `KeyboardInterrupt` for one that comes before the service is up."""
    console = to_stderr()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if not unsandboxed:
        _check_sandbox(state)
    with serving(state, host, port, console, unsandboxed=unsandboxed, log=_unlogged if quiet else _logged) as served:
        running, name = served
        try:
            console.print(f"Answering: {name}\nThe agent {kept_in(running)}.", soft_wrap=True)
            if _is_open(running):
                console.print(OPEN, style="yellow", soft_wrap=True)
            elif running.sandbox:
                console.print(sandbox.reach(running.network), soft_wrap=True)
            if not _is_loopback(host):
                console.print(BEYOND, style="yellow", soft_wrap=True)
            console.print(f"Sessions are kept in {state}. Ctrl-C ends the service.\n", soft_wrap=True)
            with page.beside(running, name, state) as link, resumed(running, state, console, leave=leave_runs):
                ready = f"{running.url} is ready:\n\n{_curl(running)}\n{_keys(running)}"
                print(f"{ready}\nConsole: {link}\n", flush=True)
                while _alive(running.engine.pid):
                    time.sleep(1)
            raise Unusable(f"The engine ended; its log is {running.engine.state / 'engine.log'}. Start it again.")
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing that is acknowledged is lost by that
            console.print("Ending … (a second Ctrl-C ends it at once)")
    console.print("Ended.")
    return 0


BEYOND = (
    "Others in your network can reach the service, by plain HTTP: key, prompts and answers can be read on the way. Put "
    "a proxy with TLS before it. The links in answers (session_url) open on this machine alone."
)


OPEN = "The setting egress is open: what the model runs reaches whatever this machine does (docs/egress.md)."


def _is_open(running: Service) -> bool:
    return bool(json.loads(running.deployed.environment("RunClaude")["EGRESS"]) == egress.OPEN)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _logged(served: Served) -> None:
    """One line a request on standard error, whoever reads it or has stopped to."""
    with suppress(OSError, ValueError):
        print(log_line(served, time.time()), file=sys.stderr, flush=True)


def _unlogged(served: Served) -> None:
    """What `--quiet` wants."""


def log_line(served: Served, now: float) -> str:
    """Time (UTC), method, path, status, code of a failure, milliseconds and how many of them it waited for its turn,
    cost and run; a dash for what there is not."""
    try:
        answer = json.loads(served.response.body or b"{}")
    except ValueError:
        answer = {}
    answer = answer if isinstance(answer, dict) else {}
    cost = dollars(answer["cost_usd"]) if "cost_usd" in answer else "–"
    words = (
        clock(now),
        line(served.method, 20) or "–",
        line(served.path, 100) or "–",
        str(served.response.status),
        line(str(answer.get("code") or "–"), 40),
        f"{served.seconds * 1000:.0f} ms" + _waited(served.response.waited),
        cost,
        line(str(answer.get("run_id") or "–"), 100),
    )
    return "  ".join(words)


def _waited(seconds: float) -> str:
    return f" (waited {seconds * 1000:.0f})" if seconds else ""


def _keys(running: Service) -> str:
    """Which callers have which keys, where there is more than one."""
    if len(running.keys) < 2:
        return ""
    width = max(map(len, running.keys))
    lines = (f"  {caller:<{width}}  {key}\n" for caller, key in running.keys.items())
    return f"\nThe keys of the callers, by generation (`ask` uses the first):\n{''.join(lines)}"


def kept_in(running: Service) -> str:
    """What the agent can reach, for people."""
    if running.sandbox:
        return f"is kept from your files by {sandbox.NAMES[running.sandbox]}"
    return "runs as you: it can read and change your files"


def _curl(running: Service) -> str:
    return (
        f"curl -sS {running.url} -H 'content-type: application/json' \\\n"
        f'  -H {shlex.quote(f"x-api-key: {running.key}")} -d \'{{"prompt": "Hello"}}\''
    )


def _alive(pid: int) -> bool:
    """Whether a child still runs; a dead one is reaped by who started it."""
    found, _ = os.waitpid(pid, os.WNOHANG)
    return found == 0
