"""The meter: what a run's calls of the model cost, and whether there may be another one.

**What counts** is what the provider announces in its answers (`usage`), priced by the model that was asked for
(`prices.toml`); so reckoned, it equals Claude Code's own total. A model without a price is reckoned at the highest of
each kind in the table. A cut answer costs what was announced by then.

**The limits hold here**, where the agent cannot touch them: its code has the run's token, too. No call is passed on
once the run's budget is spent. Calls side by side wait for each other where together they could pass it: one under way
is reckoned with its worst, an input token a byte of its body and as much output as it allows. So a run can pass its
budget by one call at most, whose output its `max_tokens` bounds. Of an answer that was cut off, more may have been
generated, and be paid for, than was announced: the limit, not the cost, reckons with as much of it as could have been
made in the time (`TOKENS_PER_SECOND`), or a program that always hangs up before the last event would be free.
"""

import math
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import compile as pattern
from typing import Any

from lambdas.agent.messages import Answer, Call
from lambdas.strict import Json

CALLS_PER_TURN = 10
"""How many calls a run may make for each of its `max_turns`: subagents, compaction and the summaries of web pages are
calls of the model, too. Claude Code ends at the turns themselves; this is the end for what is not Claude Code."""

TOKENS_PER_SECOND = 500
"""More than any model generates for one call."""

LOOK_SECONDS = 0.1
"""How often a call that waits looks whether its client is still there."""

MODEL = pattern(r"(?:[a-z-]+\.)?(?:anthropic\.)?(?P<name>claude-[a-z0-9-]+?)(?:-\d{8})?(?:-v\d+(?::\d+)?)?")
"""An id of Anthropic's or of Bedrock's, with or without a date: `claude-opus-4-5-20251101`,
`eu.anthropic.claude-sonnet-4-5-20250929-v1:0`. What is left is the id in `prices.toml`."""

KINDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

PRICED = ("input", "output", "write_5m", "write_1h", "read")


class LimitMet(Exception):
    """No call is passed on any more: `max_budget` or `max_turns`."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens of each kind."""

    input: float
    output: float
    write_5m: float
    write_1h: float
    read: float
    long: Mapping[str, float] | None = None
    """Prices of a call whose prompt has more tokens than its `above`."""

    def usd(self, usage: Mapping[str, Any]) -> float:
        """What an answer with this `usage` costs."""
        read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
        hour = min(written, _count(_part(usage, "cache_creation"), "ephemeral_1h_input_tokens"))
        sent, said = _count(usage, "input_tokens"), _count(usage, "output_tokens")
        at = self._for(sent + read + written)
        minutes = written - hour
        sums = sent * at.input + said * at.output + minutes * at.write_5m + hour * at.write_1h + read * at.read
        return sums / 1e6

    def most(self, sent: int, said: int) -> float:
        """What a call with so many tokens in and out can cost at most."""
        at = self._for(sent)
        return (sent * max(at.input, at.write_5m, at.write_1h) + said * at.output) / 1e6

    def _for(self, tokens: int) -> "Price":
        if self.long is None or tokens <= self.long["above"]:
            return self
        rates: dict[str, Any] = {kind: self.long[kind] for kind in PRICED}
        return Price(**rates)


@cache
def _table() -> Json:
    return tomllib.loads(Path(__file__).with_name("prices.toml").read_text())


@cache
def price(model: str) -> Price:
    """The price of a model by its id; of one that the table does not have, the highest of each kind."""
    known = _table()["models"]
    match = MODEL.fullmatch(model)
    if match and match["name"] in known:
        return Price(**known[match["name"]])
    rates: dict[str, Any] = {kind: max(float(each[kind]) for each in known.values()) for kind in PRICED}
    return Price(**rates)


def usd(call: Call, usage: Json) -> float:
    """What an answer cost, by what it announced."""
    parts = usage.get("iterations")
    steps = [step for step in parts if isinstance(step, dict)] if isinstance(parts, list) else []
    # The sum of the steps is more where the provider took some that the totals leave out (compaction, an adviser).
    tokens = max(price(call.model).usd(usage), sum(_of(step, call).usd(step) for step in steps))
    searches = _count(_part(usage, "server_tool_use"), "web_search_requests")
    return tokens * _factor(call, usage) + searches * float(_table()["web_search"])


def _of(step: Json, call: Call) -> Price:
    return price(str(step.get("model") or call.model))


def _factor(call: Call, usage: Json) -> float:
    fast = call.fast or usage.get("speed") == "fast"
    us = call.us or usage.get("inference_geo") == "us"
    return (float(_table()["fast"]) if fast else 1.0) * (float(_table()["us"]) if us else 1.0)


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return max(0, value) if type(value) is int else 0


