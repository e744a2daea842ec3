"""RecordFailure: writes down what a run died of, frees the session, and words the answer.

It is told a state's error as Step Functions saw it. RunClaude's was written by a function that runs strangers' code:
of it, only the class, bounded numbers, one bounded line (why what a request brought cannot be taken) and the operator's
detail are taken; the sentences are the table's own.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from botocore.session import get_session

from lambdas import errors
from lambdas.bucket import lease, ledger, listing, record
from lambdas.bucket.client import s3_client
from lambdas.bucket.objects import Bucket
from lambdas.bucket.situation import left_by
from lambdas.bus import Bus, RunEnded
from lambdas.contract import FORMAT, Claim, epoch
from lambdas.errors import AgentCrashed, MaterialsRefused, WorkflowError
from lambdas.next_step import goes_on_from
from lambdas.request import asked_run, recorded_verb
from lambdas.settings import RecordSettings
from lambdas.strict import Json

DETAIL_CHARS = 4000


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: what the state is given (see the definition) → the failure as it is answered."""
    return state().record(event)


@cache
def state() -> "RecordFailure":
    """RecordFailure by the function's environment, made once in a warm function."""
    settings = RecordSettings.read(os.environ)
    session = get_session()
    return RecordFailure(Bucket(s3_client(session), settings.bucket), Bus(session).tell)


@dataclass(frozen=True)
class RecordFailure:
    """Writes what a run died of, where its own execution holds it."""

    bucket: Bucket
    tell: Callable[[RunEnded], None]
    """Tells of a run that ended, and raises nothing."""

    def record(self, event: Json) -> Json:
        """Raises `StorageUnavailable`; the definition then answers without a record."""
        failure = classify(event["state"], event["error"])
        claim = Claim.load(event["claim"]) if event["claim"] else self._begun(event)
        if claim is None:
            run = asked_run(event["caller"], event["key"], event["replay"])
            return failure.facts() | {"run_id": run, "session_id": failure.session_id, "cost_usd": 0.0}
        response = record.response(self.bucket, claim.run_id)
        with ThreadPoolExecutor(2) as beside:  # the state has four seconds
            settled = beside.submit(self._settle, claim, committed=response is not None)
            public = self._recorded(claim, event, failure, response)
            # Who died after its commit may have died before it could tell.
            beside.submit(self.tell, RunEnded.of(claim, response or public))
            if not response:
                listing.mark(self.bucket, claim, "failed")
            lease.free(self.bucket, claim.session_id, lambda held: held.execution == claim.execution)
            settled.result()
        return public

    def _settle(self, claim: Claim, *, committed: bool) -> None:
        """What it did not spend is free again."""
        ledger.settle(self.bucket, claim, record.most_by(self.bucket, claim.staging), committed=committed)

    def _recorded(self, claim: Claim, event: Json, failure: WorkflowError, response: Json | None) -> Json:
        ids = {"run_id": claim.run_id, "session_id": claim.session_id}
        if response:
            # It died after its commit: repeating it answers with the committed turn.
            return failure.facts() | ids | {"cost_usd": response["cost_usd"], "resumes": True}
        return self._write(claim, event, failure, ids)

    def _begun(self, event: Json) -> Claim | None:
        """The claim that RestoreSession died of, if the run is this execution's: it has the lease, or nobody has, and
        it opened the record or was started to take the run over, by whose name it then goes."""
        execution = event["execution"]
        asked = record.request(self.bucket, asked_run(event["caller"], event["key"], event["replay"]))
        if asked is None:
            return None
        opened, long = asked["execution"] == execution, f":{asked['run_id']}-" in execution
        held = lease.holder(self.bucket, asked["session_id"])
        own = held.execution == execution if held else opened or long
        repeated = long or not opened  # a leg before this one may have cost something
        return Claim.of(asked, execution, epoch(event["started_at"]), repeated=repeated) if own else None

    def _write(self, claim: Claim, event: Json, failure: WorkflowError, ids: Json) -> Json:
        """The failure as it is answered; its record also has what only the operator may see."""
        earlier = (record.failure(self.bucket, claim.run_id) if claim.repeated else None) or {}
        costs = {**record.earlier(self.bucket, claim).costs, claim.staging: self._spent(claim)}
        known = [cost for cost in costs.values() if cost is not None]
        # What could not be committed as it is cannot be committed the next time either.
        useless = event["state"] == "PersistSession" and isinstance(failure, AgentCrashed)
        unfit = [*earlier.get("unfit", []), *([claim.staging] if useless else [])]
        public = (
            failure.facts()
            | ids
            | {
                "cost_usd": sum(known) if len(known) == len(costs) else None,
                "resumes": self._resumes(claim, unfit),
            }
        )
        inside = {"state": event["state"], "execution": claim.execution, "raised": event["error"].get("Error")}
        detail = record.detail(self.bucket, claim, DETAIL_CHARS) or failure.detail
        record.fail(
            self.bucket,
            claim.run_id,
            public | inside | {"format": FORMAT, "costs": costs, "detail": detail} | {"unfit": unfit},
        )
        return public

    def _resumes(self, claim: Claim, unfit: list[str]) -> bool:
        """Whether a repeat goes on from what is staged."""
        asked = record.request(self.bucket, claim.run_id) or {}
        left = left_by(self.bucket, claim.run_id, recorded_verb(asked), asked.get("replay_of"), unfit)
        return bool(goes_on_from(left))

    def _spent(self, claim: Claim) -> float | None:
        """US dollars of this attempt; what is another run's, which this one forks, that one has paid for."""
        own = claim.staging.startswith(f"runs/{claim.run_id}/")
        return record.spent_by(self.bucket, claim.staging) if own else 0.0


def classify(state: str, raised: Json) -> WorkflowError:
    """The class of `errors` that a state's error means, with such facts of it as can be believed."""
    kind = errors.named(str(raised.get("Error", "")))
    facts = _parsed(_parsed(raised.get("Cause")).get("errorMessage"))
    if state == "RunClaude":
        if kind is MaterialsRefused:
            reason = MaterialsRefused.reason_in(facts.get("error"))
            return MaterialsRefused.of(reason, cost_usd=None, detail=_detail(facts, raised))
        return kind(
            cost_usd=None,  # its receipt says it
            retry_after=_seconds(facts.get("retry_after")),
            start_seconds=_seconds(facts.get("start_seconds")),
            detail=_detail(facts, raised),
        )
    return kind(
        facts.get("error"),
        session_id=facts.get("session_id"),
        retry_after=facts.get("retry_after"),
        cost_usd=None,  # it is not theirs to know
        detail=_detail(facts, raised),
    )


def _parsed(text: Any) -> Json:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _detail(facts: Json, raised: Json) -> str:
    return str(facts.get("detail") or raised.get("Cause") or "")[-DETAIL_CHARS:]


def _seconds(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value <= 3600 else None
