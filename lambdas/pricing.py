"""What a call of the model costs: pure arithmetic over a table of data (`prices.toml`).

What counts is what the provider announces in its answers (`usage`), priced by the model that was asked for; so
reckoned, it equals Claude Code's own total. A receipt keeps the lines of the table that it was reckoned by, so it can
be reckoned again when the table has changed.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import compile as pattern
from typing import Any

from lambdas.strict import Json

MODEL = pattern(
    r"(?:(?P<place>[a-z-]+)\.)?(?P<bedrock>anthropic\.)?(?P<name>claude-[a-z0-9-]+?)(?:-\d{8})?(?:-v\d+(?::\d+)?)?"
)
"""An id of Anthropic's or of Bedrock's, with or without a date: `claude-opus-4-5-20251101`,
`eu.anthropic.claude-sonnet-4-5-20250929-v1:0`. Its `name` is the id in the table."""

ANY = "*"
"""In a deployment's own prices: what a model is reckoned at that the table does not have."""

RATES = ("input", "output", "write_5m", "write_1h", "read")
"""US dollars for a million tokens: sent, said, written into the cache for 5 minutes and for an hour, read from it."""

COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

MOST = 1 << 53
"""JSON carries no larger count exactly."""


class Unpriced(Exception):
    """The table has no such model, whose id is the text."""


@dataclass(frozen=True)
class Asked:
    """What of a call its price depends on."""

    model: str
    fast: bool = False
    us: bool = False
    """Whether its inference has to stay in the United States."""


def kept(usage: Mapping[str, Any]) -> Json:
    """What of an announced `usage` has a price, or says which one it has; counts that are none are left out."""
    found: Json = {name: usage[name] for name in COUNTS if _is_count(usage.get(name))}
    for name in ("cache_creation", "server_tool_use"):
        if isinstance(part := usage.get(name), dict):
            found[name] = {each[:64]: value for each, value in part.items() if _is_count(value)}
    found |= {n: usage[n][:64] for n in ("service_tier", "speed", "inference_geo") if isinstance(usage.get(n), str)}
    if isinstance(steps := usage.get("iterations"), list):
        found["iterations"] = [_step(step) for step in steps if isinstance(step, dict)]
    return found


def _step(step: Mapping[str, Any]) -> Json:
    named = {"model": step["model"][:200]} if isinstance(step.get("model"), str) else {}
    return kept({**step, "iterations": None}) | named


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST


@dataclass(frozen=True)
class Prices:
    """A table of prices: `prices.toml`, that with a deployment's own, or the lines of it that a receipt keeps."""

    table: Json

    @classmethod
    def of(cls, own: Mapping[str, Json] | None = None) -> "Prices":
        """The table with a deployment's `own` lines over it, by model. Raises `ValueError` for one that is no price."""
        table = _file()
        if not own:
            return cls(table)
        for model, line in own.items():
            check(model, line)
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        return cls(table | {"version": f"{table['version']}+{digest}", "models": table["models"] | own})

    @property
    def version(self) -> str:
        """The table's date, with a hash of what the deployment has over it."""
        return str(self.table["version"])

    def knows(self, model: str) -> bool:
        """Whether it has a price for a model."""
        return self._name(model) in self.table["models"]

    def lines(self, models: Iterable[str]) -> Json:
        """So much of the table as reckons calls of these models."""
        names = {self._name(model) for model in models} & self.table["models"].keys()
        return self.table | {"models": {name: self.table["models"][name] for name in sorted(names)}}

    def usd(self, asked: Asked, usage: Json) -> float:
        """What an answer cost, by what it announced (`kept`). Raises `Unpriced`."""
        # The sum of the steps is more where the provider took some that the totals leave out (compaction, an adviser).
        in_steps = sum(self._tokens(self._of(step, asked), step) for step in usage.get("iterations", ()))
        tokens = max(self._tokens(asked.model, usage), in_steps)
        fast = asked.fast or usage.get("speed") == "fast"
        us = asked.us or usage.get("inference_geo") == "us"
        searches: float = usage.get("server_tool_use", {}).get("web_search_requests", 0) * self.table["web_search"]
        return float(round(tokens * self._factor(asked.model, fast, us) + searches, 10))

    def _of(self, step: Json, asked: Asked) -> str:
        """The model of a step; of one without a price, since it is done and paid, the one that was asked for."""
        model = str(step.get("model"))
        return model if self.knows(model) else asked.model

    def most(self, asked: Asked, sent: int, said: int) -> float:
        """What a call with so many tokens in and out can cost at most. Raises `Unpriced`."""
        at = self._rates(asked.model, sent)
        dearest = sent * max(at["input"], at["write_5m"], at["write_1h"]) + said * at["output"]
        return float(dearest / 1e6 * self._factor(asked.model, asked.fast, asked.us))

    def _tokens(self, model: str, usage: Json) -> float:
        read, written = usage.get("cache_read_input_tokens", 0), usage.get("cache_creation_input_tokens", 0)
        hour = min(written, usage.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0))
        sent, said = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
        at = self._rates(model, sent + read + written)
        counted = (sent, said, written - hour, hour, read)
        return float(sum(count * at[rate] for count, rate in zip(counted, RATES, strict=True)) / 1e6)

    def _rates(self, model: str, tokens: int) -> Json:
        line = self._line(model)
        long = line.get("long")
        return long if long and tokens > long["above"] else line

    def _factor(self, model: str, fast: bool, us: bool) -> float:
        match, line = MODEL.fullmatch(model), self._line(model)
        regional = match is not None and match["bedrock"] and match["place"] != "global"
        applies: tuple[tuple[Any, Any], ...] = (
            (fast, line.get("fast", self.table["fast"])),
            (us, self.table["us"]),
            (regional, line.get("regional", self.table["regional"])),
        )
        return math.prod(float(factor) for does, factor in applies if does)

    def _line(self, model: str) -> Json:
        try:
            line: Json = self.table["models"][self._name(model)]
        except KeyError:
            raise Unpriced(model) from None
        return line

    def _name(self, model: str) -> str:
        match = MODEL.fullmatch(model)
        names = (model, match["name"] if match else model)
        return next((name for name in names if name in self.table["models"]), ANY)


def check(model: str, line: object) -> None:
    """Raises `ValueError`, which names the model, for a deployment's line that is no price."""
    known = isinstance(line, dict) and line.keys() <= {*RATES, "long", "fast", "regional"}
    if not isinstance(line, dict) or not known or not all(_is_price(line.get(rate)) for rate in RATES):
        raise ValueError(f"{model} needs {', '.join(RATES)}, each in US dollars for a million tokens")
    if not all(_is_price(line.get(factor, 1)) for factor in ("fast", "regional")):
        raise ValueError(f"{model}: fast and regional are factors")
    if (long := line.get("long")) is not None:
        if not isinstance(long, dict) or not _is_count(long.get("above")):
            raise ValueError(f"{model}: long needs above, a number of tokens, and prices")
        check(f"{model}: long", {name: price for name, price in long.items() if name != "above"})


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


@cache
def _file() -> Json:
    return tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
