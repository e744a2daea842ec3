"""The answer is built to what Step Functions carries."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lambdas import answer, strict
from lambdas.contract import ANSWER_BYTES, Claim
from lambdas.strict import Json
from tests.support.played_workflow import RESULT

CLAIM = Claim("run-1", "session-1", "alice", "execution", "runs/run-1/0001-aa/", 1.0, False, "uuid", None)


def size(built: Json) -> int:
    return len(json.dumps(built, ensure_ascii=False).encode())


def built(messages: list[Json] | None, **changed: Any) -> Json:
    return {**answer.build(CLAIM, replace(RESULT, **changed), messages, 0.25, 0.75, receipt=True)}


def test_a_small_answer_has_all_messages() -> None:
    """What fits is given whole, in the CLI's own words."""
    messages = [{"type": "system"}, {"type": "result", "result": "done"}]
    whole = built(messages)
    assert whole["messages"] == messages
    assert "messages_truncated" not in whole
    assert (whole["cost_usd"], whole["session_cost_usd"]) == (0.25, 0.75)


def test_messages_give_way_first() -> None:
    """The result message stays, and the answer says where the others are."""
    many = [{"type": "assistant", "text": "é" * 1000}] * 150 + [RESULT.last_message]
    short = built(many)
    assert short["messages"] == [RESULT.last_message]
    assert short["messages_truncated"] is True
    assert short["messages_at"] == "runs/run-1/0001-aa/messages.json"
    assert short["files"] == RESULT.files
    assert built(None)["messages"] == [RESULT.last_message]


def test_files_give_way_next() -> None:
    """As many as fit are named; files_total says how many there were."""
    files = [{"path": f"{'d' * 200}/{n}", "change": "added", "size": n} for n in range(5000)]
    short = built(None, files=files, files_total=5000)
    assert 0 < len(short["files"]) < 5000
    assert short["files"] == files[: len(short["files"])]
    assert short["files_total"] == 5000
    assert short["result"] == "done"
    assert size(short) <= ANSWER_BYTES - answer.LINK_ROOM


def test_long_texts_give_way_last() -> None:
    """A cut text says that it is cut, and no answer is too large for the state machine."""
    long = "🎈" * 100_000
    short = built(None, result=long, last_message={"type": "result", "result": long}, structured_output={"a": long})
    assert short["result"].startswith("🎈" * 100)
    assert short["result"].endswith(answer.CUT)
    assert short["structured_output"] is None
    assert size(short) <= ANSWER_BYTES - answer.LINK_ROOM


def test_whatever_a_stranger_staged_fits() -> None:
    """Even a last message that is one huge unknown field cannot break the answer."""
    huge = {"junk": ["x" * 1000] * 1000}
    short = built(None, last_message=huge, usage=huge)
    assert size(short) <= ANSWER_BYTES - answer.LINK_ROOM
    assert short["result"] == "done"


def test_half_a_surrogate_is_carried() -> None:
    """A tool, or the model, can say it; what a function returns has to be text in UTF-8."""
    whole = built(
        [{"type": "user", "content": "half \ud83d"}], result="\ud83d\ude00 \ud83d", structured_output={"\udc00": 1}
    )
    assert json.dumps(whole, ensure_ascii=False).encode()
    assert (whole["result"], whole["messages"][0]["content"]) == ("😀 \ufffd", "half \ufffd")


def test_what_is_stored_is_json_for_every_reader() -> None:
    """Half a surrogate as its escape, and no number that is none."""
    assert strict.read(strict.written({"a": "half \ud83d"})) == {"a": "half \ud83d"}
    assert strict.written("ü") == '"ü"'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict.written({"a": float("nan")})
    for text in ("NaN", "1e999", "-Infinity", "[" * 200 + "]" * 200, "[" * 100_000):
        with pytest.raises(ValueError, match=r"nested|not JSON|not a number"):
            strict.read(text)
