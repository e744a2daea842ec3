"""The loopback proxy that lends the agent the deployment's credentials without showing them.

The agent talks to `http://127.0.0.1:PORT/NAME/…` with a token that is drawn for the run. The proxy, a thread of the
handler's process, replaces the token by the real credential of the upstream NAME and streams the answer back as it
comes. It ends with the run. If the agent hangs up, the call upstream is dropped at once: nobody pays for the rest.

Where the agent has a network of its own, the proxy listens in there (`lambdas.agent.network`), and nowhere else.

**Waiting out.** Once the model has answered, the run has cost money, and a hiccup of the provider must not end it: a
429, a 5xx or no answer at all is then not handed on, but the same request is sent again, for as long as the agent
waits. It sees a slow answer (CLI 2.1.330 waits 360 s for its headers, longer than any run), and is interrupted at the
run's deadline. Before the first answer a refusal is the agent's, and so the caller's; where the run goes on after an
earlier attempt, that one was answered, and paid for.

**The model's answers are read as they pass**, by the meter, which also decides whether a call is passed on at all
(`lambdas.agent.meter`), and by the witness, who knows what was said (`lambdas.agent.witness`). Both have heard a piece
before the agent gets it.
"""

import base64
import hmac
import http.client
import random
import re
import secrets
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from email.message import Message
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import certifi

from lambdas.agent.approvals import Approvals
from lambdas.agent.gate import Gate
from lambdas.agent.launch import BACKLOG
from lambdas.agent.listener import Listener, hang_up, wait
from lambdas.agent.messages import Call
from lambdas.agent.meter import Charge, Meter
from lambdas.agent.network import PORT, Handoff
from lambdas.agent.reach import ANYTHING, Reach
from lambdas.agent.restored import Restored
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import BODY_BYTES, MODEL, Sent, Upstream
from lambdas.agent.witness import Witness
from lambdas.pricing import Prices

BODIES_BYTES = 2 * BODY_BYTES
"""How much of requests is in memory at a time; others wait before they are read."""

REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

HEADERS_SECONDS = 120.0
"""How long an upstream may be silent before its answer begins: a long prompt takes a while, and is paid for. A stream
that falls silent later is the CLI's to end."""

LOOK_SECONDS = 0.01
"""How often an answer that waits for the session looks whether that is in place."""

WAIT_SECONDS = 10.0
"""The longest pause between two tries, where the model names none in Retry-After."""


