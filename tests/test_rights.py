"""What the machine and the gateway ask for, judged by their roles' policies, which nothing on one machine enforces.

The judge is the engine's own, which enforces the functions' policies whenever they ask for something.
"""

import json
import re
from typing import Any

import pytest
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

Template = dict[str, Any]
ACCOUNT = "123456789012"
PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Partition": "aws", "AWS::Region": "eu-west-1", "AWS::URLSuffix": "aws"}
KINDS = {
    "AWS::Lambda::Function": ("lambda", "function:"),
    "AWS::StepFunctions::StateMachine": ("states", "stateMachine:"),
}
"""Service and ARN of what is called."""


class Deployed:
    """The template as a stack whose functions have had `deploys` versions."""

    def __init__(self, template: Template, deploys: int) -> None:
        self._resources = template["Resources"]
        self._deploys = deploys

    def of(self, kind: str, part: str = "") -> Any:
        """The properties of the only resource of this kind, with `part` in its logical id."""
        (found,) = [r for name, r in self._resources.items() if r["Type"] == f"AWS::{kind}" and part in name]
        return self._worked_out(found["Properties"])

    def may(self, role: str, action: str, resource: str) -> bool:
        """Whether a role's one policy lets it do this."""
        policy = self.of("IAM::Policy", role)["PolicyDocument"]
        asked = EvalContext("the role", "AssumedRole", ACCOUNT, action, resource, PSEUDO["AWS::Region"])
        return bool(evaluate(asked, [parse_policy_document(policy)]).decision == "Allow")

    def _worked_out(self, value: Any) -> Any:
        match value:
            case {"Ref": name}:
                return PSEUDO.get(name) or self._reference(name)
            case {"Fn::GetAtt": [name, "Arn"]}:
                return self._arn(name)
            case {"Fn::Join": [separator, parts]}:
                return separator.join(map(self._worked_out, parts))
            case dict():
                return {name: self._worked_out(item) for name, item in value.items()}
            case list():
                return [self._worked_out(item) for item in value]
        return value

    def _reference(self, name: str) -> str:
        kind = self._resources[name]["Type"]
        if kind == "AWS::Lambda::Version":
            function = self._resources[name]["Properties"]["FunctionName"]["Ref"]
            return f"{self._arn(function)}:{self._deploys}"
        return self._arn(name) if kind == "AWS::StepFunctions::StateMachine" else name

    def _arn(self, name: str) -> str:
        kind = self._resources[name]["Type"]
        service, what = KINDS.get(kind, ("other", ""))
        return f"arn:aws:{service}:{PSEUDO['AWS::Region']}:{ACCOUNT}:{what}{name}"


def called(deployed: Deployed) -> dict[str, str]:
    """The functions that the machine's definition names, by state."""
    machine = deployed.of("StepFunctions::StateMachine")
    states = json.loads(machine["DefinitionString"])["States"]
    tasks = {name: state for name, state in states.items() if state["Type"] == "Task"}
    assert {task["Resource"] for task in tasks.values()} == {"arn:aws:states:::lambda:invoke"}
    names = {state: task["Arguments"]["FunctionName"].strip("${}") for state, task in tasks.items()}
    return {state: machine["DefinitionSubstitutions"][name] for state, name in names.items()}


@pytest.mark.parametrize("deploys", [1, 7])
def test_a_deploy_takes_no_right_from_what_is_under_way(template: Template, deploys: int) -> None:
    """The role changes before the machine does: by the policy of any deploy, the machine of the first one still calls
    what it names, and that of a later one too; other functions neither may."""
    deployed = Deployed(template, deploys)
    functions = {function for at in (1, deploys, 8) for function in called(Deployed(template, at)).values()}
    assert len(functions) == 4 * len({1, deploys, 8})
    for function in functions:
        assert deployed.may("MachineRole", "lambda:InvokeFunction", function)
        assert not deployed.may("MachineRole", "lambda:InvokeFunction", function.replace(":function:", ":function:x"))
        assert not deployed.may("MachineRole", "lambda:UpdateFunctionCode", function)


def test_rights_are_there_before_the_machine_that_needs_them(template: Template) -> None:
    """The machine waits for its role's policy, and that for no version, so one that is published changes no right."""
    machines = [r for r in template["Resources"].values() if r["Type"] == "AWS::StepFunctions::StateMachine"]
    (policy,) = [name for name in machines[0]["DependsOn"] if template["Resources"][name]["Type"] == "AWS::IAM::Policy"]
    versions = [name for name, r in template["Resources"].items() if r["Type"] == "AWS::Lambda::Version"]
    assert len(versions) == 4
    assert not [name for name in versions if name in json.dumps(template["Resources"][policy])]


def test_the_gateway_may_do_the_one_call_that_it_makes(template: Template) -> None:
    """StartSyncExecution of the machine that its template names."""
    deployed = Deployed(template, 1)
    integration = deployed.of("ApiGateway::Method", "POST")["Integration"]
    call = re.fullmatch(r"arn:aws:apigateway:[^:]+:(\w+):action/(\w+)", integration["Uri"])
    machine = re.search(r'"stateMachineArn": "([^"]+)"', integration["RequestTemplates"]["application/json"])
    assert call
    assert machine
    assert deployed.may("DoorRole", f"{call[1]}:{call[2]}", machine[1])
    assert not deployed.may("DoorRole", f"{call[1]}:StartExecution", machine[1])
    assert not deployed.may("DoorRole", f"{call[1]}:{call[2]}", f"{machine[1]}2")
