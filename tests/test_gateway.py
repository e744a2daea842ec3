"""The front gateway with the template that goes to AWS; Step Functions and Lambda are a small real server that answers
as told."""

import http.client
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, Queue
from typing import Any

import pytest
from airspeed.operators import TemplateExecutionError

from claude_workflow.cli.serve import log_line
from claude_workflow.local import admission
from claude_workflow.local.admission import Admission
from claude_workflow.local.api import Api, NotUnderstood, read_api
from claude_workflow.local.gateway import STRANGERS, Response, Served, serving
from claude_workflow.local.http1 import Malformed
from claude_workflow.local.http1 import Stream as Requests
from claude_workflow.local.mapping import Input, Text, Util, render
from lambdas import errors
from lambdas.streaming import Streamed
from lambdas.strict import Json
from tests.conftest import Templates
from tests.support.http_servers import Answering, listening
from tests.support.texts import NASTY
from tests.support.waiting import eventually

KEY, OTHER_KEY = "a-key-of-twenty-characters", "another-key-of-the-same-kind"
PATH = "/claude-code"


@dataclass
class Machine:
    """What stands for Step Functions: keeps every call, and answers with what `reply` makes of its input."""

    reply: Callable[[Json], tuple[int, Json]]
    url: str = ""
    calls: list[Json] = field(default_factory=list)
    function: Callable[[Json], tuple[int, str, dict[str, str]]] = lambda _: (500, "", {})
    """The function behind the API: status, body and headers of its invocation."""
    events: list[tuple[str, Json]] = field(default_factory=list)
    """What functions were called with, by the path of the call."""
    stopped: list[str] = field(default_factory=list)

    def answers(self, **execution: Any) -> None:
        self.reply = lambda _: (200, execution)

    def fails(self, failure: errors.WorkflowError) -> None:
        self.answers(status="FAILED", error=failure.code(), cause=json.dumps(failure.facts()))

    @property
    def envelope(self) -> Json:
        envelope: Json = json.loads(self.calls[-1]["input"])
        return envelope


class _StepFunctions(Answering):
    machine: Machine

    def do_POST(self) -> None:
        call = json.loads(self.received())
        if self.headers["X-Amz-Target"] is None:
            self.machine.events.append((self.path, call))
            code, body, headers = self.machine.function(call)
            self.answer(code, body.encode(), headers)
            return
        status, answer = 200, dict[str, Any]()
        if self.headers["X-Amz-Target"].endswith("StopExecution"):
            self.machine.stopped.append(call["executionArn"])
        else:
            self.machine.calls.append(call)
            status, answer = self.machine.reply(call)
        self.answer(status, json.dumps(answer).encode())


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(lambda _: (200, {"status": "SUCCEEDED", "output": json.dumps({"success": True})}))
    with listening(_StepFunctions, machine=machine) as machine.url:
        yield machine


@pytest.fixture(scope="module")
def api(template: Json) -> Api:
    described = read_api(template, {})
    return replace(described, rate=1000, burst=1000)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        parsed: Json = json.loads(self.body)
        return parsed


@dataclass
class Client:
    address: str

    def send(self, method: str, body: bytes | str | None = None, path: str = PATH, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body.encode() if isinstance(body, str) else body, sent)
            response = connection.getresponse()
            return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, body: bytes | str = '{"prompt": "hello"}', **headers: str) -> Answer:
        return self.send("POST", body, **{"x_api_key": KEY, **headers})

    def connected(self) -> socket.socket:
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def raw(self, request: bytes) -> bytes:
        with self.connected() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextmanager
def client_of(api: Api, machine: Machine, **more: Any) -> Iterator[Client]:
    keys = {KEY: api.api_keys[0], OTHER_KEY: "SomebodyElsesKey"} if api.api_keys else {}
    with serving(api, machine.url, keys, root="root", **more) as url:
        yield Client(url.removeprefix("http://"))


@pytest.fixture
def client(api: Api, machine: Machine) -> Iterator[Client]:
    with client_of(api, machine) as client:
        yield client


def assert_refused(answer: Answer, status: int, code: str) -> None:
    """The status, the JSON shape of every failure, and the CORS header."""
    assert answer.status == status, answer.body
    assert answer.json["code"] == code
    assert answer.json["success"] is False
    assert answer.json["error"]
    assert {"retryable", "session_id", "run_id", "cost_usd"} <= set(answer.json)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "application/json"


def test_an_answer_is_the_output_of_the_execution(client: Client, machine: Machine) -> None:
    """What PersistSession worded arrives as it is, non-ASCII text too, readable from a browser."""
    output = {"success": True, "result": NASTY}
    machine.answers(status="SUCCEEDED", output=json.dumps(output))
    answer = client.post()
    assert (answer.status, answer.json) == (200, output)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-expose-headers"] == "Retry-After, Location, Preference-Applied"


def test_the_envelope_says_who_asked_what_and_when(client: Client, machine: Machine) -> None:
    """Caller, key and time come from the gateway; the body travels inside."""
    before = time.time() * 1000
    answer = client.post('{"prompt": "hello", "caller": "me"}')
    envelope = machine.envelope
    assert envelope["caller"] == "default"
    assert envelope["body"] == {"prompt": "hello", "caller": "me"}
    assert before - 1 <= envelope["requested_at"] <= time.time() * 1000
    assert (envelope["key_given"], envelope["oversize"]) == (False, False)
    assert envelope["key"] == answer.headers["x-amz-apigw-id"]
    assert re.fullmatch(r"[A-Za-z0-9._=-]{1,64}", envelope["key"])


