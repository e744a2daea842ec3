"""The loopback proxy that lends the agent the deployment's credentials without showing them.

The agent talks to `http://127.0.0.1:PORT/NAME/…` with a token that is drawn for the run. The proxy, a thread of the
handler's process, replaces the token by the real credential of the upstream NAME and streams the answer back as it
comes. It ends with the run. If the agent hangs up, the call upstream is dropped at once: nobody pays for the rest.

**Waiting out.** Once the model has answered, the run has cost money, and a hiccup of the provider must not end it: a
429, a 5xx or no answer at all is then not handed on, but the same request is sent again, for as long as the agent
waits. It sees a slow answer (CLI 2.1.330 waits 360 s for its headers, longer than any run), and is interrupted at the
run's deadline. Before the first answer a refusal is the agent's, and so the caller's; where the run goes on after an
earlier attempt, that one was answered, and paid for.

**The model's answers are read as they pass**, by the meter, which also decides whether a call is passed on at all
(`lambdas.agent.meter`), and by the witness, who knows what was said (`lambdas.agent.witness`). Both have heard a piece
before the agent gets it.
"""

import hmac
import http.client
import http.server
import json
import random
import re
import secrets
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cache
from http import HTTPStatus
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import certifi

from lambdas.agent import approvals
from lambdas.agent import body as bodies
from lambdas.agent.approvals import Approvals
from lambdas.agent.gate import Gate
from lambdas.agent.messages import Call, Reader, Unreadable, reader
from lambdas.agent.meter import Charge, LimitMet, Meter
from lambdas.agent.witness import Witness
from lambdas.errors import ModelUnauthorized, StorageUnavailable
from lambdas.pricing import Prices, Unpriced

BODY_BYTES = 64 * 1024 * 1024
"""Largest request; the Messages API takes 32 MB."""

BODIES_BYTES = 2 * BODY_BYTES
"""How much of requests is in memory at a time; others wait before they are read."""

REFUSAL_BYTES = 1024 * 1024
"""The longest refusal of the model's that is handed on."""

UNREAD_SECONDS = 1.0
"""How long a refused request may take to be sent to its end: who has not done so by then may miss the refusal."""

