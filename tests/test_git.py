"""Git from the agent's place: the real git, behind the proxy, against `git http-backend` behind a password."""

import base64
import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from lambdas.agent.credential import Secret
from lambdas.agent.environment import lent
from lambdas.agent.git import FORGES, briefing, pull_requests, upstreams
from lambdas.agent.proxy import Proxy
from lambdas.agent.scratch import Scratch
from lambdas.agent.tunnel import Tunnels
from lambdas.errors import ModelUnauthorized
from lambdas.repositories import Repositories
from tests.support.git_host import TOKEN, GitHost, git_host
from tests.support.http_servers import Answering, listening

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    """A host with three repositories."""
    with git_host(tmp_path_factory.mktemp("host")) as made:
        for name in ("acme/site", "acme/lib", "other/site"):
            made.make(name, page="hello")
        yield made


@pytest.fixture
def host(served: GitHost) -> GitHost:
    """The host, with nothing asked of it yet."""
    served.forget()
    return served


def entries_of(host: GitHost) -> list[Repositories]:
    """Push to one, read the others of its owner."""
    return [
        Repositories(host.host, ("acme/*",), push=False, secret="READ"),
        Repositories(host.host, ("acme/site",), push=True, secret="PUSH"),
    ]


@dataclass
class Agent:
    """Somebody in the agent's place."""

    scratch: Scratch
    proxy: Proxy

    def sh(self, command: str) -> subprocess.CompletedProcess[str]:
        """What a shell command came to."""
        built = lent(self.scratch, self.proxy, [("user.name", "Claude"), ("user.email", "c@example.com")])
        launcher = self.scratch.launcher(Path("/bin/bash"), built, self.proxy)
        return subprocess.run(
            [launcher, "-c", command], cwd=self.scratch.workspace, env={}, capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def agent(host: GitHost, scratch: Scratch) -> Iterator[Agent]:
    """Behind a proxy of its own."""
    found = upstreams(entries_of(host), lambda _: Secret(lambda: host.token), ["main", "release/*"])
    with Proxy(found, tunnels=Tunnels()) as proxy:  # as in a run, whose variables lead to others by way of the proxy
        yield Agent(scratch, proxy)


def test_a_clone_a_branch_and_what_comes_next(host: GitHost, agent: Agent) -> None:
    """Read, committed as the deployment's, pushed in one piece and in chunks, and fetched again; `.git/config` keeps
    the public address, and the token is nowhere."""
    url = f"{host.url}/acme/site"
    cloned = agent.sh(f"git clone {url} . && git switch --quiet --create work && env && cat .git/config page")
    assert cloned.stdout.endswith("hello"), cloned.stderr
    assert f"url = {url}\n" in cloned.stdout
    for name, size in (("small", 1024), ("large", 5 * MIB)):
        command = f"head -c {size} /dev/urandom > {name}; git add . && git commit -qm {name} && git push origin work"
        assert agent.sh(command).returncode == 0
    assert host.head("acme/site", "work") == agent.sh("git rev-parse HEAD").stdout.strip()
    assert agent.sh("git log -1 --format='%an <%ae>'").stdout == "Claude <c@example.com>\n"
    later = host.commit("acme/site", "work", "later")
    fetched = agent.sh("git pull --quiet --ff-only origin work; git rev-parse HEAD; grep -r ghp- . $HOME $TMPDIR")
    assert fetched.stdout == f"{later}\n"
    assert TOKEN not in cloned.stdout + cloned.stderr
    assert base64.b64encode(TOKEN.encode())[2:-2].decode() not in cloned.stdout


def test_more_than_the_proxy_keeps_is_refused_with_a_reason(host: GitHost, agent: Agent) -> None:
    """Of 70 MiB, as git shows it to the agent; the host has not heard of it."""
    url = f"{host.url}/acme/site"
    plain = "git config core.compression 0; git config core.bigFileThreshold 1m"
    huge = f"head -c {70 * MIB} /dev/zero > huge; git add . && git commit -qm huge && git push origin HEAD:huge"
    pushed = agent.sh(f"git clone --quiet {url} . && {plain}; {huge}")
    assert "HEAD -> huge (a push may have 64 MiB; push in smaller steps" in pushed.stderr
    assert pushed.returncode == 1
    assert host.head("acme/site", "huge") == ""


@pytest.mark.parametrize(
    ("push", "reason"),
    [
        ("HEAD:main", "main is protected in this deployment"),
        ("--force HEAD:main", "main is protected in this deployment"),
        (":main", "main is protected in this deployment"),
        ("HEAD:refs/heads/release/1/x", "release/1/x is protected"),
        ("HEAD:fine HEAD:MAIN", "MAIN is protected"),
        ("HEAD:refs/for/main", "only branches and tags can be pushed"),
    ],
)
def test_what_a_push_would_change_is_read_before(push: str, reason: str, host: GitHost, agent: Agent) -> None:
    """All of a push is refused where one of its names may not be changed; git says why, and the host has not heard."""
    url = f"{host.url}/acme/site"
    before = host.heads("acme/site")
    pushed = agent.sh(f"git clone --quiet {url} . && git commit --allow-empty -qm x && git push origin {push}")
    assert reason in pushed.stderr
    assert pushed.returncode == 1
    assert host.heads("acme/site") == before
    assert [row.why for row in agent.proxy.meter.refusals.rows if reason in row.why]


@pytest.mark.parametrize(
    "command",
    [
        "git clone --quiet {host}/other/site .",
        "git clone --quiet {host}/acme/../other/site .",
        "git clone --quiet {host}/acme/lib . && git commit --allow-empty -qm x && git push origin HEAD:x",
    ],
)
def test_other_repositories_are_refused_with_a_reason(command: str, host: GitHost, agent: Agent) -> None:
    """Those of another pattern, and pushing to one that may only be read."""
    refused = agent.sh(command.format(host=host.url))
    assert "its setting `repositories` says" in refused.stderr
    assert refused.returncode
    assert not [path for _, path in host.asked if "other" in path or "receive-pack" in path]


def test_what_has_moved_is_found_by_way_of_the_proxy(host: GitHost, agent: Agent) -> None:
    """Hosts lead from a repository's old name to its new one; where that is another's, the way ends at the proxy."""
    host.moved = {"/acme/old": "/acme/site", "/acme/away": "/other/site"}
    assert agent.sh(f"git clone --quiet {host.url}/acme/old . && cat page").stdout == "hello"
    away = agent.sh(f"git clone --quiet {host.url}/acme/away elsewhere")
    assert "403" in away.stderr
    assert away.returncode


def test_an_unset_or_wrong_credential_is_told_by_git(host: GitHost, scratch: Scratch) -> None:
    """And stops no run that has no use for it."""

    def unset() -> str:
        raise ModelUnauthorized(detail="GIT_TOKEN")

    with Proxy(upstreams(entries_of(host), lambda _: Secret(unset))) as proxy:
        asked = Agent(scratch, proxy).sh(f"git clone --quiet {host.url}/acme/site .")
    assert "remote: the deployment's credential is unset" in asked.stderr
    given = ["old", "newer", TOKEN]
    with Proxy(upstreams(entries_of(host), lambda _: Secret(lambda: given.pop(0)))) as proxy:
        asked = Agent(scratch, proxy).sh(f"git clone --quiet {host.url}/acme/site .")
        assert "terminal prompts disabled" in asked.stderr
        assert Agent(scratch, proxy).sh(f"git clone --quiet {host.url}/acme/site . && cat page").stdout == "hello"


class Api(Answering):
    """As much of a forge as a pull request needs."""

    seen: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append((self.command, self.path, headers, self.rfile.read(int(headers.get("content-length", 0)))))
        self.answer(201, b"{}")

    do_GET = do_POST


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """Running."""
    with listening(Api) as url:
        yield url


@dataclass
class Asking:
    """Somebody who asks a forge through the proxy."""

    proxy: Proxy

    def __call__(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> int:
        given = self.proxy.environment
        url = urlsplit(next(value for name, value in given.items() if name.endswith("URL")))
        token = next(value for name, value in given.items() if name.endswith("TOKEN"))
        connection = http.client.HTTPConnection(url.netloc, timeout=60)
        headers = {"content-type": kind, "sudo": "root", "x-http-method-override": "DELETE"}
        connection.request(method, url.path + path, body, headers | {"authorization": f"Bearer {token}"})
        with closing(connection):
            return connection.getresponse().status


def forge_of(name: str, api: str) -> Proxy:
    entry = Repositories(name, ("acme/*", "acme/deep/*"), push=True, secret="X")
    return Proxy([pull_requests(entry, Secret(lambda: TOKEN), replace(FORGES[name], api=api))])


@pytest.mark.parametrize(
    ("forge", "path", "asked", "other", "fields"),
    [
        ("github.com", "/repos/acme/site/pulls", {"title": "t", "head": "work", "base": "main"}, "head_repo",
         ["/repos/acme/site/pulls/1/merge", "/repos/acme/site/hooks", "/repos/acme/site", "/repos/other/site/pulls",
          "/repos/acme/../other/site/pulls", "/repos/acme/site/pulls?a=b"]),
        ("gitlab.com", "/projects/acme%2Fdeep%2Fsite/merge_requests", {"title": "t", "source_branch": "work"},
         "target_project_id",
         ["/projects/acme%2Fsite/merge_requests/1/merge", "/projects/7/merge_requests", "/projects/acme%2Fsite/hooks",
          "/projects/other%2Fsite/merge_requests", "/projects/acme%2F..%2Fother%2Fsite/merge_requests",
          "/projects/acme%2Fsite/merge_requests?target_project_id=7"]),
    ],
)  # fmt: skip
def test_a_pull_request_is_opened_and_nothing_else(
    forge: str, path: str, asked: dict[str, str], other: str, fields: list[str], api: str
) -> None:
    """By its one path, as a JSON object of its own fields, with headers that mean nothing else; and looked at."""
    Api.seen.clear()
    with forge_of(forge, api) as proxy:
        ask = Asking(proxy)
        body = json.dumps(asked).encode()
        assert [ask("POST", path, body), ask("GET", f"{path}?state=open"), ask("GET", f"{path}/7")] == [201] * 3
        (method, came, headers, said), *_ = Api.seen
        assert (method, came, json.loads(said)) == ("POST", path, asked)
        assert headers["authorization"] == f"Bearer {TOKEN}"
        assert headers.keys().isdisjoint({"sudo", "x-http-method-override"})
        wrong = [json.dumps(asked | {other: 7}).encode(), b"[]", b"title=t", b""]
        assert {ask("POST", path, each) for each in wrong} == {403}
        assert ask("POST", path, body, "application/x-www-form-urlencoded") == 403
        assert {ask("POST", each, body) for each in fields} == {403}
        assert {ask(method, path, body) for method in ("PUT", "PATCH", "DELETE")} == {403}
        assert len(Api.seen) == 3


def test_the_agent_is_told_what_it_may_reach() -> None:
    """Only where there is anything; how a pull request is opened only where one can be."""
    push = Repositories("github.com", ("acme/site", "acme/docs-*"), push=True, secret="T")
    read = replace(push, host="gitlab.com", match=("acme/*",), push=False)
    told = briefing([push, read], ["main", "release/*"])
    assert "- github.com/acme/docs-* (read and push)\n- gitlab.com/acme/* (read)\n" in told
    assert "main, release/*" in told
    assert ("GITHUB_TOKEN" in told, "GITLAB_TOKEN" in told) == (True, False)
    assert briefing([]) == ""
    assert briefing([read], ["main"]).endswith("- gitlab.com/acme/* (read)")
