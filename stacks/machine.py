"""The express state machine: the text of statemachine/ with this deployment's time limits and functions."""

from aws_cdk import RemovalPolicy, Stack, aws_iam, aws_lambda, aws_logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from lambdas.settings import Clocks
from stacks.definition import definition
from stacks.findings import meant


class Machine(Construct):
    """The machine, inline in the template where linters see it, with every state of every execution in its log."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        clocks: Clocks,
        functions: dict[str, aws_lambda.Version | aws_lambda.Alias],
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
        for function in functions.values():
            _allow_every_version(role, function.lambda_)
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


def _allow_every_version(role: aws_iam.Role, function: aws_lambda.IFunction) -> None:
    """A deploy changes this role before the machine, and runs in flight go on with the versions they began with."""
    role.add_to_policy(
        aws_iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[f"{function.function_arn}:*"])
    )
    resource = function.node.default_child
    assert isinstance(resource, aws_lambda.CfnFunction)
    name = Stack.of(role).get_logical_id(resource)
    meant(role, {f"IAM5[Resource::<{name}.Arn>:*]": "The four functions and no other, in whatever version."})
