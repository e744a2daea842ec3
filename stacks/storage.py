"""The bucket that is the record: sessions, runs, leases."""

from aws_cdk import Aws, Duration, RemovalPolicy, Stack, aws_iam, aws_kms, aws_s3
from constructs import Construct

from stacks.findings import meant

KEPT = Duration.days(30)
"""How long runs and replaced session versions stay. Versions no sooner than runs, which may be pinned to them."""


class Storage(Construct):
    """One versioned, private bucket that is kept when the stack is deleted, unless the deployment says otherwise."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cors_origin: str,
        retain: bool,
        expiry_days: int | None,
        key: aws_kms.IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._key = key
        self.bucket = aws_s3.Bucket(
            self,
            "Bucket",
            versioned=True,
            block_public_access=aws_s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=aws_s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            encryption=aws_s3.BucketEncryption.KMS if key else aws_s3.BucketEncryption.S3_MANAGED,
            encryption_key=key,
            bucket_key_enabled=True if key else None,
            # Without `retain` the user empties the bucket by hand first: to do it for them would take a function of
            # CDK's own, with the right to delete every session.
            removal_policy=RemovalPolicy.RETAIN if retain else RemovalPolicy.DESTROY,
            cors=[
                aws_s3.CorsRule(
                    allowed_methods=[aws_s3.HttpMethods.GET, aws_s3.HttpMethods.PUT],
                    allowed_origins=[cors_origin],
                    allowed_headers=["*"],
                    exposed_headers=["ETag", "Content-Length", "Content-Range"],
                )
            ],
            lifecycle_rules=_rules(expiry_days),
        )
        meant(
            self.bucket,
            {
                "S1": "Access logs of the server need a second bucket to keep and guard. Eight roles and short-lived "
                "presigned URLs are all that reaches this one, and every run is in the machine's log; an account that "
                "wants every request on record turns on CloudTrail's data events."
            },
        )

    def allow(self, role: aws_iam.Role, pattern: str, *actions: str) -> None:
        """These actions of S3 on the objects under a key pattern such as `runs/*`."""
        role.add_to_policy(
            aws_iam.PolicyStatement(actions=list(actions), resources=[self.bucket.arn_for_objects(pattern)])
        )
        resource = self.bucket.node.default_child
        assert isinstance(resource, aws_s3.CfnBucket)
        meant(
            role,
            {
                f"IAM5[Resource::<{Stack.of(self).get_logical_id(resource)}.Arn>/{pattern}]": "Keys carry the ids of "
                "sessions and runs, which are not known before they begin. The pattern is one kind of object."
            },
        )

    def allow_key(self, role: aws_iam.Role) -> None:
        """What reading, writing and multipart copies need of the deployment's KMS key, through S3 only.

        Presigned requests are made in their signer's name, so whoever only uses grants needs nothing of it.
        """
        if self._key:
            role.add_to_policy(
                aws_iam.PolicyStatement(
                    actions=["kms:Decrypt", "kms:GenerateDataKey"],
                    resources=[self._key.key_arn],
                    conditions={"StringEquals": {"kms:ViaService": f"s3.{Aws.REGION}.amazonaws.com"}},
                )
            )


def _rules(expiry_days: int | None) -> list[aws_s3.LifecycleRule]:
    """What expires when; sessions `expiry_days` after their last turn, or never."""
    return [
        *(_expiring(prefix) for prefix in ("runs/", "index/", "locks/", "ledger/")),
        _expiring("extracts/", Duration.days(1)),
        _expiring("uploads/", Duration.days(1)),
        aws_s3.LifecycleRule(
            id="replaced-sessions",
            prefix="session-",
            # Counted from the last version. What expires is then a replaced version, as what is deleted.
            expiration=Duration.days(expiry_days) if expiry_days else None,
            noncurrent_version_expiration=KEPT,
        ),
        aws_s3.LifecycleRule(
            id="leftovers",
            abort_incomplete_multipart_upload_after=Duration.days(1),
            expired_object_delete_marker=True,
        ),
    ]


def _expiring(prefix: str, kept: Duration = KEPT) -> aws_s3.LifecycleRule:
    return aws_s3.LifecycleRule(
        id=f"old-{prefix.rstrip('/')}",
        prefix=prefix,
        expiration=kept,
        noncurrent_version_expiration=Duration.days(1),
    )
