"""A whole POST beside the bare SDK, through the service of this machine."""

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks import workflow
from benchmarks.bare import Bare
from benchmarks.bench import Bench
from benchmarks.handlers import Call, Handler
from benchmarks.report import Check, Section, table
from benchmarks.workflow import STATES
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.history import story_of
from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from tests.support import patched_service

ROUNDS = {0: 7, 3: 3}
"""By the model's latency in seconds."""
PROMISED = 10
"""Percent of the bare SDK's run, at a latency of 3 s, that the handlers may take beside it."""


class Post(NamedTuple):
    """One POST, in seconds."""

    total: float
    around: float
    """HTTP, the gateway's mapping, the start of the execution, and between the states."""
    states: dict[str, float]
    """As the engine's history has them, its invocation of the function included."""


@dataclass
class Round:
    """The sides of one latency; all lists have a value a round."""

    bare: list[float] = field(default_factory=list)
    handlers: list[dict[str, Call]] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)

    def handler(self, state: str) -> float:
        """Median seconds of one of them."""
        return median(calls[state].seconds for calls in self.handlers)

    @property
    def handlers_seconds(self) -> float:
        """Median of all three together."""
        return median(sum(call.seconds for call in calls.values()) for calls in self.handlers)


@dataclass(frozen=True)
class _Sides:
    bare: Bare
    functions: dict[str, Handler]
    service: Service

    def post(self, prompt: str, session: str | None = None) -> tuple[float, dict[str, Any]]:
        """Seconds and answer. Raises `RuntimeError` where it is not 200."""
        start = time.monotonic()
        connection = http.client.HTTPConnection(urlsplit(self.service.url).netloc, timeout=120)
        body = json.dumps({"prompt": prompt} | ({"session_id": session} if session else {}))
        headers = {"Content-Type": "application/json", "X-Api-Key": self.service.key}
        connection.request("POST", urlsplit(self.service.url).path, body, headers)
        answer = connection.getresponse()
        answered = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"a POST was answered by {answer.status}: {answered}")
        return time.monotonic() - start, answered


@contextmanager
def _started(bench: Bench) -> Iterator[_Sides]:
    folder = bench.folder / "posts"
    folder.mkdir()
    with ExitStack() as stack:
        model = stack.enter_context(ScriptedModel(kept=1))
        s3 = f"http://{bench.storage.address}"
        functions = stack.enter_context(workflow.functions(folder, s3, bench.template, model.url))
        added = {"SCRATCH": str(folder / "service")}
        named = Model(model.url, "sk-scripted")
        service = stack.enter_context(patched_service.serving(folder / "state", dict(bench.template), named, added))
        bare = stack.enter_context(Bare(folder / "bare", model.url))
        yield _Sides(bare, functions, service)


def measure(bench: Bench) -> list[Section]:
    """The POST and its parts."""
    bench.say("Starting the service …")
    with _started(bench) as sides:
        rounds = {latency: _rounds(bench, sides, latency) for latency in ROUNDS if not (bench.quick and latency)}
    return [_section(rounds)]


def _rounds(bench: Bench, sides: _Sides, latency: int) -> Round:
    """Each side once in each round, in a session of its own that goes on; the first round warms up."""
    prompt = f"wait {latency} silent\nsay Done." if latency else "say Done."
    found, ours, theirs = Round(), None, None
    for number in range(1 + (1 if bench.quick else ROUNDS[latency])):
        bench.say(f"Bare SDK, handlers and POST, model latency {latency} s: round {number} …")
        bare = sides.bare(prompt)
        calls = workflow.ask(sides.functions, prompt, ours)
        seconds, answer = sides.post(prompt, theirs)
        ours, theirs = calls["PersistSession"].output["session_id"], answer["session_id"]
        if number:
            found.bare.append(bare.end)
            found.handlers.append(calls)
            found.posts.append(_post(sides, seconds, answer))
    return found


def _post(sides: _Sides, seconds: float, answer: dict[str, Any]) -> Post:
    service = sides.service
    backend = Backend(service.deployed.bucket, service.deployed.state_machine_arn, service.engine)
    record = service.engine.client("s3").get_object(Bucket=backend.bucket, Key=f"runs/{answer['run_id']}/request.json")
    visits = story_of(backend, json.loads(record["Body"].read())["execution"], 0).visits
    states = {visit.name: (visit.left or visit.entered) - visit.entered for visit in visits if visit.name in STATES}
    return Post(seconds, seconds - sum(states.values()), states)


def _section(rounds: dict[int, Round]) -> Section:
    text = (
        "One more turn of a small session, whose prompt makes no tool call. The bare SDK is `query()` in a warm "
        "process, until its CLI has ended. The handlers are the three functions, warm, called one after the other, "
        "their S3 on loopback without the limiter. The POST goes through the local gateway and the local engine, for "
        "which AWS has its own."
    )
    rows = [row for latency, found in rounds.items() for row in _latency_rows(latency, found)]
    section = Section("A POST and the bare SDK", [text, table(("model latency", "what", "s", "of the bare SDK"), rows)])
    for latency, found in rounds.items():
        more = (found.handlers_seconds / median(found.bare) - 1) * 100
        promise = (
            f"The handlers around the agent at a model latency of {latency} s: ≤ {PROMISED} % of the bare SDK's run"
        )
        if latency == 3:
            section.checks.append(Check.at_most(promise, more, PROMISED, " %"))
    return section


def _latency_rows(latency: int, found: Round) -> Iterator[tuple[object, ...]]:
    bare = median(found.bare)

    def row(what: str, seconds: float) -> tuple[object, ...]:
        return f"{latency} s", what, seconds, f"{seconds / bare:.1%}"

    yield row("bare SDK", bare)
    yield row("**all three handlers**", found.handlers_seconds)
    yield row("**more than the bare SDK**", found.handlers_seconds - bare)
    for state in STATES:
        yield row(state, found.handler(state))
    yield row("**whole POST**", median(post.total for post in found.posts))
    yield row("gateway and engine, around the states", median(post.around for post in found.posts))
    for state in STATES:
        yield row(f"{state}, with the engine's invocation", median(post.states[state] for post in found.posts))
