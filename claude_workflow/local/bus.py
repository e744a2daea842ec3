"""What the workflow tells on the event bus, kept as lines of `events.jsonl` in the state directory.

A line is an event as EventBridge hands it to a rule's target, so that what reads it here reads it in AWS. It is on the
disk before it is acknowledged. The file is opened anew for each, and may be moved away or removed at any time.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claude_workflow.local.engine import ACCOUNT, REGION

App = Callable[[Any, Any, Any], Awaitable[None]]

PUT_EVENTS = b"AWSEvents.PutEvents"


class Events:
    """An ASGI application before the engine's, behind the guard, which keeps the events that the engine takes."""

    def __init__(self, app: App, state: Path) -> None:
        self._app = app
        self._file = state / "events.jsonl"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or dict(scope["headers"]).get(b"x-amz-target") != PUT_EVENTS:
            await self._app(scope, receive, send)
            return
        asked: list[Any] = []
        answer: list[Any] = []

        async def hear() -> Any:
            asked.append(await receive())
            return asked[-1]

        async def hold(message: Any) -> None:
            answer.append(message)

        await self._app(scope, hear, hold)
        try:
            lines = "".join(f"{json.dumps(each)}\n" for each in _taken(_body(asked), _body(answer)))
            await asyncio.to_thread(self._keep, lines)
        except (OSError, ValueError):  # a full disk takes the line, not the run
            logging.getLogger(__name__).exception("An event could not be kept.")
        for message in answer:
            await send(message)

    def _keep(self, lines: str) -> None:
        file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, lines.encode())
            os.fsync(file)
        finally:
            os.close(file)


def _body(messages: list[Any]) -> Any:
    return json.loads(b"".join(message.get("body", b"") for message in messages))


def _taken(asked: Any, answer: Any) -> Iterator[dict[str, Any]]:
    """The events that have an id now; there are none in an error's answer."""
    for entry, given in zip(asked.get("Entries", []), answer.get("Entries", []), strict=False):
        if "EventId" in given:
            yield {
                "version": "0",
                "id": given["EventId"],
                "detail-type": entry["DetailType"],
                "source": entry["Source"],
                "account": ACCOUNT,
                "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "region": REGION,
                "resources": entry.get("Resources", []),
                "detail": json.loads(entry["Detail"]),
            }
