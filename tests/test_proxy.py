"""The loopback proxy, over HTTP, between a client in the agent's place and a small real upstream."""

import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import pytest

from lambdas.agent import approvals, push
from lambdas.agent.approvals import Approvals
from lambdas.agent.credential import Secret
from lambdas.agent.messages import Answer, Call, Unreadable
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.restored import Restored
from lambdas.agent.upstream import BODY_BYTES, Sent, anthropic, supabase
from lambdas.errors import ModelUnauthorized, SessionDamaged
from lambdas.receipt import REFUSAL_CHARS
from tests.support.http_servers import Answering, listening
from tests.support.waiting import eventually

MESSAGES = "/model/v1/messages"
BODY = json.dumps({"model": "claude-opus-5-5", "max_tokens": 100, "messages": []}).encode()


@dataclass
class Service:
    """An upstream that knows its key, and does as the path or the header `act` says."""

    url: str = ""
    key: str = "sk-1"
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """What the next requests get, whatever they are: a status and headers."""
    hung_up: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


class Handler(Answering):
    """The service's side of one connection."""

    service: Service

    def do_POST(self) -> None:
        body = self.received()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.service.seen.append((self.command, self.path, headers, body))
        act = headers.get("act", "")
        if self.service.refusals:
            status, more = self.service.refusals.pop(0)
            self.answer(status, b"{}", more)
        elif self.service.key not in (headers.get("x-api-key"), headers.get("apikey")):
            self.answer(401, b'{"error": "key"}')
        elif act.startswith("status "):
            self.answer(int(act[7:]), b"{}", {"retry-after": "17", "request-id": "req_1"})
        elif act == "hold":
            self._until_gone()
        else:
            self._stream(act)

    do_GET = do_POST

    def _stream(self, act: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        if act == "slow":
            self.service.go_on.wait(60)
        if act == "hold on":
            return self._until_gone()
        if act == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")
        return None

    def _until_gone(self) -> None:
        if self.connection.recv(1) == b"":
            self.service.hung_up.set()
        self.close_connection = True


@pytest.fixture
def service() -> Iterator[Service]:
    """The upstream, running."""
    state = Service()
    with listening(Handler, service=state) as state.url:
        yield state
        state.go_on.set()


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    """The proxy before it, with the key that the service has just now."""
    with Proxy([anthropic(Secret(lambda: service.key), service.url)]) as running:
        yield running


@contextmanager
def asked(
    proxy: Proxy, method: str = "POST", path: str = MESSAGES, body: bytes = BODY, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """The proxy's answer to a request with the run's token, or with the headers given."""
    token = proxy.environment["ANTHROPIC_API_KEY"]
    connection = http.client.HTTPConnection(str(urlsplit(proxy.url).netloc), timeout=60)
    connection.request(method, path, body, {"x-api-key": token} | {n.replace("_", "-"): v for n, v in headers.items()})
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def test_the_key_replaces_the_token(service: Service, proxy: Proxy) -> None:
    """The service sees the key and the agent's other headers, path and body; of the token it sees nothing."""
    body = json.dumps({"model": "claude-opus-5-5", "messages": ["🦊" * 9000]}, ensure_ascii=False).encode()
    token = proxy.environment["ANTHROPIC_API_KEY"]
    more = {"authorization": f"Bearer {token}", "apikey": token, "cookie": token, "anthropic_beta": "b1"}
    with asked(proxy, path=MESSAGES + "?beta=true", body=body, **more) as response:
        assert (response.status, response.read()) == (200, b"firstsecond")
    method, path, headers, received = service.seen[0]
    assert (method, path, received) == ("POST", "/v1/messages?beta=true", body)
    assert (headers["x-api-key"], headers["anthropic-beta"]) == ("sk-1", "b1")
    assert proxy.environment["ANTHROPIC_API_KEY"] not in json.dumps(headers)
    assert "sk-1" not in json.dumps(proxy.environment)
    assert proxy.answers == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/messages"),
        ("GET", MESSAGES),
        ("POST", "/model/v1/models"),
        ("POST", "/model/v1/messages/../files"),
        ("POST", "/model/v1/messages/batches"),
        ("POST", "/model//v1/messages"),
        ("POST", "/model/%2e%2e/v1/messages"),
        ("POST", "http://example.com/model/v1/messages"),
        ("POST", "/"),
        ("DELETE", "/other/v1/messages"),
    ],
)
def test_other_requests_are_refused(method: str, path: str, service: Service, proxy: Proxy) -> None:
    """Only the Messages API's two paths are there."""
    with asked(proxy, method, path) as response:
        assert response.status == 403
    assert service.seen == []


