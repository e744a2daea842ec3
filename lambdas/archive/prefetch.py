"""A session's content on its way: asked for before it is needed, in the order in which it lies.

What is asked for at a time is a block. A few are under way at once, so that the network is used while one of them waits
for its first byte; some may have come that are not needed yet. Of the one that is needed, each piece is used as soon as
it has come. What is held in memory depends on no file's size, and the archive never lies on a disk.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Lock
from typing import Self

from lambdas.archive.directory import Archive, Directory, Span

BLOCK_BYTES = 2 << 20
"""What one request asks for at most: so little that blocks come nearly in the order in which they are needed."""

GAP_BYTES = 1 << 20
"""Bytes of no member from which it is faster not to read them, at 600 Mbit/s and 15 ms a request."""

THREADS = 4
"""Requests under way at a time."""

AHEAD = 8
"""Blocks that are under way, or came and are not needed yet."""


class Prefetch:
    """Some bytes of an archive, as a stream with gaps; a context manager. Raises what the archive raises.

    `wanted` is what is asked for at a time, in ascending order: `needed` has it for all members, `blocks` for one.
    """

    def __init__(self, archive: Archive, wanted: Iterator[Span]) -> None:
        self._archive = archive
        self._threads = ThreadPoolExecutor(THREADS, "content")
        self._blocks = wanted
        self._coming = deque[tuple[Span, Arriving]]()
        self._pieces = self._arrived()
        self._held = memoryview(b"")
        self._at = 0

    def __enter__(self) -> Self:
        for _ in range(AHEAD):
            self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def seek(self, offset: int) -> None:
        """Go on to where a member begins."""
        while offset - self._at >= len(self._held) and self._next():
            pass
        self._held, self._at = self._held[offset - self._at :], offset

    def some(self, most: int) -> memoryview:
        """The next bytes, at least one and at most so many; none if they have ended."""
        if not self._held:
            self._next()
        taken, self._held = self._held[:most], self._held[most:]
        self._at += len(taken)
        return taken

    def take(self, size: int) -> bytes | memoryview:
        """Exactly so many, unless they end before."""
        taken = self.some(size)
        if len(taken) == size:
            return taken
        parts = [taken]
        while (size := size - len(parts[-1])) and parts[-1]:
            parts.append(self.some(size))
        return b"".join(parts)

    def _next(self) -> bool:
        """Go on to the next piece; whether there is one."""
        arrived = next(self._pieces, None)
        if arrived:
            self._at, self._held = arrived
        return arrived is not None

    def _arrived(self) -> Iterator[tuple[int, memoryview]]:
        """The pieces, each with where it begins."""
        while self._coming:
            (at, end), block = self._coming.popleft()
            self._ask()
            for piece in block.read(0, end - at):
                yield at, memoryview(piece)
                at += len(piece)

    def _ask(self) -> None:
        for span in islice(self._blocks, 1):
            self._coming.append((span, Arriving(self._threads, partial(self._archive.read, *span))))


def needed(directory: Directory, lying: Iterable[int] | None = None) -> Iterator[Span]:
    """What is asked for: all members' bytes, or those of some, by their numbers in the order in which they lie; and
    what lies between near ones."""
    begin = end = 0
    for number in directory.lying if lying is None else lying:
        start = directory.offsets[number]
        if start - end >= GAP_BYTES:
            yield from blocks(begin, end)
            begin = start
        end = directory.ends[number]
    yield from blocks(begin, end)


def blocks(begin: int, end: int) -> Iterator[Span]:
    """That grow, so that those under way do not all end at once, and shrink again: the last are soon used up."""
    step = size = BLOCK_BYTES // THREADS
    while begin < end:
        yield begin, min(end, begin + size)
        begin += size
        size = max(step, min(size + step, BLOCK_BYTES, (end - begin) // THREADS))


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
