"""The meter's sums and limits, and what the witness believes, without a network."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lambdas.agent.messages import TOO_DEEP, Answer, Call, reader
from lambdas.agent.meter import CALLS_PER_TURN, LimitMet, Meter, price, usd
from lambdas.agent.witness import Witness
from tests.support.waiting import eventually

OPUS = "claude-opus-5-5"


def call(model: str = OPUS, most: int = 1000, main: bool = True, **more: Any) -> Call:
    """What the agent asks."""
    body = json.dumps({"model": model, "max_tokens": most, **more}).encode()
    return Call.of(body, {} if main else {"x-claude-code-agent-id": "a"})


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        (OPUS, {"input_tokens": 1_000_000}, 4),
        (OPUS, {"output_tokens": 1_000_000}, 20),
        (OPUS, {"cache_creation_input_tokens": 1_000_000}, 5),
        (OPUS, {"cache_creation_input_tokens": 10**6, "cache_creation": {"ephemeral_1h_input_tokens": 10**6}}, 8),
        (OPUS, {"cache_read_input_tokens": 1_000_000}, 0.2),
        (OPUS, {"server_tool_use": {"web_search_requests": 3}}, 0.03),
        (OPUS, {"output_tokens": 1_000_000, "speed": "fast"}, 40),
        (OPUS, {"output_tokens": 1_000_000, "inference_geo": "us"}, 22),
        (OPUS, {"output_tokens": 10, "iterations": [{"output_tokens": 500_000}, {"output_tokens": 500_000}]}, 20),
        ("claude-haiku-5-5", {"input_tokens": 100_000}, 0.01),
        ("claude-haiku-5-5", {"input_tokens": 100_001}, 0.0500005),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", {"output_tokens": 1_000_000}, 15),
        ("claude-unheard-of", {"output_tokens": 1_000_000}, 75),
        (OPUS, {"input_tokens": "many", "output_tokens": -5}, 0),
    ],
)
def test_what_an_answer_costs(model: str, usage: dict[str, Any], dollars: float) -> None:
    """By the provider's table, to the microdollar; a model that it does not have costs as much as the dearest."""
    assert usd(call(model), usage) == pytest.approx(dollars, abs=1e-9)


def ask(meter: Meter, asked: Call, output: int, whole: bool = True) -> None:
    """A call from its beginning to its end."""
    with meter.call(asked, lambda: None) as charge:
        charge.sent()
        charge.answer.take({"type": "message_start", "message": {"id": "m", "usage": {"output_tokens": 1}}})
        if whole:
            charge.answer.take({"type": "message_delta", "usage": {"output_tokens": output}})
            charge.answer.take({"type": "message_stop"})


def test_no_call_is_passed_on_once_the_budget_is_spent() -> None:
    """It is passed by one call at most, and every figure was told."""
    meter, told = Meter(), list[float]()
    meter.allow(0.05, 50, told.append)
    ask(meter, call(), 1000)
    ask(meter, call(), 2000)
    with pytest.raises(LimitMet):
        ask(meter, call(), 1000)
    assert (meter.spent, meter.calls, meter.limit, told) == (0.06, 2, "max_budget", [0.02, 0.06])


def test_calls_side_by_side_wait_where_together_they_could_pass_the_budget() -> None:
    """As many go at once as it holds at their worst; one goes in any case."""
    meter = Meter()
    meter.allow(0.05, 50, lambda _: None)
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
        eventually(lambda: len(meter._at_worst) < 3)


def _gone() -> None:
    raise InterruptedError


def test_hanging_up_before_the_last_event_is_not_free() -> None:
    """What could have been generated meanwhile counts against the budget, though not as cost."""
    meter = Meter()
    meter.allow(1e-9, 50, lambda _: None)
    with meter.call(call(most=100_000), lambda: None) as charge:
        charge.sent()
    assert meter.spent == 0
    with pytest.raises(LimitMet):
        ask(meter, call(), 1)


def test_the_number_of_calls_has_an_end() -> None:
    """Whoever makes them."""
    meter = Meter()
    meter.allow(100, 2, lambda _: None)
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
    witness._meter.allow(1.0, 50, lambda _: None)
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


def test_every_model_has_all_prices() -> None:
    """And one that is not in the table the highest."""
    assert price("claude-x").output == max(price(name).output for name in ("claude-fable-5-2", "claude-opus-4-1"))
