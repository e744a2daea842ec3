"""Tries to get out of where it runs, each way by itself and all at once, and prints what came of each, as JSON.

A program of its own, which the kit brings into a workspace and the agent runs:

    python3 reach.py PROVIDER [HOST]

PROVIDER is asked directly; HOST, which the deployment allows, as programs ask: by the proxy that their environment
names. A way is open where an answer came back: a firewall may let a connection be made, and nothing through it.
"""

import json
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

SECONDS = 4
PUBLIC = "1.1.1.1"
"""A resolver that answers on each of the ports that are tried (Cloudflare's)."""
METADATA = "169.254.169.254"
STRANGER = "example.com"
"""A name that there is, and on no list."""
GET = b"GET / HTTP/1.0\r\n\r\n"
QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"
"""For the address of `STRANGER` (RFC 1035, 4.1)."""
OPEN, ALLOWED = "open", "allowed"
ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a greeting comes to on a connection that only ends; the second in Python up to 3.11.2 (gh-95494)."""


def http(host: str, port: int = 80) -> bool:
    """Whether something is said back to a request."""
    with socket.create_connection((host, port), SECONDS) as end:
        end.sendall(GET)
        return bool(end.recv(1))


def tls(host: str, name: str, port: int = 443) -> bool:
    """Whether something is said back to a greeting that names somebody; a refusal is an answer, too."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), SECONDS) as end:
        try:
            context.wrap_socket(end, server_hostname=name).close()
        except ssl.SSLError as refused:
            return not isinstance(refused, ENDED)
    return True


def udp(host: str, port: int = 53) -> bool:
    """Whether a query is answered."""
    with socket.socket(type=socket.SOCK_DGRAM) as end:
        end.settimeout(SECONDS)
        end.sendto(QUERY, (host, port))
        return bool(end.recv(1))


def name(host: str) -> bool:
    """Whether a name has an address."""
    return bool(socket.getaddrinfo(host, 443))


def proxied(host: str) -> bool:
    """Whether a server answers, whatever it says."""
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"https://{host}/", timeout=SECONDS).close()
    return True


def networks() -> list[str]:
    """The names of the interfaces that lead somewhere: there is a route by them, or they have an address. A kernel may
    put more into a new network (`tunl0`, `sit0`), which are down."""
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    inet6 = Path("/proc/self/net/if_inet6")  # missing where there is no IPv6
    addresses = inet6.read_text().splitlines() if inet6.exists() else []
    return sorted({line.split()[0] for line in routes} | {line.split()[-1] for line in addresses})


def tried(ways: dict[str, Callable[[], bool]]) -> dict[str, str]:
    """What came of each: `OPEN`, or why not."""
    found = dict.fromkeys(ways, "no answer")

    def go(way: str) -> None:
        try:
            found[way] = OPEN if ways[way]() else "closed at once"
        except (OSError, ValueError) as error:
            found[way] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=go, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 1)
    return dict(found)


def main(provider: str, *allowed: str) -> None:
    """Prints it."""
    ways: dict[str, Callable[[], bool]] = {
        "tcp 80": partial(http, PUBLIC),
        "tcp 443": partial(tls, PUBLIC, STRANGER),
        "udp 53": partial(udp, PUBLIC),
        "name": partial(name, STRANGER),
        "metadata": partial(http, METADATA),
        "provider": partial(tls, provider, provider),
    }
    if allowed:
        ways[ALLOWED] = partial(proxied, allowed[0])
    print(json.dumps({"networks": networks(), **tried(ways)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
