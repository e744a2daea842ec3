"""The console, served from threads of this process on loopback, and nowhere else."""

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from claude_workflow.console.app import Behind, application
from claude_workflow.console.guard import Guard, Keys
from claude_workflow.local.gateway import STRANGERS
from claude_workflow.local.http1 import HEAD_SECONDS

ADDRESS = "127.0.0.1"

PENDING = 128
"""Connections that are accepted at a time, each of which takes a file before it can be told that there is no room."""


class Connection(H11Protocol):
    """One on which nobody has shown the cookie is a stranger's: it ends when its time is over, or where there are more
    than `STRANGERS` and it came first. A service that runs in this process has files to open, too."""

    known = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A stranger comes; the one that came first may have to make room."""
        super().connection_made(transport)
        self.began = self.loop.time()
        self.loop.call_later(self.timeout_keep_alive, self.leave)
        strangers = [one for one in self.connections if isinstance(one, Connection) and one.strange]
        if len(strangers) > STRANGERS:
            min(strangers, key=lambda one: one.began).leave()

    def handle_events(self) -> None:
        """Looks at each head whether the cookie is in it."""
        super().handle_events()
        guard = self.config.app
        assert isinstance(guard, Guard)
        self.known = self.known or (self.scope is not None and guard.knows(self.headers))

    @property
    def strange(self) -> bool:
        """Whether it may be sent away."""
        return not self.known and not self.transport.is_closing()

    def leave(self) -> None:
        """Ends it, where it is a stranger's, whatever it has still to be sent."""
        if self.strange:
            self.transport.abort()


def named(port: int) -> str:
    """Where it listens, as a browser says it: without the port that is HTTP's own."""
    return ADDRESS if port == http.client.HTTP_PORT else f"{ADDRESS}:{port}"


@contextmanager
def serving(behind: Behind, port: int = 0, silent_seconds: int = HEAD_SECONDS) -> Iterator[str]:
    """Serves until the way out; yields the link that opens it. Port 0 is a free one; `OSError` where it is taken.

    `silent_seconds` is how long a connection may last without the cookie, and be silent with it.
    """
    keys = Keys()
    with socket.create_server((ADDRESS, port)) as listener:
        host = named(listener.getsockname()[1])
        app = application(behind, keys, host)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
            backlog=PENDING,
            timeout_keep_alive=silent_seconds,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}/?secret={keys.secret}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(5)
