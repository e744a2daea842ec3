"""Waiting for what another thread or process does, for as long as a busy machine may take."""

import time
from collections.abc import Callable

SECONDS = 60


def eventually(true: Callable[[], object], seconds: float = SECONDS) -> bool:
    """Whether it comes true in time; looks every few milliseconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