def test_a_nasty_prompt_of_100_kb_arrives_byte_for_byte(client: Client, machine: Machine) -> None:
    """Neither VTL nor JSON within JSON changes a character."""
    prompt = NASTY * (100_000 // len(NASTY.encode()))
    client.post(json.dumps({"prompt": prompt}, ensure_ascii=False))
    assert machine.envelope["body"]["prompt"] == prompt
    client.post(json.dumps({"prompt": prompt}))
    assert machine.envelope["body"]["prompt"] == prompt


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"])
def test_the_idempotency_key_is_found_whatever_its_case(client: Client, machine: Machine, name: str) -> None:
    """Header names have no case."""
    client.send("POST", '{"prompt": "x"}', x_api_key=KEY, **{name: "run.1_a=b"})
    assert (machine.envelope["key"], machine.envelope["key_given"]) == ("run.1_a=b", True)


@pytest.mark.parametrize("name", ["Prefer", "prefer", "PREFER"])
def test_a_preference_travels_as_it_was_said(client: Client, machine: Machine, name: str) -> None:
    """Whatever its case; without the header it is empty. RestoreSession reads it."""
    client.send("POST", '{"prompt": "x"}', x_api_key=KEY, **{name: "respond-async, wait=20"})
    assert machine.envelope["prefer"] == "respond-async, wait=20"
    client.post()
    assert machine.envelope["prefer"] == ""


@pytest.mark.parametrize(
    "text", ['", "caller": "admin', "\\", "'", '\\", "x": "', "$context.requestId", "#set($a = 1)"]
)
def test_a_header_cannot_write_into_the_envelope(client: Client, machine: Machine, text: str) -> None:
    """An Idempotency-Key of any text stays one text in the envelope, and so does a preference."""
    client.post(idempotency_key=text, prefer=text)
    assert (machine.envelope["key"], machine.envelope["prefer"]) == (text, text)
    assert machine.envelope["caller"] == "default"


def test_a_run_that_goes_on_is_accepted(client: Client, machine: Machine) -> None:
    """202, where it is found, that the preference was heeded, and when to look again."""
    output = {"success": True, "status": "running", "session_id": "session-1", "run_id": "run-1"}
    machine.answers(status="SUCCEEDED", output=json.dumps(output))
    answer = client.post(prefer="respond-async")
    assert answer.status == 202
    url = answer.json["run_url"]
    assert answer.json == output | {"run_url": url}
    assert url.endswith("/claude-code/runs/run-1")
    assert answer.headers["location"] == url
    assert answer.headers["preference-applied"] == "respond-async"
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("result", ['{"status": "running"}', 'say "status": "running"', "x"])
def test_an_answer_is_none_that_goes_on_whatever_it_says(client: Client, machine: Machine, result: str) -> None:
    """What the model or the workspace says is no word of the machine's."""
    output = {"success": True, "status": "completed", "result": result, "usage": {"status": "running"}}
    machine.answers(status="SUCCEEDED", output=json.dumps(output))
    answer = client.post(prefer="respond-async")
    assert (answer.status, answer.json) == (200, output)
    assert "location" not in answer.headers


def test_another_callers_key_is_another_caller(client: Client, machine: Machine) -> None:
    """A key that the template does not name is a caller of its own."""
    client.post(x_api_key=OTHER_KEY)
    assert machine.envelope["caller"] == "key:SomebodyElsesKey"


@pytest.mark.parametrize("headers", [{}, {"x_api_key": "wrong"}, {"x_api_key": ""}, {"authorization": KEY}])
def test_without_its_key_the_api_starts_nothing(client: Client, machine: Machine, headers: dict[str, str]) -> None:
    """No key, a wrong one and one in another header are refused alike."""
    assert_refused(client.send("POST", '{"prompt": "x"}', **headers), 403, "Forbidden")
    assert machine.calls == []


@pytest.mark.parametrize("path", ["/", "/other", "/claude-code/more", "/CLAUDE-CODE", "/prod/claude-code"])
def test_an_unknown_path_is_forbidden(client: Client, path: str) -> None:
    """As API Gateway has it, so that nobody learns what exists."""
    assert_refused(client.send("POST", "{}", path=path, x_api_key=KEY), 403, "Forbidden")


@pytest.mark.parametrize("path", ["/", PATH, "/console"])
def test_a_browser_that_opens_the_address_sees_what_it_is(client: Client, path: str) -> None:
    """In words. Whoever does not ask for HTML, and any other method or path, is answered as in AWS."""
    answer = client.send("GET", path=path, accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"The service runs." in answer.body
    assert b"<code>Console:</code>" in answer.body
    assert client.send("PUT", "{}", path=path, accept="text/html").status in (403, 405)
    assert client.send("GET", path=path, accept="*/*").status in (403, 405)
    assert client.send("GET", path="/nothing", accept="text/html").status == 403


def test_each_request_is_heard_of(api: Api, machine: Machine) -> None:
    """With what it was answered; what was no request, too."""
    heard: list[Served] = []
    with serving(api, machine.url, {KEY: api.api_keys[0]}, root="root", log=heard.append) as url:
        client = Client(url.removeprefix("http://"))
        client.post()
        client.send("POST", "{}", path="/nothing")
        client.raw(b"nonsense\r\n\r\n")
    seen = [(one.method, one.path, one.response.status) for one in heard]
    assert seen[0] == ("POST", PATH, 200)
    assert seen[1:] == [("POST", "/nothing", 403), ("", "", 400)]


def test_a_log_line_names_code_cost_and_run() -> None:
    """A dash stands for what there is not; a stranger's text stays one harmless line."""
    failure = {"success": False, "code": "AgentCrashed", "cost_usd": 0.5, "run_id": "run-1\x1b[2J\n"}
    response = Response(502, json.dumps(failure).encode())
    assert log_line(Served("POST", PATH, response, 1.2345), 0) == (
        "00:00:00.000  POST  /claude-code  502  AgentCrashed  1234 ms  $0.5000  run-1�[2J"
    )
    assert log_line(Served("", "", Response(400, b"<"), 0), 0) == "00:00:00.000  –  –  400  –  0 ms  –  –"
    assert log_line(Served("GET", "/", Response(200, b"[]"), 0), 0).endswith("200  –  0 ms  –  –")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/xml", ""])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
def test_other_methods_are_not_allowed(client: Client, machine: Machine, method: str, content_type: str) -> None:
    """405 with `Allow`, whatever the content type, with or without a key."""
    headers = {"content_type": content_type} if content_type else {}
    answer = client.send(method, None if method in ("GET", "HEAD") else "{}", **headers)
    if method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
    else:
        assert_refused(answer, 405, "MethodNotAllowed")
        assert "not allowed" in answer.json["error"]
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert machine.calls == []


def test_options_serves_browsers_without_a_key(client: Client) -> None:
    """204 with all that a preflight asks for."""
    answer = client.send("OPTIONS", origin="https://example.com", access_control_request_method="POST")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert {"content-type", "x-api-key", "authorization", "idempotency-key"} <= set(re.split(r"[ ,]+", allowed))
    assert answer.headers["access-control-expose-headers"] == "Retry-After, Location, Preference-Applied"


@pytest.mark.parametrize("body", ["", "not json", "[]", '"text"', "null", "1", '{"prompt": ', "[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(client: Client, machine: Machine, body: str) -> None:
    """The sentence names `prompt`, and nothing is started."""
    answer = client.post(body)
    assert_refused(answer, 400, "InvalidRequest")
    assert "prompt" in answer.json["error"]
    assert machine.calls == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "x"])
def test_only_json_is_understood(client: Client, machine: Machine, content_type: str) -> None:
    """Anything else by its content type is 415."""
    assert_refused(client.post(content_type=content_type), 415, "UnsupportedMediaType")
    assert machine.calls == []


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_parameters_of_the_content_type_do_not_matter(client: Client, content_type: str) -> None:
    """A charset or capitals are still JSON."""
    assert client.post(content_type=content_type).status == 200


def test_a_body_over_240_kib_does_not_travel(client: Client, machine: Machine) -> None:
    """The envelope says that it was too large, and RestoreSession refuses it by name."""
    client.post(json.dumps({"prompt": "x" * 250_000}))
    assert (machine.envelope["oversize"], machine.envelope["body"]) == (True, None)


def test_an_input_over_256_kib_is_refused_as_step_functions_does(client: Client, machine: Machine) -> None:
    """Characters that grow in UTF-8 pass the template's own check; the service's limit catches them."""
    assert_refused(client.post(json.dumps({"prompt": "é" * 140_000}, ensure_ascii=False)), 413, "RequestTooLarge")
    assert machine.calls == []


def test_a_body_over_10_mb_is_refused_by_the_gateway(client: Client, machine: Machine) -> None:
    """API Gateway reads no more."""
    assert_refused(client.post(b'{"prompt": "' + b"x" * 10_500_000 + b'"}'), 413, "RequestTooLarge")
    assert machine.calls == []


WORKFLOW_ERRORS = [kind for kind in errors.tree() if kind not in (errors.WorkflowError, errors.Refused)]


@pytest.mark.parametrize("kind", WORKFLOW_ERRORS, ids=lambda kind: kind.__name__)
def test_every_failure_of_the_workflow_has_its_status(
    client: Client, machine: Machine, kind: type[errors.WorkflowError]
) -> None:
    """Status by code; sentence, ids, cost and Retry-After as the workflow worded them, no detail of the operator's."""
    sentence = f"Something {NASTY}"
    machine.fails(kind(sentence, session_id="session-1", run_id="run-1", cost_usd=0.25, retry_after=7, detail="SECRET"))
    answer = client.post()
    assert_refused(answer, kind.status, kind.code())
    assert answer.json["error"] == sentence
    assert (answer.json["session_id"], answer.json["run_id"]) == ("session-1", "run-1")
    assert (answer.json["cost_usd"], answer.json["retryable"]) == (0.25, kind.retryable)
    assert answer.headers["retry-after"] == "7"
    assert b"SECRET" not in answer.body


def test_a_failure_without_ids_has_nulls_and_no_retry_after(client: Client, machine: Machine) -> None:
    """Absent is null, never an empty text."""
    machine.fails(errors.InvalidRequest("The field prompt is missing."))
    answer = client.post()
    assert (answer.json["session_id"], answer.json["run_id"]) == (None, None)
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(("emoji", "oversize"), [(50_000, False), (115_000, True)])
def test_a_body_whose_escapes_are_too_long_stays_here(
    client: Client, machine: Machine, emoji: int, oversize: bool
) -> None:
    """StartSyncExecution takes 1 MB, and would refuse more by an error that says nothing."""
    client.post(json.dumps({"prompt": "\N{GRINNING FACE}" * emoji}, ensure_ascii=False))
    assert machine.envelope["oversize"] is oversize
    assert (machine.envelope["body"] is None) is oversize


def test_null_is_null_however_the_engine_reads_it(client: Client, machine: Machine) -> None:
    """`$util.parseJson` gives nothing for JSON's null here; a Velocity that gives a thing whose text is "null" words
    the same answer."""
    cause = {"error": "It failed.", "code": "Internal", "retryable": True}
    cause |= dict.fromkeys(("session_id", "run_id", "cost_usd", "retry_after", "resumes"), "null")
    machine.answers(status="FAILED", error="Internal", cause=json.dumps(cause))
    answer = client.post()
    assert [answer.json[name] for name in ("session_id", "run_id", "cost_usd")] == [None] * 3
    assert "resumes" not in answer.json
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("error", ["States.Runtime", "RuntimeError", "Lambda.Unknown", "States.NoChoiceMatched", None])
def test_an_unknown_cause_never_leaks(client: Client, machine: Machine, error: str | None) -> None:
    """What the workflow did not word is `Internal`, in the API's own words; also where it looks like a failure of
    its."""
    told = "Traceback: s3://bucket arn:aws:secret"
    for cause in (told, json.dumps(errors.Internal(told).facts())):
        machine.answers(status="FAILED", error=error, cause=cause)
        answer = client.post()
        assert_refused(answer, 500, "Internal")
        assert b"arn:" not in answer.body
        assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("ThrottlingException", 429, "Throttled"),
        ("com.amazonaws.swf#ThrottlingException", 429, "Throttled"),
        ("InvalidExecutionInput", 400, "InvalidRequest"),
        ("StateMachineDoesNotExist", 500, "Internal"),
    ],
)
def test_a_refusal_of_step_functions_has_its_own_answer(
    client: Client, machine: Machine, kind: str, status: int, code: str
) -> None:
    """Its throttle is the caller's 429; anything of the deployment's own is 500 without a word of why."""
    machine.reply = lambda _: (400, {"__type": kind, "message": "arn:aws:states:secret"})
    answer = client.post()
    assert_refused(answer, status, code)
    assert b"arn:" not in answer.body
    assert ("retry-after" in answer.headers) == (status == 429)


