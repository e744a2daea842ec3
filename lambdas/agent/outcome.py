"""What came of a turn: judged when its processes are dead, by the proxy's word, and never by the agent's alone."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import Draft7Validator, validators
from referencing import Registry

from lambdas.agent.messages import TOO_DEEP
from lambdas.agent.meter import Meter
from lambdas.agent.progress import Progress
from lambdas.agent.proxy import Proxy
from lambdas.agent.transcript import ENDERS, Transcript
from lambdas.agent.witness import DEFERRED
from lambdas.errors import (
    MODEL_STATUSES,
    AgentCrashed,
    DiskFull,
    Internal,
    ModelOverloaded,
    ModelRateLimited,
    ModelUnpriced,
    NotAsked,
    OutputUnusable,
    RunCancelled,
    SchemaRefused,
    WorkflowError,
)
from lambdas.receipt import Receipt
from lambdas.strict import Json

STDERR_BYTES = 4096
"""How much of the end of the CLI's stderr is kept."""

NO_SCHEMA = "--json-schema is not a valid JSON Schema"
"""What CLI 2.1.332 says on its stderr before it ends, without a message and before any call of the model."""

STOPPED = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_budget",
    "error_max_structured_output_retries": "max_structured_output_retries",
}
"""Results of the CLI's for a limit, and the run's `stop_reason`."""


@dataclass(frozen=True)
class Told:
    """What there is of every attempt that did not fail. Its processes are dead."""

    told: bytes
    """The CLI's stream-json objects as printed, as `messages.json` has them."""
    receipt: Receipt
    """By the meter; of a completed run, with the CLI's own total beside it."""

    @property
    def cost_usd(self) -> float:
        """This attempt's own, by the meter."""
        return self.receipt.usd


@dataclass(frozen=True)
class Outcome(Told):
    """A completed run. Its transcript is in the scratch directory and can be resumed."""

    last_message: Json
    """The last of those which say how it ended; empty if there is none."""
    result: str | None
    structured_output: Any
    stop_reason: str
    """`end_turn`, `refusal`, `max_tokens` … of the model; `approval`, `max_turns`, `max_budget`, `deadline`,
    `cancelled`, `max_structured_output_retries` of the run."""
    num_turns: int
    usage: Json
    """Of all its calls of the model, subagents' included."""
    duration_ms: int
    model_failure: Json | None
    """`{"status", "times"}` where the model answered nothing but errors when the run ended: the status, None for no
    connection, and how often in a row."""
    pending: Json | None = None
    """The call that waits for an approval, with which the run ended: `tool`, `input`, `digest`."""

    @property
    def messages(self) -> list[Json]:
        """What was told."""
        told: list[Json] = json.loads(self.told)
        return told

    @classmethod
    def unasked(cls, stop_reason: str) -> "Outcome":
        """That of a run which ended between two attempts: with what the earlier ones did."""
        none = Meter()
        return cls(
            told=Progress(lambda _: None).text,
            last_message={},
            result=None,
            structured_output=None,
            stop_reason=stop_reason,
            num_turns=0,
            receipt=none.receipt(),
            usage=none.usage,
            duration_ms=0,
            model_failure=None,
        )


@dataclass(frozen=True)
class Unfinished(Told):
    """A leg of a run that is to go on in another one."""

    by: str
    """`gate`, `limit`, or `lag`: the limit, and the transcript does not know of all that was done."""
    checkpointed: bool
    """Whether there is a checkpoint of this leg already."""


@dataclass(frozen=True)
class Left:
    """What the CLI left when it was gone."""

    by: str | None
    """What ended it (see `ending`); None where it had done all."""
    result: Json
    """What it said when it was done with the prompt; empty if it did not."""
    last_message: Json
    """What it said last of how it ended, of whatever prompt; empty if it did not."""
    told: bytes
    """All that it said, as `messages.json` has it."""
    total_usd: float | None
    """What it says that this run cost."""
    stderr: str
    failure: Exception | None
    """What the SDK raised."""
    checkpointed: bool
    """Whether there is a checkpoint."""
    duration_ms: int


