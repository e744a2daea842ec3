"""RestoreSession: validates, claims the run and the session, decides the next step, hands out short-lived grants."""

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

from lambdas.answer import with_links
from lambdas.bucket import lease, ledger, listing, record, uploads, versions
from lambdas.bucket.client import s3_client
from lambdas.bucket.grants import grants
from lambdas.bucket.lease import FIRST_WAIT, Lease
from lambdas.bucket.objects import Bucket
from lambdas.bucket.record import Earlier
from lambdas.bucket.situation import situation
from lambdas.contract import FORMAT, Base, Claim, Look, Restored, Task, attempt, epoch
from lambdas.errors import (
    AgentCrashed,
    BudgetExhausted,
    IdempotencyMismatch,
    InvalidRequest,
    RunInProgress,
    SessionBusy,
    SessionNotFound,
    UnpricedModel,
    UploadNotFound,
    UploadUsed,
    WorkflowError,
)
from lambdas.next_step import Done, Persist, Refuse, Run, next_step
from lambdas.pricing import MODEL
from lambdas.request import Allowance, Request, run_id
from lambdas.settings import LEASE_MARGIN, RestoreSettings
from lambdas.strict import Json

IDLE_LEGS = 3
"""How many legs in a row may get no answer of the model's. RunClaude says itself where one does; strangers' code may
have said something else in its place."""

LOOKS = 3
"""How often another execution of the run, which has no lease any more, may come between looking and pinning."""


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: what the state is given (see the definition) → `Restored`."""
    request, execution = state().request(event["envelope"]), Execution.of(event)
    if request.prefers.long and not execution.long:
        return state().hand_over(request, execution).dump()
    return state().restore(request, execution).dump()


@cache
def state() -> "RestoreSession":
    """RestoreSession by the function's environment, made once in a warm function."""
    settings = RestoreSettings.read(os.environ)
    return RestoreSession(settings, Bucket(s3_client(), settings.bucket), time.time)


@dataclass(frozen=True)
class Execution:
    """The one that asks."""

    arn: str
    started_at: float
    """Epoch seconds, as all moments here."""
    began_at: float
    """When its attempt began: with the execution or, of a leg after the first, when the one before was over."""
    before: str | None = None
    """Where the leg before this one was staged."""
    long_machine: str = ""
    """The ARN of the machine to which a run is handed over that may last longer than a POST."""

    @classmethod
    def of(cls, event: Json) -> "Execution":
        """Out of the state's data."""
        started_at, began_at = epoch(event["started_at"]), epoch(event["began_at"])
        return cls(event["execution"], started_at, began_at, event["before"], event["long_machine"])

    @property
    def long(self) -> bool:
        """Whether it is one of the long machine's."""
        return bool(self.long_machine) and self.arn.startswith(self._long_executions)

    @property
    def _long_executions(self) -> str:
        return self.long_machine.replace(":stateMachine:", ":execution:") + ":"

    def handed_over(self, run_id: str) -> "Execution":
        """The long machine's execution that takes the run over: its name is the run's, and the attempt's."""
        name = f"{run_id}-{attempt(self.arn, self.began_at)}"
        return replace(self, arn=f"{self._long_executions}{name}")


