"""Where a service answers and with which key: the local one, a deployed stack, or a URL."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "CLAUDE_WORKFLOW_API_KEY"


class Unusable(Exception):
    """The user has to do something first; the text says what, in a sentence or two."""


@dataclass(frozen=True)
class Endpoint:
    """A service that takes POSTs."""

    url: str
    """The whole URL of `POST /claude-code`."""
    key: str | None


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the local service keeps its sessions: the user's own state directory."""
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local/state"
    return Path(base) / "claude-workflow"


def api_key(state: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The local service's API key: the user's, or one made once and kept where only the user can read it."""
    if given := environ.get(KEY_VARIABLE):
        return given
    path = state / "api-key"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()


def announce(state: Path, endpoint: Endpoint) -> None:
    """Leave word of the running service for `ask`."""
    (state / "service.json").write_text(json.dumps({"url": endpoint.url, "pid": os.getpid()}))


def withdraw(state: Path) -> None:
    (state / "service.json").unlink(missing_ok=True)


def local(state: Path, environ: Mapping[str, str] = os.environ) -> Endpoint | None:
    """The service running on `state`, or None."""
    try:
        service = json.loads((state / "service.json").read_text())
        os.kill(service["pid"], 0)
    except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
        return None
    return Endpoint(service["url"], api_key(state, environ))


def deployed(stack: str) -> Endpoint:
    """The API of a deployed stack, with the ordinary AWS credentials. Raises `Unusable`."""
    import boto3  # a third of a second that the local service does not need
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        described = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        outputs = {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}
        key_id = outputs.get("ApiKeyId")
        key = boto3.client("apigateway").get_api_key(apiKey=key_id, includeValue=True)["value"] if key_id else None
    except (BotoCoreError, ClientError) as error:
        raise Unusable(f"The stack {stack} could not be asked: {error}") from error
    if "ApiUrl" not in outputs:
        raise Unusable(f"The stack {stack} has no output ApiUrl: is it a Claude Agent Workflow?")
    return Endpoint(outputs["ApiUrl"], key)


def find(state: Path, url: str | None, stack: str | None, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The service the user means. Raises `Unusable` with what to do where there is none."""
    if url:
        return Endpoint(url, environ.get(KEY_VARIABLE))
    if stack:
        return deployed(stack)
    if running := local(state, environ):
        return running
    raise Unusable("No service is running. Start one in another terminal: claude-workflow serve")
