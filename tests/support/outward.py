"""How hostile code in a run would get out of its network, as one program: it prints what each attempt came to, as JSON.

It is told the address of everything that it could want (`outside.py`). What is `got` was reached. The agent may get its
proxy, and servers of its own where nobody else is; all else is a hole.
"""

import base64
import ctypes
import fcntl
import json
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Told = dict[str, Any]
LIBC = ctypes.CDLL(None, use_errno=True)
SECONDS = 0.5
PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGSKNS, NS_GET_USERNS, NS_GET_PARENT = 0x894C, 0xB701, 0xB702
PIDFD_OPEN, PIDFD_GETFD, IO_URING_SETUP = 434, 438, 425
AF_VSOCK, HOST_CID = 40, 2
RTM_NEWADDR, NLM_MAKE = 20, 0x605


def tried(attempt: Callable[..., object], *arguments: object) -> str:
    """What came of it, or why nothing did."""
    try:
        return f"got {attempt(*arguments)!r}"
    except (OSError, ValueError) as refused:
        return f"{type(refused).__name__}: {refused}"


def called(result: int) -> int:
    """The result of a function of the C library's; raises OSError where it is -1."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def in_a_child(attempt: Callable[[], list[str]]) -> list[str]:
    """What came of attempts that change the process that makes them."""
    read, write = os.pipe()
    if os.fork() == 0:
        with suppress(OSError):
            os.write(write, json.dumps(attempt()).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as said:  # noqa: PTH123 - a descriptor
        outcomes = json.loads(said.read() or b'["it died"]')
    os.wait()
    return list(outcomes)


def spoken(family: int, kind: int, protocol: int, address: Any) -> bytes:
    """What a service says to who says something."""
    with socket.socket(family, kind, protocol) as line:
        line.settimeout(SECONDS)
        if kind == socket.SOCK_DGRAM:
            if family == socket.AF_UNIX:
                line.sendto(b"hello", address)
                return b"sent"
            line.connect(address)
            line.send(b"hello")
        else:
            line.connect(address)
        return line.recv(100)


def tcp(told: Told) -> list[str]:
    """This machine's services by each of its addresses, and the world's."""
    addresses = [(socket.AF_INET, (each, told["tcp"])) for each in told["addresses"]]
    addresses += [(socket.AF_INET6, (each, told["tcp"])) for each in ("::1", "::ffff:127.0.0.1")]
    addresses += [(socket.AF_INET, (each, port)) for each in ("192.0.2.1", "169.254.169.254") for port in (53, 80, 443)]
    addresses += [(socket.AF_INET6, ("2001:db8::1", 443))]
    return [tried(spoken, family, socket.SOCK_STREAM, 0, address) for family, address in addresses]


def udp(told: Told) -> list[str]:
    """The same with datagrams."""
    addresses = [(socket.AF_INET, (each, told["udp"])) for each in told["addresses"]]
    addresses += [(socket.AF_INET6, ("::1", told["udp"])), (socket.AF_INET, ("192.0.2.1", 53))]
    return [tried(spoken, family, socket.SOCK_DGRAM, 0, address) for family, address in addresses]


def dns(_: Told) -> list[str]:
    """A name, by whatever resolver the machine has."""
    return [tried(socket.getaddrinfo, "example.com", 443)]


def icmp(_: Told) -> list[str]:
    """By the sockets that need no right, and by raw ones."""
    kinds = ((socket.SOCK_DGRAM, 1), (socket.SOCK_RAW, 1), (socket.SOCK_RAW, 255))
    return [tried(opened, socket.AF_INET, *kind) for kind in kinds] + [tried(opened, socket.AF_INET6, 3, 58)]


def other_families(_: Told) -> list[str]:
    """Packets, netlink but for what is asked of routes, virtual machines' sockets, and a way around all filters."""
    ways = [(socket.AF_PACKET, kind, 0x300) for kind in (2, 3)] + [(AF_VSOCK, kind, 0) for kind in (1, 2)]
    ways += [(socket.AF_NETLINK, 3, protocol) for protocol in range(1, 23)] + [(socket.AF_INET, 1, 262)]
    ring = ctypes.create_string_buffer(120)
    return [tried(opened, *way) for way in ways] + [tried(lambda: called(LIBC.syscall(IO_URING_SETUP, 1, ring)))]


def opened(family: int, kind: int, protocol: int) -> int:
    """Not by `socket.socket`, which looks at a new socket in its own way."""
    return called(LIBC.socket(family, kind | socket.SOCK_CLOEXEC, protocol))


def routes(_: Told) -> list[str]:
    """An interface's new address, and interfaces beside loopback."""
    loopback = struct.pack("=BBBBI", socket.AF_INET, 8, 0, 0, 1) + struct.pack("=HH4B", 8, 2, 10, 9, 8, 7)
    return [tried(asked_of_routes, RTM_NEWADDR, NLM_MAKE, loopback), tried(interfaces)]


