"""RestoreSession: validates, claims the run and the session, decides the next step, hands out short-lived grants."""

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

from lambdas.answer import with_links
from lambdas.bucket import lease, ledger, listing, record
from lambdas.bucket.client import s3_client
from lambdas.bucket.grants import grants
from lambdas.bucket.lease import FIRST_WAIT, Lease
from lambdas.bucket.objects import Bucket
from lambdas.bucket.situation import situation
from lambdas.contract import FORMAT, Base, Claim, Restored, Task, epoch
from lambdas.errors import (
    BudgetExhausted,
    IdempotencyMismatch,
    InvalidRequest,
    RunInProgress,
    SessionNotFound,
    UnpricedModel,
    WorkflowError,
)
from lambdas.next_step import Done, Persist, Refuse, Run, next_step
from lambdas.pricing import MODEL
from lambdas.request import Allowance, Request, run_id
from lambdas.settings import RestoreSettings
from lambdas.strict import Json

LEASE_MARGIN = 5
"""Seconds that a lease outlives the state machine, for clocks that differ."""

LOOKS = 3
"""How often another execution of the run, which has no lease any more, may come between looking and pinning."""


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: `{envelope, execution, started_at}` → `Restored`."""
    request = state().request(event["envelope"])
    return state().restore(request, event["execution"], epoch(event["started_at"])).dump()


@cache
def state() -> "RestoreSession":
    """RestoreSession by the function's environment, made once in a warm function."""
    settings = RestoreSettings.read(os.environ)
    return RestoreSession(settings, Bucket(s3_client(), settings.bucket), time.time)


