"""The synthesized template: what must never change about it, and a snapshot of the rest.

The CDK is imported where it is needed: that starts a process of Node's in whoever does so, and all workers read this.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from claude_workflow.local import deploy
from lambdas import errors
from lambdas.contract import WARM_UP
from lambdas.settings import (
    EXPOSED_HEADERS,
    AgentSettings,
    Clocks,
    CommitSettings,
    DoorSettings,
    Legs,
    OfferSettings,
    ReaderSettings,
    RecordSettings,
    RestoreSettings,
)
from lambdas.stream_run import STREAM_SECONDS
from stacks.definition import ITSELF, definition
from tests.conftest import Template, Templates

ROOT = Path(__file__).resolve().parent.parent
STATES = ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure")
READERS = ("ReadRun", "StreamRun")
DOOR = (*READERS, "ReadSession", "RemoveSession", "OfferUpload")
"""The functions that the API calls."""
AGENTS = ("RunClaude", "RunLeg")
FUNCTIONS = (*STATES, "RunLeg", *DOOR)
BUCKET, SESSIONS, RUNS, LOCKS, INDEX = "the bucket", "/session-*.zip", "/runs/*", "/locks/*", "/index/*"
LEDGER, CANCEL, EXTRACTS = "/ledger/*", "/runs/*/cancel", "/extracts/*"
UPLOADS, OFFERS, CONTENTS, USED = (f"/uploads/*{below}" for below in ("", "/offer.json", "/content", "/used"))
OWN_LOG = ["logs:CreateLogStream", "logs:PutLogEvents"]
TRACES = ["xray:PutTelemetryRecords", "xray:PutTraceSegments"]
BUS = "arn::events:::event-bus/default"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/0f9c4e0e-0000-4000-8000-000000000000"


def _of(template: Template, kind: str) -> dict[str, Any]:
    """The properties of every resource of a kind, by logical id."""
    return {name: r.get("Properties", {}) for name, r in template["Resources"].items() if r["Type"] == f"AWS::{kind}"}


def _one(template: Template, kind: str) -> dict[str, Any]:
    (properties,) = _of(template, kind).values()
    assert isinstance(properties, dict)
    return properties


def _named(template: Template, kind: str, part: str) -> dict[str, Any]:
    (properties,) = [properties for name, properties in _of(template, kind).items() if part in name]
    assert isinstance(properties, dict)
    return properties


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resource(resource: Any) -> str:
    """A statement's resource in short: the key pattern in the bucket, the name of what is referred to, or the text."""
    if isinstance(resource, str):
        return resource
    if "Fn::Join" in resource:
        parts = resource["Fn::Join"][1]
        return "".join(part if isinstance(part, str) else "" for part in parts)
    name = resource.get("Ref") or resource["Fn::GetAtt"][0]
    return BUCKET if name.startswith("StorageBucket") else re.sub(r"[0-9A-F]{8}[0-9a-f]*$", "", name)


def _statements(template: Template, role: str) -> list[dict[str, Any]]:
    """All that a role may do: one policy, and neither a managed nor an inline one beside it."""
    assert not {"ManagedPolicyArns", "Policies"} & _named(template, "IAM::Role", role).keys()
    statements = _named(template, "IAM::Policy", role)["PolicyDocument"]["Statement"]
    assert isinstance(statements, list)
    return statements


def _allowed(template: Template, role: str, conditional: int = 0) -> dict[str, list[str]]:
    """What a role may do, as sorted actions by resource, without condition; all but `conditional` statements are so."""
    statements = _statements(template, role)
    plain = [statement for statement in statements if "Condition" not in statement]
    assert len(statements) - len(plain) == conditional
    allowed: dict[str, list[str]] = {}
    for statement in plain:
        assert statement.keys() == {"Action", "Effect", "Resource"}
        assert statement["Effect"] == "Allow"
        for resource in _listed(statement["Resource"]):
            allowed.setdefault(_resource(resource), []).extend(_listed(statement["Action"]))
    return {resource: sorted(actions) for resource, actions in allowed.items()}


def _machine(template: Template, kind: str = "EXPRESS") -> dict[str, Any]:
    """The machine that answers POSTs, or the one of long runs."""
    (found,) = [m for m in _of(template, "StepFunctions::StateMachine").values() if m["StateMachineType"] == kind]
    assert isinstance(found, dict)
    return found


def _post(template: Template) -> dict[str, Any]:
    return _above(template, "POST")


def _above(template: Template, method: str) -> dict[str, Any]:
    """A method of /claude-code itself."""
    (found,) = [m for name, m in _of(template, "ApiGateway::Method").items() if f"claudecode{method}" in name]
    assert isinstance(found, dict)
    return found


def _of_runs(template: Template, below: str = "runsrunid") -> dict[str, dict[str, Any]]:
    """The methods below /claude-code/runs/{run_id}, by what follows that: `GET`, `eventsGET` and so on."""
    methods = _of(template, "ApiGateway::Method")
    return {re.sub(r"[0-9A-F]{8}$", "", name).partition(below)[2]: m for name, m in methods.items() if below in name}


def _of_sessions(template: Template) -> dict[str, dict[str, Any]]:
    """The same below /claude-code/sessions/{session_id}."""
    return _of_runs(template, "sessionssessionid")


def _request_template(template: Template) -> str:
    text = _post(template)["Integration"]["RequestTemplates"]["application/json"]
    return "".join(part if isinstance(part, str) else part["Ref"] for part in text["Fn::Join"][1])


# --- roles ---


@pytest.mark.parametrize("agent", AGENTS)
def test_run_claude_has_no_right_on_any_bucket(template: Template, agent: str) -> None:
    """A function that runs strangers' code, a leg's too, may read its secret, and write its own log and traces."""
    assert _allowed(template, f"Functions{agent}") == {
        f"Functions{agent}Logs": OWN_LOG,
        "*": TRACES,
        "ModelSecret": ["secretsmanager:GetSecretValue"],
    }


MODELS = ["anthropic.claude-opus-5-v1:0", "eu.anthropic.claude-sonnet-5-v1:0"]


@pytest.fixture
def bedrock(templates: Templates) -> Template:
    """The template with another provider."""
    return templates(provider="bedrock", bedrock_models=MODELS)


@pytest.mark.parametrize("agent", AGENTS)
def test_bedrock_adds_the_named_models_only(bedrock: Template, agent: str) -> None:
    """With Bedrock, RunClaude may invoke the configured models and profiles, and still nothing in S3."""
    allowed = _allowed(bedrock, f"Functions{agent}")
    streaming = ["bedrock:InvokeModelWithResponseStream"]
    invoke = {resource for resource, actions in allowed.items() if actions == streaming}
    assert {resource.rpartition("/")[2] for resource in invoke} == {*MODELS, "anthropic.claude-sonnet-5-v1:0"}
    assert not any(action.startswith("s3:") for actions in allowed.values() for action in actions)


def test_restore_session_reads_sessions_and_keeps_the_record(template: Template) -> None:
    """It cannot write a session. What it may read and write, it may also grant."""
    assert _allowed(template, "FunctionsRestoreSession") == {
        "FunctionsRestoreSessionLogs": OWN_LOG,
        "*": TRACES,
        SESSIONS: ["s3:GetObject", "s3:GetObjectVersion"],
        RUNS: ["s3:GetObject", "s3:PutObject"],
        LOCKS: ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
        INDEX: ["s3:DeleteObject", "s3:PutObject"],
        LEDGER: ["s3:DeleteObject", "s3:PutObject"],
        UPLOADS: ["s3:GetObject"],
        USED: ["s3:PutObject"],
        BUCKET: ["s3:ListBucket", "s3:ListBucketVersions"],
    }


