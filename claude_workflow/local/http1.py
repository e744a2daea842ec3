"""HTTP/1.1 as the gateway takes it (RFC 9112): a request is read in one way, or it is refused.

What stands before this, a proxy or a load balancer, may read a doubtful request otherwise, and then the two disagree
where one ends and the next begins. So nothing is guessed: no folded header, no bare line feed, one length, one key.
Sizes are limited, and so is the time for a whole head and a whole body, however slowly they come.
"""

import re
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD = 32 * 1024
"""Bytes of a request's line and headers; API Gateway's limit for the headers is 10,240."""
MAX_FIELDS = 100
MAX_TRAILER = 4096
MAX_SIZE_LINE = 256
"""Bytes of the line before a chunk, with its extensions, which nobody reads."""

IDLE_SECONDS = 75
"""How long a connection may say nothing between two requests."""
HEAD_SECONDS = 10
"""For all of a head, from its first byte; and how long a new connection may say nothing."""
BODY_SECONDS = 60
LINGER_SECONDS = 3
"""How long what nobody wants is still taken, so that the client comes to read its answer."""

ONCE = {
    "authorization", "content-length", "content-type", "expect", "host", "idempotency-key", "transfer-encoding",
    "x-api-key",
}  # fmt: skip
"""Headers of which two readers of a request might take different ones, were they there twice."""

REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([!-~]+) HTTP/(\d)\.(\d)")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[\t -~\x80-\xff]*)?")


class Malformed(Exception):
    """No request that has one meaning. `status` is that of the answer, after which the connection ends."""

    def __init__(self, status: int = 400) -> None:
        super().__init__(status)
        self.status = status


class TooLarge(Exception):
    """The body is larger than it may be; what there is of it has not been read."""


class HungUp(Exception):
    """The client is gone, or silent for so long that it might as well be."""


@dataclass(frozen=True)
class Head:
    """A request without its body."""

    method: str
    path: str
    query: str
    fields: dict[str, str]
    """Headers by the names that the client wrote; of one that is there again, the last."""
    length: int | None
    """Of the body, in bytes; None: it comes in chunks."""
    expects: bool
    """Whether the client waits for a word (100) before it sends the body."""
    stays: bool
    """Whether the connection may go on after the answer."""