def test_a_failing_step_functions_is_internal(client: Client, machine: Machine) -> None:
    """5xx of the service, and a service that is gone."""
    machine.reply = lambda _: (503, {"__type": "ServiceUnavailable", "message": "secret"})
    assert_refused(client.post(), 500, "Internal")


def test_a_service_that_is_gone_is_an_honest_error(api: Api, machine: Machine) -> None:
    """No connection to the engine does not leave the caller without an answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = replace(machine, url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        with client_of(api, nobody) as client:
            assert_refused(client.post(), 500, "Internal")


def test_the_state_machines_own_timeout_ends_the_execution(api: Api, machine: Machine) -> None:
    """The answer is TIMED_OUT's, 504 with the key to ask again with, and the execution is stopped."""
    release = threading.Event()
    machine.reply = lambda _: (release.wait(60), (200, {"status": "SUCCEEDED", "output": "{}"}))[1]
    with client_of(replace(api, machine_timeout=0.2), machine) as client:
        answer = client.post()
        assert_refused(answer, 504, "RunTimedOut")
        assert answer.json["idempotency_key"] == answer.headers["x-amz-apigw-id"]
        assert eventually(lambda: machine.stopped and machine.calls)
        assert machine.stopped[0].endswith(machine.calls[-1]["name"])
        release.set()


