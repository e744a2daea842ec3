"""RecordFailure: writes down what a run died of, frees the session, and words the answer.

It is told a state's error as Step Functions saw it. RunClaude's was written by a function that runs strangers' code:
of it, only the class, bounded numbers and the operator's detail are taken; the sentences are the table's own.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from lambdas import errors
from lambdas.contract import FORMAT, Claim, Json, run_id
from lambdas.errors import AgentCrashed, Internal, RunTimedOut, WorkflowError
from lambdas.sessions.client import s3_client
from lambdas.sessions.store import Staging, Store
from lambdas.settings import RecordSettings

TIMEOUTS = ("States.Timeout", "Sandbox.Timedout")
"""How a state's and a function's timeout arrive."""

DETAIL_CHARS = 4000


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: `{claim, state, error, execution, caller, key}` → the failure as it is answered."""
    return recorder().record(event)


@cache
def recorder() -> "Recorder":
    settings = RecordSettings.read(os.environ)
    return Recorder(Store(s3_client(), settings.bucket))


@dataclass(frozen=True)
class Recorder:
    store: Store

    def record(self, event: Json) -> Json:
        """Raises `StorageUnavailable`; the definition then answers without a record."""
        claim = Claim.load(event["claim"]) if event["claim"] else None
        failure = classify(event["state"], event["error"])
        if claim is None:
            return self._unclaimed(event, failure)
        ids = {"run_id": claim.run_id, "session_id": claim.session_id}
        if response := self.store.response(claim.run_id):
            # It died after its commit: repeating it answers with the committed turn.
            public = failure.facts() | ids | {"cost_usd": response["cost_usd"], "resumes": True}
        else:
            public = self._write(claim, event, failure, ids)
            self.store.mark(claim, "failed")
        self.store.free(claim.session_id, claim.execution)
        return public

    def _unclaimed(self, event: Json, failure: WorkflowError) -> Json:
        """RestoreSession died, perhaps with the lease in its hands: it is this execution's to give back."""
        run = failure.run_id or run_id(event["caller"], event["key"])
        record = self.store.run(run)
        if record:
            self.store.free(record["session_id"], event["execution"])
        return failure.facts() | {"run_id": run, "session_id": failure.session_id or (record or {}).get("session_id")}

    def _write(self, claim: Claim, event: Json, failure: WorkflowError, ids: Json) -> Json:
        """The failure as it is answered; its record also has what only the operator may see."""
        staging = self.store.staging(claim.run_id)
        earlier = (self.store.failure(claim.run_id) if claim.repeated else None) or {"costs": {}}
        costs = earlier["costs"] | {claim.staging: self._spent(claim, staging, failure)}
        public = (
            failure.facts()
            | ids
            | {
                "cost_usd": sum(costs.values()),
                "resumes": bool(staging.result or staging.checkpoint),
            }
        )
        inside = {"state": event["state"], "execution": claim.execution, "raised": event["error"].get("Error")}
        detail = self.store.detail(claim, DETAIL_CHARS) or failure.detail
        self.store.failed(claim.run_id, public | inside | {"format": FORMAT, "costs": costs, "detail": detail})
        return public

    def _spent(self, claim: Claim, staging: Staging, failure: WorkflowError) -> float:
        """US dollars of this attempt: PersistSession's errors know nothing of it, but what was staged does."""
        if staging.result == claim.staging:
            with suppress(AgentCrashed):  # what was staged is no result, and perhaps that is what failed
                return self.store.result(claim).cost_usd
        return failure.cost_usd


def classify(state: str, raised: Json) -> WorkflowError:
    """The class of `errors` that a state's error means, with such facts of it as can be believed."""
    name, cause = str(raised.get("Error", "")), _parsed(raised.get("Cause"))
    if name in TIMEOUTS:
        return RunTimedOut()
    kind = {kind.__name__: kind for kind in errors.tree()}.get(name, Internal)
    facts = _parsed(cause.get("errorMessage"))
    if state == "RunClaude":
        return kind(
            cost_usd=_dollars(facts.get("cost_usd")),
            retry_after=_seconds(facts.get("retry_after")),
            detail=_detail(facts, raised),
        )
    return kind(
        facts.get("error"),
        session_id=facts.get("session_id"),
        retry_after=facts.get("retry_after"),
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


def _dollars(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e6 else 0.0


def _seconds(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value <= 3600 else None