def _part(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = usage.get(name)
    return value if isinstance(value, dict) else {}


class Meter:
    """The meter of one run. Thread-safe: every call is in a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._budget = math.inf
        self._most_calls = math.inf
        self._tell: Callable[[float], None] = lambda _: None
        self._at_worst: dict[int, float] = {}
        """Of the calls under way, what each can cost."""
        self._unannounced = 0.0
        """What cut answers may have cost beside what they announced."""
        self._used: Counter[str] = Counter()
        self.spent = 0.0
        """US dollars so far."""
        self.calls = 0
        """How many were passed on."""
        self.turns = 0
        """How many of them were the conversation's own, and answered."""
        self.limit: str | None = None
        """The limit for which a call was refused."""

    def allow(self, budget_usd: float | None, turns: int | None, tell: Callable[[float], None]) -> None:
        """Begin a run with these limits; `tell` is given what is spent after every answer."""
        self._budget = math.inf if budget_usd is None else budget_usd
        self._most_calls = math.inf if turns is None else turns * CALLS_PER_TURN
        self._tell = tell

    @property
    def usage(self) -> Json:
        """The tokens of all calls, as the API names them."""
        used = self._used
        hour, minutes = used["ephemeral_1h_input_tokens"], used["ephemeral_5m_input_tokens"]
        return {kind: used[kind] for kind in KINDS} | {
            "cache_creation": {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": minutes},
            "server_tool_use": {"web_search_requests": used["web_search_requests"]},
        }

    @property
    def budget_met(self) -> bool:
        """Whether Claude Code can have found its own limit met: its sum may differ in the last digits."""
        return self.spent >= self._budget * 0.99

    @property
    def turns_met(self) -> bool:
        """Whether Claude Code can have found its turns used up."""
        return self.turns * CALLS_PER_TURN >= self._most_calls

    @contextmanager
    def call(self, call: Call, waits: Callable[[], None]) -> Iterator["Charge"]:
        """Pass a call on, when that may be. Raises `LimitMet`, and whatever `waits`, which is asked meanwhile, does."""
        charge = Charge(self, call)
        with self._changed:
            while not self._may():
                self._changed.wait(LOOK_SECONDS)
                waits()
            self.calls += 1
            self._at_worst[id(charge)] = charge.at_worst
        try:
            yield charge
        finally:
            charge.settle()
            with self._changed:
                del self._at_worst[id(charge)]
                self._changed.notify_all()

    def _may(self) -> bool:
        """Whether it may go now; raises `LimitMet` where it never may."""
        reckoned = self.spent + self._unannounced
        if reckoned >= self._budget or self.calls >= self._most_calls:
            self.limit = self.limit or ("max_budget" if reckoned >= self._budget else "max_turns")
            raise LimitMet(self.limit)
        return not self._at_worst or reckoned + sum(self._at_worst.values()) < self._budget

    def quiet(self, seconds: float) -> None:
        """Wait until no call is under way, at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._at_worst, seconds)

    def settled(self, charge: "Charge", unannounced: float) -> None:
        """To be called once for every call that ends."""
        answer = charge.answer
        with self._changed:
            self._unannounced += unannounced
            self._at_worst[id(charge)] = 0.0
            if answer.begun:
                self.spent = round(self.spent + usd(charge.call, answer.usage), 10)
                self.turns += charge.call.main and answer.whole
                self._used.update(_counted(answer.usage))
                self._tell(self.spent)
            self._changed.notify_all()


def _counted(usage: Json) -> Counter[str]:
    counted = Counter({kind: _count(usage, kind) for kind in KINDS})
    written = _part(usage, "cache_creation")
    hour = _count(written, "ephemeral_1h_input_tokens")
    counted["ephemeral_1h_input_tokens"] = hour
    counted["ephemeral_5m_input_tokens"] = max(0, counted["cache_creation_input_tokens"] - hour)
    counted["web_search_requests"] = _count(_part(usage, "server_tool_use"), "web_search_requests")
    return counted


class Charge:
    """What one call costs: at its worst while it is under way, at its end what it announced."""

    def __init__(self, meter: Meter, call: Call) -> None:
        self._meter = meter
        self._settled = False
        self._sent: float | None = None
        self.call = call
        self.answer = Answer(call)
        """What has come of its answer."""

    @property
    def at_worst(self) -> float:
        """US dollars that it can cost; infinite where that cannot be told."""
        if self.call.output_tokens is None or not self.call.bounded:
            return math.inf
        return self._most(self.call.input_bytes, self.call.output_tokens)

    def _most(self, sent: int, said: int) -> float:
        return price(self.call.model).most(sent, said) * _factor(self.call, {})

    def sent(self) -> None:
        """It is with the provider from now on, who may charge for it whatever becomes of the answer."""
        self._sent = time.monotonic()

    def refused(self) -> None:
        """The provider has answered with an error: that costs nothing."""
        self._sent = None

    def settle(self) -> None:
        """It has ended, with what it has of an answer by now; the first word counts."""
        if not self._settled:
            self._settled = True
            self._meter.settled(self, 0.0 if self.answer.whole else self._unannounced())

    def _unannounced(self) -> float:
        if self._sent is None:
            return 0.0
        made = int((time.monotonic() - self._sent) * TOKENS_PER_SECOND)
        if self.call.output_tokens is not None:
            made = min(made, self.call.output_tokens)
        return self._most(0 if self.answer.begun else self.call.input_bytes, made)
