"""What the machines and the gateway ask for, judged by their roles' policies, which nothing on one machine enforces.

The judge is the engine's own, which enforces the functions' policies whenever they ask for something.
"""

import json
import re
from typing import Any

import pytest
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

from lambdas.bus import SOURCE

Template = dict[str, Any]
ACCOUNT = "123456789012"
PSEUDO = {"AWS::AccountId": ACCOUNT, "AWS::Partition": "aws", "AWS::Region": "eu-west-1", "AWS::URLSuffix": "aws"}
KINDS = {
    "AWS::Lambda::Function": ("lambda", "function:"),
    "AWS::StepFunctions::StateMachine": ("states", "stateMachine:"),
}
"""Service and ARN of what is called."""
MACHINES = {"EXPRESS": "MachineRole", "STANDARD": "MachineLongRole"}
"""Their roles, by their types."""


class Deployed:
    """The template as a stack whose functions have had `deploys` versions."""

    def __init__(self, template: Template, deploys: int) -> None:
        self._resources = template["Resources"]
        self._deploys = deploys

    def of(self, kind: str, part: str = "") -> Any:
        """The properties of the only resource of this kind, with `part` in its logical id."""
        (found,) = [r for name, r in self._resources.items() if r["Type"] == f"AWS::{kind}" and part in name]
        return self._worked_out(found["Properties"])

    def machine(self, kind: str) -> Any:
        """The properties of the machine of this type."""
        machines = [
            r["Properties"] for r in self._resources.values() if r["Type"] == "AWS::StepFunctions::StateMachine"
        ]
        return self._worked_out(next(each for each in machines if each["StateMachineType"] == kind))

    def may(self, role: str, action: str, resource: str, **about: str) -> bool:
        """Whether a role's one policy lets it do this, with what the service says `about` the call."""
        policy = self.of("IAM::Policy", role)["PolicyDocument"]
        said = {f"{action.split(':')[0]}:{name}": value for name, value in about.items()}
        asked = EvalContext(
            "the role", "AssumedRole", ACCOUNT, action, resource, PSEUDO["AWS::Region"], service_context=said
        )
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


INVOKE, START = "arn:aws:states:::lambda:invoke", "arn:aws:states:::states:startExecution"


def called(deployed: Deployed, kind: str) -> dict[str, str]:
    """The functions that a machine's definition names, by state."""
    machine = deployed.machine(kind)
    states = json.loads(machine["DefinitionString"])["States"]
    tasks = {name: state for name, state in states.items() if state["Type"] == "Task"}
    assert {name for name, task in tasks.items() if task["Resource"] != INVOKE} == {"HandOver"}
    assert tasks.pop("HandOver")["Resource"] == START
    names = {state: task["Arguments"]["FunctionName"].strip("${}") for state, task in tasks.items()}
    return {state: machine["DefinitionSubstitutions"][name] for state, name in names.items()}


@pytest.mark.parametrize("kind", MACHINES)
@pytest.mark.parametrize("deploys", [1, 7])
def test_a_deploy_takes_no_right_from_what_is_under_way(template: Template, deploys: int, kind: str) -> None:
    """The role changes before the machine does: by the policy of any deploy, the machine of the first one still calls
    what it names, and that of a later one too; other functions neither may."""
    deployed, role = Deployed(template, deploys), MACHINES[kind]
    functions = {function for at in (1, deploys, 8) for function in called(Deployed(template, at), kind).values()}
    assert len(functions) == 5 * len({1, deploys, 8})
    for function in functions:
        assert deployed.may(role, "lambda:InvokeFunction", function)
        assert not deployed.may(role, "lambda:InvokeFunction", function.replace(":function:", ":function:x"))
        assert not deployed.may(role, "lambda:UpdateFunctionCode", function)


def test_each_machine_runs_claude_in_its_own_function(template: Template) -> None:
    """A POST's run must not go on behind the gateway's back, and a leg not end with a POST's time."""
    deployed = Deployed(template, 1)
    run, leg = (called(deployed, kind)["RunClaude"] for kind in MACHINES)
    assert run != leg
    assert not deployed.may("MachineRole", "lambda:InvokeFunction", leg)
    assert not deployed.may("MachineLongRole", "lambda:InvokeFunction", run)


