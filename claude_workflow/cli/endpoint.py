"""Where a service answers and with which key: the local one, a deployed stack, or a URL."""

import fcntl
import json
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_workflow.cli.printing import harmless

STAND_IN = "a scripted stand-in, no real model: set ANTHROPIC_API_KEY for Claude"
"""Who answers where there is no model's key. What it costs nobody pays."""

KEY_VARIABLE = "CLAUDE_WORKFLOW_API_KEY"


class Unusable(Exception):
    """The user has to do something first; the text says what, in a sentence or two."""


@dataclass(frozen=True)
class Endpoint:
    """A service that takes POSTs."""

    url: str
    """The whole URL of `POST /claude-code`."""
    key: str | None
    answering: str | None = None
    """Which model answers, in words; None where only the service knows."""
    options: tuple[str, ...] = ()
    """Those of a command that mean this service again."""
    state: Path | None = None
    """The state directory of a service on this machine that its user asks."""


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the local service keeps its sessions: the user's own state directory. Raises `Unusable` without one."""
    try:
        base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local/state"
    except RuntimeError:
        raise Unusable("There is no home directory to keep sessions in. Say where else: --state DIR") from None
    return Path(base) / "claude-workflow"


def api_key(state: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The local service's API key: the user's, or one made once and kept where only the user can read it."""
    if given := environ.get(KEY_VARIABLE):
        if not _is_key(given):
            raise Unusable(f"{KEY_VARIABLE} holds what no header can: a key is printable ASCII without blanks.")
        return given
    return kept_key(state, "api-key")


def _is_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def kept_key(state: Path, name: str) -> str:
    """The key in that file of the state directory; made where there is none yet, so it outlives restarts."""
    path = state / name
    if not path.exists():
        # Whole or not at all: an empty key would be one that every request has.
        with tempfile.NamedTemporaryFile("w", dir=state, prefix=f"{name}.", delete=False) as file:
            file.write(secrets.token_urlsafe(24))
        Path(file.name).replace(path)
    key = path.read_text(errors="replace").strip()
    if not key or not _is_key(key):
        what = "damaged" if key else "empty"
        raise Unusable(f"{path} is {what}. Delete it, and the next start makes a new key.")
    return key


def announce(state: Path, endpoint: Endpoint, **backend: str) -> None:
    """Leave word of the running service for `ask`, and of what is behind it for `runs`, `show` and `replay`."""
    word = {"url": endpoint.url, "answering": endpoint.answering, "pid": os.getpid()} | backend
    file = state / "service.json"
    file.touch(mode=0o600)
    file.chmod(0o600)  # with the engine's root in it; a file that was there keeps its mode
    file.write_text(json.dumps(word))


def withdraw(state: Path) -> None:
    """Take the word of the service back, if there is one."""
    (state / "service.json").unlink(missing_ok=True)


def announced(state: Path) -> dict[str, Any] | None:
    """What the service running on `state` left word of, or None where none runs."""
    try:
        service: dict[str, Any] = json.loads((state / "service.json").read_text())
        if not _is_word(service):
            return None
        os.kill(service["pid"], 0)
        running = _is_locked(state / "lock")
    except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError, RecursionError, OverflowError):
        return None  # or a damaged word, of nobody
    return service if running else None


def _is_word(found: Any) -> bool:
    """Whether it has what every version wrote, and what it has besides are texts, as `announce` writes them."""
    if not isinstance(found, dict) or not isinstance(found.get("pid"), int) or found["pid"] < 1:
        return False
    others = [value for name, value in found.items() if name != "pid"]
    return str(found.get("url")).startswith("http") and all(isinstance(one, str | None) for one in others)


def local(state: Path, environ: Mapping[str, str] = os.environ) -> Endpoint | None:
    """The service running on `state`, or None."""
    service = announced(state)
    if service is None:
        return None
    return Endpoint(service["url"], api_key(state, environ), service.get("answering"), of_state(state), state)


def _is_locked(lock: Path) -> bool:
    """Whether an engine holds it. A killed service leaves its word behind, and its process id goes to another."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def asking(stack: str) -> Iterator[None]:
    """Says what to do where AWS, asked about a stack, refuses: raises `Unusable`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except NoRegionError as error:
        raise Unusable("No AWS region is set. Set AWS_DEFAULT_REGION to the stack's.") from error
    except NoCredentialsError as error:
        raise Unusable("There are no AWS credentials. Sign in, or choose a profile: AWS_PROFILE.") from error
    except (BotoCoreError, ClientError) as error:
        said = error.response["Error"]["Message"] if isinstance(error, ClientError) else error
        raise Unusable(f"The stack {stack} could not be asked ({said}). Check its name, region and account.") from error


def outputs(stack: str, *names: str) -> dict[str, str]:
    """The outputs of a deployed stack, asked with the ordinary AWS credentials. Raises `Unusable` if one is missing."""
    import boto3  # a third of a second that the local service does not need

    with asking(stack):
        described = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    found = {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}
    for name in names:
        if name not in found:
            raise Unusable(f"The stack {stack} has no output {name}: is it a Claude Agent Workflow?")
    return found


def deployed(stack: str) -> Endpoint:
    """The API of a deployed stack. Raises `Unusable`."""
    import boto3

    found = outputs(stack, "ApiUrl")
    if "ApiKeyId" not in found:
        return Endpoint(found["ApiUrl"], None, options=("--stack", stack))
    with asking(stack):
        key = boto3.client("apigateway").get_api_key(apiKey=found["ApiKeyId"], includeValue=True)["value"]
    return Endpoint(found["ApiUrl"], key, options=("--stack", stack))


def find(state: Path, url: str | None, stack: str | None, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The service the user means. Raises `Unusable` with what to do where there is none."""
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise Unusable(f"{url} is no URL: one begins with http:// or https://.")
        return Endpoint(url, environ.get(KEY_VARIABLE), options=("--url", url))
    if stack is not None:
        return deployed(stack)
    if running := local(state, environ):
        return running
    raise Unusable(f"No service is running. Start one in another terminal: {typed('serve', *of_state(state))}")


def typed(*words: str) -> str:
    """A line to be pasted into a shell: this command, called as the user called it, and each word as one word.

    A word of a stranger's holds nothing that a terminal obeys.
    """
    called = sys.argv[0] if Path(sys.argv[0]).name == "claude-workflow" else "claude-workflow"
    return shlex.join([called, *map(harmless, words)])


def of_state(state: Path) -> tuple[str, ...]:
    """The options that mean this state directory, wherever the line is pasted; none for the usual one."""
    try:
        usual = default_state()
    except Unusable:
        usual = None
    return () if state == usual else ("--state", str(state.absolute()))
