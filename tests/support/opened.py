"""An archive at hand, as `unpack` reads one: out of memory, or of a file."""

import os
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO


class Opened:
    """Gives pieces of at most `piece` bytes, to several threads at once."""

    def __init__(self, archive: bytes | BinaryIO, piece: int = 64 * 1024) -> None:
        self._file = BytesIO(archive) if isinstance(archive, bytes) else archive
        self._piece = piece
        self._lock = threading.Lock()
        self.size = self._file.seek(0, os.SEEK_END)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, self._piece):
            with self._lock:
                self._file.seek(at)
                piece = self._file.read(min(self._piece, end - at))
            yield piece
