"""The agent on Bedrock: the real CLI through the real proxy, against a small server that checks every signature."""

import asyncio
import base64
import http.client
import http.server
import json
import re
import struct
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from claude_workflow.local.model import Conversation, RecordedRequest, Rule, events
from lambdas.agent.bedrock import bedrock
from lambdas.agent.claude import Turn, converse
from lambdas.agent.outcome import Outcome
from lambdas.agent.proxy import Proxy
from lambdas.agent.reach import Reach
from lambdas.agent.scratch import Scratch
from lambdas.errors import ModelOverloaded, ModelRateLimited, ModelRejected, ModelUnauthorized, WorkflowError
from lambdas.run_claude import _upstreams
from lambdas.settings import AgentSettings
from tests.support.http_servers import Answering, listening
from tests.support.kept_checkpoints import Kept

REGION = "eu-west-1"
MODEL = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
DOLLARS = 0.00495
"""A thousand tokens in and a hundred out, at 3 and 15 dollars a million, and a tenth more for a geography."""
CALL = f"/model/model/{MODEL}/invoke-with-response-stream"
SIGNED = re.compile(
    rf"AWS4-HMAC-SHA256 Credential=(?P<key>\w+)/\d{{8}}/{REGION}/bedrock/aws4_request, "
    r"SignedHeaders=(?P<headers>[\w;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)
ERRORS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
"""The service's names for what it refuses, in the header `x-amzn-errortype`."""


@dataclass
class Service:
    """A Bedrock that knows one role, and answers by the rule of the scripted model."""

    url: str = ""
    role: Credentials = field(default_factory=lambda: Credentials("ASIAONE", "secret-one", "session-one"))
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    rule: Rule = field(default_factory=Rule)

    def refusal(self, method: str, path: str, headers: dict[str, str], body: bytes) -> str | None:
        """What is wrong with a request's signature: the error's name."""
        match = SIGNED.fullmatch(headers.get("authorization", ""))
        if not match:
            return "MissingAuthenticationTokenException"
        if headers.get("x-amz-security-token") != self.role.token:
            return "ExpiredTokenException"
        names = match["headers"].split(";")
        signed = {name: headers[name] for name in names}
        request = AWSRequest(method, f"http://{headers['host']}{path}", signed, body)
        request.context["timestamp"] = headers["x-amz-date"]
        auth = SigV4Auth(self.role, "bedrock", REGION)
        expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        whole = {"host", "content-type", "x-amz-date", "x-amz-security-token"} <= set(names)
        return None if whole and match["signature"] == expected else "InvalidSignatureException"


class Handler(Answering):
    """The service's side of one connection."""

    service: Service

    def do_POST(self) -> None:
        body = self.received()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.service.seen.append((self.path, headers, body))
        if error := self.service.refusal(self.command, self.path, headers, body):
            return self._refuse(403, error)
        asked = json.loads(body)
        if not asked.get("anthropic_version", "").startswith("bedrock-") or asked.keys() & {"model", "stream"}:
            return self._refuse(400, "ValidationException")
        seen = RecordedRequest(headers, body, asked, self.path.split("/")[2], Conversation.of(asked["messages"]))
        answer = self.service.rule.answer(seen)
        if answer.fault and answer.fault.verb == "status":
            status = int(answer.fault.fields["code"] or 0)
            return self._refuse(status, ERRORS[status])
        frames = [chunk(event) for event in events(answer.message(seen.model))]
        if answer.fault:
            said = b'{"message": "as asked"}'
            frames[2:] = [frame({":message-type": "exception", ":exception-type": "throttlingException"}, said)]
        return self._stream(frames)

    do_GET = do_POST

    def _refuse(self, status: int, error: str) -> None:
        body = json.dumps({"message": f"{error}, as asked"}).encode()
        kind = f"{error}:http://internal.amazon.com/coral/com.amazon.bedrock/"
        self.answer(status, body, {"content-type": "application/json", "x-amzn-errortype": kind})

    def _stream(self, frames: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/vnd.amazon.eventstream")
        self.send_header("x-amzn-requestid", str(uuid.uuid4()))
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in frames:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def chunk(event: dict[str, Any]) -> bytes:
    """An event of the Messages API as Bedrock sends it."""
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abcdef"}).encode()
    names = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    return frame(names, payload)


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of AWS' event stream; 7 is the type of a header that is a string."""
    head = b"".join(struct.pack("!B", len(n)) + n.encode() + struct.pack("!BH", 7, len(v)) + v.encode()
                    for n, v in headers.items())  # fmt: skip
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


@pytest.fixture
def service() -> Iterator[Service]:
    """The service, running."""
    state = Service()
    with listening(Handler, service=state) as state.url:
        yield state


@pytest.fixture
def role(service: Service, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process in the role that the service knows, as a function finds itself on Lambda."""
    assume(service.role, monkeypatch)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", service.url)
    return monkeypatch


def assume(role: Credentials, environment: pytest.MonkeyPatch) -> None:
    """Put a role's credentials where botocore looks for them."""
    environment.setenv("AWS_ACCESS_KEY_ID", role.access_key)
    environment.setenv("AWS_SECRET_ACCESS_KEY", role.secret_key)
    environment.setenv("AWS_SESSION_TOKEN", role.token)


@pytest.fixture
def proxy(role: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001 - it sets the environment
    """The proxy of a run."""
    with Proxy([bedrock(MODEL)]) as running:
        yield running


def run(prompt: str, scratch: Scratch, model: str | None = None) -> Outcome:
    """A first turn with the upstreams that RunClaude makes of its settings."""
    settings = {
        "MODEL_PROVIDER": "bedrock",
        "BEDROCK_MODEL": MODEL,
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:s",
        "MAX_SESSION_BYTES": "1000",
        "MAX_SESSION_FILES": "10",
        "SCRATCH": "unused",
        "SANDBOX": "none",
        "AGENT_NETWORK": "shared",
        "AGENT_FOLDER": "/var/task/agent",
        "WORKSPACE_INSTRUCTIONS": "false",
        "ASK_BEFORE": "[]",
        "REPOSITORIES": "[]",
        "PROTECTED_BRANCHES": "[]",
        "EGRESS": "[]",
        "REGISTRIES": "{}",
        "MODELS": "null",
        "GIT_IDENTITY": "{}",
        "PRICES": "{}",
    }
    turn = Turn(prompt, claude_session=str(uuid.uuid4()), resume=False, model=model)
    reach = Reach(outward=False, conversation=turn.claude_session)
    with Proxy(_upstreams(AgentSettings.read(settings), str), reach=reach) as proxy:
        return asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))


def asked(proxy: Proxy, method: str = "POST", path: str = CALL, **headers: str) -> int:
    """The status of a request with the run's token, where the CLI puts it."""
    token = {"authorization": f"Bearer {proxy.environment['AWS_BEARER_TOKEN_BEDROCK']}"}
    body = {"anthropic_version": "bedrock-2023-05-31", "messages": [{"role": "user", "content": "hello"}]}
    connection = http.client.HTTPConnection(str(urlsplit(proxy.url).netloc), timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, json.dumps(body), token | given)
    try:
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.usefixtures("role")
def test_a_turn_on_bedrock(service: Service, scratch: Scratch) -> None:
    """Tools run, the answer comes through AWS' event stream, and every call is signed with the role's credentials."""
    usage = 'usage {"input_tokens": 1000, "output_tokens": 100}'
    outcome = run(f"{usage}\nrun echo hi\n{usage}\nhello", scratch)
    assert (outcome.stop_reason, outcome.num_turns) == ("end_turn", 2)
    assert "→ hi" in str(outcome.result)
    assert [(call.usd, call.end) for call in outcome.receipt.calls] == [(DOLLARS, "whole")] * 2
    assert len({call.request_id for call in outcome.receipt.calls} - {None}) == 2
    assert [path for path, _, _ in service.seen] == [f"/model/{MODEL}/invoke-with-response-stream"] * 2


@pytest.mark.usefixtures("role")
def test_the_agent_holds_no_aws_credential(service: Service, scratch: Scratch) -> None:
    """`env` in a tool and the CLI's own environment show the run's token only, which Bedrock never sees."""
    outcome = run("run env; cat /proc/$PPID/environ | tr '\\0' '\\n'", scratch)
    shown = str(outcome.result)
    (token,) = set(re.findall(r"run-[\w-]{40,}", shown))
    for hidden in ("AWS_ACCESS_KEY_ID", "AWS_SECRET", "AWS_SESSION_TOKEN", "ASIAONE", "secret-one", "session-one"):
        assert hidden not in shown
    # The body of the second call quotes what the tool showed.
    path, headers, body = service.seen[0]
    assert token not in path + json.dumps(headers) + body.decode()
    assert all(token not in path + json.dumps(headers) for path, headers, _ in service.seen)


@pytest.mark.usefixtures("role")
@pytest.mark.parametrize("alias", ["opus", "sonnet", "haiku"])
def test_aliases_and_subagents_ask_for_the_model_of_the_deployment(
    alias: str, service: Service, scratch: Scratch
) -> None:
    """The models of the CLI's own choosing are not the role's, and are not asked for."""
    errand = {"description": "x", "prompt": "hello", "subagent_type": "Explore", "model": alias}
    outcome = run(f"tool Agent {json.dumps(errand)}", scratch, model=alias)
    assert "conversation that began with “hello”" in str(outcome.result)
    assert {path.split("/")[2] for path, _, _ in service.seen} == {MODEL}
    assert len(service.seen) == 3


@pytest.mark.usefixtures("role")
def test_a_run_may_name_another_model(service: Service, scratch: Scratch) -> None:
    """An id goes to Bedrock as it is; whether the role may invoke it is IAM's to say."""
    run("hello", scratch, model="anthropic.claude-opus-4-1-20250805-v1:0")
    assert {path.split("/")[2] for path, _, _ in service.seen} == {"anthropic.claude-opus-4-1-20250805-v1:0"}


@pytest.mark.usefixtures("role")
@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("status 400", ModelRejected),
        ("status 403", ModelUnauthorized),
        ("status 404", ModelRejected),
        ("status 429", ModelRateLimited),
        ("status 500", ModelOverloaded),
        ("status 503", ModelOverloaded),
        ("cut", ModelOverloaded),
    ],
)
def test_what_bedrock_refuses(prompt: str, error: type[WorkflowError], scratch: Scratch) -> None:
    """Each of the service's exceptions becomes the error of its status; one in mid-stream is an overload."""
    with pytest.raises(error) as caught:
        run(prompt, scratch)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "model", [MODEL, MODEL.replace(":", "%3A"), "anthropic.claude-opus-5-v1:0", "global.anthropic.claude-opus-5"]
)
def test_ids_of_models_and_profiles_are_let_through(model: str, service: Service, proxy: Proxy) -> None:
    """With the colon as it is or encoded, the path arrives as it was sent, and its signature is right."""
    assert asked(proxy, path=f"/model/model/{model}/invoke-with-response-stream?a=1&b=%2F") == 200
    assert service.seen[0][0] == f"/model/{model}/invoke-with-response-stream?a=1&b=%2F"
    assert proxy.answers == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CALL),
        ("GET", "/model/inference-profiles?type=SYSTEM_DEFINED"),
        ("POST", f"/model/model/{MODEL}/invoke"),
        ("POST", f"/model/model/{MODEL}/converse-stream"),
        ("POST", f"/model/model/{MODEL}/count-tokens"),
        ("POST", "/model/model/a/../b/invoke-with-response-stream"),
        ("POST", "/model/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ax%2Fy/invoke-with-response-stream"),
        ("POST", "/model/model//invoke-with-response-stream"),
        ("POST", "/model/model/a%00b/invoke-with-response-stream"),
        ("POST", "/model/async-invoke"),
    ],
)
def test_other_requests_are_refused(method: str, path: str, service: Service, proxy: Proxy) -> None:
    """The role is lent for the streaming call alone: nothing is listed, and no model is asked whether it is there."""
    assert asked(proxy, method, path) == 403
    assert service.seen == []


