"""The engine's door, as everything else on the machine meets it: raw requests, to an engine that is sealed."""

import asyncio
import http.client
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import boto3
import botocore.auth
import pytest
import urllib3
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from h2.connection import H2Connection
from h2.events import ResponseReceived

from claude_workflow.local import deploy, engine
from claude_workflow.local.deploy import CODE_BUCKET, CODE_KEY, Deployed
from claude_workflow.local.engine import ACCOUNT, REGION, Engine
from claude_workflow.local.guard import BUCKET, READY, ROOT_KEY, SEAL, UNVERIFIED_BYTES, Guard
from claude_workflow.local.signature import Signed, Unsigned, claim
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support.scripted_workflow import Workflow, function_id, with_stand_ins

KEY = "session-1.zip"
PATH = f"/{BUCKET}/{KEY}"
RUNTIME = "/2018-06-01/runtime"
EVENT = {"Source": "claude-agent-workflow", "DetailType": "Run Ended", "Detail": '{"run_id": "run-1"}'}


@dataclass(frozen=True)
class Sealed:
    """The sealed engine, a workflow on it that ran once, and what its functions know."""

    engine: Engine
    deployed: Deployed
    roles: dict[str, dict[str, str]]
    """The environment of each function, by state."""
    old: str
    """The id of the older version of the object `KEY`."""

    def link(self, action: str = "get_object", seconds: int = 60, **params: str) -> str:
        """A link that PersistSession signed."""
        s3 = self.client("s3", "PersistSession")
        params = {"Bucket": BUCKET, "Key": KEY} | params
        return str(s3.generate_presigned_url(action, Params=params, ExpiresIn=seconds))

    def client(self, service: str, state: str) -> Any:
        """A client with the credentials of a function's role."""
        role = self.roles[state]
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.engine.url,
            aws_access_key_id=role["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=role["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=role["AWS_SESSION_TOKEN"],
            config=Config(
                signature_version="s3v4" if service == "s3" else None,
                s3={"addressing_style": "path"},
                inject_host_prefix=False,
            ),
        )


