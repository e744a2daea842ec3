"""Every way a run can fail, as one tree and one table.

    WorkflowError
    ├── Refused                 before the run claimed anything: nothing was spent, nothing is recorded
    │   ├── InvalidRequest          400  a field is missing, of the wrong type, unknown, or over a cap
    │   ├── SessionNotFound         404  no such session, or it is another caller's
    │   ├── BudgetExhausted         402  a limit of the session, the caller or the deployment has nothing left
    │   │   └── BudgetReserved          402  others at work have reserved what is left of it
    │   ├── UnpricedModel           422  the request names a model that has no price here
    │   ├── SessionBusy             409  another run holds the session
    │   ├── RunInProgress           409  this very run is still going on in another execution
    │   ├── RequestTooLarge         413  the body is over 240 KiB
    │   ├── UploadNotFound          404  no such upload, or it is another caller's, or nothing has come there
    │   ├── UploadUsed              409  another run has taken the upload
    │   └── IdempotencyMismatch     422  the key was used with another body
    ├── RunNotFound             404  no such run, or it is another caller's: for who reads runs
    ├── FileNotFound            404  the session's version has no such file: for who reads sessions
    ├── RunCancelled            409  its caller ended it before the model had answered
    ├── SessionMoved            409  the session has gone on since the version the run was pinned to
    ├── MaterialsRefused        422  what came with the request cannot be put into the workspace
    ├── SchemaRefused           400  Claude Code does not take the caller's output_schema, which only it could tell
    ├── SessionTooLarge         413  the workspace outgrew the deployment's limits
    ├── RepositoryRefused       422  the repository could not be cloned, and a repeat would not help
    │   ├── RefNotFound             422  it has no such branch, tag or commit
    │   └── WorkspaceTaken          422  the workspace holds what the clone would overwrite
    ├── RepositoryUnavailable   503  its host fails or is unreachable
    ├── ModelRejected           422  the provider refuses the request
    ├── ModelUnpriced           422  the model has no price here, so it is not called
    ├── ModelRateLimited        429  the provider throttles, and nothing was spent yet
    ├── ModelUnauthorized       502  the deployment's model credential is bad or unset
    ├── ModelOverloaded         503  the provider fails, is unreachable, or gave no first turn in time
    │   └── NotAsked                503  the time was over before the model was asked: a cold start, a large session
    ├── ToolServerUnavailable   503  an MCP server that the deployment requires did not come up
    ├── AgentCrashed            502  the CLI died
    ├── OutputUnusable          502  the structured output is not what the schema asks for, or nested too deeply
    ├── RunTimedOut             504  the backstop behind the run's own deadline
    └── Internal                500  anything else
        ├── CarelessDeployment      500  a credential is where code of the model's could find it
        ├── DiskFull                500  the function's disk has no room for the session, or for its archive
        ├── SessionDamaged          500  a stored session is not what its metadata promise
        ├── SessionUnreadable       500  the run left a file that cannot be read, so it cannot be kept
        └── StorageUnavailable      500  S3 did not take a write or give a read; repeated by the definition

Class names are the state machine's error language: a handler raises one, Step Functions sees its name, and
``ErrorEquals`` lists it. What is not ours is mapped here too: `FOREIGN` has the errors of Step Functions and Lambda,
`MODEL_STATUSES` those of the model's API; what the definition repeats and catches is these tables' (`passing`, `ran`,
`Refused`), which tests/test_definition.py compares. S3's errors become `StorageUnavailable` in bucket/objects.py and
agent/transfer.py. The text of an error is JSON (`str(error)`), because text is all that Lambda hands on. What the
gateway answers by itself (a wrong key, a wrong method) never becomes an exception: `GATEWAY_CODES`.
"""

import errno
import json
from typing import Any, ClassVar, NamedTuple, Self

REASON_CHARS = 300
"""How much is said of why what a request brought cannot be taken: it is in words of strangers."""


