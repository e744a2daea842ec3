"""Bytes on their way: a thread brings them, and who needs them takes each piece as soon as it has come."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from queue import SimpleQueue
from threading import Lock


class Arriving:
    """Some bytes that a thread of `threads` brings. What has come is kept, and may be read from anywhere, by anyone."""

    def __init__(self, threads: Executor, bring: Callable[[], Iterable[bytes]]) -> None:
        self._coming = SimpleQueue[bytes]()
        self._come = list[bytes]()
        self._taking = Lock()
        self._bringing = threads.submit(self._bring, bring)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, fewer where no more were brought. Raises what bringing them raised."""
        number = at = 0
        while at < end and (piece := self._piece(number)):
            if start < at + len(piece):
                yield piece[max(0, start - at) : end - at]
            number, at = number + 1, at + len(piece)
        if at < end:
            self._bringing.result()

    def _bring(self, bring: Callable[[], Iterable[bytes]]) -> None:
        try:
            for piece in filter(None, bring()):  # an empty one says that no more come
                self._coming.put(piece)
        finally:
            self._coming.put(b"")

    def _piece(self, number: int) -> bytes:
        """Waits for it; empty behind the last."""
        with self._taking:
            if number == len(self._come):
                self._come.append(self._coming.get())
        return self._come[number]
