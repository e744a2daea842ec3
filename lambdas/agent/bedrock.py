"""Bedrock as the model: what the agent asks is signed here, by the role of this process.

The CLI speaks Bedrock itself, with the run's token for a key of Bedrock's; so the agent needs no AWS credential, and
the role is reached for one kind of request only.

**What is let through** is the streaming call. CLI 2.1.332 also lists inference profiles and asks about a dozen models
for one token each, to learn which of them there are. Refused, it takes the model that it was told. After a 404 it asks
again without streaming, which is refused, too; what counts is the 404, which the proxy saw.

**Which models.** Those with an id, such as `anthropic.claude-x-v1:0`, and the inference profiles of a geography, such
as `eu.anthropic.claude-x-v1:0`. An application inference profile has an ARN, with a slash in it, which the proxy lets
nowhere into a path.
"""

import http.client
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.eventstream import EventStreamBuffer, ParserError
from botocore.exceptions import BotoCoreError

from lambdas.agent.credential import Credential
from lambdas.agent.messages import Call, Reader, chunks
from lambdas.agent.upstream import MODEL, Sent, Upstream, led_to
from lambdas.errors import ModelUnauthorized

STREAMING = re.compile(r"POST /model/(?:[A-Za-z0-9._:-]|%3[Aa])+/invoke-with-response-stream")


def bedrock(model: str) -> Upstream:
    """Bedrock in this process' region, or at botocore's own `AWS_ENDPOINT_URL_BEDROCK_RUNTIME`.

    The CLI asks for `model` whenever the run names none: the models of its own choosing are not the role's.
    """
    service = botocore.session.get_session().create_client("bedrock-runtime").meta
    return Upstream(
        name=MODEL,
        base_url=service.endpoint_url,
        credential=Signature(service.service_model.signing_name, service.region_name),
        requests=(STREAMING,),
        environment={
            "CLAUDE_CODE_USE_BEDROCK": "1",
            "ANTHROPIC_BEDROCK_BASE_URL": "{url}",
            "AWS_BEARER_TOKEN_BEDROCK": "{token}",
            "AWS_REGION": service.region_name,
            **led_to([model]),
        },
        call=_invocation,
        reader=_chunks,
    )


def _invocation(request: Sent) -> Call:
    """The model is in the path."""
    return Call.of(request.body, request.named, unquote(request.path.split("/")[2]))


def _chunks(content_type: str) -> Reader:
    """AWS' event stream, whose chunks hold the events of the Messages API."""
    buffer = EventStreamBuffer()

    def read(piece: bytes) -> Iterator[Any]:
        buffer.add_data(piece)
        with suppress(ParserError):  # the agent's client will find the same
            for message in buffer:
                if message.headers.get(":message-type") == "event":
                    yield from chunks(message.payload)
                else:
                    yield {"type": "error"}

    return read


def _credentials() -> Any:
    """This process' AWS credentials, looked for anew; None if it has none."""
    return botocore.session.get_session().get_credentials()


class Signature(Credential):
    """SigV4 for JSON, with credentials that botocore renews before they end, where it can. Thread-safe."""

    def __init__(self, service: str, region: str, load: Callable[[], Any] = _credentials) -> None:
        self._service = service
        self._region = region
        self._load = load
        self._loaded: Any = None
        self._lock = threading.Lock()

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:
        """Raises ModelUnauthorized if there are no credentials."""
        with self._lock:
            credentials = self._current()
        request = AWSRequest(method, url, {"content-type": "application/json"}, body)
        SigV4Auth(credentials, self._service, self._region).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}

    def renew(self, used: Mapping[str, str], refusal: http.client.HTTPResponse) -> bool:
        """Only credentials that have ended are looked for anew; another thread may have been first."""
        if not refusal.headers.get("x-amzn-errortype", "").startswith("ExpiredToken"):
            return False
        ended = used.get("x-amz-security-token")
        with self._lock:
            if self._current().token == ended:
                self._loaded = None
            return bool(self._current().token != ended)

    def _current(self) -> Any:
        try:
            if self._loaded is None:
                self._loaded = self._load()
            if self._loaded is None:
                raise ModelUnauthorized(detail="there are no AWS credentials")
            return self._loaded.get_frozen_credentials()
        except BotoCoreError as error:
            raise ModelUnauthorized(detail=f"no AWS credentials: {error}") from error
