"""The four functions, and what each of them may do: exact actions on exact resources."""

import json
from pathlib import Path

from aws_cdk import (
    Aws,
    Duration,
    IgnoreMode,
    RemovalPolicy,
    Size,
    aws_ecr_assets,
    aws_iam,
    aws_lambda,
    aws_logs,
)
from constructs import Construct

from lambdas.settings import Clocks
from stacks.deployment import Deployment
from stacks.secret import ModelSecret
from stacks.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
"""The project: the import root of the functions."""
ONLY_LAMBDAS = ["/*", "!/lambdas", "__pycache__", "*.md", ".DS_Store"]
NOT_IN_THE_ZIP = ["/lambdas/agent", "/lambdas/run_claude.py", "/lambdas/Dockerfile", "/lambdas/requirements.*"]
SESSIONS = "session-*.zip"


class Functions(Construct):
    """RestoreSession, RunClaude, PersistSession and RecordFailure, by state name in `versions`.

    RunClaude runs strangers' code: its role knows no `s3:` action, what it may touch comes as presigned grants.
    RestoreSession signs these, so its role holds the rights that they convey.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, deployment: Deployment, storage: Storage, secret: ModelSecret
    ) -> None:
        super().__init__(scope, construct_id)
        self._deployment = deployment
        self._clocks = Clocks(deployment.integration_timeout)
        self._zip = aws_lambda.Code.from_asset(
            str(ROOT), exclude=[*ONLY_LAMBDAS, *NOT_IN_THE_ZIP], ignore_mode=IgnoreMode.GIT
        )
        record = self._record_environment(storage)
        restore = self._zipped("RestoreSession", "restore_session", self._clocks.restore_function, record)
        persist = self._zipped("PersistSession", "persist_session", self._clocks.persist_function, record)
        failure = self._zipped("RecordFailure", "record_failure", self._clocks.record_function, record)
        run = self._image(secret)

        _keep_the_record(storage, restore, persist, failure)
        _allow(restore, storage.objects(SESSIONS), "s3:GetObject", "s3:GetObjectVersion")
        _allow(restore, storage.objects("runs/*"), "s3:GetObjectVersion")
        _allow(
            persist,
            storage.objects(SESSIONS),
            "s3:GetObject",
            "s3:GetObjectVersion",
            "s3:PutObject",
            "s3:AbortMultipartUpload",
        )
        _allow(persist, storage.objects("runs/*"), "s3:GetObjectVersion")
        for function in (restore, persist):
            _allow(function, [storage.bucket.bucket_arn], "s3:ListBucketVersions")
        _allow(run, [secret.secret.secret_arn], "secretsmanager:GetSecretValue")
        if deployment.provider == "bedrock":
            models = [arn for model in deployment.bedrock_models for arn in _model_arns(model)]
            _allow(run, models, "bedrock:InvokeModelWithResponseStream")

        functions = {"RestoreSession": restore, "RunClaude": run, "PersistSession": persist, "RecordFailure": failure}
        self.versions = {state: function.current_version for state, function in functions.items()}
        """Published versions: a run that a deploy overtakes ends with the code that it began with."""

    def _record_environment(self, storage: Storage) -> dict[str, str]:
        return {
            "S3_BUCKET_NAME": storage.bucket.bucket_name,
            "INTEGRATION_TIMEOUT": str(self._deployment.integration_timeout),
            "MAX_TURNS": str(self._deployment.max_turns),
            "MAX_BUDGET_USD": str(self._deployment.max_budget_usd),
            "ALLOWED_TOOLS": json.dumps(self._deployment.allowed_tools),
        }

    def _zipped(self, state: str, module: str, timeout: int, environment: dict[str, str]) -> aws_lambda.Function:
        log_group, role = self._log_group_and_role(state)
        return aws_lambda.Function(
            self,
            state,
            description=f"State {state} of {self._deployment.stack_name}",
            runtime=aws_lambda.Runtime.PYTHON_3_13,
            architecture=self._architecture,
            handler=f"lambdas.{module}.handler",
            code=self._zip,
            memory_size=1024,
            timeout=Duration.seconds(timeout),
            environment=environment,
            log_group=log_group,
            role=role,
            tracing=aws_lambda.Tracing.ACTIVE,
            current_version_options=aws_lambda.VersionOptions(removal_policy=RemovalPolicy.RETAIN),
        )

    def _image(self, secret: ModelSecret) -> aws_lambda.DockerImageFunction:
        deployment = self._deployment
        log_group, role = self._log_group_and_role("RunClaude")
        return aws_lambda.DockerImageFunction(
            self,
            "RunClaude",
            description=f"State RunClaude of {deployment.stack_name}",
            architecture=self._architecture,
            code=aws_lambda.DockerImageCode.from_image_asset(
                str(ROOT),
                file="lambdas/Dockerfile",
                platform=self._platform,
                exclude=ONLY_LAMBDAS,
                ignore_mode=IgnoreMode.GIT,
            ),
            memory_size=2048,
            ephemeral_storage_size=Size.mebibytes(deployment.ephemeral_mb),
            timeout=Duration.seconds(self._clocks.run_function),
            reserved_concurrent_executions=deployment.max_concurrent_runs,
            environment=self._agent_environment(secret),
            log_group=log_group,
            role=role,
            tracing=aws_lambda.Tracing.ACTIVE,
            current_version_options=aws_lambda.VersionOptions(removal_policy=RemovalPolicy.RETAIN),
        )

    def _agent_environment(self, secret: ModelSecret) -> dict[str, str]:
        deployment = self._deployment
        environment = {
            "MODEL_PROVIDER": deployment.provider,
            "ANTHROPIC_BASE_URL": deployment.anthropic_base_url,
            "SECRET_ARN": secret.secret.secret_arn,
            "SUPABASE_URL": deployment.supabase_url,
            "MAX_SESSION_BYTES": str(deployment.max_session_mb * 1024 * 1024),
            "MAX_SESSION_FILES": str(deployment.max_session_files),
            "SCRATCH": "/tmp/claude-agent",
        }
        if deployment.provider == "bedrock":
            environment["BEDROCK_MODEL"] = deployment.bedrock_models[0]
        return environment

    @property
    def _architecture(self) -> aws_lambda.Architecture:
        arm = self._deployment.architecture == "arm64"
        return aws_lambda.Architecture.ARM_64 if arm else aws_lambda.Architecture.X86_64

    @property
    def _platform(self) -> aws_ecr_assets.Platform:
        arm = self._deployment.architecture == "arm64"
        return aws_ecr_assets.Platform.LINUX_ARM64 if arm else aws_ecr_assets.Platform.LINUX_AMD64

    def _log_group_and_role(self, state: str) -> tuple[aws_logs.LogGroup, aws_iam.Role]:
        log_group = aws_logs.LogGroup(
            self, f"{state}Logs", retention=aws_logs.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
        )
        role = aws_iam.Role(self, f"{state}Role", assumed_by=aws_iam.ServicePrincipal("lambda.amazonaws.com"))
        role.add_to_policy(
            aws_iam.PolicyStatement(
                actions=["logs:CreateLogStream", "logs:PutLogEvents"], resources=[log_group.log_group_arn]
            )
        )
        return log_group, role


def _keep_the_record(storage: Storage, *functions: aws_lambda.Function) -> None:
    for function in functions:
        _allow(function, storage.objects("runs/*"), "s3:GetObject", "s3:PutObject")
        _allow(function, storage.objects("locks/*"), "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
        _allow(function, storage.objects("index/*"), "s3:PutObject", "s3:DeleteObject")
        # Without it a missing object is 403, not 404; and a condition on the prefix would take it away again, since a
        # GetObject carries no prefix to compare.
        _allow(function, [storage.bucket.bucket_arn], "s3:ListBucket")


def _allow(function: aws_lambda.Function, resources: list[str], *actions: str) -> None:
    function.add_to_role_policy(aws_iam.PolicyStatement(actions=list(actions), resources=resources))


def _model_arns(model: str) -> list[str]:
    """A model, or an inference profile (`us.anthropic.…`), which needs the model in every region that it may choose."""
    geography, dot, name = model.partition(".")
    if geography == "anthropic" or not dot:
        return [_bedrock_arn("foundation-model", model, region=Aws.REGION, account="")]
    return [
        _bedrock_arn("inference-profile", model, region=Aws.REGION, account=Aws.ACCOUNT_ID),
        _bedrock_arn("foundation-model", name, region="*", account=""),
    ]


def _bedrock_arn(kind: str, name: str, *, region: str, account: str) -> str:
    return f"arn:{Aws.PARTITION}:bedrock:{region}:{account}:{kind}/{name}"