def test_the_integration_timeout_is_the_gateways_own_answer(api: Api, machine: Machine) -> None:
    """When Step Functions says nothing in time, the gateway does."""
    post = api.methods[PATH]["POST"]
    hasty = replace(post, integration=replace(post.integration, timeout=0.2))
    release = threading.Event()
    machine.reply = lambda _: (release.wait(60), (200, {"status": "SUCCEEDED", "output": "{}"}))[1]
    methods = {PATH: {**api.methods[PATH], "POST": hasty}}
    with client_of(replace(api, methods=methods, machine_timeout=None), machine) as client:
        answer = client.post()
        assert_refused(answer, 504, "RunTimedOut")
        assert answer.json["idempotency_key"] == answer.headers["x-amz-apigw-id"]
        release.set()


def test_an_output_over_256_kib_is_a_failed_execution(client: Client, machine: Machine) -> None:
    """Step Functions would not have carried it."""
    machine.answers(status="SUCCEEDED", output=json.dumps({"result": "x" * 262_144}))
    assert_refused(client.post(), 500, "Internal")


def test_an_output_just_below_the_limit_is_measured_in_utf8(client: Client, machine: Machine) -> None:
    """How the engine escapes its JSON does not count."""
    machine.answers(status="SUCCEEDED", output=json.dumps({"result": "é" * 130_000}))
    assert client.post().status == 200


# --- functions ---

RUN = f"{PATH}/runs/run-1"


def test_a_function_gets_the_request_as_it_came(client: Client, machine: Machine) -> None:
    """Who asks by the gateway's word, the path's parameters, query and headers; what it answers is the answer."""
    given = {"statusCode": 418, "headers": {"X-Own": "1", "Content-Type": "application/json"}, "body": '{"ä": 1}'}
    machine.function = lambda _: (200, json.dumps(given), {})
    answer = client.send("DELETE", path=f"{RUN}?wait=2&x=", x_api_key=KEY, X_Strange="y")
    assert (answer.status, answer.headers["x-own"], answer.json) == (418, "1", {"ä": 1})
    ((path, event),) = machine.events
    assert path == "/2015-03-31/functions/FunctionsReadRun11F176D9/invocations"
    assert event["requestContext"]["identity"]["apiKeyId"].startswith("DoorKeydefault1")
    wanted = {
        "resource": f"{PATH}/runs/{{run_id}}",
        "path": RUN,
        "httpMethod": "DELETE",
        "pathParameters": {"run_id": "run-1"},
        "queryStringParameters": {"wait": "2", "x": ""},
        "body": None,
    }
    assert event.items() >= wanted.items()
    assert event["headers"].items() >= {"X-Strange": "y"}.items()


@pytest.mark.parametrize("path", [RUN, f"{RUN}/events"])
@pytest.mark.parametrize("headers", [{}, {"x_api_key": "wrong"}])
def test_without_its_key_no_function_is_asked(
    client: Client, machine: Machine, path: str, headers: dict[str, str]
) -> None:
    """As with POST; a browser's first question needs none."""
    for method in ("GET", "DELETE", "PUT"):
        assert_refused(client.send(method, path=path, **headers), 403, "Forbidden")
    preflight = client.send("OPTIONS", path=path)
    assert preflight.status == 204
    assert "GET" in preflight.headers["access-control-allow-methods"]
    assert "last-event-id" in preflight.headers["access-control-allow-headers"]
    assert machine.events == []


@pytest.mark.parametrize(
    "path", [f"{PATH}/runs", f"{PATH}/runs/", f"{RUN}/other", f"{RUN}/events/1", f"{PATH}/x/run-1"]
)
def test_a_path_beside_the_runs_is_forbidden(client: Client, path: str) -> None:
    """API Gateway knows nothing there."""
    assert_refused(client.send("GET", path=path, x_api_key=KEY), 403, "Forbidden")


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, '{"errorType": "KeyError", "errorMessage": "secret"}', {"X-Amz-Function-Error": "Unhandled"}),
        (429, '{"Type": "User"}', {}),
        (200, "null", {}),
        (200, '"secret"', {}),
        (200, '{"statusCode": "x", "headers": {}, "body": ""}', {}),
        (200, "{", {}),
    ],
)
def test_a_function_that_fails_is_internal(
    client: Client, machine: Machine, status: int, body: str, headers: dict[str, str]
) -> None:
    """And nothing of what it said is told."""
    machine.function = lambda _: (status, body, headers)
    answer = client.send("GET", path=RUN, x_api_key=KEY)
    assert_refused(answer, 500, "Internal")
    assert b"secret" not in answer.body


