"""What stands before the engine's port on loopback, which every program on this machine can reach.

The engine behind it takes for the account's root whoever names no key, the key `test` or an account's number, without
checking a signature, and finds a bucket, a service or an account in whatever of host, path, header and query fits. So
here alone is decided who asks for what:

- A request can be read in one way only, or is refused; and it is handed on newly written, without what nobody signed.
- Its signature is verified: by the root's key, whose secret is drawn at each start, or by a function's role.
- Once the workflow is deployed the engine is *sealed*, which nothing undoes: what can then be called is listed below.
  What a role may do of it the engine judges, by the template's policies.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from claude_workflow.local.signature import Claim, Signed, Unsigned, claim, of_body

App = Callable[[Any, Any, Any], Awaitable[None]]

ROOT_KEY = "claudeworkflowroot"
"""The id of the root's key. It stands in every link that root signs, and is no secret."""
ROLE_KEY = re.compile("ASIA[0-9A-F]{16}")
"""The ids that the engine gives the keys of roles."""

READY = "/_ministack/ready"
SEAL = "/_seal"
"""A signed request for this seals the engine; before the deployment is done, only root can sign."""

BUCKET = "claude-workflow-sessions"
"""The one bucket that can be reached once the engine is sealed; a restart finds the sessions by its name."""

UNVERIFIED_BYTES = 8 << 20
"""The largest body that is read before its signature is verified: of a call whose head does not name its hash."""

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")

UNSIGNED = ("content-length", "content-type", "range", "if-match", "origin")
"""Headers that are handed on although nobody signed them."""
PREFLIGHT = ("host", "origin", "access-control-request-method", "access-control-request-headers")
"""What a browser says before it uses a link."""

ROOT_CALLS = {
    ("states", f"AWSStepFunctions.{name}") for name in ("StartSyncExecution", "StopExecution", "GetExecutionHistory")
}
HANDED = re.compile(
    r"/2015-03-31/functions/[A-Za-z0-9-]*Functions(ReadRun|RemoveSession|OfferUpload)[A-Za-z0-9-]*/invocations"
)
"""The functions that root may call, for the gateway: what it hands them is a request. The others are the state
machine's."""
ROLE_CALLS = {("secretsmanager", "secretsmanager.GetSecretValue"), ("events", "AWSEvents.PutEvents")}
"""Calls by service and X-Amz-Target, once sealed."""

LISTED = {"prefix", "delimiter", "encoding-type", "max-keys"}
OBJECTS: tuple[tuple[str, bool, set[str], set[str]], ...] = (
    ("GET", True, set(), {"versionId"}),
    ("HEAD", True, set(), {"versionId"}),
    ("PUT", True, set(), set()),
    ("DELETE", True, set(), {"versionId"}),
    ("POST", True, {"uploads"}, set()),
    ("PUT", True, {"partNumber", "uploadId"}, set()),
    ("POST", True, {"uploadId"}, set()),
    ("DELETE", True, {"uploadId"}, set()),
    ("GET", False, {"list-type"}, {*LISTED, "continuation-token", "start-after"}),
    ("GET", False, {"versions"}, {*LISTED, "key-marker", "version-id-marker"}),
    ("POST", False, {"delete"}, set()),
)
"""What can be done to the bucket, once sealed: method, whether to an object, the query it needs and what else it may
have. Of these a link does the first three."""
LINKED = OBJECTS[:3]
LINK_HEADERS = {"host", "if-none-match", "content-length"}
"""What a link may have signed: no `x-amz-…`, which would make a copy of a PUT."""


class NotAllowed(Exception):
    """The request goes no further; the text is a sentence that holds nothing of it."""


class Guard:
    """An ASGI application before the engine's.

    `secret` is the root key's; `secret_of` gives a role key's, for its id and session token, or None.
    """

    def __init__(self, app: App, secret: str, secret_of: Callable[[str, str], str | None]) -> None:
        self._app = app
        self._secret = secret
        self._secret_of = secret_of
        self._sealed = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._answer(scope, receive, send)
            except (NotAllowed, Unsigned) as refused:
                await _refuse(scope, str(refused), send)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        request = _read(scope)
        if request.method == "OPTIONS" and _key(request) is not None:
            await self._app(_written(scope, request, PREFLIGHT, {}), receive, send)
        elif (request.method, request.path, dict(request.query)) == ("GET", READY, {}):
            await self._app(_written(scope, request, ("host",), {}), receive, send)
        else:
            claimed = claim(request)
            body = await self._verified(request, claimed, receive)
            if request.path == SEAL:
                await self._seal(send)
                return
            if self._sealed:
                _admit(request, claimed)
            elif request.path.startswith("/_"):
                raise NotAllowed("The engine's own interface is closed.")
            names = (*claimed.headers, *UNSIGNED, "authorization")
            await self._app(_written(scope, request, names, request.query), _once(body, receive), send)

    async def _verified(self, request: Signed, claimed: Claim, receive: Any) -> bytes:
        """The body of a request that is signed as it says. Raises `NotAllowed` or `Unsigned`."""
        secret = self._secret_for(claimed)
        says_its_hash = claimed.is_link or "x-amz-content-sha256" in request.headers
        if says_its_hash:
            claimed.verify(request, secret, b"")
        body = await _body(receive, None if says_its_hash else UNVERIFIED_BYTES)
        if not says_its_hash:
            claimed.verify(request, secret, body)
        elif not await asyncio.to_thread(of_body, request, body):
            raise Unsigned("The body is not the one that was signed.")
        return body

    def _secret_for(self, claimed: Claim) -> str:
        if claimed.key == ROOT_KEY and not claimed.token:
            return self._secret
        secret = self._secret_of(claimed.key, claimed.token) if ROLE_KEY.fullmatch(claimed.key) else None
        if secret is None:
            raise Unsigned("Nobody has this key.")
        return secret

    async def _seal(self, send: Any) -> None:
        self._sealed = True
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def _read(scope: Any) -> Signed:
    """The request, if there is one way to read it. Raises `NotAllowed`.

    Two programs that read one header, path or query differently are how one of them lets through what the other would
    not: so no byte outside ASCII, no name twice, and one spelling of every path.
    """
    if scope["http_version"] not in ("1.0", "1.1") or scope["method"] not in METHODS:
        raise NotAllowed("Only HTTP/1.1 is spoken here.")
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in headers:
            raise NotAllowed("A header is there twice.")
        headers[name] = raw_value.decode("latin-1")
    if not all(re.fullmatch("[a-z0-9-]+", name) and re.fullmatch("[ -~]*", headers[name]) for name in headers):
        raise NotAllowed("A header holds more than printable ASCII.")
    if not re.fullmatch(r"127\.0\.0\.1:[0-9]{1,5}", headers.get("host", "")):
        raise NotAllowed("Host has to be this machine's address: by name one would ask for something else.")
    if "transfer-encoding" in headers or not re.fullmatch("[0-9]{1,15}", headers.get("content-length", "0")):
        raise NotAllowed("A body has to come with its length.")
    return Signed(scope["method"], _path(scope["raw_path"]), _query(scope["query_string"]), headers)


