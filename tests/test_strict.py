"""JSON that every reader reads alike, and can carry on."""

import json
from typing import Any

import pytest

from lambdas import strict

DEEP = "[" * (strict.DEPTH + 2) + "]" * (strict.DEPTH + 2)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "-Infinity", "1e999", '{"a": -1e999}', DEEP, "[" * 100_000, "{} {}", "", '{"a"']
)
def test_what_only_some_readers_take_is_none(text: str) -> None:
    """Numbers that are none, depth without end, and what is no JSON at all."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        strict.read(text)
    assert strict.read(DEEP[1:-1]) is not None


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_what_is_no_number_is_not_written(value: Any) -> None:
    """Python would write names that nobody else reads."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict.written(value)


def test_half_a_surrogate_pair_is_carried() -> None:
    """As an escape where it is written, as U+FFFD where Lambda encodes; everything else is as it was."""
    half = {"a": "x\ud83dy", "b": "ü🦊"}
    assert json.loads(strict.written(half)) == half
    assert strict.written({"b": "ü🦊"}) == '{"b": "ü🦊"}'.encode()
    assert strict.encodable(half) == {"a": "x\ufffdy", "b": "ü🦊"}
    assert json.dumps(strict.encodable(half), ensure_ascii=False).encode()
