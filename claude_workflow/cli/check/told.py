"""Rows of what is told of the first turn afterwards: its execution, its grants, logs and traces; and a replay of it."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from urllib.parse import parse_qs, urlsplit

from claude_workflow.cli.check.account import FUNCTIONS
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import NotAsked, compared
from claude_workflow.cli.history import visits
from claude_workflow.cli.prospect import envelope
from lambdas.bucket import grants
from lambdas.bucket.client import s3_client
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json

WAITED = 10
"""Seconds that a grant's end is waited for; of a later one, one of the kit's own is tried, signed the same way."""
BAD = re.compile(
    r"AccessDenied|ImportModuleError|PermissionError|Runtime\.InvalidEntrypoint|CarelessDeployment|StorageUnavailable"
    r"|MissingSetting|KMS\."
)
"""In a log, the names of what is wrong with a deployment: rights, unreadable assets, settings."""
REPORT = re.compile(r"(Max Memory Used|Memory Size|Init Duration): ([\d.]+)")
INIT_MS = 10_000
"""Of the agent's 21 seconds the most that a cold start may take."""


def log(kit: Kit) -> Json:
    """The states of the first turn's execution."""
    return {"states": [visit.name for visit in visits(kit.events)], "events": len(kit.events)}


def replayed(kit: Kit) -> Json:
    """The first turn by StartSyncExecution, as `replay` starts it: it is done, so its answer comes again."""
    run_id = kit.first["run_id"]
    done = kit.client("stepfunctions").start_sync_execution(
        stateMachineArn=kit.backend.state_machine_arn, input=json.dumps(envelope(kit.record(run_id), "again"))
    )
    answer = json.loads(done.get("output") or "{}")
    return {"status": done["status"], "same": answer.get("run_id") == run_id, "cause": done.get("cause")}


def _grants(kit: Kit) -> dict[str, str]:
    """The URLs that the first turn's RestoreSession handed out, whole, by what they are for."""
    for event in kit.events:
        if event.type.endswith("StateExited") and event.details["name"] == "RestoreSession":
            given = json.loads(event.details["output"])["task"]["grants"]
            return {name: grant["url"] for name, grant in given.items() if grant}
    raise NotAsked("The execution's log has no grants: is its level ALL, with data?")


