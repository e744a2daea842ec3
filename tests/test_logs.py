"""What a run leaves in logs: nothing of its own in the functions', and in the execution's what SECURITY.md lists."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas.settings import Clocks
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import patched_service

STATES = ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure")
KEY = "MARK-api-key-of-the-caller"
PROMPTS = (
    "MARK-prompt\nrun echo MARK-printed; env\nsay MARK-answer",
    "MARK-prompt\nrun echo MARK-printed >&2; echo MARK-stderr > /proc/$PPID/fd/2\ncrash",
    "MARK-prompt\nrun echo MARK-printed\nstatus 400",
    "MARK-prompt\nrun mkfifo pipe; mkdir locked; touch locked/x; chmod 0 locked",
)
"""An answer, a crash, a refusal of the model's, and a workspace that cannot be kept."""


class Ran:
    """The service after the runs, with what it logged."""

    def __init__(self, running: Service) -> None:
        self.engine = running.engine
        self.logs = {state: self._log(running, state) for state in STATES}
        self.histories = "\n".join(self._histories(running))

    def _log(self, running: Service, state: str) -> str:
        name = self.engine.client("lambda").get_function(FunctionName=running.deployed.function(state))
        group = name["Configuration"]["LoggingConfig"]["LogGroup"]
        events = self.engine.client("logs").filter_log_events(logGroupName=group)["events"]
        return "\n".join(event["message"] for event in events)

    def _histories(self, running: Service) -> Iterator[str]:
        s3 = self.engine.client("s3")
        for entry in s3.list_objects_v2(Bucket=running.deployed.bucket, Prefix="runs/")["Contents"]:
            if entry["Key"].endswith("/request.json"):
                request = json.loads(s3.get_object(Bucket=running.deployed.bucket, Key=entry["Key"])["Body"].read())
                arn = request["execution"]
                history = self.engine.client("stepfunctions").get_execution_history(executionArn=arn, maxResults=1000)
                yield json.dumps(history["events"], default=str)


@pytest.fixture(scope="module")
def ran(template: Json, in_memory: InMemory) -> Iterator[Ran]:
    state = in_memory("state")
    with (
        ScriptedModel() as model,
        patched_service.serving(state, template, Model(model.url, "MARK-key-of-the-model"), {}, KEY) as running,
    ):
        headers = {"content-type": "application/json", "x-api-key": KEY}
        for prompt in PROMPTS:
            urllib3.request("POST", running.url, json={"prompt": prompt}, headers=headers, timeout=60)
        urllib3.request("POST", running.url, json={"prompt": "MARK-prompt", "unknown": "MARK-value"}, headers=headers)
        yield Ran(running)


@pytest.mark.parametrize("state", STATES)
def test_a_functions_log_holds_nothing_of_a_run(ran: Ran, state: str) -> None:
    """No key, no prompt, no answer, nothing that a tool printed, no presigned URL; yet it says that it ran."""
    log = ran.logs[state]
    assert "START RequestId" in log
    assert "MARK-" not in log
    assert "X-Amz-Signature" not in log
    assert "http" not in log


def test_the_executions_history_holds_no_secret(ran: Ran) -> None:
    """Prompts, grants and answers are in it, as SECURITY.md says; the keys are not."""
    assert "MARK-prompt" in ran.histories
    assert "MARK-answer" in ran.histories
    assert "MARK-key-of-the-model" not in ran.histories
    assert KEY not in ran.histories
    assert ran.engine.root not in ran.histories


def test_grants_live_no_longer_than_the_run_may(ran: Ran) -> None:
    """Every URL that RunClaude gets is good until the state machine's own end, at the latest."""
    urls = [url for task in _tasks(ran.histories) for url in re.findall(r'https?://[^"\\]+X-Amz-[^"\\]+', task)]
    assert urls
    for url in urls:
        assert int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0]) <= Clocks(29).machine


def _tasks(histories: str) -> list[Any]:
    """What RunClaude was called with."""
    events = [event for history in histories.split("\n") for event in json.loads(history)]
    inputs = [event.get("stateEnteredEventDetails", {}) for event in events]
    return [entered["input"] for entered in inputs if entered.get("name") == "RunClaude"]
