"""The services that the agent may use in the deployment's name, and which requests for them are let through."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from lambdas.agent.credential import Credential, Key, Secret
from lambdas.agent.messages import Call, Reader, reader

BODY_BYTES = 64 * 1024 * 1024
"""Largest request; the Messages API takes 32 MB."""

NOT_FORWARDED = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),  # hop by hop
    *("host", "content-length", "expect"),  # written anew
    "accept-encoding",  # an encoded answer could not be read as it passes
    *("authorization", "x-api-key", "apikey", "private-token", "cookie"),  # the run's token, replaced
}

SLY = re.compile(r"//|/\.\.?(/|$)|%2e|%2f|%5c|[\\\x00-\x1f]", re.IGNORECASE)
"""What makes a path mean another one to whoever reads it next."""
SLY_BUT_SLASHES = re.compile(SLY.pattern.replace("|%2f", ""), re.IGNORECASE)
"""The same, where a slash can be part of a name."""

MODEL = "model"
"""The name of the upstream that is the model."""


@dataclass(frozen=True)
class Reply:
    """An answer of the proxy's own, in the upstream's place."""

    status: HTTPStatus
    content_type: str
    body: bytes
    why: str = ""
    """Why it is not passed on, for the run's record; empty where nothing is refused."""


@dataclass(frozen=True)
class Sent:
    """A request of the agent's, without what is not to be forwarded."""

    method: str
    path: str
    """Below the upstream's base URL, with the query."""
    headers: Sequence[tuple[str, str]]
    body: bytes
    cut: bool = False
    """Whether the body had more than the proxy keeps, which is gone: then it is not to be handed on."""

    @property
    def named(self) -> dict[str, str]:
        """The headers by their names in lower case; several with one name are one, as RFC 9110 (5.3) has them."""
        found: dict[str, str] = {}
        for name, value in ((name.lower(), value) for name, value in self.headers):
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found


@dataclass(frozen=True)
class Upstream:
    """A service that the agent may use in the deployment's name. Of several with one name, a request is the first's
    that lets it through."""

    name: str
    """With what its paths on the proxy begin."""
    base_url: str
    credential: Credential
    requests: Sequence[re.Pattern[str]]
    """What is let through: `METHOD /path`, without the query, must match one of these as a whole."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the agent gets; `{url}` and `{token}` stand for the proxy's address of it and the run's token, `{login}` for
    the address with the token as a password in it, `{bare}` for it without its scheme."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that it gets in its home, by their paths there, in the same forms."""
    call: Callable[[Sent], Call | None] = lambda _: None
    """Reads a call of the model; None for another request. Raises `Unreadable`."""
    reader: Callable[[str], Reader] = reader
    """What reads its answer, by the content type."""
    needed: bool = True
    """Whether a run cannot do without it, and so not without its secret."""
    with_query: bool = False
    """Whether `requests` are matched with the query."""
    sly: re.Pattern[str] = SLY
    """What no request may hold, whatever `requests` say."""
    headers: frozenset[str] | None = None
    """The agent's headers that are forwarded; None: all but `NOT_FORWARDED`."""
    streamed: bool = False
    """Whether a body may come in chunks, and have more than the proxy keeps, to be refused by `admits`."""
    admits: Callable[[Sent], Reply | str | None] = lambda _: None
    """Reads a request that is let through by its path: what is wrong with it all the same, in words or as an answer of
    the upstream's kind, or None."""
    elsewhere: str = "not a request that this run may make"
    """Why another request is refused."""
    leads: Mapping[str, str] = field(default_factory=dict)
    """Other addresses that its answers lead to, and the upstreams that these are."""
    linked: re.Pattern[str] | None = None
    """The content types of answers whose links are led through the proxy, too."""
    git: Sequence[tuple[str, str]] = ()
    """What the agent's git is configured with, in the same forms as `environment`."""

    def takes(self, method: str, path: str) -> bool:
        """Whether a request for this path, with its query, is let through."""
        asked = f"{method} {path if self.with_query else path.partition('?')[0]}"
        return not self.sly.search(asked) and any(allowed.fullmatch(asked) for allowed in self.requests)

    def forwards(self, header: str) -> bool:
        """Whether a header of the agent's, in lower case, is handed on."""
        return header not in NOT_FORWARDED if self.headers is None else header in self.headers


ALIASES = ("OPUS", "SONNET", "HAIKU", "FABLE")
"""The model names of CLI 2.1.332 that stand for the newest of a kind; subagents and small errands go by them."""


def led_to(models: Sequence[str]) -> dict[str, str]:
    """What leads Claude Code to these models alone: the first where none is named, and for an alias one that has it in
    its name, or the first."""
    of_kind = {alias: next((each for each in models if alias.lower() in each), models[0]) for alias in ALIASES}
    return {"ANTHROPIC_MODEL": models[0]} | {f"ANTHROPIC_DEFAULT_{each}_MODEL": of_kind[each] for each in ALIASES}


def anthropic(
    secret: Secret, base_url: str = "https://api.anthropic.com", models: Sequence[str] | None = None
) -> Upstream:
    """The Messages API, for these models, or for all of them."""
    return Upstream(
        name=MODEL,
        base_url=base_url.rstrip("/"),
        credential=Key(secret, {"x-api-key": "{}"}),
        requests=(re.compile(r"POST /v1/messages(/count_tokens)?"),),
        environment={"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": "{token}"}
        | (led_to(models) if models else {}),
        call=_message,
    )


def _message(request: Sent) -> Call:
    """Counting tokens is free."""
    counts = request.path.partition("?")[0].endswith("/count_tokens")
    return Call.of(request.body, request.named, free=counts)


def supabase(secret: Secret, base_url: str) -> Upstream:
    """A Supabase project with its service key; its clients take the token for the key."""
    return Upstream(
        name="supabase",
        base_url=base_url.rstrip("/"),
        credential=Key(secret, {"apikey": "{}", "authorization": "Bearer {}"}),
        requests=(re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) /(rest|storage|functions|graphql)/v1(/.*)?"),),
        environment={"SUPABASE_URL": "{url}", "SUPABASE_KEY": "{token}"},
    )
