"""What goes out through the proxy: tunnels to hosts of the setting `egress`, and to nobody else.

Names resolve here to loopback, which the tests allow instead of the internet; everything else is as in a run.
"""

import base64
import os
import re
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambdas.agent import hello
from lambdas.agent.hello import HELLO_BYTES, NoHello
from lambdas.agent.proxy import Proxy
from lambdas.agent.tunnel import MOST, Tunnels, is_public
from lambdas.egress import Egress
from tests.support.http_servers import Answering
from tests.support.tls_servers import Authority, authority, listening_securely

HOST, BELOW, OTHER = "site.example", "a.below.example", "other.example"
LISTED = Egress((HOST, "*.below.example"))
HERE = "127.0.0.1"


class Site(Answering):
    """A host, which has files and remembers whom it was asked as."""

    seen: list[str]
    root: Path

    def do_GET(self) -> None:
        self.seen.append(self.headers["host"])
        file = self.root / self.path.partition("?")[0].lstrip("/")
        self.answer(200, file.read_bytes()) if file.is_file() else self.answer(404)


@dataclass
class World:
    """A host with TLS on loopback, and who resolves its name."""

    port: int
    known: Authority
    root: Path
    seen: list[str]
    found: list[str] = field(default_factory=lambda: [HERE])
    """What every name resolves to."""
    asked: list[str] = field(default_factory=list)

    def resolve(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        return self.found

    def tunnels(self, egress: Egress = LISTED) -> Tunnels:
        return Tunnels(egress, resolve=self.resolve, may_reach=lambda address: address == HERE, port=self.port)

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.known.trusted))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("site")
    known, seen = authority(root, HOST, BELOW, OTHER), list[str]()
    (root / "page").write_text("the page")
    with listening_securely(Site, known, root=root, seen=seen) as port:
        yield World(port, known, root, seen)


@pytest.fixture
def world(served: World) -> World:
    """With nothing remembered."""
    served.seen.clear()
    return World(served.port, served.known, served.root, served.seen)


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    with Proxy([], tunnels=world.tunnels()) as running:
        yield running


def refused(proxy: Proxy) -> list[tuple[str, str, int]]:
    """What the run's record has of it."""
    return [(each.what, each.why, each.times) for each in proxy.meter.receipt().refused]


