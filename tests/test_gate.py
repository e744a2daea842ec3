"""The gate: which request of the agent's is the conversation's next step, and is held back."""

import json
from typing import Any

import pytest

from lambdas.agent.gate import Gate
from lambdas.agent.messages import Answer, Call


def request(*results: str, agent: str | None = None) -> tuple[Call, bytes]:
    """One that brings the results of these calls."""
    blocks = [{"type": "tool_result", "tool_use_id": each} for each in results]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": blocks}]}).encode()
    return Call.of(body, {"x-claude-code-agent-id": agent} if agent else {}), body


def answer(call: Call, *calls: str, reason: str = "tool_use") -> Answer:
    """One that makes these calls, and is whole."""
    content: list[Any] = [{"type": "tool_use", "id": each, "name": "Bash", "input": {}} for each in calls]
    said = Answer(call)
    said.take({"type": "message", "id": "msg", "content": content, "stop_reason": reason})
    return said


@pytest.fixture
def gate() -> Gate:
    """One whose first step has made two calls, and which is closed since."""
    made = Gate()
    first, body = request()
    assert made.admits(first, body)
    made.answered(answer(first, "toolu_1", "toolu_2"))
    made.close()
    return made


def test_the_next_step_is_held_back(gate: Gate) -> None:
    """It brings the results of all calls."""
    assert not gate.reached
    assert not gate.admits(*request("toolu_1", "toolu_2"))
    assert gate.reached


@pytest.mark.parametrize("asked", [request(agent="a"), request(), request("toolu_1")])
def test_who_asks_in_the_middle_of_a_tool_is_not(asked: tuple[Call, bytes], gate: Gate) -> None:
    """A subagent, and a program: what that makes the model call is nobody's next step."""
    assert gate.admits(*asked)
    gate.answered(answer(asked[0], "toolu_of_its_own"))
    assert not gate.reached
    assert not gate.admits(*request("toolu_1", "toolu_2"))


def test_a_step_that_is_asked_again_is_the_same_step() -> None:
    """Its answer was cut off, and what was called in it counts no more than what an answer calls at its limit."""
    gate = Gate()
    first, body = request()
    assert gate.admits(first, body)
    gate.answered(answer(first, "toolu_cut", reason="max_tokens"))
    gate.close()
    assert not gate.admits(first, body)
