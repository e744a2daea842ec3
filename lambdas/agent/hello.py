"""The first message of TLS, as far as it says whom the client wants to speak with (RFC 8446, RFC 6066).

**Read strictly**: what could be read in two ways is refused, since the other side reads it, too. So is a name that is
encrypted (ECH): behind one host others may stand, and which of them is meant could not be told.
"""

import struct
from collections.abc import Callable

HELLO_BYTES = 16 * 1024
"""The longest that is read; usual ones have half a kilobyte to two."""

HANDSHAKE, CLIENT_HELLO = 22, 1
SERVER_NAME, HOST_NAME = 0, 0
ENCRYPTED = (0xFE0D, 0xFFCE)
"""Extensions with a name in them that only the server can read: ECH, and ESNI before it."""


class NoHello(ValueError):
    """What came is no such message; the text says why."""


def received(read: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """The records with the message, as they came, and the message; nothing behind it is read. Raises `NoHello`.

    `read` gives exactly so many bytes, or fewer where there are no more.
    """
    records, message, size = b"", b"", 4
    while len(message) < size:
        head = _all(read, 5)
        kind, major, _, length = struct.unpack("!BBBH", head)
        if kind != HANDSHAKE or major != 3:
            raise NoHello("it does not speak TLS")
        if not length or len(records) + 5 + length > HELLO_BYTES:
            raise NoHello("its TLS begins with a message that is too long")
        body = _all(read, length)
        records, message = records + head + body, message + body
        if message[0] != CLIENT_HELLO:
            raise NoHello("its TLS does not begin with a ClientHello")
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4], "big")
    if len(message) > size:
        raise NoHello("something follows its ClientHello in the same record")
    return records, message


def server_name(message: bytes) -> str:
    """The name in a ClientHello, as it is written there. Raises `NoHello` where there is not exactly one."""
    extensions = _extensions(_Bytes(message[4:]))
    if any(kind in extensions for kind in ENCRYPTED):
        raise NoHello("the name in its TLS is encrypted (ECH)")
    if SERVER_NAME not in extensions:
        raise NoHello("its TLS names no host (SNI)")
    names = _Bytes(extensions[SERVER_NAME])
    listed = _Bytes(names.vector(2))
    kind, name = listed.number(1), listed.vector(2)
    if kind != HOST_NAME or listed.left or names.left or not name or not name.isascii():
        raise NoHello("its TLS names no single host (SNI)")
    return name.decode()


def _all(read: Callable[[int], bytes], size: int) -> bytes:
    got = read(size)
    if len(got) < size:
        raise NoHello("it hung up before its TLS began")
    return got


def _extensions(hello: "_Bytes") -> dict[int, bytes]:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    all_of_them, found = _Bytes(hello.vector(2)), dict[int, bytes]()
    if hello.left:
        raise NoHello("its ClientHello is longer than it says")
    while all_of_them.left:
        kind = all_of_them.number(2)
        if kind in found:
            raise NoHello("an extension of its ClientHello stands there twice")
        found[kind] = all_of_them.vector(2)
    return found


class _Bytes:
    """What is left to be read of a message."""

    def __init__(self, left: bytes) -> None:
        self.left = left

    def take(self, size: int) -> bytes:
        if len(self.left) < size:
            raise NoHello("its ClientHello is shorter than it says")
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """What stands behind its own length, which has `size` bytes."""
        return self.take(self.number(size))