def asked_of_routes(kind: int, flags: int, body: bytes) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as line:
        line.settimeout(SECONDS)
        line.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = line.recv(65536)
    _, answered, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
    if answered == 2 and error:
        raise OSError(-error, os.strerror(-error))
    return answer


def interfaces() -> list[str]:
    """Those that are up, but for loopback; raises OSError where there is none."""
    found = []
    with socket.socket() as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                said = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sH22x", name.encode(), 0))
                if struct.unpack_from("16xH", said)[0] & 1 and name != "lo":
                    found.append(name)
    if not found:
        raise OSError("there is none")
    return found


def unix(told: Told) -> list[str]:
    """Unix sockets by name, and by an abstract one, for streams and for datagrams; and from a pair of them."""
    streams = [tried(spoken, socket.AF_UNIX, socket.SOCK_STREAM, 0, each) for each in told["streams"]]
    packets = [tried(spoken, socket.AF_UNIX, socket.SOCK_DGRAM, 0, each) for each in told["packets"]]
    return streams + packets + [tried(from_a_pair, kind, each) for kind in (1, 2, 3, 5) for each in told["packets"]]


def from_a_pair(kind: int, address: str) -> int:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        sent = one.sendto(b"hello", address)
        other.settimeout(0)
        with suppress(BlockingIOError):
            raise ValueError(f"{other.recv(100)!r} came to the other of the pair")
        return sent


def handoff(told: Told) -> list[str]:
    """Where the proxy was handed its listener, and what else it could be told there."""
    return [tried(spoken, socket.AF_UNIX, socket.SOCK_STREAM, 0, each) for each in told["handoffs"]]


