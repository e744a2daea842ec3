"""What flows between the states, as a stranger may have written it."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from lambdas.contract import Result
from tests.support.played_workflow import RESULT


def staged_result(**changed: Any) -> dict[str, Any]:
    return asdict(RESULT) | changed


def test_a_staged_result_comes_back_as_it_was() -> None:
    """What RunClaude stages, PersistSession reads."""
    assert asdict(Result.load(json.loads(json.dumps(staged_result())))) == staged_result()


HOSTILE: list[dict[str, Any]] = [
    {"cost_usd": -1},
    {"cost_usd": float("nan")},
    {"cost_usd": "0"},
    {"num_turns": True},
    {"model_failure": {"status": 529}},
    {"model_failure": {"status": 200, "times": 1}},
    {"model_failure": {"status": None, "times": -1}},
    {"stop_reason": "End turn"},
    {"stop_reason": "x" * 100},
    {"files": [1]},
    {"usage": []},
    {"last_message": "text"},
    {"session_files": -1},
    {"session_directory": 1 << 60},
    {"staged_bytes": 1.5},
    {"format": 2},
    {"owner": "somebody else"},
]


@pytest.mark.parametrize("changed", HOSTILE)
def test_a_staged_result_of_another_shape_is_refused(changed: dict[str, Any]) -> None:
    """Strangers' code may have written it."""
    with pytest.raises(ValueError, match=r"result\.json"):
        Result.load(staged_result(**changed))
