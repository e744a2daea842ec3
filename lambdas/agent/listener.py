"""The agent's side of the proxy: its connections, and what becomes of a request on one."""

import http.client
import http.server
import json
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from lambdas.agent import approvals, registries, tunnel
from lambdas.agent import body as bodies
from lambdas.agent.approvals import Approvals
from lambdas.agent.hello import NoHello
from lambdas.agent.messages import Unreadable
from lambdas.agent.meter import Charge, LimitMet
from lambdas.agent.tunnel import NotAllowed
from lambdas.agent.upstream import BODY_BYTES, Reply, Sent, Upstream
from lambdas.archive.prefetch import Arriving
from lambdas.errors import ModelUnauthorized, StorageUnavailable
from lambdas.pricing import Unpriced

if TYPE_CHECKING:
    from lambdas.agent.proxy import Proxy

REFUSAL_BYTES = 1024 * 1024
"""The longest refusal of the model's that is handed on."""

UNREAD_SECONDS = 1.0
"""How long a refused request may take to be sent to its end: who has not done so by then may miss the refusal."""

NOT_RETURNED = {"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "set-cookie"}

NOT_PASSED_ON = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
"""How requests are refused that the run may not make; other answers of the proxy's own are failures."""

TOO_LARGE = "a request may have 64 MiB"


class Listener(http.server.ThreadingHTTPServer):
    """Serves who connects to a listening socket, for one proxy; a thread for each connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, proxy: "Proxy") -> None:
        handler = type("OfThisProxy", (Connection,), {"proxy": proxy})
        super().__init__(listening.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening


class Connection(http.server.BaseHTTPRequestHandler):
    """One connection of the agent's."""

    proxy: "Proxy"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # The agent may hang up whenever it likes; so may the proxy, at its end.
        with self.proxy.held(self.connection), suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: paths and keys do not belong into the function's log."""

    def _forward(self) -> None:
        if not self.path.startswith("/"):
            return self._turn_away(HTTPStatus.FORBIDDEN, "plain HTTP goes to no other host: use https")
        if not self.proxy.accepts(self.headers):
            return self._turn_away(HTTPStatus.FORBIDDEN, "the run's token is missing")
        if self.path == approvals.PATH and self.command == "POST" and self.proxy.approvals:
            return self._before_a_call(self.proxy.approvals)
        if isinstance(route := self.proxy.route(self.command, self.path), str):
            return self._turn_away(HTTPStatus.FORBIDDEN, route)
        upstream, path = route
        chunked = upstream.streamed and self._chunked
        size = BODY_BYTES if chunked else self._size()
        if size is None:
            return self._turn_away(HTTPStatus.BAD_REQUEST, "a request needs one content-length, and no other encoding")
        if size > BODY_BYTES and not upstream.streamed:
            return self._turn_away(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
        headers = [(name, value) for name, value in self.headers.items() if upstream.forwards(name.lower())]
        with self.proxy.room(min(size, BODY_BYTES)):
            pieces = bodies.chunked(self.rfile) if chunked else bodies.counted(self.rfile, size)
            request = Sent(self.command, path, headers, *bodies.kept(pieces, BODY_BYTES))
            if wrong := upstream.admits(request):
                if isinstance(wrong, str):
                    return self._refuse(HTTPStatus.FORBIDDEN, wrong)
                self._note(wrong.why)
                return self._reply(wrong)
            if request.cut:
                return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
            return self._meter(upstream, request)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def do_CONNECT(self) -> None:
        """A tunnel to another host, where the deployment has opened it."""
        if not self.proxy.accepts_tunnel(self.headers):
            return self._say(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, "the run's token is missing")
        try:
            with self.proxy.tunnels.opened(self.path) as (name, outside), self.proxy.held(outside):
                self._say(HTTPStatus.OK, "Connection established")
                self._tunnel(name, outside)
        except NotAllowed as why:
            self.proxy.meter.refused(f"CONNECT {self.path}", str(why))
            self._say(HTTPStatus.FORBIDDEN, str(why))
        except OSError as broken:
            self._say(HTTPStatus.BAD_GATEWAY, f"the host cannot be reached ({type(broken).__name__})")
        return None

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        """Answer a CONNECT: of that, clients show the first line alone."""
        self.send_response_only(status, sentence)
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            self.send_header("proxy-authenticate", 'Basic realm="the run"')
        if status == HTTPStatus.OK:
            self.close_connection = True  # at the tunnel's end
        else:  # who was asked for the token may ask again here
            self.send_header("content-length", "0")
        self.end_headers()

    def _tunnel(self, name: str, outside: socket.socket) -> None:
        try:
            outside.sendall(tunnel.greeted(self.connection, self.rfile, name))
            tunnel.carry(self.connection, self.rfile, outside)
        except NoHello as why:
            self.proxy.meter.refused(f"CONNECT {self.path}", str(why))
        except OSError:
            return  # either side has hung up

    def _before_a_call(self, asked: Approvals) -> None:
        size = self._size()
        if size is None or size > approvals.ASK_BYTES:
            return self._turn_away(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much to decide")
        try:
            with self.proxy.room(size):
                decision = asked.decide(self.rfile.read(size), self.proxy.witness)
        except (ValueError, StorageUnavailable) as wrong:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"nothing that can be decided: {type(wrong).__name__}")
        return self._reply(Reply(HTTPStatus.OK, "application/json", json.dumps(decision).encode()))

    @property
    def _chunked(self) -> bool:
        """Whether the body comes in chunks, and says nothing else of its length."""
        return self.headers.get_all("transfer-encoding") == ["chunked"] and "content-length" not in self.headers

    def _size(self) -> int | None:
        """The length of the body, if it is told in one way only."""
        lengths = self.headers.get_all("content-length", ["0"])
        plain = len(lengths) == 1 and re.fullmatch(r"[0-9]{1,12}", lengths[0].strip())
        return int(lengths[0]) if plain and "transfer-encoding" not in self.headers else None

    def _turn_away(self, status: HTTPStatus, sentence: str) -> None:
        """Refuse a request whose body is unread. It is thrown away: closing on it would take the refusal away, too."""
        self.close_connection = True
        self._refuse(status, sentence)
        until = time.monotonic() + UNREAD_SECONDS
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0 and select.select([self.connection], [], [], left)[0]:
                if not self.connection.recv(65536):
                    break

    def _meter(self, upstream: Upstream, request: Sent) -> None:
        """What costs money goes through the meter."""
        proxy = self.proxy
        try:
            call = upstream.call(request)
        except Unreadable as problem:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"not a request that can be metered: {problem}")
        if call and (wrong := proxy.reach.refusal(call)):
            if proxy.reach.owns(call):
                proxy.witness.refused(call.main, HTTPStatus.UNPROCESSABLE_ENTITY)
            return self._refuse(HTTPStatus.FORBIDDEN, wrong)
        if call is None or call.free:
            return self._relay(upstream, request, None)
        proxy.pass_gate(call, request.body, self.connection)
        try:
            with proxy.meter.call(call, lambda: wait(self.connection, 0)) as charge:
                self._relay(upstream, request, charge)
        except Unpriced as model:
            proxy.witness.refused(call.main, HTTPStatus.FORBIDDEN)
            self._refuse(HTTPStatus.FORBIDDEN, f"the model {model} has no price here, so it is not called")
        except LimitMet as limit:
            # 403: to Claude Code (2.1.332) nothing that it would try again, or mend.
            proxy.witness.refused(call.main, HTTPStatus.FORBIDDEN)
            self._refuse(HTTPStatus.FORBIDDEN, f"the limit of this run is met: {limit}")

    def _relay(self, upstream: Upstream, request: Sent, charge: Charge | None) -> None:
        begun = False
        try:
            with self.proxy.answer(upstream, request, self.connection, charge) as response:
                begun = True
                self._localise(response, upstream, request.path)
                if charge is None:
                    self._stream(response) if not self._links(response, upstream) else self._lead(response, upstream)
                elif response.status >= 400:
                    self._hand_on(response, charge)
                else:
                    self._listen(upstream, response, charge)
        except ModelUnauthorized:
            self._failed(charge, HTTPStatus.UNAUTHORIZED)
            # With 401, clients of other services, MCP among them, would try to log in somewhere.
            status = HTTPStatus.UNAUTHORIZED if upstream.needed else HTTPStatus.BAD_GATEWAY
            self._refuse(status, "the deployment's credential is unset")
        except (OSError, http.client.HTTPException) as broken:
            self.close_connection = True
            if not begun:
                self._failed(charge, None)
                self._refuse(HTTPStatus.BAD_GATEWAY, f"the upstream gave no answer ({type(broken).__name__})")

    def _localise(self, response: http.client.HTTPResponse, upstream: Upstream, path: str) -> None:
        """Where the upstream leads elsewhere on itself, the agent is led there through the proxy."""
        place = urljoin(f"{upstream.base_url}{path}", response.headers.get("location", ""))
        for base, name in ((upstream.base_url, upstream.name), *upstream.leads.items()):
            if "location" in response.headers and place.startswith(f"{base}/"):
                here = f"{self.proxy.url}/{name}{place.removeprefix(base)}"
                response.headers.replace_header("location", here)

    def _links(self, response: http.client.HTTPResponse, upstream: Upstream) -> bool:
        """Whether there are links in it that are to lead here."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        pages = response.status == HTTPStatus.OK and self.command == "GET"
        return bool(pages and upstream.linked and upstream.linked.fullmatch(kind))

    def _lead(self, response: http.client.HTTPResponse, upstream: Upstream) -> None:
        """Each piece as it comes, its links led here; so it has another length than was said."""
        del response.headers["content-length"]
        self._begin(response, "transfer-encoding", "chunked")
        places = {far.encode(): here.encode() for far, here in self.proxy.places(upstream).items()}
        for piece in registries.led(iter(lambda: response.read1(65536), b""), places):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        self.wfile.write(b"0\r\n\r\n")

    def _failed(self, charge: Charge | None, status: int | None) -> None:
        if charge:
            self.proxy.witness.refused(charge.call.main, status)

    def _hand_on(self, response: http.client.HTTPResponse, charge: Charge) -> None:
        """A refusal of the model's, as a whole."""
        body = response.read(REFUSAL_BYTES)
        poor = response.status == HTTPStatus.BAD_REQUEST and b"credit balance is too low" in body.lower()
        self._failed(charge, HTTPStatus.PAYMENT_REQUIRED if poor else response.status)
        self.close_connection = True
        self._begin(response, "connection", "close")
        self.wfile.write(body)

    def _listen(self, upstream: Upstream, response: http.client.HTTPResponse, charge: Charge) -> None:
        """An answer of the model's: meter and witness have heard of it what the agent gets."""
        answer, witness = charge.answer, self.proxy.witness
        read = upstream.reader(response.headers.get("content-type", ""))

        def hear(piece: bytes) -> None:
            for event in read(piece):
                answer.take(event)
                witness.heard(answer)
            if answer.whole:
                charge.settle()
                self.proxy.gate.answered(answer)

        try:
            self._stream(response, hear, held=not self.proxy.restored.in_place)
        finally:
            witness.ended(answer)

    def _stream(
        self,
        response: http.client.HTTPResponse,
        hear: Callable[[bytes], None] = lambda _: None,
        *,
        held: bool = False,
    ) -> None:
        """Each piece as it comes. A body cut short is cut short here too: by not ending it. Where it is `held`, it is
        heard as it comes, but nothing of it, nor that there is an answer, is given on before the session is in place:
        Claude Code (2.1.332) waits for headers longer than for the rest of a stream."""
        chunked = response.length is None and not response.isclosed()
        heard = _heard(response, hear, chunked)
        with ThreadPoolExecutor(1, "held") as beside:
            pieces = Arriving(beside, lambda: heard).read(0, sys.maxsize) if held else heard
            if held:
                self.proxy.await_session(self.connection)
            self._begin(response, *(("transfer-encoding", "chunked") if chunked else ()))
            for piece in pieces:
                self.proxy.flow()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _begin(self, response: http.client.HTTPResponse, *more: str) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers.items():
            if name.lower() not in NOT_RETURNED:
                self.send_header(name, value)
        if more:
            self.send_header(*more)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        if status in NOT_PASSED_ON:
            self._note(sentence)
        if self.headers.get("user-agent", "").startswith("git/"):  # it shows its user plain text, and nothing else
            return self._reply(Reply(status, "text/plain", f"{sentence}\n".encode()))
        body = json.dumps({"type": "error", "error": {"type": "proxy_error", "message": sentence}}).encode()
        return self._reply(Reply(status, "application/json", body))

    def _note(self, why: str) -> None:
        """For the run's record."""
        self.proxy.meter.refused(f"{self.command} {self.path.partition('?')[0]}", why)

    def _reply(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


def _heard(response: http.client.HTTPResponse, hear: Callable[[bytes], None], chunked: bool) -> Iterator[bytes]:
    """A body, as it comes. Raises IncompleteRead where it is cut short."""
    while piece := response.read1(65536):
        hear(piece)
        if response.length == 0:
            hear(b"")
        yield piece
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    if chunked:
        hear(b"")


def wait(client: socket.socket, seconds: float | None = None) -> None:
    """Raises ConnectionAbortedError as soon as the agent hangs up: it waits for nothing more."""
    if select.select([client], [], [], seconds)[0]:
        raise ConnectionAbortedError("the agent has hung up")


def hang_up(connection: socket.socket) -> None:
    """End a connection, also one that another thread waits on."""
    with suppress(OSError):  # it may be closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS' own is not for use from another thread
