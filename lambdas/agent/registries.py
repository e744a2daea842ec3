"""Registries of packages as upstreams of the proxy: what is there can be installed, and nothing can be put there.

Only GET and HEAD pass, without a body, a query or a credential. What a registry asks for besides (a package's own
files, on a host of their own) is an upstream beside it. A registry's pages lead to absolute addresses: those of the
registry, and of its files, are rewritten to lead back here; whatever else they lead to leads nowhere from here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from lambdas.agent.credential import Anonymous
from lambdas.agent.upstream import SLY, SLY_BUT_SLASHES, Sent, Upstream

FILES: Mapping[str, str] = {
    "https://pypi.org": "https://files.pythonhosted.org",
    "https://index.crates.io": "https://static.crates.io",
}
"""Where the public registries have their packages' files; any other one has them where itself is."""

ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "pip": {"PIP_INDEX_URL": "{login}{path}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
}
"""What leads a kind's program here, and keeps it from asking for more than packages. `{path}` is the registry's own on
its host."""

FILES_AT_HOME: Mapping[str, Mapping[str, str]] = {
    "npm": {
        ".npmrc": "registry={url}/\n{bare}/:_authToken={token}\nreplace-registry-host=always\n"
        "audit=false\nfund=false\nupdate-notifier=false\n"
    },
    "cargo": {
        ".cargo/config.toml": '[source.crates-io]\nreplace-with = "deployment"\n'
        '[source.deployment]\nregistry = "sparse+{login}{path}/"\n'
    },
}
"""The same, of those that look into a file for it: npm takes no credential by a variable that every shell hands on,
cargo no registry. npm itself leads the addresses of packages' files here, those in a lock file among them."""

CHARS = r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*"
READS = re.compile(rf"(?:GET|HEAD) /{CHARS}")

OF_NPM = re.compile(
    rf"{SLY_BUT_SLASHES.pattern}|^(?!\w+ [^%?]*/@[a-z0-9._~-]+%2f(?!\.)(?:(?!%2f).)*$).*%2f", re.IGNORECASE | re.DOTALL
)
"""npm writes the slash in `@scope/name` as `%2f`; that one alone, and no name begins with a dot."""

OF_READING = frozenset(("accept", "if-modified-since", "if-none-match", "if-range", "range", "user-agent"))

LINKED = re.compile(r"text/html|application/(?:[a-z0-9.+-]+\+)?json")
"""The content types of pages that lead to packages."""


def upstreams(found: Mapping[str, str], files: Mapping[str, str] = FILES) -> list[Upstream]:
    """For each registry of the setting, by its kind; and for its files, where they have a host of their own."""
    return [each for kind, url in found.items() for each in _of(kind, url, files)]


def _of(kind: str, url: str, known: Mapping[str, str]) -> Iterator[Upstream]:
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    files = known.get(origin)
    if kind == "npm" and parts.path:  # its lock files name packages' files by their whole paths
        yield replace(_reading(kind, origin), requests=(re.compile(rf"(?:GET|HEAD) {re.escape(parts.path)}/{CHARS}"),))
    yield replace(
        _reading(kind, f"{origin}{parts.path}" if kind == "npm" else origin),
        environment=_on_its_host(ENVIRONMENT.get(kind, {}), parts.path),
        files=_on_its_host(FILES_AT_HOME.get(kind, {}), parts.path),
        leads={files: f"{kind}-files"} if files else {},
        linked=None if kind == "npm" else LINKED,
    )
    if files:
        yield _reading(f"{kind}-files", files)


def _on_its_host(forms: Mapping[str, str], path: str) -> dict[str, str]:
    return {name: form.replace("{path}", path) for name, form in forms.items()}


def _reading(name: str, origin: str) -> Upstream:
    return Upstream(
        name=name,
        base_url=origin,
        credential=Anonymous(),
        requests=(READS,),
        needed=False,
        with_query=True,
        sly=OF_NPM if name == "npm" else SLY,
        headers=OF_READING,
        admits=_with_a_body,
        elsewhere="From a registry, packages are read (GET, HEAD); nothing else is asked of it.",
    )


def _with_a_body(request: Sent) -> str | None:
    return "who reads from a registry sends it nothing" if request.body or request.cut else None


def led(pieces: Iterable[bytes], places: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """A text that comes in pieces, with each of these addresses replaced, wherever the pieces part it."""
    wanted, longest = re.compile(b"|".join(map(re.escape, places))), max(map(len, places))
    left = b""
    for piece in pieces:
        text = left + piece
        ends = [match.end() for match in wanted.finditer(text)]
        whole = max([0, len(text) - longest + 1, *ends[-1:]])
        yield from filter(None, [wanted.sub(lambda match: places[match[0]], text[:whole])])
        left = text[whole:]
    yield from filter(None, [left])
