"""What is staged as the run goes, so that it is there when the function is killed, and seen before it ends."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from lambdas.errors import StorageUnavailable

AGAIN_SECONDS = 0.5
"""How long after a write that failed the next one is tried."""


class Staged:
    """Staged by `write` whenever it changes while the `with` block lasts, in a thread of its own; the newest, where
    changes come faster than they can be written. What fails is told in the function's log, and tried again."""

    def __init__(
        self,
        name: str,
        write: Callable[[], None],
        *,
        rest: float = 0.0,
        share: float = 1.0,
        to_the_end: bool = True,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """`rest`: seconds before each write; `share`: how much of the time may go into them; `to_the_end`: whether the
        last change is staged here, too, when the block ends; `then` is called when it is staged. `write` may raise
        StorageUnavailable."""
        self._name, self._write, self._then = name, write, then
        self._rest, self._share, self._to_the_end = rest, share, to_the_end
        self._changed = threading.Condition()
        self._changes = self._kept = 0
        """How many there were, and how many of them are staged."""
        self._over = False

    def changed(self) -> None:
        """Returns at once."""
        with self._changed:
            self._changes += 1
            self._changed.notify()

    def kept(self) -> bool:
        """Whether what is staged is what it is by now."""
        return self._kept == self._changes

    def __enter__(self) -> Self:
        self._due = time.monotonic() + self._rest
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when nothing is being written any more."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
        if self._to_the_end:
            self.last()

    def last(self) -> None:
        """Stage the last change, if it is not yet."""
        if not self.kept():
            self._tried()

    def _work(self) -> None:
        while self._awaited():
            began = time.monotonic()
            rest = self._rest if self._tried() else max(self._rest, AGAIN_SECONDS)
            took = time.monotonic() - began
            self._due = time.monotonic() + max(rest, took / self._share - took)

    def _tried(self) -> bool:
        """Whether it is staged, as it is just now."""
        changes = self._changes
        try:
            self._write()
        except StorageUnavailable as failure:
            print(f"{self._name} not staged: {failure}", file=sys.stderr)
            return False
        self._kept = changes
        self._then()
        return True

    def _awaited(self) -> bool:
        """Waits until there is something to be staged: True; False when all is over."""
        with self._changed:
            while not self._over:
                left = self._due - time.monotonic()
                if left <= 0 and not self.kept():
                    return True
                self._changed.wait(None if self.kept() else left)
        return False