@pytest.mark.parametrize("token", ["", "sk-1", "run-x", "ünï"])
def test_without_the_token_nothing_is_done(token: str, service: Service, proxy: Proxy) -> None:
    """Whoever else is on this machine gets nothing, the key itself is no token."""
    with asked(proxy, x_api_key=token) as response:
        assert response.status == 403
    assert service.seen == []


def test_tokens_are_of_one_run(service: Service, proxy: Proxy) -> None:
    """Another run's token opens nothing."""
    with Proxy([anthropic(Secret(lambda: "k"), service.url)]) as other:
        token = other.environment["ANTHROPIC_API_KEY"]
        with asked(proxy, x_api_key=token) as response:
            assert response.status == 403


def test_a_rotated_key_is_read_again(service: Service) -> None:
    """A refused key is read once more and the request repeated; the new one serves the next runs, too."""
    reads: list[str] = []

    def read() -> str:
        reads.append(service.key)
        return service.key

    secret = Secret(read)
    with Proxy([anthropic(secret, service.url)]) as proxy:
        with asked(proxy) as response:
            assert response.status == 200
        service.key = "sk-2"
        with asked(proxy) as response:
            assert response.status == 200
    with Proxy([anthropic(secret, service.url)]) as proxy, asked(proxy) as response:
        assert response.status == 200
    assert reads == ["sk-1", "sk-2"]
    assert [headers["x-api-key"] for _, _, headers, _ in service.seen] == ["sk-1", "sk-1", "sk-2", "sk-2"]


def test_a_bad_key_is_told_once_it_is_read_again(service: Service) -> None:
    """With nothing newer to try, the refusal goes to the agent after one request."""
    with Proxy([anthropic(Secret(lambda: "sk-old"), service.url)]) as proxy, asked(proxy) as response:
        assert (response.status, response.read()) == (401, b'{"error": "key"}')
    assert len(service.seen) == 1


def test_an_unset_secret_stops_the_run_before_it_begins(service: Service) -> None:
    """An empty secret is the deployment's mistake, and is called so."""
    with pytest.raises(ModelUnauthorized), Proxy([anthropic(Secret(lambda: " \n"), service.url)]):
        pass


def test_refusals_come_through_as_they_are(proxy: Proxy) -> None:
    """Status, retry-after and request-id reach the agent; what was asked to wait is noted for the caller."""
    with asked(proxy, act="status 429") as response:
        assert (response.status, response.headers["retry-after"], response.headers["request-id"]) == (
            429,
            "17",
            "req_1",
        )
    assert (proxy.retry_after, proxy.answers) == (17, 0)


def test_a_stream_is_not_held_back(service: Service, proxy: Proxy) -> None:
    """The first event is there before the second is made."""
    with asked(proxy, act="slow") as response:
        assert response.read(5) == b"first"
        service.go_on.set()
        assert response.read() == b"second"


def test_a_cut_stream_is_cut(proxy: Proxy) -> None:
    """What breaks off upstream does not look complete here."""
    with asked(proxy, act="cut") as response, pytest.raises(http.client.IncompleteRead):
        response.read()


@pytest.mark.parametrize("act", ["hold", "hold on"])
def test_hanging_up_ends_the_call_upstream(act: str, service: Service, proxy: Proxy) -> None:
    """Before the first byte of an answer or in its middle: what nobody waits for is not paid for."""
    token = proxy.environment["ANTHROPIC_API_KEY"]
    agent = socket.create_connection(("127.0.0.1", int(urlsplit(proxy.url).port or 0)))
    agent.sendall(
        f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\nact: {act}\r\nx-api-key: {token}\r\n".encode()
        + b"content-length: %d\r\n\r\n" % len(BODY)
        + BODY
    )
    assert eventually(lambda: service.seen)
    agent.close()
    assert service.hung_up.wait(60)


