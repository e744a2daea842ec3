"""Rows of the state machine: its clocks, its log, single states of it, and a replay."""

import json

from claude_workflow.cli.check.account import STATES
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, as_template, facts
from claude_workflow.cli.history import visits
from claude_workflow.cli.prospect import envelope
from lambdas.settings import Clocks
from lambdas.strict import Json

PATH = ["RestoreSession", "NextStep", "RunClaude", "PersistSession", "Answered"]
"""The states of a run without an incident."""


def _definition(kit: Kit) -> Json:
    machine = kit.client("stepfunctions").describe_state_machine(stateMachineArn=kit.machine)
    definition: Json = json.loads(machine["definition"])
    return definition | {"role": machine["roleArn"]}


def _clocks(kit: Kit) -> Json:
    """Seconds of every clock as deployed, and as they follow from the gateway's."""
    definition = _definition(kit)
    integration = kit.account.integration()["timeoutInMillis"] // 1000
    clocks = Clocks(integration)
    states = {"RestoreSession": "restore", "RunClaude": "run", "PersistSession": "persist", "RecordFailure": "record"}
    expected = {"machine": clocks.machine, "RestoreSession's INTEGRATION_TIMEOUT": str(integration)}
    deployed = {
        "machine": definition.get("TimeoutSeconds"),
        "RestoreSession's INTEGRATION_TIMEOUT": kit.account.environment("RestoreSession").get("INTEGRATION_TIMEOUT"),
    }
    for state, name in states.items():
        expected |= {
            state: getattr(clocks, f"{name}_state"),
            f"{state}'s function": getattr(clocks, f"{name}_function"),
        }
        deployed[state] = definition["States"][state].get("TimeoutSeconds")
        deployed[f"{state}'s function"] = kit.account.function(state)["Timeout"]
    return {"kept": deployed, "template": expected}


def _versions(kit: Kit) -> Json:
    """Which functions the machine calls, and which it should: versions of the stack's own."""
    states = _definition(kit)["States"]
    return {
        "kept": {state: states[state]["Arguments"]["FunctionName"].rpartition(":")[0] for state in STATES},
        "template": {state: kit.account.function(state)["FunctionArn"] for state in STATES},
    }


def _log(kit: Kit) -> Json:
    events = kit.events(kit.answers["first-turn"]["run_id"])
    return {"states": [visit.name for visit in visits(events)], "events": len(events)}


def _replayed(kit: Kit) -> Json:
    """The first turn by StartSyncExecution, as `replay` starts it: it is done, so its answer comes again."""
    first = kit.answers["first-turn"]
    record = kit.record(first["run_id"])
    done = kit.client("stepfunctions").start_sync_execution(
        stateMachineArn=kit.machine, input=json.dumps(envelope(record, "again"))
    )
    answer = json.loads(done.get("output") or "{}")
    return {"status": done["status"], "same": answer.get("run_id") == first["run_id"], "cause": done.get("cause")}


TESTED: dict[str, tuple[str, Json, Json]] = {
    "run": ("NextStep", {"next": "run", "task": {"n": 1}}, {"nextState": "RunClaude", "output": {"n": 1}}),
    "persist": ("NextStep", {"next": "persist"}, {"nextState": "PersistSession", "output": {}}),
    "done": ("NextStep", {"next": "done", "response": {"a": None}}, {"nextState": "Answered", "output": {"a": None}}),
    "failed": ("Failed", {"code": "Internal", "run_id": None}, {"error": "Internal", "status": "FAILED"}),
}
"""By name, a state with its input, and what TestState has to say of it."""


def _tested(kit: Kit) -> Json:
    definition, machines = _definition(kit), kit.client("stepfunctions")
    found = {}
    for name, (state, given, _) in TESTED.items():
        text = json.dumps(definition["States"][state] | {"QueryLanguage": definition["QueryLanguage"]})
        said = machines.test_state(definition=text, roleArn=definition["role"], input=json.dumps(given))
        found[name] = {part: said.get(part) for part in ("status", "nextState", "error", "cause")}
        found[name]["output"] = json.loads(said["output"]) if said.get("output") else None
    return found


def _as_defined(raw: Json) -> str | None:
    wrong = {name: facts(**expected)(raw[name]) for name, (_, _, expected) in TESTED.items()}
    return "; ".join(f"{name}: {why}" for name, why in wrong.items() if why) or None


ASKED: dict[str, Ask] = {
    "clocks": _clocks,
    "versions": _versions,
    "test-state": _tested,
    "machine-log": _log,
    "replay": _replayed,
}
JUDGED: dict[str, Judge] = {
    "clocks": as_template,
    "versions": as_template,
    "test-state": _as_defined,
    "machine-log": lambda raw: None if raw["states"] == PATH else f"{raw['states']}, not {PATH}",
}
