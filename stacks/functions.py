"""The functions, and what each of them may do: exact actions on exact resources."""

import json
from pathlib import Path

from aws_cdk import (
    Aws,
    Duration,
    IgnoreMode,
    RemovalPolicy,
    Size,
    aws_ec2,
    aws_ecr_assets,
    aws_iam,
    aws_lambda,
    aws_logs,
)
from constructs import Construct

from lambdas.bus import SOURCE
from lambdas.settings import LEASE_MARGIN, Clocks, Legs
from stacks.deployment import Deployment
from stacks.findings import meant
from stacks.models import INVOKE, model_arns
from stacks.network import Network
from stacks.secret import ModelSecret
from stacks.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
"""The project: the import root of the functions."""
ONLY_LAMBDAS = ["/*", "!/lambdas", "__pycache__", "*.md", ".DS_Store"]
AND_AGENT = [*ONLY_LAMBDAS, "!/agent", "!/agent/**/*.md"]
"""What RunClaude's image is built from: the files of agent/, too, among which some end in .md."""
NOT_IN_THE_ZIP = ["/lambdas/agent", "/lambdas/run_claude.py", "/lambdas/Dockerfile", "/lambdas/requirements.*"]
SESSIONS = "session-*.zip"
AGENTS = ("RunClaude", "RunLeg")
"""The functions that run strangers' code: of one image, the second for the legs of long runs."""
CANCEL = "runs/*/cancel"
EXTRACTS = "extracts/*"
REMOVES = ("s3:DeleteObject", "s3:DeleteObjectVersion")
"""What DeleteObjects asks for, of versions: the first always, by S3's own words."""
NETWORK_INTERFACES = [
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
]
"""What Lambda does in the name of a function's role to put the function into a VPC."""
STREAM_TIMEOUT = 330
"""Seconds of StreamRun's function, which ends its streams after 300, and of ReadSession's, which may have a large file
to take out of an archive."""
OFFER_TIMEOUT = 10
"""Seconds of OfferUpload's function, which writes one object."""
GATEWAY_MARGIN = 5
"""Seconds that the gateway waits longer than ReadRun does for news."""
TRACES = "X-Ray knows no resources: a segment is put into the account's traces, or not."


GIVING_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(4 * 1024 * 1024)}
"""For glibc's malloc (mallopt(3)): else each thread's heap keeps what a large session's directory once took, and a warm
function grows with every turn."""


