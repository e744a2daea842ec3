"""The state machines: the text of statemachine/ with this deployment's time limits and functions."""

from collections.abc import Mapping

from aws_cdk import RemovalPolicy, Stack, aws_iam, aws_lambda, aws_logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from lambdas.settings import Clocks, Legs
from stacks.definition import ITSELF, definition
from stacks.findings import meant


class Machines(Construct):
    """Both machines, inline in the template where linters see them, with every state of every execution in one log."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        clocks: Clocks,
        legs: Legs,
        functions: Mapping[str, aws_lambda.Version | aws_lambda.Alias],
    ) -> None:
        super().__init__(scope, construct_id)
        # The console shows an express execution out of this log only; Step Functions asks for the name's beginning.
        self._log_group = aws_logs.LogGroup(
            self,
            "Logs",
            log_group_name=f"/aws/vendedlogs/states/{Stack.of(self).stack_name}",
            retention=aws_logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        leg = functions["RunLeg"]
        own = {state: function for state, function in functions.items() if state != "RunLeg"}
        long = self._machine("Long", "STANDARD", definition(clocks, legs), {**own, "RunClaude": leg}, ITSELF)
        self.long: sfn.StateMachine = long
        """Of standard executions, which take what may last longer than a POST."""
        self.express = self._machine("Machine", "EXPRESS", definition(clocks), own, long.state_machine_arn)
        """The one that POSTs start."""
        self.express.role.add_to_principal_policy(
            aws_iam.PolicyStatement(actions=["states:StartExecution"], resources=[long.state_machine_arn])
        )

    def _machine(
        self,
        name: str,
        kind: str,
        text: str,
        functions: Mapping[str, aws_lambda.Version | aws_lambda.Alias],
        long_machine: str,
    ) -> sfn.StateMachine:
        """One of them, which may call these functions, by their states."""
        suffix = "" if name == "Machine" else name
        role = aws_iam.Role(self, f"{suffix}Role", assumed_by=aws_iam.ServicePrincipal("states.amazonaws.com"))
        for function in functions.values():
            _allow_every_version(role, function.lambda_)
        meant(role, {"IAM5[Resource::*]": "Delivery of logs and X-Ray know no resources; CDK adds what they need."})
        arns = {state: function.function_arn for state, function in functions.items()}
        return sfn.StateMachine(
            self,
            name,
            state_machine_type=sfn.StateMachineType[kind],
            definition_body=sfn.DefinitionBody.from_string(text),
            definition_substitutions={**arns, "LongMachine": long_machine},
            role=role,
            tracing_enabled=True,
            logs=sfn.LogOptions(destination=self._log_group, level=sfn.LogLevel.ALL, include_execution_data=True),
        )


def _allow_every_version(role: aws_iam.Role, function: aws_lambda.IFunction) -> None:
    """A deploy changes this role before the machine, and runs in flight go on with the versions they began with."""
    role.add_to_policy(
        aws_iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[f"{function.function_arn}:*"])
    )
    resource = function.node.default_child
    assert isinstance(resource, aws_lambda.CfnFunction)
    name = Stack.of(role).get_logical_id(resource)
    meant(role, {f"IAM5[Resource::<{name}.Arn>:*]": "The workflow's own functions and no other, in whatever version."})
