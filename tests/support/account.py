"""A stack in an account: the engine, not sealed, with all of the template on it, and asked as AWS is.

What this engine cannot do, no test asks of it: X-Ray, service quotas, TestInvokeMethod, access logs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.rows import ROWS
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.local import deploy, engine
from claude_workflow.local.engine import Engine
from lambdas.strict import Json

RULES = ("ExpirationInDays", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")


@dataclass
class Stack:
    """A deployed stack, whose resources can be changed behind CloudFormation's back, and the kit that asks it."""

    engine: Engine
    template: Json
    """As it was deployed."""
    kit: Kit = field(init=False)

    def __post_init__(self) -> None:
        machine, bucket = self.id("StepFunctions::StateMachine"), self.id("S3::Bucket")
        nowhere = Endpoint("http://127.0.0.1:9/claude-code", None)
        self.kit = Kit(nowhere, Backend(bucket, machine, self.engine), deploy.STACK, max_dollars=0)

    def id(self, kind: str, part: str = "") -> str:
        """What a resource is called, by its kind and a part of its logical id."""
        resources = self.template["Resources"].items()
        (name,) = [name for name, one in resources if part in name and one["Type"] == f"AWS::{kind}"]
        called = self.engine.client("cloudformation").describe_stack_resource(
            StackName=deploy.STACK, LogicalResourceId=name
        )
        physical: str = called["StackResourceDetail"]["PhysicalResourceId"]
        return physical

    def raw(self, name: str) -> Json:
        """The raw answer to a row of the kit, whatever it needs."""
        (row,) = [row for row in ROWS if row.name == name]
        return row.ask(self.kit)


@contextmanager
def deployed(state: Path, template: Json) -> Iterator[Stack]:
    """The template as it goes to AWS, but for what has no counterpart on the engine (see `local.deploy`)."""
    with engine.running(state) as started:
        deploy.deploy(started, template, secret={"ANTHROPIC_API_KEY": "sk-ant-of-a-test"})
        api = {name: one for name, one in template["Resources"].items() if "::ApiGateway::" in one["Type"]}
        whole = {"Resources": deploy.fit(template, {})["Resources"] | api}
        formation = started.client("cloudformation")
        formation.update_stack(StackName=deploy.STACK, TemplateBody=json.dumps(whole), Capabilities=["CAPABILITY_IAM"])
        deploy._await_stack(formation, deploy.STACK, "UPDATE")
        yield Stack(started, whole)
