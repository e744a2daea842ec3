"""What runs cost, read from outside: each attempt's receipt, beside what the run's record says. `costs` adds it up,
`verify` holds it against itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from claude_workflow.cli.record import READERS, Run, each, look, staged
from lambdas.bucket import listing, record
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.bucket.record import RECEIPT_BYTES, WHOLE
from lambdas.pricing import Asked, Prices, Unpriced, kept
from lambdas.receipt import Called, Receipt

SIDE_BY_SIDE = 8
"""Of more attempts than these, an answer has to have counted all."""

EXACT = 1e-6
"""US dollars by which sums may differ in their last digits."""


@dataclass(frozen=True)
class Attempt:
    """What one attempt of a run cost."""

    prefix: str
    """Where it staged: `runs/{run_id}/{attempt}/`."""
    receipt: Receipt | None
    """None where it left none, or one that does not add up."""
    damage: str | None = None
    """What is wrong with that one."""
    said: float | None = None
    """Where there is none: US dollars by the word of the run's record; None where it has none either."""
    whole: bool = False
    """Whether it staged a whole result."""

    @property
    def name(self) -> str:
        """As the ledger names it."""
        return self.prefix.split("/")[2]

    @property
    def began(self) -> float:
        """Epoch seconds."""
        return began(self.name)

    @property
    def usd(self) -> float | None:
        """US dollars, by the best word there is; None where nobody knows."""
        return self.receipt.usd if self.receipt else None if self.damage else self.said


@dataclass(frozen=True)
class Account:
    """A run with what its attempts cost."""

    run: Run
    attempts: Sequence[Attempt]
    """Those that may have called the model, oldest first."""
    forked: Attempt | None
    """The attempt of another run whose result it committed, as a fork does; that one has paid for it."""

    @property
    def counted(self) -> Sequence[Attempt]:
        """The attempts that its answer can have counted: its own, and not one that was at work beside it. All of them
        where no sum of some is what it says."""
        answer = self.run.answer or {}
        own = answer.get("receipt_at", "").removesuffix("receipt.json")
        for size in range(len(self.attempts), 0, -1) if len(self.attempts) <= SIDE_BY_SIDE else ():
            for some in combinations(self.attempts, size):
                made = total(some) if own in (attempt.prefix for attempt in some) else None
                if made is not None and abs(made - answer["cost_usd"]) < EXACT:
                    return some
        return self.attempts

    @property
    def usd(self) -> float | None:
        """What these cost; None where nobody knows that of one."""
        return total(self.counted)


def total(attempts: Sequence[Attempt]) -> float | None:
    """What they cost together; None where nobody knows that of one."""
    known = [attempt.usd for attempt in attempts if attempt.usd is not None]
    return sum(known) if len(known) == len(attempts) else None


def accounts(bucket: Bucket, begin: float, now: float) -> Iterator[Account]:
    """Those of the runs that were asked for from `begin` to `now` (epoch seconds), by the index, hour by hour."""

    def read(entry: Entry) -> Account | None:
        return account(bucket, entry, now)

    for page in listing.since(bucket, begin, now):
        found = [one for one in each(read, page, READERS) if one and one.run.request["requested_at"] >= begin]
        yield from sorted(found, key=lambda one: one.run.request["requested_at"])


def account(bucket: Bucket, entry: Entry, now: float) -> Account | None:
    """That of one run; None where `look` finds none. Raises `StorageUnavailable`."""
    run = look(bucket, entry, now)
    if run is None:
        return None
    found = staged(bucket, run.run_id)
    attempts = [
        _attempt(bucket, f"runs/{run.run_id}/{name}/", whole=names.keys() >= set(WHOLE))
        for name, names in found.items()
        if names.keys() & {"started", "receipt.json"}
    ]
    at = (run.answer or {}).get("receipt_at", "").removesuffix("receipt.json")
    own = at.startswith(f"runs/{run.run_id}/")
    return Account(run, _with_words(bucket, run, attempts), None if own or not at else _attempt(bucket, at, whole=True))


def began(attempt: str) -> float:
    """When an attempt of this name did, in epoch seconds."""
    return int(attempt.split("-")[0]) / 1000


def day(moment: float) -> str:
    """The day (UTC) of a moment in epoch seconds."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def reckoned(prices: Prices, call: Called) -> float | None:
    """What a call costs by its usage and these prices; None where they have none."""
    try:
        return prices.usd(Asked(call.model, call.fast, call.us), kept(call.usage))
    except Unpriced:
        return None


def _attempt(bucket: Bucket, prefix: str, *, whole: bool) -> Attempt:
    data: Any = None
    try:
        data = bucket.read(f"{prefix}receipt.json", most=RECEIPT_BYTES)
        return Attempt(prefix, None if data is None else Receipt.load(data), whole=whole)
    except ValueError as error:
        return Attempt(prefix, None, _damage(data) or str(error), whole=whole)


def _damage(data: Any) -> str | None:
    """Which call of a receipt does not add up; None where that cannot be told."""
    try:
        calls = [Called(**call) for call in data["calls"]]
        for number, call in enumerate(calls, 1):
            made = reckoned(Prices(data["prices"]), call)
            if made is None or abs(made - call.usd) > 1e-9:
                makes = "have no price for it" if made is None else f"make {exact(made)}"
                return f"its call {number} says {exact(call.usd)}; its usage and the prices with it {makes}"
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        pass
    return None


def exact(usd: float) -> str:
    """US dollars with all digits that count."""
    dollars, _, part = f"{usd:.10f}".rstrip("0").partition(".")
    return f"${dollars}.{part:0<4}"


def counted(number: int, what: str) -> str:
    """So many of something."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _with_words(bucket: Bucket, run: Run, attempts: list[Attempt]) -> list[Attempt]:
    """With what the record says of those that have no receipt."""
    bare = [attempt for attempt in attempts if attempt.receipt is None and not attempt.damage]
    if not bare:
        return attempts
    failure = run.failure or record.failure(bucket, run.run_id) or {}
    costs: dict[str, float | None] = dict(failure.get("costs", {}))
    unsaid = [attempt.prefix for attempt in bare if attempt.prefix not in costs]
    if run.answer and unsaid:
        others = [attempt.receipt.usd if attempt.receipt else costs.get(attempt.prefix) for attempt in attempts]
        costs[unsaid[-1]] = max(0.0, run.answer["cost_usd"] - sum(cost or 0.0 for cost in others))
    return [replace(one, said=costs.get(one.prefix)) if one in bare else one for one in attempts]
