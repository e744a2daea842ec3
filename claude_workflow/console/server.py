"""The console, served from threads of this process on loopback, and nowhere else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from claude_workflow.console.app import Behind, application
from claude_workflow.console.guard import Keys

ADDRESS = "127.0.0.1"


@contextmanager
def serving(behind: Behind, port: int = 0) -> Iterator[str]:
    """Serves until the way out; yields the link that opens it. Port 0 is a free one; `OSError` where it is taken."""
    keys = Keys()
    with socket.create_server((ADDRESS, port)) as listener:
        host = f"{ADDRESS}:{listener.getsockname()[1]}"
        app = application(behind, keys, host)
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
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
