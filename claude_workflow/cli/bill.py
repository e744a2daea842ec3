"""What the provider says: a file exported from the cost or the usage page of its Console, and receipts beside it.

A cost export has US dollars, a usage export tokens. Tokens are put into US dollars by the plain prices of the table
here, on both sides alike: what is compared are the tokens.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from claude_workflow.cli.accounts import day
from claude_workflow.cli.endpoint import Unusable
from lambdas.pricing import COUNTS, MODEL, RATES, Prices
from lambdas.receipt import Called, Receipt

DATE = "usage_date_utc"
COST = (DATE, "model", "cost_usd")
USAGE = (
    DATE,
    "model_version",
    "usage_input_tokens_no_cache",
    "usage_output_tokens",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read",
)
"""The columns that are read; the tokens in the order of `RATES`."""

SEARCHES = "web search"
"""What the provider's own searches stand under: a cost export does not say for which model they were."""

SHARE, LEAST = 0.01, 0.01
"""A line differs by more than this share of it, and by more than this many US dollars."""

Key = tuple[str, str]
"""A day (UTC), and a model as the table of prices names it."""


@dataclass(frozen=True)
class Bill:
    """What a file says."""

    usd: Mapping[Key, float]
    tokens: bool
    """Whether it has tokens, put into US dollars by plain prices."""


@dataclass(frozen=True)
class Line:
    """A day and a model, as receipts and the provider have it, in US dollars."""

    day: str
    model: str
    receipts: float
    provider: float

    @property
    def difference(self) -> float:
        """What the provider says more."""
        return round(self.provider - self.receipts, 10)

    @property
    def differs(self) -> bool:
        """Whether that is more than rounding."""
        return abs(self.difference) > max(LEAST, SHARE * max(self.receipts, self.provider))

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"differs": self.differs}


def read(path: Path) -> Bill:
    """Raises `Unusable` for a file that is none of the two exports, and `OSError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restval="cut off")
            has = set(rows.fieldnames or ())
            if has >= set(COST):
                return Bill(_summed(_billed(row) for row in rows), tokens=False)
            if has >= set(USAGE):
                return Bill(_summed(_used(row) for row in rows), tokens=True)
    except (ValueError, csv.Error) as error:
        raise Unusable(f"{path} cannot be read as an export of the provider's: {error}") from error
    raise Unusable(
        f"{path} is no CSV that the provider's Console exports: its cost page gives the columns {', '.join(COST)}, "
        f"its usage page {', '.join(USAGE)}."
    )


def lined_up(bill: Bill, receipts: Iterable[Receipt], first: str) -> list[Line]:
    """By day and model, and in all at the end: of the days that the file has those from the `first` on."""
    ours = _summed(part for receipt in receipts for part in _counted(receipt, tokens=bill.tokens))
    days = {of for of, _ in bill.usd}
    compared = [key for key in sorted({*ours, *bill.usd}) if days and max(first, min(days)) <= key[0] <= max(days)]
    lines = [Line(*key, ours.get(key, 0.0), bill.usd.get(key, 0.0)) for key in compared]
    return [*lines, Line("in all", "", sum(one.receipts for one in lines), sum(one.provider for one in lines))]


def _counted(receipt: Receipt, *, tokens: bool) -> Iterator[tuple[Key, float]]:
    """What each call of a receipt adds to which line."""
    for call in receipt.calls:
        at, model = day(call.at), _named(call.model)
        if tokens:
            yield (at, model), _plain(model, _tokens(call))
        else:
            asked = call.usage.get("server_tool_use", {}).get("web_search_requests", 0)
            searched = asked * float(receipt.prices["web_search"])
            yield (at, model), call.usd - searched
            if searched:
                yield (at, SEARCHES), searched


def _tokens(call: Called) -> list[int]:
    """In the order of `RATES`."""
    sent, said, written, read = (call.usage.get(name, 0) for name in COUNTS)
    hour = min(written, call.usage.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0))
    return [sent, said, written - hour, hour, read]


def _plain(model: str, tokens: Iterable[float]) -> float:
    """Without what makes a call dearer as a whole, which a sum of tokens does not tell."""
    prices = Prices.of().table["models"].get(model)
    if prices is None:
        raise Unusable(f"{model} has no price in the table here, so its tokens cannot be compared.")
    return sum(count * float(prices[rate]) for count, rate in zip(tokens, RATES, strict=True)) / 1e6


def _used(row: Mapping[str, str]) -> tuple[Key, float]:
    """What a row of a usage export adds to which line."""
    model = _named(row["model_version"])
    return (_day(row), model), _plain(model, [_number(row, name) for name in USAGE[2:]])


def _billed(row: Mapping[str, str]) -> tuple[Key, float]:
    """What a row of a cost export does. What is not for tokens stands under its own name."""
    kind = (row.get("cost_type") or "token").removesuffix("s").replace("_", " ")
    return (_day(row), _named(row["model"]) if kind == "token" else kind), _number(row, "cost_usd")


def _named(model: str) -> str:
    """A model as the table names it: `Claude Opus 4.5` and `claude-opus-4-5-20251101` are one."""
    match = MODEL.fullmatch(model.strip().lower().replace(" ", "-").replace(".", "-")) or MODEL.fullmatch(model)
    return match["name"] if match else model


def _day(row: Mapping[str, str]) -> str:
    """Some exports are by the hour."""
    return f"{datetime.fromisoformat(row[DATE].strip()):%Y-%m-%d}"


def _number(row: Mapping[str, str], name: str) -> float:
    return float((row[name] or "0").replace(",", ""))


def _summed(parts: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    summed: dict[Key, float] = defaultdict(float)
    for key, usd in parts:
        summed[key] += usd
    return {key: round(usd, 10) for key, usd in summed.items()}