@contextmanager
def connected(proxy: Proxy, target: str, token: str | None = None) -> Iterator[tuple[socket.socket, str]]:
    """A connection to the proxy that has asked for a tunnel, and the first line of its answer."""
    login = base64.b64encode(f"run:{proxy.token if token is None else token}".encode()).decode()
    with socket.create_connection((HERE, proxy.port), 30) as client:
        asked = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nproxy-authorization: Basic {login}\r\n\r\n"
        client.sendall(asked.encode("latin-1"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += client.recv(1) or b"\r\n\r\n"
        yield client, answer.decode().partition("\r\n")[0]


def opener(proxy: Proxy, world: World) -> urllib.request.OpenerDirector:
    """A client that knows of the proxy what its environment says."""
    ways = {scheme: proxy.environment[f"{scheme.upper()}_PROXY"] for scheme in ("http", "https")}
    secure = urllib.request.HTTPSHandler(context=world.trusting())
    return urllib.request.build_opener(urllib.request.ProxyHandler(ways), secure)


@pytest.mark.parametrize("name", [HOST, "SITE.example", BELOW])
def test_a_listed_host_is_reached_by_tls(name: str, proxy: Proxy, world: World) -> None:
    """By its name, whatever the case, or a name below one with a star; it is looked up once."""
    with opener(proxy, world).open(f"https://{name}:{world.port}/page", timeout=30) as page:
        assert page.read() == b"the page"
    assert world.asked == [name.lower()]
    assert refused(proxy) == []


def test_git_clones_from_a_listed_host(proxy: Proxy, world: World, tmp_path: Path) -> None:
    """Which first asks without the token, and then with it."""
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        own |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@b"}

    def git(*arguments: str, **more: str) -> None:
        done = subprocess.run(["git", *arguments], env=own | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    git("init", "-q", str(tmp_path / "work"))
    (tmp_path / "work" / "file").write_text("text")
    for words in (["add", "."], ["commit", "-qm", "first"]):
        git("-C", str(tmp_path / "work"), *words)
    git("clone", "-q", "--bare", str(tmp_path / "work"), str(world.root / "it.git"))
    git("-C", str(world.root / "it.git"), "update-server-info")
    trusted = {"GIT_SSL_CAINFO": str(world.known.trusted)}
    address = f"https://{HOST}:{world.port}/it.git"
    git("clone", "-q", address, str(tmp_path / "clone"), **proxy.environment, **trusted)
    assert (tmp_path / "clone" / "file").read_text() == "text"


ODD = [
    *("site.example.", "site%2eexample", "run@site.example", "site.example%00", "site..example"),
    *("xsite.example@127.0.0.1", "sité.example", "\u212aite.example".encode().decode("latin-1"), "site.example/x"),
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "[::1]", "[::ffff:127.0.0.1]"),
    *("[fe80::1%25eth0]", "::1", "localhost", "example", "-site.example", "below.example", "x.below.example."),
    *("*.below.example", "a_b.below.example", "a.below.example\x0b", "", "site.example:443"),
]


@pytest.mark.parametrize("name", ODD)
def test_a_host_is_read_in_one_way(name: str, proxy: Proxy, world: World) -> None:
    """What is no plain name, or is a number, or another name, is not even looked up; and that is in the record."""
    with connected(proxy, f"{name}:{world.port}") as (_, answer):
        assert re.match(r"HTTP/1.1 (403 a tunnel leads to a host|403 .* is not in this|400 )", answer), answer
    assert world.asked == []
    assert world.seen == []
    assert answer[9:12] == "400" or len(refused(proxy)) == 1


@pytest.mark.parametrize("target", [OTHER, f"evil-{HOST}", f"{HOST}.evil.example", "evilbelow.example"])
def test_a_host_that_is_not_listed_is_refused_by_its_name(target: str, proxy: Proxy, world: World) -> None:
    """In the line that clients show, and in the record: once, with how often."""
    for _ in range(2):
        with connected(proxy, f"{target}:{world.port}") as (_, answer):
            assert answer == f"HTTP/1.1 403 {target} is not in this deployment's setting egress"
    assert refused(proxy) == [(f"CONNECT {target}:{world.port}", answer[13:], 2)]
    assert world.asked == []


@pytest.mark.parametrize("port", ["443", "80", "22", "0", "65536", "00443", "", "+443", "４４３"])
def test_a_tunnel_leads_to_one_port(port: str, proxy: Proxy, world: World) -> None:
    """443; here, that of the host."""
    with connected(proxy, f"{HOST}:{port}".encode().decode("latin-1")) as (_, answer):
        assert " 403 a tunnel leads to " in answer
    assert world.asked == []


@pytest.mark.parametrize("found", [["10.0.0.1"], [HERE, "10.0.0.1"], ["169.254.169.254", HERE], [f"{HERE}%lo"]])
def test_a_name_that_leads_inside_leads_nowhere(found: list[str], proxy: Proxy, world: World) -> None:
    """Also with one of several addresses."""
    world.found = found
    with connected(proxy, f"{HOST}:{world.port}") as (_, answer):
        assert " 403 site.example resolves to " in answer
        assert answer.endswith("which is not on the internet")
    assert world.seen == []


def test_a_name_that_leads_elsewhere_the_second_time_is_asked_once(world: World) -> None:
    """What was looked at is what is connected to (rebinding)."""
    answers = iter([[HERE], ["10.0.0.1"]])
    tunnels = Tunnels(LISTED, resolve=lambda _: next(answers), may_reach=lambda each: each == HERE, port=world.port)
    with Proxy([], tunnels=tunnels) as proxy:
        with opener(proxy, world).open(f"https://{HOST}:{world.port}/page", timeout=30) as page:
            assert page.read() == b"the page"
        assert next(answers) == ["10.0.0.1"]


def unknown(_: str) -> Sequence[str]:
    raise socket.gaierror("who?")


@pytest.mark.parametrize("resolve", [unknown, lambda _: []])
def test_a_host_that_nobody_knows_is_a_502(resolve: Callable[[str], Sequence[str]]) -> None:
    """That is no refusal, and not in the record."""
    with Proxy([], tunnels=Tunnels(LISTED, resolve=resolve)) as proxy:
        with connected(proxy, f"{HOST}:443") as (_, answer):
            assert answer == "HTTP/1.1 502 the host cannot be reached (gaierror)"
        assert refused(proxy) == []


INSIDE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001::1"),
    *("100::1", "2606:4700::1111%eth0", "site.example", "2130706433", "0x7f.1", "127.1", ""),
]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    """Private, loopback, link-local, metadata, groups, reserved ones, and what stands for such a one."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.0.223", "2606:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet(address: str) -> None:
    """Also behind NAT64."""
    assert is_public(address)


@pytest.mark.parametrize("token", ["", "run-another", "x" * 1000])
def test_without_the_token_there_is_no_tunnel(token: str, proxy: Proxy, world: World) -> None:
    """Clients that wait to be asked for it are."""
    with connected(proxy, f"{HOST}:{world.port}", token) as (_, answer):
        assert answer.startswith("HTTP/1.1 407 ")
    assert world.asked == []


def test_plain_http_goes_nowhere(proxy: Proxy, world: World) -> None:
    """Not to a listed host either."""
    with pytest.raises(urllib.error.HTTPError) as error, opener(proxy, world).open(f"http://{HOST}/page", timeout=30):
        pass
    assert (error.value.code, b"use https" in error.value.read()) == (403, True)
    assert refused(proxy) == [(f"GET http://{HOST}/page", "plain HTTP goes to no other host: use https", 1)]


def greeting(name: str | None) -> bytes:
    """The first message of a real client."""
    out, context = ssl.MemoryBIO(), ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def with_ech(greeted: bytes) -> bytes:
    """The same with one more extension, at the end."""
    more = bytes.fromhex("fe0d000100")
    head, message = greeted[:5], greeted[5:]
    start = 4 + 34 + 1 + message[38]
    start += 2 + int.from_bytes(message[start : start + 2], "big")
    start += 1 + message[start]
    size = int.from_bytes(message[start : start + 2], "big") + len(more)
    body = message[4:start] + size.to_bytes(2, "big") + message[start + 2 :] + more
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return head[:3] + len(handshake).to_bytes(2, "big") + handshake


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (greeting(OTHER), f"its TLS is for {OTHER}"),
        (greeting(None), "its TLS names no host (SNI)"),
        (greeting("127.0.0.1"), "its TLS names no host (SNI)"),
        (with_ech(greeting(HOST)), "the name in its TLS is encrypted (ECH)"),
        (b"GET / HTTP/1.1\r\nhost: site.example\r\n\r\n", "it does not speak TLS"),
        (b"SSH-2.0-x\r\n", "it does not speak TLS"),
        (greeting(HOST)[:5] + b"\x02" + greeting(HOST)[6:], "its TLS does not begin with a ClientHello"),
        (b"\x16\x03\x01\x40\x01" + bytes(1 << 14), "its TLS begins with a message that is too long"),
    ],
)
def test_what_is_not_tls_to_that_host_does_not_pass(first: bytes, why: str, proxy: Proxy, world: World) -> None:
    """To the host itself it would be another one's request, or none that can be read."""
    with connected(proxy, f"{HOST}:{world.port}") as (client, answer):
        assert answer == "HTTP/1.1 200 Connection established"
        client.sendall(first)
        assert client.recv(1) == b""
    assert refused(proxy) == [(f"CONNECT {HOST}:{world.port}", why, 1)]
    assert world.seen == []


def seen_by_openssl(greeted: bytes) -> str | None:
    """Whom a server takes the client to ask for; None where it takes it to ask for nobody, or takes it for nothing."""
    came, names = ssl.MemoryBIO(), list[str | None]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _, name, __: names.append(name)
    came.write(greeted)
    with suppress(ssl.SSLError):
        context.wrap_bio(came, ssl.MemoryBIO(), server_side=True).do_handshake()
    return names[0] if names else None


REAL = greeting(HOST)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), max_size=4), cut=st.integers(0, 9)
)
@example(changes=[], cut=0)
def test_a_server_reads_the_name_that_was_read_here(changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever is changed in a client's first message: it is refused, or the server reads the same, or nothing."""
    altered = bytearray(REAL)
    for place, byte in changes:
        altered[place] = byte
    sent = bytes(altered[: len(altered) - cut])
    left = iter([sent])
    stream = [b""]

    def read(size: int) -> bytes:
        stream[0] += next(left, b"")
        taken, stream[0] = stream[0][:size], stream[0][size:]
        return taken

    try:
        records, message = hello.received(read)
        name = hello.server_name(message)
    except NoHello:
        assert changes or cut
        return
    assert sent.startswith(records)
    assert seen_by_openssl(sent) in (name, None)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_stumble(noise: bytes) -> None:
    """It says that they are no message, and nothing else."""
    with pytest.raises(NoHello):
        hello.received(lambda size: noise[:size])
    with pytest.raises(NoHello):
        hello.server_name(b"\x01\x00\x00\x00" + noise)


def test_a_message_in_several_records_is_one() -> None:
    """As some clients send a long one; up to 16 KiB of them."""
    body = REAL[5:]
    parts = [body[:3], body[3:100], body[100:]]
    records = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)
    stream = [records + b"more"]

    def read(size: int) -> bytes:
        taken, stream[0] = stream[0][:size], stream[0][size:]
        return taken

    assert hello.received(read) == (records, body)
    assert stream == [b"more"]
    more = b"\x16\x03\x01\x10\x00" + bytes(4096)
    stream[0] = b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" + more * (HELLO_BYTES // 4096)
    with pytest.raises(NoHello, match="too long"):
        hello.received(read)


