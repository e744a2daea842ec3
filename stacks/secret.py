"""The secret with the model's credential: made with placeholders, filled by the operator."""

from aws_cdk import RemovalPolicy, SecretValue, aws_secretsmanager
from constructs import Construct

UNSET = "unset"
"""What stands in the secret until the operator puts a key there. A deploy does not write over the operator's value."""


class ModelSecret(Construct):
    """`{"ANTHROPIC_API_KEY": …, "SUPABASE_SERVICE_KEY": …}`, read by RunClaude alone.

    It goes with the stack: a credential that outlives what it was for is worse than one to be typed in again.
    """

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        placeholder = SecretValue.unsafe_plain_text(UNSET)
        self.secret = aws_secretsmanager.Secret(
            self,
            "Secret",
            description="Credentials that RunClaude adds to the agent's requests; the agent never sees them.",
            secret_object_value={"ANTHROPIC_API_KEY": placeholder, "SUPABASE_SERVICE_KEY": placeholder},
            removal_policy=RemovalPolicy.DESTROY,
        )
