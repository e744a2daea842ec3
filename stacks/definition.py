"""The definition's text. Whoever only reads it needs no CDK, whose import starts a process."""

import json
from pathlib import Path

from lambdas.settings import Clocks

DEFINITION = Path(__file__).resolve().parent.parent / "statemachine" / "claude_agent_workflow.asl.json"


def definition(clocks: Clocks) -> str:
    """The definition's text with the time limits that follow from `clocks`."""
    machine = json.loads(DEFINITION.read_text())
    limits = {
        "RestoreSession": clocks.restore_state,
        "RunClaude": clocks.run_state,
        "PersistSession": clocks.persist_state,
        "RecordFailure": clocks.record_state,
    }
    machine["TimeoutSeconds"] = clocks.machine
    for name, limit in limits.items():
        state = machine["States"][name]
        state["TimeoutSeconds"] = limit
    return json.dumps(machine)
