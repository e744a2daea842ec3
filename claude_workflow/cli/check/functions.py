"""Rows of the four functions: their state, settings and secret, and what their logs say."""

import json
import re
from functools import partial

from claude_workflow.cli.check.account import STATES
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, NotAsked, as_template
from lambdas.strict import Json

BAD = (
    "AccessDenied",
    "ImportModuleError",
    "PermissionError",
    "Runtime.InvalidEntrypoint",
    "CarelessDeployment",
    "StorageUnavailable",
    "MissingSetting",
    "KMS.",
)
"""In a log, the names of what is wrong with a deployment: rights, unreadable assets, settings."""

REPORT = re.compile(r"(Max Memory Used|Memory Size|Init Duration): ([\d.]+)")
MODEL_KEY = "ANTHROPIC_API_KEY"
INIT_MS = 10_000
"""Of the agent's 21 seconds the most that a cold start may take."""


def _functions(kit: Kit) -> Json:
    kept: Json = {}
    template: Json = {}
    for state in STATES:
        said, meant = kit.account.function(state), kit.account.properties("Lambda::Function", state)
        kept |= {f"{state}: {name}": said.get(name) for name in ("State", "LastUpdateStatus", "MemorySize", "Timeout")}
        kept[f"{state}: disk"] = said.get("EphemeralStorage", {}).get("Size")
        template |= {f"{state}: {name}": meant[name] for name in ("MemorySize", "Timeout")}
        template |= {f"{state}: State": "Active", f"{state}: LastUpdateStatus": "Successful"}
        template[f"{state}: disk"] = meant.get("EphemeralStorage", {"Size": 512})["Size"]
    return {"kept": kept, "template": template}


def _settings(kit: Kit) -> Json:
    """Names and settings in the functions' environments that other resources have to agree with."""
    meant = {state: kit.account.properties("Lambda::Function", state)["Environment"]["Variables"] for state in STATES}
    kept = {state: kit.account.environment(state) for state in STATES}
    buckets = {f"{state} S3_BUCKET_NAME": kept[state].get("S3_BUCKET_NAME") for state in STATES if state != "RunClaude"}
    plain = [(state, name) for state in STATES for name, value in meant[state].items() if isinstance(value, str)]
    return {
        "kept": buckets | {f"{one} {name}": kept[one].get(name) for one, name in plain},
        "template": dict.fromkeys(buckets, kit.bucket)
        | {f"{state} {name}": meant[state][name] for state, name in plain},
    }


def _secret(kit: Kit) -> Json:
    """Whether the model's key is set; of the key itself nothing is kept."""
    environment = kit.account.environment("RunClaude")
    if environment["MODEL_PROVIDER"] == "bedrock":
        raise NotAsked("Bedrock is asked by the role's right; there is no key.")
    kept = json.loads(kit.client("secretsmanager").get_secret_value(SecretId=environment["SECRET_ARN"])["SecretString"])
    placeholders = json.loads(kit.account.properties("SecretsManager::Secret")["SecretString"])
    unset = kept.get(MODEL_KEY) in (None, "", placeholders[MODEL_KEY])
    return {MODEL_KEY: "unset" if unset else "set"}


def _lines(kit: Kit, state: str, *parts: str) -> list[Json]:
    """The log events of a state's function since the kit began that have one of these texts in them."""
    pages = kit.client("logs").get_paginator("filter_log_events")
    found = pages.paginate(logGroupName=kit.account.group(state), startTime=int(kit.began * 1000))
    events = (event for page in found for event in page["events"])
    return [event for event in events if any(part in event["message"] for part in parts)]


def _errors(kit: Kit) -> Json:
    """The first lines that name something bad, by function."""
    return {state: [event["message"][:500] for event in _lines(kit, state, *BAD)][:5] for state in STATES}


def _reports(kit: Kit) -> Json:
    """Of the REPORT lines of each function: how many, the longest cold start in ms, and the memory by warm function."""
    found = {}
    for state in ("RestoreSession", "RunClaude", "PersistSession"):
        lines = kit.late(partial(_lines, kit, state, "REPORT RequestId"))
        figures = [dict(REPORT.findall(line["message"])) for line in lines]
        memory: dict[str, list[int]] = {}
        for line, one in zip(lines, figures, strict=True):
            memory.setdefault(line["logStreamName"], []).append(int(one["Max Memory Used"]))
        found[state] = {
            "invocations": len(lines),
            "size": int(figures[0]["Memory Size"]),
            "init_ms": max((float(one["Init Duration"]) for one in figures if "Init Duration" in one), default=None),
            "memory": list(memory.values()),
        }
    return {"functions": found}


def _slow_start(raw: Json) -> str | None:
    slow = {name: one["init_ms"] for name, one in raw["functions"].items() if (one["init_ms"] or 0) > INIT_MS}
    return f"More than {INIT_MS} ms: {slow}" if slow else None


def _full(raw: Json) -> str | None:
    full = [name for name, one in raw["functions"].items() if max(map(max, one["memory"])) > 0.9 * one["size"]]
    return f"Nine tenths of the memory and more: {', '.join(full)}" if full else None


def _network(kit: Kit) -> Json:
    found = kit.account.function("RunClaude").get("VpcConfig") or {}
    if not found.get("VpcId"):
        raise NotAsked("RunClaude is in no VPC.")
    return {"subnets": len(found["SubnetIds"]), "answered": kit.answers["first-turn"]["status"]}


def _key(kit: Kit) -> Json:
    rules = kit.s3.get_bucket_encryption(Bucket=kit.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    algorithm = rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"]
    if algorithm != "aws:kms":
        raise NotAsked("The bucket has no KMS key of the deployment's.")
    return {"algorithm": algorithm, "link": kit.fetch(kit.answers["first-turn"]["session_url"])["status"]}


def _bedrock(kit: Kit) -> Json:
    environment = kit.account.environment("RunClaude")
    if environment["MODEL_PROVIDER"] != "bedrock":
        raise NotAsked("The model is not asked by way of Bedrock.")
    shell = kit.answers["agent-shell"]
    return {"model": environment["BEDROCK_MODEL"], "first": kit.answers["first-turn"]["status"], "tools": bool(shell)}


def _retention(kit: Kit) -> Json:
    logs, meant = kit.client("logs"), kit.account.all("Logs::LogGroup")
    kept = {}
    for name in meant:
        group = kit.account.called(name)
        listed = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        kept[name] = next((one.get("retentionInDays") for one in listed if one["logGroupName"] == group), None)
    return {"kept": kept, "template": {name: one["RetentionInDays"] for name, one in meant.items()}}


ASKED: dict[str, Ask] = {
    "functions": _functions,
    "settings": _settings,
    "secret": _secret,
    "retention": _retention,
    "vpc": _network,
    "kms-key": _key,
    "bedrock": _bedrock,
    "init-time": _reports,
    "memory": lambda kit: kit.answers["init-time"],
    "log-errors": _errors,
}
JUDGED: dict[str, Judge] = {
    "functions": as_template,
    "settings": as_template,
    "retention": as_template,
    "init-time": _slow_start,
    "memory": _full,
    "log-errors": lambda raw: "; ".join(f"{state}: {raw[state][0]}" for state in STATES if raw[state]) or None,
}
