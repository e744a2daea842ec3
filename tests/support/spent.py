"""A record of runs that cost something, each kind of them, written by the code that writes it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdas.agent.meter import LimitMet, Meter
from lambdas.agent.receipts import Receipts
from lambdas.bucket.objects import Bucket
from lambdas.errors import AgentCrashed
from lambdas.receipt import Receipt
from lambdas.strict import Json
from tests.support.metered import OPUS, ask, call
from tests.support.past_runs import Past, past
from tests.support.played_workflow import Execution, Fuse, Killed

HAIKU = "claude-haiku-4-5-20251001"

TENTH = AgentCrashed(cost_usd=0.1)
"""How a run fails after it has spent so much."""


@dataclass
class Spent:
    """A bucket, and what is in it."""

    past: Past
    runs: dict[str, str]
    """By what they are."""

    @property
    def store(self) -> Bucket:
        """The bucket."""
        return self.past.store

    @property
    def state(self) -> Path:
        """Where a service would have kept it."""
        return self.past.state

    def read(self, key: str) -> Json:
        """An object's JSON."""
        found = self.store.read(key)
        assert found is not None, key
        return found

    @contextmanager
    def changed(self, key: str, data: Json | None) -> Iterator[None]:
        """An object says something else for a while; None: it is gone."""
        old = self.read(key)
        self.store.write(key, data) if data is not None else self.store.delete(key)
        try:
            yield
        finally:
            self.store.write(key, old)

    def key(self, name: str, object_name: str) -> str:
        """Of an object of a run, or of the last attempt of it that left such an object."""
        keys: list[str] = [one["Key"] for one in self.store.listed(f"runs/{self.runs[name]}/")]
        return [key for key in keys if key.endswith(f"/{object_name}")][-1]

    def attempt(self, name: str) -> str:
        """Of a run the last attempt that left a receipt."""
        return self.key(name, "receipt.json").split("/")[2]


@contextmanager
def spent(state: Path) -> Iterator[Spent]:
    """The engine on `state` with such a record, and the word that a service leaves of it."""
    with past(state) as made:
        yield Spent(made, _played(made))


def _played(past: Past) -> dict[str, str]:
    """A run of each kind."""
    first = past.play("done", receipt=two_models())
    session = {"session_id": past.session(first)}
    return {
        "first": first,
        "second": past.play("done", past.session(first)),
        "fork": past.execute(_asked("fork", session | {"fork": True}))["run_id"],
        "unanswered": _unanswered(past, _asked("unanswered", session)),
        "limited": past.play("done", receipt=limited()),
        "differing": past.play("done", receipt=differing()),
        "failed": past.play("failed", fails=TENTH),
        "twice": [past.play("failed", key="twice", fails=TENTH), past.play("done", key="twice")][1],
        "lost": _cut_off(past, _asked("lost"), Fuse(at=2, after=True)),
        "silent": _cut_off(past, _asked("silent"), Fuse(at=1, after=True)),
        "old": _aged(past, past.play("done")),
    }


def _asked(name: str, body: Json | None = None) -> Execution:
    return Execution(f"execution-{name}", name, {"prompt": "x"} | (body or {}), "default")


def _unanswered(past: Past, asked: Execution) -> str:
    """A run that died between its commit and its answer."""
    restored = past.restore(asked)
    assert restored.task
    past.run(restored.task)
    with suppress(Killed):
        past.persist(restored.claim, fuse=Fuse(at=1, after=True))
    return asked.run


def _cut_off(past: Past, asked: Execution, fuse: Fuse) -> str:
    """A run whose function was killed, and so was whoever would have recorded it."""
    restored = past.restore(asked)
    assert restored.task
    with suppress(Killed):
        past.run(restored.task, fuse, receipt=cut_off())
    return asked.run


def _aged(past: Past, run: str) -> str:
    """As version 0.2 left an answered run: without a receipt, and a ledger."""
    key = f"runs/{run}/response.json"
    answer: Any = past.store.read(key)
    past.store.delete(answer.pop("receipt_at"))
    past.store.write(key, answer)
    for one in past.store.listed("ledger/2"):
        if run in one["Key"]:
            past.store.delete(one["Key"])
    return run


def two_models() -> Receipt:
    """A conversation with a dearer model and its cache, and a cheaper one, whose answer was cut off."""
    meter = Meter()
    ask(meter, call(), 5000, input_tokens=100, cache_creation_input_tokens=20_000, cache_read_input_tokens=300_000)
    ask(meter, call(HAIKU), 0, whole=False, input_tokens=2000)
    return meter.receipt()


def limited() -> Receipt:
    """A conversation that met its budget."""
    meter = Meter()
    with Receipts(meter, lambda _: None) as keeping:
        meter.allow(0.15, 50, keeping)
        for _ in range(3):
            with suppress(LimitMet):
                ask(meter, call(), 4000)
    return meter.receipt()


def cut_off() -> Receipt:
    """A conversation as it stands while its first answer comes."""
    meter = Meter()
    with meter.call(call(), lambda: None) as charge:
        charge.sent()
        charge.answered(200, "req_of_the_lost")
        charge.answer.take(
            {"type": "message_start", "message": {"id": "m", "model": OPUS, "usage": {"input_tokens": 10}}}
        )
        return meter.receipt()


def differing() -> Receipt:
    """A conversation of which Claude Code says that it cost more."""
    meter = Meter()
    ask(meter, call(), 5000)
    return meter.receipt(claude_code_usd=0.2)
