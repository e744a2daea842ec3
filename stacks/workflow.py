"""The stack: bucket, secret, functions, machine, API, and what a user needs to know of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aws_cdk import App, CfnOutput, Environment, Stack, aws_kms
from aws_cdk.cx_api import CloudAssembly
from constructs import Construct

from lambdas.agent.equipment import Equipment, Unusable
from lambdas.settings import Clocks, Legs
from stacks.api import Api
from stacks.deployment import AGENT, CDK_JSON, BadContext, Deployment
from stacks.functions import Functions
from stacks.machine import Machines
from stacks.network import Network, PrivateNetwork
from stacks.outside import hosts
from stacks.secret import ModelSecret
from stacks.storage import Storage
from stacks.warm_up import WarmUp


class ClaudeAgentWorkflow(Stack):
    """Everything that one deployment is. No physical names, so that several live side by side."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        deployment: Deployment,
        outside: Sequence[str] = (),
        env: Environment | None = None,
    ) -> None:
        """`outside` are the hosts that a private network lets RunClaude reach."""
        super().__init__(scope, construct_id, env=env, description="Claude Agent Workflow: one POST runs Claude Code")
        arn = deployment.kms_key_arn
        key = aws_kms.Key.from_key_arn(self, "Key", arn) if arn else None
        storage = Storage(
            self,
            "Storage",
            cors_origin=deployment.cors_origin,
            retain=deployment.retain_data,
            expiry_days=deployment.session_expiry_days,
            key=key,
        )
        secret = ModelSecret(self, "ModelSecret", key=key)
        private = self._private_network(deployment, storage, secret, outside)
        functions = Functions(self, "Functions", deployment=deployment, storage=storage, secret=secret, private=private)
        clocks = Clocks(deployment.integration_timeout)
        legs = Legs(deployment.max_run_seconds)
        machines = Machines(self, "Machine", clocks=clocks, legs=legs, functions=functions.versions)
        WarmUp(self, "WarmUp", run=functions.versions["RunClaude"])
        api = Api(
            self,
            "Door",
            deployment=deployment,
            machine=machines.express,
            door=functions.door,
        )
        CfnOutput(self, "ApiUrl", value=api.url, description="POST here")
        CfnOutput(self, "BucketName", value=storage.bucket.bucket_name)
        CfnOutput(self, "StateMachineArn", value=machines.express.state_machine_arn)
        CfnOutput(self, "LongMachineArn", value=machines.long.state_machine_arn)
        CfnOutput(self, "SecretArn", value=secret.secret.secret_arn)
        CfnOutput(self, "MaxSessionMb", value=str(deployment.max_session_mb))
        CfnOutput(self, "MaxSessionFiles", value=str(deployment.max_session_files))
        self._key_outputs(api)

    def _private_network(
        self, deployment: Deployment, storage: Storage, secret: ModelSecret, outside: Sequence[str]
    ) -> Network | None:
        if deployment.network != "private":
            return None
        made = PrivateNetwork(self, "Network", deployment=deployment, storage=storage, secret=secret, outside=outside)
        return made.network

    def _key_outputs(self, api: Api) -> None:
        """`ApiKeyId` is the first caller's newest key; every other key is named by its caller and generation."""
        first = next(iter(api.keys), None)
        for caller, keys in api.keys.items():
            for generation, key in keys.items():
                plain = caller == first and generation == max(keys)
                name = "" if plain else f"{caller.title().replace('-', '')}{generation}"
                CfnOutput(self, f"ApiKeyId{name}", value=key.key_id, description=f"Caller {caller}, key {generation}")


def synthesize(outdir: str, context: Mapping[str, Any] | None = None) -> CloudAssembly:
    """Writes the cloud assembly into `outdir` and returns it. Raises `BadContext`."""
    assembly = application(outdir, context).synth()
    for asset in Path(assembly.directory).glob("asset.*"):
        _let_everybody_read(asset)
    return assembly


def _let_everybody_read(asset: Path) -> None:
    """Zips and images keep the modes of the files that they are made of, and Lambda runs functions as a user who owns
    none of them: what was cloned under a umask of 077 could not be read there."""
    for path in (asset, *asset.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)


def application(outdir: str, context: Mapping[str, Any] | None = None) -> App:
    """The app with the one stack, to be synthesized into `outdir`.

    cdk.json's context is passed on by hand, because only the cdk CLI reads that file: so `python app.py`, the CLI and
    the tests see one and the same. `context` overrides single values, as `cdk -c` does. Raises `BadContext`.
    """
    chosen = {**json.loads(CDK_JSON.read_text())["context"], **(context or {})}
    app = App(context=chosen, outdir=outdir)
    # The app's context adds what `cdk -c` says, but loses every null on its way through jsii.
    deployment = Deployment.read({**chosen, **app.node.get_all_context()})
    equipment = checked_agent(AGENT)
    outside = hosts(deployment, equipment) if deployment.network == "private" else ()
    ClaudeAgentWorkflow(app, deployment.stack_name, deployment=deployment, outside=outside)
    return app


def checked_agent(folder: Path) -> Equipment:
    """What is in it, without what RunClaude would stumble over when it is deployed. Raises `BadContext`."""
    try:
        return Equipment.read(folder)
    except Unusable as wrong:
        raise BadContext(f"agent/: {wrong}") from None
    except OSError:
        raise BadContext("The folder agent/ is missing; an empty one will do.") from None
