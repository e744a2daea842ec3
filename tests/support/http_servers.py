"""Small HTTP servers on loopback, in the place of a foreign service."""

import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Answering(BaseHTTPRequestHandler):
    """The service's side of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def received(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers["content-length"]))

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS) -> None:
        """All of an answer."""
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    request_queue_size = 64  # of thirty at once, 5 (the default) drop some, whose SYNs go again after 1, 3, 7, 15 s
    daemon_threads = True  # connections that a test leaves open do not hold up its end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error, nor one that gave up its TLS."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


@contextmanager
def listening(handler: type[Answering], **attributes: object) -> Iterator[str]:
    """The URL at which a server answers as the handler does, which gets the attributes."""
    with Server(("127.0.0.1", 0), type("Bound", (handler,), attributes)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
