"""`claude-workflow check`: every row on one machine, a stack that is broken in many ways, and what is recorded."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from claude_workflow.cli.check import report
from claude_workflow.cli.check.asking import asked
from claude_workflow.cli.check.row import BROKEN, HELD, NOT_ASKED, NotAsked, Outcome, judged
from claude_workflow.cli.check.rows import ROWS
from lambdas.strict import Json
from tests.conftest import Synthesize
from tests.support.account import Stack, deployed
from tests.support.commands import ROOT, Serve, command

UNPROVEN = (ROOT / "docs/unproven.md").read_text()
NAMES = {row.name for row in ROWS}


@pytest.fixture(scope="module")
def checked(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Json]:
    """What the kit prints of the service on this machine, and what it keeps of that."""
    folder = tmp_path_factory.mktemp("record")
    done = command("check", "--state", serve.state, "--record", folder / "new")
    assert done.returncode in (0, 1), done.stderr
    kept = (folder / "new/check.json").read_text()
    assert serve.key not in kept + done.stdout
    assert "Signature=" not in kept + done.stdout
    return done.stdout, json.loads(kept)


def test_every_row_has_an_outcome_on_one_machine(serve: Serve, checked: tuple[str, Json]) -> None:
    """What can be asked here holds; what only AWS can tell is said to be so."""
    printed, kept = checked
    outcomes = {name: (one["outcome"], one["why"]) for name, one in kept["rows"].items()}
    assert set(outcomes) == NAMES
    expected = {row.name: (NOT_ASKED, row.aws) if row.aws else (HELD, "") for row in ROWS}
    if "is kept from your files" not in serve.said():
        outcomes.pop("agent-files"), expected.pop("agent-files")
    assert outcomes == expected
    assert re.search(r"^# The service on this machine: \d+ held, \d+ not asked$", printed, re.MULTILINE)
    assert all(f"| `{name}` | {outcome} |" in printed for name, (outcome, _) in outcomes.items())


def test_nothing_of_the_kit_is_left(serve: Serve, checked: tuple[str, Json]) -> None:
    """Neither its runs and sessions, those that failed included, nor what it wrote to ask S3."""
    named = set(re.findall("run-[0-9a-f]{32}|session-[0-9a-f]{8}-[0-9a-f-]{27}", json.dumps(checked[1])))
    assert len(named) > 10
    files = [str(path) for path in (serve.state / "s3").rglob("*") if path.is_file()]
    assert [path for path in files if any(name in path for name in (*named, "/runs/check-"))] == []


def test_what_is_recorded_is_judged_again(checked: tuple[str, Json]) -> None:
    """The recorded answers have the outcomes that they had; those that say nothing hold for no row."""
    kept = checked[1]
    again = {one.row.name: one.outcome for one in report.replayed(kept, ROWS)}
    assert again == {name: one["outcome"] for name, one in kept["rows"].items()}
    assert [row.name for row in ROWS if judged(row, {}).outcome != BROKEN] == []


ALTERED: list[tuple[str, Json, str]] = [
    ("first-turn", {"status": 502, "code": "ModelUnauthorized"}, "status is 502"),
    ("second-turn", {"result": "I do not know."}, "heron"),
    ("fork", {"session_id": "session-1", "forked": "session-1"}, "in the session itself"),
    ("repeated-key", {"run_id": "run-2"}, "run_id is 'run-2'"),
    ("deadline", {"status": 504, "stop_reason": None}, "status is 504"),
    ("unknown-session", {"status": 403, "code": "Forbidden"}, "status is 403"),
    ("charset", {"status": 415, "code": "UnsupportedMediaType"}, "status is 415"),
    ("null-ids", {"run_id": "null"}, "run_id is 'null'"),
    ("emoji-80000", {"status": 500, "code": "Internal"}, "status is 500"),
    ("tricky-text", {"as sent": False, "recorded": 12}, "12 are recorded"),
    ("burst", {"throttled": {}}, "None of 40"),
    ("agent-python3", {"programs": "python3: error while loading shared libraries: libpython3.13.so.1.0"}, "libpython"),
    ("agent-environ", {"environ": "1 AWS_SECRET_ACCESS_KEY="}, "AWS_SECRET_ACCESS_KEY"),
    ("agent-tmp", {"left": "/tmp/left-by-a-check"}, "left-by-a-check"),
    ("grant-expired", {"status": 200}, "status is 200"),
    ("s3-if-match-stale", {"status": 200}, "status is 200"),
]
"""What a stack may answer otherwise: the row, the facts, and what is told of them."""


@pytest.mark.parametrize(("name", "facts", "told"), ALTERED)
def test_an_answer_that_is_not_as_expected_breaks_its_row(
    checked: tuple[str, Json], name: str, facts: Json, told: str
) -> None:
    """A recorded answer, altered in one point."""
    kept = json.loads(json.dumps(checked[1]))
    kept["rows"][name]["raw"] |= facts
    broken = [one for one in report.replayed(kept, ROWS) if one.outcome == BROKEN]
    assert [one.row.name for one in broken] == [name]
    assert told in broken[0].why


def test_grants_of_another_host_are_told() -> None:
    """botocore's own default outside us-east-1 is the global host."""
    hosts = {"request": "b.s3.eu-west-1.amazonaws.com", "result": "b.s3.amazonaws.com"}
    (row,) = [row for row in ROWS if row.name == "grant-host"]
    found = judged(row, {"expected": "b.s3.eu-west-1.amazonaws.com", "hosts": hosts})
    assert (found.outcome, "result" in found.why, "request" in found.why) == (BROKEN, True, False)


