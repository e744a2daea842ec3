"""`claude-workflow check`: every row on one machine, a stack that is broken in many ways, and what is recorded."""

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from claude_workflow.cli.check.asking import asked
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import BROKEN, HELD, NOT_ASKED, NotAsked, judged
from claude_workflow.cli.check.rows import ROWS
from lambdas.strict import Json
from tests.conftest import InMemory, Templates
from tests.support.account import deployed
from tests.support.commands import ROOT, Serve, command

BY_NAME = {row.name: row for row in ROWS}
REACHED = ("agent-network", "agent-tcp", "agent-udp", "agent-names", "agent-metadata", "agent-provider")
"""Rows of what the agent reaches, which hold where nothing is reached."""


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
    assert set(outcomes) == set(BY_NAME)
    expected = {row.name: (NOT_ASKED, row.here) if row.here else (HELD, "") for row in ROWS}
    if "is kept from your files" not in serve.said():
        outcomes.pop("agent-files"), expected.pop("agent-files")
    if "a network of its own" not in serve.said():  # then they tell what they see
        for name in REACHED:
            outcomes.pop(name), expected.pop(name)
    assert outcomes == expected
    number = Counter(one["outcome"] for one in kept["rows"].values())
    heading = ", ".join(f"{count} {outcome}" for outcome, count in number.most_common())
    assert f"\n# The service on this machine: {heading}\n" in f"\n{printed}"
    assert all(f"| `{name}` | {outcome} |" in printed for name, (outcome, _) in outcomes.items())


def test_nothing_of_the_kit_is_left(serve: Serve, checked: tuple[str, Json]) -> None:
    """Neither its runs and sessions, those that failed included, nor what it wrote to ask S3."""
    named = set(re.findall("run-[0-9a-f]{32}|session-[0-9a-f]{8}-[0-9a-f-]{27}", json.dumps(checked[1])))
    assert len(named) > 10
    files = [str(path) for path in (serve.state / "s3").rglob("*") if path.is_file()]
    assert [path for path in files if any(name in path for name in (*named, "/runs/check-"))] == []


def again(kept: Json) -> dict[str, tuple[str, str]]:
    """What comes of recorded answers, judged by the rows as they are now."""
    found = [judged(BY_NAME[name], one["raw"]) for name, one in kept["rows"].items() if one["raw"] is not None]
    return {one.row.name: (one.outcome, one.why) for one in found}


def test_what_is_recorded_is_judged_again(checked: tuple[str, Json]) -> None:
    """The recorded answers have the outcomes that they had; those that say nothing hold for no row."""
    asked_here = {name: one for name, one in checked[1]["rows"].items() if one["outcome"] != NOT_ASKED}
    assert again(checked[1]) == {name: (one["outcome"], one["why"]) for name, one in asked_here.items()}
    assert [row.name for row in ROWS if judged(row, {}).outcome != BROKEN] == []


ALTERED: list[tuple[str, Json, str]] = [
    ("first-turn", {"status": 502, "code": "ModelUnauthorized"}, "status is 502"),
    ("second-turn", {"result": "I do not know."}, "heron"),
    ("fork", {"session_id": "session-1", "first": {"session_id": "session-1"}}, "in the session itself"),
    ("repeated-key", {"run_id": "run-2"}, "run_id is 'run-2'"),
    ("null-ids", {"run_id": "null"}, "run_id is 'null'"),
    ("tricky-text", {"as sent": False, "recorded": 12}, "as sent is False"),
    ("burst", {"throttled": {}}, "throttled: status is None"),
    ("agent-python3", {"programs": "python3: error while loading shared libraries: libpython3.13.so.1.0"}, "libpython"),
    ("agent-environ", {"environ": "1 AWS_SECRET_ACCESS_KEY="}, "AWS_SECRET_ACCESS_KEY"),
    ("s3-if-match-stale", {"status": 200}, "status is 200"),
    ("agent-network", {"holds": "nothing"}, "holds is 'nothing'"),
    ("agent-network", {"egress": "open"}, "egress is 'open'"),
    ("agent-tcp", {"tcp 80": "open", "tcp 443": "open"}, "Open: tcp 80, tcp 443"),
    ("agent-udp", {"udp 53": "open"}, "Open: udp 53"),
    ("agent-names", {"name": "open"}, "Open: name"),
    ("agent-metadata", {"metadata": "open"}, "Open: metadata"),
    ("agent-provider", {"provider": "open"}, "Open: provider"),
]
"""What a stack may answer otherwise: the row, the facts, and what is told of them."""


@pytest.mark.parametrize(("name", "facts", "told"), ALTERED)
def test_an_answer_that_is_not_as_expected_breaks_its_row(
    checked: tuple[str, Json], name: str, facts: Json, told: str
) -> None:
    """A recorded answer, altered in one point."""
    kept = json.loads(json.dumps(checked[1]))
    before = {other for other, (outcome, _) in again(kept).items() if outcome == BROKEN} - {name}
    kept["rows"][name]["raw"] |= facts
    broken = {name: why for name, (outcome, why) in again(kept).items() if outcome == BROKEN}
    assert broken.keys() - before == {name}
    assert told in broken[name]


