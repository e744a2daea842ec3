"""A receipt is what was called and what that cost, or it is none."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from lambdas.agent.meter import Meter
from lambdas.receipt import Receipt
from lambdas.strict import Json
from tests.support.metered import ask, call


def dumped() -> Json:
    """A receipt of two calls, as it is staged."""
    meter = Meter()
    ask(meter, call(), 1000)
    ask(meter, call(main=False), 500, whole=False)
    read: Json = json.loads(json.dumps(meter.receipt(claude_code_usd=0.03).dump()))
    return read


REFUSED = {"what": "CONNECT evil.example:443", "why": "not listed", "times": 2}


def test_it_is_what_was_staged() -> None:
    """What was cut may have cost more than it announced. What was refused stands there; before, it did not."""
    receipt = Receipt.load(dumped() | {"refused": [REFUSED]})
    assert [asdict(each) for each in receipt.refused] == [REFUSED]
    assert Receipt.load({name: value for name, value in dumped().items() if name != "refused"}).refused == ()
    assert (receipt.usd, receipt.differs) == (0.02002, True)
    assert receipt.most is not None
    assert receipt.most >= receipt.usd


STEP = {"input_tokens": 1, "output_tokens": 1_000_000}
STEPS: list[tuple[Json, float]] = [
    (STEP, 20.000004),
    (STEP | {"model": "claude-fable-5"}, 50.00001),
    (STEP | {"model": "claude-unheard-of"}, 20.000004),
    (STEP | {"model": "m" * 10_000}, 20.000004),
]


@pytest.mark.parametrize(("step", "dollars"), STEPS)
def test_steps_of_other_models_are_on_it(step: Json, dollars: float) -> None:
    """What the provider did by another model costs that one's price; by one that nobody knows, that of the one asked
    for: it is done and paid, and a receipt has to add up."""
    meter = Meter()
    with meter.call(call(), lambda: None) as charge:
        charge.sent()
        charge.answered(200, None)
        usage = {"output_tokens": 5, "iterations": [step, "garbage"]}
        charge.answer.take({"type": "message_start", "message": {"id": "m", "usage": usage}})
        charge.answer.take({"type": "message_stop"})
    read = Receipt.load(json.loads(json.dumps(meter.receipt().dump())))
    assert read.usd == meter.spent == pytest.approx(dollars)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["calls"][0]["usage"].update(output_tokens=1001),
        lambda data: data["calls"][0]["usage"].update(prompt="of somebody"),
        lambda data: data["calls"][0].update(usd=0.01),
        lambda data: data["calls"][0].update(usd=-1),
        lambda data: data["calls"][0].update(most=0.0),
        lambda data: data["calls"][0].update(model="claude-haiku-4-5"),
        lambda data: data["calls"][0].update(end="free"),
        lambda data: data["calls"][0].update(more=1),
        lambda data: data["calls"][0].pop("status"),
        lambda data: data["prices"]["models"].clear(),
        lambda data: data["prices"].clear(),
        lambda data: data.update(calls=[7]),
        lambda data: data.update(calls=None),
        lambda data: data.update(format=2),
        lambda data: data.update(refused=[7]),
        lambda data: data.update(refused=None),
        lambda data: data.update(refused=[REFUSED] * 51),
        lambda data: data.update(refused=[REFUSED | {"times": 0}]),
        lambda data: data.update(refused=[REFUSED | {"times": True}]),
        lambda data: data.update(refused=[REFUSED | {"why": "x" * 201}]),
        lambda data: data.update(refused=[REFUSED | {"what": 1}]),
        lambda data: data.update(refused=[REFUSED | {"more": 1}]),
        lambda data: data.clear(),
    ],
)
def test_what_does_not_add_up_is_no_receipt(change: Any) -> None:
    """Whatever strangers' code left in its place."""
    data = dumped()
    change(data)
    with pytest.raises(ValueError, match=r"receipt\.json"):
        Receipt.load(data)


@pytest.mark.parametrize("data", [None, [], 7, "x", {"calls": {}}])
def test_what_is_none_is_no_receipt(data: object) -> None:
    """Nor is what has another shape altogether."""
    with pytest.raises(ValueError, match=r"receipt\.json"):
        Receipt.load(data)
