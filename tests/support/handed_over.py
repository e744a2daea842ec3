"""A long run, walked by hand through both machines as far as RestoreSession and RunClaude go: see `played_workflow`."""

import json
from typing import Any

from lambdas.agent.meter import Meter
from lambdas.contract import Restored, Task
from lambdas.restore_session import Execution, RestoreSession
from lambdas.strict import Json
from tests.support.archives import session
from tests.support.metered import ask, call
from tests.support.played_workflow import Workflow

LONG_MACHINE = "arn:aws:states:us-east-1:000000000000:stateMachine:Long"
EXECUTIONS = LONG_MACHINE.replace(":stateMachine:", ":execution:")


class Long:
    """A run that prefers to be answered asynchronously, through both machines."""

    def __init__(self, workflow: Workflow, key: str = "k", **body: Any) -> None:
        self.workflow = workflow
        self.key, self.body = key, {"prompt": "a long story"} | body
        self.state = RestoreSession(workflow.settings, workflow.store, lambda: workflow.now)
        self.leg: Restored | None = None
        self.arn = ""

    def envelope(self, prefer: str = "respond-async, wait=5") -> Json:
        sent = {"caller": "alice", "key": self.key, "key_given": True, "body": self.body, "prefer": prefer}
        return sent | {"requested_at": self.workflow.now * 1000, "oversize": False}

    def post(self, express: str = "express:1", **envelope: Any) -> Restored:
        """RestoreSession in the express machine, which takes the session for the long one's execution."""
        now = self.workflow.now
        asked = self.state.request(self.envelope() | envelope)
        restored = self.state.hand_over(asked, Execution(express, now, now, None, LONG_MACHINE))
        self.arn = restored.look.execution if restored.look else ""
        return restored

    def next(self, **envelope: Any) -> Restored:
        """RestoreSession in the long machine: of the first leg, or of the one after the last."""
        now = self.workflow.now
        asked = self.state.request(self.envelope() | envelope)
        before = self.leg.claim.staging if self.leg else None
        self.leg = self.state.restore(asked, Execution(self.arn, now, now, before, LONG_MACHINE))
        return self.leg

    def work(self, text: str, output: int = 10_000) -> Task:
        """RunClaude until a gate, after one answer of the model's that costs two cents for each thousand tokens."""
        assert self.leg is not None
        task = self.leg.task
        assert task is not None
        self._put(task, "started", b"{}")
        meter = Meter()
        ask(meter, call(), output)
        self._put(task, "receipt", json.dumps(meter.receipt().dump()).encode())
        self._put(task, "messages", b"[\n" + json.dumps({"type": "assistant", "text": text}).encode() + b"\n]\n")
        half = session(**{task.run_id: text.encode()})
        self._put(task, "checkpoint", half)
        self.workflow.now += 250
        return task

    def _put(self, task: Task, name: str, body: bytes) -> None:
        assert self.workflow.transfer.put(getattr(task.grants, name), body, len(body))

    def cancel(self) -> None:
        assert self.leg is not None
        self.workflow.store.touch(f"runs/{self.leg.claim.run_id}/cancel")
