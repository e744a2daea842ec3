"""What AWS would charge for a turn: measured requests, bytes and seconds times the prices of `prices.toml`.

Left out: the model, logs and traces, the event of a run's end (a dollar a million), NAT or VPC endpoints, a KMS key,
data sent out of AWS, and the functions' `/tmp` beyond 512 MB. Traffic between Lambda and S3 in one region is free.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from benchmarks.handlers import memory_mb
from benchmarks.limiter import Exchange
from benchmarks.report import Section, figure, table
from benchmarks.sizes import Results
from benchmarks.workflow import STATES, Turn
from claude_workflow.local.api import Template

AGENT_SECONDS = 3.7
"""The agent's own time in a turn, which is what the bare SDK takes with a model that answers after 3 s."""
KEPT_DAYS = 30
"""How long a version that is not the newest stays, and what a run staged."""
EXPRESS_GB, EXPRESS_STEP = 0.064, 0.1
GB = 1e9


@dataclass(frozen=True)
class Prices:
    """US dollars each; the names say of what."""

    region: str
    date: str
    api_request: float
    express_request: float
    express_gb_second: float
    standard_step: float
    lambda_request: float
    lambda_gb_second: float
    s3_write: float
    s3_read: float
    s3_gb_month: float

    @classmethod
    def read(cls) -> Self:
        """Those of `prices.toml`. Raises `KeyError` for one that is missing."""
        read = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
        return cls(**{field.name: read[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Usage:
    """What one turn used."""

    seconds: Mapping[str, float]
    """Of each function, by state."""
    memory_mb: Mapping[str, int]
    s3_writes: int
    s3_reads: int
    gb_kept: float
    """Gigabytes that the turn leaves in the bucket: the version that it replaced, and what was staged."""


def charged(usage: Usage, prices: Prices) -> dict[str, float]:
    """US dollars for one turn, by service."""
    gb_seconds = sum(usage.seconds[state] * usage.memory_mb[state] / 1024 for state in usage.seconds)
    express = math.ceil(sum(usage.seconds.values()) / EXPRESS_STEP) * EXPRESS_STEP * EXPRESS_GB
    return {
        "API Gateway": prices.api_request,
        "Step Functions": prices.express_request + express * prices.express_gb_second,
        "Lambda": len(usage.seconds) * prices.lambda_request + gb_seconds * prices.lambda_gb_second,
        "S3 requests": usage.s3_writes * prices.s3_write + usage.s3_reads * prices.s3_read,
        "S3 storage of what it leaves": usage.gb_kept * prices.s3_gb_month * KEPT_DAYS / 30,
    }


def used(turn: Turn, archive_bytes: int, template: Template) -> Usage:
    """What a measured turn used, with the agent's time in place of its stand-in's."""
    seconds = {state: turn.calls[state].seconds for state in STATES}
    seconds["RunClaude"] = turn.restore.seconds + AGENT_SECONDS + _staging_seconds(turn) + turn.wipe_seconds
    staged = sum(one.up for one in turn.exchanges if one.method == "PUT" and "/runs/" in one.target)
    return Usage(
        seconds=seconds,
        memory_mb={state: memory_mb(template, state) for state in STATES},
        s3_writes=sum(map(_writes, turn.exchanges)),
        s3_reads=sum(one.method in ("GET", "HEAD") and not _writes(one) for one in turn.exchanges),
        gb_kept=(archive_bytes + staged) / GB,
    )


def _staging_seconds(turn: Turn) -> float:
    return turn.persist.seconds - turn.calls["PersistSession"].seconds


def _writes(exchange: Exchange) -> bool:
    listing = exchange.method == "GET" and ("list-type=" in exchange.target or "?versions" in exchange.target)
    return exchange.method in ("PUT", "POST") or listing


def section(measured: list[Results], template: Template) -> Section:
    """A turn that changed 1 %, at every size."""
    prices = Prices.read()
    sums = {one.kind.name: charged(used(one.turns[0], one.archive_bytes, template), prices) for one in measured}
    services = list(next(iter(sums.values())))
    rows = [[name, *(figure(each[name] * 1000) for each in sums.values())] for name in services]
    rows.append(["**together**", *(figure(sum(each.values()) * 1000) for each in sums.values())])
    text = (
        f"US dollars for 1,000 turns that change 1 %, with {AGENT_SECONDS} s of agent each, at the prices of "
        f"`benchmarks/prices.toml` ({prices.region}, {prices.date}), without the model, logs, traces and what else "
        "`benchmarks/cost.py` names. The version that a turn replaces is charged for the month that it is kept."
    )
    return Section("What AWS would charge", [text, table(("$ for 1,000 turns", *sums), rows)])
