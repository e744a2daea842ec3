"""A bucket with runs of the past in it, as the functions write their record; and the word that a service leaves."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from claude_workflow.cli.endpoint import Endpoint, announce
from claude_workflow.local import engine
from claude_workflow.local.engine import Engine
from claude_workflow.local.guard import BUCKET
from lambdas.bucket import record
from lambdas.errors import AgentCrashed
from lambdas.request import run_id
from lambdas.strict import Json
from tests.support.buckets import a_bucket
from tests.support.played_workflow import Execution, Fuse, Killed, Workflow

ECHO = {
    "QueryLanguage": "JSONata",
    "StartAt": "Which",
    "States": {
        "Which": {
            "Type": "Choice",
            "Choices": [
                {"Condition": "{% $states.input.key = 'moved' %}", "Next": "Moved"},
                {"Condition": "{% $contains($states.input.key, 'hopeless') %}", "Next": "Failed"},
                {"Condition": "{% $contains($states.input.key, 'cancelled') %}", "Next": "Cancelled"},
                {"Condition": "{% $contains($states.input.key, 'long') %}", "Next": "Accepted"},
            ],
            "Default": "Answered",
        },
        "Answered": {
            "Type": "Pass",
            "End": True,
            "Output": {
                "stop_reason": "end_turn",
                "result": "{% $states.input.replay & ' for ' & $states.input.caller %}",
                "session_id": "session-new",
                "cost_usd": 0.25,
            },
        },
        "Accepted": {
            "Type": "Pass",
            "End": True,
            "Output": {"success": True, "status": "running", "session_id": "session-long"},
        },
        "Cancelled": {
            "Type": "Fail",
            "Error": "RunCancelled",
            "Cause": "{% $string({'error': 'It was cancelled.', 'cost_usd': 0}) %}",
        },
        "Failed": {
            "Type": "Fail",
            "Error": "AgentCrashed",
            "Cause": "{% $string({'error': 'It crashed.', 'cost_usd': 0.5}) %}",
        },
        "Moved": {
            "Type": "Fail",
            "Error": "SessionMoved",
            "Cause": "{% $string({'error': 'It has gone on.', 'cost_usd': 0}) %}",
        },
    },
}
"""A machine that ends as the run's key says, and does nothing else."""

GONE = "arn:aws:states:us-east-1:000000000000:express:Machine:gone:"
"""How executions are named of which no history is left."""

CRASH = AgentCrashed(cost_usd=0.5, detail="core dumped")


class Past(Workflow):
    """A bucket on an engine, and how runs get into it: they are played at a moment of the past."""

    def __init__(self, engine: Engine, state_machine_arn: str, state: Path) -> None:
        super().__init__(a_bucket(engine.client("s3"), BUCKET))
        self.engine = engine
        self.state_machine_arn = state_machine_arn
        self.state = state

    def play(
        self,
        ending: str,
        session: str | None = None,
        *,
        ago: float = 60,
        key: str | None = None,
        caller: str = "default",
        execution: str | None = None,
        prompt: str | None = None,
        fuse: Fuse | None = None,
        long: bool = False,
        fork: bool = False,
        **played: Any,
    ) -> str:
        """A run that was asked for `ago` seconds ago, in a new session, in one of its caller's, or in a copy of
        that (`fork`); returns its id.

        It ended as `done`, as `failed` or, where its execution died before RunClaude, as `claimed`; what is `played`
        is for `Workflow.run`. The fuse kills it earlier. Asked with its key once more, it goes on.
        """
        key = key or str(uuid.uuid4())
        run = run_id(caller, key)
        said = {"session_id": session, "fork": fork or None}
        body = {"prompt": prompt or f"Prompt of {run}"} | {name: value for name, value in said.items() if value}
        asked = Execution(execution or f"{GONE}{uuid.uuid4()}", key, body, caller)
        self.now = time.time() - ago
        with suppress(Killed):
            if ending == "claimed":
                self.restore(asked, fuse)
            else:
                answer = self.execute(asked, fuse, **({"fails": CRASH} if ending == "failed" else {}) | played)
                assert answer["success"] == (ending == "done"), answer
        if long:
            self.store.write(f"runs/{run}/request.json", self.asked(run) | {"long": True})
        return run

    def asked(self, run: str) -> Json:
        """Who asked what."""
        asked = record.request(self.store, run)
        assert asked
        return asked

    def session(self, run: str) -> str:
        """The session that a run goes on with, or began."""
        return str(self.asked(run)["session_id"])


@contextmanager
def past(state: Path) -> Iterator[Past]:
    """The engine on `state` with a bucket, the machine `ECHO`, and the word that a service leaves of them."""
    with engine.running(state) as running:
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        role = running.client("iam").create_role(RoleName="any", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        made = running.client("stepfunctions").create_state_machine(
            name="Machine", type="EXPRESS", roleArn=role, definition=json.dumps(ECHO)
        )
        arn = made["stateMachineArn"]
        backend = {"engine_url": running.url, "engine_root": running.root, "bucket": BUCKET, "state_machine_arn": arn}
        announce(state, Endpoint("http://unused", None), **backend)
        yield Past(running, arn, state)