@dataclass(frozen=True)
class Verdict:
    """On one turn, which had to give what `schema` asks for; `cut`: a later attempt at it."""

    proxy: Proxy
    transcript: Transcript
    schema: Json | None
    cut: bool
    left: Left

    def reword(self, since: int) -> None:
        """Say in the transcript, behind that byte, who ended the turn, if it was ended and is not to go on. Raises
        `DiskFull`, or `Internal` where it cannot be written."""
        if self.left.by not in ENDERS:
            return
        try:
            self.transcript.reword(since, ENDERS[self.left.by])
        except OSError as error:
            raise self._error(DiskFull if DiskFull.means(error) else Internal, {"result": str(error)}) from error

    def outcome(self) -> Outcome | Unfinished:
        """The completed run, or a leg of it, or raises what it failed by."""
        result = self.left.result
        self._restored()
        if self.left.by:
            return self._ended(self.left.by, result)
        if isinstance(self.left.failure, WorkflowError):
            raise self.left.failure.but(cost_usd=self.proxy.meter.spent)
        if not result:
            refused = NO_SCHEMA in self.left.stderr and not self.proxy.answers
            raise self._error(SchemaRefused if refused else AgentCrashed, result)
        if result["subtype"] == "success" and result["is_error"]:
            if limit := self.proxy.meter.limit:
                return self._completed(limit, result | {"result": None})
            raise self._refused(result)
        unasked = result["subtype"] == "success" and not result["num_turns"]
        if unasked or result["subtype"] == "error_during_execution":
            raise self._error(AgentCrashed, result)
        if result["subtype"] == "success" and result.get("stop_reason") == DEFERRED:
            waits = self.proxy.approvals.pending if self.proxy.approvals else None
            return replace(self._completed("approval", result), pending=waits)
        return self._completed(self._stop_reason(result), result)

    def _restored(self) -> None:
        """Raises that by which the session could not be restored, beside it, before anything else that went wrong."""
        try:
            if self.proxy.restored.done():
                self.proxy.restored.result()
        except WorkflowError as failure:
            raise failure.but(cost_usd=self.proxy.meter.spent) from failure

    def _ended(self, by: str, result: Json) -> Outcome | Unfinished:
        """What was ended before it had a result. What had no answer yet is nothing: neither a run to be kept, nor a leg
        to be followed by more of its kind."""
        meter, given = self.proxy.meter, self.proxy.answers and self.proxy.restored.in_place
        if not given and not (self.cut and by in ENDERS):
            late = ModelOverloaded if meter.calls else NotAsked
            raise self._error(RunCancelled if by == "cancelled" else late, result)
        if by in ENDERS:
            return self._completed(by, result)
        return Unfinished(self.left.told, meter.receipt(), by, self.left.checkpointed)

    def _stop_reason(self, result: Json) -> str:
        """A run that stopped at a limit names it; otherwise the model says why it stopped."""
        return STOPPED.get(result["subtype"]) or self.proxy.witness.stop_reason

    def _completed(self, stop_reason: str, result: Json) -> Outcome:
        if not self.transcript.size:
            raise self._error(AgentCrashed, result)
        meter, took = self.proxy.meter, result.get("duration_ms")
        return Outcome(
            told=self.left.told,
            last_message=self.left.last_message,
            result=result.get("result"),
            structured_output=self._output(result),
            stop_reason=stop_reason,
            num_turns=max(0, min(result.get("num_turns", 0), meter.calls + 1)) if self.proxy.answers else 0,
            receipt=meter.receipt(self.left.total_usd),
            usage=meter.usage,
            duration_ms=took if type(took) is int and 0 <= took <= self.left.duration_ms else self.left.duration_ms,
            model_failure=self.proxy.witness.failure,
        )

    def _output(self, result: Json) -> Any:
        """What the model gave for the caller's schema, in its last answer. Raises `OutputUnusable`."""
        outputs = self.proxy.witness.outputs
        if self.schema is None or result.get("subtype") != "success" or result["is_error"] or not outputs:
            return None
        fitting = [each for each in outputs if each is not TOO_DEEP and fits(each, self.schema)]
        if not fitting:
            raise self._error(OutputUnusable, result)
        return fitting[-1]

    def _refused(self, result: Json) -> WorkflowError:
        """The API refused, or was not there, as the proxy saw it."""
        witness = self.proxy.witness
        if not witness.failed:
            return self._error(AgentCrashed, result)
        if self.proxy.meter.unpriced:
            return self._error(ModelUnpriced, result)
        error = MODEL_STATUSES.get(witness.status or 0, ModelOverloaded)
        waits = error is ModelRateLimited or witness.status == 529
        return self._error(error, result, retry_after=self.proxy.retry_after if waits else None)

    def _error(self, kind: type[WorkflowError], result: Json, retry_after: int | None = None) -> WorkflowError:
        errors = result.get("errors")
        listed = map(str, errors) if isinstance(errors, list) else ()
        causes = (str(result.get("result") or ""), *listed, str(self.left.failure or ""))
        detail = "\n".join(part for part in (*causes, self.left.stderr) if part)[-STDERR_BYTES:]
        return kind(retry_after=retry_after, cost_usd=self.proxy.meter.spent, detail=detail)


WITHOUT_PATTERNS = validators.extend(  # type: ignore[no-untyped-call]  # its stub has no types
    Draft7Validator, {"pattern": lambda *_: ()}
)
"""JavaScript's regular expressions are not Python's (`\\w` has no é there), so a right answer could seem wrong."""


def fits(output: Any, schema: Json) -> bool:
    """Whether a structured output is what the schema (of draft 7) asks for, as far as can be told here: patterns are
    left to Claude Code, which has checked what it printed itself. Nothing is fetched."""
    try:
        return bool(WITHOUT_PATTERNS(schema, registry=Registry()).is_valid(output))
    except Exception as unknown:  # whatever the schema makes the validator stumble over
        print(f"a schema that cannot be applied here: {type(unknown).__name__}", file=sys.stderr)
        return True
