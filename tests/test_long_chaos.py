"""A short run of `tests.long_chaos`, whose command goes on for forty minutes."""

import sys
from pathlib import Path

import pytest

from tests.long_chaos import killed


@pytest.mark.skipif(sys.platform != "linux", reason="What is left of a killed worker's run is found by /proc.")
def test_a_long_run_outlives_kills(state: Path) -> None:
    """CLI, function, engine and service are killed, each once: each step is done once, and in its order; the calls
    of the model are counted, and nothing is left. The service goes on by itself."""
    assert killed(state, steps=15, step=1.0, leg=5, kills=4, seed=5) == []