class Functions(Construct):
    """RestoreSession, RunClaude, PersistSession and RecordFailure, by state name in `versions`; at the `door` those
    that the API hands requests to: readers of runs and sessions, and who offers uploads.

    RunClaude runs strangers' code: its role knows no `s3:` action, what it may touch comes as presigned grants.
    RestoreSession signs these, so its role holds the rights that they convey.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        deployment: Deployment,
        storage: Storage,
        secret: ModelSecret,
        private: Network | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._deployment = deployment
        self._roles: dict[str, aws_iam.Role] = {}
        self._clocks = Clocks(deployment.integration_timeout)
        self._legs = Legs(deployment.max_run_seconds)
        self._zip = aws_lambda.Code.from_asset(
            str(ROOT), exclude=[*ONLY_LAMBDAS, *NOT_IN_THE_ZIP], ignore_mode=IgnoreMode.GIT
        )
        terms = self._restore_environment(storage)
        restore = self._zipped("RestoreSession", "restore_session", self._clocks.restore_function, terms)
        commit = self._commit_environment(storage)
        persist = self._zipped("PersistSession", "persist_session", self._clocks.persist_function, commit)
        record = {"S3_BUCKET_NAME": storage.bucket.bucket_name}
        failure = self._zipped("RecordFailure", "record_failure", self._clocks.record_function, record)
        run = self._image("RunClaude", self._clocks.run_function, secret)
        leg = self._image("RunLeg", self._legs.function, secret)
        self.door = self._at_the_door(storage)
        """ReadRun, StreamRun, ReadSession, RemoveSession and OfferUpload, which the API calls; the machine calls a
        version of the first."""

        self._allow_what_each_needs(storage, secret)
        if network := private or self._network_of_the_account():
            self._into_the_network(network, run, leg)

        functions = {
            "RestoreSession": restore,
            "RunClaude": run,
            "RunLeg": leg,
            "PersistSession": persist,
            "RecordFailure": failure,
            "ReadRun": self.door["ReadRun"],
        }
        self.versions: dict[str, aws_lambda.Version | aws_lambda.Alias] = {
            state: function.current_version for state, function in functions.items()
        }
        """Published versions: a run that a deploy overtakes ends with the code that it began with. Where some of
        RunClaude are kept warm, its version is named by an alias, since versions are retained, and each would keep its
        own warm, and paid for."""
        if deployment.warm_runs:
            self.versions["RunClaude"] = self._kept_warm(run, deployment.warm_runs)

    def _kept_warm(self, run: aws_lambda.Function, many: int) -> aws_lambda.Alias:
        return aws_lambda.Alias(
            self,
            "Warm",
            alias_name="warm",
            version=run.current_version,
            provisioned_concurrent_executions=many,
        )

    def _allow_what_each_needs(self, storage: Storage, secret: ModelSecret) -> None:
        """Exact actions on exact resources, by role."""
        reads = ("s3:GetObject", "s3:GetObjectVersion")
        _keep_the_record(
            storage, *(self._roles[state] for state in ("RestoreSession", "PersistSession", "RecordFailure"))
        )
        storage.allow(self._roles["RestoreSession"], SESSIONS, *reads)
        storage.allow(self._roles["PersistSession"], SESSIONS, *reads, "s3:PutObject", "s3:AbortMultipartUpload")
        storage.allow(self._roles["PersistSession"], "runs/*", "s3:GetObjectVersion")
        for state in ("ReadRun", "StreamRun"):
            _let_read(storage, self._roles[state])
        storage.allow(self._roles["ReadRun"], CANCEL, "s3:PutObject")
        _let_show(storage, self._roles["ReadSession"])
        _let_remove(storage, self._roles["RemoveSession"])
        _let_offer(storage, self._roles["OfferUpload"])
        storage.allow(self._roles["RestoreSession"], "uploads/*", "s3:GetObject")
        storage.allow(self._roles["RestoreSession"], "uploads/*/used", "s3:PutObject")
        for role in (self._roles["RestoreSession"], self._roles["PersistSession"]):
            _allow(role, [storage.bucket.bucket_arn], "s3:ListBucketVersions")
        for state in ("PersistSession", "RecordFailure"):
            _let_tell(self._roles[state])
        for state in AGENTS:
            secret.allow(self._roles[state])
            if self._deployment.provider == "bedrock":
                _allow_models(self._roles[state], self._deployment.bedrock_models)

    def _at_the_door(self, storage: Storage) -> dict[str, aws_lambda.Function]:
        door = {
            "S3_BUCKET_NAME": storage.bucket.bucket_name,
            "AUTH": self._deployment.auth,
            "CALLERS": "{}",  # the API, which makes the keys, adds them
            "CORS_ORIGIN": self._deployment.cors_origin,
        }
        runs = door | {
            "WAIT_SECONDS": str(self._deployment.integration_timeout - GATEWAY_MARGIN),
            "LEASE_SECONDS": str(self._clocks.machine + LEASE_MARGIN),
            "LONG_LEASE_SECONDS": str(self._legs.lease),
        }
        wrapper = {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/lambdas/streaming.sh"}
        show, offer = door | wrapper | GIVING_BACK, door | self._session_limits
        seconds = self._deployment.integration_timeout
        return {
            "ReadRun": self._zipped("ReadRun", "read_run", seconds, runs, memory=512),
            "StreamRun": self._zipped("StreamRun", "stream_run", STREAM_TIMEOUT, runs | wrapper, memory=512),
            "ReadSession": self._zipped("ReadSession", "read_session", STREAM_TIMEOUT, show),
            "RemoveSession": self._zipped("RemoveSession", "remove_session", seconds, door, memory=512),
            "OfferUpload": self._zipped("OfferUpload", "offer_upload", OFFER_TIMEOUT, offer, memory=512),
        }

    def _restore_environment(self, storage: Storage) -> dict[str, str]:
        return {
            "S3_BUCKET_NAME": storage.bucket.bucket_name,
            "INTEGRATION_TIMEOUT": str(self._deployment.integration_timeout),
            "MAX_RUN_SECONDS": str(self._legs.run),
            "LEG_GATE_SECONDS": str(self._legs.gate),
            "LEG_LIMIT_SECONDS": str(self._legs.limit),
            "MAX_TURNS": str(self._deployment.max_turns),
            "MAX_BUDGET_USD": str(self._deployment.max_budget_usd),
            "MAX_SESSION_USD": json.dumps(self._deployment.max_session_usd),
            "MAX_CALLER_USD_PER_DAY": json.dumps(self._deployment.max_caller_usd_per_day),
            "MAX_USD_PER_DAY": json.dumps(self._deployment.max_usd_per_day),
            "STRICT": json.dumps(self._deployment.strict),
            "PRICES": json.dumps(self._deployment.prices),
            "ALLOWED_TOOLS": json.dumps(self._deployment.allowed_tools),
            "REPOSITORIES": self._repositories,
            "MODELS": self._models,
        }

    @property
    def _models(self) -> str:
        """With Bedrock they are the role's."""
        return json.dumps(self._deployment.models or self._deployment.bedrock_models or None)

    @property
    def _repositories(self) -> str:
        return json.dumps([each.entry for each in self._deployment.repositories])

    def _commit_environment(self, storage: Storage) -> dict[str, str]:
        return {
            "S3_BUCKET_NAME": storage.bucket.bucket_name,
            "MAX_DEAD_SHARE": str(self._deployment.max_dead_share),
            **self._session_limits,
            **GIVING_BACK,
        }

    @property
    def _session_limits(self) -> dict[str, str]:
        return {
            "MAX_SESSION_BYTES": str(self._deployment.max_session_mb * 1024 * 1024),
            "MAX_SESSION_FILES": str(self._deployment.max_session_files),
        }

    def _zipped(
        self, state: str, module: str, timeout: int, environment: dict[str, str], memory: int = 1024
    ) -> aws_lambda.Function:
        log_group, role = self._log_group_and_role(state)
        function = aws_lambda.Function(
            self,
            state,
            description=f"State {state} of {self._deployment.stack_name}",
            runtime=aws_lambda.Runtime.PYTHON_3_13,
            architecture=self._architecture,
            handler=f"lambdas.{module}.handler",
            code=self._zip,
            memory_size=memory,
            timeout=Duration.seconds(timeout),
            environment=environment,
            log_group=log_group,
            role=role,
            tracing=aws_lambda.Tracing.ACTIVE,
            current_version_options=aws_lambda.VersionOptions(removal_policy=RemovalPolicy.RETAIN),
        )
        meant(function, {"L1": "One Python for all: that of RunClaude's image, for which its packages are locked."})
        return function

    def _image(self, name: str, timeout: int, secret: ModelSecret) -> aws_lambda.DockerImageFunction:
        """RunClaude, whose function ends with its API's call or, for a leg of a long run, with Lambda's own limit."""
        deployment = self._deployment
        log_group, role = self._log_group_and_role(name)
        return aws_lambda.DockerImageFunction(
            self,
            name,
            description=f"State {name} of {deployment.stack_name}",
            architecture=self._architecture,
            code=aws_lambda.DockerImageCode.from_image_asset(
                str(ROOT),
                file="lambdas/Dockerfile",
                platform=self._platform,
                exclude=AND_AGENT,
                ignore_mode=IgnoreMode.GIT,
            ),
            memory_size=deployment.memory_mb,
            ephemeral_storage_size=Size.mebibytes(deployment.ephemeral_mb),
            timeout=Duration.seconds(timeout),
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
            "PRICES": json.dumps(deployment.prices),
            "REPOSITORIES": self._repositories,
            "PROTECTED_BRANCHES": json.dumps(deployment.protected_branches),
            "GIT_IDENTITY": json.dumps(deployment.git_identity),
            "EGRESS": json.dumps(deployment.egress.entry),
            "REGISTRIES": json.dumps(deployment.registries),
            "MODELS": self._models,
            **self._session_limits,
            "SCRATCH": "/tmp/claude-agent",
            "SANDBOX": "none",  # the machine is the function's alone
            "AGENT_NETWORK": "tried",
            "AGENT_FOLDER": "/var/task/agent",
            "WORKSPACE_INSTRUCTIONS": json.dumps(deployment.workspace_instructions),
            "ASK_BEFORE": json.dumps(deployment.ask_before),
            **GIVING_BACK,
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
        meant(role, {"IAM5[Resource::*]": TRACES})
        self._roles[state] = role
        return log_group, role

    def _network_of_the_account(self) -> Network | None:
        """By ids, so that nothing is looked up."""
        deployment, group = self._deployment, self._deployment.security_group
        if deployment.vpc is None:
            return None
        if group is None:
            nothing_in = "RunClaude: nothing in, and out whatever the routes let out"
            made = aws_ec2.CfnSecurityGroup(self, "RunClaudeGroup", group_description=nothing_in, vpc_id=deployment.vpc)
            group = made.attr_group_id
        return Network(deployment.subnets, group)

    def _into_the_network(self, network: Network, *agents: aws_lambda.Function) -> None:
        """RunClaude alone: the others run no strangers' code and need S3 only."""
        place = aws_lambda.CfnFunction.VpcConfigProperty(
            subnet_ids=list(network.subnets), security_group_ids=[network.group]
        )
        for function in agents:
            resource = function.node.default_child
            assert isinstance(resource, aws_lambda.CfnFunction)
            resource.vpc_config = place
        for state in AGENTS:
            _allow_interfaces(self._roles[state])


def _allow_interfaces(role: aws_iam.Role) -> None:
    """Lambda itself needs them, the code in the function does not: only of its calls is the condition true."""
    role.add_to_policy(aws_iam.PolicyStatement(actions=NETWORK_INTERFACES, resources=["*"]))
    meant(role, {"IAM5[Resource::*]": f"{TRACES} Lambda makes network interfaces anew, and code may not."})
    from_code = f"arn:{Aws.PARTITION}:lambda:{Aws.REGION}:{Aws.ACCOUNT_ID}:function:*"
    role.add_to_policy(
        aws_iam.PolicyStatement(
            effect=aws_iam.Effect.DENY,
            actions=NETWORK_INTERFACES,
            resources=["*"],
            conditions={"ArnLike": {"lambda:SourceFunctionArn": from_code}},
        )
    )


def _keep_the_record(storage: Storage, *roles: aws_iam.Role) -> None:
    for role in roles:
        storage.allow(role, "runs/*", "s3:GetObject", "s3:PutObject")
        storage.allow(role, "locks/*", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
        storage.allow(role, "index/*", "s3:PutObject", "s3:DeleteObject")
        storage.allow(role, "ledger/*", "s3:PutObject", "s3:DeleteObject")
        # Without it a missing object is 403, not 404; and a condition on the prefix would take it away again, since a
        # GetObject carries no prefix to compare.
        _allow(role, [storage.bucket.bucket_arn], "s3:ListBucket")
        storage.allow_key(role)


def _let_read(storage: Storage, role: aws_iam.Role) -> None:
    """Runs, and sessions only for the link in an answer, whose signer has to be allowed what it conveys."""
    storage.allow(role, "runs/*", "s3:GetObject")
    storage.allow(role, SESSIONS, "s3:GetObject")
    _allow(role, [storage.bucket.bucket_arn], "s3:ListBucket")
    storage.allow_key(role)


def _let_show(storage: Storage, role: aws_iam.Role) -> None:
    """Sessions, as they are and were; and it writes out of them what is too large for an answer."""
    storage.allow(role, SESSIONS, "s3:GetObject", "s3:GetObjectVersion")
    storage.allow(role, EXTRACTS, "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload")
    _allow(role, [storage.bucket.bucket_arn], "s3:ListBucket", "s3:ListBucketVersions")
    storage.allow_key(role)


def _let_remove(storage: Storage, role: aws_iam.Role) -> None:
    """Every version of what is a session's, under its lease. Of the ledger, what is its own; to a day's it can only
    add what was spent: of an attempt that is there twice the most counts."""
    reads = ("s3:GetObject", "s3:GetObjectVersion")
    storage.allow(role, SESSIONS, *reads, *REMOVES)
    storage.allow(role, "runs/*", *reads, *REMOVES)
    storage.allow(role, "uploads/*", "s3:GetObject", *REMOVES)
    for pattern in ("index/*", "ledger/sessions/*", EXTRACTS):
        storage.allow(role, pattern, *REMOVES)
    storage.allow(role, "ledger/*~spent~*", "s3:PutObject")
    storage.allow(role, "locks/*", "s3:GetObject", "s3:PutObject", *REMOVES)
    _allow(role, [storage.bucket.bucket_arn], "s3:ListBucket", "s3:ListBucketVersions")
    storage.allow_key(role)


def _let_offer(storage: Storage, role: aws_iam.Role) -> None:
    """Writes offers, and signs the right to write what is uploaded; it reads nothing."""
    for name in ("offer.json", "content"):
        storage.allow(role, f"uploads/*/{name}", "s3:PutObject")
    storage.allow_key(role)


def _allow(role: aws_iam.Role, resources: list[str], *actions: str) -> None:
    role.add_to_policy(aws_iam.PolicyStatement(actions=list(actions), resources=resources))


def _let_tell(role: aws_iam.Role) -> None:
    """Of runs that end, on the account's default bus, in this project's own name."""
    bus = f"arn:{Aws.PARTITION}:events:{Aws.REGION}:{Aws.ACCOUNT_ID}:event-bus/default"
    # ForAllValues: the local engine compares no event's source, and has no value to compare then.
    own_name = {"ForAllValues:StringEquals": {"events:source": SOURCE}}
    role.add_to_policy(aws_iam.PolicyStatement(actions=["events:PutEvents"], resources=[bus], conditions=own_name))


def _allow_models(role: aws_iam.Role, models: tuple[str, ...]) -> None:
    arns = [arn for model in models for arn in model_arns(model)]
    _allow(role, arns, INVOKE)
    regions = "An inference profile chooses among regions, and needs its model, named in full, in each of them."
    for arn in arns:
        if ":*:" in arn:
            meant(role, {f"IAM5[Resource::{arn.replace(Aws.PARTITION, '<AWS::Partition>')}]": regions})
