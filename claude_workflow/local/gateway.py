"""The front gateway: API Gateway's part on one machine, driven by the synthesized template (`local.api`).

A thread a connection, since every request waits for its run, and before that for a seat (`local.admission`). What the
engine leaves out of Step Functions is done here: the 256 KiB of an execution's input and output, and the state
machine's own timeout. It gives out no function's answer as that is made, either: the one function that answers so,
StreamRun, is done here too, in the connection's thread.

Left out: authorizers other than the API key, the daily quota, the stage's name in the path.
"""

import base64
import http.client
import json
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl

import jsonschema
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from claude_workflow.local.admission import Admission, Full, Seat, seats
from claude_workflow.local.api import Answer, Api, Integration, Method
from claude_workflow.local.engine import ACCOUNT, REGION, open_files
from claude_workflow.local.guard import ROOT_KEY
from claude_workflow.local.http1 import HEAD_SECONDS, IDLE_SECONDS, Head, HungUp, Malformed, Stream, TooLarge
from claude_workflow.local.mapping import Input, Text, parsed, render, texts
from lambdas.errors import LOCAL_CODES, WorkflowError
from lambdas.streaming import Handler

MAX_REQUEST = 10 * 1024 * 1024
"""API Gateway's limit for a request's body."""
MAX_STATE = 256 * 1024
"""Step Functions' limit for an execution's input and output, in bytes of UTF-8."""
MAX_RUNS = 256
"""Executions at a time; more wait for a free one."""
STRANGERS = 256
"""Connections that have shown no valid key, at a time: each takes a thread and a file."""
ACCEPTED = 202
"""What is answered of a run that goes on."""
SKIPPED = 64 * 1024
"""How large a body is read and forgotten after a refusal, so that the connection can go on; else it ends."""
SEND_SECONDS = 30
"""How long a client may take its answer, or a slice of one that is sent as it is made."""
SLICE = 64 * 1024
"""Bytes of such an answer that are sent at a time."""
LAST_SECONDS = 2
"""How long, at the end, answers are waited for that are on their way."""

REFUSED = {
    "MISSING_AUTHENTICATION_TOKEN": (403, "Missing Authentication Token"),
    "INVALID_API_KEY": (403, "Forbidden"),
    "THROTTLED": (429, "Too Many Requests"),
    "REQUEST_TOO_LARGE": (413, "Posted Too Long"),
    "BAD_REQUEST_PARAMETERS": (400, "Missing required request parameters"),
    "BAD_REQUEST_BODY": (400, "Invalid request body"),
    "UNSUPPORTED_MEDIA_TYPE": (415, "Unsupported Media Type"),
    "INTEGRATION_FAILURE": (504, "Network error communicating with endpoint"),
    "INTEGRATION_TIMEOUT": (504, "Endpoint request timed out"),
    "API_CONFIGURATION_ERROR": (500, "Internal server error"),
    "DEFAULT_4XX": (400, "Bad Posted"),
    "DEFAULT_5XX": (502, "Internal server error"),
}
"""API Gateway's own statuses and texts, where the template does not set others."""