NOT_FORWARDED = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),  # hop by hop
    *("host", "content-length", "expect"),  # written anew
    "accept-encoding",  # an encoded answer could not be read as it passes
    *("authorization", "x-api-key", "apikey", "private-token", "cookie"),  # the run's token, replaced
}
NOT_RETURNED = {"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "set-cookie"}

SLY = re.compile(r"//|/\.\.?(/|$)|%2e|%2f|%5c|[\\\x00-\x1f]", re.IGNORECASE)
"""What makes a path mean another one to whoever reads it next."""

TOO_LARGE = "a request may have 64 MiB"

REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

MODEL = "model"
"""The name of the upstream that is the model."""

HEADERS_SECONDS = 120.0
"""How long an upstream may be silent before its answer begins: a long prompt takes a while, and is paid for. A stream
that falls silent later is the CLI's to end."""

WAIT_SECONDS = 10.0
"""The longest pause between two tries, where the model names none in Retry-After."""


class Secret:
    """A secret that is read when it is first needed, kept, and read again when it is refused. Thread-safe."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._value: str | None = None
        self._lock = threading.Lock()

    def current(self) -> str:
        """The secret. Raises ModelUnauthorized if it is empty, and whatever `read` raises."""
        with self._lock:
            if self._value is None:
                self._value = self._read().strip()
            if not self._value:
                self._value = None
                raise ModelUnauthorized(detail="the secret is empty")
            return self._value

    def renewed(self, refused: str) -> str | None:
        """The secret read again after `refused` was; None if it has not changed. Another thread may have been first."""
        with self._lock:
            if self._value == refused:
                self._value = None
        value = self.current()
        return value if value != refused else None


class Credential(Protocol):
    """What makes a request one of the deployment's."""

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:
        """The headers to add, in lower case. They replace the agent's own of the same name."""

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """After 401 or 403 for a request with these headers: whether there is another credential to try."""


@dataclass(frozen=True)
class Key(Credential):
    """A secret in headers, such as `{"x-api-key": "{}"}`, where `{}` stands for it."""

    secret: Secret
    forms: Mapping[str, str]

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:  # noqa: ARG002 - a signature needs them
        """The secret in its forms."""
        value = self.secret.current()
        return {name: form.replace("{}", value) for name, form in self.forms.items()}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """Whether the secret was changed since; only 401 says that it is a wrong one."""
        if refusal.status != HTTPStatus.UNAUTHORIZED:
            return False
        name, form = next(iter(self.forms.items()))
        before, _, after = form.partition("{}")
        return self.secret.renewed(used[name].removeprefix(before).removesuffix(after)) is not None


@dataclass(frozen=True)
class Reply:
    """An answer of the proxy's own, in the upstream's place."""

    status: HTTPStatus
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Anonymous(Credential):
    """None: of a service that asks for none."""

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:  # noqa: ARG002 - a signature needs them
        """Nothing is added."""
        return {}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:  # noqa: ARG002
        """There is no other."""
        return False


@dataclass(frozen=True)
class Upstream:
    """A service that the agent may use in the deployment's name. Of several with one name, a request is the first's
    that lets it through."""

    name: str
    """With what its paths on the proxy begin."""
    base_url: str
    credential: Credential
    requests: Sequence[re.Pattern[str]]
    """What is let through: `METHOD /path`, without the query, must match one of these as a whole."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the agent gets; `{url}` and `{token}` stand for the proxy's address of it and the run's token."""
    call: Callable[["Sent"], Call | None] = lambda _: None
    """Reads a request that costs money; None for another. Raises `Unreadable`."""
    reader: Callable[[str], Reader] = reader
    """What reads its answer, by the content type."""
    needed: bool = True
    """Whether a run cannot do without it, and so not without its secret."""
    with_query: bool = False
    """Whether `requests` are matched with the query."""
    sly: re.Pattern[str] = SLY
    """What no request may hold, whatever `requests` say."""
    headers: frozenset[str] | None = None
    """The agent's headers that are forwarded; None: all but `NOT_FORWARDED`."""
    streamed: bool = False
    """Whether a body may come in chunks, and have more than the proxy keeps, to be refused by `admits`."""
    admits: Callable[["Sent"], Reply | str | None] = lambda _: None
    """Reads a request that is let through by its path: what is wrong with it all the same, in words or as an answer of
    the upstream's kind, or None."""
    elsewhere: str = "not a request that this run may make"
    """Why another request is refused."""
    git: Sequence[tuple[str, str]] = ()
    """What the agent's git is configured with, in the same forms as `environment`."""

    def takes(self, method: str, path: str) -> bool:
        """Whether a request for this path, with its query, is let through."""
        asked = f"{method} {path if self.with_query else path.partition('?')[0]}"
        return not self.sly.search(asked) and any(allowed.fullmatch(asked) for allowed in self.requests)

    def forwards(self, header: str) -> bool:
        """Whether a header of the agent's, in lower case, is handed on."""
        return header not in NOT_FORWARDED if self.headers is None else header in self.headers


def anthropic(secret: Secret, base_url: str = "https://api.anthropic.com") -> Upstream:
    """The Messages API."""
    return Upstream(
        name=MODEL,
        base_url=base_url.rstrip("/"),
        credential=Key(secret, {"x-api-key": "{}"}),
        requests=(re.compile(r"POST /v1/messages(/count_tokens)?"),),
        environment={"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": "{token}"},
        call=_message,
    )


def _message(request: "Sent") -> Call | None:
    """Every request but the counting of tokens, which is free."""
    counts = request.path.partition("?")[0].endswith("/count_tokens")
    return None if counts else Call.of(request.body, request.named)


def supabase(secret: Secret, base_url: str) -> Upstream:
    """A Supabase project with its service key; its clients take the token for the key."""
    return Upstream(
        name="supabase",
        base_url=base_url.rstrip("/"),
        credential=Key(secret, {"apikey": "{}", "authorization": "Bearer {}"}),
        requests=(re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) /(rest|storage|functions|graphql)/v1(/.*)?"),),
        environment={"SUPABASE_URL": "{url}", "SUPABASE_KEY": "{token}"},
    )


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
    ) -> None:
        """`paid`: whether the run has cost something before, in an earlier attempt. `approvals`: what of its tool calls
        is asked for; None: nothing."""
        self._upstreams = tuple(upstreams)
        self._token = f"run-{secrets.token_urlsafe(32)}"
        self._open: set[socket.socket] = set()
        self._idle: list[http.client.HTTPConnection] = []
        self._guard = threading.Lock()
        self._bodies = _Room(BODIES_BYTES)
        self.meter = Meter(prices)
        self.witness = Witness(self.meter)
        self.approvals = approvals
        if approvals:
            self.witness.deferred = lambda: approvals.pending is not None
        self.gate = Gate()
        self._paid = paid
        self.answers = 0
        """How many answers of the model have begun, that is, how many are paid for."""
        self.retry_after: int | None = None
        """What the model's last refusal (429 or 529) asked to wait, in seconds; None if there was none."""
        self._shut = False
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        for upstream in self._upstreams:
            if upstream.needed:
                upstream.credential.headers("POST", upstream.base_url, b"")
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._token = ""
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        with self._guard:
            for connection in self._open:
                _hang_up(connection)
            for idle in self._idle:
                idle.close()

    @property
    def token(self) -> str:
        """The run's, which is worth nothing after it."""
        return self._token

    @property
    def environment(self) -> dict[str, str]:
        """What the agent needs to reach all upstreams. The token is worth nothing after the run."""
        return {
            name: self._filled(form, upstream)
            for upstream in self._upstreams
            for name, form in upstream.environment.items()
        }

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
        return form.format(url=f"{self.url}/{upstream.name}", token=self._token)

    def accepts(self, headers: Message) -> bool:
        """Whether the run's token is in one of the headers where clients put keys."""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        given = (*(headers.get(name, "") for name in ("x-api-key", "apikey", "private-token")), bearer)
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

    def hold(self) -> None:
        """Let nothing more of any answer through to the agent, until `release`; the answers wait, they do not break."""
        self._flowing.clear()

    def release(self) -> None:
        """Let the answers through."""
        self._flowing.set()

    def flow(self) -> None:
        """Return when answers may go through."""
        self._flowing.wait()

    def shut(self) -> None:
        """Pass no further call on: it waits until the agent hangs up, or the proxy ends. What is under way goes on."""
        self._shut = True

    def pass_gate(self, call: Call, body: bytes, client: socket.socket) -> None:
        """Return when a call of the model may go on; where it may not, raise when the agent hangs up."""
        if not self.gate.admits(call, body):
            _wait(client)

    @contextmanager
    def answer(
        self, upstream: Upstream, request: "Sent", client: socket.socket, charge: Charge | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The upstream's answer, its body still to be read. What can be waited out, is.

        The call is dropped as soon as `client` hangs up. Raises OSError or HTTPException if there is no answer.
        """
        pause = 0.5
        while True:
            if self._shut:
                _wait(client)
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
            _wait(client, pause * random.uniform(0.5, 1) if asked is None else asked)
            pause = min(2 * pause, WAIT_SECONDS)

    def _response(
        self, call: ExitStack, upstream: Upstream, request: "Sent", client: socket.socket, charge: Charge | None
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
        self, call: ExitStack, upstream: Upstream, request: "Sent", client: socket.socket, charge: Charge | None
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
        self, upstream: Upstream, request: "Sent", client: socket.socket, charge: Charge | None
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


@dataclass(frozen=True)
class Sent:
    """A request of the agent's, without what is not to be forwarded."""

    method: str
    path: str
    """Below the upstream's base URL, with the query."""
    headers: Sequence[tuple[str, str]]
    body: bytes
    cut: bool = False
    """Whether the body had more than the proxy keeps, which is gone: then it is not to be handed on."""

    @property
    def named(self) -> dict[str, str]:
        """The headers by their names in lower case; of several with one name the last."""
        return {name.lower(): value for name, value in self.headers}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection of the agent's."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # The agent may hang up whenever it likes; so may the proxy, at its end.
        with self.proxy.held(self.connection), suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: paths and keys do not belong into the function's log."""

    def _forward(self) -> None:
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
                return self._reply(wrong) if isinstance(wrong, Reply) else self._refuse(HTTPStatus.FORBIDDEN, wrong)
            if request.cut:
                return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
            return self._meter(upstream, request)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def _before_a_call(self, asked: Approvals) -> None:
        size = self._size()
        if size is None or size > approvals.ASK_BYTES:
            return self._turn_away(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much to decide")
        try:
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
        if call is None:
            return self._relay(upstream, request, None)
        proxy.pass_gate(call, request.body, self.connection)
        try:
            with proxy.meter.call(call, lambda: _wait(self.connection, 0)) as charge:
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
                self._localise(response, upstream)
                if charge is None:
                    self._stream(response)
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

    def _localise(self, response: http.client.HTTPResponse, upstream: Upstream) -> None:
        """Where the upstream leads elsewhere on itself, the agent is led there through the proxy."""
        place = response.headers.get("location", "")
        if place.startswith(f"{upstream.base_url}/"):
            here = f"{self.proxy.url}/{upstream.name}{place.removeprefix(upstream.base_url)}"
            response.headers.replace_header("location", here)

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
            self._stream(response, hear)
        finally:
            witness.ended(answer)

    def _stream(self, response: http.client.HTTPResponse, hear: Callable[[bytes], None] = lambda _: None) -> None:
        """Each piece as it comes. A body cut short is cut short here too: by not ending it."""
        chunked = response.length is None and not response.isclosed()
        self._begin(response, *(("transfer-encoding", "chunked") if chunked else ()))
        while piece := response.read1(65536):
            hear(piece)
            if response.length == 0:
                hear(b"")
            self.proxy.flow()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        if chunked:
            hear(b"")
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
        if self.headers.get("user-agent", "").startswith("git/"):  # it shows its user plain text, and nothing else
            return self._reply(Reply(status, "text/plain", f"{sentence}\n".encode()))
        body = json.dumps({"type": "error", "error": {"type": "proxy_error", "message": sentence}}).encode()
        return self._reply(Reply(status, "application/json", body))

    def _reply(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


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
            _hang_up(upstream)

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.close()
        watcher.join()
        done.close()


def _request_id(response: http.client.HTTPResponse) -> str | None:
    """The provider's own name for the call: Anthropic's, or Bedrock's."""
    names = (response.headers.get(name) for name in ("request-id", "x-amzn-requestid"))
    return next((name[:100] for name in names if name), None)


def _retry_after(response: http.client.HTTPResponse) -> int | None:
    """What a refusal asks to wait, in seconds."""
    seconds = response.headers.get("retry-after", "")
    return int(seconds) if re.fullmatch(r"\d{1,6}", seconds) else None


def _wait(client: socket.socket, seconds: float | None = None) -> None:
    """Raises ConnectionAbortedError as soon as the agent hangs up: it waits for nothing more."""
    if select.select([client], [], [], seconds)[0]:
        raise ConnectionAbortedError("the agent has hung up")


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS' own is not for use from another thread


@cache
def _tls() -> ssl.SSLContext:
    """One for the life of the process: loading the certificates takes 40 ms."""
    return ssl.create_default_context(cafile=certifi.where())
