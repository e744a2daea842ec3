"""The secret with the model's credential: made with placeholders, filled by the operator."""

from aws_cdk import Aws, RemovalPolicy, SecretValue, aws_iam, aws_kms, aws_secretsmanager
from constructs import Construct

from stacks.findings import meant

UNSET = "unset"
"""What stands in the secret until the operator puts a key there. A deploy does not write over the operator's value."""


class ModelSecret(Construct):
    """`{"ANTHROPIC_API_KEY": …, "SUPABASE_SERVICE_KEY": …}`, read by RunClaude alone.

    It goes with the stack: a credential that outlives what it was for is worse than one to be typed in again.
    """

    def __init__(self, scope: Construct, construct_id: str, *, key: aws_kms.IKey | None) -> None:
        super().__init__(scope, construct_id)
        placeholder = SecretValue.unsafe_plain_text(UNSET)
        self.secret = aws_secretsmanager.Secret(
            self,
            "Secret",
            description="Credentials that RunClaude adds to the agent's requests; the agent never sees them.",
            secret_object_value={"ANTHROPIC_API_KEY": placeholder, "SUPABASE_SERVICE_KEY": placeholder},
            encryption_key=key,
            removal_policy=RemovalPolicy.DESTROY,
        )
        meant(
            self.secret,
            {
                "SMG4": "The keys are made by hand at their providers, and no function here could make new ones. "
                "A new one is typed in, and read again as soon as the old one is refused."
            },
        )
        self._key = key

    def allow(self, role: aws_iam.Role) -> None:
        """To read this secret, and to decrypt nothing else with the deployment's KMS key."""
        role.add_to_policy(
            aws_iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=[self.secret.secret_arn])
        )
        if self._key:
            only_here = {
                "kms:ViaService": f"secretsmanager.{Aws.REGION}.amazonaws.com",
                "kms:EncryptionContext:SecretARN": self.secret.secret_arn,
            }
            role.add_to_policy(
                aws_iam.PolicyStatement(
                    actions=["kms:Decrypt"], resources=[self._key.key_arn], conditions={"StringEquals": only_here}
                )
            )
