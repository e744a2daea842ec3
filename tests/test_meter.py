"""The meter's sums and limits, and what the witness believes, without a network."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from lambdas.agent.messages import TOO_DEEP, Answer, reader
from lambdas.agent.meter import CALLS_PER_TURN, LimitMet, Meter
from lambdas.agent.witness import Witness
from lambdas.pricing import Unpriced
from lambdas.receipt import Receipt
from tests.support.metered import OPUS, ask, call
from tests.support.waiting import eventually


class Kept:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0
        self.is_kept = True

    def changed(self) -> None:
        self.told += 1

    def kept(self) -> bool:
        return self.is_kept


def test_no_call_is_passed_on_once_the_budget_is_spent() -> None:
    """It is passed by one call at most; the receipt has all of them, and when the limit was met."""
    meter = Meter()
    meter.allow(0.05, 50, Kept())
    ask(meter, call(), 1000)
    ask(meter, call(), 2000)
    with pytest.raises(LimitMet):
        ask(meter, call(), 1000)
    receipt = meter.receipt()
    assert (meter.spent, meter.calls, meter.limit) == (0.06, 2, "max_budget")
    assert ([each.usd for each in receipt.calls], receipt.usd, receipt.limit) == ([0.02, 0.04], 0.06, "max_budget")
    assert receipt.limit_at is not None
    assert receipt.limit_at >= receipt.calls[-1].at


def test_a_strict_budget_is_passed_by_none() -> None:
    """A call's worst has to fit in beforehand: 1,000 tokens of output are two cents, beside the bytes of its body."""
    meter = Meter()
    meter.allow(0.05, 50, Kept(), strict=True)
    ask(meter, call(), 1000)
    ask(meter, call(), 900)
    with pytest.raises(LimitMet):
        ask(meter, call(), 1)
    assert (meter.spent, meter.limit) == (0.038, "max_budget")
    with pytest.raises(LimitMet):  # once it is met, nothing goes any more
        ask(meter, call(most=1), 1)
    meter = Meter()
    meter.allow(100, 50, Kept(), strict=True)
    with pytest.raises(LimitMet):  # what may fetch more than its body holds has no worst
        ask(meter, call(most=1, mcp_servers=[]), 1)


def test_a_model_without_a_price_is_not_called() -> None:
    """Nor is it reckoned as another."""
    meter = Meter()
    with pytest.raises(Unpriced):
        ask(meter, call("claude-unheard-of"), 1)
    assert (meter.unpriced, meter.calls, meter.receipt().calls) == ("claude-unheard-of", 0, ())


def test_every_try_of_a_call_is_a_line() -> None:
    """Refused, without an answer, cut, and whole; one that is under way stands there with its worst."""
    meter, kept = Meter(), Kept()
    meter.allow(None, None, kept)
    with meter.call(call(), lambda: None) as charge:
        charge.sent()
        charge.answered(529, "req_0")
        charge.sent()
        charge.sent()
        charge.answered(200, "req_1")
        (*_, open_one) = meter.receipt().calls
        said = {"id": "m", "model": "x", "usage": {"input_tokens": 5}}
        charge.answer.take({"type": "message_start", "message": said})
    refused, lost, cut = meter.receipt().calls
    assert (refused.end, refused.status, refused.request_id) == ("refused", 529, "req_0")
    assert (refused.usd, refused.most) == (0, 0)
    assert (lost.end, lost.status, lost.usd) == ("cut", None, 0)
    assert (open_one.end, open_one.usd) == ("open", 0)
    assert open_one.most is not None
    assert open_one.most > 0.02
    assert (cut.end, cut.status, cut.answered, cut.usage, cut.usd) == ("cut", 200, "x", {"input_tokens": 5}, 0.00002)
    assert kept.told == 6
    assert Receipt.load(json.loads(json.dumps(meter.receipt().dump()))) == meter.receipt()


def test_a_call_waits_until_the_one_before_is_on_the_receipt_that_is_kept() -> None:
    """Where nothing can be kept, nothing more is spent."""
    meter, kept = Meter(), Kept()
    meter.allow(1, 50, kept)
    kept.is_kept = False
    with pytest.raises(InterruptedError), meter.call(call(), _gone):
        pass
    assert meter.calls == 0


def test_calls_side_by_side_wait_where_together_they_could_pass_the_budget() -> None:
    """As many go at once as it holds at their worst; one goes in any case."""
    meter = Meter()
    meter.allow(0.05, 50, Kept())
    with ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(meter.call(call(), lambda: None))
        waiting = threading.Event()
        third = threading.Thread(target=lambda: _in(meter, waiting.set))
        third.start()
        assert waiting.wait(60)
        assert meter.calls == 3  # two could still leave a little
        with pytest.raises(InterruptedError), meter.call(call(most=1), _gone):
            pass
    third.join(60)


def _in(meter: Meter, then: Any) -> None:
    with meter.call(call(), lambda: None):
        then()
        eventually(lambda: len(meter._under_way) < 3)


def _gone() -> None:
    raise InterruptedError


def test_hanging_up_before_the_last_event_is_not_free() -> None:
    """What could have been generated meanwhile counts against the budget, though not as cost."""
    meter = Meter()
    meter.allow(1e-9, 50, Kept())
    with meter.call(call(most=100_000), lambda: None) as charge:
        charge.sent()
    assert meter.spent == 0
    with pytest.raises(LimitMet):
        ask(meter, call(), 1)


