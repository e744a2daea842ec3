"""What a run may reach beside the model and what the deployment lends it: the rules of the settings `egress` and
`registries`.

A host is compared by its name, which can be written in one way only: letters in lower case, digits and hyphens, parted
by dots, of which the last part begins with a letter, so that no number is taken for a name
(`lambdas.agent.tunnel` reads the agent's requests by the same rule).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
TOP = r"(?=[a-z])[a-z0-9-]{1,63}(?<!-)"
NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{LABEL}\.)+{TOP}")
ENTRY = re.compile(rf"(?:\*\.)?{NAME.pattern}")
REGISTRY = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*/?")
REGISTRY_HERE = re.compile(r"http://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*/?")

OPEN = "open"
"""The setting `egress` where the network is whatever the machine has."""

KINDS = ("pip", "npm", "cargo")
"""Whose registries there can be, by the program that installs from them."""


@dataclass(frozen=True)
class Egress:
    """The setting `egress`: hosts that a run may speak TLS with, or all there is."""

    hosts: tuple[str, ...] = ()
    """Names, of which one may begin with `*.` for every name below it."""
    open: bool = False
    """Whether nothing is closed: what the machine reaches, the agent reaches."""

    @classmethod
    def of(cls, value: object) -> "Egress":
        """Raises `ValueError`, whose text says what is wrong."""
        if value == OPEN:
            return cls(open=True)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f'it is a list of hosts, or "{OPEN}"')
        for each in value:
            if not (isinstance(each, str) and ENTRY.fullmatch(each)):
                raise ValueError(f"{each!r} is no host such as pypi.org or *.example.com")
        return cls(tuple(value))

    @property
    def entry(self) -> list[str] | str:
        """As the setting has it."""
        return OPEN if self.open else list(self.hosts)

    def has(self, name: str) -> bool:
        """Whether a host, by its name as `NAME` has it, is on the list."""
        return any(name == each or (each[:2] == "*." and name.endswith(each[1:])) for each in self.hosts)


CLOSED = Egress()
"""To no host."""


def registries(value: object) -> dict[str, str]:
    """The setting `registries`: the address of each kind's. Raises `ValueError`, whose text says what is wrong."""
    if not isinstance(value, Mapping):
        raise ValueError('they are an object, such as {"pip": "https://pypi.org/simple"}')
    for kind, url in value.items():
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        if not (isinstance(url, str) and (REGISTRY.fullmatch(url) or REGISTRY_HERE.fullmatch(url))):
            raise ValueError(f"{kind} needs an address such as https://host/path, without a user or a query")
    return {kind: url.rstrip("/") for kind, url in value.items()}
