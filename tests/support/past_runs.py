"""A bucket with runs of the past in it, as the functions write their record; and the word that a service leaves."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claude_workflow.cli.endpoint import Endpoint, announce
from claude_workflow.local import engine
from claude_workflow.local.engine import Engine
from claude_workflow.local.guard import BUCKET
from lambdas import request as requests
from lambdas.bucket import record, versions
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.next_step import Pin

Json = dict[str, Any]

ECHO = {
    "QueryLanguage": "JSONata",
    "StartAt": "Which",
    "States": {
        "Which": {
            "Type": "Choice",
            "Choices": [
                {"Condition": "{% $states.input.key = 'moved' %}", "Next": "Moved"},
                {"Condition": "{% $contains($states.input.key, 'hopeless') %}", "Next": "Failed"},
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


def run_id(number: int) -> str:
    return "run-" + hashlib.sha256(str(number).encode()).hexdigest()[:32]


def hour(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H}"


@dataclass
class Past:
    """A bucket on an engine, and how runs get into it."""

    engine: Engine
    state_machine_arn: str
    state: Path

    def put(self, key: str, data: Json | bytes = b"") -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.engine.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body)

    def run(self, number: int, outcome: str, *, ago: float = 60, session: str | None = None, **more: Any) -> str:
        """A run indexed under `outcome`; `more` replaces fields of its request. Returns its id."""
        asked = {"owner": "default", "key": f"key-{number}"} | more
        name = requests.run_id(asked["owner"], asked["key"])
        moment, session = time.time() - ago, session or f"session-{number}"
        self.put(f"runs/{name}/request.json", request(name, moment, session) | asked)
        self.put(f"index/hours/{hour(moment)}/{outcome}/{name}")
        self.put(f"index/sessions/{session}/{name}")
        if outcome == "done":
            self.put(f"runs/{name}/response.json", response(name, session))
        if outcome == "failed":
            self.put(f"runs/{name}/failure.json", failure(name, session))
        return name

    def version(self, session: str, run: str) -> Base:
        """A new version of the session, committed by `run`."""
        s3, key = self.engine.client("s3"), f"{session}.zip"
        metadata = {"owner": "default", "run": run, "turns": "1", "cost-usd": "0.5", "created": "2026", "format": "1"}
        metadata |= {"claude-session": session, "directory": "1"}
        s3.put_object(Bucket=BUCKET, Key=key, Body=run.encode(), Metadata=metadata)
        base = versions.newest_of(Bucket(s3, BUCKET), session, "default")
        assert base is not None
        return base

    def pin(self, name: str, base: Base | None = None) -> None:
        """The version that a run works on; None for a new session."""
        assert record.pin(Bucket(self.engine.client("s3"), BUCKET), name, Pin(base), None)

    def lease(self, name: str, session: str, seconds: float) -> None:
        lease = {"run_id": name, "execution": "arn", "expires_at": time.time() + seconds}
        self.put(f"locks/{session}.json", lease)


def request(name: str, moment: float, session: str) -> Json:
    return {
        "format": 1,
        "run_id": name,
        "owner": "default",
        "key": name,
        "requested_at": moment,
        "execution": "arn:aws:states:us-east-1:000000000000:express:Machine:gone:1",
        "session_id": session,
        "body": {"prompt": f"Prompt of {name}"},
    }


def response(name: str, session: str) -> Json:
    ended = {"stop_reason": "end_turn", "duration_ms": 1234, "result": "Well done."}
    return {"success": True, "run_id": name, "session_id": session, "cost_usd": 0.125, **ended}


def failure(name: str, session: str) -> Json:
    said = {"success": False, "error": "It crashed.", "code": "AgentCrashed", "retryable": True}
    return said | {
        "run_id": name,
        "session_id": session,
        "cost_usd": 0.5,
        "state": "RunClaude",
        "detail": "core dumped",
    }


@contextmanager
def past(state: Path) -> Iterator[Past]:
    """The engine on `state` with a bucket, the machine `ECHO`, and the word that a service leaves of them."""
    with engine.running(state) as running:
        s3 = running.client("s3")
        with suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # a test has filled it before
            s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        role = running.client("iam").create_role(RoleName="any", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        made = running.client("stepfunctions").create_state_machine(
            name="Machine", type="EXPRESS", roleArn=role, definition=json.dumps(ECHO)
        )
        arn = made["stateMachineArn"]
        backend = {"engine_url": running.url, "engine_root": running.root, "bucket": BUCKET, "state_machine_arn": arn}
        announce(state, Endpoint("http://unused", None), **backend)
        yield Past(running, arn, state)
