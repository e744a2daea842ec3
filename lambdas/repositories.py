"""Which repositories a run may use: by host and pattern, for reading or pushing too, and with which credential.

An address is compared as it is written, and is one only where it can be written in no other way: the agent's proxy
(`lambdas.agent.git`) compares the paths of requests by the same patterns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

HOST = re.compile(r"(?:[a-z0-9-]+\.)*[a-z0-9-]+(?::[0-9]{1,5})?")
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]+)?")
SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+"
PATH = re.compile(rf"{SEGMENT}(?:/{SEGMENT})+")
PATTERN = re.compile(r"[A-Za-z0-9._~*-]+(?:/[A-Za-z0-9._~*-]+)+")
SECRET = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
URL_CHARS = 500


def origin(host: str) -> str:
    """Where a host is spoken to: by TLS, but for one on this machine."""
    return f"{'http' if LOOPBACK.fullmatch(host) else 'https'}://{host}"


@dataclass(frozen=True)
class Repositories:
    """Those of one host that one credential opens: an entry of the setting `repositories`."""

    host: str
    """Its name, perhaps with a port."""
    match: tuple[str, ...]
    """Paths such as `owner/name`, in which `*` is any part of what stands between two slashes."""
    push: bool
    secret: str
    """The field of the deployment's secret that holds the token, or `user:password`."""

    @classmethod
    def of(cls, entry: object) -> "Repositories":
        """Raises `ValueError`, whose text says what is wrong, for what is no entry."""
        if not isinstance(entry, Mapping) or set(entry) != {"host", "match", "access", "secret"}:
            raise ValueError("each entry has host, match, access and secret, and nothing else")
        host, match, access, secret = (entry[name] for name in ("host", "match", "access", "secret"))
        if not (isinstance(host, str) and HOST.fullmatch(host)):
            raise ValueError(f"{host!r} is no host such as github.com")
        patterns = match if isinstance(match, Sequence) and not isinstance(match, str) else ()
        if not patterns or not all(isinstance(each, str) and PATTERN.fullmatch(each) for each in patterns):
            raise ValueError(f"match of {host} holds patterns such as owner/name or owner/*, at least one")
        if access not in ("read", "push"):
            raise ValueError(f"access of {host} is read or push, not {access!r}")
        if not (isinstance(secret, str) and SECRET.fullmatch(secret)):
            raise ValueError(f"secret of {host} names a field of the secret, such as GIT_TOKEN")
        return cls(host, tuple(patterns), access == "push", secret)

    @property
    def entry(self) -> dict[str, object]:
        """As the setting has it."""
        access = "push" if self.push else "read"
        return {"host": self.host, "match": list(self.match), "access": access, "secret": self.secret}

    @cached_property
    def paths(self) -> str:
        """A regular expression of their paths, without a slash before and `.git` behind."""
        parts = (re.escape(each).replace(r"\*", "[A-Za-z0-9._~-]*") for each in self.match)
        return rf"(?:{'|'.join(parts)})"

    def has(self, url: str) -> bool:
        """Whether the repository at this address is one of them."""
        path = url.removeprefix(f"{origin(self.host)}/")
        return path != url and is_address(url) and bool(re.fullmatch(self.paths, path.removesuffix(".git")))


def entries(value: object) -> tuple[Repositories, ...]:
    """The whole setting. Raises `ValueError`, whose text says what is wrong."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("they are a list")
    return tuple(Repositories.of(each) for each in value)


def is_address(url: object) -> bool:
    """Whether it is a repository's address, without a user, a query, or parts that lead elsewhere."""
    if not isinstance(url, str) or len(url) > URL_CHARS:
        return False
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    known = f"{scheme}://{host}" == origin(host)
    return known and bool(HOST.fullmatch(host)) and bool(PATH.fullmatch(path))
