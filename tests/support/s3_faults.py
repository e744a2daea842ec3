"""A proxy between the functions and S3 that does to single requests what a bad day does: errors, silence, death.

Functions are pointed at it by their environment (`AWS_ENDPOINT_URL_S3`); it hands every request on as it came, Host
included, so that signatures stay valid, presigned URLs go through it too, and S3's own answers come back untouched.
"""

import http.client
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.waiting import eventually

HANGS_SECONDS = 60
"""The longest silence; every client has given up by then."""

ERRORS = {"500": (500, "InternalError"), "503": (503, "SlowDown")}
"""What S3 answers on a bad day, by the action that asks for it."""

KILLED_BEFORE, KILLED_AFTER, LOST, SILENT = "killed before", "killed after", "answer lost", "silent"
"""The caller is killed (kill -9) before its request reaches S3, or after S3 carried it out; S3 carries the request out
and its answer is lost; S3 takes the request and says nothing."""


@dataclass
class Fault:
    """What befalls the next `times` requests of `method` whose path and query are `there`."""

    method: str
    there: Callable[[str], bool]
    action: str
    """A key of `ERRORS`, or one of the constants above."""
    times: int
    due: Callable[[], bool] = lambda: True
    """When the caller is killed: it is kept waiting until then."""
    met: int = 0
    """How many requests it befell."""
    held: int = 0
    """How many of them are being kept waiting."""


class Injector:
    """The proxy, served from threads of this process for as long as the `with` block lasts."""

    def __init__(self) -> None:
        self.upstream = ""
        """Base URL of the S3 behind it: to be set before the first request."""
        self.written: list[tuple[str, str]] = []
        """Method and path, with the query, of all that changes something, in the order of arrival."""
        self.over: list[str] = []
        """The paths of requests that are over: S3 has answered, or a fault has had its way."""
        self.under_way: list[str] = []
        """The paths of the others."""
        self._faults: list[Fault] = []
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.injector = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_over(self, there: str) -> bool:
        """Whether there was a request for a path with this regular expression in it, and all of them are over."""
        over, under_way = list(self.over), list(self.under_way)
        return any(re.search(there, path) for path in over) and not any(re.search(there, path) for path in under_way)

    @contextmanager
    def injecting(self, fault: Fault) -> Iterator[Fault]:
        """The fault is in force inside the `with` block."""
        with self._guard:
            self._faults.append(fault)
        try:
            yield fault
        finally:
            with self._guard:
                self._faults.remove(fault)

    def befalls(self, method: str, path: str) -> Fault | None:
        """The fault that is due for this request, which is counted."""
        with self._guard:
            if method not in ("GET", "HEAD"):
                self.written.append((method, path))
            due = (f for f in self._faults if f.met < f.times and f.method == method and f.there(path))
            fault = next(due, None)
            if fault:
                fault.met += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    injector: Injector

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that is gone was killed here, or gave up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        injector = self.server.injector
        injector.under_way.append(self.path)
        try:
            self._meet(injector.befalls(self.command, self.path), body)
        finally:
            injector.over.append(self.path)
            injector.under_way.remove(self.path)

    def _meet(self, fault: Fault | None, body: bytes) -> None:
        if fault is None:
            return self._give(*self._forwarded(body))
        if fault.action in ERRORS:
            return self._refuse(*ERRORS[fault.action])
        self.close_connection = True
        if fault.action == SILENT:
            return self._hold(fault)
        if fault.action == LOST:
            self._forwarded(body)
            return None
        caller = owner(self.client_address[1], self.server.server_address[1])  # now: it may hang up before it is due
        if fault.action == KILLED_AFTER:
            self._forwarded(body)
        eventually(fault.due)
        os.kill(caller, signal.SIGKILL)
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.server.injector.upstream).netloc, timeout=HANGS_SECONDS)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            upstream.close()

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self._give(status, [("Content-Type", "application/xml")], body)

    def _give(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = {name.lower(): value for name, value in headers}.get("content-length", "0")
        self.send_header("Content-Length", told if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hold(self, fault: Fault) -> None:
        """Nothing is said until the caller hangs up."""
        fault.held += 1
        select.select([self.connection], [], [], HANGS_SECONDS)
        fault.held -= 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Says nothing: `written` and the faults tell what came."""


class Line:
    """The way to a server on loopback, relayed by threads here. While it is cut, connections are refused."""

    def __init__(self, to: str) -> None:
        self._to = urlsplit(to)
        self._server = self._listening(0)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nobody listens inside the `with` block."""
        port = self._server.server_address[1]
        self.close()
        yield
        self._server = self._listening(port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _listening(self, port: int) -> ThreadingTCPServer:
        upstream = (self._to.hostname, self._to.port)

        class Caller(BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(upstream) as other:
                    back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
                    back.start()
                    _pump(self.request, other)
                    back.join()

        server = _Lines(("127.0.0.1", port), Caller)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


class _Lines(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One of the two has hung up."""


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass  # hung up without a word: so does the other side now
    finally:
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def owner(port: int, to: int) -> int:
    """The process that holds the client's end of the connection from `port` to `to`. Raises `LookupError`.

    A process that made itself undumpable, as RunClaude's does, shows its files to the superuser alone.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [f"0100007F:{end:04X}" for end in (port, to)]  # a port alone can lead to several places at once
    wanted = {f"socket:[{row[9]}]" for row in rows if row[1:3] == ends}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted & {str(file.readlink()) for file in (process / "fd").iterdir()}:
                return int(process.name)
        except OSError:
            continue  # gone, or not ours to look into
    raise LookupError(f"no process of ours holds port {port}")
