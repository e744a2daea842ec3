"""Hosts of git repositories as upstreams of the proxy: which requests, with which credential, and how the agent's git
finds its way to them.

The agent's git knows repositories by their public addresses, which is what `.git/config` keeps. Its configuration,
which is in the environment and of this run alone, leads them to the proxy, with the run's token. The proxy lets through
what git asks of the repositories of the setting, nothing else of the host, and adds the credential.

A pull request is opened by the one path of the host's REST API that does it, on the same repositories, and no field of
it can lead to others: the rest of that API does what nobody who may push a branch needs.
"""

import base64
import http.client
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from lambdas import strict
from lambdas.agent import push
from lambdas.agent.credential import Credential, Key, Secret
from lambdas.agent.upstream import SLY, SLY_BUT_SLASHES, Reply, Sent, Upstream
from lambdas.repositories import Repositories, origin

OF_GIT = frozenset(
    ("accept", "accept-language", "content-type", "content-encoding", "git-protocol", "user-agent", "pragma")
)
OF_REST = frozenset(("accept", "content-type", "user-agent", "x-github-api-version"))
"""The headers that matter to a host: among others there are some that make a request another one."""

QUERY = r"(?:\?[A-Za-z0-9_=&.,:/~+%-]*)?"


@dataclass(frozen=True)
class Basic(Credential):
    """A token as git's hosts take it: as the password of a user."""

    secret: Secret
    user: str
    """Whose password it is, where the secret does not say it (`user:password`)."""

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:  # noqa: ARG002 - a signature needs them
        """The one header."""
        value = self.secret.current()
        pair = value if ":" in value else f"{self.user}:{value}"
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """Whether the secret was changed since."""
        if refusal.status != HTTPStatus.UNAUTHORIZED:
            return False
        if self.headers("", "", b"") != used:  # another thread was first
            return True
        return self.secret.renewed(self.secret.current()) is not None


@dataclass(frozen=True)
class Forge:
    """What a host known by its name has beside git."""

    api: str
    user: str
    """Whose password a token is."""
    requests: str
    """The path of a repository's pull requests; `{}` stands for those of the repositories."""
    slash: str
    """How the slash in a repository's path is written there."""
    fields: frozenset[str]
    """What a pull request may say."""
    environment: Mapping[str, str]
    advice: str
    """How a pull request is opened, for the agent."""


FORGES: Mapping[str, Forge] = {
    "github.com": Forge(
        api="https://api.github.com",
        user="x-access-token",
        requests="/repos/{}/pulls",
        slash="/",
        fields=frozenset(("title", "body", "head", "base", "draft")),
        environment={"GITHUB_API_URL": "{url}", "GITHUB_TOKEN": "{token}"},
        advice="Pull requests on github.com are opened by POST $GITHUB_API_URL/repos/OWNER/NAME/pulls, with the "
        "headers `Authorization: Bearer $GITHUB_TOKEN` and `Content-Type: application/json`, and title, head, base and "
        "perhaps body and draft; `gh` does not work here.",
    ),
    "gitlab.com": Forge(
        api="https://gitlab.com/api/v4",
        user="oauth2",
        requests="/projects/{}/merge_requests",
        slash="%2F",
        fields=frozenset(("title", "description", "source_branch", "target_branch", "labels")),
        environment={"CI_API_V4_URL": "{url}", "GITLAB_TOKEN": "{token}"},
        advice="Merge requests on gitlab.com are opened by POST $CI_API_V4_URL/projects/GROUP%2FNAME/merge_requests, "
        "with the headers `Authorization: Bearer $GITLAB_TOKEN` and `Content-Type: application/json`, and title, "
        "source_branch, target_branch and perhaps description and labels; `glab` does not work here.",
    ),
}
"""As GitHub's and GitLab's documentation has them (November 2026)."""