def test_a_function_that_says_nothing_in_time_is_not_waited_for(api: Api, machine: Machine) -> None:
    """The integration's timeout."""
    get = api.methods[f"{PATH}/runs/{{run_id}}"]["GET"]
    hasty = replace(get, integration=replace(get.integration, timeout=0.2))
    release = threading.Event()
    machine.function = lambda _: (release.wait(60), (200, "{}", {}))[1]
    with client_of(replace(api, methods={f"{PATH}/runs/{{run_id}}": {"GET": hasty}}), machine) as client:
        assert client.send("GET", path=RUN, x_api_key=KEY).status == 504
        release.set()


# --- answers that are sent as they are made ---


@dataclass
class Stream:
    """A function whose answer a test makes."""

    made: "Queue[bytes | Exception | None]" = field(default_factory=Queue)
    """Pieces; an error breaks it, None ends it."""
    given: int = 0
    """How many pieces were taken off it."""
    closed: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Json) -> Streamed:
        if event["headers"].get("refuse"):
            return Streamed(404, {"Content-Type": "application/json"}, iter([b'{"code": ', b'"RunNotFound"}']))
        return Streamed(200, {"Content-Type": "text/event-stream"}, self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        try:
            while True:
                try:
                    piece = self.made.get(timeout=0.02)
                except Empty:
                    piece = b""  # no news
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    return
                yield piece
                self.given += 1
        finally:
            self.closed.set()


EVENTS = f"GET {RUN}/events HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n"


def until(connection: socket.socket, end: bytes) -> bytes:
    """What comes, up to this."""
    came = b""
    while not came.endswith(end):
        piece = connection.recv(1)
        assert piece, came
        came += piece
    return came


def test_an_answer_is_sent_as_it_is_made(api: Api, machine: Machine) -> None:
    """Each piece before the next is made; then another request is served. The log hears of it at its end."""
    stream, heard = Stream(), list[Served]()
    with client_of(api, machine, watch=stream, log=heard.append) as client, client.connected() as connection:
        connection.sendall(f"{EVENTS}\r\n".encode())
        head = until(connection, b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert b"Content-Length" not in head
        for piece in (b"one", b"two"):
            stream.made.put(piece)
            assert until(connection, piece + b"\r\n") == b"3\r\n" + piece + b"\r\n"
        assert heard == []
        stream.made.put(None)
        assert until(connection, b"0\r\n\r\n") == b"0\r\n\r\n"
        connection.sendall(f"OPTIONS {RUN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b"HTTP/1.1 204" in until(connection, b"\r\n\r\n")
    assert [(one.method, one.path, one.response.status) for one in heard] == [
        ("GET", f"{RUN}/events", 200),
        ("OPTIONS", RUN, 204),
    ]


@pytest.mark.parametrize("line", [EVENTS.replace("1.1", "1.0"), f"{EVENTS}Connection: close\r\n"])
def test_who_knows_no_chunks_gets_the_pieces_bare(api: Api, machine: Machine, line: str) -> None:
    """Until the connection's end."""
    stream = Stream()
    for piece in (b"one", b"two", None):
        stream.made.put(piece)
    with client_of(api, machine, watch=stream) as client, client.connected() as connection:
        connection.sendall(f"{line}\r\n".encode())
        came = b"".join(iter(lambda: connection.recv(65536), b""))
    assert came.partition(b"\r\n\r\n")[2] == b"onetwo"
    assert b"Connection: close" in came


def test_a_refusal_is_whole_at_once(api: Api, machine: Machine) -> None:
    """With its length."""
    with client_of(api, machine, watch=Stream()) as client:
        answer = client.send("GET", path=f"{RUN}/events", x_api_key=KEY, refuse="1")
    assert (answer.status, answer.json, answer.headers["content-length"]) == (404, {"code": "RunNotFound"}, "23")


def test_who_leaves_ends_what_was_made_for_it(api: Api, machine: Machine) -> None:
    """Also where there is no news that could not be sent."""
    stream = Stream()
    with client_of(api, machine, watch=stream) as client:
        with client.connected() as connection:
            connection.sendall(f"{EVENTS}\r\n".encode())
            until(connection, b"\r\n\r\n")
        assert stream.closed.wait(60)


def test_an_answer_that_breaks_has_no_end(api: Api, machine: Machine) -> None:
    """So that the client knows, and comes back; the service goes on."""
    stream = Stream()
    stream.made.put(b"one")
    stream.made.put(errors.StorageUnavailable())
    with client_of(api, machine, watch=stream) as client:
        with pytest.raises(http.client.IncompleteRead):
            client.send("GET", path=f"{RUN}/events", x_api_key=KEY)
        assert client.post().status == 200


def test_the_end_of_the_service_ends_an_answer_well(api: Api, machine: Machine) -> None:
    """It is whole as far as it goes."""
    stream = Stream()
    with client_of(api, machine, watch=stream) as client:
        connection = client.connected()
        connection.sendall(f"{EVENTS}\r\n".encode())
        until(connection, b"\r\n\r\n")
    with connection:
        assert until(connection, b"\r\n\r\n") == b"0\r\n\r\n"


def test_who_reads_slowly_harms_nobody(api: Api, machine: Machine) -> None:
    """Nothing is made for it that it has not room for, while another reads a hundred times as much."""
    slow, quick = Stream(), Stream()
    streams = iter([slow, quick])
    piece = b"x" * (1 << 20)
    for stream in (slow, quick):
        for _ in range(100):
            stream.made.put(piece)
        stream.made.put(None)
    with client_of(api, machine, watch=lambda event: next(streams)(event)) as client:
        with client.connected() as connection:
            connection.sendall(f"{EVENTS}\r\n".encode())
            until(connection, b"\r\n\r\n")
            answer = client.send("GET", path=f"{RUN}/events", x_api_key=KEY)
            assert len(answer.body) == 100 * len(piece)
            assert slow.given < 50
        assert slow.closed.wait(60)


# --- rates ---


def test_each_key_has_the_rate_of_the_usage_plan(api: Api, machine: Machine) -> None:
    """Beyond the burst a key gets 429 with Retry-After; another key is not touched."""
    with client_of(replace(api, rate=0.01, burst=2), machine) as client:
        assert [client.post().status for _ in range(2)] == [200, 200]
        answer = client.post()
        assert_refused(answer, 429, "Throttled")
        assert int(answer.headers["retry-after"]) > 0
        assert client.post(x_api_key=OTHER_KEY).status == 200


def test_the_usage_plan_is_the_templates(template: Json) -> None:
    """Rate and burst are read, not repeated here."""
    described = read_api(template, {})
    assert (described.rate, described.burst) == (5, 10)


def test_thirty_requests_wait_side_by_side(api: Api, machine: Machine) -> None:
    """No request that has a seat waits for another's run."""
    all_in = threading.Barrier(30)
    machine.reply = lambda _: (all_in.wait(60), (200, {"status": "SUCCEEDED", "output": "{}"}))[1]
    with client_of(api, machine, admission=Admission(30)) as client, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: client.post(), range(30)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["x-amz-apigw-id"] for answer in answers}) == 30


@dataclass
class OneSeat:
    """A gateway that lets in one run at a time, whose only seat is taken."""

    client: Client
    heard: list[Served]
    go_on: threading.Event
    """Set: the run that has the seat ends."""

    def post(self, marker: str) -> socket.socket:
        """A request of which nobody has read the answer."""
        connection = self.client.connected()
        body = json.dumps({"prompt": marker})
        connection.sendall(posted(f"Content-Length: {len(body)}", body=body))
        return connection


@pytest.fixture
def one_seat(api: Api, machine: Machine) -> Iterator[OneSeat]:
    heard: list[Served] = []
    go_on = threading.Event()

    def reply(call: Json) -> tuple[int, Json]:
        if "first" in call["input"]:
            go_on.wait(60)
        return 200, {"status": "SUCCEEDED", "output": json.dumps({"success": True})}

    machine.reply = reply
    with client_of(api, machine, admission=Admission(1), log=heard.append) as client:
        seated = OneSeat(client, heard, go_on)
        first = seated.post("first")
        try:
            assert eventually(lambda: machine.calls)
            yield seated
        finally:
            go_on.set()
            first.close()


def test_who_waits_for_a_seat_has_all_its_time_and_who_hangs_up_costs_nothing(
    one_seat: OneSeat, machine: Machine
) -> None:
    """The request's time is when its run may begin; the log says how long it waited. Who left is not run."""
    with one_seat.post("second") as second, one_seat.post("third") as third:
        time.sleep(3 * admission.LOOK_SECONDS)  # they stand in the line
        third.close()
        with one_seat.post("fourth") as fourth:
            time.sleep(2 * admission.LOOK_SECONDS)
            let_in = time.time()
            one_seat.go_on.set()
            assert b"200 OK" in second.recv(65536)
            assert b"200 OK" in fourth.recv(65536)
    assert [json.loads(call["input"])["body"]["prompt"] for call in machine.calls] == ["first", "second", "fourth"]
    assert json.loads(machine.calls[1]["input"])["requested_at"] >= int(let_in * 1000)
    assert eventually(lambda: len(one_seat.heard) == 3)
    waited = [served.response.waited for served in one_seat.heard]
    assert waited[0] == 0 < 2 * admission.LOOK_SECONDS < waited[1]
    assert f" ms (waited {waited[1] * 1000:.0f})  " in log_line(one_seat.heard[1], 0)


def test_who_would_wait_too_long_for_a_seat_is_told_when_to_come_again(one_seat: OneSeat, machine: Machine) -> None:
    """In the same shape as all that the key's rate refuses; nothing of it is begun."""
    waiting = [one_seat.post("waits") for _ in range(int(admission.PATIENCE_SECONDS / admission.USUAL_SECONDS) + 2)]
    sent_back, _, _ = select.select(waiting, [], [], 60)
    head, body = sent_back[0].recv(65536).split(b"\r\n\r\n", 1)
    for connection in waiting:
        connection.close()
    answer = json.loads(body)
    assert (answer["code"], answer["retryable"], answer["run_id"]) == ("Throttled", True, None)
    assert b" 429 " in head
    (seconds,) = re.findall(rb"Retry-After: (\d+)", head)
    assert 10 <= int(seconds) <= admission.PATIENCE_SECONDS
    assert len(machine.calls) == 1


def test_the_end_of_the_service_reaches_who_waits_for_a_seat(api: Api, machine: Machine) -> None:
    """It is told how to ask again, before the service is gone; here it waits for the seat of a run that goes on."""
    heard: list[Served] = []
    under_way = {"success": True, "status": "running", "session_id": "session-1", "run_id": "run-1"}
    machine.answers(status="SUCCEEDED", output=json.dumps(under_way))
    with ThreadPoolExecutor(1) as pool:
        with client_of(api, machine, admission=Admission(1), log=heard.append) as client:
            assert client.post(prefer="respond-async").status == 202
            waits = pool.submit(client.post)
            time.sleep(2 * admission.LOOK_SECONDS)
        assert [served.response.status for served in heard] == [202, 503]
        assert waits.result().json["code"] == "ServiceStopped"
    assert len(machine.calls) == 1


def posted(*fields: str, body: str = '{"prompt": "a"}', target: str = PATH, key: str = KEY) -> bytes:
    """A request as bytes, with no header but a key and those given."""
    return "\r\n".join([f"POST {target} HTTP/1.1", f"X-Api-Key: {key}", *fields, "", body]).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\na: " + b"b" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        posted("Content-Length: -5"),
        posted("Content-Length: +15"),
        posted("Content-Length: 1 5"),
        posted("Content-Length: 0xf"),
        posted("Content-Length: \xb2"),
        posted("Content-Length: five"),
        posted("Content-Length:"),
        posted("Content-Length: 15, 15"),
        posted("Content-Length: 15", "Content-Length: 15"),
        posted("Content-Length: 15", "Content-Length: 3"),
        posted("Content-Length: " + "9" * 5000),
        posted("Content-Length : 15"),
        posted("Content-Length: 15", CHUNKED, body='f\r\n{"prompt": "a"}\r\n0\r\n\r\n'),
        posted("Transfer-Encoding: gzip, chunked", body='f\r\n{"prompt": "a"}\r\n0\r\n\r\n'),
        posted("Transfer-Encoding: xchunked", body='f\r\n{"prompt": "a"}\r\n0\r\n\r\n'),
        posted(CHUNKED, CHUNKED, body='f\r\n{"prompt": "a"}\r\n0\r\n\r\n'),
        posted(CHUNKED, body="zz\r\n"),
        posted(CHUNKED, body='f\r\n{"prompt": "a"}++0\r\n\r\n'),
        posted(CHUNKED, body=f'f;{"x" * 2000}\r\n{{"prompt": "a"}}\r\n0\r\n\r\n'),
        posted(CHUNKED, body='f\r\n{"prompt": "a"}\r\n0\r\n' + "a: b\r\n" * 5000 + "\r\n"),
        posted(CHUNKED, body='f\n{"prompt": "a"}\n0\n\n'),
        posted("Content-Length: 15", "X: a", " folded"),
        posted("Content-Length: 15", "X: a\0b"),
        posted("Content-Length: 15", "X: a\rX-Api-Key: b"),
        posted("Content-Length: 15", f"x-api-key: {KEY}"),
        posted("Content-Length: 15", "Idempotency-Key: a", "idempotency-key: b"),
        posted("Content-Length: 15", "Content-Type: application/json", "Content-Type: text/plain"),
        posted("Content-Length: 15", "Expect: 200-maybe"),
    ],
)
def test_what_is_no_http_gets_the_same_shape_and_does_no_harm(
    client: Client, machine: Machine, request_: bytes
) -> None:
    """What is broken, or can be read in two ways, ends with one JSON refusal and the connection; others are served."""
    head, _, body = client.raw(request_).partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 4\d\d|HTTP/1\.1 5\d\d", head), head
    assert b"Access-Control-Allow-Origin: *" in head
    assert b"Connection: close" in head
    assert json.loads(body)["success"] is False
    assert machine.calls == []
    assert client.post().status == 200