def test_the_end_of_the_run_ends_its_tunnels(world: World) -> None:
    """Both sides, also of one that nobody speaks in."""
    with Proxy([], tunnels=world.tunnels()) as proxy, connected(proxy, f"{HOST}:{world.port}") as (client, _):
        secure = world.trusting().wrap_socket(client, server_hostname=HOST)
        proxy.__exit__()
        assert secure.recv(1) == b""
        secure.close()


def test_there_is_an_end_of_tunnels(world: World) -> None:
    """Of those at a time."""
    tunnels = world.tunnels()
    with Proxy([], tunnels=tunnels) as proxy:
        for _ in range(MOST):
            tunnels._room.acquire()
        with connected(proxy, f"{HOST}:{world.port}") as (_, answer):
            assert "at a time" in answer
        tunnels._room.release()
        with connected(proxy, f"{HOST}:{world.port}") as (_, answer):
            assert " 200 " in answer


def test_programs_are_led_out_unless_all_is_open(world: World) -> None:
    """By the variables that they look at; their own servers, and the proxy's upstreams, they ask straight."""
    with Proxy([], tunnels=world.tunnels()) as proxy:
        here = f"http://run:{proxy.token}@127.0.0.1:{proxy.port}"
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            assert proxy.environment[name] == here
        assert proxy.environment["NO_PROXY"] == proxy.environment["no_proxy"] == "127.0.0.1,localhost,::1"
        assert proxy.environment["NODE_USE_ENV_PROXY"] == "1"
    with Proxy([], tunnels=Tunnels(Egress.of("open"))) as proxy:
        assert proxy.environment == {}
        with connected(proxy, f"{HOST}:443") as (_, answer):
            assert "open: go there without a proxy" in answer
