"""What the gateway answers by itself, in the same JSON shape as the workflow's own failures."""

import json
from dataclasses import dataclass

from aws_cdk.aws_apigateway import ResponseType

from lambdas import errors


@dataclass(frozen=True)
class GatewayAnswer:
    """One answer of the gateway's own: its code, its sentence, and what differs from the code's usual status."""

    code: str
    sentence: str
    status: int | None = None
    """None: the code's status in `errors.statuses()`."""
    retryable: bool = False
    retry_after: int | None = None
    """Seconds."""
    tells_key: bool = False
    """The caller may have lost an answer: name the key under which it can be asked for. What it cost is not known."""

    @property
    def http_status(self) -> int:
        """The status that it is given with."""
        return self.status or errors.statuses()[self.code]

    def body(self) -> str:
        """The JSON document; valid as a VTL template, and as a gateway response's, which knows `$context` only."""
        document = {
            "success": False,
            "error": self.sentence,
            "code": self.code,
            "retryable": self.retryable,
            "session_id": None,
            "run_id": None,
            "cost_usd": None if self.tells_key else 0.0,
        }
        return json.dumps(document | ({"idempotency_key": "$context.extendedRequestId"} if self.tells_key else {}))


FORBIDDEN = GatewayAnswer(
    "Forbidden", "The credential is missing or not valid for this API, or there is nothing at this path."
)
INVALID = GatewayAnswer(
    "InvalidRequest", "The body must be a JSON object with at least a prompt, a text that is not empty."
)
NOT_ALLOWED = GatewayAnswer("MethodNotAllowed", "This method is not allowed here; use POST.")
TOO_LARGE = GatewayAnswer("RequestTooLarge", errors.RequestTooLarge.sentence)
NOT_JSON = GatewayAnswer("UnsupportedMediaType", "The body must be JSON, sent with the content type application/json.")
THROTTLED = GatewayAnswer(
    "Throttled", "Too many requests. Try again after the seconds in Retry-After.", retryable=True, retry_after=2
)
QUOTA_SPENT = GatewayAnswer(
    "Throttled",
    "This API key's requests for the day are used up. Try again tomorrow.",
    retryable=True,
    retry_after=3600,
)
TIMED_OUT = GatewayAnswer(
    "RunTimedOut",
    "The answer did not come in time. To get it, POST the same body again with the same Idempotency-Key, "
    "or with this idempotency_key if you sent none.",
    retryable=True,
    tells_key=True,
)
INTERNAL = GatewayAnswer("Internal", errors.Internal.sentence, retryable=True)

GATEWAY: dict[ResponseType, GatewayAnswer] = {
    ResponseType.UNAUTHORIZED: GatewayAnswer("Forbidden", FORBIDDEN.sentence, 401),
    ResponseType.ACCESS_DENIED: FORBIDDEN,
    ResponseType.EXPIRED_TOKEN: FORBIDDEN,
    ResponseType.INVALID_API_KEY: FORBIDDEN,
    ResponseType.INVALID_SIGNATURE: FORBIDDEN,
    ResponseType.MISSING_AUTHENTICATION_TOKEN: FORBIDDEN,
    ResponseType.RESOURCE_NOT_FOUND: FORBIDDEN,
    ResponseType.WAF_FILTERED: FORBIDDEN,
    ResponseType.BAD_REQUEST_BODY: INVALID,
    # Nothing but the method ANY asks for a parameter, so this is what every method without a route of its own answers.
    ResponseType.BAD_REQUEST_PARAMETERS: NOT_ALLOWED,
    ResponseType.REQUEST_TOO_LARGE: TOO_LARGE,
    ResponseType.UNSUPPORTED_MEDIA_TYPE: NOT_JSON,
    ResponseType.THROTTLED: THROTTLED,
    ResponseType.QUOTA_EXCEEDED: QUOTA_SPENT,
    ResponseType.INTEGRATION_TIMEOUT: TIMED_OUT,
    ResponseType.INTEGRATION_FAILURE: INTERNAL,
    ResponseType.API_CONFIGURATION_ERROR: INTERNAL,
    ResponseType.AUTHORIZER_CONFIGURATION_ERROR: INTERNAL,
    ResponseType.AUTHORIZER_FAILURE: INTERNAL,
    ResponseType.DEFAULT_4_XX: GatewayAnswer("InvalidRequest", errors.InvalidRequest.sentence),
    ResponseType.DEFAULT_5_XX: INTERNAL,
}
"""Every type of answer that the gateway can give by itself."""