def test_one_reading_is_served(client: Client, machine: Machine) -> None:
    """A whole address for a target, zeros before a length, and a line end after a body are HTTP, too."""
    for request in (
        posted("Content-Length: 15", target=f"http://localhost{PATH}"),
        posted(f"Content-Length: {'0' * 5000}15"),
        posted("Content-Length: 15", body='{"prompt": "a"}\r\n') + posted("Content-Length: 15"),
    ):
        assert client.raw(request).startswith(b"HTTP/1.1 200")
    assert [json.loads(call["input"])["body"] for call in machine.calls] == [{"prompt": "a"}] * 4


def test_a_body_that_ends_early_is_not_run(client: Client, machine: Machine) -> None:
    """Even where what came would do."""
    assert client.raw(posted("Content-Length: 99")) == b""
    assert client.raw(posted(CHUNKED, body='f\r\n{"prompt": "a"}\r\n')) == b""
    assert machine.calls == []


def test_a_body_is_read_when_its_sender_is_known(client: Client, machine: Machine) -> None:
    """Without a key, and over the limit, the answer is there before a byte of it; the connection is then of no use."""
    for key, length, status in (("wrong", 5_000_000, b"403"), (KEY, 10_485_761, b"413")):
        with client.connected() as connection:
            connection.sendall(posted(f"Content-Length: {length}", "Expect: 100-continue", body="", key=key))
            assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)
    assert machine.calls == []


