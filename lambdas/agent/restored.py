"""What a run goes on from, while it is being put in place: whether it is by now, and when the rest of it may land."""

import threading
from concurrent.futures import Future
from typing import Self

from lambdas.archive.tree import Fingerprint

Known = dict[str, Fingerprint]
"""What was restored, by its path in the archive."""


class RunEnded(Exception):
    """The run is over: nothing more has to be there."""


class Restored(Future[Known]):
    """Done when the session is in place, whole, or could not be restored. Its rest lands once it may `begin`: until the
    model is asked, Claude Code's start has the processors."""

    def __init__(self) -> None:
        super().__init__()
        self._begun, self._ended = threading.Event(), threading.Event()

    @classmethod
    def before(cls, known: Known) -> Self:
        """That of what is in place already."""
        restored = cls()
        restored.set_result(known)
        return restored

    @property
    def in_place(self) -> bool:
        """Whether it is, whole."""
        return self.done() and not self.exception()

    def begin(self) -> None:
        """Let the rest land."""
        self._begun.set()

    def end(self) -> None:
        """Let nothing more land."""
        self._ended.set()
        self._begun.set()

    def go_on(self) -> None:
        """To be asked while it lands: waits until it may. Raises `RunEnded`."""
        if not self._begun.is_set():
            self._begun.wait()
        if self._ended.is_set():
            raise RunEnded

    def result(self, timeout: float | None = None) -> Known:
        """What was restored, waited for. Raises what it could not be restored by."""
        self.begin()
        return super().result(timeout)