class Proxy:
    """The proxy of one run, listening on a free loopback port while the `with` block lasts.

    Entering reads the secret of each upstream that is needed, and raises ModelUnauthorized if one is unset, or what
    reading it raises.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        prices: Prices | None = None,
        *,
        paid: bool = False,
        approvals: Approvals | None = None,
        reach: Reach = ANYTHING,
        tunnels: Tunnels | None = None,
        inside: bool = False,
        restored: Restored | None = None,
    ) -> None:
        """`paid`: whether the run has cost something before, in an earlier attempt. `approvals`: what of its tool calls
        is asked for; None: nothing. `reach`: what its calls of the model may ask for. `tunnels`: the way to other
        hosts; None: there is none, and none is led there. `inside`: whether it listens in networks of the agent's own
        alone (`expect`). `restored`: done when the session is in place, or failed; None: it is."""
        self._upstreams = tuple(upstreams)
        self._token = f"run-{secrets.token_urlsafe(32)}"
        self._open: set[socket.socket] = set()
        self._idle: list[http.client.HTTPConnection] = []
        self._guard = threading.Lock()
        self._inside = inside
        self._handoffs: list[Handoff] = []
        self._listeners: list[Listener] = []
        self._threads: list[threading.Thread] = []
        self._bodies = _Room(BODIES_BYTES)
        self.meter = Meter(prices)
        self.witness = Witness(self.meter)
        self.approvals = approvals
        if approvals:
            self.witness.deferred = lambda: approvals.pending is not None
        self.gate = Gate()
        self.reach = reach
        self.tunnels = tunnels or Tunnels()
        self._led_out = tunnels is not None
        self._paid = paid
        self.answers = 0
        """How many answers of the model have begun, that is, how many are paid for."""
        self.retry_after: int | None = None
        """What the model's last refusal (429 or 529) asked to wait, in seconds; None if there was none."""
        self._shut = False
        self.restored = restored or Restored.before({})
        """Done when the session is in place: before, no answer of the model's goes through to the agent."""
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        for upstream in self._upstreams:
            if upstream.needed:
                upstream.credential.headers("POST", upstream.base_url, b"")
        self.port = PORT
        if not self._inside:
            listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
            self.port = listening.getsockname()[1]
            self._beside(lambda: self._serve(listening))
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._token = ""
        self.release()
        for handoff in self._handoffs:
            handoff.close()
        with self._guard:
            listeners = self._listeners.copy()
        for listener in listeners:
            listener.shutdown()
        for thread in self._threads:
            thread.join()
        with self._guard:
            for connection in self._open:
                hang_up(connection)
            for idle in self._idle:
                idle.close()

    def expect(self, folder: Path) -> None:
        """Listen also where the next program listens that is started in a network of its own: it hands that over in
        `folder`."""
        handoff = Handoff(folder)
        self._handoffs.append(handoff)

        def serve() -> None:
            if listening := handoff.taken():
                self._serve(listening)

        self._beside(serve)

    def _beside(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()

    def _serve(self, listening: socket.socket) -> None:
        """Serve who connects there, until the proxy ends."""
        with Listener(listening, self) as listener:
            with self._guard:
                if not self._token:
                    return
                self._listeners.append(listener)
            listener.serve_forever(poll_interval=0.005)

    @property
    def token(self) -> str:
        """The run's, which is worth nothing after it."""
        return self._token

    @property
    def environment(self) -> dict[str, str]:
        """What the agent needs to reach all upstreams. The token is worth nothing after the run."""
        ways = self.tunnels.environment(self._login) if self._led_out else {}
        return ways | {
            name: self._filled(form, upstream)
            for upstream in self._upstreams
            for name, form in upstream.environment.items()
        }

    @property
    def files(self) -> dict[str, str]:
        """What is to be in the agent's home for the same, by paths there."""
        return {name: self._filled(form, each) for each in self._upstreams for name, form in each.files.items()}

    @property
    def git(self) -> list[tuple[str, str]]:
        """What the agent's git needs to reach all upstreams: names and values of its configuration."""
        filled = (
            (self._filled(name, upstream), self._filled(form, upstream))
            for upstream in self._upstreams
            for name, form in upstream.git
        )
        return list(dict.fromkeys(filled))

    def _filled(self, form: str, upstream: Upstream) -> str:
        url, login = (f"{base}/{upstream.name}" for base in (self.url, self._login))
        return form.format(url=url, bare=url.removeprefix("http:"), login=login, token=self._token)

    @property
    def _login(self) -> str:
        """The proxy's address, for clients that take a user and a password there."""
        return f"http://run:{self._token}@127.0.0.1:{self.port}"

    def accepts(self, headers: Message) -> bool:
        """Whether the run's token is in one of the headers where clients put keys."""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        keys = (headers.get(name, "") for name in ("x-api-key", "apikey", "private-token"))
        return self._has_token(*keys, bearer, _password(headers.get("authorization", "")))

    def accepts_tunnel(self, headers: Message) -> bool:
        """Whether it is where clients of a proxy put their password."""
        return self._has_token(_password(headers.get("proxy-authorization", "")))

    def _has_token(self, *given: str) -> bool:
        token = self._token.encode()
        return bool(token) and any(hmac.compare_digest(key.encode("latin-1", "replace"), token) for key in given)

    def route(self, method: str, path: str) -> tuple[Upstream, str] | str:
        """Where a request goes: the upstream and the path there, with its query. Or why it is to be refused."""
        why = Upstream.elsewhere
        for upstream in self._upstreams:
            below = path.removeprefix(f"/{upstream.name}")
            if below != path and (not below or below.startswith("/")):
                if upstream.takes(method, below):
                    return upstream, below
                why = upstream.elsewhere
        return why

    def places(self, upstream: Upstream) -> dict[str, str]:
        """The addresses that an upstream's answers lead to, and where they are on the proxy, for clients that take a
        user and a password there."""
        known = {upstream.base_url: upstream.name, **upstream.leads}
        return {f"{base}/": f"{self._login}/{name}/" for base, name in known.items()}

    def hold(self) -> None:
        """Let nothing more of any answer through to the agent, until `release`; the answers wait, they do not break."""
        self._flowing.clear()

    def release(self) -> None:
        """Let the answers through."""
        self._flowing.set()

    def flow(self) -> None:
        """Return when answers may go through."""
        self._flowing.wait()

    def await_session(self, client: socket.socket) -> None:
        """Return when the session is in place. Raises ConnectionAbortedError where it could not be restored, and as
        soon as the agent hangs up."""
        while not self.restored.done():
            wait(client, LOOK_SECONDS)
        if not self.restored.in_place:
            raise ConnectionAbortedError("there is no session to work on")

    def shut(self) -> None:
        """Pass no further call on: it waits until the agent hangs up, or the proxy ends. What is under way goes on."""
        self._shut = True

    def pass_gate(self, call: Call, body: bytes, client: socket.socket) -> None:
        """Return when a call of the model may go on; where it may not, raise when the agent hangs up."""
        if not self.gate.admits(call, body):
            wait(client)

    @contextmanager
    def answer(
        self, upstream: Upstream, request: Sent, client: socket.socket, charge: Charge | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The upstream's answer, its body still to be read. What can be waited out, is.

        The call is dropped as soon as `client` hangs up. Raises OSError or HTTPException if there is no answer.
        """
        pause = 0.5
        while True:
            if self._shut:
                wait(client)
            if charge:
                self.pass_gate(charge.call, request.body, client)
            with ExitStack() as call:
                response = self._response(call, upstream, request, client, charge)
                if response is not None:
                    self._note(charge, response)
                    if not self._waits_out(upstream, response.status):
                        yield response
                        return
            asked = _retry_after(response) if response is not None else None
            wait(client, pause * random.uniform(0.5, 1) if asked is None else asked)
            pause = min(2 * pause, WAIT_SECONDS)

    def _response(
        self, call: ExitStack, upstream: Upstream, request: Sent, client: socket.socket, charge: Charge | None
    ) -> http.client.HTTPResponse | None:
        """The answer, held open by `call`; None if there was none and that is to be waited out."""
        try:
            return self._authorized(call, upstream, request, client, charge)
        except (OSError, http.client.HTTPException):
            if charge:
                self.witness.stumbled(None)
            if not self._waits_out(upstream, HTTPStatus.BAD_GATEWAY):
                raise
            return None

    def _authorized(
        self, call: ExitStack, upstream: Upstream, request: Sent, client: socket.socket, charge: Charge | None
    ) -> http.client.HTTPResponse:
        """The answer; a refused credential is renewed and tried once more."""
        with ExitStack() as first:
            used, response = first.enter_context(self._call(upstream, request, client, charge))
            if response.status not in REFUSED or not upstream.credential.renew(used, response):
                call.push(first.pop_all())
                return response
            response.read()
        return call.enter_context(self._call(upstream, request, client, charge))[1]

    def _waits_out(self, upstream: Upstream, status: int) -> bool:
        paid = self._paid or self.answers > 0
        return upstream.name == MODEL and paid and (status == 429 or status >= 500)

    @contextmanager
    def _call(
        self, upstream: Upstream, request: Sent, client: socket.socket, charge: Charge | None
    ) -> Iterator[tuple[dict[str, str], http.client.HTTPResponse]]:
        added = upstream.credential.headers(request.method, upstream.base_url + request.path, request.body)
        connection = self._connection(upstream.base_url)
        line = connection.sock
        try:
            with self.held(line), _watch(client, line):
                prefix = urlsplit(upstream.base_url).path
                connection.putrequest(request.method, prefix + request.path, skip_accept_encoding=True)
                kept = (header for header in request.headers if header[0].lower() not in added)
                for name, value in (*kept, *added.items(), ("content-length", str(len(request.body)))):
                    connection.putheader(name, value)
                line.settimeout(HEADERS_SECONDS)
                if charge:
                    charge.sent()
                connection.endheaders(request.body)
                if charge:
                    self.restored.begin()
                response = connection.getresponse()
                if charge:
                    charge.answered(response.status, _request_id(response))
                if line.fileno() >= 0:  # an answer without a body may have closed it
                    line.settimeout(None)
                yield added, response
        except BaseException:
            connection.close()
            raise
        with self._guard:
            if self._token and response.isclosed() and not response.will_close:
                self._idle.append(connection)
            else:  # also where the proxy has ended meanwhile: nobody would close it any more
                connection.close()

    def _connection(self, base_url: str) -> http.client.HTTPConnection:
        """An idle connection that the other side has not closed, or a new one."""
        target = urlsplit(base_url)
        with self._guard:
            fit = [c for c in self._idle if (c.host, c.port) == (target.hostname, target.port or c.default_port)]
            for idle in fit:
                self._idle.remove(idle)
                if not select.select([idle.sock], [], [], 0)[0]:
                    return idle
                idle.close()
        address = (str(target.hostname), target.port)
        if target.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(*address, timeout=10, context=_tls())
        else:
            connection = http.client.HTTPConnection(*address, timeout=10)
        connection.connect()
        return connection

    @contextmanager
    def held(self, connection: socket.socket) -> Iterator[None]:
        """While a connection is held here, the end of the proxy ends it."""
        with self._guard:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._guard:
                self._open.discard(connection)

    def _note(self, charge: Charge | None, response: http.client.HTTPResponse) -> None:
        if charge is None:
            return
        if response.status < 400:
            self.answers += 1
            self.witness.began(charge.answer)
        else:
            self.witness.stumbled(response.status)
        if response.status in (429, 529):
            self.retry_after = _retry_after(response)

    def room(self, size: int) -> AbstractContextManager[None]:
        """Room for a request's body while the `with` block lasts."""
        return self._bodies.taken(size)


class _Room:
    """So many bytes of memory; who wants more than there are waits."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: size <= self._left)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


@contextmanager
def _watch(client: socket.socket, upstream: socket.socket) -> Iterator[None]:
    """While this lasts, `upstream` is hung up as soon as `client` is: a call nobody waits for is not paid for."""
    done, stop = socket.socketpair()

    def wait() -> None:
        ready = select.select([client, done], [], [])[0]
        with suppress(ConnectionError):
            if client in ready and client.recv(1, socket.MSG_PEEK):
                return  # the next request already: it is there, after all
        if done not in ready:
            hang_up(upstream)

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.close()
        watcher.join()
        done.close()


def _password(header: str) -> str:
    """That of a header as RFC 7617 has it; nothing where it is none."""
    scheme, _, pair = header.partition(" ")
    with suppress(ValueError):
        if scheme.lower() == "basic":
            return base64.b64decode(pair, validate=True).decode("latin-1").partition(":")[2]
    return ""


def _request_id(response: http.client.HTTPResponse) -> str | None:
    """The provider's own name for the call: Anthropic's, or Bedrock's."""
    names = (response.headers.get(name) for name in ("request-id", "x-amzn-requestid"))
    return next((name[:100] for name in names if name), None)


def _retry_after(response: http.client.HTTPResponse) -> int | None:
    """What a refusal asks to wait, in seconds."""
    seconds = response.headers.get("retry-after", "")
    return int(seconds) if re.fullmatch(r"\d{1,6}", seconds) else None


@cache
def _tls() -> ssl.SSLContext:
    """One for the life of the process: loading the certificates takes 40 ms."""
    return ssl.create_default_context(cafile=certifi.where())