def test_the_end_of_the_run_ends_everything(service: Service) -> None:
    """Calls that still run are dropped, connections closed, and the port is free."""
    with Proxy([anthropic(Secret(lambda: service.key), service.url)]) as proxy:
        port = int(urlsplit(proxy.url).port or 0)
        token = proxy.environment["ANTHROPIC_API_KEY"]
        waiting = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        waiting.request("POST", MESSAGES, BODY, {"x-api-key": token, "act": "hold on"})
        response = waiting.getresponse()
        idle = socket.create_connection(("127.0.0.1", port))
        idle.settimeout(60)
        assert eventually(lambda: len(proxy._open) == 3)  # the call's two and this one
    assert service.hung_up.wait(60)
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    waiting.close()
    idle.close()


def test_nobody_upstream_is_a_502() -> None:
    """A refused connection is an answer that the agent's client may repeat."""
    with Proxy([anthropic(Secret(lambda: "k"), "http://127.0.0.1:1")]) as proxy, asked(proxy) as response:
        assert response.status == 502


def test_requests_in_parallel(service: Service, proxy: Proxy) -> None:
    """Sixteen at once, many times, each with its own answer."""

    def one(number: int) -> bytes:
        body = json.dumps({"model": "claude-opus-5-5", "messages": [number]}).encode()
        with asked(proxy, body=body) as response:
            return response.read()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(200)))
    assert answers == [b"firstsecond"] * 200
    assert sorted(json.loads(body)["messages"][0] for _, _, _, body in service.seen) == list(range(200))