def own_proxy(told: Told) -> list[str]:
    """One that passes on what comes: it is in here as well."""

    def served() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as server:
            failed: list[OSError] = []

            def passing() -> None:
                try:
                    with server.accept()[0] as line:
                        line.sendall(spoken(socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", told["tcp"])))
                except OSError as refused:
                    failed.append(refused)

            threading.Thread(target=passing, daemon=True).start()
            answer = spoken(socket.AF_INET, socket.SOCK_STREAM, 0, server.getsockname())
            if not answer:
                raise failed[0] if failed else OSError("it reaches nothing")
            return answer

    return [tried(served)]


def namespaces(told: Told) -> list[str]:
    """Into another's network, with the rights that it has, and with those of a namespace of its own."""
    found = entered(told)
    for flags in (CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNET):
        found += in_a_child(partial(entered, told, flags))
    return found


def entered(told: Told, unshared: int = 0) -> list[str]:
    LIBC.unshare(unshared)
    own = Path("/proc/self/ns/net").stat()
    looks = []
    for entry in [each for each in Path("/proc").iterdir() if each.name.isdigit()]:
        looks += [tried(joined, f"{entry}/ns/{name}", own) for name in ("net", "user")]
    looks += [tried(joined_by_pid, pid) for pid in told["others"]]
    looks += [tried(taken, pid, number) for pid in told["others"] for number in range(3, 12)]
    looks += [tried(parent_of, f"/proc/self/ns/{name}", ask) for name, ask in WAYS_UP]
    return looks


WAYS_UP = (("net", NS_GET_USERNS), ("user", NS_GET_PARENT), ("user", NS_GET_USERNS))


def joined(path: str, own: os.stat_result) -> str:
    place = os.open(path, os.O_RDONLY)
    try:
        if os.path.samestat(os.fstat(place), own):
            raise ValueError("one's own")
        called(LIBC.setns(place, 0))
        return path
    finally:
        os.close(place)


def joined_by_pid(pid: int) -> str:
    place = called(LIBC.syscall(PIDFD_OPEN, pid, 0))
    called(LIBC.setns(place, CLONE_NEWNET))
    return f"the network of {pid}"


def taken(pid: int, number: int) -> str:
    """A descriptor of another's."""
    place = called(LIBC.syscall(PIDFD_OPEN, pid, 0))
    try:
        return str(Path(f"/proc/self/fd/{called(LIBC.syscall(PIDFD_GETFD, place, number, 0))}").readlink())
    finally:
        os.close(place)


def parent_of(path: str, ask: int) -> str:
    """What owns this namespace, or is above it, and then in there."""
    place = os.open(path, os.O_RDONLY)
    above = fcntl.ioctl(place, ask)
    called(LIBC.setns(above, 0))
    return f"above {path}"


def of_sockets(_: Told) -> list[str]:
    """The networks of sockets that were inherited: the run's input and output may be some."""
    looks = []
    for number in range(64):
        with suppress(OSError):
            if str(Path(f"/proc/self/fd/{number}").readlink()).startswith("socket:"):
                looks.append(tried(network_of, number))
    return looks


def network_of(number: int) -> str:
    called(LIBC.setns(fcntl.ioctl(number, SIOCGSKNS), CLONE_NEWNET))
    return f"the network of {number}"


def own_servers(told: Told) -> list[str]:
    """On ports of its choice, the one that somebody else has included, and asked by itself."""
    ports = (0, told["tcp"], 8080)
    return [tried(asked_itself, family, address, port) for family, address in PLACES for port in ports]


def asked_itself(family: int, address: str, port: int) -> bytes:
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        with socket.socket(family) as line:
            line.settimeout(SECONDS)
            line.connect(server.getsockname()[:2])
            with server.accept()[0] as other:
                other.sendall(b"its own")
            return line.recv(100)


def any_port(_: Told) -> list[str]:
    """A server that lets the kernel choose, which Landlock does not hear of."""
    return [tried(listened, family) for family, _ in PLACES]


def listened(family: int) -> str:
    with socket.socket(family) as server:
        server.listen()
        return str(server.getsockname()[1])


def shared_addresses(_: Told) -> list[str]:
    """The option by which a socket gets what is meant for another's, where there is another."""
    kinds = ((socket.SO_REUSEPORT, 1), (socket.SO_REUSEPORT, 2), (socket.SO_REUSEADDR, 2))
    return [tried(shared, *each) for each in kinds]


def shared(option: int, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as member:
        member.setsockopt(socket.SOL_SOCKET, option, 1)


def its_proxy(_: Told) -> list[str]:
    """Which is all that there is."""
    return [tried(answered, urlsplit(os.environ["ANTHROPIC_BASE_URL"]).port)]


def answered(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as line:
        line.sendall(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        return line.recv(12)


def tunnels(told: Told) -> list[str]:
    """By the proxy, to the one host that is allowed, and to everything else that this could be made to mean."""
    if "HTTPS_PROXY" not in os.environ:
        return []
    port, host = told["tcp"], "allowed.example"
    spelled = (f"{host}.", f"user@{host}", "allowed%2eexample", f"{host}@other.example", f"{host}#.other.example")
    numbers = ("127.0.0.1", "2130706433", "0177.0.0.1", "0x7f000001", "127.1", "[::1]", "[fe80::1%25lo]", "localhost")
    names = ("other.example", "metadata.example", "rebinding.example", "mapped.example")
    ways = [(f"{name}:{port}", greeting(host), "") for name in (*spelled, *numbers)]
    ways += [(f"{name}:{port}", greeting(name), "") for name in names]
    ways += [(f"{host}:{other}", greeting(host), "") for other in (80, 443, f"{port}/", "", f"{port}:443")]
    ways += [
        (f"{host}:{port}", said, "") for said in (greeting("other.example"), greeting(None), b"GET / HTTP/1.0\r\n\r\n")
    ]
    ways += [(f"{host}:{port}", greeting(host), "GET http://"), (f"{host}:{port}", greeting(host), "CONNECT http://")]
    return [tried(through, f"{host}:{port}", greeting(host)), *(tried(through, *way) for way in ways)]


def greeting(name: str | None) -> bytes:
    """How TLS for that name begins."""
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(came, goes, server_hostname=name).do_handshake()
    return goes.read()


def through(target: str, said: bytes, begins: str = "") -> bytes:
    """What comes back by the proxy from there; raises OSError where it lets nothing through."""
    proxy = urlsplit(os.environ["HTTPS_PROXY"])
    login = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    with socket.create_connection((proxy.hostname, proxy.port), timeout=4 * SECONDS) as line:
        head = f"{begins or 'CONNECT '}{target} HTTP/1.1\r\nHost: allowed.example\r\n"
        line.sendall(f"{head}Proxy-Authorization: Basic {login}\r\n\r\n".encode())
        status = line.recv(4096)
        if b" 200 " not in status.partition(b"\r\n")[0]:
            raise OSError(status.partition(b"\r\n")[0].decode())
        line.sendall(said)
        if not (came := line.recv(100)):
            raise OSError("the tunnel was closed")
        return came


ALL = (
    its_proxy,
    tunnels,
    tcp,
    udp,
    dns,
    icmp,
    other_families,
    routes,
    unix,
    handoff,
    own_proxy,
    namespaces,
    of_sockets,
    own_servers,
    any_port,
    shared_addresses,
)


def table(told: Told) -> dict[str, dict[str, Any]]:
    """What was got by each, and some of the reasons why the rest was not."""
    found = {}
    for attempt in ALL:
        outcomes = attempt(told)
        got = [outcome for outcome in outcomes if outcome.startswith("got")]
        reasons = sorted({outcome[:60] for outcome in outcomes if outcome not in got})
        found[attempt.__name__.replace("_", " ")] = {"got": got, "tried": len(outcomes), "reasons": reasons[:5]}
    return found


def listening(told: Told) -> None:
    """Listens wherever it can, until its input ends."""
    servers = []
    for family, address in (*PLACES, (socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        for port in (told["tcp"], told["free"]):
            server = socket.socket(family)
            with suppress(OSError):
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
                server.listen()
                servers.append(server)
    print(len(servers), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    orders = json.loads(Path(sys.argv[1]).read_text())
    if "listen" in sys.argv:
        listening(orders)
    else:
        print(json.dumps(table(orders)))