def test_who_waits_for_a_word_before_the_body_gets_it_at_once(client: Client, machine: Machine) -> None:
    """`Expect: 100-continue`, as curl sends it with a large body, in whatever case."""
    with client.connected() as connection:
        connection.sendall(posted("Content-Length: 15", "Expect: 100-Continue", body=""))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"prompt": "a"}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert machine.envelope["body"] == {"prompt": "a"}


def test_a_refusal_does_not_end_a_connection_that_can_go_on(client: Client) -> None:
    """Its small body is passed over, and the next request on it is answered."""
    connection = http.client.HTTPConnection(client.address, timeout=60)
    answers = []
    for key in ("wrong", KEY, "wrong", KEY):
        connection.request("POST", PATH, '{"prompt": "a"}', {"x-api-key": key})
        answers.append(connection.getresponse())
        answers[-1].read()
    connection.close()
    assert [answer.status for answer in answers] == [403, 200, 403, 200]
    assert [answer.getheader("connection") for answer in answers] == [None] * 4


def test_strangers_do_not_crowd_out_who_has_a_key(client: Client) -> None:
    """Of connections that have shown none only so many are kept, and the oldest go; a caller's idle one stays."""
    caller = http.client.HTTPConnection(client.address, timeout=60)
    caller.request("POST", PATH, '{"prompt": "a"}', {"x-api-key": KEY})
    assert caller.getresponse().read()
    with ExitStack() as held:
        strangers = [held.enter_context(client.connected()) for _ in range(STRANGERS + 100)]
        for stranger in strangers:
            with suppress(ConnectionError):
                stranger.sendall(b"POST / HTTP/1.1\r\nX-Slow: ")
        assert [stranger.recv(1) for stranger in strangers[:100]] == [b""] * 100
        assert client.post().status == 200
        caller.request("POST", PATH, '{"prompt": "a"}', {"x-api-key": KEY})
        assert caller.getresponse().status == 200
    caller.close()


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_head_and_a_body_have_a_time_for_the_whole(slow: str) -> None:
    """A byte now and then does not prolong it."""
    here, there = socket.socketpair()
    with here, there:
        stream = Requests(here, head_seconds=0.3, body_seconds=0.3)
        there.sendall(b"POST / HTTP/1.1\r\n" if slow == "head" else posted("Content-Length: 999"))
        stopped = threading.Event()

        def drip() -> None:
            while not stopped.wait(0.01):
                there.sendall(b"x")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(drip)
            with pytest.raises(Malformed) as malformed:
                stream.body(stream.head(60), 1000)
            stopped.set()
    assert malformed.value.status == 408


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"prompt": "a"}',
        '{"prompt": "a"}'.encode("utf-16"),
        '{"prompt": "a"}'.encode("utf-32-le"),
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\xbd"}',
        b'{"prompt": "a", "max_budget_usd": 1e999}',
        b'{"prompt": "a", "output_schema": {"maximum": -1e999}}',
        b'{"prompt": "a", "max_turns": 1' + b"0" * 400 + b"}",
        b'{"prompt": "a", "max_turns": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "max_budget_usd": NaN}',
        b'{"prompt": "a", "max_budget_usd": -Infinity}',
        b'{"prompt": "a"} {}',
    ],
)
def test_a_body_that_only_some_parsers_take_is_refused(client: Client, machine: Machine, body: bytes) -> None:
    """Another encoding than UTF-8, and numbers that nobody after the gateway could carry on."""
    assert_refused(client.post(body), 400, "InvalidRequest")
    assert machine.calls == []


