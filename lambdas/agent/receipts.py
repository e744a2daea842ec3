"""Keeps the receipt where a function that is killed leaves it: staged as the run goes."""

import sys
import threading
from collections.abc import Callable
from typing import Self

from lambdas.agent.meter import Meter
from lambdas.errors import StorageUnavailable
from lambdas.receipt import Receipt

AGAIN_SECONDS = 0.5
"""How long after a write that failed the next one is tried."""


class Receipts:
    """Stages the meter's receipt whenever it changes while the `with` block lasts, in a thread of its own; the newest,
    where changes come faster than they can be written.

    An empty one is there before the first call: where there is none, nothing was spent. A call goes out while its line
    is written; the next one waits for that. So no more than one call, and those beside it, can be missing in what a
    killed attempt leaves, and where nothing can be written nothing more is spent.
    """

    def __init__(self, meter: Meter, write: Callable[[Receipt], None]) -> None:
        self._meter = meter
        self._write = write
        self._changed = threading.Condition()
        self._changes = 1  # that there is none yet
        self._kept = 0
        """How many of the changes are staged."""
        self._over = False

    def changed(self) -> None:
        """Returns at once."""
        with self._changed:
            self._changes += 1
            self._changed.notify()

    def kept(self) -> bool:
        """Whether what is staged is what the receipt says by now."""
        return self._kept == self._changes

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when all of it is staged, or could not be: nothing older is written after this."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while changes := self._awaited():
            try:
                self._write(self._meter.receipt())
            except StorageUnavailable as failure:
                print(f"receipt not staged: {failure}", file=sys.stderr)
                with self._changed:
                    if self._over:
                        return
                    self._changed.wait_for(lambda: self._over, AGAIN_SECONDS)
            else:
                self._kept = changes
                self._meter.look()

    def _awaited(self) -> int:
        """Waits until there is something to be staged; how many changes that are by then, 0 where all is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self.kept() or self._over)
            return 0 if self.kept() else self._changes
