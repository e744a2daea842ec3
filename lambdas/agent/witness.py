"""The witness: what the model really said, against which what Claude Code prints is held.

The agent's code can write to Claude Code's output as Claude Code does, and print what the model never said. But every
answer passed the proxy first. So of what is printed, only this is believed:

- *A message of the model's*, where the model said it: each block of it, in the answer that it names. A tool call's
  input is the one that was said (Claude Code rewrites some before it prints them).
- *A tool's result*, where the model made that call. What is in it comes from the agent's world anyway.
- *The end of the run*, where the conversation's last answer was its end; the text and the structured output are then
  the model's own, whatever is printed.
- *A call that waits* for an approval, where the proxy has deferred one.
- *A limit*, where the meter counted as far, and *an error of the provider's*, where there was one. Which, is the
  proxy's word.

What is not believed is passed over, and the run goes on. What the agent's code asks the model itself, with the run's
token, counts as said by the model: the two calls look the same.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lambdas import strict
from lambdas.agent.messages import TOO_DEEP, Answer
from lambdas.agent.meter import Meter
from lambdas.strict import Json

OUTPUT = "StructuredOutput"
"""The tool by which Claude Code lets the model answer a schema."""

DEFERRED = "tool_deferred"
"""The `stop_reason` of a run that ends with a call that waits."""

SYNTHETIC = "<synthetic>"
"""The model of messages that Claude Code writes itself, such as an error of the API's."""


class Witness:
    """What the model said in one run, and how it failed."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._said: dict[str, Answer] = {}
        self._calls: set[str] = set()
        self._last: Answer | None = None
        self.failed = False
        """Whether the conversation's last call failed."""
        self.status: int | None = None
        """With what: a status of the API's, or None for no answer, or one that broke off."""
        self.deferred: Callable[[], bool] = lambda: False
        """Whether a call was deferred."""
        self.failure: Json | None = None
        """`{"status", "times"}` where the model answers nothing but errors just now, the run's last ones in a row."""

    def called(self, name: str) -> bool:
        """Whether the model made the tool call of this id."""
        return name in self._calls

    def calls_beside(self, name: str) -> int | None:
        """How many tool calls the answer has in which that of this id is; None while there may come more of them."""
        for answer in list(self._said.values()):
            if any(block.get("id") == name for block in answer.blocks):
                return sum("id" in block for block in answer.blocks) if answer.whole else None
        return None

    def began(self, answer: Answer) -> None:
        """The model answers: its errors, if there were any, are over."""
        self.failure = None
        if answer.call.main:
            self._last = answer

    def heard(self, answer: Answer) -> None:
        """Something more of it is there; to be called before the agent gets it."""
        if answer.id:
            self._said[answer.id] = answer
        self._calls.update(str(block["id"]) for block in answer.blocks if "id" in block)
        if answer.whole and answer.call.main:
            self.failed = False

    def ended(self, answer: Answer) -> None:
        """Nothing more will come of it."""
        if not answer.whole or answer.broken:
            self.refused(answer.call.main, None)

    def stumbled(self, status: int | None) -> None:
        """The model answered with an error, or not at all; it may be asked again."""
        times = self.failure["times"] if self.failure and self.failure["status"] == status else 0
        self.failure = {"status": status, "times": times + 1}

    def refused(self, main: bool, status: int | None) -> None:
        """An error goes to the agent."""
        if main:
            self.failed, self.status = True, status

    def believed(self, frame: Json) -> Json | None:
        """What of a frame is true, or None."""
        kind = frame.get("type")
        if kind == "assistant":
            return self._spoken(frame)
        if kind == "user":
            return frame if self._called(frame) else None
        if kind == "result":
            return self._end(frame)
        return frame if isinstance(kind, str) else None

    def _spoken(self, frame: Json) -> Json | None:
        message = frame.get("message")
        blocks = message.get("content") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(blocks, list):
            return None
        if message.get("model") == SYNTHETIC:
            return frame
        answer = self._said.get(str(message.get("id")))
        said = [_of(block, answer.blocks) for block in blocks] if answer else [None]
        return None if None in said else frame | {"message": message | {"content": said}}

    def _called(self, frame: Json) -> bool:
        """Whether the results in a user's message are of calls that the model made."""
        message = frame.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        blocks = content if isinstance(content, list) else []
        results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
        return isinstance(message, dict) and all(str(each.get("tool_use_id")) in self._calls for each in results)

    def _end(self, frame: Json) -> Json | None:
        if not _is_result(frame):
            return None
        subtype, failed = frame["subtype"], frame["is_error"]
        if subtype == "success" and not failed:
            return self._answered(frame)
        believed = {
            # Claude Code's own trouble, without one of the provider's, is no more than its death.
            "success": self.failed or self._meter.limit is not None or frame.get("api_error_status") is None,
            "error_during_execution": True,
            "error_max_turns": self._meter.turns_met,
            "error_max_budget_usd": self._meter.budget_met,
            "error_max_structured_output_retries": any(answer.calls(OUTPUT) for answer in self._said.values()),
        }
        return frame if believed.get(subtype) else None

    def _answered(self, frame: Json) -> Json | None:
        last = self._last
        if last and last.whole and frame.get("stop_reason") == DEFERRED and self.deferred():
            return frame | {"result": None}
        if last is None or not last.whole or (last.stop_reason == "tool_use" and not last.calls(OUTPUT)):
            return None
        texts, printed = ["".join(last.texts), *last.texts], frame.get("result")
        text: str | None = texts[-1] if last.blocks and last.blocks[-1].get("type") == "text" else ""
        if last.calls(OUTPUT):
            text = _worded(printed, last.calls(OUTPUT))
        elif isinstance(printed, str) and printed.strip() in [each.strip() for each in texts]:
            text = printed
        return frame | {"result": text}

    @property
    def stop_reason(self) -> str:
        """Why the model stopped. With an output schema, the last thing that it does is to call a tool."""
        reason = self._last.stop_reason if self._last else None
        return "end_turn" if reason in (None, "tool_use") else str(reason)

    @property
    def outputs(self) -> list[Any]:
        """What the model's last answer gave as structured output; usually one, and none without a schema."""
        return self._last.calls(OUTPUT) if self._last else []


def _of(block: Any, said: list[Json]) -> Json | None:
    """What the model said, of which a printed block is an account; None if there is nothing of the kind."""
    if not isinstance(block, dict):
        return None
    kind = block.get("type")
    for each in said:
        if each.get("type") != kind:
            continue
        if "id" in each and each["id"] == block.get("id"):
            return None if each.get("input") is TOO_DEEP else each
        if kind in ("text", "thinking") and str(each.get(kind)).strip() == str(block.get(kind)).strip():
            return block
        if each == block:
            return block
    return None


def _worded(printed: object, outputs: list[Any]) -> str | None:
    """A structured output as text, as it is printed where it says the same."""
    with suppress(ValueError):
        if isinstance(printed, str) and strict.read(printed) in outputs:
            return printed
    return None if outputs[-1] is TOO_DEEP else json.dumps(outputs[-1], ensure_ascii=False, separators=(",", ":"))


def _is_result(frame: Json) -> bool:
    """Whether it has what a result of Claude Code's has."""
    kinds: dict[str, Any] = {"subtype": str, "is_error": bool, "num_turns": int, "usage": dict}
    return all(isinstance(frame.get(name), kind) for name, kind in kinds.items())
