"""The warm-up: when a deploy is done, RunClaude is started once, so that the first run finds it ready."""

from aws_cdk import Stack, aws_events, aws_lambda
from aws_cdk import aws_events_targets as targets
from constructs import Construct

from lambdas.contract import WARM_UP

DEPLOYED = ["CREATE_COMPLETE", "UPDATE_COMPLETE"]
"""What CloudFormation says of a stack when all of it is there."""


class WarmUp(Construct):
    """A rule on the stack's own events, which may invoke the one version of RunClaude that was deployed.

    A trigger of the CDK's would do it while the deploy goes on, and fail it. It is a custom resource: a function
    more, in another language, with a role of its own.
    """

    def __init__(self, scope: Construct, construct_id: str, *, run: aws_lambda.IFunction) -> None:
        super().__init__(scope, construct_id)
        aws_events.Rule(
            self,
            "Rule",
            description="Starts RunClaude when a deploy is done",
            event_pattern=aws_events.EventPattern(
                source=["aws.cloudformation"],
                detail_type=["CloudFormation Stack Status Change"],
                detail={"stack-id": [Stack.of(self).stack_id], "status-details": {"status": DEPLOYED}},
            ),
            targets=[targets.LambdaFunction(run, event=aws_events.RuleTargetInput.from_object(WARM_UP))],
        )