@compared
def hosts(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """The host of each grant, and of the answer's link."""
    region = kit.bucket.s3.meta.region_name
    regional = f"{kit.bucket.name}.s3.{region}.amazonaws.com{'.cn' * region.startswith('cn-')}"
    urls = _grants(kit) | {"session_url": kit.first["session_url"]}
    yield from ((name, urlsplit(url).hostname, regional) for name, url in urls.items())


def others(kit: Kit) -> Json:
    """A grant to read, used to write; and with another key in its place."""
    read = _grants(kit)["request"]
    other = re.sub(r"runs/run-[0-9a-f]+/", f"runs/run-{'0' * 32}/", read)
    return {"to write": kit.fetch(read, "PUT"), "for another run": kit.fetch(other)}


def expired(kit: Kit) -> Json:
    """Waits until a grant is over, and uses it."""
    grant, whose = _grants(kit)["request"], "the run's"
    if _end(grant) - time.time() > WAITED:
        key = f"{kit.scratch}grant"
        kit.bucket.touch(key)
        signer = kit.bucket if kit.backend.engine else Bucket(s3_client(), kit.bucket.name)
        grant, whose = grants.link(signer, key, 1), "the kit's own"
    time.sleep(max(0.0, _end(grant) + 1.5 - time.time()))
    return kit.fetch(grant) | {"whose": whose}


def _end(url: str) -> float:
    """Epoch seconds at which a presigned URL ends."""
    query = parse_qs(urlsplit(url).query)
    signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return signed.timestamp() + int(query["X-Amz-Expires"][0])


def linked(kit: Kit) -> Json:
    """Follows the answer's link."""
    return kit.fetch(kit.first["session_url"])


def vpc(kit: Kit) -> Json:
    """Its subnets, and whether a run worked there."""
    found = kit.account.function("RunClaude").get("VpcConfig") or {}
    if not found.get("SubnetIds"):
        raise NotAsked("RunClaude is in no VPC.")
    return {"subnets": len(found["SubnetIds"]), "answered": kit.first["status"]}


def kms_key(kit: Kit) -> Json:
    """Whether a link works for what is encrypted with it."""
    kept = kit.bucket.s3.get_bucket_encryption(Bucket=kit.bucket.name)["ServerSideEncryptionConfiguration"]["Rules"]
    algorithm = kept[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"]
    if algorithm != "aws:kms":
        raise NotAsked("The bucket has no KMS key of the deployment's.")
    return {"algorithm": algorithm, "link": kit.fetch(kit.first["session_url"])["status"]}


def bedrock(kit: Kit) -> Json:
    """Whether runs worked by way of it."""
    environment = kit.account.environment("RunClaude")
    if environment["MODEL_PROVIDER"] != "bedrock":
        raise NotAsked("The model is not asked by way of Bedrock.")
    tools = bool(kit.answers["agent-shell"])
    return {"model": environment["BEDROCK_MODEL"], "first": kit.first["status"], "tools": tools}


def traces(kit: Kit) -> Json:
    """Of the time since the kit began."""
    xray = kit.client("xray")
    found = kit.late(lambda: xray.get_trace_summaries(StartTime=kit.began, EndTime=time.time())["TraceSummaries"])
    return {"traces": len(found)}


def access_log(kit: Kit) -> Json:
    """Its lines on the first turn."""
    stage = kit.account.properties("ApiGateway::Stage")["StageName"]
    kept = kit.client("apigateway").get_stage(restApiId=kit.account.id("ApiGateway::RestApi"), stageName=stage)
    group = kept.get("accessLogSettings", {}).get("destinationArn", "")
    if not group:
        return {"destination": None, "lines": 0}
    logs, where = kit.client("logs"), {"logGroupName": group.partition(":log-group:")[2].removesuffix(":*")}
    query = {"filterPattern": f'"{kit.first["x_amz_apigw_id"]}"', "startTime": int(kit.began * 1000) - 60_000}
    found = kit.late(lambda: logs.filter_log_events(**where, **query)["events"])
    return {"destination": group, "lines": len(found), "first": found[0]["message"]}


def _lines(kit: Kit, state: str, wanted: re.Pattern[str]) -> list[Json]:
    """The log events of a state's function since the kit began that have what is wanted in them."""
    pages = kit.client("logs").get_paginator("filter_log_events")
    group = kit.account.id("Logs::LogGroup", f"{state}Log")
    found = pages.paginate(logGroupName=group, startTime=int(kit.began * 1000))
    return [event for page in found for event in page["events"] if wanted.search(event["message"])]


def errors(kit: Kit) -> Json:
    """The first lines that name something bad, by function."""
    return {state: [event["message"][:500] for event in _lines(kit, state, BAD)][:5] for state in FUNCTIONS}


def reports(kit: Kit) -> Json:
    """Of the REPORT lines of each function: how many, the longest cold start in ms, and the memory by warm function."""
    found = {}
    for state in ("RestoreSession", "RunClaude", "PersistSession"):
        lines = kit.late(partial(_lines, kit, state, re.compile("REPORT RequestId")))
        figures = [(line["logStreamName"], dict(REPORT.findall(line["message"]))) for line in lines]
        memory: dict[str, list[int]] = {}
        for warm, one in figures:
            memory.setdefault(warm, []).append(int(one["Max Memory Used"]))
        found[state] = {
            "invocations": len(lines),
            "size": int(figures[0][1]["Memory Size"]),
            "init_ms": max((float(one["Init Duration"]) for _, one in figures if "Init Duration" in one), default=None),
            "memory": list(memory.values()),
        }
    return {"functions": found}


def slow_starts(raw: Json) -> str:
    """By function, a cold start that took too long."""
    slow = {name: one["init_ms"] for name, one in raw["functions"].items() if (one["init_ms"] or 0) > INIT_MS}
    return f"More than {INIT_MS} ms: {slow}" if slow else ""


def full(raw: Json) -> str:
    """The functions whose memory is nearly full."""
    found = [name for name, one in raw["functions"].items() if max(map(max, one["memory"])) > 0.9 * one["size"]]
    return f"Nine tenths of the memory and more: {', '.join(found)}" if found else ""
