"""The definition's text. Whoever only reads it needs no CDK, whose import starts a process."""

import json
from pathlib import Path

from lambdas.settings import Clocks, Legs

DEFINITION = Path(__file__).resolve().parent.parent / "statemachine" / "claude_agent_workflow.asl.json"

ITSELF = "{% $states.context.StateMachine.Id %}"
"""What the long machine calls itself by: in a template nothing can name itself."""


def definition(clocks: Clocks, legs: Legs | None = None) -> str:
    """The definition's text with the time limits that follow from `clocks`: of the express machine or, with `legs`, of
    the long one."""
    machine = json.loads(DEFINITION.read_text())
    limits = {
        "RestoreSession": clocks.restore_state,
        "RunClaude": legs.state if legs else clocks.run_state,
        "PersistSession": clocks.persist_state,
        "RecordFailure": clocks.record_state,
    }
    machine["TimeoutSeconds"] = legs.machine if legs else clocks.machine
    for name, limit in limits.items():
        state = machine["States"][name]
        state["TimeoutSeconds"] = limit
    return json.dumps(machine)
