"""Rows of API Gateway: what it has kept of the template, and what it does with it."""

import json
import time

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, NotAsked, as_template
from lambdas.strict import Json

QUOTA = {"ServiceCode": "apigateway", "QuotaCode": "L-E5AE38E3"}
"""Maximum integration timeout in milliseconds."""


def _integration_responses(kit: Kit) -> Json:
    template = kit.account.properties("ApiGateway::Method", "POST")["Integration"]["IntegrationResponses"]
    kept = kit.account.integration().get("integrationResponses", {})
    return {
        "kept": {status: one.get("selectionPattern") or None for status, one in kept.items()},
        "template": {one["StatusCode"]: one.get("SelectionPattern") for one in template},
    }


def _gateway_responses(kit: Kit) -> Json:
    api = kit.account.id("ApiGateway::RestApi")
    kept = kit.client("apigateway").get_gateway_responses(restApiId=api, limit=500)["items"]
    template = kit.account.all("ApiGateway::GatewayResponse").values()
    return {
        "kept": {
            one["responseType"]: one.get("responseTemplates", {}) for one in kept if not one.get("defaultResponse")
        },
        "template": {one["ResponseType"]: one["ResponseTemplates"] for one in template},
    }


def _usage_plan(kit: Kit) -> Json:
    if not kit.account.all("ApiGateway::UsagePlan"):
        raise NotAsked("The stack asks for no API key, so there is no plan.")
    gateway, plan = kit.client("apigateway"), kit.account.id("ApiGateway::UsagePlan")
    kept, template = gateway.get_usage_plan(usagePlanId=plan), kit.account.properties("ApiGateway::UsagePlan")
    throttle, quota = kept.get("throttle", {}), kept.get("quota", {})
    wanted = {"rate": template["Throttle"]["RateLimit"], "burst": template["Throttle"]["BurstLimit"]}
    return {
        "kept": {
            "rate": throttle.get("rateLimit"),
            "burst": throttle.get("burstLimit"),
            "requests": quota.get("limit"),
            "period": quota.get("period"),
            "keys": len(gateway.get_usage_plan_keys(usagePlanId=plan)["items"]),
        },
        "template": wanted
        | {
            "requests": template["Quota"]["Limit"],
            "period": template["Quota"]["Period"],
            "keys": len(kit.account.all("ApiGateway::UsagePlanKey")),
        },
    }


def _access_log(kit: Kit) -> Json:
    stage = kit.account.properties("ApiGateway::Stage")["StageName"]
    kept = kit.client("apigateway").get_stage(restApiId=kit.account.id("ApiGateway::RestApi"), stageName=stage)
    group = kept.get("accessLogSettings", {}).get("destinationArn", "")
    if not group:
        return {"destination": None, "lines": 0}
    extended = kit.answers["first-turn"]["x_amz_apigw_id"]
    logs, where = kit.client("logs"), {"logGroupName": group.partition(":log-group:")[2].removesuffix(":*")}
    query = {"filterPattern": f'"{extended}"', "startTime": int(kit.began * 1000) - 60_000}
    found = kit.late(lambda: logs.filter_log_events(**where, **query)["events"])
    return {"destination": group, "lines": len(found), "first": found[0]["message"]}


def _integration_timeout(kit: Kit) -> Json:
    template = kit.account.properties("ApiGateway::Method", "POST")["Integration"]["TimeoutInMillis"]
    kept = kit.account.integration()["timeoutInMillis"]
    quota = None
    if template > 29_000:
        quota = kit.client("service-quotas").get_service_quota(**QUOTA)["Quota"]["Value"]
    return {"kept": kept, "template": template, "quota": quota}


def _long_enough(raw: Json) -> str | None:
    if raw["kept"] != raw["template"]:
        return f"{raw['kept']} ms are kept of {raw['template']}"
    return f"The quota is {raw['quota']} ms" if raw["quota"] and raw["quota"] < raw["template"] else None


def _test_invoke(kit: Kit) -> Json:
    """TestInvokeMethod with an empty prompt, past keys and stage; of its log, what was sent on."""
    done = kit.client("apigateway").test_invoke_method(
        **kit.account.post, headers={"content-type": "application/json"}, body=json.dumps({"prompt": ""})
    )
    after = "Endpoint request body after transformations: "
    sent = [line.partition(after)[2] for line in done["log"].splitlines() if after in line]
    return {"status": done["status"], "code": json.loads(done["body"]).get("code"), "sent": sent[0] if sent else None}


def _traces(kit: Kit) -> Json:
    xray = kit.client("xray")
    found = kit.late(lambda: xray.get_trace_summaries(StartTime=kit.began, EndTime=time.time())["TraceSummaries"])
    return {"traces": len(found)}


NO_LOG = "There is no access log: has the account a logging role for API Gateway?"
ASKED: dict[str, Ask] = {
    "integration-responses": _integration_responses,
    "gateway-responses": _gateway_responses,
    "usage-plan": _usage_plan,
    "integration-timeout": _integration_timeout,
    "test-invoke": _test_invoke,
    "access-log": _access_log,
    "traces": _traces,
}
JUDGED: dict[str, Judge] = {
    "integration-responses": as_template,
    "gateway-responses": as_template,
    "usage-plan": as_template,
    "integration-timeout": _long_enough,
    "access-log": lambda raw: None if raw["lines"] else NO_LOG,
    "traces": lambda raw: None if raw["traces"] else "There is none",
}