# A stack in an account


@pytest.fixture(scope="module")
def stack(synthesized: Synthesize, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    template = json.loads((synthesized() / "ClaudeAgentWorkflow.template.json").read_text())
    with deployed(tmp_path_factory.mktemp("account"), template) as made:
        yield made


Change = Callable[[Stack], None]


def _policy(role: str, *actions: str) -> Change:
    """Whatever else the role may do, instead of what it should."""

    def change(stack: Stack) -> None:
        iam, name = stack.kit.client("iam"), stack.id("IAM::Role", f"{role}Role")
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_role_policy(RoleName=name, PolicyName="another", PolicyDocument=document)

    return change


def _function(state: str, **configuration: Any) -> Change:
    return lambda stack: stack.kit.client("lambda").update_function_configuration(
        FunctionName=stack.id("Lambda::Function", state), **configuration
    )


def _machine(*changes: tuple[str, str]) -> Change:
    """The definition with another text in place of one of its own."""

    def change(stack: Stack) -> None:
        machines, arn = stack.kit.client("stepfunctions"), stack.id("StepFunctions::StateMachine")
        text = machines.describe_state_machine(stateMachineArn=arn)["definition"]
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        machines.update_state_machine(stateMachineArn=arn, definition=text)

    return change


def _response(stack: Stack) -> None:
    stack.kit.client("apigateway").delete_integration_response(**stack.kit.account.post, statusCode="400")


def _sentence(stack: Stack) -> None:
    api = stack.id("ApiGateway::RestApi")
    stack.kit.client("apigateway").delete_gateway_response(restApiId=api, responseType="INVALID_API_KEY")


def _wait(stack: Stack) -> None:
    gateway, where = stack.kit.client("apigateway"), stack.kit.account.post
    kept = gateway.get_integration(**where)
    told = {name: kept[name] for name in ("type", "uri", "credentials", "requestTemplates", "passthroughBehavior")}
    gateway.put_integration(**where, integrationHttpMethod="POST", **told, timeoutInMillis=15_000)


def _quota(stack: Stack) -> None:
    key = {"usagePlanId": stack.id("ApiGateway::UsagePlan"), "keyId": stack.id("ApiGateway::ApiKey")}
    stack.kit.client("apigateway").delete_usage_plan_key(**key)


def _secret(stack: Stack) -> None:
    text = json.dumps({"ANTHROPIC_API_KEY": "unset"})
    stack.kit.client("secretsmanager").put_secret_value(SecretId=stack.id("SecretsManager::Secret"), SecretString=text)


def _logged(state: str, line: str) -> Change:
    def change(stack: Stack) -> None:
        logs, where = stack.kit.client("logs"), {"logGroupName": stack.id("Logs::LogGroup", f"{state}Logs")}
        where["logStreamName"] = f"2026/11/27/[1]{uuid.uuid4().hex}"
        logs.create_log_stream(**where)
        logs.put_log_events(**where, logEvents=[{"timestamp": int(stack.kit.began * 1000) + 1, "message": line}])

    return change


def _kept_for_ever(stack: Stack) -> None:
    stack.kit.client("logs").delete_retention_policy(logGroupName=stack.id("Logs::LogGroup", "AccessLog"))


def _expiring(days: int) -> Change:
    """The template's lifecycle, which the engine leaves out, as S3 would have it; with other days for runs."""

    def change(stack: Stack) -> None:
        rules = stack.kit.account.properties("S3::Bucket")["LifecycleConfiguration"]["Rules"]
        kept = [
            {
                "ID": rule["Id"],
                "Status": "Enabled",
                "Filter": {"Prefix": rule.get("Prefix", "")},
                **({"Expiration": {"Days": days}} if "ExpirationInDays" in rule else {}),
                **{name: rule[name] for name in rule if name.startswith(("Noncurrent", "Abort"))},
            }
            for rule in rules
        ]
        stack.kit.client("s3").put_bucket_lifecycle_configuration(
            Bucket=stack.kit.bucket, LifecycleConfiguration={"Rules": kept}
        )

    return change


BREAKS: dict[str, tuple[Change, str]] = {
    "rights-run-claude": (_policy("RunClaude", "s3:GetObject"), "s3:GetObject of session-1.zip"),
    "rights-machine": (_policy("Machine", "logs:*"), "may not lambda:InvokeFunction"),
    "integration-responses": (_response, "400 is None"),
    "gateway-responses": (_sentence, "INVALID_API_KEY is None"),
    "integration-timeout": (_wait, "15000 ms are kept of 29000"),
    "usage-plan": (_quota, "keys is 0, not 1"),
    "clocks": (_machine(('"TimeoutSeconds": 28', '"TimeoutSeconds": 300')), "machine is 300"),
    "versions": (_machine(("FunctionsRecordFailure", "AnotherRecordFailure")), "AnotherRecordFailure"),
    "test-state": (_machine(("next = 'persist'", "next = 'commit'")), "persist: nextState is None"),
    "functions": (_function("RunClaude", MemorySize=256), "RunClaude: MemorySize is 256"),
    "settings": (
        _function("RecordFailure", Environment={"Variables": {"S3_BUCKET_NAME": "another"}}),
        "RecordFailure S3_BUCKET_NAME is 'another'",
    ),
    "secret": (_secret, "ANTHROPIC_API_KEY is 'unset'"),
    "retention": (_kept_for_ever, "None, not 30"),
    "lifecycle": (_expiring(3), "old-runs is [3, 1, None], not [30, 1, None]"),
    "log-errors": (
        _logged("PersistSession", "[ERROR] Runtime.ImportModuleError: Permission denied: 'lambdas/persist_session.py'"),
        "PersistSession: [ERROR] Runtime.ImportModuleError",
    ),
}
"""By the row that tells it, what is done to a stack, and what is told of it."""


def test_a_broken_stack_is_told_what_is_broken(stack: Stack) -> None:
    """All of it at once: before, each row holds; afterwards each is broken, and names what was done."""
    _expiring(30)(stack)
    rows = [row for row in ROWS if row.name in BREAKS or row.name.startswith("rights-")]
    assert {one.row.name: one.why for one in asked(stack.kit, rows) if one.outcome != HELD} == {}
    for change, _ in BREAKS.values():
        change(stack)
    told: dict[str, Outcome] = {
        one.row.name: one for one in asked(stack.kit, [row for row in rows if row.name in BREAKS])
    }
    assert {name for name, one in told.items() if one.outcome == BROKEN} == set(BREAKS)
    assert {name: told[name].why for name, (_, why) in BREAKS.items() if why not in told[name].why} == {}


def test_slow_starts_and_a_full_memory_are_told(stack: Stack) -> None:
    """By the REPORT lines, as Lambda writes them."""
    line = (
        "REPORT RequestId: 1\tDuration: 1.0 ms\tBilled Duration: 2 ms\tMemory Size: 2048 MB\tMax Memory Used: {} MB\t"
    )
    for state in ("RestoreSession", "PersistSession"):
        _logged(state, line.format(200))(stack)
    _logged("RunClaude", line.format(2000) + "Init Duration: 15000.5 ms\t\n")(stack)
    raw = stack.raw("init-time")
    found = {row.name: judged(row, raw) for row in ROWS if row.name in ("init-time", "memory")}
    assert {name: one.outcome for name, one in found.items()} == {"init-time": BROKEN, "memory": BROKEN}
    assert all("RunClaude" in one.why and "RestoreSession" not in one.why for one in found.values())


@pytest.mark.parametrize("name", ["vpc", "kms-key", "bedrock", "redeploy"])
def test_what_a_stack_has_not_is_not_asked(stack: Stack, name: str) -> None:
    """It is told why."""
    with pytest.raises(NotAsked, match=r"\.$"):
        stack.raw(name)


def test_a_small_model_is_asked(stack: Stack) -> None:
    """Where the stack does not say that it asks Bedrock, whose models are named by the deployment."""
    assert stack.kit.model == "haiku"


def test_no_run_is_started_that_could_cost_too_much(stack: Stack) -> None:
    """Before anything is sent."""
    with pytest.raises(NotAsked, match="--max-dollars"):
        stack.kit.run("Hello.")


# What cannot be shown without AWS


def unproven() -> list[list[str]]:
    """The cells of its table."""
    lines = [line for line in UNPROVEN.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines[1:]]


def test_every_row_of_unproven_names_rows_of_the_kit() -> None:
    """Which there are; and what only AWS can tell is named there."""
    named = [re.findall(r"`([a-z0-9-]+)`", cells[-1]) for cells in unproven()]
    assert [cells[0] for cells, names in zip(unproven(), named, strict=True) if not names] == []
    assert {name for names in named for name in names} - NAMES == set()
    assert {row.name for row in ROWS if row.aws} - {name for names in named for name in names} == set()