@dataclass(frozen=True)
class RestoreSession:
    """Decides what becomes of a valid request."""

    settings: RestoreSettings
    bucket: Bucket
    now: Callable[[], float]

    def request(self, envelope: Json) -> Request:
        """The request of an envelope, or that of an earlier run which the envelope names. Raises `Refused`."""
        if "replay" not in envelope:
            request = Request.parse(envelope, self.settings.caps, self.settings.clocks)
            self._refuse_unpriced(request.body.get("model"))
            return request
        asked = record.request(self.bucket, run_id(envelope["caller"], envelope["key"]))
        if asked is None:
            raise InvalidRequest("There is no such run to replay.")
        return Request.recall(envelope, asked)

    def _refuse_unpriced(self, model: str | None) -> None:
        """What is a model's id has its price here; what Claude Code calls it by (`opus`) is for the proxy to judge."""
        if model and MODEL.fullmatch(model) and not self.settings.prices.knows(model):
            raise UnpricedModel(f"The model {model} has no price in this deployment, so it is not called.")

    def restore(self, request: Request, execution: str, started_at: float) -> Restored:
        """Raises one of `Refused`, `SessionMoved` or `Internal`; what it then held of the session is free again."""
        # "New execution" in the console sends an old input: what is asked is asked now.
        request = replace(request, requested_at=max(request.requested_at, started_at))
        with ThreadPoolExecutor(2) as beside:  # S3 takes some 20 ms a request
            asked, fresh = self._open(request, execution, beside)
            if asked["body_sha256"] != request.body_hash:
                raise IdempotencyMismatch(run_id=request.run_id)
            claim = Claim.of(asked, execution, started_at, repeated=not fresh)
            if claim.repeated and (response := record.response(self.bucket, claim.run_id)):
                return self._done(claim, response)
            wanted = Lease(claim.run_id, execution, started_at + self.settings.clocks.machine + LEASE_MARGIN)
            lost = lease.take(self.bucket, claim.session_id, wanted, self.now())
            try:
                if lost and lost.run_id != claim.run_id:
                    ledger.lost(self.bucket, claim.session_id, lost.run_id)
                return self._decide(request, claim, wanted.expires_at, beside)
            except WorkflowError as error:
                if isinstance(error, BudgetExhausted) and fresh:
                    listing.unmark(self.bucket, claim)
                lease.free(self.bucket, claim.session_id, lambda held: held.execution == execution)
                raise

    def _open(self, request: Request, execution: str, beside: Executor) -> tuple[Json, bool]:
        """The run's record, and whether it was written just now: then there is nothing of it to go on with."""
        # A new session's record needs nothing from the bucket: writing it tells as well whether there is one.
        looks = request.session_id is not None or request.replay_of is not None
        source = beside.submit(self._source, request)
        if looks and (known := record.request(self.bucket, request.run_id)):
            return known, False  # its session may be gone meanwhile
        base = source.result()
        asked = {
            "format": FORMAT,
            "run_id": request.run_id,
            "replay_of": request.replay_of,
            "verb": request.verb,
            "owner": request.caller,
            "key": request.key,
            "requested_at": request.requested_at,
            "execution": execution,
            "session_id": base.session_id if base and not request.copies else f"session-{uuid.uuid4()}",
            "claude_session": self._claude_session(request, base),
            "body_sha256": request.body_hash,
            "body": request.body,
        }
        return record.open_run(self.bucket, request.run_id, asked)

    def _claude_session(self, request: Request, base: Base | None) -> str:
        """A conversation keeps its id; one that only ever was staged has it in the record of its run."""
        if base:
            return base.claude_session
        origin = (
            record.request(self.bucket, request.replay_of) if request.verb == "fork" and request.replay_of else None
        )
        return origin["claude_session"] if origin else str(uuid.uuid4())

    def _source(self, request: Request) -> Base | None:
        """The version that a run begins on which was not asked for before; None for a new session."""
        step = next_step(situation(self.bucket, request, begun=False))
        if isinstance(step, Refuse):
            raise _refusal(step, request)
        assert not isinstance(step, Done)
        return step.pin.base

    def _decide(self, request: Request, claim: Claim, ends: float, beside: Executor) -> Restored:
        """Acts by the next step, under the lease, which ends at `ends` (epoch seconds)."""
        marked = None if claim.repeated else beside.submit(listing.mark, self.bucket, claim, "claimed")
        for _ in range(LOOKS):
            found = situation(self.bucket, request, begun=claim.repeated)
            step, old = next_step(found), found.left[0].pin
            if isinstance(step, Refuse):
                raise _refusal(step, request, claim.session_id)
            if isinstance(step, Done):
                return self._done(claim, step.answer)
            pin = replace(step.pin, execution=claim.execution)
            attempt = claim.pinned(pin.base, pin.number)
            reserving = beside.submit(self._reserve, request, attempt, ends) if isinstance(step, Run) else None
            stands = pin == old or record.pin(self.bucket, claim.run_id, pin, old)
            reserved = reserving.result() if reserving else 0.0
            if stands:
                marked.result() if marked else listing.mark(self.bucket, claim, "claimed")
                return self._restored(request, attempt, step, reserved)
            ledger.settle(self.bucket, attempt, 0.0, committed=True)
            claim = replace(claim, repeated=True)
        raise RunInProgress(retry_after=FIRST_WAIT, session_id=claim.session_id, run_id=claim.run_id)

    def _reserve(self, request: Request, claim: Claim, ends: float) -> float:
        """US dollars that the attempt may spend, by every limit. Raises `BudgetExhausted`."""
        body, caps = request.body, self.settings.caps
        ids = {"session_id": claim.session_id, "run_id": claim.run_id}
        spent = record.spent_before(self.bucket, claim)
        wanted = max(ledger.LEAST, body.get("max_budget_usd", caps.max_budget_usd) - spent)
        if (most := body.get("max_session_usd", caps.max_session_usd)) is not None:
            own = claim.base.cost_usd if claim.base else 0.0
            wanted = min(wanted, most - own - ledger.failed_usd(self.bucket, claim.session_id))
            if wanted < ledger.LEAST:
                raise BudgetExhausted(limit="max_session_usd", **ids)
        limits = ledger.Limits(
            body.get("max_caller_usd_per_day", caps.max_caller_usd_per_day),
            body.get("max_usd_per_day", caps.max_usd_per_day),
        )
        try:
            return ledger.reserve(self.bucket, claim, wanted, limits, ends, self.now())
        except BudgetExhausted as error:
            raise error.but(**ids) from None

    def _restored(self, request: Request, claim: Claim, step: Persist | Run, reserved: float) -> Restored:
        if isinstance(step, Persist):
            return Restored("persist", replace(claim, staging=step.staging))
        return Restored("run", claim, self._task(request, claim, step.checkpoint, reserved))

    def _task(self, request: Request, claim: Claim, checkpoint: str | None, reserved: float) -> Task:
        clocks = self.settings.clocks
        return Task(
            run_id=claim.run_id,
            session_id=claim.session_id,
            claude_session=claim.claude_session,
            resume=claim.base is not None or checkpoint is not None,
            cut=checkpoint is not None,
            deadline=request.requested_at + min(clocks.agent, request.body.get("timeout_seconds", clocks.agent)),
            handed_at=self.now(),
            size=claim.base.size if claim.base else 0,
            directory=claim.base.directory if claim.base else 0,
            allowance=Allowance.of(request.body, self.settings.caps, reserved),
            grants=grants(self.bucket, claim, checkpoint, clocks.machine),
        )

    def _done(self, claim: Claim, response: Json) -> Restored:
        # Whoever wrote the answer may have died before it could say so and free the session.
        listing.mark(self.bucket, claim, "done")
        lease.free(self.bucket, claim.session_id, lambda held: held.run_id == claim.run_id)
        return Restored("done", claim, response=with_links(response, self.bucket))


def _refusal(step: Refuse, request: Request, session_id: str | None = None) -> WorkflowError:
    if step.error is SessionNotFound:
        session_id = request.session_id
        return SessionNotFound(f"The session {session_id} was not found.", session_id=session_id, run_id=request.run_id)
    return step.error(session_id=session_id, run_id=request.run_id)