STOPPED: dict[str, Any] = {
    "code": "ServiceStopped",
    "error": "The service was stopped while this run was at work. Once it runs again, POST the same body with the same "
    "Idempotency-Key, or with this idempotency_key if you sent none: the run goes on from what was stored.",
    "retryable": True,
    "cost_usd": None,
}
"""What a run is answered that `serve` cuts off."""


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Claude Agent Workflow</title>
<body style="font: 1.1em/1.5 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em">
<h1>Claude Agent Workflow</h1>
<p>The service runs. It is an API and has no pages of its own: it answers <code>POST /claude-code</code> with JSON, for
whoever has its key.</p>
<p>In a terminal, <code>claude-workflow ask "Hello"</code> asks it; <code>claude-workflow serve</code> has printed the
line for curl, with the key in it.</p>
<p>The console, which shows what runs, has an address of its own: <code>claude-workflow serve</code> has printed it, in
the line that begins with <code>Console:</code>.</p>
</body></html>
"""
"""What a browser shows that opens the printed address, or looks there for the console."""

CONSOLE = "/console"
"""No page of the API's: its port is its callers', and another origin is a wall between them and the operator."""


class _GatewayResponse(Exception):
    """The request ends here, with the gateway response of this type."""

    def __init__(self, kind: str, status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Posted:
    """One HTTP request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names as the client wrote them."""
    read: Callable[[], bytes]
    """Takes the body, once the request is let in. Raises `_GatewayResponse` for one that is too large, or none."""
    client: str
    has_left: Callable[[], bool]
    """Whether its client has hung up meanwhile."""

    def header(self, name: str) -> str | None:
        """The first header of a name, whatever its case."""
        return next((value for given, value in self.headers.items() if given.lower() == name.lower()), None)

    @property
    def media_type(self) -> str:
        """The content type without its parameters; JSON where there is none."""
        return (self.header("Content-Type") or "application/json").split(";")[0].strip().lower()


@dataclass
class Response:
    """One HTTP response."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Iterator[bytes] | None = None
    """The body of one that is sent as it is made; a piece may be empty."""
    waited: float = 0.0
    """Seconds that the request waited for a seat."""


@dataclass(frozen=True)
class Served:
    """One request and what it was answered, for a log."""

    method: str
    """Empty, as the path is, for what was no request."""
    path: str
    response: Response
    seconds: float


class Stopped(Exception):
    """The service was ended while an execution was at work."""


class Backend:
    """Step Functions and Lambda as an integration sees them: StartSyncExecution, with the limits that the engine leaves
    out, and Invoke."""

    def __init__(self, engine_url: str, root: str, machine_timeout: float | None) -> None:
        self._root = Credentials(ROOT_KEY, root)
        self._address = engine_url.removeprefix("http://")
        self._machine_timeout = machine_timeout
        self._runs = ThreadPoolExecutor(MAX_RUNS, thread_name_prefix="execution")
        self._end = Future[None]()

    def start_sync_execution(self, mapped: str, timeout: float) -> tuple[int, str]:
        """The service's status and body.

        Raises `TimeoutError` after `timeout` seconds, `OSError` if none is there, and `Stopped`.
        """
        call = {"name": str(uuid.uuid4()), **json.loads(mapped)}
        if len(call["input"].encode()) > MAX_STATE:
            return 400, json.dumps({"__type": "ValidationException", "message": "The input is too long."})
        wait = timeout if self._machine_timeout is None else min(timeout, self._machine_timeout)
        run = self._awaited(wait, self._post, "StartSyncExecution", call)
        if not run.done():
            if wait == timeout:
                raise TimeoutError
            # It stops before its next state; a function that is running ends by its own timeout, as in AWS.
            self._runs.submit(self._post, "StopExecution", {"executionArn": _execution_arn(call)})
            return 200, json.dumps({"status": "TIMED_OUT", "name": call["name"], "input": call["input"]})
        status, body = run.result()
        return status, _limited(body)

    def invoke(self, function: str, event: Mapping[str, Any], timeout: float) -> str:
        """What a function answers. Raises `ValueError` where it failed, and what `start_sync_execution` does."""
        path = f"/2015-03-31/functions/{function}/invocations"
        run = self._awaited(timeout, self._signed, "lambda", path, event, {"Content-Type": "application/json"})
        if not run.done():
            raise TimeoutError
        answer, body = run.result()
        if answer.status != 200 or answer.headers.get("X-Amz-Function-Error"):
            raise ValueError(body)
        return str(body)

    def _awaited(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """What was called, after `seconds` at the most. Raises `Stopped`."""
        run: Future[Any]
        ended: Future[Any] = self._end
        try:
            run = self._runs.submit(call, *arguments)
        except RuntimeError as closed:
            raise Stopped from closed
        wait_for([run, ended], seconds, FIRST_COMPLETED)
        if ended.done() and not run.done():
            raise Stopped
        return run

    def _post(self, action: str, call: Mapping[str, Any]) -> tuple[int, str]:
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"AWSStepFunctions.{action}"}
        answer, body = self._signed("states", "/", call, headers)
        return answer.status, body

    def _signed(
        self, service: str, path: str, call: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, str]:
        request = AWSRequest("POST", f"http://{self._address}{path}", data=json.dumps(call).encode())
        for name, value in headers.items():
            request.headers[name] = value
        SigV4Auth(self._root, service, REGION).add_auth(request)
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request("POST", path, request.body, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()

    def check(self) -> None:
        """Raises `Stopped` once the service was ended."""
        if self._end.done():
            raise Stopped

    def close(self) -> None:
        """Whoever waits for an execution is told."""
        self._end.set_result(None)
        self._runs.shutdown(wait=False, cancel_futures=True)


def _execution_arn(call: Mapping[str, Any]) -> str:
    return f"{call['stateMachineArn'].replace(':stateMachine:', ':execution:')}:{call['name']}"


def _limited(body: str) -> str:
    """The answer as Step Functions would give it: its output's JSON unescaped, and none over 256 KiB."""
    answer = json.loads(body)
    if answer.get("status") != "SUCCEEDED":
        return body
    output = json.dumps(json.loads(answer["output"]), ensure_ascii=False, separators=(",", ":"))
    if len(output.encode()) <= MAX_STATE:
        return json.dumps(answer | {"output": output})
    cause = "The state returned a result with a size exceeding the maximum number of bytes service limit."
    failed = {"status": "FAILED", "error": "States.DataLimitExceeded", "cause": cause, "output": None}
    return json.dumps(answer | failed)


class _Throttle:
    """A token bucket for each key, as the usage plan has it."""

    def __init__(self, rate: float | None, burst: int | None) -> None:
        self._rate, self._burst = rate, burst
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, key: str) -> bool:
        if self._rate is None or self._burst is None:
            return True
        with self._lock:
            now = time.monotonic()
            tokens, seen = self._buckets.get(key, (float(self._burst), now))
            tokens = min(self._burst, tokens + (now - seen) * self._rate)
            admitted = tokens >= 1
            self._buckets[key] = (tokens - admitted, now)
            return admitted