@pytest.mark.parametrize("body", [r'{"prompt": "half \ud83d"}', r'{"prompt": "a", "half \udc00": 1}'])
def test_half_a_surrogate_pair_does_not_travel(client: Client, machine: Machine, body: str) -> None:
    """It is JSON and no text: RestoreSession gets no body, and refuses that. A whole pair is a character."""
    client.post(body)
    assert machine.envelope["body"] is None
    client.post(r'{"prompt": "whole \ud83d\ude00"}')
    assert machine.envelope["body"] == {"prompt": "whole 😀"}


def test_a_chunked_body_is_a_body(client: Client, machine: Machine) -> None:
    """Clients that stream are understood."""
    head = f"POST {PATH} HTTP/1.1\r\nX-Api-Key: {KEY}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = client.raw(head.encode() + b'8\r\n{"prompt\r\n5;x=y\r\n": "a\r\n2\r\n"}\r\n0\r\n\r\n')
    assert answer.startswith(b"HTTP/1.1 200")
    assert machine.envelope["body"] == {"prompt": "a"}


def test_a_client_that_leaves_does_no_harm(client: Client) -> None:
    """Its run goes on, and others are served."""
    client.raw(f"POST {PATH} HTTP/1.1\r\nX-Api-Key: {KEY}\r\nContent-Length: 999\r\n\r\n{{".encode())
    assert client.post().status == 200


def test_a_busy_port_is_an_os_error(api: Api, machine: Machine) -> None:
    """The command line words it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(OSError, match="in use"),
            serving(api, machine.url, {}, root="root", port=taken.getsockname()[1]),
        ):
            pass


def test_without_authentication_nobody_is_asked(templates: Templates, machine: Machine) -> None:
    """A deployment with `auth: none` needs no key here either, and its caller is the public."""
    with client_of(read_api(templates(auth="none"), {}), machine) as client:
        assert client.send("POST", '{"prompt": "x"}').status == 200
        assert machine.envelope["caller"] == "public"


def test_what_cannot_be_done_locally_is_said_at_the_start(templates: Templates) -> None:
    """`auth: iam` needs AWS: no difference shows up later, at a request."""
    with pytest.raises(NotUnderstood, match="AWS_IAM"):
        read_api(templates(auth="iam"), {})


def test_two_integration_responses_of_one_status_are_refused(template: Json) -> None:
    """API Gateway would keep one of them, and answer with it what the other was for."""
    changed = json.loads(json.dumps(template))
    posts = [r["Properties"] for name, r in changed["Resources"].items() if name.startswith("DoorApiclaudecodePOST")]
    posts[0]["Integration"]["IntegrationResponses"][1]["StatusCode"] = "500"
    with pytest.raises(NotUnderstood, match="200, 500, 500"):
        read_api(changed, {})


def test_intrinsics_are_worked_out(template: Json) -> None:
    """The request template names the machine that was deployed."""
    kinds = {name: r.get("Properties", {}).get("StateMachineType") for name, r in template["Resources"].items()}
    machines = {name: f"arn:of:the:{kind}:machine" for name, kind in kinds.items() if kind}
    described = read_api(template, machines)
    post = described.methods[PATH]["POST"]
    assert '"arn:of:the:EXPRESS:machine"' in post.integration.templates["application/json"]


def test_escape_javascript_does_as_aws_does() -> None:
    """Apache Commons' `escapeEcmaScript`: apostrophes and slashes too, and UTF-16 for all beyond ASCII."""
    escaped = Util().escapeJavaScript("'\"\\/\n\x01é😀\u2028")
    assert escaped == "\\'\\\"\\\\\\/\\n\\u0001\\u00E9\\uD83D\\uDE00\\u2028"


def test_text_has_javas_methods() -> None:
    """What templates call on strings means the same as in Java."""
    assert Text("a1b22").replaceAll(r"(\d+)", "<$1>") == "a<1>b<22>"
    assert Text(r"it\'s").replaceAll(r"\\'", "'") == "it's"
    assert Text("x.y").replaceAll(r"\.", r"\\") == "x\\y"
    assert Text("😀").length() == 2
    assert Text("Ab").matches("(?i)ab")
    assert not Text("abc").matches("ab")


@pytest.mark.parametrize(
    "unknown", ["$context.id.trim()", "$util.urlEncode('x')", "$input.headers", "#if($util.nope())x#end"]
)
def test_what_is_not_evaluated_here_is_an_error(unknown: str) -> None:
    """And not an empty text, which is what the evaluator would make of it."""
    with pytest.raises(TemplateExecutionError, match="does not know"):
        render(unknown, Input("{}", {}), {"id": Text("x")})


def test_input_reads_paths_and_parameters() -> None:
    """`$input.path` and `$input.json` by names and indexes; what is not there is nothing."""
    source = Input('{"a": {"b": [1, {"c": "é"}]}}', {"path": {}, "querystring": {"q": "1"}, "header": {"H": "2"}})
    assert (
        render("$input.json('$.a.b[1]')|$input.path('$.a.b[1].c')|$!input.path('$.x.y')", source, {}) == '{"c":"é"}|é|'
    )
    assert render("$input.params('q')$input.params('H')$!input.params('none')", source, {}) == "12"