def test_grants_of_another_host_are_told() -> None:
    """botocore's own default outside us-east-1 is the global host."""
    regional = {"request": "b.s3.eu-west-1.amazonaws.com", "result": "b.s3.eu-west-1.amazonaws.com"}
    found = judged(BY_NAME["grant-host"], {"kept": regional | {"result": "b.s3.amazonaws.com"}, "template": regional})
    assert (found.outcome, "result" in found.why, "request" in found.why) == (BROKEN, True, False)


# A stack in an account


@pytest.fixture(scope="module")
def kit(templates: Templates, in_memory: InMemory) -> Iterator[Kit]:
    with deployed(in_memory("account"), templates(network="private")) as made:
        yield made


def expire(kit: Kit, days: int) -> None:
    """The template's lifecycle, which the engine leaves out, as S3 would have it; with other days for runs."""
    rules = [
        {name: rule[name] for name in rule if name.startswith(("Noncurrent", "Abort"))}
        | (
            {"Expiration": {"Days": days if rule["ExpirationInDays"] == 30 else 1}}
            if "ExpirationInDays" in rule
            else {}
        )
        | {"ID": rule["Id"], "Status": "Enabled", "Filter": {"Prefix": rule.get("Prefix", "")}}
        for rule in kit.account.properties("S3::Bucket")["LifecycleConfiguration"]["Rules"]
    ]
    kit.bucket.s3.put_bucket_lifecycle_configuration(Bucket=kit.bucket.name, LifecycleConfiguration={"Rules": rules})


def place(kit: Kit, state: str, *groups: str) -> None:
    """A function in the network with these security groups, or in none; the engine puts none there by itself."""
    subnets = [kit.account.id("EC2::Subnet", f"NetworkInside{number}") for number in (1, 2)] if groups else []
    name, where = kit.account.id("Lambda::Function", state), {"SubnetIds": subnets, "SecurityGroupIds": list(groups)}
    kit.client("lambda").update_function_configuration(FunctionName=name, VpcConfig=where)


def log(kit: Kit, state: str, line: str) -> None:
    logs, where = kit.client("logs"), {"logGroupName": kit.account.id("Logs::LogGroup", f"{state}Logs")}
    where["logStreamName"] = f"2026/11/27/[1]{uuid.uuid4().hex}"
    logs.create_log_stream(**where)
    logs.put_log_events(**where, logEvents=[{"timestamp": int(kit.began * 1000) + 1, "message": line}])


def allow(kit: Kit, role: str, action: str) -> None:
    """The one action, of all resources, instead of what a role should be allowed."""
    iam, name = kit.client("iam"), kit.account.id("IAM::Role", f"{role}Role")
    statement = {"Effect": "Allow", "Action": action, "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)


def break_gateway(kit: Kit) -> None:
    gateway, post, an_id = kit.client("apigateway"), kit.account.post, kit.account.id
    kept = gateway.get_integration(**post)
    told = {name: kept[name] for name in ("type", "uri", "credentials", "requestTemplates", "passthroughBehavior")}
    gateway.put_integration(**post, **told, integrationHttpMethod="POST", timeoutInMillis=15_000)
    gateway.delete_integration_response(**post, statusCode="400")
    gateway.delete_gateway_response(restApiId=post["restApiId"], responseType="INVALID_API_KEY")
    gateway.delete_usage_plan_key(usagePlanId=an_id("ApiGateway::UsagePlan"), keyId=an_id("ApiGateway::ApiKey"))


def break_machine(kit: Kit) -> None:
    machines, arn = kit.client("stepfunctions"), kit.backend.state_machine_arn
    text = machines.describe_state_machine(stateMachineArn=arn)["definition"]
    text = text.replace('"TimeoutSeconds": 28', '"TimeoutSeconds": 300').replace("next = 'persist'", "next = 'commit'")
    text = text.replace("FunctionsRecordFailure", "AnotherRecordFailure")
    machines.update_state_machine(stateMachineArn=arn, definition=text)


def break_functions(kit: Kit) -> None:
    functions, an_id = kit.client("lambda"), kit.account.id
    functions.update_function_configuration(FunctionName=an_id("Lambda::Function", "RunClaude"), MemorySize=256)
    wrong, state = {"Variables": {"S3_BUCKET_NAME": "another"}}, an_id("Lambda::Function", "RecordFailure")
    functions.update_function_configuration(FunctionName=state, Environment=wrong)
    unset = {"SecretId": an_id("SecretsManager::Secret"), "SecretString": '{"ANTHROPIC_API_KEY": "unset"}'}
    kit.client("secretsmanager").put_secret_value(**unset)
    kit.client("logs").delete_retention_policy(logGroupName=an_id("Logs::LogGroup", "AccessLog"))
    log(kit, "PersistSession", "[ERROR] Runtime.ImportModuleError: Permission denied: 'lambdas/persist_session.py'")


def break_network(kit: Kit) -> None:
    """Its security group lets everything out, a route leads into the internet, and RunClaude is not in it."""
    ec2, an_id = kit.client("ec2"), kit.account.id
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    group = an_id("EC2::SecurityGroup", "NetworkGroup")
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[everything])
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=an_id("EC2::VPC"))
    table = an_id("EC2::RouteTable", "NetworkRoutes")
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    for state in ("RunClaude", "RunLeg"):
        place(kit, state)