class Gateway:
    """Answers requests as API Gateway would with this API. `keys` are the API keys' values and their (logical) ids;
    `watch` is the function that answers as it goes."""

    def __init__(
        self,
        api: Api,
        backend: Backend,
        keys: Mapping[str, str],
        watch: Handler | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._api, self._backend, self._keys, self._watch = api, backend, dict(keys), watch
        self._admission = admission or Admission(seats())
        self._throttle = _Throttle(api.rate, api.burst)

    def answer(self, request: Posted) -> Response:
        """Whatever goes wrong is a gateway response. Raises `HungUp` for a client that left before its run began."""
        if self._is_looked_at(request):
            return Response(200, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})
        context = self._context(request)
        try:
            response = self._admitted(request, context)
        except _GatewayResponse as refused:
            response = self._refusal(refused.kind, context, refused.status)
            if refused.retry_after is not None:
                response.headers["Retry-After"] = str(refused.retry_after)
        except Stopped:
            response = self._stopped(context)
        response.headers |= {"x-amzn-RequestId": context["requestId"], "x-amz-apigw-id": context["extendedRequestId"]}
        return response

    def _is_looked_at(self, request: Posted) -> bool:
        """Whether somebody opened the address in a browser. For all others GET is answered as in AWS."""
        here = request.method == "GET" and (request.path in ("/", CONSOLE) or request.path in self._api.methods)
        return here and "text/html" in (request.header("Accept") or "")

    def refuse(self, status: int) -> Response:
        """The answer to what is not even an HTTP request."""
        return self._refusal("DEFAULT_4XX", texts({"extendedRequestId": _extended_id(), "requestId": ""}), status)

    def _stopped(self, context: dict[str, Any]) -> Response:
        """In the shape of the API's own failures; AWS has nothing like it."""
        response = self._refusal("INTEGRATION_FAILURE", context, None)
        response.status = LOCAL_CODES[STOPPED["code"]]
        facts = json.loads(response.body) | STOPPED
        response.body = json.dumps(facts | {"idempotency_key": str(context["extendedRequestId"])}).encode()
        return response

    def _admitted(self, request: Posted, context: dict[str, Any]) -> Response:
        """The checks in API Gateway's order, then the integration."""
        resource, parameters = self._api.route(request.path) or ("", {})
        methods = self._api.methods.get(resource, {})
        method = methods.get(request.method) or methods.get("ANY")
        if method is None:
            raise _GatewayResponse("MISSING_AUTHENTICATION_TOKEN")
        context["resourcePath"] = resource
        if method.needs_key:
            context["identity"] |= texts(self._identified(request))
        body = request.read()
        _validate(method, request, body)
        if method.integration.kind == "AWS_PROXY":
            return self._handed(method.integration, _event(request, body, parameters, context))
        template = _request_template(method.integration, request.media_type)
        source = _input(request, body)
        if method.integration.kind == "MOCK":
            return self._mapped(method.integration, template, source, context)
        with self._seated(request) as seat:
            if seat.waited:  # its clocks begin now
                context |= _now()
            response = self._mapped(method.integration, template, source, context)
            seat.kept = response.status == ACCEPTED
        response.waited = seat.waited
        return response

    @contextmanager
    def _seated(self, request: Posted) -> Iterator[Seat]:
        def still_wanted() -> None:
            self._backend.check()
            if request.has_left():
                raise HungUp

        try:
            with self._admission.seat(still_wanted) as seat:
                yield seat
        except Full as full:
            raise _GatewayResponse("THROTTLED", retry_after=full.retry_after) from None

    def _mapped(
        self, integration: Integration, template: str | None, source: Input, context: dict[str, Any]
    ) -> Response:
        """The request as its template makes it of the body, and the answer that another makes of the result."""
        mapped = _rendered(template, source, context) if template is not None else source.body
        status, result = self._integrated(integration, mapped)
        return _translated(integration, status, result, context)

    def _identified(self, request: Posted) -> dict[str, str]:
        name = self.known(request)
        if name is None:
            raise _GatewayResponse("INVALID_API_KEY")
        if not self._throttle.admit(name):
            raise _GatewayResponse("THROTTLED")
        return {"apiKey": request.header("X-Api-Key") or "", "apiKeyId": name}

    def known(self, request: Posted) -> str | None:
        """The id of the API key that the request comes with; None without a valid one."""
        value = (request.header("X-Api-Key") or "").encode()
        return next((name for key, name in self._keys.items() if secrets.compare_digest(key.encode(), value)), None)

    def _integrated(self, integration: Integration, mapped: str) -> tuple[str, str]:
        try:
            if integration.kind == "MOCK":
                return str(json.loads(mapped)["statusCode"]), ""
            status, body = self._backend.start_sync_execution(mapped, integration.timeout)
        except TimeoutError:
            raise _GatewayResponse("INTEGRATION_TIMEOUT") from None
        except (OSError, http.client.HTTPException):
            raise _GatewayResponse("INTEGRATION_FAILURE") from None
        except (ValueError, KeyError, TypeError):
            raise _GatewayResponse("API_CONFIGURATION_ERROR") from None
        return str(status), body

    def _handed(self, integration: Integration, event: Mapping[str, Any]) -> Response:
        """What a function answers that gets the request as it came."""
        try:
            if integration.streams:
                return self._begun(event)
            answer = json.loads(self._backend.invoke(str(integration.function), event, integration.timeout))
            return Response(int(answer["statusCode"]), str(answer["body"]).encode(), dict(answer["headers"]))
        except TimeoutError:
            raise _GatewayResponse("INTEGRATION_TIMEOUT") from None
        except (OSError, http.client.HTTPException):
            raise _GatewayResponse("INTEGRATION_FAILURE") from None
        except (ValueError, KeyError, TypeError) as broken:
            raise _GatewayResponse("DEFAULT_5XX") from broken

    def _begun(self, event: Mapping[str, Any]) -> Response:
        """An answer that is sent as it is made; a refusal is whole at once."""
        if self._watch is None:
            raise _GatewayResponse("API_CONFIGURATION_ERROR")
        answer = self._watch(dict(event))
        if answer.status == 200:
            return Response(200, headers=dict(answer.headers), pieces=answer.pieces)
        return Response(answer.status, b"".join(answer.pieces), dict(answer.headers))

    def _context(self, request: Posted) -> dict[str, Any]:
        context: dict[str, Any] = texts(
            {
                "accountId": ACCOUNT,
                "apiId": "local",
                "domainName": request.header("Host") or "",
                "stage": self._api.stage,
                "requestId": str(uuid.uuid4()),
                "extendedRequestId": _extended_id(),
                "httpMethod": request.method,
                "path": request.path,
                "protocol": "HTTP/1.1",
                "identity": {"sourceIp": request.client, "userAgent": request.header("User-Agent") or ""},
            }
        )
        return context | _now() | {"responseOverride": {"header": {}}}

    def _refusal(self, kind: str, context: dict[str, Any], status: int | None) -> Response:
        usual, message = REFUSED[kind]
        status = status or usual
        family = "DEFAULT_4XX" if status < 500 else "DEFAULT_5XX"
        refusal = self._api.gateway_responses.get(kind) or self._api.gateway_responses.get(family)
        text = (refusal and refusal.body) or '{"message":$context.error.messageString}'
        context["error"] = {"message": message, "messageString": json.dumps(message), "responseType": kind}
        headers = {"Content-Type": "application/json"} | (_constants(refusal.headers) if refusal else {})
        body = re.sub(r"\$context((?:\.\w+)+)", lambda found: _context_value(context, found[1]), text)
        return Response((refusal and refusal.status) or status, body.encode(), headers)


