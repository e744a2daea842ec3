"""A long run, leg by leg: RunClaude as a whole, with the real CLI, the scripted model, and a bucket behind grants.

A tool ends when its leg's gate is closed, so that a leg makes one step, however busy the machine is.
"""

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import RecordedRequest, ScriptedModel
from lambdas import settings
from lambdas.agent.transcript import ENDED, ENDERS, STOPPED
from lambdas.archive.unpack import unpack
from lambdas.contract import LegEnded, RunResult, Task
from lambdas.errors import ModelOverloaded, NotAsked, RunCancelled, RunTimedOut, StorageUnavailable
from lambdas.receipt import Receipt
from lambdas.run_claude import RunClaude
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_servers import listening
from tests.support.kept_checkpoints import LIMITS
from tests.support.opened import Opened
from tests.support.running import run_claude_of, settings_of

LATE = 600
"""Seconds that nothing here takes: what comes then, does not come."""

SOON = (2, 8, 32)
"""Seconds until a gate closes, or a limit comes, in which the first step begins on any machine; the first that does."""


@dataclass
class Legs:
    """One run, whose attempts are numbered from 1."""

    place: Path
    bucket: GrantedBucket
    worker: RunClaude
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    attempts: int = 0
    checkpoint: str | None = None
    """The newest attempt that left one."""

    def asks(self, prompt: str, **more: Any) -> None:
        self.bucket.objects["/request"] = json.dumps({"body": {"prompt": prompt, **more}}).encode()

    @property
    def until_gate(self) -> str:
        """A command that ends when the gate is closed."""
        return f"until [ $(date +%s) -gt $(cat {self.place}/gate) ]; do sleep 0.1; done"

    def task(self, **times: Any) -> Task:
        self.attempts += 1
        return replace(a_task(self.bucket, str(self.attempts), self.session, self.checkpoint), **times)

    def run(self, **times: Any) -> RunResult | LegEnded:
        """One more attempt."""
        try:
            return self.worker.run(self.task(**times))
        finally:
            if f"/{self.attempts}/checkpoint" in self.bucket.objects:
                self.checkpoint = str(self.attempts)

    def leg(
        self, limit: float = LATE, wanted: Callable[[RunResult | LegEnded], bool] = lambda _: True
    ) -> RunResult | LegEnded:
        """One more, in which a step is begun before the gate; the limit comes so many seconds after that. Where it has
        not come to what is `wanted`, it is played anew with more time."""
        for seconds in SOON:
            gate = time.time() + seconds
            (self.place / "gate").write_text(str(int(gate)))
            try:
                ended = self.run(gate=gate, limit=gate + limit, deadline=gate + 2 * LATE)
            except NotAsked:
                continue
            if wanted(ended):
                return ended
            self.checkpoint = None
        pytest.fail("The step did not begin within 32 seconds.")

    def cancel(self) -> None:
        """End the attempt that is going on from outside."""
        self.bucket.objects[f"/{self.attempts}/cancel"] = b"{}"

    def staged(self, name: str, attempt: int | None = None) -> Any:
        """An object of an attempt's, by default of the last one."""
        return json.loads(self.bucket.objects[f"/{attempt or self.attempts}/{name}"])

    def log(self, name: str = "changes") -> list[str]:
        """The lines of the log that the last attempt staged."""
        place = self.place / str(uuid.uuid4())
        place.mkdir()
        unpack(Opened(self.bucket.objects[f"/{self.attempts}/{name}"]), place, LIMITS)
        log = place / "workspace/log"
        return log.read_text().split() if log.exists() else []


@contextmanager
def a_run(place: Path, model: ScriptedModel) -> Iterator[Legs]:
    bucket = GrantedBucket()
    with listening(BucketHandler, bucket=bucket) as bucket.url:
        yield Legs(place, bucket, run_claude_of(settings_of(model.url, place)))


@pytest.fixture
def legs(tmp_path: Path, model: ScriptedModel) -> Iterator[Legs]:
    with a_run(tmp_path, model) as made:
        yield made


