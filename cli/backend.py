"""What is behind a service: its bucket and its state machine, on this machine or in AWS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from cli.endpoint import Unusable, announced, command, outputs
from local.engine import Engine

CONNECTIONS = 16
"""More than the threads of any command."""

LONGEST = 310
"""Seconds to wait for an execution: an express one lasts 300 at the most."""


@dataclass(frozen=True)
class Backend:
    """A deployed workflow, as seen by whoever operates it."""

    bucket: str
    state_machine_arn: str
    engine: Engine | None
    """None in AWS."""

    def client(self, service: str) -> Any:
        """A boto3 client: the local engine's, or one with the ordinary AWS credentials. It never repeats a start."""
        if self.engine:
            return self.engine.client(service, read_timeout=LONGEST, connections=CONNECTIONS)
        retries = {"total_max_attempts": 1} if service == "stepfunctions" else {"mode": "standard"}
        config = Config(read_timeout=LONGEST, max_pool_connections=CONNECTIONS, retries=retries)
        return boto3.client(service, config=config)


def find(state: Path, stack: str | None) -> Backend:
    """The workflow the user means. Raises `Unusable` where there is none."""
    if stack:
        found = outputs(stack, "BucketName", "StateMachineArn")
        return Backend(found["BucketName"], found["StateMachineArn"], None)
    running = announced(state)
    if running is None:
        raise Unusable(f"No service is running. Start one in another terminal: {command()} serve")
    if "engine_root" not in running:
        raise Unusable("The running service is older than this command. Start it again.")
    engine = Engine(running["engine_url"], running["pid"], state, running["engine_root"])
    return Backend(running["bucket"], running["state_machine_arn"], engine)