@dataclass(frozen=True)
class RestoreSession:
    """Decides what becomes of a valid request."""

    settings: RestoreSettings
    bucket: Bucket
    now: Callable[[], float]

    def request(self, envelope: Json) -> Request:
        """The request of an envelope, or that of an earlier run which the envelope names. Raises `Refused`."""
        if "replay" not in envelope:
            request = Request.parse(envelope, self.settings.caps, self.settings.clocks, self.settings.legs)
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

    def restore(self, request: Request, execution: Execution) -> Restored:
        """Raises one of `Refused`, `SessionMoved`, `RunCancelled` or `Internal`; what it then held of the session is
        free again."""
        # "New execution" in the console sends an old input: what is asked is asked now.
        request = replace(request, requested_at=max(request.requested_at, execution.started_at))
        with ThreadPoolExecutor(2) as beside:  # S3 takes some 20 ms a request
            claim = self._claimed(request, execution, beside)
            if claim.repeated and (response := record.response(self.bucket, claim.run_id)):
                return self._done(claim, response)
            wanted = Lease(claim.run_id, execution.arn, self._lease_ends(execution))
            self._take(claim, wanted)
            try:
                if execution.before:
                    self._settle(replace(claim, staging=execution.before))
                return self._decide(request, claim, wanted.expires_at, beside)
            except WorkflowError as error:
                if isinstance(error, BudgetExhausted) and not claim.repeated:
                    listing.unmark(self.bucket, claim)
                if isinstance(error, UploadNotFound | UploadUsed):
                    listing.refused(self.bucket, claim)
                lease.free(self.bucket, claim.session_id, lambda held: held.execution == execution.arn)
                raise

    def hand_over(self, request: Request, execution: Execution) -> Restored:
        """Take the session for the long machine's execution that is to be started. Raises `Refused` or `Internal`."""
        wanted = execution.handed_over(request.run_id)
        until = max(request.requested_at, execution.started_at) + min(request.prefers.wait, self.settings.clocks.agent)
        with ThreadPoolExecutor(2) as beside:
            claim = self._claimed(request, wanted, beside)
        if claim.repeated and (response := record.response(self.bucket, claim.run_id)):
            return self._done(claim, response)
        try:
            self._take(claim, Lease(claim.run_id, wanted.arn, self._lease_ends(execution)))
            if claim.repeated:
                record.hand_over_again(self.bucket, claim.run_id, execution.began_at)
        except RunInProgress:
            held = lease.holder(self.bucket, claim.session_id)
            if held is None or held.run_id != claim.run_id:
                raise
            # Whoever handed it over may have died before it was started: a name that is taken starts nothing twice.
            wanted = replace(wanted, arn=held.execution)
            claim = replace(claim, execution=held.execution)
        look = Look(claim.run_id, claim.session_id, wanted.arn, until)
        name = wanted.arn.rpartition(":")[2] if wanted.long else None
        return Restored("hand_over" if name else "look", claim, name=name, look=look)

    def _claimed(self, request: Request, execution: Execution, beside: Executor) -> Claim:
        """The execution's claim of the run, whose record is written if there is none yet."""
        asked, fresh = self._open(request, execution.arn, beside)
        if asked["body_sha256"] != request.body_hash:
            raise IdempotencyMismatch(run_id=request.run_id)
        return Claim.of(asked, execution.arn, execution.began_at, repeated=not fresh, long=execution.long)

    def _take(self, claim: Claim, wanted: Lease) -> None:
        """The session's lease."""
        try:
            lost = lease.take(self.bucket, claim.session_id, wanted, self.now())
        except SessionBusy:
            listing.refused(self.bucket, claim)
            raise
        if lost and lost.run_id != claim.run_id:
            ledger.lost(self.bucket, claim.session_id, lost.run_id)

    def _lease_ends(self, execution: Execution) -> float:
        """When nothing of it can be at work any more: of the long machine's executions, of the leg."""
        if execution.long:
            return execution.began_at + self.settings.legs.lease
        return execution.started_at + self.settings.clocks.machine + LEASE_MARGIN

    def _settle(self, leg: Claim) -> None:
        """What an earlier leg did not spend is the next one's."""
        ledger.settle(self.bucket, leg, record.most_by(self.bucket, leg.staging), committed=False)

    def _open(self, request: Request, execution: str, beside: Executor) -> tuple[Json, bool]:
        """The run's record, and whether it was written just now: then there is nothing of it to go on with."""
        # A new session's record needs nothing from the bucket: writing it tells as well whether there is one.
        looks = request.session_id is not None or request.replay_of is not None
        source = beside.submit(self._source, request)
        if looks and (known := record.request(self.bucket, request.run_id)):
            return known, False  # its session may be gone meanwhile
        base = source.result()
        self._refuse_what_does_not_wait(request, base)
        asked = {
            "format": FORMAT,
            "run_id": request.run_id,
            "replay_of": request.replay_of,
            "verb": request.verb,
            "owner": request.caller,
            "key": request.key,
            "requested_at": request.requested_at,
            "long": request.prefers.long,
            "execution": execution,
            "session_id": base.session_id if base and not request.copies else f"session-{uuid.uuid4()}",
            "claude_session": self._claude_session(request, base),
            "body_sha256": request.body_hash,
            "body": request.body,
        }
        return record.open_run(self.bucket, request.run_id, asked)

    def _refuse_what_does_not_wait(self, request: Request, base: Base | None) -> None:
        """An answer is to the call with which the session's last run ended, and to no other."""
        if request.judged is None:
            return
        run = versions.committed_by(self.bucket, base) if base else None
        answer = record.response(self.bucket, run) if run else None
        pending = answer.get("pending") if answer else None
        if not pending or pending["digest"] != request.judged:
            raise InvalidRequest(
                "No call with this digest waits in the session: the last answer's pending is not there, or another one."
            )

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
        # Of a run that brings an upload nothing is said before that is its.
        early = not claim.repeated and request.upload is None
        marked = beside.submit(listing.mark, self.bucket, claim, "claimed") if early else None
        allowing = beside.submit(self._allow, request, claim, ends) if early and self._surely_runs(request) else None
        for _ in range(LOOKS):
            found = situation(self.bucket, request, begun=claim.repeated)
            step, old = next_step(found), found.left[0].pin
            if isinstance(step, Refuse):
                if allowing and not allowing.exception():
                    ledger.settle(self.bucket, claim, 0.0, committed=True)
                raise _refusal(step, request, claim.session_id)
            if isinstance(step, Done):
                return self._done(claim, step.answer)
            pin = replace(step.pin, execution=claim.execution)
            own = claim.pinned(pin.base, pin.number)
            if isinstance(step, Run) and step.checkpoint is None:
                uploads.take(self.bucket, request, claim.session_id)
            if isinstance(step, Run):
                allowing = allowing or beside.submit(self._allow, request, own, ends)
            stands = pin == old or record.pin(self.bucket, claim.run_id, pin, old)
            if marked:
                marked.result()  # first: a run whose money is refused is listed no more
            allowance = allowing.result() if allowing else None
            if stands:
                if not marked:
                    listing.mark(self.bucket, claim, "claimed")
                return self._restored(request, own, step, allowance)
            ledger.settle(self.bucket, own, 0.0, committed=True)
            claim, allowing = replace(claim, repeated=True), None
        raise RunInProgress(retry_after=FIRST_WAIT, session_id=claim.session_id, run_id=claim.run_id)

    def _surely_runs(self, request: Request) -> bool:
        """Whether a new run asks the model, if it is not refused, and may spend what the version it begins on does not
        decide: then its money need not wait for that."""
        return request.replay_of is None and self._most_of_session(request) is None

    def _most_of_session(self, request: Request) -> float | None:
        """US dollars that its session may cost in all; None: no limit."""
        most: float | None = request.body.get("max_session_usd", self.settings.caps.max_session_usd)
        return most

    def _allow(self, request: Request, claim: Claim, ends: float) -> Allowance:
        """What the attempt may use, of which its money is reserved. Raises `BudgetExhausted`, and `AgentCrashed` where
        the long machine's legs got nothing done one after the other."""
        earlier = record.earlier(self.bucket, claim)
        if claim.long and _idle(earlier, claim):
            raise AgentCrashed(detail=f"{IDLE_LEGS} legs got no answer of the model's")
        reserved = self._reserve(request, claim, earlier.usd, ends)
        return Allowance.of(request.body, self.settings.caps, reserved, earlier.turns)

    def _reserve(self, request: Request, claim: Claim, spent: float, ends: float) -> float:
        """US dollars that the attempt may spend, by every limit, where earlier ones have `spent` so much. Raises
        `BudgetExhausted`."""
        body, caps = request.body, self.settings.caps
        ids = {"session_id": claim.session_id, "run_id": claim.run_id}
        wanted = max(ledger.LEAST, body.get("max_budget_usd", caps.max_budget_usd) - spent)
        if (most := self._most_of_session(request)) is not None:
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

    def _restored(self, request: Request, claim: Claim, step: Persist | Run, allowance: Allowance | None) -> Restored:
        if isinstance(step, Persist):
            return Restored("persist", replace(claim, staging=step.staging))
        assert allowance is not None
        return Restored("run", claim, self._task(request, claim, step.checkpoint, allowance))

    def _task(self, request: Request, claim: Claim, checkpoint: str | None, allowance: Allowance) -> Task:
        clocks, legs, now = self.settings.clocks, self.settings.legs, self.now()
        uploaded = uploads.taken(request) if checkpoint is None else None
        most, seconds = (legs.run, legs.lease) if claim.long else (clocks.agent, clocks.machine)
        approves = claim.base if "approve" in request.body else None
        asked = versions.committed_by(self.bucket, approves) if approves else None
        return Task(
            run_id=claim.run_id,
            session_id=claim.session_id,
            claude_session=claim.claude_session,
            resume=bool(claim.base and claim.base.turns) or checkpoint is not None,
            cut=checkpoint is not None,
            deadline=request.requested_at + min(most, request.body.get("timeout_seconds", most)),
            gate=now + legs.gate if claim.long else None,
            limit=now + legs.limit if claim.long else None,
            handed_at=now,
            size=claim.base.size if claim.base else 0,
            directory=claim.base.directory if claim.base else 0,
            allowance=allowance,
            grants=grants(self.bucket, claim, checkpoint, seconds, uploaded=uploaded, approves_of=asked),
        )

    def _done(self, claim: Claim, response: Json) -> Restored:
        # Whoever wrote the answer may have died before it could say so and free the session.
        listing.mark(self.bucket, claim, "done")
        lease.free(self.bucket, claim.session_id, lambda held: held.run_id == claim.run_id)
        return Restored("done", claim, response=with_links(response, self.bucket))


def _idle(earlier: Earlier, claim: Claim) -> bool:
    """Whether this execution's last legs got no answer of the model's."""
    own = attempt(claim.execution, 0).partition("-")[2]
    legs = [receipt for at, receipt in earlier.receipts.items() if at.split("/")[2].split("-")[1] == own]
    return len(legs) >= IDLE_LEGS and not any(receipt and receipt.turns for receipt in legs[-IDLE_LEGS:])


def _refusal(step: Refuse, request: Request, session_id: str | None = None) -> WorkflowError:
    if step.error is SessionNotFound:
        session_id = request.session_id
        return SessionNotFound(f"The session {session_id} was not found.", session_id=session_id, run_id=request.run_id)
    return step.error(session_id=session_id, run_id=request.run_id)
