"""Rows of what is deployed: what API Gateway, the state machine and the functions have kept of the template."""

import json
from collections.abc import Iterator

from claude_workflow.cli.check.account import AGENTS, FUNCTIONS, LONG, POST, STATES
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import NotAsked, compared, unlike
from lambdas.repositories import entries
from lambdas.settings import Clocks, Legs
from lambdas.strict import Json

MODEL_KEY = "ANTHROPIC_API_KEY"


def integration_responses(kit: Kit) -> Json:
    """By status, which answers of Step Functions it is for."""
    template = kit.account.properties("ApiGateway::Method", POST)["Integration"]["IntegrationResponses"]
    kept = kit.account.integration().get("integrationResponses", {})
    return {
        "kept": {status: one.get("selectionPattern") or None for status, one in kept.items()},
        "template": {one["StatusCode"]: one.get("SelectionPattern") for one in template},
    }


def gateway_responses(kit: Kit) -> Json:
    """By type, the templates."""
    api = kit.account.id("ApiGateway::RestApi")
    kept = kit.client("apigateway").get_gateway_responses(restApiId=api, limit=500)["items"]
    own = [one for one in kept if not one.get("defaultResponse")]
    template = kit.account.all("ApiGateway::GatewayResponse").values()
    return {
        "kept": {one["responseType"]: one.get("responseTemplates", {}) for one in own},
        "template": {one["ResponseType"]: one["ResponseTemplates"] for one in template},
    }