def test_persist_session_alone_writes_sessions(template: Template) -> None:
    """It can write sessions but delete none, not even a version."""
    assert _allowed(template, "FunctionsPersistSession", conditional=1) == {
        "FunctionsPersistSessionLogs": OWN_LOG,
        "*": TRACES,
        SESSIONS: ["s3:AbortMultipartUpload", "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"],
        RUNS: ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"],
        LOCKS: ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
        INDEX: ["s3:DeleteObject", "s3:PutObject"],
        LEDGER: ["s3:DeleteObject", "s3:PutObject"],
        BUCKET: ["s3:ListBucket", "s3:ListBucketVersions"],
    }


def test_record_failure_touches_no_session(template: Template) -> None:
    """It writes the record and frees the lease."""
    assert _allowed(template, "FunctionsRecordFailure", conditional=1) == {
        "FunctionsRecordFailureLogs": OWN_LOG,
        "*": TRACES,
        RUNS: ["s3:GetObject", "s3:PutObject"],
        LOCKS: ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
        INDEX: ["s3:DeleteObject", "s3:PutObject"],
        LEDGER: ["s3:DeleteObject", "s3:PutObject"],
        BUCKET: ["s3:ListBucket"],
    }


def test_who_ends_a_run_may_tell_of_it_and_of_nothing_else(template: Template) -> None:
    """On the default bus of the account, in this project's name."""
    for role in ("FunctionsPersistSession", "FunctionsRecordFailure"):
        (statement,) = [s for s in _statements(template, role) if "Condition" in s]
        assert (statement["Effect"], statement["Action"]) == ("Allow", "events:PutEvents")
        assert _resource(statement["Resource"]) == BUS
        assert statement["Condition"] == {"ForAllValues:StringEquals": {"events:source": "claude-agent-workflow"}}


def test_the_readers_read_runs_and_write_the_mark_of_a_cancel_alone(template: Template) -> None:
    """Of sessions they only sign the link in an answer; they touch no lease, no index and no ledger."""
    both = {
        "*": TRACES,
        SESSIONS: ["s3:GetObject"],
        RUNS: ["s3:GetObject"],
        BUCKET: ["s3:ListBucket"],
    }
    assert _allowed(template, "FunctionsReadRun") == both | {
        "FunctionsReadRunLogs": OWN_LOG,
        CANCEL: ["s3:PutObject"],
    }
    assert _allowed(template, "FunctionsStreamRun") == both | {"FunctionsStreamRunLogs": OWN_LOG}


def test_the_reader_of_sessions_reads_them_and_writes_extracts_alone(template: Template) -> None:
    """No run, no lease, no index, no ledger; and nothing that it could delete."""
    assert _allowed(template, "FunctionsReadSession") == {
        "FunctionsReadSessionLogs": OWN_LOG,
        "*": TRACES,
        SESSIONS: ["s3:GetObject", "s3:GetObjectVersion"],
        EXTRACTS: ["s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject"],
        BUCKET: ["s3:ListBucket", "s3:ListBucketVersions"],
    }


def test_who_removes_sessions_alone_may_delete_them(template: Template) -> None:
    """Every version of what is a session's, under its lease. Of the ledger a day's stays: it can add to what was spent,
    and take nothing from it. It writes nothing else."""
    removes = ["s3:DeleteObject", "s3:DeleteObjectVersion"]
    reads = ["s3:GetObject", "s3:GetObjectVersion"]
    assert _allowed(template, "FunctionsRemoveSession") == {
        "FunctionsRemoveSessionLogs": OWN_LOG,
        "*": TRACES,
        SESSIONS: removes + reads,
        RUNS: removes + reads,
        UPLOADS: [*removes, "s3:GetObject"],
        INDEX: removes,
        "/ledger/sessions/*": removes,
        "/ledger/*~spent~*": ["s3:PutObject"],
        EXTRACTS: removes,
        LOCKS: [*removes, "s3:GetObject", "s3:PutObject"],
        BUCKET: ["s3:ListBucket", "s3:ListBucketVersions"],
    }
    for other in {*FUNCTIONS} - {"RemoveSession"}:
        assert "s3:DeleteObjectVersion" not in json.dumps(_statements(template, f"Functions{other}"))


def test_who_offers_an_upload_can_read_none(template: Template) -> None:
    """It writes the offer, and signs the right to write what is uploaded; nothing else of the bucket is its."""
    assert _allowed(template, "FunctionsOfferUpload") == {
        "FunctionsOfferUploadLogs": OWN_LOG,
        "*": TRACES,
        OFFERS: ["s3:PutObject"],
        CONTENTS: ["s3:PutObject"],
    }


RECORD_KEEPERS = {"RestoreSession", "PersistSession", "RecordFailure"}


@pytest.mark.parametrize(
    ("role", "called"),
    [("MachineRole", {"RunClaude", "ReadRun"}), ("MachineLongRole", {"RunLeg", "ReadRun"})],
)
def test_a_machine_invokes_every_version_of_its_five_functions(template: Template, role: str, called: set[str]) -> None:
    """Its role names no version, so that no deploy changes it; beside that it delivers logs and traces.

    The express machine calls no leg, and the long one nothing that has to be done within a POST's time.
    """
    everywhere = _allowed(template, role)["*"]
    invoke = {"Action": "lambda:InvokeFunction", "Effect": "Allow"}
    named = {re.sub("^Functions|[0-9A-F]{8}$", "", name): name for name in _of(template, "Lambda::Function")}
    functions = [named[state] for state in RECORD_KEEPERS | called]
    statements = [s for s in _statements(template, role) if s["Action"] == "lambda:InvokeFunction"]
    wanted = [invoke | {"Resource": {"Fn::Join": ["", [{"Fn::GetAtt": [name, "Arn"]}, ":*"]]}} for name in functions]
    assert sorted(statements, key=json.dumps) == sorted(wanted, key=json.dumps)
    assert everywhere == [
        "logs:CreateLogDelivery",
        "logs:DeleteLogDelivery",
        "logs:DescribeLogGroups",
        "logs:DescribeResourcePolicies",
        "logs:GetLogDelivery",
        "logs:ListLogDeliveries",
        "logs:PutResourcePolicy",
        "logs:UpdateLogDelivery",
        "xray:GetSamplingRules",
        "xray:GetSamplingTargets",
        "xray:PutTelemetryRecords",
        "xray:PutTraceSegments",
    ]


def test_the_express_machine_alone_starts_executions_of_the_long_one(template: Template) -> None:
    """One action on one machine, and nothing else of Step Functions; the long machine starts none, not of itself."""
    express, long = (_allowed(template, role) for role in ("MachineRole", "MachineLongRole"))
    assert express.keys() - {"*", ":*"} == {"MachineLong"}
    assert express["MachineLong"] == ["states:StartExecution"]
    assert long.keys() == {"*", ":*"}
    assert set(express[":*"] + long[":*"]) == {"lambda:InvokeFunction"}


def test_the_door_starts_executions_and_asks_the_readers(template: Template) -> None:
    """API Gateway's role knows one action on one machine, and one on the functions that requests are handed to."""
    functions = {f"Functions{name}": ["lambda:InvokeFunction"] for name in DOOR}
    assert _allowed(template, "DoorRole") == {"Machine": ["states:StartSyncExecution"]} | functions


def test_every_role_is_asserted_here(template: Template) -> None:
    """A new role needs a test of its own."""
    known = {"MachineRole", "MachineLongRole", "DoorRole", *(f"Functions{name}Role" for name in FUNCTIONS)}
    assert {re.sub(r"[0-9A-F]{8}$", "", name) for name in _of(template, "IAM::Role")} == known


