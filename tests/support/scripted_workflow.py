"""The deployed machine with scripted functions in it, and what those were called with."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from lambdas.strict import Json
from tests.support.ways import envelope


def with_stand_ins(template: Json) -> Json:
    """The template with the functions of tests/support/scripted_functions.py, of which RunClaude has six seconds."""
    changed = deepcopy(template)
    for resource in changed["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function":
            properties = resource["Properties"]
            name = properties.get("Handler", "lambdas.run_claude.handler").split(".")[1]
            properties["Handler"] = f"tests.support.scripted_functions.{name}"
            if name == "run_claude":
                properties["Timeout"] = 6
    return changed


@dataclass
class Workflow:
    """The deployed machine with stand-ins, and what its functions were called with."""

    engine: Engine
    deployed: Deployed
    folder: Path

    def run(self, **script: Any) -> Json:
        machine = self.engine.client("stepfunctions")
        written = envelope(self.folder, script)
        answer: Json = machine.start_sync_execution(stateMachineArn=self.deployed.state_machine_arn, input=written)
        return answer

    def calls(self, state: str) -> list[Json]:
        folder = self.folder / state
        return [json.loads(path.read_text()) for path in folder.iterdir()] if folder.exists() else []


def function_id(deployed: Deployed, handler: str) -> str:
    found: str = next(
        name
        for name, resource in deployed.template["Resources"].items()
        if resource["Type"] == "AWS::Lambda::Function" and resource["Properties"]["Handler"].endswith(handler)
    )
    return found
