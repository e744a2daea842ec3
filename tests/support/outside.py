"""What stands around a run on one machine, for `outward.py` to reach: services that tell everybody their secret."""

import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

SECRET = b"from outside"


@contextmanager
def outside(root: Path) -> Iterator[dict[str, Any]]:
    """What the agent of the run whose scratch directory is `root` is told of it."""
    with ExitStack() as stack:
        nearby = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        nearby.chmod(0o711)
        port = stack.enter_context(_served(socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0)))[1]
        stack.enter_context(_served(socket.AF_INET6, socket.SOCK_STREAM, ("::1", port)))
        packets = stack.enter_context(_served(socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0)))[1]
        stack.enter_context(_served(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", packets)))
        named = [(kind, name) for kind in (1, 2) for name in (str(nearby / f"socket-{kind}"), f"\0{uuid.uuid4()}")]
        for kind, name in named:
            stack.enter_context(_served(socket.AF_UNIX, kind, name))
        yield {
            "tcp": port,
            "udp": packets,
            "free": _free(),
            "addresses": ["127.0.0.1", "127.0.0.2", *_own_address()],
            "streams": [name for kind, name in named if kind == socket.SOCK_STREAM],
            "packets": [name for kind, name in named if kind == socket.SOCK_DGRAM],
            "handoffs": [str(root / "private" / "handoff"), "../private/handoff"],
            "others": [os.getpid(), os.getppid()],
        }


@contextmanager
def _served(family: int, kind: int, address: Any) -> Iterator[Any]:
    with socket.socket(family, kind) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(address)
        if isinstance(address, str) and address.startswith("/"):
            Path(address).chmod(0o777)
        if kind == socket.SOCK_STREAM:
            server.listen()
        told: Callable[[socket.socket], None] = _tell if kind == socket.SOCK_STREAM else _answer

        def serve() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    told(server)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()


def _tell(server: socket.socket) -> None:
    line, _ = server.accept()
    with line:
        line.sendall(SECRET)


def _answer(server: socket.socket) -> None:
    _, who = server.recvfrom(100)
    if who:
        server.sendto(SECRET, who)


def _own_address() -> list[str]:
    """This machine's in its network, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line, suppress(OSError):
        line.connect(("192.0.2.1", 9))
        return [line.getsockname()[0]]
    return []


def _free() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])
