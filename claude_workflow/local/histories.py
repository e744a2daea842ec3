"""What executions went through, kept beside the record: the engine forgets histories when it ends.

`histories/{execution's name}.json.gz` in the state directory, readable by the user alone: the engine's own answer to
GetExecutionHistory, without the signatures in presigned URLs. It is written before an execution's end is answered,
whoever started it and however it ended, and goes after as many days as the record does.
"""

import contextlib
import gzip
import json
import logging
import re
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

App = Callable[[Any, Any, Any], Awaitable[None]]

KEPT_DAYS = 30
"""As long as the bucket's lifecycle keeps the record of a run."""

EVENTS = 1000
"""The most that the engine tells at once. An execution of five states with their retries has some thirty."""

START = "AWSStepFunctions.StartSyncExecution"
NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What Step Functions allows in a name that can be logged."""
SIGNED = re.compile(r"\?[^\s\"'\\]*X-Amz-Signature=[^\s\"'\\]*")
"""The query of a presigned URL, in JSON."""
UNSIGNED = "?..."
"""What stands for it."""


class Damaged(ValueError):
    """What is kept of an execution cannot be read; the text names the file."""


class Histories:
    """An ASGI application before the engine's, which keeps the history of each execution that ends."""

    def __init__(self, app: App, state: Path) -> None:
        self._app = app
        self._state = state
        self._cleared = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or START.encode() not in dict(scope["headers"]).values():
            await self._app(scope, receive, send)
            return
        answer: list[Any] = []

        async def hold(message: Any) -> None:
            answer.append(message)

        await self._app(scope, receive, hold)
        try:
            await self._keep(b"".join(message.get("body", b"") for message in answer))
        except (OSError, ValueError):  # a full disk takes the history, not the answer
            logging.getLogger(__name__).exception("The history of an execution could not be kept.")
        for message in answer:
            await send(message)

    async def _keep(self, answer: bytes) -> None:
        execution = json.loads(answer).get("executionArn")
        file = execution and path(self._state, execution)
        if file is None:
            return
        from ministack.services import stepfunctions  # it reads the environment of the engine's process

        call = json.dumps({"executionArn": execution, "maxResults": EVENTS}).encode()
        target = {"x-amz-target": "AWSStepFunctions.GetExecutionHistory"}
        _, _, history = await stepfunctions.handle_request("POST", "/", target, call, {})
        file.parent.mkdir(mode=0o700, exist_ok=True)
        self._clear(file.parent)
        # Whole or not at all, and the user's alone from the start: as NamedTemporaryFile makes files.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix="new-", delete=False) as new:
            new.write(gzip.compress(SIGNED.sub(UNSIGNED, history.decode()).encode()))
        Path(new.name).replace(file)

    def _clear(self, folder: Path) -> None:
        """Once a day, what is past its time."""
        now = time.time()
        if now - self._cleared < 86_400:
            return
        self._cleared = now
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < now - KEPT_DAYS * 86_400:
                    file.unlink()


def path(state: Path, execution: str) -> Path | None:
    """Where the history of an execution (its ARN) is kept; None for one whose name is not safe for a file."""
    name = execution.rpartition(":")[2]
    return state / "histories" / f"{name}.json.gz" if NAME.fullmatch(name) else None


def events(state: Path, execution: str) -> list[dict[str, Any]] | None:
    """The events of an execution that ended, as the engine told them; None where they are not kept (any more).

    Raises `Damaged`.
    """
    file = path(state, execution)
    if file is None or not file.exists():
        return None
    try:
        found = json.loads(gzip.decompress(file.read_bytes()))["events"]
        if all(isinstance(one["timestamp"], int | float) and isinstance(one["type"], str) for one in found):
            return list(found)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read ({error}).") from error
    raise Damaged(f"{file} holds no history.")
