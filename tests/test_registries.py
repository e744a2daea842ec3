"""Registries through the proxy: pip, npm and cargo install from small ones on loopback, and nothing is put there."""

import base64
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.agent import registries
from lambdas.agent.proxy import Proxy
from lambdas.agent.registries import FILES, led
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import Upstream
from tests.support.foreign_programs import program
from tests.support.http_servers import Answering, listening

WHEEL, INFO = "thing-1.0-py3-none-any.whl", "thing-1.0.dist-info"
TARBALL = "/@acme/thing/-/thing-1.0.0.tgz"
CARGO = Path.home() / ".cargo/bin/rustup"
"""Which knows where the toolchain is."""


@dataclass
class Registry:
    """All three of them, with their files on a host of their own."""

    index: str = ""
    files: str = ""
    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Content type and content, by the path."""
    moved: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """Method and path of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)

    def upstreams(self, **paths: str) -> list[Upstream]:
        """By the kinds, each at its path."""
        found = {kind: f"{self.index}{path}" for kind, path in paths.items()}
        return registries.upstreams(found, {self.index: self.files})


class Handler(Answering):
    """Of the index, and of the files."""

    registry: Registry

    def do_GET(self) -> None:
        self.registry.seen.append(f"{self.command} {self.path}")
        self.registry.headers.append({name.lower(): value for name, value in self.headers.items()})
        if "if-none-match" in self.registry.headers[-1]:
            return self.answer(304, b"", {"content-type": "text/html"})
        if place := self.registry.moved.get(self.path):
            return self.answer(301, b"", {"location": place})
        kind, body = self.registry.pages.get(self.path, ("", None))
        if body is None:
            return self.answer(404)
        self.answer(
            200, b"" if self.command == "HEAD" else body, {"content-type": kind, "content-length": str(len(body))}
        )
        return None

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET


