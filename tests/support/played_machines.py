"""Both state machines, walked by hand as the definition has them, with a mishap at any write: see `played_workflow`.

What RunClaude stages is played, too: a run makes two calls of the model. A long one's second call is in its second leg.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from botocore.exceptions import ClientError

from lambdas.agent.meter import Meter
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim, Restored, RunResult, Task
from lambdas.errors import AgentCrashed, Internal, Refused, RunCancelled, RunTimedOut, StorageUnavailable, WorkflowError
from lambdas.persist_session import PersistSession
from lambdas.read_run import ReadRun
from lambdas.record_failure import RecordFailure
from lambdas.request import run_id
from lambdas.restore_session import Execution, RestoreSession
from lambdas.settings import ReaderSettings
from lambdas.strict import Json
from tests.support.archives import session
from tests.support.metered import ask, call
from tests.support.played_workflow import LEASE_SECONDS, LEGS, RULES, Killed, Workflow, a_result, with_turn
from tests.support.reading import KEYS, event
from tests.support.s3_faults import KILLED_AFTER, KILLED_BEFORE, LOST

LONG_MACHINE = "arn:aws:states:us-east-1:000000000000:stateMachine:Long"
EXECUTIONS = LONG_MACHINE.replace(":stateMachine:", ":execution:")
CALLER = "default"
ASYNC = "respond-async"
CALLS = 2
"""What a run makes of the model, that nothing befalls."""
CALL_USD = 0.2
TOKENS = 10_000
"""Of output a call, which cost that."""
LEG_SECONDS, SECONDS = 250, 5
"""How long a leg lasts, and any other attempt."""
CRASHES = 3
"""After so many legs that died in a row the definition gives up."""

REFUSED = "503"
ENDED_BEFORE, ENDED_AFTER = "execution ended before", "execution ended after"
CANCELLED_BEFORE, CANCELLED_AFTER = "DELETE before", "DELETE after"
POSTED_BEFORE, POSTED_AFTER = "POST again before", "POST again after"
"""What can befall a write, beside what `s3_faults` has: the whole execution is gone, or a caller comes meanwhile."""


class Gone(BaseException):
    """The execution is; nothing of it is walked any more."""


class Unanswered(Exception):
    """A service did not do what it was asked for, or did not say so (`States.TaskFailed`)."""


@dataclass
class Life:
    """Of one call of a function. The dead write no more, whichever of their threads it is."""

    over: type[BaseException] | None = None


@dataclass
class Mishap:
    """What befalls, from the `first`, so many writes of `method` whose path has `there` in it."""

    method: str = ""
    there: str = "never"
    action: str = ""
    times: int = 0
    first: int = 1
    meanwhile: Callable[[], object] = lambda: None
    """What a caller does, where the action is that one comes."""
    seen: int = 0
    met: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def befalls(self, method: str, path: str) -> str:
        """The action, if it is due for this write."""
        with self.guard:
            if method != self.method or not re.search(self.there, path):
                return ""
            self.seen += 1
            if self.seen < self.first or self.met >= self.times:
                return ""
            self.met += 1
            return self.action

    def write(
        self, life: Life, method: str, path: str, write: Callable[[], Any], refused: Exception, *, again: bool = True
    ) -> Any:
        """Writes, as far as it comes to that; `again`: whether the client itself asks again that got no answer."""
        if life.over:
            raise life.over
        action = self.befalls(method, path)
        if action == REFUSED:
            raise refused
        if action in (CANCELLED_BEFORE, POSTED_BEFORE):
            self.meanwhile()
        if action in (KILLED_BEFORE, KILLED_AFTER, ENDED_BEFORE, ENDED_AFTER):
            life.over = Killed if action in (KILLED_BEFORE, KILLED_AFTER) else Gone
        if action in (KILLED_BEFORE, ENDED_BEFORE):
            raise life.over or Killed
        done = write()
        if action == LOST and not again:
            raise refused
        if action == LOST:
            return write()
        if action in (CANCELLED_AFTER, POSTED_AFTER):
            self.meanwhile()
        if life.over:
            raise life.over
        return done


NOTHING = Mishap()


METHODS = {"put_object": "PUT", "delete_object": "DELETE"}


class MishapS3:
    """An S3 client whose writes may meet one."""

    def __init__(self, s3: Any, mishap: Mishap, life: Life) -> None:
        self._s3, self._mishap, self._life = s3, mishap, life

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._s3, name)
        if name not in METHODS:
            return asked
        down = ClientError({"Error": {"Code": "SlowDown"}}, name)

        def writes(**given: Any) -> Any:
            return self._mishap.write(self._life, METHODS[name], given["Key"], lambda: asked(**given), down)

        return writes


class Machines:
    """The express machine, which answers POSTs, the long one, and ReadRun."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.calls = 0
        """Of the model."""
        self.executions: list[str] = []
        """The names of the long machine's, each started once."""
        self.posts = 0
        self._begun: list[Walk] = []
        settings = ReaderSettings(
            workflow.bucket, "api-key", KEYS, "https://app.example", 24, LEASE_SECONDS, LEGS.lease
        )
        self._reader = ReadRun(settings, workflow.store, lambda: workflow.now, lambda _: None)

    def post(self, key: str, body: Json, prefer: str, mishap: Mishap = NOTHING) -> Json:
        """The answer of the express machine, as the gateway words it. What it starts goes on in `rest`."""
        self.posts += 1
        sent = {"caller": CALLER, "key": key, "key_given": True, "body": body, "prefer": prefer}
        envelope = sent | {"requested_at": self.workflow.now * 1000, "oversize": False}
        try:
            return Walk(self, f"express:{self.posts}", envelope, mishap).go()
        except Gone:
            return RunTimedOut().facts()

    def start(self, name: str, envelope: Json, mishap: Mishap) -> None:
        """StartExecution: a name that is taken is left alone."""
        if name not in self.executions:
            self.executions.append(name)
            self._begun.append(Walk(self, f"{EXECUTIONS}:{name}", envelope, mishap))

    def rest(self) -> None:
        """What was started goes on until it has ended."""
        while self._begun:
            walk = self._begun.pop(0)
            try:
                walk.go()
            except Gone:
                continue

    def ask(self, method: str, key: str) -> tuple[int, Json]:
        """GET or DELETE of a run, by its caller."""
        answer = self._reader.answer(event(method, run_id(CALLER, key)))
        return answer["statusCode"], json.loads(answer["body"])