class WorkflowError(Exception):
    """The root of the tree: carries the facts of a failure and prints them as JSON.

    `sentence` is for the caller: it holds no cause, key, ARN or URL. `retry_after` is in seconds, `cost_usd` in US
    dollars, None where nobody could tell.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    """Whether the same request can succeed later."""
    passing: ClassVar[bool] = False
    """Whether it may be over in a second, so that the definition repeats a function that is idempotent."""
    sentence: ClassVar[str] = "The run failed for a reason of the service's own."
    """`{wait}` in it is when to come again, `{start}` how long the service took to start."""

    known_as: ClassVar[str | None] = None
    """The `code` that it is answered with where callers need not tell it from others."""

    def __init__(
        self,
        sentence: str | None = None,
        *,
        retry_after: int | None = None,
        session_id: str | None = None,
        run_id: str | None = None,
        cost_usd: float | None = 0.0,
        detail: str = "",
        start_seconds: int | None = None,
    ) -> None:
        self.said = sentence or self.sentence.format(wait=_wait(retry_after), start=_start(start_seconds))
        self.retry_after = retry_after
        self.start_seconds = start_seconds
        """How long RunClaude's function took to start, where that is what the time went by with: a cold start."""
        self.session_id = session_id
        self.run_id = run_id
        self.cost_usd = cost_usd
        self.detail = detail
        """What only the operator may see (the end of the CLI's stderr): recorded, never answered."""
        super().__init__(json.dumps(self.facts() | ({"detail": detail} if detail else {})))

    def but(self, **facts: Any) -> Self:
        """The same failure, with other facts (the constructor's arguments)."""
        names = ("retry_after", "session_id", "run_id", "cost_usd", "detail", "start_seconds")
        own = {name: getattr(self, name) for name in names}
        return type(self)(self.said, **(own | facts))

    @classmethod
    def code(cls) -> str:
        """The stable `code` of the HTTP answer: the class name, or the one that it is `known_as`."""
        return cls.known_as or cls.__name__

    def facts(self) -> dict[str, Any]:
        """The failure as it is answered; `retry_after` and `start_seconds` only where there are any."""
        perhaps = {"retry_after": self.retry_after, "start_seconds": self.start_seconds}
        return {
            "success": False,
            "error": self.said,
            "code": self.code(),
            "retryable": self.retryable,
            "session_id": self.session_id,
            "run_id": self.run_id,
            "cost_usd": self.cost_usd,
        } | {name: value for name, value in perhaps.items() if value}


def _wait(seconds: int | None) -> str:
    return "later" if not seconds else "in a second" if seconds == 1 else f"in {seconds} seconds"


def _start(seconds: int | None) -> str:
    return f" (the service was only just starting: a cold start, which took {seconds} s)" if seconds else ""


class Refused(WorkflowError):
    """The request was turned away before it claimed anything."""

    status = 400


class InvalidRequest(Refused):
    """A field is missing, of the wrong type, unknown, or over a cap of the deployment."""

    sentence = "The request is not valid."


class SessionNotFound(Refused):
    """No such session, or it is another caller's: the two are told apart by nobody."""

    status = 404
    sentence = "The session was not found."


class BudgetExhausted(Refused):
    """A limit has nothing left: `max_session_usd`, `max_caller_usd_per_day` or `max_usd_per_day`."""

    status = 402
    known_as = "BudgetExhausted"
    sentence = "Nothing is left of {limit}{again}."

    def __init__(self, sentence: str | None = None, *, limit: str = "", **facts: Any) -> None:
        wait = facts.get("retry_after")
        again = "; it is free again at 00:00 UTC" if wait else ""
        super().__init__(sentence or self.sentence.format(limit=limit, again=again, wait=_wait(wait)), **facts)


class BudgetReserved(BudgetExhausted):
    """Others at work have reserved what is left; they give back what they do not spend."""

    retryable = True
    sentence = "All that is left of {limit} is reserved by runs that are going on. Try again {wait}."


class UnpricedModel(Refused):
    """The request names a model that has no price here."""

    status = 422
    known_as = "ModelUnpriced"


class SessionBusy(Refused):
    """Another run holds the session."""

    status = 409
    retryable = True
    sentence = "Another run is working on this session. Try again {wait}."


class RunInProgress(Refused):
    """The run of this Idempotency-Key is going on in another execution."""

    status = 409
    retryable = True
    sentence = "The run with this Idempotency-Key is still going on. Ask again {wait}."


class RequestTooLarge(Refused):
    """The body is over 240 KiB: Step Functions carries 256 KiB between states."""

    status = 413
    sentence = (
        "The request body is larger than 240 KiB. Send long material in several prompts of one session, each to be "
        "written to a file there, or name an address from which the agent can fetch it."
    )


class UploadNotFound(Refused):
    """No such upload, or it is another caller's: the two are told apart by nobody. Or nothing was sent there yet."""

    status = 404
    sentence = "The upload was not found."


class UploadUsed(Refused):
    """Another run has taken the upload, which is for one."""

    status = 409
    sentence = "The upload was used by another run."


class IdempotencyMismatch(Refused):
    """The key names a run that was asked something else."""

    status = 422
    sentence = "This Idempotency-Key was used with another body. Use a new key for a new request."


class RunNotFound(WorkflowError):
    """No such run, or it is another caller's: the two are told apart by nobody. Said by the readers of runs alone."""

    status = 404
    sentence = "The run was not found."


class FileNotFound(WorkflowError):
    """The version of a session has no such file. Said by the reader of sessions alone."""

    status = 404
    sentence = "The session has no such file."


