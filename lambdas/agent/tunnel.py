"""The way out to the hosts of the setting `egress`: tunnels, which a client asks the proxy for by CONNECT.

**One reading of the name.** A host is what `lambdas.egress.NAME` has, in lower case; everything else (a trailing dot, a
percent, a user, a number or an address) is refused, not made sense of. Upper case alone is lowered: to DNS it is the
same name, and clients send what they were given.

**One look-up.** The proxy resolves the name itself, once. Where any of its addresses is not of the public internet, the
host is refused; else it connects to one of the very addresses that it has looked at. So a name that leads elsewhere the
second time (rebinding) leads nowhere.

**TLS to that name.** The first message in the tunnel has to be TLS, for the host that the tunnel was asked for. What
comes after it is between the two: a host on the list is a capability (`docs/egress.md`).
"""

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from lambdas.agent import hello
from lambdas.agent.hello import NoHello
from lambdas.egress import CLOSED, NAME, Egress

HTTPS = 443

TARGET = re.compile(r"([^:]{1,253}):([0-9]{1,5})", re.ASCII)

CONNECT_SECONDS = 10.0
"""How long one address may take to take up a connection."""

HELLO_SECONDS = 10.0
"""How long a client may take to begin its TLS."""

MOST = 100
"""How many tunnels a run may have at a time."""

PIECE = 65536

NAT64 = IPv6Network("64:ff9b::/96")
"""What stands for an IPv4 address where a network has none."""

NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "100::/64", "2001::/23", "5f00::/16"),
            "168.63.129.16/32",  # behind it, Azure's machines find their platform
        ),
    )
)
"""What `ipaddress` takes for global, in one version of Python or another (IANA's registries of special addresses)."""

Address = IPv4Address | IPv6Address


class NotAllowed(Exception):
    """There is no tunnel for this; the text says why."""


def addresses(name: str) -> list[str]:
    """All that a name resolves to, as text, perhaps with a zone. Raises OSError. With a dot behind it, it is looked up
    as it is, and not below the machine's own domains."""
    found = socket.getaddrinfo(f"{name}.", HTTPS, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


def is_public(address: str) -> bool:
    """Whether an address is somebody's on the internet: no private one, no machine's own, none of a link or a group,
    and none that stands for such a one."""
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return False
    return "%" not in address and all(map(_is_global, _meant(read)))


def _is_global(address: Address) -> bool:
    special = (address.is_multicast, address.is_reserved, address.is_unspecified, address.is_loopback)
    local = address.is_private, address.is_link_local, isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not any((*special, *local)) and not any(address in each for each in NOT_PUBLIC)


def _meant(address: Address) -> list[Address]:
    """An address, and those that it has in it."""
    if isinstance(address, IPv4Address):
        return [address]
    if address in NAT64:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    held = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
    return [address, *(each for each in held if each is not None)]


class Tunnels:
    """Those of one run."""

    def __init__(
        self,
        egress: Egress = CLOSED,
        *,
        resolve: Callable[[str], Sequence[str]] = addresses,
        may_reach: Callable[[str], bool] = is_public,
        port: int = HTTPS,
    ) -> None:
        """What is not the setting is for tests: who resolves a name, which of its addresses are allowed, which port."""
        self._egress, self._resolve, self._may_reach, self._port = egress, resolve, may_reach, port
        self._room = threading.BoundedSemaphore(MOST)

    def environment(self, login: str) -> dict[str, str]:
        """What leads the agent's programs here; `login` is the proxy's address, with the run's token. Nothing, where
        they go out by themselves."""
        if self._egress.open:
            return {}
        here = "127.0.0.1,localhost,::1"
        ways = {name: value for name in ("HTTPS_PROXY", "HTTP_PROXY") for value in [login]}
        both = ways | {"NO_PROXY": here}
        return both | {name.lower(): value for name, value in both.items()} | {"NODE_USE_ENV_PROXY": "1"}

    @contextmanager
    def opened(self, target: str) -> Iterator[tuple[str, socket.socket]]:
        """A connection to what a CONNECT asks for, and the name that TLS has to be for. Raises `NotAllowed`, or OSError
        where nobody is there."""
        name = self._name(target)
        if not self._room.acquire(blocking=False):
            raise NotAllowed(f"a run may have {MOST} tunnels at a time")
        try:
            with self._connected(name) as outside:
                yield name, outside
        finally:
            self._room.release()

    def _name(self, target: str) -> str:
        asked = TARGET.fullmatch(target)
        name = asked[1].lower() if asked and asked[1].isascii() else ""
        if not asked or not NAME.fullmatch(name):
            raise NotAllowed("a tunnel leads to a host by its name, and a port")
        if asked[2] != str(self._port):
            raise NotAllowed(f"a tunnel leads to port {self._port}, and no other")
        if self._egress.open:
            raise NotAllowed("this deployment's egress is open: go there without a proxy")
        if not self._egress.has(name):
            raise NotAllowed(f"{name} is not in this deployment's setting egress")
        return name

    def _connected(self, name: str) -> socket.socket:
        found = self._resolve(name)
        if wrong := [each for each in found if not self._may_reach(each)]:
            raise NotAllowed(f"{name} resolves to {wrong[0]}, which is not on the internet")
        failure: OSError = socket.gaierror(f"{name} has no address")
        for address in dict.fromkeys(found):
            try:
                outside = socket.create_connection((address, self._port), CONNECT_SECONDS)
            except OSError as error:
                failure = error
            else:
                outside.settimeout(None)
                return outside
        raise failure


def greeted(client: socket.socket, reader: BufferedIOBase, name: str) -> bytes:
    """The client's first message, once it is TLS for this host. Raises `NoHello`, or OSError."""
    client.settimeout(HELLO_SECONDS)
    records, message = hello.received(reader.read)
    client.settimeout(None)
    if (said := hello.server_name(message).lower()) != name:
        raise NoHello(f"its TLS is for {said[:253]}")
    return records


def carry(client: socket.socket, reader: BufferedIOBase, outside: socket.socket) -> None:
    """Hand on what either side says, until both have ended. The proxy's end ends both."""
    back = threading.Thread(target=_pour, args=(lambda: outside.recv(PIECE), client), daemon=True)
    back.start()
    _pour(lambda: reader.read1(PIECE), outside)
    back.join()


def _pour(read: Callable[[], bytes], into: socket.socket) -> None:
    with suppress(OSError):
        while piece := read():
            into.sendall(piece)
    with suppress(OSError):
        into.shutdown(socket.SHUT_WR)