class Walk:
    """One execution."""

    def __init__(self, machines: Machines, arn: str, envelope: Json, mishap: Mishap) -> None:
        self._machines, self._workflow = machines, machines.workflow
        self._arn, self._envelope, self._mishap = arn, envelope, mishap
        self._long = arn.startswith(EXECUTIONS)
        self._started = self._began = self._workflow.now
        self._before: str | None = None
        self._crashes = 0
        self._state = "RestoreSession"
        self._claim: Claim | None = None

    def go(self) -> Json:
        """The answer, or the failure."""
        if self._long:
            self._started = self._began = self._workflow.now
        while True:
            try:
                return self._leg()
            except LegOver:
                self._next_leg(0)
            except (WorkflowError, Killed, Unanswered) as error:
                if isinstance(error, Refused) and self._state == "RestoreSession" and not self._long:
                    return error.facts()
                # The definition repeats what died, by the error's very name.
                died = isinstance(error, Killed) or type(error) in (AgentCrashed, StorageUnavailable)
                if self._long and self._state == "RunClaude" and died and self._crashes < CRASHES:
                    self._next_leg(self._crashes + 1)
                else:
                    return self._recorded(error)

    def _next_leg(self, crashes: int) -> None:
        assert self._claim
        self._before, self._began, self._crashes = self._claim.staging, self._workflow.now, crashes

    def _leg(self) -> Json:
        self._state, self._claim = "RestoreSession", None
        restored: Restored = self._tried(self._restored, 3)
        self._claim = Claim.load(json.loads(json.dumps(restored.dump()))["claim"])
        if restored.look:
            self._hand_over(restored)
            return {"success": True, "status": "running", "run_id": restored.look.run_id}
        if restored.response is not None:
            return restored.response
        told: object = {}
        if restored.task:
            self._state = "RunClaude"
            try:
                told = self._worked(restored.task)
            finally:
                self._workflow.now += LEG_SECONDS if self._long else SECONDS
        self._state = "PersistSession"
        answer: Json = self._tried(partial(self._persisted, told), 3)
        return answer

    def _tried(self, state: Callable[[Life], Any], times: int) -> Any:
        """A state that the definition repeats."""
        for left in reversed(range(times)):
            try:
                return state(Life())
            except (Killed, StorageUnavailable):
                if not left:
                    raise
                self._workflow.now += 1
        raise AssertionError

    def _bucket(self, life: Life) -> Bucket:
        return Bucket(MishapS3(self._workflow.s3, self._mishap, life), self._workflow.bucket)

    def _restored(self, life: Life) -> Restored:
        state = RestoreSession(self._workflow.settings, self._bucket(life), lambda: self._workflow.now)
        request = state.request(self._envelope)
        execution = Execution(self._arn, self._started, self._began, self._before, LONG_MACHINE)
        handing = request.prefers.long and not execution.long
        return state.hand_over(request, execution) if handing else state.restore(request, execution)

    def _hand_over(self, restored: Restored) -> None:
        self._state = "HandOver"
        if restored.name:
            self._start(restored.name)

    def _start(self, name: str) -> None:
        start = partial(self._machines.start, name, self._envelope, self._mishap)
        for left in reversed(range(3)):
            try:
                self._mishap.write(Life(), "POST", f"executions/{name}", start, Unanswered(), again=False)
            except Unanswered:
                if not left:
                    raise
            else:
                return

    def _persisted(self, told: object, life: Life) -> Json:
        assert self._claim
        return PersistSession(self._bucket(life), RULES, self._workflow.told.append).persist(self._claim, told)

    def _recorded(self, error: BaseException) -> Json:
        names = {Killed: "Runtime.ExitError", Unanswered: "States.TaskFailed"}
        raised = {
            "Error": names.get(type(error), type(error).__name__),
            "Cause": json.dumps({"errorMessage": str(error)}),
        }
        asked: Json = {"state": self._state, "error": raised, "caller": CALLER, "key": self._envelope["key"]}
        began = self._began if self._long else self._started
        asked |= {"execution": self._arn, "started_at": datetime.fromtimestamp(began, UTC).isoformat(), "replay": None}
        asked |= {"claim": json.loads(json.dumps(self._claim_data()))}

        def state(life: Life) -> Json:
            return RecordFailure(self._bucket(life), self._workflow.told.append).record(asked)

        try:
            return self._tried(state, 2)  # type: ignore[no-any-return]
        except (Killed, StorageUnavailable):
            return Internal(cost_usd=None).facts()

    def _claim_data(self) -> Json | None:
        return Restored("", self._claim).dump()["claim"] if self._claim else None

    def _worked(self, task: Task) -> Json:
        """RunClaude, which stages what it would."""
        put, meter = partial(self._put, task, Life()), Meter()
        if not put("started", b"{}"):
            raise AgentCrashed
        cancelled = partial(self._workflow.transfer.there, task.grants.cancel)
        if cancelled() and not task.cut:
            raise RunCancelled
        done = _steps(self._workflow.transfer.read(task.grants.resumed)) if task.grants.resumed else 0
        while not cancelled():
            ask(meter, call(), TOKENS)
            receipt = json.dumps(meter.receipt().dump()).encode()
            put("receipt", receipt)
            self._machines.calls, done = self._machines.calls + 1, done + 1
            if done == CALLS:
                return self._staged(task, put, meter, "end_turn")
            half = session(steps=str(done).encode())
            if self._long:
                self._left(put, receipt, half)
                raise LegOver
            put("checkpoint", half)
        return self._staged(task, put, meter, "cancelled")

    def _left(self, put: Callable[[str, bytes], bool], receipt: bytes, half: bytes) -> None:
        """At the gate: the checkpoint is put whatever becomes of the others."""
        failures = []
        for name, body in (("messages", b"[]"), ("receipt", receipt), ("checkpoint", half)):
            try:
                put(name, body)
            except StorageUnavailable as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def _put(self, task: Task, life: Life, name: str, body: bytes) -> bool:
        grant = getattr(task.grants, name)
        path = grant.url.partition("?")[0]
        write = partial(self._workflow.transfer.put, grant, body, len(body))
        return bool(self._mishap.write(life, "PUT", path, write, StorageUnavailable()))

    def _staged(self, task: Task, put: Callable[[str, bytes], bool], meter: Meter, stop_reason: str) -> Json:
        receipt = meter.receipt()
        last = self._workflow.transfer.read(task.grants.session) if task.grants.session else None
        changes = with_turn(last, task.run_id)
        result = replace(
            a_result(last, changes), stop_reason=stop_reason, cost_usd=receipt.usd, num_turns=receipt.turns
        )
        put("messages", b"[]")
        put("receipt", json.dumps(receipt.dump()).encode())
        put("changes", changes)
        put("result", json.dumps(result.dump()).encode())
        return RunResult.of(task.run_id, result).dump()


class LegOver(Exception):
    """`LegEnded`: the next leg begins."""


def _steps(checkpoint: bytes) -> int:
    """How far a checkpoint has come."""
    return int(ZipFile(BytesIO(checkpoint)).read("workspace/steps"))