class RunCancelled(WorkflowError):
    """Its caller ended it before the model had answered: nothing is committed, and nothing was charged."""

    status = 409
    sentence = "The run was cancelled before the model had answered, so nothing of it is saved."


class SessionMoved(WorkflowError):
    """The session has gone on since the version this run was pinned to; the run's work was not committed."""

    status = 409
    sentence = "The session has gone on since this run began, so its result was not committed."


class MaterialsRefused(WorkflowError):
    """What came with the request cannot be put into the workspace. The model was not asked, and nothing is saved."""

    status = 422
    sentence = "What came with the request cannot be taken{reason}. The model was not asked; the session is as it was."
    """`{reason}` is in a stranger's words, behind a colon; see `of`."""

    @classmethod
    def of(cls, reason: str, **facts: Any) -> Self:
        """For a reason that a program told which reads what strangers made: in one short line, of what is printed."""
        line = " ".join("".join(each if each.isprintable() else " " for each in reason).split())
        return cls(cls.sentence.format(reason=f": {line[:REASON_CHARS].rstrip('. ')}" if line else ""), **facts)

    @classmethod
    def reason_in(cls, said: object) -> str:
        """The reason in such a sentence; none where it is not one."""
        before, after = cls.sentence.split("{reason}")
        framed = isinstance(said, str) and said.startswith(f"{before}: ") and said.endswith(after)
        return str(said)[len(before) + 2 : -len(after)] if framed else ""

    def __init__(self, sentence: str | None = None, **facts: Any) -> None:
        super().__init__(sentence or self.sentence.format(reason=""), **facts)


class SchemaRefused(WorkflowError):
    """Claude Code does not take the caller's `output_schema`, for a reason that `lambdas.output_schema` cannot see: a
    pattern that is no regular expression of JavaScript's, say. Nothing was spent."""

    status = 400
    known_as = "InvalidRequest"
    sentence = (
        "The field output_schema is not a JSON schema that Claude Code takes; a pattern in it may be no regular "
        "expression of JavaScript's."
    )


class SessionTooLarge(WorkflowError):
    """The workspace outgrew the deployment's limits; the session stays as it was."""

    status = 413
    sentence = "The session's files outgrew the deployment's limit, so the session was left as it was."


class RepositoryRefused(WorkflowError):
    """The repository could not be cloned, and the model was not asked. What git said is in the detail."""

    status = 422
    known_as = "RepositoryRefused"
    sentence = (
        "The repository could not be cloned: its host has none at this address, or does not give it out for the "
        "credential of this deployment. The session is as it was."
    )


class RefNotFound(RepositoryRefused):
    """The repository is there, and what was to be checked out is not."""

    sentence = "The repository has no branch, tag or commit of the name in repository.ref. The session is as it was."


class WorkspaceTaken(RepositoryRefused):
    """What is in the workspace already would be overwritten: another repository, or files of the same names."""

    sentence = (
        "The repository could not be cloned into this session's workspace, which holds another repository, or files "
        "that the clone would overwrite. The session is as it was."
    )


class RepositoryUnavailable(WorkflowError):
    """The repository's host fails, throttles or is unreachable; the model was not asked."""

    status = 503
    retryable = True
    sentence = "The repository's host gave no answer, or broke off. The session is as it was; try again."


class ModelRejected(WorkflowError):
    """The provider refuses the request: too long, a bad model, a bad parameter."""

    status = 422
    sentence = "The model's provider refuses this request (too long, or an unknown model?)."


class ModelUnpriced(WorkflowError):
    """The deployment's table has no price for the model, so what it costs could not be limited: it is not called."""

    status = 422
    sentence = (
        "The model has no price in this deployment's table, so it was not called. Name another one; whoever operates "
        "the service can add its price."
    )


class ModelRateLimited(WorkflowError):
    """The provider throttles, and nothing was spent yet."""

    status = 429
    retryable = True
    sentence = "The model's provider is limiting requests. Try again {wait}."


class ModelUnauthorized(WorkflowError):
    """The deployment's model credential is bad or unset."""

    status = 502
    sentence = "The deployment's model credential is missing or was refused. It must be fixed by whoever operates it."


class ModelOverloaded(WorkflowError):
    """The provider fails, is unreachable, or gave no first turn before the deadline. Nothing was committed."""

    status = 503
    retryable = True
    known_as = "ModelOverloaded"
    sentence = "No answer came from the model in time{start}. Nothing was changed; try again."

    def after(self, start_seconds: float) -> Self:
        """The same failure, of a run for which the service took so long to start; none for one that was warm."""
        took = max(0, round(start_seconds))  # two machines' clocks
        return type(self)(retry_after=self.retry_after, cost_usd=self.cost_usd, detail=self.detail, start_seconds=took)


class NotAsked(ModelOverloaded):
    """The time was over before the model was asked: it went by with starting the function, or restoring the session."""

    sentence = "The time was over before the model was asked{start}. Nothing was changed; try again."


