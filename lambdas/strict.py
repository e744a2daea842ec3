"""JSON as it is defined: what every reader reads alike, and whatever was said can be carried in.

Python's own reads and writes `NaN` and `Infinity`, which nobody else takes; reads numbers that are too large as
infinite; goes into depth until its stack ends; and holds half of a surrogate pair in a string, as JavaScript does,
which is no text in UTF-8.
"""

import json
import math
from typing import Any

Json = dict[str, Any]
"""A JSON object."""

DEPTH = 100
"""How deeply what is handed on may be nested: Python, Step Functions and its JSONata go through it by recursion."""

ENVELOPE = 10
"""How many levels a message has around what the model said, and a record around a message."""


def read(text: str | bytes, depth: int = DEPTH) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for what is nested too deeply."""
    try:
        value = json.loads(text, parse_constant=no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if too_deep(value, depth):
        raise ValueError("it is nested too deeply")
    return value


def written(value: Any) -> bytes:
    """A value as JSON, in UTF-8; half of a surrogate pair is escaped. Raises `ValueError` for what is no number."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode()


def encodable(value: Any) -> Any:
    """The value itself if all its texts are such in UTF-8; else its copy, with U+FFFD for half of a surrogate pair.

    Lambda's runtime encodes what a function returns, and would fail it.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    return value


def too_deep(value: object, depth: int) -> bool:
    """Whether a value is nested more deeply than `depth`; looked through without recursion."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]


def no_number(name: str) -> float:
    """For `parse_constant`: raises `ValueError`."""
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is not a number")
    return number
