"""What executions went through, kept beside the record: the engine forgets histories when it ends.

`histories/{execution's name}.json.gz` in the state directory, readable by the user alone: the engine's own answer to
GetExecutionHistory, without the signatures in presigned URLs. It is written before an execution's end is answered,
whoever started it and however it ended, and goes after as many days as the record does.
"""

import asyncio
import contextlib
import gzip
import json
import logging
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT_DAYS = 30
"""As long as the bucket's lifecycle keeps the record of a run."""

PAGE = 1000
"""Events that the engine tells at once, at the most. A POST's execution has some thirty, a long run's as many a leg."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""What Step Functions allows in a name that can be logged."""
SIGNED = re.compile(r"\?[^\s\"'\\]*X-Amz-Signature=[^\s\"'\\]*")
"""The query of a presigned URL, in JSON."""
UNSIGNED = "?..."
"""What stands for it."""


class Damaged(ValueError):
    """What is kept of an execution cannot be read; the text names the file."""


class Histories:
    """Those of a state directory; kept by the engine's own process, in the thread of the execution that ends."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._cleared = 0.0

    def keep(self, execution: str) -> None:
        """Keeps what the engine tells of an execution (its ARN)."""
        file = path(self._state, execution)
        if file is None:
            return
        try:
            self._write(file, json.dumps({"events": [*_told(execution)]}))
        except (OSError, ValueError):  # a full disk takes the history, not the answer
            logging.getLogger(__name__).exception("The history of an execution could not be kept.")

    def _write(self, file: Path, history: str) -> None:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        self._clear(file.parent)
        # Whole or not at all, and the user's alone from the start: as NamedTemporaryFile makes files.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix="new-", delete=False) as new:
            new.write(gzip.compress(SIGNED.sub(UNSIGNED, history).encode()))
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


def _told(execution: str) -> Iterator[dict[str, Any]]:
    """The engine's answers to GetExecutionHistory, a page at a time."""
    from ministack.services import stepfunctions  # it reads the environment of the engine's process

    call: dict[str, Any] = {"executionArn": execution, "maxResults": PAGE}
    target = {"x-amz-target": "AWSStepFunctions.GetExecutionHistory"}
    while True:
        _, _, body = asyncio.run(stepfunctions.handle_request("POST", "/", target, json.dumps(call).encode(), {}))
        page = json.loads(body)
        yield from page.get("events", [])
        if not (token := page.get("nextToken")):
            return
        call["nextToken"] = token


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
