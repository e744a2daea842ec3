"""The express state machine: the text of statemachine/ with this deployment's time limits and functions."""

import json
from pathlib import Path

from aws_cdk import RemovalPolicy, Stack, aws_iam, aws_lambda, aws_logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from lambdas.settings import Clocks
from stacks.findings import meant

DEFINITION = Path(__file__).resolve().parent.parent / "statemachine" / "claude_agent_workflow.asl.json"


class Machine(Construct):
    """The machine, inline in the template where linters see it, with every state of every execution in its log."""

    def __init__(
        self, scope: Construct, construct_id: str, *, clocks: Clocks, functions: dict[str, aws_lambda.Version]
    ) -> None:
        super().__init__(scope, construct_id)
        arns = {state: function.function_arn for state, function in functions.items()}
        # The console shows an express execution out of this log only; Step Functions asks for the name's beginning.
        log_group = aws_logs.LogGroup(
            self,
            "Logs",
            log_group_name=f"/aws/vendedlogs/states/{Stack.of(self).stack_name}",
            retention=aws_logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        role = aws_iam.Role(self, "Role", assumed_by=aws_iam.ServicePrincipal("states.amazonaws.com"))
        role.add_to_policy(aws_iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=list(arns.values())))
        meant(role, {"IAM5[Resource::*]": "Delivery of logs and X-Ray know no resources; CDK adds what they need."})
        self.machine = sfn.StateMachine(
            self,
            "Machine",
            state_machine_type=sfn.StateMachineType.EXPRESS,
            definition_body=sfn.DefinitionBody.from_string(definition(clocks)),
            definition_substitutions=arns,
            role=role,
            tracing_enabled=True,
            logs=sfn.LogOptions(destination=log_group, level=sfn.LogLevel.ALL, include_execution_data=True),
        )


def definition(clocks: Clocks) -> str:
    """The definition's text with the time limits that follow from `clocks`."""
    machine = json.loads(DEFINITION.read_text())
    machine["TimeoutSeconds"] = clocks.machine
    machine["States"]["RestoreSession"]["TimeoutSeconds"] = clocks.restore_state
    machine["States"]["RunClaude"]["TimeoutSeconds"] = clocks.run_state
    machine["States"]["PersistSession"]["TimeoutSeconds"] = clocks.persist_state
    machine["States"]["RecordFailure"]["TimeoutSeconds"] = clocks.record_state
    return json.dumps(machine)
