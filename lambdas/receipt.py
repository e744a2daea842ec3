"""The receipt of an attempt: every call of the model that was passed on, and what it cost.

The proxy keeps it, where the agent cannot touch it (`agent/meter.py`), and it is staged as the run goes. It holds the
lines of the price table that it was reckoned by, so anybody can reckon it again; nothing else decides what a run cost.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from lambdas.pricing import COUNTS, Asked, Prices, Unpriced, kept
from lambdas.strict import Json

FORMAT = 1

ENDS = ("whole", "cut", "refused", "open")
"""How a call ended: with all of its answer; before that; with an error of the provider's; or it had not ended yet when
the receipt was written."""


@dataclass(frozen=True)
class Called:
    """One call that was passed on to the provider."""

    passed_at: float
    """Epoch seconds at which the limits let it pass; the same for all tries of one call."""
    at: float
    """Epoch seconds at which it was sent."""
    seconds: float
    """How long it took."""
    model: str
    """The one that was asked for, by which it is priced."""
    answered: str | None
    """The one that says it has answered."""
    request_id: str | None
    """The provider's name for it."""
    status: int | None
    """None where there was no answer."""
    end: str
    """One of `ENDS`."""
    fast: bool
    us: bool
    usage: Json
    """As announced, so far as it came: see `pricing.kept`."""
    usd: float
    """What that costs."""
    most: float | None
    """What it can have cost: more than `usd` while it is open, and where it was cut, since more may have been
    generated, and be paid for, than was announced. None where nobody can tell."""
    main: bool = True
    """Whether it was the conversation's own: no subagent's."""


REFUSALS, REFUSAL_CHARS = 50, 200
"""How many kinds of refused requests a receipt names, and how much of what each was, and why it was refused."""


@dataclass(frozen=True)
class Refusal:
    """Requests of the agent's that were not passed on, anywhere."""

    what: str
    """Method and path, or host."""
    why: str
    times: int


@dataclass(frozen=True)
class Receipt:
    """`receipt.json` of an attempt."""

    calls: Sequence[Called]
    prices: Json
    """The lines of the table, with its version, by which they are reckoned."""
    limit: str | None
    """The limit for which a call was not passed on: `max_budget` or `max_turns`."""
    limit_at: float | None
    """Epoch seconds at which it was met first."""
    claude_code_usd: float | None = None
    """What Claude Code says itself that the run cost; None where it could not."""
    refused: Sequence[Refusal] = ()
    """What was not passed on, of whatever it was a request."""
    format: int = FORMAT

    @property
    def usd(self) -> float:
        """What the attempt cost, in US dollars, as far as was announced."""
        return round(sum(call.usd for call in self.calls), 10)

    @property
    def most(self) -> float | None:
        """What it can have cost; None where nobody can tell."""
        known = [call.most for call in self.calls if call.most is not None]
        return round(sum(known), 10) if len(known) == len(self.calls) else None

    @property
    def turns(self) -> int:
        """How many answers of its own the conversation got."""
        return sum(call.main and call.end == "whole" for call in self.calls)

    @property
    def seconds(self) -> float:
        """From its first call to the end of its last one."""
        ends = (call.at + call.seconds for call in self.calls)
        return max(ends) - min(call.at for call in self.calls) if self.calls else 0.0

    @property
    def differs(self) -> bool:
        """Whether Claude Code's own total is another one, by more than a hundredth."""
        said = self.claude_code_usd
        return said is not None and abs(said - self.usd) > 0.01 * max(self.usd, said)

    def dump(self) -> Json:
        """As it is staged."""
        return asdict(self)

    @classmethod
    def load(cls, data: object) -> "Receipt":
        """Raises `ValueError` for what is not exactly this shape, or does not add up: strangers' code may have staged
        it."""
        try:
            fields = cast(Json, data)
            calls = tuple(Called(**call) for call in fields["calls"])
            refused = tuple(Refusal(**each) for each in fields.get("refused", ()))
            read = cls(**{**fields, "calls": calls, "refused": refused})
            wrong = not read._sane() or [call for call in read.calls if not _sane(call)] or read.misreckoned()
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"receipt.json is not a receipt: {error}") from error
        if wrong:
            raise ValueError("receipt.json does not add up")
        return read

    def _sane(self) -> bool:
        """Whether it is what a meter writes, but for its calls."""
        return (
            self.format == FORMAT
            and (self.limit is None or isinstance(self.limit, str))
            and all(each is None or _figure(each) for each in (self.limit_at, self.claude_code_usd))
            and isinstance(self.prices, dict)
            and (not self.prices or isinstance(self.prices["version"], str))
            and (not self.calls or isinstance(self.prices["models"], dict))
            and len(self.refused) <= REFUSALS
            and all(map(_plain, self.refused))
        )

    def misreckoned(self) -> list[Called]:
        """The calls whose cost is not what the table's lines and their usage make."""
        prices = Prices(self.prices)
        return [call for call in self.calls if abs(_reckoned(prices, call) - call.usd) > 1e-9]


def used(usages: Iterable[Json]) -> Json:
    """The tokens of several calls, or of several sums of them, as the API names them."""
    sums: Counter[str] = Counter()
    for usage in usages:
        sums.update({kind: usage.get(kind, 0) for kind in COUNTS})
        hour = usage.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0)
        sums["ephemeral_1h_input_tokens"] += hour
        sums["ephemeral_5m_input_tokens"] += max(0, usage.get("cache_creation_input_tokens", 0) - hour)
        sums["web_search_requests"] += usage.get("server_tool_use", {}).get("web_search_requests", 0)
    cached = ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")
    return {kind: sums[kind] for kind in COUNTS} | {
        "cache_creation": {kind: sums[kind] for kind in cached},
        "server_tool_use": {"web_search_requests": sums["web_search_requests"]},
    }


def _reckoned(prices: Prices, call: Called) -> float:
    try:
        return prices.usd(Asked(call.model, call.fast, call.us), kept(call.usage))
    except Unpriced:
        return -1.0


def _sane(call: Called) -> bool:
    most: Any = call.usd if call.most is None else call.most
    names = (call.answered, call.request_id)
    return (
        all(map(_figure, (call.passed_at, call.at, call.seconds, call.usd, most)))
        and isinstance(call.model, str)
        and isinstance(call.main, bool)
        and all(name is None or isinstance(name, str) for name in names)
        and call.end in ENDS
        and call.usd <= most + 1e-9
        and isinstance(call.usage, dict)
        and call.usage == kept(call.usage)
    )


def _plain(refusal: Refusal) -> bool:
    texts = (refusal.what, refusal.why)
    short = all(isinstance(text, str) and len(text) <= REFUSAL_CHARS for text in texts)
    return short and type(refusal.times) is int and refusal.times > 0


def _figure(value: object) -> bool:
    """Whether it can be a sum, a time, or a moment until the year 9999."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 253_402_300_800