def test_a_role_is_taken_by_its_service_alone(template: Template) -> None:
    """Functions' roles by Lambda, the machines' by Step Functions, the door's by API Gateway; nobody else's."""
    services = {"Functions": "lambda", "Machine": "states", "DoorRole": "apigateway"}
    for name, role in _of(template, "IAM::Role").items():
        (service,) = [service for part, service in services.items() if name.startswith(part)]
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement == {
            "Action": "sts:AssumeRole",
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
        }


def test_nothing_else_lets_anybody_in(template: Template) -> None:
    """No function, secret or API has a policy of its own that would allow what no role says, but for the warm-up."""
    allowing = ("Lambda::Url", "SecretsManager::ResourcePolicy", "Logs::ResourcePolicy")
    assert not [kind for kind in allowing if _of(template, kind)]
    (rule,) = _of(template, "Events::Rule")
    assert _one(template, "Lambda::Permission") == {
        "Action": "lambda:InvokeFunction",
        "FunctionName": _run_claude(template),
        "Principal": "events.amazonaws.com",
        "SourceArn": {"Fn::GetAtt": [rule, "Arn"]},
    }
    assert "Policy" not in _one(template, "ApiGateway::RestApi")


# --- the deployment's own key and network ---


@pytest.fixture
def guarded(templates: Templates) -> Template:
    """The template with a KMS key, and RunClaude in a VPC."""
    return templates(kms_key_arn=KEY, vpc="vpc-0a1b2c3d", subnets=["subnet-0a1b2c3d", "subnet-4e5f6a7b"])


def test_the_key_of_a_deployment_encrypts_bucket_and_secret(guarded: Template) -> None:
    """With `kms_key_arn` whatever is stored is encrypted with it, the bucket by a key of its own below it."""
    (rule,) = _one(guarded, "S3::Bucket")["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule == {
        "BucketKeyEnabled": True,
        "ServerSideEncryptionByDefault": {"KMSMasterKeyID": KEY, "SSEAlgorithm": "aws:kms"},
    }
    assert _one(guarded, "SecretsManager::Secret")["KmsKeyId"] == KEY
    assert not _of(guarded, "KMS::Key")