def test_signed_headers_are_the_proxys_own(service: Service, proxy: Proxy) -> None:
    """What the agent says in their place is dropped, so a request never carries two dates or tokens."""
    assert asked(proxy, x_amz_date="20200101T000000Z", X_Amz_Security_Token="mine", content_type="text/plain") == 200
    _, headers, _ = service.seen[0]
    assert (headers["content-type"], headers["x-amz-security-token"]) == ("application/json", "session-one")


def test_credentials_that_have_ended_are_looked_for_anew(
    service: Service, role: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    """Once per request, and only if there are others by then."""
    service.role = Credentials("ASIATWO", "secret-two", "session-two")
    assert asked(proxy) == 403
    assert len(service.seen) == 1
    assume(service.role, role)
    assert asked(proxy) == 200
    assert asked(proxy) == 200
    tokens = [headers["x-amz-security-token"] for _, headers, _ in service.seen]
    assert tokens == ["session-one", "session-one", "session-two", "session-two"]


def test_a_denied_call_is_not_repeated(service: Service, role: pytest.MonkeyPatch) -> None:
    """Any other 403 is the answer: new credentials would be the same role's."""
    role.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with Proxy([bedrock(MODEL)]) as proxy:
        assert asked(proxy) == 403
    assert len(service.seen) == 1


def test_without_credentials_no_run_begins(role: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is the deployment's mistake, and is called so."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        role.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        role.setenv(name, str(tmp_path / "none"))
    role.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ModelUnauthorized), Proxy([bedrock(MODEL)]):
        pass


def test_the_address_is_the_regions(role: pytest.MonkeyPatch) -> None:
    """Unless botocore is told otherwise."""
    role.delenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME")
    assert bedrock(MODEL).base_url == f"https://bedrock-runtime.{REGION}.amazonaws.com"