def _path(raw: bytes) -> str:
    text = _decoded(raw)
    if quote(text, safe="/~").encode() != raw or not re.fullmatch(r"/|(?:/(?!\.{1,2}(?:/|$))[^/]+)+/?", text):
        raise NotAllowed("The path can be read in more than one way.")
    return raw.decode()


def _query(raw: bytes) -> dict[str, str]:
    """Decoded. The signature is verified, and the request handed on, with one spelling of it: a plus is a plus."""
    query: dict[str, str] = {}
    for pair in raw.split(b"&") if raw else []:
        name, _, value = pair.partition(b"=")
        text = _decoded(name)
        if text.lower() in map(str.lower, query):
            raise NotAllowed("A parameter is there twice.")
        query[text] = _decoded(value)
    return query


def _decoded(raw: bytes) -> str:
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise NotAllowed("A percent sign stands for what is not text.") from None
    if not text.isprintable():
        raise NotAllowed("A percent sign stands for what is not printed.")
    return text


def _key(request: Signed) -> str | None:
    """The object that the request is about, in the bucket; "" for the bucket itself; None for anything else."""
    _, bucket, *rest = request.path.split("/", 2)
    return "".join(rest) if bucket == BUCKET else None


def _admit(request: Signed, claimed: Claim) -> None:
    """Raises `NotAllowed` unless the workflow needs this request, of whom it is from."""
    called, key = request.headers.get("x-amz-target"), _key(request)
    if called is not None:
        listed = (claimed.service, called) in (ROOT_CALLS if claimed.key == ROOT_KEY else ROLE_CALLS)
        if not listed or (request.method, request.path, dict(request.query)) != ("POST", "/", {}):
            raise NotAllowed("This is not one of the calls that the workflow needs.")
        return
    if HANDED.fullmatch(request.path):
        if claimed.key != ROOT_KEY or claimed.service != "lambda" or request.method != "POST" or request.query:
            raise NotAllowed("Nobody but the gateway calls this function.")
        return
    forms = LINKED if claimed.is_link else OBJECTS
    query = {name for name in request.query if not (claimed.is_link and name.startswith("X-Amz-"))}
    does = any(
        (method, of_object) == (request.method, bool(key)) and needs <= query <= needs | may
        for method, of_object, needs, may in forms
    )
    if key is None or claimed.service != "s3" or not does:
        raise NotAllowed("This is nothing that the workflow needs of its bucket.")
    if claimed.is_link and not set(claimed.headers) <= LINK_HEADERS:
        raise NotAllowed("A link does not do this.")


def _written(scope: Any, request: Signed, names: tuple[str, ...], query: Mapping[str, str]) -> dict[str, Any]:
    """The request newly written, with these of its headers."""
    pairs = (f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    written: dict[str, Any] = scope | {
        "path": unquote_to_bytes(request.path).decode(),
        "raw_path": request.path.encode(),
        "query_string": "&".join(pairs).encode(),
        "headers": [
            (name.encode(), request.headers[name].encode()) for name in dict.fromkeys(names) if name in request.headers
        ],
    }
    return written


async def _body(receive: Any, most: int | None) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise NotAllowed("The client went away.")
        pieces.append(message.get("body", b""))
        if most is not None and sum(map(len, pieces)) > most:
            raise NotAllowed("The body is too long to be read before it is known whose it is.")
        if not message.get("more_body", False):
            return b"".join(pieces)


def _once(body: bytes, receive: Any) -> Any:
    """Gives `body` to whoever receives first, and then what else there is."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Any:
        return left.pop() if left else await receive()

    return given


async def _refuse(scope: Any, why: str, send: Any) -> None:
    """403 in the shape that the caller's SDK reads. The connection ends with it: its body was not read."""
    if any(name.lower() == b"x-amz-target" for name, _ in scope["headers"]):
        kind, body = "application/x-amz-json-1.0", json.dumps({"__type": "AccessDeniedException", "message": why})
    else:
        error = f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>"
        kind, body = "application/xml", f"<ErrorResponse>{error}<RequestId>none</RequestId></ErrorResponse>"
    sent = b"" if scope["method"] == "HEAD" else body.encode()
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(sent)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": sent})