def test_each_role_uses_the_key_for_its_own_service_only(guarded: Template, template: Template) -> None:
    """Who holds rights on objects (for the grants that it signs, too) encrypts through S3; RunClaude reads its secret.

    Everything else that they may do is as without the key.
    """
    told = {"PersistSession", "RecordFailure"}
    for state in ("RestoreSession", "PersistSession", "RecordFailure", *DOOR):
        role, others = f"Functions{state}", int(state in told)
        (statement,) = [s for s in _statements(guarded, role) if "kms:ViaService" in json.dumps(s)]
        assert (statement["Effect"], statement["Resource"]) == ("Allow", KEY)
        assert statement["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
        assert _via(statement) == "s3..amazonaws.com"
        assert _allowed(guarded, role, conditional=others + 1) == _allowed(template, role, conditional=others)
    for agent in AGENTS:
        (statement,) = [s for s in _statements(guarded, f"Functions{agent}") if "kms:" in json.dumps(s)]
        assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Allow", "kms:Decrypt", KEY)
        assert _via(statement) == "secretsmanager..amazonaws.com"
        (context,) = [value for name, value in statement["Condition"]["StringEquals"].items() if "Context" in name]
        assert _resource(context) == "ModelSecret"
    for role in ("MachineRole", "MachineLongRole", "DoorRole"):
        assert "kms:" not in json.dumps(_statements(guarded, role))


def _via(statement: dict[str, Any]) -> str:
    """The service of a statement's condition, without its region."""
    return _resource(statement["Condition"]["StringEquals"]["kms:ViaService"])


def test_run_claude_alone_is_put_into_the_network(guarded: Template) -> None:
    """And its legs. By ids, so that no account is asked; without a security group it gets one that lets nothing in."""
    functions = _of(guarded, "Lambda::Function")
    placed = {name: function["VpcConfig"] for name, function in functions.items() if "VpcConfig" in function}
    assert {re.sub("^Functions|[0-9A-F]{8}$", "", name) for name in placed} == set(AGENTS)
    ((group, properties),) = _of(guarded, "EC2::SecurityGroup").items()
    for config in placed.values():
        assert config["SubnetIds"] == ["subnet-0a1b2c3d", "subnet-4e5f6a7b"]
        assert config["SecurityGroupIds"] == [{"Fn::GetAtt": [group, "GroupId"]}]
    assert properties["VpcId"] == "vpc-0a1b2c3d"
    assert "SecurityGroupIngress" not in properties


@pytest.mark.parametrize("agent", AGENTS)
def test_code_cannot_use_what_lambda_needs_for_the_network(guarded: Template, template: Template, agent: str) -> None:
    """The role has the rights on network interfaces that Lambda asks for; to the function's code they are denied."""
    role = f"Functions{agent}"
    allowed = _allowed(guarded, role, conditional=2)
    interfaces = sorted(set(allowed["*"]) - set(TRACES))
    assert interfaces == [
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:UnassignPrivateIpAddresses",
    ]
    assert allowed | {"*": TRACES} == _allowed(template, role)
    (denied,) = [s for s in _statements(guarded, role) if s["Effect"] == "Deny"]
    assert (sorted(denied["Action"]), denied["Resource"]) == (interfaces, "*")
    assert denied["Condition"].keys() == {"ArnLike"}
    assert _resource(denied["Condition"]["ArnLike"]["lambda:SourceFunctionArn"]).endswith(":function:*")


REPOSITORY = {"host": "github.com", "match": ["acme/*"], "access": "push", "secret": "GIT_TOKEN"}


@pytest.fixture
def otherwise(templates: Templates) -> Template:
    """The template where all that is no choice of provider, key or door is chosen otherwise."""
    return templates(
        stack_name="Otherwise", integration_timeout=120, max_run_seconds=7200, max_concurrent_runs=3,
        warm_runs=2, memory_mb=3008, architecture="arm64", cors_origin="https://app.example", retain_data=False,
        session_expiry_days=90,
        cloud_watch_role=True, callers={"web-app": [1, 2], "nightly": [4]},
        vpc="vpc-0a1b2c3d", subnets=["subnet-0a1b2c3d"], security_group="sg-0a1b2c3d",
        repositories=[REPOSITORY], protected_branches=["trunk"], git_identity={"name": "C", "email": "c@d"},
        egress=["pypi.org"], registries={"pip": "https://pypi.org/simple"}, models=["claude-sonnet-5-5"],
    )  # fmt: skip


def test_a_security_group_of_the_deployments_is_taken_as_it_is(otherwise: Template) -> None:
    """Then the stack makes none."""
    for agent in AGENTS:
        config = _named(otherwise, "Lambda::Function", f"Functions{agent}")["VpcConfig"]
        assert config == {"SecurityGroupIds": ["sg-0a1b2c3d"], "SubnetIds": ["subnet-0a1b2c3d"]}
    assert not _of(otherwise, "EC2::SecurityGroup")


# --- functions ---


def test_functions_find_their_settings(template: Template) -> None:
    """The environment is what settings.py reads: nothing is missing, malformed or left over."""
    from stacks.functions import GIVING_BACK

    restore = {"S3_BUCKET_NAME", "INTEGRATION_TIMEOUT", "MAX_TURNS", "ALLOWED_TOOLS", "STRICT"} | {
        *("MAX_BUDGET_USD", "MAX_SESSION_USD", "MAX_CALLER_USD_PER_DAY", "MAX_USD_PER_DAY"),
        *("MAX_RUN_SECONDS", "LEG_GATE_SECONDS", "LEG_LIMIT_SECONDS"),
    }
    for state in (*STATES, "RunLeg"):
        environment = _environment(template, state)
        texts = {name: value if isinstance(value, str) else "a reference" for name, value in environment.items()}
        assert {name for name in texts if name.startswith("MALLOC")} == (
            GIVING_BACK.keys() if state in (*AGENTS, "PersistSession") else set()
        )
        texts = {name: value for name, value in texts.items() if name not in GIVING_BACK}
        if state in AGENTS:
            agent = AgentSettings.read(texts)
            assert environment == _environment(template, "RunClaude")
            assert not restore & texts.keys()
        elif state == "PersistSession":
            commit = CommitSettings.read(texts)
            assert (commit.max_session_bytes, commit.max_dead_share) == (1024 * 1024 * 1024, 0.2)
            assert texts.keys() == {"S3_BUCKET_NAME", "MAX_SESSION_BYTES", "MAX_SESSION_FILES", "MAX_DEAD_SHARE"}
        elif state == "RecordFailure":
            assert RecordSettings.read(texts).bucket
            assert texts.keys() == {"S3_BUCKET_NAME"}
        else:
            settings = RestoreSettings.read(texts)
            assert (settings.clocks, settings.legs) == (Clocks(29), Legs(3600))
            assert texts.keys() == restore | {"PRICES", "REPOSITORIES", "MODELS"}
    assert (agent.max_session_bytes, agent.max_session_files) == (commit.max_session_bytes, commit.max_session_files)


def test_repositories_reach_the_functions_as_they_are_set(otherwise: Template) -> None:
    """RestoreSession, which refuses others, and those whose proxies lead to them."""
    texts = {state: _environment(otherwise, state) for state in ("RestoreSession", *AGENTS)}
    assert [json.loads(each["REPOSITORIES"]) for each in texts.values()] == [[REPOSITORY]] * 3
    for agent in AGENTS:
        assert json.loads(texts[agent]["PROTECTED_BRANCHES"]) == ["trunk"]
        assert json.loads(texts[agent]["GIT_IDENTITY"]) == {"name": "C", "email": "c@d"}


def test_what_goes_out_reaches_the_functions_as_it_is_set(otherwise: Template) -> None:
    """RestoreSession, which refuses another model, and those whose proxies let through what is named."""
    assert json.loads(_environment(otherwise, "RestoreSession")["MODELS"]) == ["claude-sonnet-5-5"]
    for agent in AGENTS:
        named = (json.loads(_environment(otherwise, agent)[name]) for name in ("EGRESS", "REGISTRIES", "MODELS"))
        assert list(named) == [["pypi.org"], {"pip": "https://pypi.org/simple"}, ["claude-sonnet-5-5"]]


def _environment(template: Template, function: str) -> dict[str, Any]:
    found = _named(template, "Lambda::Function", f"Functions{function}")["Environment"]["Variables"]
    assert isinstance(found, dict)
    return found


def test_the_readers_find_their_settings(otherwise: Template, templates: Templates) -> None:
    """Who calls by which key, how long the gateway waits, and for how long an attempt can be at work."""
    for reader in READERS:
        texts = {name: _worked_out(value) for name, value in _environment(otherwise, reader).items()}
        assert texts.pop("AWS_LAMBDA_EXEC_WRAPPER", None) == (
            "/var/task/lambdas/streaming.sh" if reader == "StreamRun" else None
        )
        settings = ReaderSettings.read(texts)
        assert len(texts) == len(fields(ReaderSettings))
        names = {key: name for name, key in _keys_by_description(otherwise).items()}
        assert {names[key]: caller for key, caller in settings.callers.items()} == {
            "Otherwise: caller web-app, generation 1": "web-app",
            "Otherwise: caller web-app, generation 2": "web-app",
            "Otherwise: caller nightly, generation 4": "nightly",
        }
        assert (settings.auth, settings.cors_origin, settings.wait) == ("api-key", "https://app.example", 115)
        assert (settings.lease, settings.long_lease) == (124, Legs(7200).lease)
    for name in ("ReadSession", "RemoveSession"):
        texts = {name: _worked_out(value) for name, value in _environment(otherwise, name).items()}
        assert vars(DoorSettings.read(texts)).items() <= vars(settings).items()
    assert "AWS_LAMBDA_EXEC_WRAPPER" in _environment(otherwise, "ReadSession")
    for auth in ("iam", "none"):
        found = _environment(templates(auth=auth), "ReadRun")
        settings = ReaderSettings.read({name: _worked_out(value) for name, value in found.items()})
        assert (settings.auth, settings.callers) == (auth, {})


def _worked_out(value: Any) -> str:
    """A variable as the functions get it, with logical ids for what is referred to."""
    if isinstance(value, str):
        return value
    return value["Ref"] if "Ref" in value else "".join(map(_worked_out, value["Fn::Join"][1]))


def _keys_by_description(template: Template) -> dict[str, str]:
    return {key["Description"]: name for name, key in _of(template, "ApiGateway::ApiKey").items()}


def test_with_bedrock_run_claude_knows_its_model(bedrock: Template) -> None:
    """The first of the models is the one for runs that name none."""
    for agent in AGENTS:
        environment = _environment(bedrock, agent)
        assert environment["MODEL_PROVIDER"] == "bedrock"
        assert environment["BEDROCK_MODEL"] == "anthropic.claude-opus-5-v1:0"


def test_functions_end_before_their_states(otherwise: Template) -> None:
    """Each function's timeout is that of the clocks, for another integration timeout than the default, too."""
    clocks, legs = Clocks(120), Legs(7200)
    functions = {name: _named(otherwise, "Lambda::Function", f"Functions{name}") for name in FUNCTIONS}
    assert {state: function["Timeout"] for state, function in functions.items()} == {
        "RestoreSession": clocks.restore_function,
        "RunClaude": clocks.run_function,
        "RunLeg": legs.function,
        "PersistSession": clocks.persist_function,
        "RecordFailure": clocks.record_function,
        "ReadRun": 120,
        "StreamRun": STREAM_SECONDS + 30,
        "ReadSession": STREAM_SECONDS + 30,
        "RemoveSession": 120,
        "OfferUpload": 10,
    }
    assert _post(otherwise)["Integration"]["TimeoutInMillis"] == 120_000
    express, long = (json.loads(_machine(otherwise, kind)["DefinitionString"]) for kind in ("EXPRESS", "STANDARD"))
    assert (express["TimeoutSeconds"], express["States"]["RunClaude"]["TimeoutSeconds"]) == (119, clocks.run_state)
    assert (long["TimeoutSeconds"], long["States"]["RunClaude"]["TimeoutSeconds"]) == (legs.machine, legs.state)
    assert all(functions[agent]["ReservedConcurrentExecutions"] == 3 for agent in AGENTS)
    assert all(function["Architectures"] == ["arm64"] for function in functions.values())


def test_run_claude_is_an_image_of_two_gigabytes(template: Template) -> None:
    """Memory for the CLI, and a /tmp that the session cap fits into; nothing of it is kept warm. Legs have the same."""
    run, leg = (_named(template, "Lambda::Function", f"Functions{agent}") for agent in AGENTS)
    assert (run["PackageType"], run["MemorySize"]) == ("Image", 2048)
    assert run["EphemeralStorage"]["Size"] >= 3 * 1024
    assert {name for name in run.keys() | leg.keys() if run.get(name) != leg.get(name)} == {
        *("Description", "LoggingConfig", "Role", "Timeout"),
    }
    assert "ProvisionedConcurrency" not in json.dumps(template)


def _run_claude(template: Template) -> Any:
    """What the express machine calls for RunClaude."""
    return _machine(template)["DefinitionSubstitutions"]["RunClaude"]


def test_what_is_kept_warm_moves_on_with_a_deploy(otherwise: Template) -> None:
    """An alias has it, for a version that is retained would go on costing; what is called is that alias.

    Legs are not kept warm: nobody waits for them at the gateway.
    """
    ((name, alias),) = _of(otherwise, "Lambda::Alias").items()
    assert alias["ProvisionedConcurrencyConfig"] == {"ProvisionedConcurrentExecutions": 2}
    version = _of(otherwise, "Lambda::Version")[alias["FunctionVersion"]["Fn::GetAtt"][0]]
    assert version == {"FunctionName": alias["FunctionName"]}
    assert alias["FunctionName"]["Ref"].startswith("FunctionsRunClaude")
    assert _run_claude(otherwise) == {"Ref": name}
    assert _named(otherwise, "Lambda::Function", "FunctionsRunClaude")["MemorySize"] == 3008
    (target,) = _one(otherwise, "Events::Rule")["Targets"]
    assert target["Arn"] == _one(otherwise, "Lambda::Permission")["FunctionName"] == {"Ref": name}
    assert name in deploy.fit(otherwise, {})["Resources"]


def test_run_claude_is_warmed_up_when_a_deploy_is_done(template: Template) -> None:
    """By this stack's own event, and as RunClaude is told apart from a task."""
    rule = _one(template, "Events::Rule")
    (target,) = rule["Targets"]
    assert (target["Arn"], json.loads(target["Input"])) == (_run_claude(template), WARM_UP)
    assert rule["State"] == "ENABLED"
    assert rule["EventPattern"] == {
        "source": ["aws.cloudformation"],
        "detail-type": ["CloudFormation Stack Status Change"],
        "detail": {
            "stack-id": [{"Ref": "AWS::StackId"}],
            "status-details": {"status": ["CREATE_COMPLETE", "UPDATE_COMPLETE"]},
        },
    }


def test_functions_log_into_groups_that_expire(template: Template) -> None:
    """Every log group has a retention, and no function falls back on one of its own making."""
    assert all(group["RetentionInDays"] == 30 for group in _of(template, "Logs::LogGroup").values())
    assert all("LoggingConfig" in function for function in _of(template, "Lambda::Function").values())
    assert all(f["TracingConfig"] == {"Mode": "Active"} for f in _of(template, "Lambda::Function").values())


def test_there_are_no_other_functions(template: Template) -> None:
    """No construct brought one of its own along."""
    names = {re.sub("^Functions|[0-9A-F]{8}$", "", name) for name in _of(template, "Lambda::Function")}
    assert names == set(FUNCTIONS)
    assert not [r["Type"] for r in template["Resources"].values() if r["Type"].startswith("Custom::")]


def test_the_zip_holds_the_record_keepers_only(synthesized: Any) -> None:
    """All functions but RunClaude share one zip without the agent; the image's context are lambdas/ and agent/."""
    zipped, image = sorted(
        (
            {str(path.relative_to(asset)) for path in asset.rglob("*") if path.is_file()}
            for asset in _assets(synthesized())
        ),
        key=lambda files: "lambdas/Dockerfile" in files,
    )
    assert {"lambdas/__init__.py", "lambdas/restore_session.py", "lambdas/bucket/objects.py"} <= zipped
    assert not [
        name
        for name in zipped - {"lambdas/prices.toml", "lambdas/streaming.sh"}
        if not name.endswith(".py") or "agent" in name or "run_claude" in name
    ]
    assert {"lambdas/Dockerfile", "lambdas/requirements.txt", "lambdas/agent/__init__.py"} <= image
    assert all(name.startswith("lambdas/") for name in zipped)
    assert all(name.startswith(("lambdas/", "agent/")) and "__pycache__" not in name for name in zipped | image)


def test_the_record_keepers_need_no_package_but_botocore() -> None:
    """Lambda's Python brings it; what packs and unpacks sessions is RunClaude's alone."""
    program = """
import sys
for name in ("deflate", "zlib_ng", "claude_agent_sdk", "mcp"):
    sys.modules[name] = None
import lambdas.persist_session, lambdas.restore_session, lambdas.record_failure, lambdas.read_run, lambdas.stream_run
import lambdas.read_session, lambdas.remove_session, lambdas.offer_upload
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _assets(folder: Path) -> list[Path]:
    return [path for path in folder.glob("asset.*") if path.is_dir()]


# --- machines ---


def test_the_machines_show_every_state(template: Template) -> None:
    """One express and one standard, logged at level ALL with their data, traced: the console sees every run."""
    assert len(_of(template, "StepFunctions::StateMachine")) == 2
    for machine in (_machine(template, "EXPRESS"), _machine(template, "STANDARD")):
        assert machine["TracingConfiguration"] == {"Enabled": True}
        logging = machine["LoggingConfiguration"]
        assert (logging["Level"], logging["IncludeExecutionData"]) == ("ALL", True)
    assert _named(template, "Logs::LogGroup", "MachineLogs")["LogGroupName"].startswith("/aws/vendedlogs/states/")


def test_the_definition_is_inline_and_calls_published_versions(template: Template) -> None:
    """Linters see the definition, and a deploy in mid-run mixes nothing: old versions stay.

    One text is both machines'. A leg's function has RunClaude's place in the long one, which calls itself by its name.
    """
    express, long = _machine(template), _machine(template, "STANDARD")
    assert express["DefinitionString"] == definition(Clocks(29))
    assert long["DefinitionString"] == definition(Clocks(29), Legs(3600))
    versions = _of(template, "Lambda::Version")
    used = set()
    for machine, itself in ((express, {"Ref": _id(template, long)}), (long, ITSELF)):
        called = dict(machine["DefinitionSubstitutions"])
        assert called.pop("LongMachine") == itself
        assert called.keys() == {*STATES, "ReadRun"}
        for state, version in called.items():
            name = "RunLeg" if state == "RunClaude" and machine is long else state
            assert versions[version["Ref"]]["FunctionName"]["Ref"].startswith(f"Functions{name}")
            assert template["Resources"][version["Ref"]]["DeletionPolicy"] == "Retain"
            used.add(version["Ref"])
    assert used == versions.keys()


def _id(template: Template, properties: dict[str, Any]) -> str:
    """Of the resource with these properties."""
    resources: dict[str, Any] = template["Resources"]
    return next(name for name, resource in resources.items() if resource.get("Properties") is properties)


@pytest.mark.parametrize("name", ["template", "guarded", "bedrock", "otherwise"])
def test_nothing_waits_for_itself(request: pytest.FixtureRequest, name: str) -> None:
    """CloudFormation refuses circular references: machines name functions, these the API's keys, the API both."""
    resources = request.getfixturevalue(name)["Resources"]
    needs = {name: set(_references(resource)) & resources.keys() for name, resource in resources.items()}
    while free := {name for name, needed in needs.items() if not needed & needs.keys()}:
        needs = {name: needed for name, needed in needs.items() if name not in free}
    assert not needs


def _references(value: Any) -> Iterator[str]:
    """The logical ids that a resource names, and more words; CloudFormation makes those first."""
    match value:
        case {"Ref": str() as name} | {"Fn::GetAtt": [str() as name, *_]}:
            yield name
        case {"Fn::Sub": str() as text} | {"Fn::Sub": [str() as text, *_]}:
            yield from re.findall(r"\$\{(\w+)", text)
        case {"DependsOn": str() as name, **others}:
            yield name
            yield from _references(others)
        case {"DependsOn": [*names], **others}:
            yield from names
            yield from _references(others)
        case dict():
            for item in value.values():
                yield from _references(item)
        case list():
            for item in value:
                yield from _references(item)


# --- bucket ---


def test_the_bucket_is_private_versioned_and_kept(template: Template) -> None:
    """Nothing of it is public, nothing travels in clear, and deleting the stack keeps it."""
    bucket = _one(template, "S3::Bucket")
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert "BucketEncryption" in bucket
    (statement,) = _one(template, "S3::BucketPolicy")["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Deny", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    (resource,) = [r for r in template["Resources"].values() if r["Type"] == "AWS::S3::Bucket"]
    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"


def test_current_sessions_never_expire(template: Template) -> None:
    """Uploads and extracts go after a day, runs and leases after 30, replaced session versions no sooner; sessions
    never."""
    rules = {rule["Id"]: rule for rule in _one(template, "S3::Bucket")["LifecycleConfiguration"]["Rules"]}
    expiring = {rule.get("Prefix"): rule["ExpirationInDays"] for rule in rules.values() if "ExpirationInDays" in rule}
    kept = {"runs/": 30, "index/": 30, "locks/": 30, "ledger/": 30}
    assert expiring == kept | {"extracts/": 1, "uploads/": 1}
    assert rules["replaced-sessions"]["Prefix"] == "session-"
    assert rules["replaced-sessions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert rules["leftovers"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}


def test_sessions_expire_where_the_deployment_says_so(otherwise: Template) -> None:
    """So many days after their last turn; what is replaced stays as long as ever."""
    rules = {rule["Id"]: rule for rule in _one(otherwise, "S3::Bucket")["LifecycleConfiguration"]["Rules"]}
    assert rules["replaced-sessions"]["ExpirationInDays"] == 90
    assert rules["replaced-sessions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}


def test_the_bucket_answers_the_same_origin_as_the_api(otherwise: Template) -> None:
    """One context value is the origin of every answer, of the gateway's own and of the bucket."""
    (rule,) = _one(otherwise, "S3::Bucket")["CorsConfiguration"]["CorsRules"]
    assert (rule["AllowedMethods"], rule["AllowedOrigins"]) == (["GET", "PUT"], ["https://app.example"])
    origins = re.findall(r"header\.Access-Control-Allow-Origin\": \"('[^']*')\"", json.dumps(otherwise))
    assert set(origins) == {"'https://app.example'"}


# --- door ---


def test_the_api_is_regional(template: Template) -> None:
    """An edge-optimized API could never wait longer than 29 seconds."""
    assert _one(template, "ApiGateway::RestApi")["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    assert _post(template)["Integration"]["TimeoutInMillis"] == 29_000


def test_post_wants_a_key_and_a_json_object(template: Template) -> None:
    """Without a key, or with a body of another kind, no execution starts."""
    post = _post(template)
    assert post["ApiKeyRequired"] is True
    assert post["Integration"]["PassthroughBehavior"] == "NEVER"
    assert post["Integration"]["RequestTemplates"].keys() == {"application/json"}
    validator = _of(template, "ApiGateway::RequestValidator")[post["RequestValidatorId"]["Ref"]]
    assert validator["ValidateRequestBody"] is True
    assert _one(template, "ApiGateway::Model")["Schema"]["type"] == "object"


def test_iam_and_none_open_the_door_otherwise(templates: Templates) -> None:
    """`iam` wants signed requests, `none` nothing; neither makes keys, and callers come from `$context` still."""
    for auth, kind, caller in (("iam", "AWS_IAM", "$context.identity.accountId:"), ("none", "NONE", '"public"')):
        template = templates(auth=auth)
        post = _post(template)
        assert (post["AuthorizationType"], post.get("ApiKeyRequired", False)) == (kind, False)
        assert not _of(template, "ApiGateway::ApiKey")
        assert "ApiKeyId" not in template["Outputs"]
        assert caller in _request_template(template)
        for method in ("OPTIONS", "ANY"):
            assert _above(template, method)["AuthorizationType"] == "NONE"
        for name, of_run in (_of_runs(template) | _of_sessions(template)).items():
            assert of_run["AuthorizationType"] == ("NONE" if "OPTIONS" in name else kind)
            assert not of_run.get("ApiKeyRequired", False)


def test_each_key_leads_to_its_caller(otherwise: Template) -> None:
    """Two generations of a key are one caller; outputs name each, and the first caller's newest is ApiKeyId."""
    keys = _keys_by_description(otherwise)
    outputs = {name: o["Value"]["Ref"] for name, o in otherwise["Outputs"].items() if name.startswith("ApiKeyId")}
    assert outputs == {
        "ApiKeyId": keys["Otherwise: caller web-app, generation 2"],
        "ApiKeyIdWebApp1": keys["Otherwise: caller web-app, generation 1"],
        "ApiKeyIdNightly4": keys["Otherwise: caller nightly, generation 4"],
    }
    rule = r'apiKeyId == "(\w+)"\)#set\(\$caller = "([\w-]+)"\)'
    pairs = set(re.findall(rule, _request_template(otherwise)))
    assert pairs == {(name, description.split()[2].rstrip(",")) for description, name in keys.items()}
    planned = {planned["KeyId"]["Ref"] for planned in _of(otherwise, "ApiGateway::UsagePlanKey").values()}
    assert planned == set(keys.values())


def test_callers_are_capped(template: Template) -> None:
    """Rate and burst hold for a key and for the stage, the requests of a day for a key."""
    plan = _one(template, "ApiGateway::UsagePlan")
    assert plan["Throttle"] == {"RateLimit": 5, "BurstLimit": 10}
    assert plan["Quota"] == {"Limit": 500, "Period": "DAY"}
    (settings,) = _one(template, "ApiGateway::Stage")["MethodSettings"]
    assert (settings["ThrottlingRateLimit"], settings["ThrottlingBurstLimit"]) == (5, 10)
    assert settings["DataTraceEnabled"] is False


def test_the_access_log_names_callers_and_quotes_nothing(template: Template) -> None:
    """Who, from where, with what result: `$context` only, no header and no body."""
    logged = json.loads(_one(template, "ApiGateway::Stage")["AccessLogSetting"]["Format"])
    wanted = ("identity.apiKeyId", "identity.userArn", "identity.sourceIp", "status", "requestId", "extendedRequestId")
    assert {f"$context.{name}" for name in wanted} <= set(logged.values())
    assert all(value.startswith("$context.") for value in logged.values())


def test_the_accounts_logging_role_is_left_alone(template: Template, otherwise: Template) -> None:
    """The role is the account's, not the stack's: it is set only when asked for."""
    assert not _of(template, "ApiGateway::Account")
    assert _of(otherwise, "ApiGateway::Account")


def test_every_answer_carries_the_cors_header(template: Template) -> None:
    """Every integration's answer and every one of the gateway's own, else a browser shows none of them."""
    for method in _of(template, "ApiGateway::Method").values():
        for answer in method["Integration"].get("IntegrationResponses", []):
            assert answer["ResponseParameters"]["method.response.header.Access-Control-Allow-Origin"] == "'*'"
    for answer in _of(template, "ApiGateway::GatewayResponse").values():
        assert answer["ResponseParameters"]["gatewayresponse.header.Access-Control-Allow-Origin"] == "'*'"
        exposed = answer["ResponseParameters"]["gatewayresponse.header.Access-Control-Expose-Headers"]
        assert exposed == f"'{EXPOSED_HEADERS}'"


def test_each_integration_response_has_a_status_of_its_own(template: Template) -> None:
    """API Gateway keeps one for each status, and only where the method declares it."""
    for method in _of(template, "ApiGateway::Method").values():
        statuses = [answer["StatusCode"] for answer in method["Integration"].get("IntegrationResponses", [])]
        assert sorted(statuses) == sorted(response["StatusCode"] for response in method.get("MethodResponses", []))
        assert len(set(statuses)) == len(statuses)


def test_browsers_may_send_what_callers_need(template: Template) -> None:
    """OPTIONS needs no key and allows what the path takes, with the headers of the contract."""
    runs = _of_runs(template)
    allows = [(_above(template, "OPTIONS"), "POST"), (runs["OPTIONS"], "GET, DELETE"), (runs["eventsOPTIONS"], "GET")]
    for options, methods in allows:
        assert not options.get("ApiKeyRequired")
        (answer,) = options["Integration"]["IntegrationResponses"]
        assert answer["StatusCode"] == "204"
        said = {name.rpartition(".")[2]: value.strip("'") for name, value in answer["ResponseParameters"].items()}
        assert said["Access-Control-Allow-Methods"] == methods
        allowed = set(said["Access-Control-Allow-Headers"].split(","))
        assert {"content-type", "x-api-key", "authorization", "idempotency-key", "prefer", "last-event-id"} <= allowed
        assert {"x-amz-date", "x-amz-security-token"} <= allowed


def test_runs_are_handed_to_their_readers(template: Template) -> None:
    """With the same lock as POST, as they came; the events go out as they are made, for longer than a stream lasts."""
    runs = _of_runs(template)
    assert runs.keys() == {"GET", "DELETE", "ANY", "OPTIONS", "eventsGET", "eventsANY", "eventsOPTIONS"}
    for name, method in runs.items():
        if "OPTIONS" in name:
            continue
        integration, streams = method["Integration"], name == "eventsGET"
        assert method["ApiKeyRequired"] is True
        assert integration["Type"] == "AWS_PROXY"
        assert integration["Credentials"]["Fn::GetAtt"][0].startswith("DoorRole")
        assert integration.get("ResponseTransferMode") == ("STREAM" if streams else None)
        *_, path, function, action = integration["Uri"]["Fn::Join"][1]
        assert function["Fn::GetAtt"][0].startswith("FunctionsStreamRun" if streams else "FunctionsReadRun")
        assert (path, action) == (
            (":lambda:path/2021-11-15/functions/", "/response-streaming-invocations")
            if streams
            else (":lambda:path/2015-03-31/functions/", "/invocations")
        )
        timeout = integration["TimeoutInMillis"] / 1000
        assert timeout == (STREAM_SECONDS + 30 if streams else 29)
        assert _named(template, "Lambda::Function", function["Fn::GetAtt"][0])["Timeout"] == timeout


def test_sessions_are_handed_to_their_readers(template: Template) -> None:
    """With the same lock as POST, as they came; the answers go out as they are made. DELETE is another function's."""
    sessions = _of_sessions(template)
    paths = ("", "files", "filespath", "archive")
    assert sessions.keys() == {f"{path}{method}" for path in paths for method in ("GET", "ANY", "OPTIONS")} | {"DELETE"}
    for name, method in sessions.items():
        if "OPTIONS" in name:
            continue
        *_, path, function, action = method["Integration"]["Uri"]["Fn::Join"][1]
        removes = name == "DELETE"
        assert method["ApiKeyRequired"] is True
        assert function["Fn::GetAtt"][0].startswith("FunctionsRemoveSession" if removes else "FunctionsReadSession")
        assert method["Integration"].get("ResponseTransferMode") == (None if removes else "STREAM")
        assert action == ("/invocations" if removes else "/response-streaming-invocations")
        seconds = _named(template, "Lambda::Function", function["Fn::GetAtt"][0])["Timeout"]
        assert method["Integration"]["TimeoutInMillis"] == 1000 * seconds
    allows = {path: sessions[f"{path}OPTIONS"]["Integration"]["IntegrationResponses"][0] for path in paths}
    for path, answer in allows.items():
        (methods,) = [v for name, v in answer["ResponseParameters"].items() if name.endswith("-Allow-Methods")]
        assert methods == ("'GET'" if path else "'GET, DELETE'")


def test_uploads_are_offered_by_their_function(template: Template) -> None:
    """With the same lock as POST, as they came; any other method is that function's to refuse."""
    below = {name: m for name, m in _of(template, "ApiGateway::Method").items() if "claudecodeuploads" in name}
    assert {re.sub("^.*uploads|[0-9A-F]{8}$", "", name) for name in below} == {"POST", "ANY", "OPTIONS"}
    for name, method in below.items():
        if "OPTIONS" not in name:
            assert method["ApiKeyRequired"] is True
            assert method["Integration"]["Type"] == "AWS_PROXY"
            (function,) = [part for part in method["Integration"]["Uri"]["Fn::Join"][1] if "Fn::GetAtt" in part]
            assert function["Fn::GetAtt"][0].startswith("FunctionsOfferUpload")
            assert method["Integration"]["TimeoutInMillis"] == 15_000
    texts = {name: _worked_out(value) for name, value in _environment(template, "OfferUpload").items()}
    settings = OfferSettings.read(texts)
    assert set(settings.callers.values()) == {"default"}
    assert settings.max_session_bytes == 1024 * 1024 * 1024


def test_any_other_method_is_405_before_anything_else(template: Template) -> None:
    """ANY asks for a parameter that nobody sends, and it alone can: so the gateway's refusal is worded as 405."""
    other = _above(template, "ANY")
    assert not other.get("ApiKeyRequired")
    assert set(other["RequestParameters"].values()) == {True}
    validators = _of(template, "ApiGateway::RequestValidator")
    assert validators[other["RequestValidatorId"]["Ref"]]["ValidateRequestParameters"] is True
    assert [v.get("ValidateRequestParameters", False) for v in validators.values()].count(True) == 1
    refusal = _named(template, "ApiGateway::GatewayResponse", "BADREQUESTPARAMETERS")
    assert refusal["StatusCode"] == "405"
    assert refusal["ResponseParameters"]["gatewayresponse.header.Allow"] == "'POST, OPTIONS'"


def test_the_gateways_own_answers_have_the_shape_of_ours(template: Template) -> None:
    """Each type of gateway response is worded, with a code of the table, its status, and null ids."""
    from aws_cdk.aws_apigateway import ResponseType

    answers = {a["ResponseType"]: a for a in _of(template, "ApiGateway::GatewayResponse").values()}
    every = {getattr(ResponseType, name).response_type for name in dir(ResponseType) if name.isupper()}
    assert answers.keys() == every
    for kind, answer in answers.items():
        document = json.loads(answer["ResponseTemplates"]["application/json"])
        extra = {"idempotency_key"} if kind == "INTEGRATION_TIMEOUT" else set()
        assert document.keys() - extra == {"success", "error", "code", "retryable", "session_id", "run_id", "cost_usd"}
        assert (document["success"], document["session_id"], document["run_id"]) == (False, None, None)
        status = answer.get("StatusCode")
        assert status in (None, "401") or int(status) == errors.statuses()[document["code"]]
        if document["code"] == "Throttled":
            assert int(answer["ResponseParameters"]["gatewayresponse.header.Retry-After"].strip("'")) > 0
    assert "prompt" in answers["BAD_REQUEST_BODY"]["ResponseTemplates"]["application/json"]


def test_templates_ask_the_gateway_who_calls(template: Template) -> None:
    """The caller comes out of `$context`; the headers read are key and preference, by their names whatever the case."""
    text = _request_template(template)
    assert re.findall(r"\$input\.params[^\n]*?\)\.(\w+)", text) == ["header"] * 3
    assert text.count("$input.params") == 3
    assert re.findall(r"\(\?i\)([\w-]+)", text) == ["idempotency-key", "prefer"]


def test_templates_compare_as_every_engine_does(template: Template) -> None:
    """No `.equals()`: an engine off AWS takes it for true."""
    assert ".equals(" not in json.dumps(_of(template, "ApiGateway::Method"))


def test_every_code_has_its_status_in_the_answer(template: Template) -> None:
    """The map in the template is the table of errors.py."""
    answer = _post(template)["Integration"]["IntegrationResponses"][0]["ResponseTemplates"]["application/json"]
    found = re.search(r"#set\(\$statuses = (\{.*?\})\)", answer)
    assert found
    assert json.loads(found[1]) == errors.statuses()


def test_a_changed_template_is_deployed_anew(template: Template, bedrock: Template, templates: Templates) -> None:
    """API Gateway serves a stage's deployment: without a new one, a changed template or answer would change nothing."""
    same, other = (_of(each, "ApiGateway::Deployment").keys() for each in (bedrock, templates(auth="none")))
    assert same == _of(template, "ApiGateway::Deployment").keys() != other


# --- stack ---


def test_outputs_are_what_users_need(template: Template) -> None:
    """ApiUrl is where to POST; what a session may weigh is for `sessions put`; nothing else is put out."""
    machines, limits = {"StateMachineArn", "LongMachineArn"}, {"MaxSessionMb": "1024", "MaxSessionFiles": "200000"}
    assert template["Outputs"].keys() == {"ApiUrl", "ApiKeyId", "BucketName", "SecretArn"} | machines | limits.keys()
    assert {name: template["Outputs"][name]["Value"] for name in limits} == limits
    assert template["Outputs"]["StateMachineArn"]["Value"] == {"Ref": _id(template, _machine(template))}
    assert template["Outputs"]["LongMachineArn"]["Value"] == {"Ref": _id(template, _machine(template, "STANDARD"))}
    assert template["Outputs"]["ApiUrl"]["Value"]["Fn::Join"][1][-1] == "/claude-code"


def test_nothing_has_a_physical_name(template: Template) -> None:
    """Two stacks live side by side. One log group has to be named, and is named after the stack."""
    names = (
        "BucketName",
        "FunctionName",
        "RoleName",
        "StateMachineName",
        "PolicyName",
        "UsagePlanName",
        "LogGroupName",
    )
    fixed = {
        (resource["Type"], name)
        for resource in template["Resources"].values()
        for name in names
        if isinstance(resource.get("Properties", {}).get(name), str)
    }
    # An inline policy's name is its role's own.
    assert fixed <= {("AWS::Logs::LogGroup", "LogGroupName"), ("AWS::IAM::Policy", "PolicyName")}
    assert "Name" not in _one(template, "SecretsManager::Secret") | _one(template, "ApiGateway::ApiKey")


def test_the_secret_holds_placeholders_only(template: Template) -> None:
    """No value of a credential is in the template, and the functions' environments know it by ARN."""
    secret = json.loads(_one(template, "SecretsManager::Secret")["SecretString"])
    assert secret == {"ANTHROPIC_API_KEY": "unset", "SUPABASE_SERVICE_KEY": "unset"}
    for agent in AGENTS:
        assert _environment(template, agent)["SECRET_ARN"]["Ref"].startswith("ModelSecret")


@pytest.fixture(scope="module")
def guarded_synth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `python app.py` synthesized into `cdk.out`: from a clone that only its owner can read, in an empty
    environment, under the strictest umask, and cut off from every network."""
    place = tmp_path_factory.mktemp("guarded")
    docker = place / "docker"
    docker.write_text(f"#!/bin/sh\ntouch {place}/docker-was-called\nexit 1\n")
    docker.chmod(0o755)
    # In a user's namespace root's directories are nobody's, which jsii does not trust with a cache. Without it the CDK
    # is unpacked anew, which takes longer than all the rest.
    kept = {"JSII_RUNTIME_PACKAGE_CACHE_ROOT": str(Path.home() / ".cache" / "aws" / "jsii" / "package-cache")}
    jsii = kept if os.geteuid() == 0 else {"JSII_RUNTIME_PACKAGE_CACHE": "disabled"}
    environment = {
        "PATH": f"{place}:{os.environ['PATH']}",
        "CDK_DOCKER": str(docker),
        "CDK_OUTDIR": str(place / "cdk.out"),
        "HOME": str(place),
        **jsii,
    }
    command = [*_without_network(), sys.executable, "app.py"]
    clone = _private_clone(place / "clone")
    said = subprocess.run(command, cwd=clone, env=environment, umask=0o077, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return place


def _private_clone(clone: Path) -> Path:
    """What a stack is synthesized from, as `git clone` leaves it under a umask of 077."""
    clone.mkdir()
    for name in ("app.py", "cdk.json", "stacks", "statemachine", "lambdas", "agent"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, clone)
    for path in (clone, *clone.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return clone


def test_synth_needs_no_network_no_credentials_and_no_docker(guarded_synth: Path) -> None:
    """Without them, `python app.py` writes the template."""
    assert (guarded_synth / "cdk.out" / "ClaudeAgentWorkflow.template.json").is_file()
    assert not (guarded_synth / "docker-was-called").exists()


def test_assets_can_be_read_whatever_the_builders_umask(guarded_synth: Path) -> None:
    """Lambda's user owns none of a zip's files, so they are everybody's to read; the image's build sees to its own."""
    assets = _assets(guarded_synth / "cdk.out")
    assert len(assets) == 2
    for path in (path for asset in assets for path in (asset, *asset.rglob("*"))):
        starts = path.is_dir() or path.suffix == ".sh"
        assert path.stat().st_mode & 0o777 == (0o755 if starts else 0o644), path
    assert sum((asset / "agent/skills/handover/SKILL.md").exists() for asset in assets) == 1  # the image's
    _, _, after_the_code = (ROOT / "lambdas/Dockerfile").read_text().partition("\nCOPY lambdas/ ")
    assert "\nRUN chmod -R a+rX ${LAMBDA_TASK_ROOT}/lambdas ${LAMBDA_TASK_ROOT}/agent" in after_the_code


def _without_network() -> list[str]:
    if sys.platform == "darwin":
        return ["sandbox-exec", "-p", "(version 1)(allow default)(deny network*)"]
    command = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, f"This test needs a network namespace, and the system gives none: {tried.stderr}"
    return command


def test_a_bad_context_value_is_one_sentence(tmp_path: Path) -> None:
    """Neither a traceback nor a template, when a value is wrong."""
    environment = os.environ | {"CDK_CONTEXT_JSON": '{"auth": "password"}', "CDK_OUTDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "app.py")]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr == 'auth must be one of api-key, iam, none, not "password".\n'


@pytest.fixture
def masked(template: Template) -> Template:
    """The template without what changes with every line of the functions' code."""
    text = re.sub(r"[0-9a-f]{64}", "<asset>", json.dumps(template))
    text = re.sub(r"(CurrentVersion[0-9A-F]{8}|Deployment[0-9A-F]{8})[0-9a-f]{32}", r"\1<hash>", text)
    read: Template = json.loads(text)
    return read


def test_the_rest_of_the_template_is_as_it_was(masked: Template, snapshot: SnapshotAssertion) -> None:
    """Whatever else changes is seen in a review: `pytest --snapshot-update` after looking at it."""
    assert masked == snapshot(extension_class=JSONSnapshotExtension)
