"""What a run has spent so far, told as it goes: a function that is killed cannot say it afterwards."""

import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Self

from lambdas.errors import StorageUnavailable


class Spending:
    """Tells of every figure noted while the `with` block lasts, in a thread of its own; the newest where they come
    faster than they can be told."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._figures: SimpleQueue[float | None] = SimpleQueue()

    def note(self, usd: float) -> None:
        """US dollars so far. Returns at once."""
        self._figures.put(usd)

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """The run can speak for itself now: nobody waits for what is not told yet."""
        self._figures.put(None)

    def _work(self) -> None:
        while (usd := self._figures.get()) is not None:
            if self._figures.empty():
                try:
                    self._tell(usd)
                except StorageUnavailable as failure:  # a figure is lost, the run is not
                    print(f"spending not told: {failure}", file=sys.stderr)