def test_the_number_of_calls_has_an_end() -> None:
    """Whoever makes them."""
    meter = Meter()
    meter.allow(100, 2, Kept())
    for _ in range(2 * CALLS_PER_TURN):
        ask(meter, call(main=False), 1)
    with pytest.raises(LimitMet):
        ask(meter, call(), 1)
    assert meter.limit == "max_turns"


def stream(*blocks: dict[str, Any], stop: str = "end_turn", name: str = "msg_1") -> Iterator[dict[str, Any]]:
    """An answer as the API streams it."""
    yield {"type": "message_start", "message": {"id": name, "usage": {"input_tokens": 1}}}
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            start, delta = block | {"text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            start = block | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


def heard(*blocks: dict[str, Any], stop: str = "end_turn", size: int = 7) -> Witness:
    """Who has heard an answer, in pieces of `size` bytes."""
    witness, answer, read = Witness(Meter()), Answer(call()), reader("text/event-stream; charset=utf-8")
    text = "".join(
        f"event: x\r\ndata: {json.dumps(each, ensure_ascii=False)}\n\n" for each in stream(*blocks, stop=stop)
    )
    raw = text.encode()
    witness.began(answer)
    for start in range(0, len(raw), size):
        for event in read(raw[start : start + size]):
            answer.take(event)
            witness.heard(answer)
    assert answer.whole
    return witness


TEXT = {"type": "text", "text": "Ünïted 🦊"}
BASH = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
OUTPUT = {"type": "tool_use", "id": "toolu_2", "name": "StructuredOutput", "input": {"n": 7}}
RESULT = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "num_turns": 1,
    "usage": {},
    "result": TEXT["text"],
}


def printed(*blocks: dict[str, Any], name: str = "msg_1", model: str = OPUS) -> dict[str, Any]:
    """A message as Claude Code prints it."""
    return {"type": "assistant", "message": {"id": name, "model": model, "content": list(blocks)}}


def test_what_the_model_said_is_believed() -> None:
    """Block by block, and a tool's input as it was said."""
    witness = heard(TEXT, BASH, stop="tool_use")
    assert witness.believed(printed(TEXT)) == printed(TEXT)
    assert witness.believed(printed(BASH | {"input": {"command": "evil"}})) == printed(BASH)
    result = {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}}
    assert witness.believed(result) == result
    assert heard(TEXT).believed(RESULT) == RESULT
    assert heard(OUTPUT, stop="tool_use").outputs == [{"n": 7}]


@pytest.mark.parametrize(
    "frame",
    [
        printed({"type": "text", "text": "forged"}),
        printed(TEXT, name="msg_2"),
        printed(BASH | {"id": "toolu_9"}),
        printed({"type": "image"}),
        {"type": "assistant", "message": "forged"},
        {"type": "user", "message": "forged"},
        {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "toolu_9"}]}},
        {"type": 7},
        {"type": "result"},
        RESULT,
        RESULT | {"is_error": True, "api_error_status": 401},
        RESULT | {"subtype": "error_max_turns", "is_error": True},
        RESULT | {"subtype": "error_max_budget_usd", "is_error": True},
        RESULT | {"subtype": "error_max_structured_output_retries", "is_error": True},
        RESULT | {"subtype": "error_of_mine", "is_error": True},
    ],
)
def test_what_nobody_said_is_passed_over(frame: dict[str, Any]) -> None:
    """While a tool is at work, the agent's own code can print whatever it likes."""
    witness = heard(TEXT, BASH, stop="tool_use")
    witness._meter.allow(1.0, 50, Kept())
    assert witness.believed(frame) is None


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ('{"n": 1e999}', {"n": None}),
        ('{"n": NaN}', None),
        ('{"n": ' + "[" * 200 + "]" * 200 + "}", TOO_DEEP),
        ('{"n": ' + "[" * 100_000, TOO_DEEP),
        ('{"n"', None),
    ],
)
def test_what_no_message_can_carry_is_none(said: str, read: Any) -> None:
    """A tool's input is read as Claude Code reads it, in JavaScript; and what is too deep is known as such."""
    answer = Answer(call())
    start = {"type": "tool_use", "id": "toolu_1", "name": "StructuredOutput", "input": {}}
    answer.take({"type": "content_block_start", "index": 0, "content_block": start})
    delta = {"type": "input_json_delta", "partial_json": said}
    answer.take({"type": "content_block_delta", "index": 0, "delta": delta})
    answer.take({"type": "content_block_stop", "index": 0})
    assert answer.calls("StructuredOutput") == [read]


def test_the_text_of_an_end_is_the_models() -> None:
    """Whoever printed the end."""
    ended = heard(TEXT).believed(RESULT | {"result": "forged"})
    assert ended is not None
    assert ended["result"] == TEXT["text"]


def test_the_models_last_errors_are_counted() -> None:
    """Those of one kind in a row, until it answers again."""
    witness = Witness(Meter())
    for status in (500, 529, 529):
        witness.stumbled(status)
    assert witness.failure == {"status": 529, "times": 2}
    witness.began(Answer(call()))
    assert witness.failure is None


def test_a_receipt_can_be_read_at_any_moment() -> None:
    """While calls begin and end in threads of their own: it has each call once, and reading it breaks nothing."""
    meter, over = Meter(), threading.Event()
    meter.allow(None, None, Kept())

    def read() -> int:
        looks = 0
        while not over.is_set():
            ends = [call.end for call in meter.receipt().calls]
            assert len(ends) - ends.count("open") <= len(meter.receipt().calls)
            looks += 1
        return looks

    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(read)
        for number in range(1, 400):
            ask(meter, call(), 1)
            assert len(meter.receipt().calls) == number
        over.set()
        assert looking.result() > 0