def test_a_body_without_a_length_is_refused(service: Service, proxy: Proxy) -> None:
    """Chunked requests, which could be smuggled past the proxy's reading, are not taken."""
    with asked(proxy, transfer_encoding="chunked", body=b"0\r\n\r\n") as response:
        assert response.status == 400
    assert service.seen == []


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (chunked(b"one", b"two"), {"transfer-encoding": "chunked"}, 200),
        (b"3;x=y\r\none\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, None),
        (b"3\none\n0\n\n", {"transfer-encoding": "chunked"}, None),
        (b"+3\r\none\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, None),
        (b"4\r\none\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, None),
        (b"0\r\nx: y\r\n\r\n", {"transfer-encoding": "chunked"}, None),
        (chunked(b"onetwo"), {"transfer-encoding": "chunked", "content-length": "21"}, 400),
        (chunked(b"onetwo"), {"transfer-encoding": "gzip, chunked"}, 400),
        (chunked(b"onetwo"), {"transfer-encoding": "Chunked"}, 400),
        (chunked(bytes(BODY_BYTES), b"more"), {"transfer-encoding": "chunked"}, 413),
        (bytes(BODY_BYTES + 1), {"content-length": str(BODY_BYTES + 1)}, 413),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_chunks_are_read_in_one_way(body: bytes, headers: dict[str, str], status: int | None, service: Service) -> None:
    """Where an upstream takes them: it gets the body with its length; what is not plainly so ends the connection."""
    upstream = replace(anthropic(Secret(lambda: service.key), service.url), streamed=True, call=lambda _: None)
    with Proxy([upstream]) as proxy:
        lines = {"host": "x", "x-api-key": proxy.environment["ANTHROPIC_API_KEY"]} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.create_connection(("127.0.0.1", proxy.port)) as agent:
            agent.sendall(f"POST {MESSAGES} HTTP/1.1\r\n{head}\r\n".encode() + body)
            with agent.makefile("rb") as answer, suppress(ConnectionResetError):
                assert answer.readline()[9:12] == (b"%d" % status if status else b"")
    assert [received for *_, received in service.seen] == ([b"onetwo"] if status == 200 else [])


def test_supabase_is_one_more_upstream(service: Service) -> None:
    """Its clients get an address and the token for a key; the service sees the service key in both of its headers."""
    with Proxy([anthropic(Secret(lambda: "k"), service.url), supabase(Secret(lambda: "sk-1"), service.url)]) as proxy:
        given = proxy.environment
        assert given["SUPABASE_URL"] == f"{proxy.url}/supabase"
        bearer = f"Bearer {given['SUPABASE_KEY']}"
        with asked(proxy, "GET", "/supabase/rest/v1/t?id=eq.1", x_api_key="", authorization=bearer) as response:
            assert response.status == 200
        # What is allowed ends with any path: one that leads out of it to whoever reads it next is none.
        ways = (
            "auth/v1",
            "rest/v1/../../auth/v1",
            "rest/v1/%2e%2e/%2E%2E/auth/v1",
            "rest/v1//auth",
            "rest/v1/..%2fauth",
        )
        for way in ways:
            with asked(proxy, "GET", f"/supabase/{way}/admin/users", x_api_key="", authorization=bearer) as response:
                assert response.status == 403
    _, path, headers, _ = service.seen[0]
    assert (path, headers["apikey"], headers["authorization"]) == ("/rest/v1/t?id=eq.1", "sk-1", "Bearer sk-1")
    assert (proxy.answers, len(service.seen)) == (0, 1)


def begun(proxy: Proxy) -> None:
    """The run has had an answer, so it has cost money."""
    with asked(proxy) as response:
        response.read()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_what_comes_in_mid_run_is_waited_out(status: int, service: Service, proxy: Proxy) -> None:
    """The same request is sent again until the model answers; the agent sees the answer alone."""
    begun(proxy)
    service.refusals = [(status, {}), (status, {"retry-after": "1"})]
    began = time.monotonic()
    with asked(proxy, body=BODY) as response:
        assert (response.status, response.read()) == (200, b"firstsecond")
    assert time.monotonic() - began > 1
    assert [body for *_, body in service.seen[1:]] == [BODY] * 3
    assert proxy.answers == 2


@pytest.mark.parametrize("status", [429, 500, 529])
def test_what_comes_before_the_first_answer_is_the_agents(status: int, service: Service, proxy: Proxy) -> None:
    """Nothing was spent yet: the caller may come again."""
    with asked(proxy, act=f"status {status}") as response:
        assert response.status == status
    assert (len(service.seen), proxy.answers) == (1, 0)


def test_a_refusal_that_waiting_cannot_cure_is_the_agents(service: Service, proxy: Proxy) -> None:
    """In mid-run as before it."""
    begun(proxy)
    with asked(proxy, act="status 413") as response:
        assert response.status == 413
    assert len(service.seen) == 2


def test_only_the_model_is_waited_for(service: Service) -> None:
    """Another upstream's troubles are the tool's to judge."""
    upstreams = [anthropic(Secret(lambda: "sk-1"), service.url), supabase(Secret(lambda: "sk-1"), service.url)]
    with Proxy(upstreams) as proxy:
        begun(proxy)
        with asked(proxy, path="/supabase/rest/v1/rows", act="status 503") as response:
            assert response.status == 503


def test_a_service_that_is_away_is_waited_out() -> None:
    """A connection that is refused, and one that ends before the answer, are waited out like a refusal."""

    def comes_back(address: tuple[str, int]) -> None:
        time.sleep(1)
        with socket.create_server(address) as listener:
            with listener.accept()[0]:
                pass
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    with Proxy([anthropic(Secret(lambda: "sk-1"), f"http://{host}:{port}")]) as proxy, ThreadPoolExecutor() as pool:
        proxy.answers = 1
        serving = pool.submit(comes_back, (host, port))
        with asked(proxy) as response:
            assert (response.status, response.read()) == (200, b"ok")
        serving.result(60)


def test_the_wait_ends_with_who_waits(service: Service, proxy: Proxy) -> None:
    """An agent that hangs up, as it does when interrupted, is waited for no more; the model is not asked again."""
    begun(proxy)
    service.refusals = [(429, {"retry-after": "600"})]
    connection = http.client.HTTPConnection(str(urlsplit(proxy.url).netloc), timeout=0.3)
    connection.request("POST", MESSAGES, BODY, {"x-api-key": proxy.environment["ANTHROPIC_API_KEY"]})
    assert eventually(lambda: len(service.seen) == 2)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert eventually(lambda: not proxy._open)
    assert len(service.seen) == 2


def test_the_proxy_ends_in_the_middle_of_a_wait(service: Service) -> None:
    """Leaving does not take as long as Retry-After says."""
    with Proxy([anthropic(Secret(lambda: "sk-1"), service.url)]) as proxy, ThreadPoolExecutor() as pool:
        begun(proxy)
        service.refusals = [(529, {"retry-after": "600"})]

        def ask() -> None:
            with pytest.raises((ConnectionError, http.client.HTTPException)), asked(proxy):
                pass

        waiting = pool.submit(ask)
        assert eventually(lambda: len(service.seen) == 2)
        time.sleep(0.3)
        proxy.__exit__()
        waiting.result(60)


def test_answers_can_be_held_back(service: Service, proxy: Proxy) -> None:
    """Nothing of them is lost, and the service is asked at once."""
    proxy.hold()
    with asked(proxy) as response, ThreadPoolExecutor() as pool:
        reading = pool.submit(response.read)
        time.sleep(0.3)
        assert len(service.seen) == 1
        assert not reading.done()
        proxy.release()
        assert reading.result(60) == b"firstsecond"


def test_once_it_is_shut_no_further_call_goes_through(service: Service) -> None:
    """One under way is answered to its end; the next waits for what does not come, and ends with the proxy."""
    with Proxy([anthropic(Secret(lambda: "sk-1"), service.url)]) as proxy, ThreadPoolExecutor() as pool:
        with asked(proxy, act="slow") as response:
            proxy.shut()
            service.go_on.set()
            assert response.read() == b"firstsecond"

        def ask() -> None:
            with pytest.raises((ConnectionError, http.client.HTTPException)), asked(proxy):
                pass

        waiting = pool.submit(ask)
        time.sleep(0.3)
        assert not waiting.done()
        proxy.__exit__()
        waiting.result(60)
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    "lengths",
    [
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2\r\ncontent-length: 2",
        "content-length: 2\r\ntransfer-encoding: chunked",
        "content-length: " + "9" * 5000,
        "content-length: +2",
        "content-length: 2, 2",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(lengths: str, service: Service, proxy: Proxy) -> None:
    """And the connection ends: what follows would be read as a request."""
    token = proxy.environment["ANTHROPIC_API_KEY"]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as agent:
        agent.sendall(f"POST {MESSAGES} HTTP/1.1\r\nx-api-key: {token}\r\n{lengths}\r\n\r\n{{}}".encode())
        agent.shutdown(socket.SHUT_WR)
        answer = agent.makefile("rb").read()
    assert (answer[:13], b"needs one content-length" in answer) == (b"HTTP/1.1 400 ", True)
    assert service.seen == []


def test_a_body_is_not_read_before_the_token(proxy: Proxy) -> None:
    """Without it the refusal is there at once, whatever length was announced."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as stranger:
        stranger.sendall(f"POST {MESSAGES} HTTP/1.1\r\ncontent-length: 60000000\r\n\r\n".encode())
        assert stranger.recv(100).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"model": "claude-haiku-5-5", "model": "claude-fable-5-2"}',
        b'{"model": "claude-opus-5-5", "max_tokens": 1, "max_tokens": 100000}',
        b'{"model": "claude-opus-5-5", "messages": [{"a": 1, "a": 2}]}',
        b'{"model": "claude-opus-5-5", "max_tokens": NaN}',
        b'{"model": "claude-opus-5-5", "text": "\xff"}',
        '{"model": "claude-opus-5-5"}'.encode("utf-16"),
        b'{"model": "claude-opus-5-5", "messages": ' + b"[" * 100_000,
        b'{"model": "' + b"m" * 10_000_000 + b'"}',
        b'{"model": "claude-opus-5-5", "speed": "faster"}',
        b'{"model": "claude-opus-5-5", "inference_geo": "mars"}',
        b'{"model": "claude-opus-5-5", "service_tier": "priority"}',
    ],
)
def test_what_cannot_be_metered_is_not_passed_on(body: bytes, service: Service, proxy: Proxy) -> None:
    """A body that the provider could read otherwise than the meter, or whose price is not in the table."""
    with asked(proxy, body=body) as response:
        assert response.status == 400
    with asked(proxy, content_encoding="gzip") as response:
        assert response.status == 400
    assert service.seen == []
    assert all(len(row.why) <= REFUSAL_CHARS for row in proxy.meter.refusals.rows)
    assert len(proxy.meter.refusals.rows) == 2


def test_headers_of_one_name_are_one() -> None:
    """Who believed the last of them would take a body for plain that whoever comes next decodes."""
    twice = [("Content-Encoding", "deflate"), ("content-encoding", "identity")]
    sent = Sent("POST", "/v1/messages", twice, b'{"model": "claude-opus-5-5"}')
    assert sent.named == {"content-encoding": "deflate, identity"}
    with pytest.raises(Unreadable):
        Call.of(sent.body, sent.named)
    assert "encoded" in str(push.wrong(sent, []))


def test_a_question_before_a_call_waits_for_room(service: Service) -> None:
    """As every other body does."""
    asks = Approvals(["git push"])
    with Proxy([anthropic(Secret(lambda: "key"), service.url)], approvals=asks) as proxy, ThreadPoolExecutor(1) as pool:

        def ask() -> int:
            with asked(proxy, path=approvals.PATH, body=b"{}") as response:
                return response.status

        with proxy.room(BODY_BYTES), proxy.room(BODY_BYTES):
            waiting = pool.submit(ask)
            assert wait([waiting], 0.5).not_done
        assert waiting.result(60) == 400


def test_beyond_its_budget_a_run_gets_a_403(service: Service, proxy: Proxy) -> None:
    """Nothing is passed on, and the answer is none that Claude Code would ask for again; counting is free."""
    proxy.meter.allow(0.0, 50, Receipts(proxy.meter, print))
    with asked(proxy) as response:
        assert (response.status, b"max_budget" in response.read()) == (403, True)
    assert service.seen == []
    with asked(proxy, path=f"{MESSAGES}/count_tokens") as response:
        assert response.status == 200


def test_bodies_wait_for_room(service: Service, proxy: Proxy) -> None:
    """Two of the largest are in memory at a time, and none is larger."""

    def ask() -> int:
        with asked(proxy) as response:
            return response.status

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as agent:
        token = proxy.environment["ANTHROPIC_API_KEY"]
        head = f"POST {MESSAGES} HTTP/1.1\r\nx-api-key: {token}\r\ncontent-length: {BODY_BYTES + 1}\r\n\r\n"
        agent.sendall(head.encode())
        assert agent.recv(100).startswith(b"HTTP/1.1 413 ")
    with ThreadPoolExecutor(1) as pool:
        with proxy.room(BODY_BYTES), proxy.room(BODY_BYTES):
            waiting = pool.submit(ask)
            assert wait([waiting], 1.0).not_done
            assert service.seen == []
        assert waiting.result(60) == 200


def test_an_answer_comes_unencoded(service: Service, proxy: Proxy) -> None:
    """It is read as it passes."""
    with asked(proxy, accept_encoding="gzip"):
        pass
    assert "accept-encoding" not in service.seen[0][2]


@pytest.mark.parametrize("refused", [False, True], ids=["before the meter", "while it is waited out"])
def test_a_closed_gate_holds_a_request_until_the_agent_hangs_up(refused: bool, service: Service) -> None:
    """Nothing more of it reaches the provider, and what was not passed on was not metered; a leg's first step is."""
    with Proxy([anthropic(Secret(lambda: service.key), service.url)], paid=True) as proxy:
        first = Call.of(BODY, {})
        assert proxy.gate.admits(first, BODY)
        proxy.gate.answered(Answer(first))
        if refused:
            service.refusals = [(529, {"retry-after": "1"})]
        else:
            proxy.gate.close()
        connection = http.client.HTTPConnection(str(urlsplit(proxy.url).netloc), timeout=60)
        connection.request("POST", MESSAGES, BODY, {"x-api-key": proxy.environment["ANTHROPIC_API_KEY"]})
        assert eventually(lambda: len(service.seen) == refused)
        proxy.gate.close()
        assert eventually(lambda: proxy.gate.reached)
        assert (proxy.meter.calls, len(service.seen)) == (refused, refused)
        connection.close()
    assert len(service.seen) == refused


def test_an_answer_waits_for_the_session(service: Service) -> None:
    """Nothing of it is given on, nor that there is one, before the session is in place. What other services say does
    not wait."""
    restored = Restored()
    upstreams = [anthropic(Secret(lambda: "sk-1"), service.url), supabase(Secret(lambda: "sk-1"), service.url)]
    with Proxy(upstreams, restored=restored) as proxy, ThreadPoolExecutor(1) as beside:
        with asked(proxy, "GET", "/supabase/rest/v1/x") as other:
            assert other.status == 200
        answering = beside.submit(answered, proxy)
        eventually(lambda: proxy.answers == 1)
        assert wait([answering], 0.3).not_done
        restored.set_result({})
        assert answering.result() == (200, b"firstsecond")


def answered(proxy: Proxy) -> tuple[int, bytes]:
    """What the model says through it."""
    with asked(proxy) as response:
        return response.status, response.read()


def test_an_answer_is_given_to_nobody_where_there_is_no_session(service: Service) -> None:
    """It could not be restored."""
    restored = Restored()
    restored.set_exception(SessionDamaged())
    running = Proxy([anthropic(Secret(lambda: "sk-1"), service.url)], restored=restored)
    with running as proxy, pytest.raises(http.client.RemoteDisconnected):
        answered(proxy)