TOLD = {
    "rights-run-claude": "s3:GetObject of session-1.zip is 'allowed', not 'denied'",
    "rights-run-leg": "s3:GetObject of session-1.zip is 'allowed', not 'denied'",
    "rights-machine": "lambda:InvokeFunction of a version of RunClaude is 'denied', not 'allowed'",
    "rights-long-machine": "states:StartExecution of the long machine is 'allowed', not 'denied'",
    "integration-responses": "400 is None",
    "gateway-responses": "INVALID_API_KEY is None",
    "integration-timeout": "kept is 15000, not 29000",
    "usage-plan": "keys is 0, not 1",
    "clocks": "machine is 300",
    "versions": "AnotherRecordFailure",
    "test-state": "persist: nextState is None",
    "functions": "RunClaude: MemorySize is 256",
    "settings": "RecordFailure S3_BUCKET_NAME is 'another'",
    "secret": "ANTHROPIC_API_KEY is 'unset'",
    "network-groups": "out is ['-1  0.0.0.0/0', 'tcp 443 0.0.0.0/0'], not ['tcp 443 0.0.0.0/0']; RunClaude is [], not ",
    "network-routes": "is ['0.0.0.0/0 to igw'], not []",
    "retention": "None, not 30",
    "lifecycle": "old-runs is [3, 1, None], not [30, 1, None]",
    "log-errors": 'PersistSession is ["[ERROR] Runtime.ImportModuleError',
}
"""What a row tells of a stack that is broken so, behind CloudFormation's back."""


def test_a_broken_stack_is_told_what_is_broken(kit: Kit) -> None:
    """All of it at once: before, each row holds; afterwards each is broken, and names what was done."""
    expire(kit, 30)
    for state in ("RunClaude", "RunLeg"):
        place(kit, state, kit.account.id("EC2::SecurityGroup", "NetworkGroup"))
    rows = [row for row in ROWS if row.name in TOLD or row.name.startswith("rights-")]
    assert {one.row.name: one.why for one in asked(kit, rows) if one.outcome != HELD} == {}
    allow(kit, "RunClaude", "s3:GetObject")
    allow(kit, "RunLeg", "s3:GetObject")
    allow(kit, "Machine", "logs:*")
    allow(kit, "MachineLong", "states:StartExecution")
    expire(kit, 3)
    for break_it in (break_gateway, break_machine, break_functions, break_network):
        break_it(kit)
    told = {one.row.name: one.why for one in asked(kit, rows) if one.outcome == BROKEN}
    assert set(told) == set(TOLD)
    assert {name: told[name] for name, why in TOLD.items() if why not in told[name]} == {}


def test_slow_starts_and_a_full_memory_are_told(kit: Kit) -> None:
    """By the REPORT lines, as Lambda writes them."""
    line = "REPORT RequestId: 1\tDuration: 1.0 ms\tMemory Size: 2048 MB\tMax Memory Used: {} MB\t"
    for state in ("RestoreSession", "PersistSession"):
        log(kit, state, line.format(200))
    log(kit, "RunClaude", line.format(2000) + "Init Duration: 15000.5 ms\t\n")
    raw = BY_NAME["init-time"].ask(kit)
    for found in (judged(BY_NAME[name], raw) for name in ("init-time", "memory")):
        assert (found.outcome, "RunClaude" in found.why, "RestoreSession" in found.why) == (BROKEN, True, False)


@pytest.mark.parametrize("name", ["vpc", "kms-key", "bedrock", "network-firewall", "redeploy"])
def test_what_a_stack_has_not_is_not_asked(kit: Kit, name: str) -> None:
    """It is told why."""
    with pytest.raises(NotAsked, match=r"\.$"):
        BY_NAME[name].ask(kit)


def test_a_small_model_is_asked(kit: Kit) -> None:
    """Where the stack does not say that it asks Bedrock, whose models are named by the deployment."""
    assert kit.model == "haiku"


def test_no_run_is_started_that_could_cost_too_much(kit: Kit) -> None:
    """Before anything is sent."""
    with pytest.raises(NotAsked, match="--max-dollars"):
        kit.run("Hello.")


# What cannot be shown without AWS


def test_every_row_of_unproven_names_rows_of_the_kit() -> None:
    """Which there are; and what only AWS can tell is named there."""
    lines = [line for line in (ROOT / "docs/unproven.md").read_text().splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines[1:]]
    named = {first: set(re.findall(r"`([a-z0-9-]+)`", last)) for first, *_, last in cells}
    assert [first for first, names in named.items() if not names] == []
    every = set().union(*named.values())
    assert every - set(BY_NAME) == set()
    assert {row.name for row in ROWS if row.here} - every == set()