def packed(files: Mapping[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


def wheel() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", f"thing.py,,\n{INFO}/METADATA,,\n{INFO}/WHEEL,,\n{INFO}/RECORD,,\n")
    return made.getvalue()


def stocked(registry: Registry) -> None:
    """One package of each kind."""
    whl, tgz = wheel(), packed({"package/package.json": '{"name": "@acme/thing", "version": "1.0.0"}'})
    toml = '[package]\nname = "thing"\nversion = "1.0.0"\nedition = "2021"\n'
    crate = packed({"thing-1.0.0/Cargo.toml": toml, "thing-1.0.0/src/lib.rs": ""})
    link = f"{registry.files}/p/{WHEEL}#sha256={hashlib.sha256(whl).hexdigest()}"
    dist = {
        "tarball": f"https://registry.npmjs.org{TARBALL}",
        "integrity": f"sha512-{base64.b64encode(hashlib.sha512(tgz).digest()).decode()}",
    }
    version = {"name": "@acme/thing", "version": "1.0.0", "dist": dist}
    about = {"name": "@acme/thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    line = {"name": "thing", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
    line["cksum"] = hashlib.sha256(crate).hexdigest()
    binary, of_json = "application/octet-stream", "application/json"
    registry.pages = {
        "/simple/thing/": ("text/html; charset=utf-8", f'<!DOCTYPE html><a href="{link}">{WHEEL}</a>'.encode()),
        f"/p/{WHEEL}": (binary, whl),
        "/@acme%2fthing": (of_json, json.dumps(about).encode()),
        TARBALL: (binary, tgz),
        "/config.json": (of_json, json.dumps({"dl": f"{registry.files}/crates", "api": registry.index}).encode()),
        "/th/in/thing": ("text/plain", json.dumps(line).encode() + b"\n"),
        "/crates/thing/1.0.0/download": (binary, crate),
    }
    registry.moved = {"/simple/Thing/": "/simple/thing/", "/simple/far/": "https://evil.example/simple/far/"}


@pytest.fixture(scope="module")
def made() -> Iterator[Registry]:
    registry = Registry()
    with (
        listening(Handler, registry=registry) as registry.index,
        listening(Handler, registry=registry) as registry.files,
    ):
        stocked(registry)
        yield registry


@pytest.fixture
def registry(made: Registry) -> Registry:
    """With nothing remembered."""
    made.seen.clear()
    made.headers.clear()
    return made


def ran(proxy: Proxy, home: Path, *command: str, at: Path | None = None, path: str = "") -> str:
    """What a program says that is led by the proxy's variables and files alone."""
    for name, text in proxy.files.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)
    own = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(command, env=own | proxy.environment, cwd=at or home, capture_output=True, text=True)
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    with Proxy(registry.upstreams(pip="/simple", npm="", cargo=""), tunnels=Tunnels()) as running:
        yield running


def test_pip_installs(proxy: Proxy, registry: Registry, tmp_path: Path) -> None:
    """By a name that the registry leads elsewhere for, from files on another host."""
    said = ran(proxy, tmp_path, sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-dw", "thing")
    assert said.startswith("0 "), said
    assert (tmp_path / "w" / WHEEL).is_file()
    assert registry.seen == ["GET /simple/thing/", f"GET /p/{WHEEL}"]
    assert not any("authorization" in headers or proxy.token in str(headers) for headers in registry.headers)
    assert proxy.meter.refusals.rows == ()


def test_npm_installs_and_names_the_public_registry_in_its_lock_file(
    proxy: Proxy, registry: Registry, tmp_path: Path
) -> None:
    """And from such a lock file, which the next run has with another port and another token."""
    npm, work = program("npm", "npm"), tmp_path / "work"
    work.mkdir()
    (work / "package.json").write_text("{}")
    for words in (["install", "@acme/thing"], ["ci"]):
        assert ran(proxy, tmp_path, npm, *words, at=work).startswith("0 ")
        assert (work / "node_modules/@acme/thing/package.json").is_file()
        shutil.rmtree(work / "node_modules")
        shutil.rmtree(tmp_path / ".npm")
    lock = (work / "package-lock.json").read_text()
    assert (f"https://registry.npmjs.org{TARBALL}" in lock, "127.0.0.1" in lock) == (True, False)
    assert registry.seen == ["GET /@acme%2fthing", f"GET {TARBALL}", f"GET {TARBALL}"]
    assert proxy.meter.refusals.rows == ()


@pytest.mark.skipif(not CARGO.exists(), reason="no Rust here")
def test_cargo_fetches(proxy: Proxy, registry: Registry, tmp_path: Path) -> None:
    """From files on another host; its lock file names the public index."""
    found = subprocess.run([CARGO, "which", "cargo"], capture_output=True, text=True, check=True).stdout.strip()
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    (work / "src/lib.rs").touch()
    (work / "Cargo.toml").write_text('[package]\nname = "w"\nversion = "0.1.0"\n[dependencies]\nthing = "1"\n')
    said = ran(proxy, tmp_path, found, "fetch", at=work, path=str(Path(found).parent))
    assert said.startswith("0 "), said
    assert registry.seen == ["GET /config.json", "GET /th/in/thing", "GET /crates/thing/1.0.0/download"]
    assert "registry+https://github.com/rust-lang/crates.io-index" in (work / "Cargo.lock").read_text()


def test_what_has_not_changed_is_no_page(proxy: Proxy, registry: Registry) -> None:
    """An answer without a body is one here, too: what the same connection is asked next is answered."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as connection:
        lines = []
        for _ in range(2):
            connection.request("GET", "/pip/simple/thing/", headers={"x-api-key": proxy.token, "if-none-match": '"e"'})
            with connection.getresponse() as answer:
                lines.append((answer.status, answer.headers.get("transfer-encoding"), answer.read()))
    assert lines == [(304, None, b"")] * 2
    assert len(registry.seen) == 2


def test_npm_publishes_nothing(proxy: Proxy, registry: Registry, tmp_path: Path) -> None:
    """Whatever its configuration says; the reason is in the record."""
    (tmp_path / "package.json").write_text('{"name": "thing", "version": "1.0.0"}')
    assert ran(proxy, tmp_path, program("npm", "npm"), "publish", "--access", "public").startswith("1 ")
    assert [each for each in registry.seen if not each.startswith("GET")] == []
    (row,) = proxy.meter.refusals.rows
    assert (row.what, row.why) == ("PUT /npm/thing", registries.upstreams({"npm": "https://a.b"})[0].elsewhere)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/pip/legacy/", b"form", {}),  # as twine does it
        ("PUT", "/cargo/api/v1/crates/new", b"crate", {}),
        ("DELETE", "/npm/-/package/thing/dist-tags/latest", None, {}),
        ("POST", "/npm/-/npm/v1/security/audits/quick", b"{}", {}),
        ("GET", "/pip/simple/thing/?secret=1", None, {}),
        ("GET", "/pip/simple/thing/", b"secret", {}),
        ("GET", "/pip/../simple/thing/", None, {}),
        ("GET", "/pip//simple/thing/", None, {}),
        ("GET", "/npm/..%2f..%2fadmin%2fusers", None, {}),
        ("GET", "/npm/@scope/..%2fadmin", None, {}),
        ("GET", "/npm/@scope%2fname%2f..", None, {}),
        ("GET", "/npm/@scope%2f../admin", None, {}),
        ("GET", "/pip/simple%2f..%2fadmin", None, {}),
        ("GET", "/pip-files", None, {}),
        ("GET", "/gem/simple/", None, {}),
        ("POST", "/pip/simple/thing/", b"", {"x-http-method-override": "GET"}),
    ],
)
def test_a_registry_is_read_and_nothing_else(
    method: str, path: str, body: bytes | None, headers: dict[str, str], proxy: Proxy, registry: Registry
) -> None:
    """Without a query or a body, in which something could be carried there."""
    asked = urllib.request.Request(f"{proxy.url}{path}", body, headers | {"x-api-key": proxy.token}, method=method)
    with pytest.raises(urllib.error.HTTPError) as error, urllib.request.urlopen(asked, timeout=30):
        pass
    error.value.close()
    assert error.value.code == 403
    assert registry.seen == []
    assert len(proxy.meter.refusals.rows) == 1


def read(proxy: Proxy, path: str, **more: str) -> tuple[int, dict[str, str], str]:
    """What a client that follows nothing gets."""
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    client.request("GET", path, headers={"x-api-key": proxy.token, **more})
    response = client.getresponse()
    said = response.status, {name.lower(): value for name, value in response.headers.items()}, response.read().decode()
    client.close()
    return said


def test_where_a_registry_leads_elsewhere_is_followed_inside_it_alone(proxy: Proxy, registry: Registry) -> None:
    """By the client, through the proxy: a place on it is one on the proxy, another is what it was, and no way there."""
    status, headers, _ = read(proxy, "/pip/simple/Thing/")
    assert (status, headers["location"]) == (301, f"{proxy.url}/pip/simple/thing/")
    assert read(proxy, "/pip/simple/far/")[1]["location"] == "https://evil.example/simple/far/"
    assert registry.seen == ["GET /simple/Thing/", "GET /simple/far/"]


def test_of_a_clients_headers_only_what_reading_needs_goes_on(proxy: Proxy, registry: Registry) -> None:
    """No cookie, no credential, none of its own making."""
    secrets = {"cookie": "s", "authorization": "Bearer s", "x-secret": "s", "if-none-match": '"e"', "accept": "a/b"}
    assert read(proxy, f"/pip-files/p/{WHEEL}"[: -len(WHEEL)] + "nothing", **secrets)[0] == 304
    sent = registry.headers[0]
    assert sent.keys() - {"host", "content-length"} == {"if-none-match", "accept"}


def test_a_registry_below_a_path_has_its_files_there(registry: Registry) -> None:
    """As those of companies have: npm asks for a package by its name, and for its files by the whole path."""
    registry.pages |= {
        "/api/npm/thing": ("text/plain", b"about"),
        "/api/npm/thing/-/thing.tgz": ("text/plain", b"file"),
    }
    with Proxy(registry.upstreams(npm="/api/npm"), tunnels=Tunnels()) as proxy:
        assert read(proxy, "/npm/thing")[2] == "about"
        assert read(proxy, "/npm/api/npm/thing/-/thing.tgz")[2] == "file"
        assert f"registry={proxy.url}/npm/\n" in proxy.files[".npmrc"]
    with Proxy(registry.upstreams(pip="/api/pip/simple"), tunnels=Tunnels()) as proxy:
        assert proxy.environment["PIP_INDEX_URL"].endswith(f"@127.0.0.1:{proxy.port}/pip/api/pip/simple")


def test_the_public_registries_have_their_files_elsewhere() -> None:
    """Each as an upstream of its own; of another registry there is none but itself."""
    found = registries.upstreams({"pip": "https://pypi.org/simple", "cargo": "https://index.crates.io"})
    assert {each.name: each.base_url for each in found} == {
        "pip": "https://pypi.org",
        "pip-files": FILES["https://pypi.org"],
        "cargo": "https://index.crates.io",
        "cargo-files": FILES["https://index.crates.io"],
    }
    assert [each.name for each in registries.upstreams({"pip": "https://pypi.acme.example/simple"})] == ["pip"]
    assert registries.upstreams({}) == []


@given(st.data())
def test_links_are_led_here_wherever_pieces_part_them(data: st.DataObject) -> None:
    """As in the whole text."""
    places = {b"https://a.example/": b"http://here/a/", b"https://b.a.example/": b"http://here/b/"}
    part = st.sampled_from(
        [b"https://a.example/", b"https://b.a.example/x", b"https://a.example", b"https:/", b"/a", b"h"]
    )
    text = b"".join(data.draw(st.lists(part, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = text
    for far, here in places.items():
        whole = whole.replace(far, here)
    assert b"".join(led(pieces, places)) == whole
