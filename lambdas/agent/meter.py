"""The meter: what a run's calls of the model cost, and whether there may be another one.

**What counts** is what the provider announces in its answers, priced by `lambdas.pricing`; a model without a price is
not called. A cut answer costs what was announced by then. Every call that is passed on is a line of the receipt
(`lambdas.receipt`) from the moment it is, and every further try of it is a line of its own.

**The limits hold here**, where the agent cannot touch them: its code has the run's token, too. No call is passed on
once the run's budget is spent. Calls side by side wait for each other where together they could pass it: one under way
is reckoned with its worst, an input token a byte of its body and as much output as it allows. So a run can pass its
budget by one call at most, whose output its `max_tokens` bounds; by none if it is `strict`, since then a call's worst
has to fit in beforehand. Of an answer that was cut off, more may have been generated, and be paid for, than was
announced: the limit, not the cost, reckons with as much of it as could have been made in the time
(`TOKENS_PER_SECOND`), or a program that always hangs up before the last event would be free.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lambdas.agent.messages import Answer, Call
from lambdas.agent.refusals import Refusals
from lambdas.pricing import Asked, Prices, Unpriced, kept
from lambdas.receipt import Called, Receipt, used
from lambdas.strict import Json

CALLS_PER_TURN = 10
"""How many calls a run may make for each of its `max_turns`: subagents, compaction and the summaries of web pages are
calls of the model, too. Claude Code ends at the turns themselves; this is the end for what is not Claude Code."""

TOKENS_PER_SECOND = 500
"""More than any model generates for one call."""

LOOK_SECONDS = 0.1
"""How often a call that waits looks whether its client is still there."""


class Keeping(Protocol):
    """Where the receipt is kept."""

    def changed(self) -> None:
        """It says more than it did."""

    def kept(self) -> bool:
        """Whether what it says is kept."""


class _Unkept:
    def changed(self) -> None:
        """It is nowhere."""

    def kept(self) -> bool:
        return True


class LimitMet(Exception):
    """No call is passed on any more: `max_budget` or `max_turns`."""


class Meter:
    """The meter of one run. Thread-safe: every call is in a thread of its own."""

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices or Prices.of()
        self.lock = threading.RLock()
        """Held while a call changes: the receipt is read by another thread, at any moment."""
        self._changed = threading.Condition(self.lock)
        self._budget = math.inf
        self._most_calls = math.inf
        self._strict = False
        self._keeping: Keeping = _Unkept()
        self._under_way: list[Charge] = []
        self._ended: list[Called] = []
        self._reckoned = 0.0
        """What the limits reckon with of the calls that have ended."""
        self.spent = 0.0
        """US dollars so far."""
        self.calls = 0
        """How many were passed on, however often each was tried."""
        self.turns = 0
        """How many of them were the conversation's own, and answered."""
        self.refusals = Refusals()
        """What else was not passed on, of whatever it was a request."""
        self.limit: str | None = None
        """The limit for which a call was refused."""
        self._limit_at: float | None = None
        self.unpriced: str | None = None
        """A model that was asked for and has no price."""

    def allow(self, budget_usd: float | None, turns: int | None, keeping: "Keeping", strict: bool = False) -> None:
        """Begin a run with these limits."""
        self._budget = math.inf if budget_usd is None else budget_usd
        self._most_calls = math.inf if turns is None else turns * CALLS_PER_TURN
        self._keeping = keeping
        self._strict = strict

    def receipt(self, claude_code_usd: float | None = None) -> Receipt:
        """As it is by now."""
        with self._changed:
            calls = self._ended + [line for charge in self._under_way if (line := charge.line("open"))]
            calls.sort(key=lambda call: call.at)
            steps = (step.get("model", "") for call in calls for step in call.usage.get("iterations", ()))
            lines = self.prices.lines({*(call.model for call in calls), *steps})
            return Receipt(tuple(calls), lines, self.limit, self._limit_at, claude_code_usd, self.refusals.rows)

    def refused(self, what: str, why: str) -> None:
        """A request was not passed on. How often one of a kind was, is kept with the next change, or at the end: who
        is refused over and over would have the receipt written over and over."""
        if self.refusals.note(what, why):
            self._keeping.changed()

    @property
    def usage(self) -> Json:
        """The tokens of all calls, as the API names them."""
        return used(call.usage for call in self._ended)

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
        """Pass a call on, when that may be. Raises `LimitMet`, `Unpriced`, and whatever `waits`, which is asked
        meanwhile, does."""
        if not self.prices.knows(call.model):
            self.unpriced = call.model
            raise Unpriced(call.model)
        charge = Charge(self, call)
        with self._changed:
            while not self._may(charge):
                self._changed.wait(LOOK_SECONDS)
                waits()
            self.calls += 1
            charge.passed_at = _now()
            self._under_way.append(charge)
        try:
            yield charge
        finally:
            charge.settle()
            with self._changed:
                self._under_way.remove(charge)
                self._changed.notify_all()

    def _may(self, charge: "Charge") -> bool:
        """Whether it may go now; raises `LimitMet` where it never may."""
        own = charge.at_worst if self._strict else 0.0
        if self.limit:  # it was met: also of what would still fit, nothing is passed on any more
            raise LimitMet(self.limit)
        if self._reckoned + own >= self._budget:
            raise self._met("max_budget")
        if self.calls >= self._most_calls:
            raise self._met("max_turns")
        under_way = sum(each.at_worst for each in self._under_way)
        fits = not self._under_way or self._reckoned + under_way + own < self._budget
        return fits and self._keeping.kept()

    def _met(self, limit: str) -> LimitMet:
        self.limit, self._limit_at = limit, _now()
        return LimitMet(limit)

    def look(self) -> None:
        """Look again whether a call that waits may go."""
        with self._changed:
            self._changed.notify_all()

    def quiet(self, seconds: float) -> None:
        """Wait until no call is under way, at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, seconds)

    def begun(self) -> None:
        """To be called when a try of a call has begun."""
        self._keeping.changed()

    def ended(self, charge: "Charge", line: Called, reckoned: float) -> None:
        """To be called once for every try that ends, with what the limits reckon for it."""
        with self._changed:
            self._ended.append(line)
            self._reckoned += reckoned
            self.spent = round(self.spent + line.usd, 10)
            self.turns += charge.call.main and line.end == "whole"
            self._changed.notify_all()
        self._keeping.changed()


def _now() -> float:
    """Epoch seconds, to the millisecond."""
    return round(time.time(), 3)


class Charge:
    """What one call costs: at its worst while it is under way, at its end what it announced."""

    def __init__(self, meter: Meter, call: Call) -> None:
        self._meter = meter
        self._asked = Asked(call.model, call.fast, call.us)
        self.passed_at = 0.0
        self._sent_at: float | None = None
        """Of the try that is under way."""
        self._answered: tuple[int | None, str | None] = (None, None)
        """With which status, and under which name of the provider's."""
        self._settled = False
        self.call = call
        self.answer = Answer(call)
        """What has come of its answer."""

    @property
    def at_worst(self) -> float:
        """US dollars that it can still cost; infinite where that cannot be told."""
        if self._settled:
            return 0.0
        if self.call.output_tokens is None or not self.call.bounded:
            return math.inf
        return self._meter.prices.most(self._asked, self.call.input_bytes, self.call.output_tokens)

    def sent(self) -> None:
        """It is with the provider from now on, who may charge for it whatever becomes of the answer."""
        with self._meter.lock:
            self._end("cut")  # a try before this one, which got no answer
            self._sent_at, self._answered = _now(), (None, None)
        self._meter.begun()

    def answered(self, status: int, request_id: str | None) -> None:
        """The provider's answer begins. An error costs nothing."""
        self._answered = (status, request_id)
        if status >= 400:
            self._end("refused")

    def settle(self) -> None:
        """It has ended, with what it has of an answer by now; the first word counts."""
        self._settled = True
        self._end("whole" if self.answer.whole else "cut")

    def line(self, end: str) -> Called | None:
        """What stands in the receipt of the try that is under way, if it ends like this; None where there is none."""
        if self._sent_at is None:
            return None
        status, request_id = self._answered
        took = max(0.0, time.time() - self._sent_at)
        usage = kept(self.answer.usage)
        usd = self._meter.prices.usd(self._asked, usage)
        most = max(usd, self.at_worst) if end == "open" else usd + self._unannounced(end, took)
        return Called(
            passed_at=self.passed_at,
            at=self._sent_at,
            seconds=round(took, 3),
            model=self.call.model,
            answered=self.answer.model,
            request_id=request_id,
            status=status,
            end=end,
            fast=self.call.fast,
            us=self.call.us,
            usage=usage,
            usd=usd,
            most=round(most, 10) if math.isfinite(most) else None,
            main=self.call.main,
        )

    def _end(self, end: str) -> None:
        with self._meter.lock:
            line = self.line(end)
            if line is not None:
                self._sent_at = None
                self._meter.ended(self, line, line.most or 0.0)

    def _unannounced(self, end: str, took: float) -> float:
        """What an answer that was cut off may have cost beside what it announced."""
        if end != "cut":
            return 0.0
        made = int(took * TOKENS_PER_SECOND)
        if self.call.output_tokens is not None:
            made = min(made, self.call.output_tokens)
        return self._meter.prices.most(self._asked, 0 if self.answer.begun else self.call.input_bytes, made)
