"""Models on Bedrock: what a policy has to name of each."""

from aws_cdk import Aws

INVOKE = "bedrock:InvokeModelWithResponseStream"
"""The one call of Bedrock's that a run makes."""


def model_arns(model: str) -> list[str]:
    """A model, or an inference profile (`us.anthropic.…`), which needs the model in every region that it may choose."""
    geography, dot, name = model.partition(".")
    if geography == "anthropic" or not dot:
        return [_arn("foundation-model", model, region=Aws.REGION, account="")]
    return [
        _arn("inference-profile", model, region=Aws.REGION, account=Aws.ACCOUNT_ID),
        _arn("foundation-model", name, region="*", account=""),
    ]


def _arn(kind: str, name: str, *, region: str, account: str) -> str:
    return f"arn:{Aws.PARTITION}:bedrock:{region}:{account}:{kind}/{name}"
