"""One turn through the three handlers, with Step Functions' part played by hand, and what each step took."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cli, vault
from benchmarks.handlers import Call, Handler, Sampler, environment
from benchmarks.limiter import Exchange, Limiter
from benchmarks.storage import BUCKET, KEY, REGION
from claude_workflow.local.api import Template
from claude_workflow.local.model import ScriptedModel
from lambdas.strict import Json

STATES = ("RestoreSession", "RunClaude", "PersistSession")
SETTINGS = {
    "S3_BUCKET_NAME": BUCKET,
    "INTEGRATION_TIMEOUT": "300",  # the naive ways need minutes where ours are to need seconds
    "MAX_SESSION_BYTES": str(2 << 30),
    "SECRET_ARN": vault.ARN,
    "AGENT_FOLDER": str(Path(__file__).resolve().parent.parent / "agent"),
}


LONG_MACHINE = "arn:aws:states:us-east-1:000000000000:stateMachine:Long"


class Span(NamedTuple):
    """A part of a turn."""

    seconds: float
    archive_seconds: float
    """Of these, what the naive way has a counterpart of: see `Turn`."""
    cpu: float
    up: int
    """Bytes of bodies sent to S3, what S3 copies inside itself not included."""
    down: int
    requests: int


class Turn(NamedTuple):
    """One turn of a session."""

    session_id: str
    restore: Span
    """From RunClaude's event until the agent's process has begun and all is in place; for the archive, until that."""
    persist: Span
    """From the agent's end until all is staged, and PersistSession; for the archive, without the seconds in which
    nothing but requests for the run's record were under way."""
    wipe_seconds: float
    """From then until RunClaude is free again: its scratch directory is removed."""
    calls: dict[str, Call]
    """By state."""
    exchanges: list[Exchange]


@dataclass(frozen=True)
class Workflow:
    """Warm functions before a storage."""

    functions: dict[str, Handler]
    limiter: Limiter
    stamps: Path

    def turn(self, act: str, session: str | None = None, **arguments: Any) -> Turn:
        """The stand-in for Claude Code does `act`. Raises `HandlerFailed`."""
        prompt = cli.prompt(act, self.stamps, **arguments)
        first = len(self.limiter.log)
        with Sampler(self.functions["RunClaude"].process.pid) as sampler:
            calls = ask(self.functions, prompt, session)
        exchanges = self.limiter.log[first:]
        return _turn(calls, json.loads(self.stamps.read_text()), exchanges, sampler)


def ask(functions: dict[str, Handler], prompt: str, session: str | None = None) -> dict[str, Call]:
    """One request through all three states; what each took, by state. Raises `HandlerFailed`."""
    body = {"prompt": prompt} | ({"session_id": session} if session else {})
    envelope = {"caller": "benchmark", "key": str(uuid.uuid4()), "body": body, "requested_at": time.time() * 1000}
    restored = functions["RestoreSession"](asking(envelope, f"execution-{uuid.uuid4()}"))
    ran = functions["RunClaude"](restored.output["task"])
    persisted = functions["PersistSession"]({"claim": restored.output["claim"], "told": ran.output})
    return dict(zip(STATES, (restored, ran, persisted), strict=True))


def asking(envelope: Json, execution: str, before: str | None = None) -> Json:
    """What RestoreSession's state is given in an execution that begins now, or a leg of it that does."""
    now = datetime.now(UTC).isoformat()
    began = {"started_at": now, "began_at": now, "before": before}
    return {"envelope": envelope, "execution": execution, "long_machine": LONG_MACHINE, **began}


def _turn(calls: dict[str, Call], stamps: Json, exchanges: list[Exchange], sampler: Sampler) -> Turn:
    _, ran, persisted = (calls[state] for state in STATES)
    staged = max(exchange.end for exchange in exchanges if _stages(exchange))
    restored = max(stamps["began"], stamps["in_place"])
    restore = _span(exchanges, [(ran.start, restored)], sampler.between(ran.start, restored))
    restore = restore._replace(archive_seconds=stamps["in_place"] - ran.start)
    # The stand-in's own time is in its parent's once it has ended, which is after it was done.
    cpu = max(0.0, sampler.between(stamps["done"], staged) - stamps["cpu"]) + persisted.cpu
    persist = _span(exchanges, [(stamps["done"], staged), (persisted.start, persisted.end)], cpu)
    return Turn(persisted.output["session_id"], restore, persist, ran.end - staged, calls, exchanges)


def _stages(exchange: Exchange) -> bool:
    named = ("/changes.zip?", "/messages.json?", "/result.json?")
    return exchange.method == "PUT" and any(name in exchange.target for name in named)


def _span(exchanges: list[Exchange], windows: list[tuple[float, float]], cpu: float) -> Span:
    within = [one for one in exchanges for start, end in windows if start <= one.start <= end]
    seconds = sum(end - start for start, end in windows)
    up, down = sum(one.up for one in within), sum(one.down for one in within)
    return Span(seconds, seconds - _record_only(within), cpu, up, down, len(within))


def about_archive(exchange: Exchange) -> bool:
    """Whether a request is for a session's content, and not for the record that every run keeps."""
    return ".zip" in exchange.target.split("?")[0]


def _record_only(exchanges: list[Exchange]) -> float:
    """Seconds in which requests for the record, and none for an archive, were under way."""
    edges = sorted({moment for one in exchanges for moment in (one.start, one.end)})
    total = 0.0
    for start, end in pairwise(edges):
        busy = [one for one in exchanges if one.start < end and one.end > start]
        if busy and not any(about_archive(one) for one in busy):
            total += end - start
    return total


@contextmanager
def running(folder: Path, limiter: Limiter, template: Template) -> Iterator[Workflow]:
    """Fresh functions with the stand-in for Claude Code, their S3 behind the limiter; ended on the way out."""
    folder.mkdir(parents=True)
    agent = cli.overlay(folder / "agent")
    with (
        ScriptedModel(kept=1) as model,
        functions(folder, limiter.url, template, model.url, agent) as started,
    ):
        yield Workflow(started, limiter, folder / "stamps")


@contextmanager
def functions(
    folder: Path, s3_url: str, template: Template, model_url: str, *path: Path
) -> Iterator[dict[str, Handler]]:
    """Fresh functions, by state; `path` comes before the project on their PYTHONPATH."""
    with vault.serving() as others, ExitStack() as started:
        urls = {"AWS_ENDPOINT_URL_S3": s3_url, "AWS_ENDPOINT_URL": others}
        settings = SETTINGS | {"SCRATCH": str(folder / "scratch"), "ANTHROPIC_BASE_URL": model_url}
        yield {
            state: started.enter_context(
                Handler(state, environment(template, state, settings) | _machine(folder, path) | urls, folder / "log")
            )
            for state in STATES
        }


def _machine(folder: Path, path: tuple[Path, ...]) -> dict[str, str]:
    root = Path(__file__).resolve().parent.parent
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, (*path, root))),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": REGION,
    }
