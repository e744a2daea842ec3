"""A slow network before a fast server: a proxy that gives S3 on loopback the bandwidth and latency of a Lambda's.

It forwards HTTP/1.1 between one client connection and one server connection each, and changes nothing but the time:
each request waits `latency` seconds, and all bodies of one direction together pass at `mbit` megabits a second. Every
exchange is written down, so that requests and bytes are counted where they pass.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, Self

PIECE = 256 * 1024
SLACK_SECONDS = 0.004
"""How far a body may be ahead of its bandwidth before it waits: sleeps are good to a millisecond or two."""


class Exchange(NamedTuple):
    """One request with its answer."""

    start: float
    """Monotonic seconds at which the request's head was there."""
    end: float
    """When the last byte of the answer was handed on."""
    method: str
    target: str
    """Path and query."""
    status: int
    up: int
    """Bytes of the request's body."""
    down: int
    """Bytes of the answer's body."""


class _Lane:
    """One direction of the network, shared by all connections."""

    def __init__(self, mbit: float) -> None:
        self._rate = mbit * 1e6 / 8
        self._free = 0.0

    async def pass_on(self, size: int) -> None:
        now = time.monotonic()
        self._free = max(self._free, now - SLACK_SECONDS) + size / self._rate
        if self._free - now > SLACK_SECONDS:
            await asyncio.sleep(self._free - now)


class _Ends(NamedTuple):
    client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    server: asyncio.StreamReader
    to_server: asyncio.StreamWriter


class _Head(NamedTuple):
    first: str
    headers: Mapping[str, str]
    """By lower-case names."""
    raw: bytes


class Limiter:
    """A context manager; `url` is where it listens, on a free loopback port, in a thread of its own."""

    def __init__(self, upstream: str, *, mbit: float, latency: float) -> None:
        """`upstream` is a `host:port`; `latency` in seconds."""
        self._upstream = upstream.split(":")
        self._latency = latency
        self._up, self._down = _Lane(mbit), _Lane(mbit)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._log: list[Exchange] = []
        self._under_way = 0

    @property
    def log(self) -> list[Exchange]:
        """All exchanges so far, in the order in which they ended; those under way are waited for."""
        asyncio.run_coroutine_threadsafe(self._settled(), self._loop).result()
        return self._log

    async def _settled(self) -> None:
        while self._under_way:
            await asyncio.sleep(0.001)

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2 * PIECE)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.url = f"http://{self.address}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        # Whoever hangs up, or is hung up on at the end, ends the connection on the other side too.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            server, to_server = await asyncio.open_connection(*self._upstream, limit=2 * PIECE)
            try:
                while await self._exchange(_Ends(client, to_client, server, to_server)):
                    pass
            finally:
                to_server.close()
        to_client.close()

    async def _exchange(self, ends: _Ends) -> bool:
        """One request and its answer; whether the connection stays open."""
        asked = await _head(ends.client)
        self._under_way += 1
        try:
            return await self._answered(asked, ends)
        finally:
            self._under_way -= 1

    async def _answered(self, asked: _Head, ends: _Ends) -> bool:
        start = time.monotonic()
        await asyncio.sleep(self._latency)
        raw = asked.raw
        if "expect" in asked.headers:
            ends.to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            lines = (line for line in raw.split(b"\r\n") if not line.lower().startswith(b"expect:"))
            raw = b"\r\n".join(lines)
        ends.to_server.write(raw)
        up = await _body(ends.client, ends.to_server, asked, self._up, empty="content-length" not in asked.headers)
        answered = await _head(ends.server)
        ends.to_client.write(answered.raw)
        method, target, _ = asked.first.split(" ", 2)
        status = int(answered.first.split(" ", 2)[1])
        bodiless = method == "HEAD" or status in (204, 304)
        down = await _body(ends.server, ends.to_client, answered, self._down, empty=bodiless)
        self._log.append(Exchange(start, time.monotonic(), method, target, status, up, down))
        return "close" not in (asked.headers.get("connection"), answered.headers.get("connection"))


async def _head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
    split = (line.split(":", 1) for line in lines)
    return _Head(first, {name.strip().lower(): value.strip().lower() for name, value in split}, raw)


async def _body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: _Head, lane: _Lane, *, empty: bool
) -> int:
    """Hands a body on, as it is framed; its bytes."""
    size = 0
    if head.headers.get("transfer-encoding") == "chunked":
        while length := int((line := await reader.readline()).split(b";")[0], 16):
            writer.write(line)
            size += await _pass(reader, writer, length, lane)
            writer.write(await reader.readline())
        writer.write(line + await reader.readline())
    elif not empty:
        size = await _pass(reader, writer, int(head.headers["content-length"]), lane)
    await writer.drain()
    return size


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, lane: _Lane) -> int:
    left = size
    while left:
        piece = await reader.read(min(PIECE, left))
        if not piece:
            raise ConnectionResetError
        await lane.pass_on(len(piece))
        writer.write(piece)
        await writer.drain()
        left -= len(piece)
    return size
