"""What is behind a service: its bucket and its state machine, on this machine or in AWS."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from claude_workflow.cli.endpoint import Unusable, announced, of_state, outputs, typed
from claude_workflow.cli.printing import to_stderr
from claude_workflow.local import engine
from claude_workflow.local.engine import Engine, EngineFailed
from claude_workflow.local.guard import BUCKET
from lambdas.archive.format import RATIO, Limits
from stacks.deployment import CDK_JSON

CONNECTIONS = 16
"""More than the threads of any command."""

LONGEST = 310
"""Seconds to wait for an execution: an express one lasts 300 at the most."""


@dataclass(frozen=True)
class Backend:
    """A deployed workflow, as seen by whoever operates it."""

    bucket: str
    state_machine_arn: str
    """Empty where only the state directory of a service that does not run is read."""
    engine: Engine | None
    """None in AWS."""
    options: tuple[str, ...] = ()
    """Those of a command that mean this workflow again."""
    stack: str | None = None
    """Its name in AWS."""

    def limits(self) -> Limits:
        """What a session may weigh: as the stack says, or cdk.json, from which a service on this machine is made."""
        if self.stack:
            told = outputs(self.stack, "MaxSessionMb", "MaxSessionFiles")
            return Limits(int(told["MaxSessionFiles"]), int(told["MaxSessionMb"]) << 20, RATIO)
        context = json.loads(CDK_JSON.read_text())["context"]
        return Limits(context["max_session_files"], context["max_session_mb"] << 20, RATIO)

    def client(self, service: str) -> Any:
        """A boto3 client: the local engine's, or one with the ordinary AWS credentials. It never repeats a start."""
        if self.engine:
            return self.engine.client(service, read_timeout=LONGEST, connections=CONNECTIONS)
        retries = {"total_max_attempts": 1} if service == "stepfunctions" else {"mode": "standard"}
        # As the functions ask S3 (bucket/client.py): a part with a checksum wants an upload that was begun with one.
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        prefix = {"inject_host_prefix": False} if service == "stepfunctions" and _is_named(service) else {}
        config = Config(read_timeout=LONGEST, max_pool_connections=CONNECTIONS, retries=retries, **checksums, **prefix)
        return boto3.client(service, config=config)


def _is_named(service: str) -> bool:
    """Whether the operator says where a service is (AWS_ENDPOINT_URL, or `endpoint_url` in the profile).

    An SDK puts `sync-` before the host's name to start an execution and wait: a host of AWS's has such a neighbour.
    """
    usual = boto3.client(service, config=Config(ignore_configured_endpoint_urls=True))
    return bool(boto3.client(service).meta.endpoint_url != usual.meta.endpoint_url)


@contextmanager
def found(state: Path, stack: str | None, *, starts: bool) -> Iterator[Backend]:
    """The workflow the user means. Raises `Unusable` where there is none.

    Where no service runs on `state`, an engine without the workflow is started for as long as its bucket is read;
    but not where the command `starts` executions.
    """
    if stack is not None:
        named = outputs(stack, "BucketName", "StateMachineArn")
        yield Backend(named["BucketName"], named["StateMachineArn"], None, ("--stack", stack), stack)
        return
    running = announced(state)
    if running is None and starts:
        line = typed("serve", *of_state(state))
        raise Unusable(f"The service has to run for that. Start it in another terminal: {line}")
    if running is None:
        with _read(state) as started:
            yield Backend(BUCKET, "", started, of_state(state))
        return
    if not {"engine_url", "engine_root", "bucket", "state_machine_arn"} <= set(running):
        raise Unusable("The running service is older than this command. Start it again.")
    live = Engine(running["engine_url"], running["pid"], state, running["engine_root"])
    yield Backend(running["bucket"], running["state_machine_arn"], live, of_state(state))


@contextmanager
def _read(state: Path) -> Iterator[Engine]:
    """The engine on a state directory that no service uses. Raises `Unusable` where there is nothing to read."""
    nothing = Unusable(f"Nothing has run in {state}. Start the service: {typed('serve', *of_state(state))}")
    if not (state / "s3").is_dir():
        raise nothing
    try:
        with to_stderr().status(f"Reading {state} …") as status, engine.running(state.resolve()) as started:
            try:
                started.client("s3").head_bucket(Bucket=BUCKET)
            except ClientError:
                raise nothing from None
            status.stop()
            yield started
    except EngineFailed as failed:
        raise Unusable(str(failed)) from failed
