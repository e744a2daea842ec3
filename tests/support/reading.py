"""The readers of runs and sessions, at the function: events as API Gateway gives them, and a run in the middle of its
work."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from lambdas.bucket.objects import Bucket
from lambdas.contract import Task
from lambdas.read_run import ReadRun
from lambdas.receipt import Receipt
from lambdas.settings import DoorSettings, ReaderSettings
from lambdas.stream_run import StreamRun
from lambdas.strict import Json
from tests.support.past_runs import GONE, Past
from tests.support.played_workflow import LEASE_SECONDS, Execution

KEYS = {"key-1": "default", "key-2": "default", "key-3": "another"}
LONG_LEASE = 965.0


def event(method: str, run: str, *, key: str = "key-1", events: bool = False, wait: str = "", **headers: str) -> Json:
    """A request about a run, by the holder of the API key with this id."""
    return {
        "httpMethod": method,
        "resource": "/claude-code/runs/{run_id}" + ("/events" if events else ""),
        "path": f"/claude-code/runs/{run}" + ("/events" if events else ""),
        "pathParameters": {"run_id": run},
        "queryStringParameters": {"wait": wait} if wait else None,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "requestContext": {"identity": {"apiKeyId": key}},
    }


def of_session(session: str, below: str = "", method: str = "GET", key: str = "key-1", **more: Json) -> Json:
    """A request about a session; `below` is what stands behind its id in the path, percent-encoded."""
    is_file = below.startswith("/files/")
    return {
        "httpMethod": method,
        "resource": "/claude-code/sessions/{session_id}" + ("/files/{path+}" if is_file else below),
        "path": f"/claude-code/sessions/{session}{below}",
        "pathParameters": {"session_id": session},
        "queryStringParameters": None,
        "headers": None,
        "requestContext": {"identity": {"apiKeyId": key}},
    } | more


def door(bucket: Bucket) -> DoorSettings:
    """What the functions behind the API need, of a deployment with two callers."""
    return DoorSettings(bucket.name, "api-key", KEYS, "https://app.example")


def settings(bucket: Bucket) -> ReaderSettings:
    """Those of a deployment with two callers."""
    return ReaderSettings(**vars(door(bucket)), wait=24, lease=LEASE_SECONDS, long_lease=LONG_LEASE)


def unhurried(_: float) -> None:
    """A pause that takes no time."""


def reader(bucket: Bucket, now: Callable[[], float] = time.time, pause: Callable[[float], None] = unhurried) -> ReadRun:
    """ReadRun on a clock."""
    return ReadRun(settings(bucket), bucket, now, pause)


def streamer(
    bucket: Bucket, now: Callable[[], float] = time.time, pause: Callable[[float], None] = unhurried
) -> StreamRun:
    """StreamRun on a clock."""
    return StreamRun(settings(bucket), bucket, now, pause)


@dataclass
class Going:
    """A run in the middle of its work, whose newest attempt stages what a test says."""

    history: Past
    key: str
    task: Task
    caller: str = "default"

    @property
    def run(self) -> str:
        return self.task.run_id

    @property
    def attempt(self) -> str:
        """Where it stages: `runs/{run_id}/{attempt}/`."""
        path = self.task.grants.messages.url.partition("?")[0]
        return "runs/" + path.partition("/runs/")[2].removesuffix("messages.json")

    def stages(
        self, messages: bytes | None = None, *, started: bytes | None = None, receipt: Receipt | None = None
    ) -> None:
        """Writes these by the attempt's grants."""
        grants = self.task.grants
        for grant, body in (
            (grants.started, started),
            (grants.messages, messages),
            (grants.receipt, json.dumps(receipt.dump()).encode() if receipt else None),
        ):
            if body is not None:
                self.history.transfer.put(grant, body, len(body))


def going(history: Past, ago: float = 5, key: str | None = None, started: bytes = b"") -> Going:
    """A run that began so many seconds ago, or one of this key that begins anew."""
    history.now = time.time() - ago
    asked = Execution(f"{GONE}{uuid.uuid4()}", key or str(uuid.uuid4()), {"prompt": "go on"}, "default")
    if key:
        asked.body = {"prompt": f"Prompt of {asked.run}"}
    task = history.restore(asked).task
    assert task
    begun = Going(history, asked.key, task)
    begun.stages(started=started)
    return begun


def lines(*messages: Json) -> bytes:
    """messages.json as it stands while a run goes on."""
    return b"[\n" + b",\n".join(json.dumps(message).encode() for message in messages) + b"\n]\n"
