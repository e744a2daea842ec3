"""The body of a request as the proxy reads it: in pieces, of which so many bytes are kept."""

import re
from collections.abc import Iterator
from io import BufferedIOBase, BytesIO

PIECE = 65536

SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
"""The line before a chunk. RFC 9112 also allows extensions, which nobody sends, and readers disagree about."""


def counted(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    """The next `size` bytes. Raises ConnectionAbortedError where there are fewer."""
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise ConnectionAbortedError("the agent has hung up")
        size -= len(piece)
        yield piece


def chunked(stream: BufferedIOBase) -> Iterator[bytes]:
    """A chunked body. Raises ConnectionAbortedError where it is none, or not whole."""
    while size := _size(stream):
        yield from counted(stream, size)
        _expect(stream, b"\r\n")
    _expect(stream, b"\r\n")  # no trailers


def _size(stream: BufferedIOBase) -> int:
    line = SIZE.fullmatch(stream.readline(11))
    if not line:
        raise ConnectionAbortedError("not a chunk")
    return int(line[1], 16)


def _expect(stream: BufferedIOBase, wanted: bytes) -> None:
    if stream.read(len(wanted)) != wanted:
        raise ConnectionAbortedError("not the end of a chunk")


def kept(pieces: Iterator[bytes], most: int) -> tuple[bytes, bool]:
    """The first `most` bytes, and whether there were more, which are thrown away as they come."""
    body, more = BytesIO(), False
    for piece in pieces:
        room = most - body.tell()
        body.write(piece[:room])
        more = more or len(piece) > room
    return body.getvalue(), more