class Stream:
    """The requests of a connection, one after the other: `head`, and then its `body` at most once."""

    def __init__(
        self, connection: socket.socket, *, head_seconds: float = HEAD_SECONDS, body_seconds: float = BODY_SECONDS
    ) -> None:
        self._connection = connection
        self._head_seconds, self._body_seconds = head_seconds, body_seconds
        self._ahead = b""
        """What has come and is not read yet."""

    def head(self, wait: float) -> Head:
        """The next one, if it begins within `wait` seconds. Raises `Malformed`, `HungUp`."""
        until = time.monotonic() + wait
        while not self._ahead.strip(b"\r\n"):  # a line end after a body is passed over, as RFC 9112 asks
            self._ahead = self._ahead.strip(b"\r\n") + self._received(until)
        self._ahead = self._ahead.lstrip(b"\r\n")
        until = time.monotonic() + self._head_seconds
        text = self._before(b"\r\n\r\n", MAX_HEAD, until, too_long=431)
        return _head(text.split(b"\r\n"))

    def body(self, head: Head, most: int) -> bytes:
        """All of it; the client is told to send it where it waits for that. Raises `TooLarge` (before that word, if it
        can be known), `Malformed`, `HungUp`."""
        if head.length is not None and head.length > most:
            raise TooLarge
        if head.expects:
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        until = time.monotonic() + self._body_seconds
        return self._chunks(most, until) if head.length is None else self._exactly(head.length, until)

    def linger(self) -> None:
        """Take, and forget, what the client still sends; else the system would drop the answer with it."""
        until = time.monotonic() + LINGER_SECONDS
        try:
            self._connection.shutdown(socket.SHUT_WR)
            while True:
                self._received(until)
        except (HungUp, OSError):
            pass

    def _chunks(self, most: int, until: float) -> bytes:
        parts, size = [], 0
        while True:
            line = CHUNK.fullmatch(self._before(b"\r\n", MAX_SIZE_LINE, until))
            if not line:
                raise Malformed
            if (length := int(line[1], 16)) == 0:
                break
            if (size := size + length) > most:
                raise TooLarge
            parts.append(self._exactly(length, until))
            if self._exactly(2, until) != b"\r\n":
                raise Malformed
        left = MAX_TRAILER
        while line_after := self._before(b"\r\n", left, until):
            left -= len(line_after)
        return b"".join(parts)

    def _before(self, mark: bytes, most: int, until: float, *, too_long: int = 400) -> bytes:
        """What comes before the mark, `most` bytes at the most, in lines that end as they should."""
        while (end := self._ahead.find(mark)) < 0 and len(self._ahead) <= most:
            if b"\n" in self._ahead.replace(b"\r\n", b""):
                raise Malformed
            self._ahead += self._received(until, Malformed(408))
        if not 0 <= end <= most:
            raise Malformed(too_long)
        text, self._ahead = self._ahead[:end], self._ahead[end + len(mark) :]
        return text

    def _exactly(self, length: int, until: float) -> bytes:
        parts, got = [self._ahead], len(self._ahead)
        while got < length:
            parts.append(self._received(until, Malformed(408)))
            got += len(parts[-1])
        whole = b"".join(parts)
        self._ahead = whole[length:]
        return whole[:length]

    def _received(self, until: float, late: Exception | None = None) -> bytes:
        """What comes next. Raises `HungUp` where nothing will, and `late`, or `HungUp`, past `until`."""
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            data = self._connection.recv(1 << 16)
        except TimeoutError:
            raise late or HungUp from None
        except OSError:
            raise HungUp from None
        if not data:
            raise HungUp
        return data


def _head(lines: list[bytes]) -> Head:
    first = REQUEST_LINE.fullmatch(lines[0])
    if not first:
        raise Malformed
    if first[3] != b"1":
        raise Malformed(505)
    if len(lines) - 1 > MAX_FIELDS:
        raise Malformed(431)
    fields, known = {}, dict[str, str]()
    for line in lines[1:]:
        field = FIELD.fullmatch(line)
        if not field:
            raise Malformed
        name, value = field[1].decode(), field[2].decode("latin-1")
        if name.lower() in known and name.lower() in ONCE:
            raise Malformed
        fields[name] = known[name.lower()] = value
    newest = first[4] != b"0"
    path, query = _target(first[2].decode())
    expected = known.get("expect", "").lower() if newest else ""
    if expected not in ("", "100-continue"):
        raise Malformed(417)
    length = _length(known, newest)
    return Head(
        method=first[1].decode(),
        path=path,
        query=query,
        fields=fields,
        length=length,
        expects=expected != "" and length != 0,
        stays=newest and "close" not in known.get("connection", "").lower(),
    )


def _length(known: dict[str, str], newest: bool) -> int | None:
    """Bytes of the body; None where it comes in chunks."""
    coding, length = known.get("transfer-encoding"), known.get("content-length")
    if coding is not None:
        if length is not None or coding.lower() != "chunked" or not newest:
            raise Malformed
        return None
    if not re.fullmatch(r"[0-9]+", length := length if length is not None else "0"):
        raise Malformed
    return int(length[-18:]) if not length[:-18].strip("0") else 10**18


def _target(target: str) -> tuple[str, str]:
    """Path and query, of a target that may name the whole address, as requests to proxies do."""
    if not target.startswith("/"):
        try:
            whole = urlsplit(target)
        except ValueError:
            raise Malformed from None
        return (whole.path or "/", whole.query) if whole.scheme in ("http", "https") else (target, "")
    path, _, query = target.partition("?")
    return path, query
