"""What the functions behind the API get of it, and give it: a request as it came (a proxy event), and an answer.

Nothing stands between the two: who asks is told from the event as stacks/templates/request.vtl tells it for a POST, and
a failure is worded as stacks/templates/answer.vtl words it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from lambdas import strict
from lambdas.answer import with_links
from lambdas.bucket.following import DONE, Standing, public
from lambdas.bucket.objects import Bucket
from lambdas.errors import GATEWAY_CODES, WorkflowError, statuses
from lambdas.settings import EXPOSED_HEADERS, DoorSettings
from lambdas.strict import Json


def caller(identity: Json, auth: str, callers: Mapping[str, str]) -> str:
    """Who asks, by what the gateway knows of it (`$context.identity`)."""
    if auth == "none":
        return "public"
    if auth == "iam":
        # The user is `unique id` or `unique id:session name`; a role's sessions are one caller.
        return f"{identity['accountId']}:{identity['user'].partition(':')[0]}"
    # A key that somebody else added to the usage plan is a caller of its own: no name of ours has a colon.
    return callers.get(identity["apiKeyId"], f"key:{identity['apiKeyId']}")


@dataclass(frozen=True)
class Asked:
    """A request about a run or a session, or for an upload."""

    method: str
    resource: str
    """The path as the API has it, such as `/claude-code/runs/{run_id}`."""
    path: str
    """The path as it came, percent-encoded."""
    parameters: Mapping[str, str]
    """What stands in it for the resource's."""
    caller: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By their names in small letters."""

    @classmethod
    def of(cls, event: Json, settings: DoorSettings) -> "Asked":
        """Out of a proxy event."""
        return cls(
            method=event["httpMethod"],
            resource=event["resource"],
            path=event["path"],
            parameters=event.get("pathParameters") or {},
            caller=caller(event["requestContext"]["identity"], settings.auth, settings.callers),
            query=event.get("queryStringParameters") or {},
            headers={name.lower(): value for name, value in (event.get("headers") or {}).items()},
        )

    @property
    def run_id(self) -> str:
        """The run that it is about, as it came."""
        return self.parameters["run_id"]

    @property
    def session_id(self) -> str:
        """The session that it is about, as it came."""
        return self.parameters["session_id"]


@dataclass(frozen=True)
class Answer:
    """An answer, of which the body is JSON."""

    status: int
    body: Json
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, standing: Standing, bucket: Bucket) -> "Answer":
        """What a POST would be answered whose run has ended like this."""
        assert standing.ended is not None
        if standing.status == DONE:
            return cls(200, with_links(standing.ended, bucket))
        return cls.failed(public(standing.ended))

    @classmethod
    def refused(cls, error: WorkflowError) -> "Answer":
        """Of a reader that could not answer; what only the operator may see of it is in the log."""
        if error.status >= 500:
            print(error, file=sys.stderr)
        return cls.failed(error.facts())

    @classmethod
    def not_allowed(cls, methods: str) -> "Answer":
        """Of a path that takes these methods alone, as the gateway words it for the other paths."""
        code = "MethodNotAllowed"
        sentence = f"This method is not allowed here; use {methods.replace(',', ' or')}."
        facts = {"success": False, "error": sentence, "code": code, "retryable": False}
        nothing_ran = {"session_id": None, "run_id": None, "cost_usd": 0.0}
        return cls(GATEWAY_CODES[code], facts | nothing_ran, {"Allow": f"{methods}, OPTIONS"})

    @classmethod
    def failed(cls, failure: Json) -> "Answer":
        """Of a failure's facts: when to come again stands in a header."""
        shown = {name: value for name, value in failure.items() if name not in ("retry_after", "start_seconds")}
        wait = failure.get("retry_after")
        return cls(statuses().get(failure["code"], 500), shown, {"Retry-After": str(wait)} if wait else {})

    def dump(self, settings: DoorSettings) -> Json:
        """As a proxy integration takes it."""
        headers = {"Content-Type": "application/json", **common(settings), **self.headers}
        return {"statusCode": self.status, "headers": headers, "body": self.text.decode()}

    @property
    def text(self) -> bytes:
        """The body, in one line."""
        return strict.written(self.body)


def common(settings: DoorSettings) -> dict[str, str]:
    """The headers of every answer: a page of the deployment's origin may read it, and nobody keeps it."""
    return {
        "Access-Control-Allow-Origin": settings.cors_origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        "Cache-Control": "no-store",
    }