def upstreams(
    found: Sequence[Repositories],
    secret: Callable[[str], Secret],
    protected: Sequence[str] = (),
    approved: Callable[[], bool] = lambda: True,
) -> list[Upstream]:
    """For each entry of the setting. `secret` has the field of the deployment's secret; `protected` are branches that
    nobody pushes to; `approved` says of each other push whether it may be made."""
    made = []
    for each in found:
        lent, forge = secret(each.secret), FORGES.get(each.host)
        made.append(_git(each, lent, forge.user if forge else "git", partial(_wrong, protected, approved)))
        if each.push and forge:
            made.append(pull_requests(each, lent, forge))
    return made


def briefing(found: Sequence[Repositories], protected: Sequence[str] = ()) -> str:
    """What the agent is told of the setting: without, it would try `gh`, and meet each refusal once."""
    if not found:
        return ""
    lines = ["Git in this environment reaches these repositories, and no others of their hosts:"]
    for each in found:
        lines += [f"- {each.host}/{path} ({'read and push' if each.push else 'read'})" for path in each.match]
    if protected and any(each.push for each in found):
        lines.append(f"Branches that nothing can be pushed to: {', '.join(protected)}. Push others.")
    for host in dict.fromkeys(each.host for each in found if each.push and each.host in FORGES):
        lines.append(FORGES[host].advice)
    return "\n".join(lines)


def _git(found: Repositories, secret: Secret, user: str, admits: Callable[[Sent], Reply | str | None]) -> Upstream:
    services = ("git-upload-pack", "git-receive-pack") if found.push else ("git-upload-pack",)
    here = "{url}/"
    return Upstream(
        name=f"git/{found.host}",
        base_url=origin(found.host),
        credential=Basic(secret, user),
        requests=[
            re.compile(request)
            for service in services
            for request in (
                rf"GET /{found.paths}(?:\.git)?/info/refs\?service={service}",
                rf"POST /{found.paths}(?:\.git)?/{service}",
            )
        ],
        needed=False,
        with_query=True,
        headers=OF_GIT,
        streamed=True,
        admits=admits,
        elsewhere="This deployment does not let this repository be used so: its setting `repositories` says which can "
        "be read, and which pushed to.",
        git=[
            (f"http.{here}.extraHeader", "x-api-key: {token}"),
            *((f"url.{here}.insteadOf", address) for address in _addresses(found.host)),
        ],
    )


def _addresses(host: str) -> tuple[str, ...]:
    """How addresses of a host begin."""
    name = host.partition(":")[0]
    return f"{origin(host)}/", f"ssh://git@{host}/", f"git@{name}:"


def _wrong(protected: Sequence[str], approved: Callable[[], bool], request: Sent) -> Reply | str | None:
    return push.wrong(request, protected, approved) if request.path.endswith("/git-receive-pack") else None


def pull_requests(found: Repositories, secret: Secret, forge: Forge) -> Upstream:
    """Opening one, and looking at those there are."""
    path = forge.requests.format(found.paths.replace("/", forge.slash))
    return Upstream(
        name=f"pull-requests/{found.host}",
        base_url=forge.api,
        credential=Key(secret, {"authorization": "Bearer {}"}),
        requests=[re.compile(rf"POST {path}"), re.compile(rf"GET {path}(?:/[0-9]+)?{QUERY}")],
        environment=forge.environment,
        needed=False,
        with_query=True,
        sly=SLY_BUT_SLASHES if forge.slash == "%2F" else SLY,
        headers=OF_REST,
        admits=partial(_other_fields, forge.fields),
        elsewhere="Of this host's API, a run may open and read pull requests of the repositories it may push to.",
    )


def _other_fields(fields: frozenset[str], request: Sent) -> str | None:
    """Of a body that says more than a pull request is to say, such as into which other project it is to go."""
    if request.method != "POST":
        return None
    kinds = [value.partition(";")[0].strip() for name, value in request.headers if name.lower() == "content-type"]
    try:
        asked = strict.read(request.body)
    except ValueError:
        asked = None
    if kinds == ["application/json"] and isinstance(asked, dict) and asked.keys() <= fields:
        return None
    return f"a pull request is a JSON object (content-type: application/json) of {', '.join(sorted(fields))}"