def test_the_express_machine_may_hand_over_to_the_long_one(template: Template) -> None:
    """StartExecution of the machine that its definition names, and nothing else of Step Functions; nobody else may."""
    deployed = Deployed(template, 1)
    machine = deployed.machine("EXPRESS")
    assert (
        json.loads(machine["DefinitionString"])["States"]["HandOver"]["Arguments"]["StateMachineArn"]
        == "${LongMachine}"
    )
    long = machine["DefinitionSubstitutions"]["LongMachine"]
    assert deployed.may("MachineRole", "states:StartExecution", long)
    assert not deployed.may("MachineRole", "states:StartExecution", f"{long}2")
    for action in ("StartSyncExecution", "StopExecution", "DescribeExecution", "UpdateStateMachine"):
        assert not deployed.may("MachineRole", f"states:{action}", long)
    agents, readers = (
        ("FunctionsRunClaude", "FunctionsRunLeg"),
        ("FunctionsReadRun", "FunctionsStreamRun", "FunctionsReadSession"),
    )
    for other in ("MachineLongRole", "DoorRole", "FunctionsRestoreSession", *agents, *readers):
        assert not deployed.may(other, "states:StartExecution", long)


@pytest.mark.parametrize("kind", MACHINES)
def test_rights_are_there_before_the_machine_that_needs_them(template: Template, kind: str) -> None:
    """The machine waits for its role's policy, and that for no version, so one that is published changes no right."""
    resources = template["Resources"]
    machines = [r for r in resources.values() if r["Type"] == "AWS::StepFunctions::StateMachine"]
    (machine,) = [each for each in machines if each["Properties"]["StateMachineType"] == kind]
    (policy,) = [name for name in machine["DependsOn"] if resources[name]["Type"] == "AWS::IAM::Policy"]
    assert re.fullmatch(f"{MACHINES[kind]}DefaultPolicy[0-9A-F]{{8}}", policy)
    versions = [name for name, r in resources.items() if r["Type"] == "AWS::Lambda::Version"]
    assert len(versions) == 6
    assert not [name for name in versions if name in json.dumps(resources[policy])]


def test_the_gateway_may_do_the_one_call_that_it_makes(template: Template) -> None:
    """StartSyncExecution of the machine that its template names."""
    deployed = Deployed(template, 1)
    integration = deployed.of("ApiGateway::Method", "claudecodePOST")["Integration"]
    call = re.fullmatch(r"arn:aws:apigateway:[^:]+:(\w+):action/(\w+)", integration["Uri"])
    machine = re.search(r'"stateMachineArn": "([^"]+)"', integration["RequestTemplates"]["application/json"])
    assert call
    assert machine
    assert deployed.may("DoorRole", f"{call[1]}:{call[2]}", machine[1])
    assert not deployed.may("DoorRole", f"{call[1]}:StartExecution", machine[1])
    assert not deployed.may("DoorRole", f"{call[1]}:{call[2]}", f"{machine[1]}2")


@pytest.mark.parametrize("state", ["PersistSession", "RecordFailure"])
def test_who_ends_a_run_may_tell_of_it(template: Template, state: str) -> None:
    """PutEvents on the account's default bus in this project's name; nobody else may, and no other call."""
    deployed = Deployed(template, 1)
    bus = f"arn:aws:events:{PSEUDO['AWS::Region']}:{ACCOUNT}:event-bus/default"
    own = {"source": SOURCE}
    assert deployed.may(f"Functions{state}", "events:PutEvents", bus, **own)
    assert not deployed.may(f"Functions{state}", "events:PutEvents", bus, source="aws.ec2")
    assert not deployed.may(f"Functions{state}", "events:PutEvents", f"{bus}2", **own)
    assert not deployed.may(f"Functions{state}", "events:PutRule", bus, **own)
    others = ("RestoreSession", "RunClaude", "RunLeg", "ReadRun", "StreamRun", "ReadSession", "RemoveSession")
    for other in (*(f"Functions{name}" for name in others), *MACHINES.values(), "DoorRole"):
        assert not deployed.may(other, "events:PutEvents", bus, **own)