@compared
def usage_plan(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What callers may ask."""
    if not kit.account.all("ApiGateway::UsagePlan"):
        raise NotAsked("The stack asks for no API key, so there is no plan.")
    gateway, plan = kit.client("apigateway"), kit.account.id("ApiGateway::UsagePlan")
    kept, template = gateway.get_usage_plan(usagePlanId=plan), kit.account.properties("ApiGateway::UsagePlan")
    throttle, quota = kept.get("throttle", {}), kept.get("quota", {})
    yield "rate", throttle.get("rateLimit"), template["Throttle"]["RateLimit"]
    yield "burst", throttle.get("burstLimit"), template["Throttle"]["BurstLimit"]
    yield "requests", quota.get("limit"), template["Quota"]["Limit"]
    yield "period", quota.get("period"), template["Quota"]["Period"]
    keys = gateway.get_usage_plan_keys(usagePlanId=plan)["items"]
    yield "keys", len(keys), len(kit.account.all("ApiGateway::UsagePlanKey"))


@compared
def integration_timeout(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """In milliseconds; of the account's quota, the maximum integration timeout, what is used."""
    template = kit.account.properties("ApiGateway::Method", POST)["Integration"]["TimeoutInMillis"]
    yield "kept", kit.account.integration()["timeoutInMillis"], template
    if template > 29_000:
        quotas = kit.client("service-quotas")
        quota = quotas.get_service_quota(ServiceCode="apigateway", QuotaCode="L-E5AE38E3")["Quota"]["Value"]
        yield "quota", min(quota, template), template


def invoked(kit: Kit) -> Json:
    """TestInvokeMethod with an empty prompt, past keys and stage; of its log, what was sent on."""
    done = kit.client("apigateway").test_invoke_method(
        **kit.account.post, headers={"content-type": "application/json"}, body=json.dumps({"prompt": ""})
    )
    after = "Endpoint request body after transformations: "
    sent = [line.partition(after)[2] for line in done["log"].splitlines() if after in line]
    return {"status": done["status"], "code": json.loads(done["body"]).get("code"), "sent": sent[0] if sent else None}


def _definition(kit: Kit, arn: str | None = None) -> Json:
    """Of the express machine, or of another."""
    arn = arn or kit.backend.state_machine_arn
    machine = kit.client("stepfunctions").describe_state_machine(stateMachineArn=arn)
    definition: Json = json.loads(machine["definition"])
    return definition | {"role": machine["roleArn"]}


@compared
def clocks(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Seconds of every clock as deployed, and as they follow from the gateway's."""
    definition, variable = _definition(kit), "INTEGRATION_TIMEOUT"
    clocks = Clocks(kit.account.integration()["timeoutInMillis"] // 1000)
    yield "machine", definition.get("TimeoutSeconds"), clocks.machine
    told = kit.account.environment("RestoreSession").get(variable)
    yield f"RestoreSession's {variable}", told, str(clocks.integration)
    for state, name in zip(STATES, ("restore", "run", "persist", "record"), strict=True):
        yield state, definition["States"][state].get("TimeoutSeconds"), getattr(clocks, f"{name}_state")
        yield f"{state}'s function", kit.account.function(state)["Timeout"], getattr(clocks, f"{name}_function")
    long = _definition(kit, kit.account.id("StepFunctions::StateMachine", LONG))
    legs = Legs(int(kit.account.environment("RestoreSession")["MAX_RUN_SECONDS"]))
    yield "the long machine", long.get("TimeoutSeconds"), legs.machine
    yield "a leg", long["States"]["RunClaude"].get("TimeoutSeconds"), legs.state
    yield "RunLeg", kit.account.function("RunLeg")["Timeout"], legs.function


@compared
def versions(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Which functions the machines call, and which they should: versions of the stack's own."""
    long = kit.account.id("StepFunctions::StateMachine", LONG)
    for arn, run in ((kit.backend.state_machine_arn, "RunClaude"), (long, "RunLeg")):
        states = _definition(kit, arn)["States"]
        for state in (*STATES, "ReadRun"):
            called = states[state]["Arguments"]["FunctionName"]
            function = run if state == "RunClaude" else state
            yield f"{state} ({run})", called.rpartition(":")[0], kit.account.function(function)["FunctionArn"]


TESTED: dict[str, tuple[str, Json, Json]] = {
    "run": ("NextStep", {"next": "run", "task": {"n": 1}}, {"nextState": "RunClaude", "output": [{"n": 1}]}),
    "persist": ("NextStep", {"next": "persist"}, {"nextState": "PersistSession", "output": [{}]}),
    "done": ("NextStep", {"next": "done", "response": {"a": None}}, {"nextState": "Answered", "output": [{"a": None}]}),
    "failed": ("Failed", {"code": "Internal", "run_id": None}, {"error": "Internal", "status": "FAILED"}),
}
"""By name, a state with its input, and what TestState has to say of it."""


def tested(kit: Kit) -> Json:
    """What TestState says of each."""
    definition, machines = _definition(kit), kit.client("stepfunctions")
    found = {}
    for name, (state, given, _) in TESTED.items():
        text = json.dumps(definition["States"][state] | {"QueryLanguage": definition["QueryLanguage"]})
        said = machines.test_state(definition=text, roleArn=definition["role"], input=json.dumps(given))
        found[name] = {part: said.get(part) for part in ("status", "nextState", "error", "cause")}
        found[name]["output"] = json.loads(said["output"]) if said.get("output") else None
    return found


def as_defined(raw: Json) -> str:
    """What it says otherwise."""
    return unlike(raw, {name: expected for name, (_, _, expected) in TESTED.items()})


@compared
def functions(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """What each is, and has."""
    for state in FUNCTIONS:
        kept, meant = kit.account.function(state), kit.account.properties("Lambda::Function", state)
        wanted = {"State": "Active", "LastUpdateStatus": "Successful"} | meant
        for name in ("State", "LastUpdateStatus", "MemorySize", "Timeout"):
            yield f"{state}: {name}", kept.get(name), wanted[name]
        disk = meant.get("EphemeralStorage", {"Size": 512})["Size"]
        yield f"{state}: disk", kept.get("EphemeralStorage", {}).get("Size"), disk


@compared
def settings(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Names and settings in the functions' environments that other resources have to agree with."""
    for state in FUNCTIONS:
        kept = kit.account.environment(state)
        meant = kit.account.properties("Lambda::Function", state)["Environment"]["Variables"]
        if state not in AGENTS:
            meant = meant | {"S3_BUCKET_NAME": kit.bucket.name}
        yield from ((f"{state} {name}", kept.get(name), meant[name]) for name in meant if isinstance(meant[name], str))


@compared
def secret(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Whether each key that the deployment needs is set; of the keys themselves nothing is kept."""
    environment = kit.account.environment("RunClaude")
    by_role = environment["MODEL_PROVIDER"] == "bedrock"
    names = [each.secret for each in entries(json.loads(environment["REPOSITORIES"]))]
    if by_role and not names:
        raise NotAsked("Bedrock is asked by the role's right; there is no key.")
    kept = json.loads(kit.client("secretsmanager").get_secret_value(SecretId=environment["SECRET_ARN"])["SecretString"])
    placeholders = json.loads(kit.account.properties("SecretsManager::Secret")["SecretString"])
    unset = (None, "", placeholders[MODEL_KEY])
    for name in names if by_role else [MODEL_KEY, *names]:
        yield name, "unset" if kept.get(name) in unset else "set", "set"


@compared
def retention(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Days, by log group."""
    for name, meant in kit.account.all("Logs::LogGroup").items():
        group = kit.account.called[name]
        listed = kit.client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        kept = next((one.get("retentionInDays") for one in listed if one["logGroupName"] == group), None)
        yield name, kept, meant["RetentionInDays"]