@dataclass(frozen=True)
class Played:
    """A run of three steps, as it went."""

    legs: Legs
    ended: list[RunResult | LegEnded]
    attempts: list[int]
    """Those that ended, of all."""
    requests: list[RecordedRequest]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Each step a leg, and the answer one; before the second step the provider refuses four times. The log is there,
    empty, from the beginning: the request brought it."""
    with ScriptedModel() as model, a_run(tmp_path_factory.mktemp("legs"), model) as legs:
        step = f"run {legs.until_gate}; echo {{}} >> log"
        faults = "status 529 retry-after 0 times 4"
        log = [{"path": "log", "content": ""}]
        steps = [step.format("one"), faults, step.format("two"), step.format("three"), "say All."]
        legs.asks("\n".join(steps), files=log)
        ended, attempts = [legs.leg()], [legs.attempts]
        while isinstance(ended[-1], LegEnded):
            ended.append(legs.leg())
            attempts.append(legs.attempts)
        yield Played(legs, ended, attempts, list(model.requests))


def test_four_legs_are_one_conversation(played: Played) -> None:
    """Each step is done once, in the order of the prompt, and ends in the answer."""
    *before, last = played.ended
    assert before == [LegEnded("run-1", "gate")] * 3
    assert isinstance(last, RunResult)
    assert (last.stop_reason, played.legs.log()) == ("end_turn", ["one", "two", "three"])
    assert "All." in played.legs.staged("result")["result"]


def test_no_request_is_repeated_but_those_refused(played: Played) -> None:
    """Also at the beginning of a later leg a provider that refuses is waited out: the run has cost something."""
    results = [len(request.conversation.results) for request in played.requests]
    assert results == [0] + [1] * 5 + [2, 3]
    receipts = [Receipt.load(played.legs.staged("receipt", attempt)) for attempt in played.attempts]
    ends = [[call.end for call in receipt.calls] for receipt in receipts]
    assert ends == [["whole"], ["refused"] * 4 + ["whole"], ["whole"], ["whole"]]


def test_a_later_leg_asks_with_the_same_beginning(played: Played) -> None:
    """So the provider's cache serves it: system prompt, tools, and every block before."""

    def beginning(request: RecordedRequest) -> list[Any]:
        return [message | {"content": _plain(message["content"])} for message in request.body["messages"]]

    for earlier, later in pairwise(played.requests):
        assert earlier.body["system"] == later.body["system"]
        assert earlier.body["tools"] == later.body["tools"]
        assert beginning(later)[: len(beginning(earlier))] == beginning(earlier)


