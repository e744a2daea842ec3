"""A stack in an account: the engine, not sealed, with all of the template on it, and asked as AWS is.

What this engine cannot do, no test asks of it: X-Ray, service quotas, TestInvokeMethod, access logs; of a network, the
resolver, firewalls, and ways to the internet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.local import deploy, engine
from lambdas.strict import Json

KINDS = ("VPC", "Subnet", "RouteTable", "SubnetRouteTableAssociation", "SecurityGroup", "VPCEndpoint")
NETWORK = tuple(f"AWS::EC2::{kind}" for kind in KINDS)


@contextmanager
def deployed(state: Path, template: Json) -> Iterator[Kit]:
    """The kit that asks a stack of the template as it goes to AWS, but for what has no counterpart on the engine (see
    `local.deploy`). Nothing answers posts."""
    with engine.running(state) as started:
        made = deploy.deploy(started, template, secret={"ANTHROPIC_API_KEY": "sk-ant-of-a-test"})
        resources = template["Resources"].items()
        more = {name: one for name, one in resources if "::ApiGateway::" in one["Type"] or one["Type"] in NETWORK}
        whole = {"Resources": deploy.fit(template, {})["Resources"] | more}
        deploy.update(started, whole)
        nowhere = Endpoint("http://127.0.0.1:9/claude-code", None)
        yield Kit(nowhere, Backend(made.bucket, made.state_machine_arn, started), deploy.STACK, max_dollars=0)