def _now() -> dict[str, Any]:
    """What a context says of the request's time."""
    now = time.time()
    text = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now))
    return {"requestTime": Text(text), "requestTimeEpoch": int(now * 1000)}


def _extended_id() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(11)).decode()


def _context_value(context: Any, path: str) -> str:
    for name in path.strip(".").split("."):
        context = context.get(name, "") if isinstance(context, dict) else ""
    return str(context)


def _validate(method: Method, request: Posted, body: bytes) -> None:
    kinds = {"header": {name.lower() for name in request.headers}, "querystring": set(request.query)}
    for parameter in method.required:
        kind, name = parameter.removeprefix("method.request.").split(".", 1)
        if (name.lower() if kind == "header" else name) not in kinds.get(kind, set()):
            raise _GatewayResponse("BAD_REQUEST_PARAMETERS")
    schema = method.schemas.get(request.media_type)
    if schema is None:
        return
    try:
        jsonschema.validate(parsed(body.decode()), schema)
    except (ValueError, RecursionError, jsonschema.ValidationError):
        raise _GatewayResponse("BAD_REQUEST_BODY") from None


def _event(request: Posted, body: bytes, parameters: Mapping[str, str], context: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a function gets it."""
    return {
        "resource": context["resourcePath"],
        "path": request.path,
        "httpMethod": request.method,
        "headers": dict(request.headers),
        "queryStringParameters": dict(request.query) or None,
        "pathParameters": dict(parameters) or None,
        "requestContext": {name: value for name, value in context.items() if name != "responseOverride"},
        "body": body.decode("utf-8", "replace") or None,
        "isBase64Encoded": False,
    }


def _input(request: Posted, body: bytes) -> Input:
    text = body.decode("utf-8", "replace")
    return Input(text, {"path": {}, "querystring": request.query, "header": request.headers})


def _request_template(integration: Integration, media_type: str) -> str | None:
    """The template for this content type; None passes the body on as it is."""
    if media_type in integration.templates:
        return integration.templates[media_type]
    if integration.passthrough == "NEVER" or (integration.passthrough == "WHEN_NO_TEMPLATES" and integration.templates):
        raise _GatewayResponse("UNSUPPORTED_MEDIA_TYPE")
    return None


def _rendered(template: str, source: Input, context: dict[str, Any]) -> str:
    try:
        return render(template, source, context)
    except Exception as broken:
        # The evaluator raises whatever a template's mistake leads to; AWS calls all of that one thing.
        raise _GatewayResponse("API_CONFIGURATION_ERROR") from broken


def _translated(integration: Integration, status: str, result: str, context: dict[str, Any]) -> Response:
    answer = _matching(integration.answers, status)
    template = answer.templates.get("application/json")
    body = result if template is None else _rendered(template, Input(result, _NO_PARAMS), context)
    override = context["responseOverride"]
    return Response(
        status=int(override.get("status", answer.status)),
        body=body.strip().encode(),
        headers={"Content-Type": "application/json"} | _constants(answer.headers) | override["header"],
    )


_NO_PARAMS: Mapping[str, Mapping[str, str]] = {"path": {}, "querystring": {}, "header": {}}


def _matching(answers: tuple[Answer, ...], status: str) -> Answer:
    fitting = [answer for answer in answers if answer.pattern and answer.pattern.fullmatch(status)]
    default = [answer for answer in answers if not answer.pattern]
    if not fitting + default:
        raise _GatewayResponse("API_CONFIGURATION_ERROR")
    return (fitting + default)[0]


def _constants(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers whose expression is a constant in quotes, which is all that the template uses."""
    return {name: value[1:-1] for name, value in headers.items() if value[:1] == value[-1:] == "'"}


class _Lobby:
    """The connections that have shown no key. The one that came first makes room for one too many."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[socket.socket, None] = {}

    def enter(self, connection: socket.socket) -> None:
        with self._guard:
            self._waiting[connection] = None
            if len(self._waiting) > STRANGERS:
                first = next(iter(self._waiting))
                del self._waiting[first]
                with suppress(OSError):  # it has just gone by itself
                    first.shutdown(socket.SHUT_RDWR)  # its thread, which waits for it, ends

    def leave(self, connection: socket.socket) -> None:
        with self._guard:
            self._waiting.pop(connection, None)


class _Handler(BaseRequestHandler):
    """One connection, in a thread of its own."""

    server: "_Server"

    def handle(self) -> None:
        self._stream = Stream(self.request)
        self._known = False
        try:
            wait = HEAD_SECONDS  # nobody connects to say nothing
            while self._one_request(wait):
                wait = IDLE_SECONDS
        except (HungUp, OSError):
            pass  # the client went away; its run goes on
        finally:
            self.server.lobby.leave(self.request)

    def _one_request(self, wait: float) -> bool:
        """Whether another may follow on this connection."""
        if not self._known:
            self.server.lobby.enter(self.request)
        try:
            head = self._stream.head(wait)
        except Malformed as malformed:
            refused = self.server.gateway.refuse(malformed.status)
            self.server.log(Served("", "", refused, 0))
            self._send(refused, stays=False)
            return False
        with self.server.working(self):
            return self._answered(head)

    def _answered(self, head: Head) -> bool:
        """Whether another may follow on this connection."""
        began = time.monotonic()
        self._unread = head.length != 0
        response = self._answer(head)
        if response.pieces is not None:
            try:
                return self._send_pieces(response, response.pieces, stays=head.stays)
            finally:
                self.server.log(Served(head.method, head.path, response, time.monotonic() - began))
        self.server.log(Served(head.method, head.path, response, time.monotonic() - began))
        skipped = self._unread and head.length is not None and head.length <= SKIPPED and not head.expects
        stays = head.stays and (skipped or not self._unread)
        self._send(response, stays=stays, bodiless=head.method == "HEAD")
        if stays and skipped:
            try:
                self._stream.body(head, SKIPPED)
            except Malformed:  # too slow
                return False
        return stays

    def _answer(self, head: Head) -> Response:
        request = Posted(
            method=head.method,
            path=head.path.rstrip("/") or "/",
            query=dict(parse_qsl(head.query, keep_blank_values=True)),
            headers=head.fields,
            read=partial(self._read, head),
            client=self.client_address[0],
            has_left=self._has_left,
        )
        self._known = self._known or bool(self.server.gateway.known(request))
        if self._known:
            self.server.lobby.leave(self.request)
        return self.server.gateway.answer(request)

    def _read(self, head: Head) -> bytes:
        """The body of a request that is let in."""
        self.server.lobby.leave(self.request)  # what is at work is not sent away
        try:
            body = self._stream.body(head, MAX_REQUEST)
        except TooLarge:
            raise _GatewayResponse("REQUEST_TOO_LARGE") from None
        except Malformed as malformed:
            raise _GatewayResponse("DEFAULT_4XX", malformed.status) from None
        self._unread = False
        return body

    def _send(self, response: Response, *, stays: bool, bodiless: bool = False) -> None:
        bodiless = bodiless or response.status in (204, 304)
        length = {} if response.status in (204, 304) else {"Content-Length": str(len(response.body))}
        self.request.settimeout(SEND_SECONDS)
        self.request.sendall(_head_of(response, length, stays=stays) + (b"" if bodiless else response.body))
        if not stays:
            self._stream.linger()

    def _send_pieces(self, response: Response, pieces: Iterator[bytes], *, stays: bool) -> bool:
        """Sends an answer as it is made: in chunks, or until the connection's end. Whether another may follow on it.

        Nothing is kept of it here: who reads slowly is waited for, and who reads too slowly is left.
        """
        self.request.settimeout(SEND_SECONDS)
        self.request.sendall(_head_of(response, {"Transfer-Encoding": "chunked"} if stays else {}, stays=stays))
        try:
            for piece in pieces:
                self._send_piece(piece, chunked=stays)
                if self.server.ending.is_set():
                    break
                if self._has_left():
                    return False
        except WorkflowError:
            return False  # without an end, at which the client comes back
        if stays:
            self.request.sendall(b"0\r\n\r\n")
        return stays

    def _send_piece(self, piece: bytes, *, chunked: bool) -> None:
        for start in range(0, len(piece), SLICE):
            part = piece[start : start + SLICE]
            self.request.settimeout(SEND_SECONDS)  # of each
            self.request.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)

    def _has_left(self) -> bool:
        """Whether the client has hung up. It has nothing to say as long as it listens."""
        self.request.settimeout(0)
        try:
            return not self.request.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _head_of(response: Response, more: Mapping[str, str], *, stays: bool) -> bytes:
    """An answer's first line and headers."""
    headers = {"Server": "claude-workflow", "Date": formatdate(usegmt=True), **response.headers, **more}
    if not stays:
        headers["Connection"] = "close"
    phrase = http.client.responses.get(response.status, "")
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    lines += [f"{name}: {re.sub(r'[^ -~]', '', value)}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    disable_nagle_algorithm = True
    request_queue_size = 128
    gateway: Gateway

    def __init__(self, address: tuple[str, int], log: Callable[[Served], None]) -> None:
        super().__init__(address, _Handler)
        self.lobby = _Lobby()
        self.log = log
        self.ending = threading.Event()
        """Set when the service ends, and with it what would go on."""
        self._at_work: set[_Handler] = set()

    @contextmanager
    def working(self, handler: _Handler) -> Iterator[None]:
        """While a request is answered."""
        self._at_work.add(handler)
        try:
            yield
        finally:
            self._at_work.discard(handler)

    def finish(self) -> None:
        """Gives the last answers a moment."""
        self.ending.set()
        until = time.monotonic() + LAST_SECONDS
        while self._at_work and time.monotonic() < until:
            time.sleep(0.02)


@contextmanager
def serving(
    api: Api,
    engine_url: str,
    keys: Mapping[str, str],
    *,
    root: str,
    host: str = "127.0.0.1",
    port: int = 0,
    log: Callable[[Served], None] = lambda _: None,
    watch: Handler | None = None,
    admission: Admission | None = None,
) -> Iterator[str]:
    """Serves the API in threads of its own, and yields its base URL; ended on the way out: what waits for a run is
    answered that the service was stopped.

    `keys` maps the value of each API key to its logical id in the template; `root` is the secret of the engine's root;
    `watch` is StreamRun. `log` hears of each request before its answer is sent, or after one that is sent as it is
    made, and must not raise. `admission` is whom it lets in; None: as many at a time as run well. Raises `OSError` if
    the port is taken.
    """
    backend = Backend(engine_url, root, api.machine_timeout)
    open_files()
    with _Server((host, port), log) as server:
        server.gateway = Gateway(api, backend, keys, watch, admission)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            backend.close()
            server.finish()