def _plain(content: Any) -> Any:
    """Without the marks up to where a cache shall reach, which move with the end."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{name: value for name, value in block.items() if name != "cache_control"} for block in blocks]


def test_a_leg_leaves_a_checkpoint_and_no_result(played: Played) -> None:
    """And says when its run will be over, before it begins."""
    for attempt in played.attempts[:-1]:
        staged = {path.split("/")[2] for path in played.legs.bucket.puts if path.startswith(f"/{attempt}/")}
        assert staged == {"started", "receipt", "checkpoint", "messages"}
    assert played.legs.staged("started")["deadline"] > time.time()


def test_messages_are_seen_as_they_come(played: Played) -> None:
    """A line each; what was once written stays, but for the bracket."""
    messages = [played.legs.bucket.told[f"/{attempt}/messages"] for attempt in played.attempts]
    assert max(map(len, messages)) > 1
    for told in messages:
        for earlier, later in pairwise(told):
            assert later.startswith(earlier.removesuffix(b"\n]\n"))
        for each in told:
            lines = each.removesuffix(b"\n]\n").split(b"\n")[1:]
            assert [json.loads(line.removesuffix(b",")) for line in lines] == json.loads(each)
    kinds = [[message["type"] for message in json.loads(told[-1])] for told in messages]
    assert kinds == [["system", "assistant", "user"]] * 3 + [["system", "assistant", "result"]]


def test_a_call_of_bash_fits_between_gate_and_limit(played: Played) -> None:
    """The longest that Claude Code makes: what a gate waits for comes."""
    (bash,) = [tool for tool in played.requests[0].body["tools"] if tool["name"] == "Bash"]
    longest = max(int(found) for found in re.findall(r"max (\d+)", json.dumps(bash)))
    assert longest / 1000 <= settings.Legs(3600).limit - settings.Legs(3600).gate


def test_a_gate_waits_for_what_is_under_way(legs: Legs, model: ScriptedModel) -> None:
    """A tool, a subagent, and a program of the agent's that asks the model itself: all go on to their ends."""
    asking = {"model": "claude-opus-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    headers = f'-H "x-api-key: $ANTHROPIC_API_KEY" -H "x-claude-code-session-id: {legs.session}"'  # as Claude Code's
    post = f"curl -s $ANTHROPIC_BASE_URL/v1/messages {headers} -d '{json.dumps(asking)}'"
    subagent = f"run {legs.until_gate}; sleep 0.5; {post} | grep -q end_turn && echo asked >> log\nrun echo sub >> log"
    wishes = {"description": "x", "subagent_type": "general-purpose", "prompt": subagent}
    legs.asks(f"tool Task {json.dumps(wishes)}\nrun echo main >> log\nsay Done.")
    assert legs.leg() == LegEnded("run-1", "gate")
    assert (legs.log("checkpoint"), len(model.requests)) == (["asked", "sub"], 1 + 4)
    assert isinstance(legs.run(), RunResult)
    assert (legs.log(), len(model.requests)) == (["asked", "sub", "main"], 1 + 4 + 2)


def test_the_limit_cuts_off_what_reaches_no_gate(legs: Legs, model: ScriptedModel) -> None:
    """The next leg's model reads of the call that its outcome is unknown, and goes on."""
    legs.asks(f"run echo one >> log\nrun echo two >> log; sleep {LATE}\nrun echo three >> log\nsay Done.")
    both = legs.leg(limit=0, wanted=lambda _: legs.log("checkpoint") == ["one", "two"])
    assert both == LegEnded("run-1", "limit")
    asked = len(model.requests)
    last = legs.run()
    assert isinstance(last, RunResult)
    assert (last.stop_reason, legs.log()) == ("end_turn", ["one", "two", "three"])
    assert b"its outcome is unknown" in model.requests[-1].raw
    assert len(model.requests) == asked + 2


def test_a_leg_never_ends_without_its_checkpoint(legs: Legs) -> None:
    """At the gate it fails instead, with what it cost; at the limit, where there is none at all."""
    legs.bucket.refused = tuple(f"/{attempt}/checkpoint" for attempt in range(1, 9))
    legs.asks(f"run {legs.until_gate}\nrun sleep {LATE}")
    with pytest.raises(StorageUnavailable) as at_the_gate:
        legs.leg()
    legs.asks(f"run sleep {LATE}")
    with pytest.raises(RunTimedOut) as at_the_limit:
        legs.leg(limit=0)
    assert (at_the_gate.value.cost_usd or 0) > 0
    assert (at_the_limit.value.cost_usd or 0) > 0


def test_at_the_limit_the_checkpoint_before_may_do(legs: Legs) -> None:
    """What was done after it is done again."""

    def once(_: bytes) -> None:
        legs.bucket.refused = (f"/{legs.attempts}/checkpoint",)

    legs.bucket.saved = once
    legs.asks(f"run echo one >> log\nrun echo two >> log; sleep {LATE}\nsay Done.")
    legs.leg(limit=3, wanted=lambda ended: ended == LegEnded("run-1", "limit"))
    assert legs.log("checkpoint")[0] == "one"


def test_a_leg_without_an_answer_is_none(legs: Legs, model: ScriptedModel) -> None:
    """It fails as at a deadline, or it would be followed by more of its kind for ever."""
    legs.asks("status 529 retry-after 60\nsay Done.")
    with pytest.raises(ModelOverloaded):
        legs.run(gate=time.time(), limit=time.time() + 4)
    assert model.requests


def test_what_cannot_be_shown_meanwhile_ends_no_run(legs: Legs) -> None:
    """Messages are refused until there is a checkpoint; at the end they are all there."""

    def mended(_: bytes) -> None:
        legs.bucket.refused = ()

    legs.bucket.refused, legs.bucket.saved = ("/1/messages",), mended
    legs.asks("run sleep 3\nrun echo one >> log\nsay Done.")
    result = legs.run()
    assert isinstance(result, RunResult)
    assert (result.stop_reason, legs.log()) == ("end_turn", ["one"])
    assert legs.bucket.puts.index("/1/checkpoint") < legs.bucket.puts.index("/1/messages")
    assert legs.staged("messages")[-1]["type"] == "result"


def test_a_result_waits_for_its_messages(legs: Legs) -> None:
    """Those that were shown before are not all: a result that stands beside them would not be whole."""
    legs.bucket.refused = ("/1/messages",)
    legs.asks("say Done.")
    with pytest.raises(StorageUnavailable):
        legs.run()
    assert "/1/result" not in legs.bucket.puts


class Silent(ScriptedModel):
    """Does not answer a request of this number, or later; who asks one is told."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at
        self.asked: Callable[[], None] = lambda: None
        self.over = threading.Event()

    async def record(self, request: RecordedRequest) -> None:
        await super().record(request)
        if len(self.requests) >= self._at:
            self.asked()
            await asyncio.to_thread(self.over.wait, LATE)


@contextmanager
def cancelled_at(request: int, place: Path) -> Iterator[Legs]:
    """A run that is cancelled while the model is silent."""
    with Silent(request) as model, a_run(place, model) as legs:
        model.asked = legs.cancel
        try:
            yield legs
        finally:
            model.over.set()


@pytest.mark.parametrize("last", [f"run touch {{}}; sleep {LATE}", f"wait {LATE}\nrun touch never"])
def test_a_cancelled_run_is_complete(last: str, legs: Legs, model: ScriptedModel) -> None:
    """In the middle of a tool, or of an answer: noticed at once, saved, and its session goes on; where it stood, the
    model reads that its caller ended it."""
    begun = legs.place / "begun"
    legs.asks(f"run echo one >> log\n{last.format(begun)}")

    def when_begun() -> None:
        while len(model.requests) < 2 or ("sleep" in last and not begun.exists()):
            time.sleep(0.05)
        legs.cancel()
        at.append(time.time())

    at: list[float] = []
    thread = threading.Thread(target=when_begun, daemon=True)
    thread.start()
    result = legs.run()
    assert isinstance(result, RunResult)
    assert (result.stop_reason, legs.log()) == ("cancelled", ["one"])
    assert time.time() - at[0] < 30
    legs.bucket.objects["/request"] = json.dumps({"body": {"prompt": "hello"}}).encode()
    task = replace(legs.task(), resume=True, cut=False)
    changes = legs.bucket.objects["/1/changes"]
    grants = replace(task.grants, resumed=None, session=replace(task.grants.started, url=f"{legs.bucket.url}/session"))
    legs.bucket.objects["/session"] = changes
    after = legs.worker.run(replace(task, grants=grants, size=len(changes), directory=0))
    assert isinstance(after, RunResult)
    told = json.dumps(model.requests[-1].body["messages"])
    assert "doesn't want to" not in told
    assert "by user" not in told
    assert ENDED.format(ENDERS["cancelled"]) in told
    assert (STOPPED.format(ENDERS["cancelled"]) in told) == ("sleep" in last)


def test_a_run_that_is_cancelled_before_its_first_answer_is_none(tmp_path: Path) -> None:
    """Nothing is committed, and nothing was charged."""
    with cancelled_at(1, tmp_path) as legs:
        legs.asks("say Done.")
        with pytest.raises(RunCancelled) as cancelled:
            legs.run()
    assert cancelled.value.cost_usd == 0
    assert not {"/1/result", "/1/changes", "/1/checkpoint"} & set(legs.bucket.puts)


@pytest.mark.parametrize("over", ["cancelled", "deadline"])
def test_a_run_that_is_over_before_its_next_leg_keeps_what_it_did(over: str, legs: Legs, model: ScriptedModel) -> None:
    """Nobody is asked any more, and Claude Code is not even started."""
    legs.asks(f"run {legs.until_gate}; echo one >> log\nsay Done.")
    assert legs.leg() == LegEnded("run-1", "gate")
    if over == "cancelled":
        legs.bucket.objects[f"/{legs.attempts + 1}/cancel"] = b"{}"
        last = legs.run()
    else:
        last = legs.run(deadline=time.time())
    assert isinstance(last, RunResult)
    assert (last.stop_reason, last.num_turns, last.cost_usd, legs.log()) == (over, 0, 0.0, ["one"])
    assert (legs.staged("messages"), legs.staged("receipt")["calls"]) == ([], [])
    assert len(model.requests) == 1


def test_a_later_leg_that_is_cancelled_before_its_first_answer_keeps_what_was_done(tmp_path: Path) -> None:
    """The run has cost something, and is complete."""
    with cancelled_at(2, tmp_path) as legs:
        legs.asks(f"run {legs.until_gate}; echo one >> log\nsay Done.")
        assert legs.leg() == LegEnded("run-1", "gate")
        last = legs.run()
        assert isinstance(last, RunResult)
        assert (last.stop_reason, last.num_turns, last.cost_usd, legs.log()) == ("cancelled", 0, 0.0, ["one"])
