"""What the kit's program takes for a way out: an answer, not a connection."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from claude_workflow.cli.check import reach

HELLO = b"HTTP/1.0 400 Bad Request\r\n\r\n"
ALERT = b"\x15\x03\x01\x00\x02\x02\x28"
"""TLS: fatal, handshake_failure (RFC 8446, 6)."""


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """The port of a server that reads and answers so, a connection each, and hangs up; nothing: it only hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                with server.accept()[0] as one, suppress(OSError):
                    one.recv(4096)
                    one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def came(way: Callable[[], bool]) -> str:
    """What came of one way."""
    return reach.tried({"it": way})["it"]


def test_a_way_is_open_where_something_comes_back() -> None:
    """A firewall lets a connection be made, and nothing through it: that is no way out. A refusal is an answer."""
    with answering(HELLO, b"", ALERT, b"") as port:
        assert came(lambda: reach.http("127.0.0.1", port)) == reach.OPEN
        assert came(lambda: reach.http("127.0.0.1", port)) == "closed at once"
        assert came(lambda: reach.tls("127.0.0.1", "example.com", port)) == reach.OPEN
        assert came(lambda: reach.tls("127.0.0.1", "example.com", port)) == "closed at once"
    assert came(lambda: reach.http("127.0.0.1", port)).startswith("ConnectionRefusedError")


def test_a_query_is_answered() -> None:
    """By UDP."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        echo = threading.Thread(target=lambda: server.sendto(*server.recvfrom(512)))
        echo.start()
        assert came(lambda: reach.udp("127.0.0.1", port)) == reach.OPEN
        echo.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the agent's network is looked at in /proc")
def test_the_program_needs_nothing_but_python() -> None:
    """It is brought into a workspace by itself; here into no network at all, where it finds no way."""
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-I", reach.__file__, "provider.invalid"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert set(told.pop("networks")) <= {"lo"}
    assert told.keys() == {"tcp 80", "tcp 443", "udp 53", "name", "metadata", "provider"}
    assert reach.OPEN not in told.values()
