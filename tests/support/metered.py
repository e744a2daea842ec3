"""Calls of the model as the meter sees them, without a network: what is announced is what a test says."""

import json
import uuid
from typing import Any

from lambdas.agent.messages import Call
from lambdas.agent.meter import Meter
from lambdas.receipt import Receipt

OPUS = "claude-opus-5-5"
"""Output at $20 a million tokens."""


def call(model: str = OPUS, most: int = 1000, main: bool = True, **more: Any) -> Call:
    """What the agent asks."""
    body = json.dumps({"model": model, "max_tokens": most, **more}).encode()
    return Call.of(body, {} if main else {"x-claude-code-agent-id": "a"})


def ask(meter: Meter, asked: Call, output: int, whole: bool = True, **usage: Any) -> None:
    """A call from its beginning to its end; `usage` is announced at the beginning."""
    with meter.call(asked, lambda: None) as charge:
        charge.sent()
        charge.answered(200, f"req_{uuid.uuid4()}")
        message = {"id": "m", "model": asked.model, "usage": {"output_tokens": 1} | usage}
        charge.answer.take({"type": "message_start", "message": message})
        if whole:
            charge.answer.take({"type": "message_delta", "usage": {"output_tokens": output}})
            charge.answer.take({"type": "message_stop"})


def receipt_of(usd: float) -> Receipt:
    """That of an attempt which cost so many US dollars, in one call."""
    meter = Meter()
    if usd:
        ask(meter, call(), round(usd * 50_000))
    return meter.receipt()