@pytest.fixture(scope="module")
def sealed(template: Json, in_memory: InMemory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    folder = tmp_path_factory.mktemp("calls")
    with engine.running(in_memory("state")) as running:
        deployed = deploy.deploy(running, with_stand_ins(template), secret={"ANTHROPIC_API_KEY": "sk-test"})
        run_claude = deployed.resources[function_id(deployed, "run_claude")]
        event = json.dumps({"script": {"folder": str(folder), "RunClaude": {}}})
        invoked = running.client("lambda").invoke(FunctionName=run_claude, Payload=event)
        known = json.load(invoked["Payload"])["environment"]
        running.seal()
        s3 = running.client("s3")
        old, _ = (s3.put_object(Bucket=BUCKET, Key=KEY, Body=body)["VersionId"] for body in (b"old", b"new"))
        workflow = Workflow(running, deployed, folder)
        persist = json.loads(workflow.run(next="persist")["output"])["environment"]
        roles = {"RunClaude": known, "PersistSession": persist}
        yield Sealed(running, deployed, roles, old)


@dataclass
class Sent:
    """A request for the object, to be signed by root, changed, and sent as it is."""

    method: str = "GET"
    target: str = PATH
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    more: bytes = b""
    """Lines of the head that no client would write."""
    service: str = "s3"
    key: str = ROOT_KEY
    host: str | None = None
    late: timedelta = timedelta()
    """How long before it is sent it says to have been signed."""

    def signed(self, engine: Engine) -> "Sent":
        """With the signature of root's secret, for this key and this moment."""
        host = self.host or engine.url.removeprefix("http://")
        request = AWSRequest(self.method, f"http://{host}{self.target}", headers=dict(self.headers), data=self.body)
        request.context["timestamp"] = (datetime.now(UTC) - self.late).strftime("%Y%m%dT%H%M%SZ")
        auth = (S3SigV4Auth if self.service == "s3" else SigV4Auth)(
            Credentials(self.key, engine.root), self.service, REGION
        )
        auth._modify_request_before_signing(request)
        computed = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        auth._inject_signature_to_request(request, computed)
        return replace(self, headers={"Host": host, **dict(request.headers.items())})

    def status(self, engine: Engine) -> int:
        """What the engine answers."""
        lines = [f"{name}: {value}".encode() for name, value in self.headers.items()]
        if self.body and b"ransfer-" not in self.more:
            lines.append(f"Content-Length: {len(self.body)}".encode())
        ends = [] if "Connection" in self.headers else [b"Connection: close"]
        head = b"\r\n".join([f"{self.method} {self.target} HTTP/1.1".encode(), *lines, *ends])
        address = engine.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
            connection.sendall(head + b"\r\n" + self.more + b"\r\n" + self.body)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status


def test_what_root_signs_is_done(sealed: Sealed) -> None:
    """The request of which all the following ones are variations, by the sum of botocore."""
    assert Sent().signed(sealed.engine).status(sealed.engine) == 200
    put = Sent("PUT", f"/{BUCKET}/session-2.zip", body=b"body")
    assert put.signed(sealed.engine).status(sealed.engine) == 200


@dataclass(frozen=True)
class Change:
    """What is done to a request after it was signed."""

    name: str
    of: Callable[[Sent], Sent]


def header(name: str, value: str) -> Callable[[Sent], Sent]:
    return lambda sent: replace(sent, headers=sent.headers | {name: value})


def credential(key: str) -> Callable[[Sent], Sent]:
    def other(sent: Sent) -> Sent:
        return header("Authorization", sent.headers["Authorization"].replace(ROOT_KEY, key))(sent)

    return other


def _another_second(date: str) -> str:
    return f"{date[:-2]}{(int(date[-2]) + 1) % 10}Z"


AFTER = [
    Change("another method", lambda sent: replace(sent, method="HEAD")),
    Change("another object", lambda sent: replace(sent, target=f"/{BUCKET}/session-2.zip")),
    Change("another query", lambda sent: replace(sent, target=f"{PATH}?versionId=1")),
    Change("absolute target", lambda sent: replace(sent, target=f"http://127.0.0.1{PATH}")),
    Change("another day", header("X-Amz-Date", "20260101T000000Z")),
    Change("another second", lambda s: header("X-Amz-Date", _another_second(s.headers["X-Amz-Date"]))(s)),
    Change("a header that the engine heeds", header("x-amz-request-payer", "requester")),
    Change("a session", header("X-Amz-Security-Token", "any")),
    Change("a body", lambda sent: replace(sent, body=b"x")),
    Change(
        "no host among what is signed",
        lambda s: header("Authorization", s.headers["Authorization"].replace("host;", ""))(s),
    ),
    Change(
        "the signature of another", lambda s: header("Authorization", s.headers["Authorization"][:-64] + "0" * 64)(s)
    ),
    Change("no signature", lambda s: replace(s, headers={"Host": s.headers["Host"]})),
    Change("another scheme", lambda s: header("Authorization", f"AWS {ROOT_KEY}:{'0' * 27}=")(s)),
    *(
        Change(f"key {key}", credential(key))
        for key in (
            "test",
            "000000000000",
            "111122223333",
            "AKIAWHOEVER000000000",
            "ASIA0000000000000000",
            "\u0660" * 12,
        )
    ),
]


@pytest.mark.parametrize("change", AFTER, ids=lambda change: change.name)
def test_what_was_changed_after_signing_is_refused(sealed: Sealed, change: Change) -> None:
    """Of a request that was good nothing is, whatever was changed."""
    assert change.of(Sent().signed(sealed.engine)).status(sealed.engine) == 403


def test_the_body_is_what_was_signed(sealed: Sealed) -> None:
    """With its hash in the head, as for all of S3, or without, as in a call."""
    put = replace(Sent("PUT", body=b"body").signed(sealed.engine), body=b"vary")
    assert put.status(sealed.engine) == 403
    target = {"X-Amz-Target": "AWSStepFunctions.GetExecutionHistory", "Content-Type": "application/x-amz-json-1.0"}
    body = json.dumps({"executionArn": "arn"}).encode()
    call = Sent("POST", "/", target, body, service="states").signed(sealed.engine)
    assert call.status(sealed.engine) == 400  # there is none of that name
    assert replace(call, body=body.replace(b"arn", b"ARN", 1)).status(sealed.engine) == 403
    long = replace(call, body=b" " * UNVERIFIED_BYTES + body).signed(sealed.engine)
    assert long.status(sealed.engine) == 403  # it is not read to its end to learn whose it is


DIGITS = "\u0660" * 12
SCOPE = "20260101/us-east-1/lambda/aws4_request"


def test_a_refusal_ends_its_connection(started_open: Engine) -> None:
    """Its body was not read: whoever sent it is told, and makes another for what it sends next."""
    asked = urllib3.request("PUT", started_open.url + PATH, body=b"not signed", retries=False)
    assert (asked.status, asked.headers["connection"]) == (403, "close")


@pytest.mark.parametrize("key", [DIGITS, "000000000000", "test", "", DIGITS.encode().decode("latin-1")])
@pytest.mark.parametrize("engine_of", ["sealed", "open"])
def test_nobody_is_root_by_a_key_that_can_be_known(
    sealed: Sealed, started_open: Engine, key: str, engine_of: str
) -> None:
    """Not even before the engine is sealed: twelve digits of another script were root of a fresh account."""
    asked = sealed.engine if engine_of == "sealed" else started_open
    said = f"AWS4-HMAC-SHA256 Credential={key}/{SCOPE}, SignedHeaders=host, Signature=0"
    sent = Sent(target="/2015-03-31/functions/", headers={"Host": asked.url[7:], "Authorization": said})
    assert sent.status(asked) == 403


@pytest.fixture(scope="module")
def started_open(in_memory: InMemory) -> Iterator[Engine]:
    with engine.running(in_memory("open")) as running:
        running.client("s3").create_bucket(Bucket=BUCKET)
        running.client("s3").put_object(Bucket=BUCKET, Key=KEY, Body=b"x")
        yield running


AMBIGUOUS = {
    "host by name": Sent(host="localhost:8080"),
    "bucket in the host": Sent(target=f"/{KEY}", host=f"{BUCKET}.localhost:8080"),
    "service in the host": Sent(target="/", host="x.lambda-url.us-east-1.localhost:8080"),
    "another address": Sent(host="127.0.0.2:8080"),
    "empty segment": Sent(target=f"//{BUCKET}/{KEY}"),
    "segment of dots": Sent(target=f"/{BUCKET}/../{BUCKET}/{KEY}"),
    "encoded dots": Sent(target=f"/{BUCKET}/%2E%2E/{BUCKET}/{KEY}"),
    "encoded letter": Sent(target=f"/{BUCKET}/%73ession-1.zip"),
    "encoded slash": Sent(target=f"/{BUCKET}%2F{KEY}"),
    "hexadecimals in lower case": Sent(target=f"/{BUCKET}/a%3db"),
    "no text": Sent(target=f"/{BUCKET}/%FF"),
    "control character": Sent(target=f"/{BUCKET}/a%00"),
    "plus in the query": Sent(target=f"/{BUCKET}?list-type=2&prefix=a+b"),
    "encoded name in the query": Sent(target=f"/{BUCKET}?list%2Dtype=2"),
    "parameter twice": Sent(target=f"/{BUCKET}?list-type=2&prefix=a&prefix=b"),
    "parameter twice, in two cases": Sent(target=f"/{BUCKET}?list-type=2&prefix=a&Prefix=b"),
    "header twice": Sent(more=b"Range: bytes=0-0\r\nRange: bytes=1-1\r\n"),
    "host twice": Sent(more=b"Host: 127.0.0.1:1\r\n"),
    "signature twice": Sent(more=b"Authorization: AWS4-HMAC-SHA256 Credential=test/x\r\n"),
    "header in UTF-8": Sent(more="Range: \u0660\r\n".encode()),
    "header name with an underscore": Sent(more=b"x_amz_date: 1\r\n"),
    "chunks": Sent("PUT", more=b"Transfer-Encoding: chunked\r\n"),
    "length and chunks": Sent("PUT", more=b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"),
    "a signature in the query, too": Sent(target=f"{PATH}?X-Amz-Credential=test"),
    "another version's, too": Sent(target=f"{PATH}?AWSAccessKeyId=test"),
    "header that a parameter stands for": Sent(target=f"{PATH}?x-amz-copy-source=a"),
    "signed ten minutes ago": Sent(late=timedelta(minutes=10)),
    "signed for later": Sent(late=timedelta(hours=-1)),
    "root in a session": Sent(headers={"X-Amz-Security-Token": "any"}),
    "method of none": Sent("PATCH"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(started_open: Engine, name: str) -> None:
    """Even with the root's signature, and before anything but signatures is asked for."""
    assert AMBIGUOUS[name].signed(started_open).status(started_open) in (400, 403)


def test_the_open_engine_reads_what_has_one_reading(started_open: Engine) -> None:
    """The request that the ambiguous ones vary."""
    assert Sent().signed(started_open).status(started_open) == 200
    assert Sent(target=f"/{BUCKET}?list-type=2&prefix=a%20b").signed(started_open).status(started_open) == 200


def get(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named, method=method)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_link_does_what_it_says(sealed: Sealed) -> None:
    """It reads one object, or one version, in parts too; it writes one; a browser may ask before."""
    assert get(sealed.link()) == 200
    assert get(sealed.link(), Range="bytes=0-0") == 206
    assert get(sealed.link("head_object"), "HEAD") == 200
    assert get(sealed.link(VersionId=sealed.old)) == 200
    assert get(sealed.link("put_object", Key="session-3.zip"), "PUT", b"x") == 200
    page = "https://example.com"
    assert get(sealed.link(), "OPTIONS", Origin=page, Access_Control_Request_Method="GET") == 200


LINKS: dict[str, Callable[[Sealed], int]] = {
    "expired": lambda s: get(_signed_before(s, 120)),
    "signed for later": lambda s: get(_signed_before(s, -600)),
    "of another object": lambda s: get(s.link().replace("session-1", "session-2")),
    "of another version": lambda s: get(s.link(VersionId=s.old).replace(s.old, "other")),
    "of the newest version": lambda s: get(s.link(VersionId=s.old).replace(f"versionId={s.old}&", "")),
    "longer": lambda s: get(s.link().replace("X-Amz-Expires=60", "X-Amz-Expires=61")),
    "used to write": lambda s: get(s.link(), "PUT", b"x"),
    "used to delete": lambda s: get(s.link(), "DELETE"),
    "used to copy": lambda s: get(
        s.link("put_object", Key="session-4.zip"), "PUT", b"", x_amz_copy_source=f"{BUCKET}/{KEY}"
    ),
    "signed to copy": lambda s: get(
        *(s.link("copy_object", Key="session-4.zip", CopySource=f"{BUCKET}/{KEY}"), "PUT", b""),
        x_amz_copy_source=f"{BUCKET}/{KEY}",
    ),
    "with metadata": lambda s: get(s.link("put_object", Key="session-4.zip"), "PUT", b"", x_amz_meta_owner="me"),
    "without its condition": lambda s: get(s.link("put_object", Key="session-4.zip", IfNoneMatch="*"), "PUT", b"x"),
    "with another parameter": lambda s: get(s.link() + "&acl="),
    "signed by nobody": lambda s: get(s.link().rsplit("=", 1)[0] + "=" + "0" * 64),
    "of an unknown key": lambda s: get(
        s.link().replace(s.roles["PersistSession"]["AWS_ACCESS_KEY_ID"], "ASIA" + "0" * 16)
    ),
    "without the session": lambda s: get(s.link().split("&X-Amz-Security-Token")[0] + "&X-Amz-Signature=" + "0" * 64),
    "to list the bucket": lambda s: get(
        s.client("s3", "PersistSession").generate_presigned_url("list_objects_v2", Params={"Bucket": BUCKET})
    ),
    "to delete": lambda s: get(s.link("delete_object"), "DELETE"),
    "to another's page": lambda s: get(s.link(ResponseContentType="text/html")),
    "to another bucket": lambda s: get(
        s.engine.client("s3").generate_presigned_url("get_object", Params={"Bucket": CODE_BUCKET, "Key": CODE_KEY})
    ),
    "of the older signature": lambda s: get(_of_version_2(s.engine)),
}


def _of_version_2(running: Engine) -> str:
    old = boto3.client(
        "s3",
        region_name=REGION,
        endpoint_url=running.url,
        aws_access_key_id=ROOT_KEY,
        aws_secret_access_key=running.root,
        config=Config(signature_version="s3", s3={"addressing_style": "path"}),
    )
    return str(old.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": KEY}))


def _signed_before(sealed: Sealed, seconds: int) -> str:
    """A link of a minute, signed so long ago."""
    role = sealed.roles["PersistSession"]
    credentials = Credentials(role["AWS_ACCESS_KEY_ID"], role["AWS_SECRET_ACCESS_KEY"], role["AWS_SESSION_TOKEN"])
    auth = botocore.auth.S3SigV4QueryAuth(credentials, "s3", REGION, expires=60)
    request = AWSRequest("GET", sealed.engine.url + PATH)
    at = datetime.now(UTC) - timedelta(seconds=seconds)
    request.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
    auth._modify_request_before_signing(request)
    computed = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    auth._inject_signature_to_request(request, computed)
    return str(request.url)


@pytest.mark.parametrize("what", LINKS)
def test_a_link_does_nothing_else(sealed: Sealed, what: str) -> None:
    """Nor later, nor for another."""
    assert LINKS[what](sealed) == 403


def test_the_guard_itself_ends_a_link(sealed: Sealed) -> None:
    """Whatever the engine behind it makes of an old one."""
    target = urlsplit(sealed.link())
    request = Signed("GET", target.path, dict(parse_qsl(target.query)), {"host": target.netloc})
    assert claim(request).is_link
    for seconds in (120, -600):
        with pytest.raises(Unsigned, match="expired"):
            claim(request, datetime.now(UTC) + timedelta(seconds=seconds))


def test_a_link_is_made_as_these_tests_make_it(sealed: Sealed) -> None:
    """The expired one fails because it is old."""
    assert get(_signed_before(sealed, 0)) == 200


TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
NOT_NEEDED: list[tuple[str, str, Json]] = [
    ("lambda", "list_functions", {}),
    (
        "lambda",
        "create_function",
        {"FunctionName": "f", "Role": "arn:aws:iam::000000000000:role/x", "Code": {"ZipFile": b""}},
    ),
    ("lambda", "update_function_code", {"FunctionName": "f", "S3Bucket": CODE_BUCKET, "S3Key": CODE_KEY}),
    ("lambda", "invoke", {"FunctionName": "f"}),
    ("cloudformation", "describe_stacks", {}),
    ("cloudformation", "create_stack", {"StackName": "s", "TemplateBody": "{}"}),
    ("iam", "create_role", {"RoleName": "r", "AssumeRolePolicyDocument": TRUST}),
    ("iam", "create_access_key", {}),
    ("sts", "get_session_token", {}),
    ("sts", "assume_role", {"RoleArn": "arn:aws:iam::000000000000:role/x", "RoleSessionName": "me"}),
    ("stepfunctions", "list_state_machines", {}),
    ("stepfunctions", "update_state_machine", {"stateMachineArn": "arn:x", "definition": "{}"}),
    ("secretsmanager", "get_secret_value", {"SecretId": "s"}),
    ("logs", "describe_log_groups", {}),
    ("events", "put_rule", {"Name": "r", "ScheduleExpression": "rate(1 minute)"}),
    ("events", "put_events", {"Entries": [EVENT]}),
    ("s3", "list_buckets", {}),
    ("s3", "create_bucket", {"Bucket": "another-bucket"}),
    ("s3", "put_bucket_policy", {"Bucket": BUCKET, "Policy": TRUST}),
    ("s3", "put_bucket_versioning", {"Bucket": BUCKET, "VersioningConfiguration": {"Status": "Suspended"}}),
    ("s3", "delete_bucket", {"Bucket": BUCKET}),
    ("s3", "put_object_tagging", {"Bucket": BUCKET, "Key": KEY, "Tagging": {"TagSet": []}}),
    ("s3", "put_object", {"Bucket": CODE_BUCKET, "Key": CODE_KEY, "Body": b"code of somebody's"}),
]


@pytest.mark.parametrize(
    ("service", "action", "arguments"), NOT_NEEDED, ids=lambda of: of if isinstance(of, str) else ""
)
def test_a_sealed_engine_does_only_what_the_workflow_needs(
    sealed: Sealed, service: str, action: str, arguments: Json
) -> None:
    """Not even for its root: no function is made or called, no role, no stack."""
    with pytest.raises(ClientError) as refused:
        getattr(sealed.engine.client(service), action)(**arguments)
    assert "This is no" in str(refused.value)


ROLES_NOT = [
    (
        "stepfunctions",
        "start_sync_execution",
        {"stateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:x"},
    ),
    ("lambda", "invoke", {"FunctionName": "f"}),
    ("secretsmanager", "list_secrets", {}),
    ("sts", "get_caller_identity", {}),
    ("events", "put_rule", {"Name": "r", "ScheduleExpression": "rate(1 minute)"}),
]


@pytest.mark.parametrize(
    ("service", "action", "arguments"), ROLES_NOT, ids=lambda of: of if isinstance(of, str) else ""
)
def test_a_role_does_less(sealed: Sealed, service: str, action: str, arguments: Json) -> None:
    """Objects, and the secret, by its policies; nothing that its policies would not even be asked about."""
    with pytest.raises(ClientError) as refused:
        getattr(sealed.client(service, "PersistSession"), action)(**arguments)
    assert "This is no" in str(refused.value)


@pytest.mark.parametrize(
    "state", ["ReadRun", "RemoveSession", "StreamRun", "ReadSession", "RestoreSession", "RunClaude", "PersistSession"]
)
def test_of_the_functions_those_that_get_requests_are_called_alone(sealed: Sealed, state: str) -> None:
    """By root, for the gateway; by no role. It runs those itself whose answers it sends as they are made."""
    call = {"FunctionName": sealed.deployed.function(state), "Payload": "{}"}
    if state in ("ReadRun", "RemoveSession"):
        assert sealed.engine.client("lambda").invoke(**call)["StatusCode"] == 200
    else:
        with pytest.raises(ClientError, match="This is no"):
            sealed.engine.client("lambda").invoke(**call)
    with pytest.raises(ClientError, match="AccessDenied"):
        sealed.client("lambda", "PersistSession").invoke(**call)


def test_of_what_it_may_call_a_role_may_what_its_policies_say(sealed: Sealed) -> None:
    """The engine judges what the guard lets through."""
    s3 = sealed.client("s3", "PersistSession")
    assert s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == b"new"
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.put_object(Bucket=BUCKET, Key="elsewhere", Body=b"x")
    with pytest.raises(ClientError, match="not authorized"):
        sealed.client("secretsmanager", "PersistSession").get_secret_value(SecretId=sealed.deployed.secret_arn)


def test_what_a_role_may_tell_is_kept_as_a_target_would_get_it(sealed: Sealed) -> None:
    """A line each, in the order in which they were acknowledged; of what the bus refuses, none."""
    told = sealed.engine.state / "events.jsonl"
    taken = [
        sealed.client("events", "PersistSession").put_events(Entries=[EVENT | more])["Entries"][0]
        for more in ({"Resources": ["arn:execution"]}, {})
    ]
    refused = {"RunClaude": EVENT, "PersistSession": EVENT | {"EventBusName": "another"}}
    for state, event in refused.items():
        with pytest.raises(ClientError, match="not authorized"):
            sealed.client("events", state).put_events(Entries=[event])
    first, second = map(json.loads, told.read_text().splitlines())
    assert [first["id"], second["id"]] == [each["EventId"] for each in taken]
    assert first.pop("time").endswith("Z")
    assert first == {
        "version": "0",
        "id": taken[0]["EventId"],
        "detail-type": "Run Ended",
        "source": "claude-agent-workflow",
        "account": ACCOUNT,
        "region": REGION,
        "resources": ["arn:execution"],
        "detail": {"run_id": "run-1"},
    }
    assert told.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["/_ministack/reset", "/_ministack/config", "/_localstack/health", "/health", SEAL])
def test_the_emulators_own_interface_is_closed(sealed: Sealed, started_open: Engine, path: str) -> None:
    """To everybody: otherwise any program on the machine could wipe the sessions."""
    for asked in (sealed.engine, started_open):
        assert get(asked.url + path, "POST", b"{}") == 403
    if path != SEAL:
        assert Sent("POST", path, body=b"{}").signed(sealed.engine).status(sealed.engine) == 403
    if path.startswith("/_ministack"):
        assert Sent("POST", path, body=b"{}").signed(started_open).status(started_open) == 403


def test_no_websocket_is_opened(sealed: Sealed) -> None:
    """The engine has some, with ways of their own to say who asks."""
    host = sealed.engine.url.removeprefix("http://")
    upgrade = {"Host": host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    asked = Sent(target="/", headers=upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert asked.status(sealed.engine) == 403
    assert asyncio.run(_handed_on({"type": "websocket"})) == ([], [{"type": "websocket.close", "code": 1008}])


async def _handed_on(scope: Json) -> tuple[list[Json], list[Json]]:
    """What of a connection came to the application behind the guard, and what was answered."""
    behind, answered = list[Json](), list[Json]()

    async def application(scope: Json, _receive: Any, _send: Any) -> None:
        behind.append(scope)

    async def send(message: Json) -> None:
        answered.append(message)

    await Guard(application, "secret", lambda _key, _token: None)(scope, None, send)
    return behind, answered


def test_http_2_is_not_spoken(sealed: Sealed) -> None:
    """It names the host in two places; the server would speak it to whoever begins with it."""
    host, port = sealed.engine.url.removeprefix("http://").split(":")
    client = H2Connection()
    client.initiate_connection()
    asked = {":method": "GET", ":scheme": "http", ":authority": f"{host}:{port}", ":path": READY}
    client.send_headers(1, list(asked.items()), end_stream=True)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(client.data_to_send())
        answered: list[ResponseReceived] = []
        while not answered:
            events = client.receive_data(connection.recv(65536))
            answered = [event for event in events if isinstance(event, ResponseReceived)]
    assert dict(answered[0].headers or [])[b":status"] == b"403"
    assert get(sealed.engine.url + READY) == 200


def test_the_credentials_of_roles_cannot_be_reckoned(sealed: Sealed) -> None:
    """The engine makes them of the names of function and role, and then by a key of this start."""
    role, names = sealed.roles["PersistSession"], list(sealed.deployed.resources.values())
    pairs = (
        f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}{version}:arn:aws:iam::{ACCOUNT}:role/{name}"
        for function, version, name in product(names, ("", ":1"), names)
    )
    reckoned = [sha256(pair.encode()).hexdigest() for pair in pairs]  # as ministack 1.5 does
    (of_it,) = (one for one in reckoned if role["AWS_ACCESS_KEY_ID"] == f"ASIA{one[:16].upper()}")
    assert role["AWS_SECRET_ACCESS_KEY"] != sha256(f"secret:{of_it}".encode()).hexdigest()
    assert role["AWS_SESSION_TOKEN"] != sha256(f"token:{of_it}".encode()).hexdigest()


@pytest.mark.parametrize("path", ["", "/" + "0" * 64, "/" + quote("é")])
def test_a_functions_events_are_its_own(sealed: Sealed, path: str) -> None:
    """On the port of a function nobody takes its event, answers for it or ends it who does not know its secret."""
    address, _, secret = sealed.roles["PersistSession"]["AWS_LAMBDA_RUNTIME_API"].partition("/")
    assert get(f"http://{address}{path}{RUNTIME}/invocation/next") == 403
    for told in (f"{RUNTIME}/invocation/1/response", f"{RUNTIME}/init/error"):
        assert get(f"http://{address}{path}{told}", "POST", b"{}") == 403
    assert get(f"http://{address}/{secret}{RUNTIME}/invocation/1/response", "POST", b"{}") == 400  # not this one


def test_a_port_is_opened_by_its_own_secret_alone(sealed: Sealed) -> None:
    """One function's process does not take what is another's."""
    address = sealed.roles["PersistSession"]["AWS_LAMBDA_RUNTIME_API"].partition("/")[0]
    other = sealed.roles["RunClaude"]["AWS_LAMBDA_RUNTIME_API"].partition("/")[2]
    assert get(f"http://{address}/{other}{RUNTIME}/invocation/1/response", "POST", b"{}") == 403


@pytest.mark.parametrize(
    ("method", "target", "service"),
    [("POST", "/2015-03-31/functions/", "states"), ("POST", "/?Action=ListUsers", "states"), ("POST", "/", "lambda")],
)
def test_a_call_is_made_in_one_way(sealed: Sealed, method: str, target: str, service: str) -> None:
    """The name of a call that may be made opens no other path, query or service."""
    said = {"X-Amz-Target": "AWSStepFunctions.GetExecutionHistory", "Content-Type": "application/x-amz-json-1.0"}
    sent = Sent(method, target, said, b'{"executionArn": "arn"}', service=service)
    assert sent.signed(sealed.engine).status(sealed.engine) == 403


def test_what_nobody_signed_is_not_handed_on(sealed: Sealed) -> None:
    """A condition that was put to a request on its way is not heeded: the engine does not hear of it."""
    put = Sent("PUT", f"/{BUCKET}/session-5.zip", body=b"body")
    assert put.signed(sealed.engine).status(sealed.engine) == 200
    assert header("If-None-Match", "*")(put.signed(sealed.engine)).status(sealed.engine) == 200
    assert replace(put, headers={"If-None-Match": "*"}).signed(sealed.engine).status(sealed.engine) == 412


NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNED_NOW = {"host": "127.0.0.1:1", "x-amz-date": "20260101T000000Z", "x-amz-content-sha256": "0" * 64}


def said(day: str = "20260101", names: str = "host;x-amz-content-sha256;x-amz-date", **more: str) -> Signed:
    """A request that says to be signed, with these headers more; an empty one is left out."""
    scope = f"{ROOT_KEY}/{day}/us-east-1/s3/aws4_request"
    signature = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={'0' * 64}"
    headers = SIGNED_NOW | {"authorization": signature} | {name.replace("_", "-"): v for name, v in more.items()}
    return Signed("PUT", PATH, {}, {name: value for name, value in headers.items() if value})


def linked(service: str = "s3", headers: dict[str, str] | None = None, **more: str) -> Signed:
    """A link, with these parameters more."""
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{ROOT_KEY}/20260101/us-east-1/{service}/aws4_request",
        "X-Amz-Date": "20260101T000000Z",
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "0" * 64,
    }
    more = {name.replace("_", "-"): value for name, value in more.items()}
    return Signed("GET", PATH, query | more, {"host": "127.0.0.1:1"} | (headers or {}))


@pytest.mark.parametrize(
    "request_",
    [
        said(names="x-amz-content-sha256;x-amz-date"),
        said(x_amz_copy_source="a/b"),
        said(names="host;x-amz-content-sha256;x-amz-date;x-amz-meta-a"),
        said(names="host;host;x-amz-content-sha256;x-amz-date"),
        said(names="host;x-amz-date;x-amz-content-sha256"),
        said(day="20251231"),
        said(x_amz_date="20260101T001000Z"),
        said(names="host;x-amz-date", x_amz_content_sha256=""),
        said(x_amz_content_sha256="UNSIGNED-PAYLOAD"),
        linked(headers={"authorization": "AWS4-HMAC-SHA256 Credential=test/x"}),
        linked(headers={"x-amz-acl": "public-read"}),
        linked(service="lambda"),
        linked(X_Amz_Target="AWSStepFunctions.StartSyncExecution"),
        linked(Signature="0"),
    ],
)
def test_what_has_to_be_signed_is(request_: Signed) -> None:
    """Host, every header x-amz-…, the day, the body of S3's; and once, in one place, for S3 where it is a link."""
    assert claim(said(), NOW).key == claim(linked(), NOW).key == ROOT_KEY
    with pytest.raises(Unsigned):
        claim(request_, NOW)
