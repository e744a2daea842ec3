"""A short run of `tests.chaos`, whose command goes on for a hundred kills."""

import sys
from pathlib import Path

import pytest

from tests.chaos import Chaos

KILLS, SEED = 6, 12
FUNCTIONS = {"run": 2, "CLI": 1, "commit": 2}
"""What is killed here: after the engine's death the dead hold their leases for half a minute."""


@pytest.mark.skipif(sys.platform != "linux", reason="What is left of a killed worker's run is found by /proc.")
def test_kills_at_random_lose_nothing_and_leave_nothing(state: Path) -> None:
    """Every 200 is in its session, once and in order, and paid for once; no scratch, no lease, no process stays."""
    with Chaos(state, SEED) as chaos:
        chaos.run(KILLS, FUNCTIONS)
        wrong = chaos.verdict()
    assert wrong == [], (chaos.kills, chaos.turns)
    assert chaos.kills.keys() == FUNCTIONS.keys()