class ToolServerUnavailable(WorkflowError):
    """An MCP server that the deployment requires did not come up, so the model was not asked."""

    status = 503
    retryable = True
    sentence = (
        "A tool server that this deployment requires did not come up, so the model was not asked. Nothing was changed; "
        "try again."
    )


class AgentCrashed(WorkflowError):
    """Claude Code ended without a result."""

    status = 502
    retryable = True
    sentence = "Claude Code stopped before it had a result. The session is as it was; try again."


class OutputUnusable(WorkflowError):
    """The model's structured output does not fit the caller's schema, or is nested too deeply to be handed on.

    The model would be paid for the same answer again.
    """

    status = 502
    sentence = "The structured output does not fit output_schema, or is nested too deeply, so it was not given out."


class RunTimedOut(WorkflowError):
    """A hard limit cut the run off, the backstop behind its own deadline; or would have, while its work was saved."""

    status = 504
    retryable = True
    sentence = "The run was cut off by a time limit. The session is as it was; try again."


class Internal(WorkflowError):
    """Anything else. The caller learns that it happened, the operator why."""

    known_as = "Internal"
    retryable = True


class CarelessDeployment(Internal):
    """A credential of the deployment is where code of the model's could find it; nothing was spent."""

    retryable = False


class DiskFull(Internal):
    """The function's disk has no room for the session, or for its archive: a repeat would meet the same disk."""

    retryable = False
    sentence = (
        "The service's disk has no room for this run. Whoever operates it must free some; the session is as it was."
    )

    @staticmethod
    def means(error: OSError) -> bool:
        """Whether this is what the system says."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT)


class SessionDamaged(Internal):
    """A stored session is not what its metadata promise (a checksum, a missing transcript)."""

    retryable = False


class SessionUnreadable(Internal):
    """The run left a file that cannot be read: a session that lacks it would lose it in silence."""

    retryable = False


class StorageUnavailable(Internal):
    """S3 did not take a write or give a read."""

    passing = True


class Foreign(NamedTuple):
    """An error that Step Functions or Lambda raises, by its name in the definition."""

    kind: type[WorkflowError]
    """What it means to the caller."""
    ran: bool = True
    """Whether the function may have run: then only an idempotent one may be run again."""
    passing: bool = True
    """As `WorkflowError.passing`."""


FOREIGN: dict[str, Foreign] = {
    "Lambda.ServiceException": Foreign(Internal),
    "Lambda.AWSLambdaException": Foreign(Internal),
    "Lambda.SdkClientException": Foreign(Internal),
    "Lambda.TooManyRequestsException": Foreign(Internal, ran=False),
    "Lambda.Unknown": Foreign(Internal),
    "Runtime.ExitError": Foreign(Internal),
    "Sandbox.Timedout": Foreign(RunTimedOut),
    "States.Timeout": Foreign(RunTimedOut),
    "States.DataLimitExceeded": Foreign(Internal, passing=False),
}
"""A function's timeout arrives as `Sandbox.Timedout`, its death (memory, a signal) as `Runtime.ExitError`. Whatever
is not in here, nor in the tree, is `Internal`."""

MODEL_STATUSES: dict[int, type[WorkflowError]] = {
    400: ModelRejected,
    401: ModelUnauthorized,
    402: ModelUnauthorized,
    403: ModelUnauthorized,
    404: ModelRejected,
    413: ModelRejected,
    422: ModelRejected,
    429: ModelRateLimited,
}
"""What a status of the model's API means for the run. The rest, 5xx, and no status at all (no connection, a cut
stream) is `ModelOverloaded`. A 400 for want of credit is told by the CLI's `billing_error`."""


GATEWAY_CODES: dict[str, int] = {
    "Forbidden": 403,
    "MethodNotAllowed": 405,
    "UnsupportedMediaType": 415,
    "Throttled": 429,
}
"""Codes that only the gateway answers, with their statuses; the answer has no ids, since no run began."""

LOCAL_CODES: dict[str, int] = {"ServiceStopped": 503}
"""Codes of the local gateway that AWS has no need of."""


def tree(root: type[WorkflowError] = WorkflowError) -> list[type[WorkflowError]]:
    """Every class below `root`, itself included, in the order they are written."""
    return [root, *(below for child in root.__subclasses__() for below in tree(child))]


def statuses() -> dict[str, int]:
    """HTTP status by `code`, for every code the API can answer with."""
    return {kind.code(): kind.status for kind in tree() if kind not in (WorkflowError, Refused)} | GATEWAY_CODES


def named(name: str) -> type[WorkflowError]:
    """The class that an error's name in the definition means."""
    if name in FOREIGN:
        return FOREIGN[name].kind
    return {kind.__name__: kind for kind in tree()}.get(name, Internal)
