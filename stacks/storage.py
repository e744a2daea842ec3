"""The bucket that is the record: sessions, runs, leases."""

from aws_cdk import Duration, RemovalPolicy, aws_s3
from constructs import Construct

KEPT = Duration.days(30)
"""How long runs and replaced session versions stay. Versions no sooner than runs, which may be pinned to them."""


class Storage(Construct):
    """One versioned, private bucket that is kept when the stack is deleted, unless the deployment says otherwise."""

    def __init__(self, scope: Construct, construct_id: str, *, cors_origin: str, retain: bool) -> None:
        super().__init__(scope, construct_id)
        self.bucket = aws_s3.Bucket(
            self,
            "Bucket",
            versioned=True,
            block_public_access=aws_s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=aws_s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            encryption=aws_s3.BucketEncryption.S3_MANAGED,
            # Without `retain` the user empties the bucket by hand first: to do it for them would take a function of
            # CDK's own, with the right to delete every session.
            removal_policy=RemovalPolicy.RETAIN if retain else RemovalPolicy.DESTROY,
            cors=[
                aws_s3.CorsRule(
                    allowed_methods=[aws_s3.HttpMethods.GET],
                    allowed_origins=[cors_origin],
                    allowed_headers=["*"],
                    exposed_headers=["ETag", "Content-Length", "Content-Range"],
                )
            ],
            lifecycle_rules=[
                *(_expiring(prefix) for prefix in ("runs/", "index/", "locks/")),
                aws_s3.LifecycleRule(id="replaced-sessions", prefix="session-", noncurrent_version_expiration=KEPT),
                aws_s3.LifecycleRule(
                    id="leftovers",
                    abort_incomplete_multipart_upload_after=Duration.days(1),
                    expired_object_delete_marker=True,
                ),
            ],
        )

    def objects(self, *patterns: str) -> list[str]:
        """ARNs of the objects under key patterns such as `runs/*`."""
        return [self.bucket.arn_for_objects(pattern) for pattern in patterns]


def _expiring(prefix: str) -> aws_s3.LifecycleRule:
    return aws_s3.LifecycleRule(
        id=f"old-{prefix.rstrip('/')}",
        prefix=prefix,
        expiration=KEPT,
        noncurrent_version_expiration=Duration.days(1),
    )
