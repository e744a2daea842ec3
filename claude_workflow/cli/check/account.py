"""What CloudFormation, and those it asks, say of a deployed stack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from claude_workflow.cli.check.row import NotAsked
from lambdas.strict import Json

STATES = ("RestoreSession", "RunClaude", "PersistSession", "RecordFailure")
AGENTS = ("RunClaude", "RunLeg")
FUNCTIONS = (*STATES, "RunLeg", "ReadRun", "StreamRun", "ReadSession", "RemoveSession", "OfferUpload")
POST = "claudecodePOST"
"""What the logical id of the method POST of /claude-code has in it."""
LONG = "MachineLong"
"""The machine of standard executions, and the beginning of its role's name."""


@dataclass
class Account:
    """The stack as it was deployed: its template, and what each resource is called."""

    client: Callable[[str], Any]
    """Makes a boto3 client."""
    stack: str

    @cached_property
    def _resources(self) -> Mapping[str, Json]:
        body: Json = self.client("cloudformation").get_template(StackName=self.stack)["TemplateBody"]
        resources: Mapping[str, Json] = body["Resources"]
        return resources

    @cached_property
    def called(self) -> Mapping[str, str]:
        """The physical id of each resource, by its logical one."""
        pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=self.stack)
        listed = [one for page in pages for one in page["StackResourceSummaries"]]
        return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in listed}

    def all(self, kind: str, part: str = "") -> dict[str, Json]:
        """The properties in the template of each resource of a kind whose logical id has `part` in it, by that id."""
        kinds = self._resources.items()
        return {
            name: one.get("Properties", {}) for name, one in kinds if one["Type"] == f"AWS::{kind}" and part in name
        }

    def properties(self, kind: str, part: str = "") -> Json:
        """Those of the only one. Raises `NotAsked` where the stack has none, or several."""
        return self._only(kind, part)[1]

    def id(self, kind: str, part: str = "") -> str:
        """What the only one is called in the account. Raises `NotAsked`."""
        return self.called[self._only(kind, part)[0]]

    def _only(self, kind: str, part: str) -> tuple[str, Json]:
        found = self.all(kind, part)
        if len(found) != 1:
            raise NotAsked(f"The stack has {len(found)} resources {kind} {part}: it is another version's.")
        return next(iter(found.items()))

    def function(self, state: str) -> Json:
        """The configuration of a state's function."""
        found: Json = self.client("lambda").get_function_configuration(FunctionName=self.id("Lambda::Function", state))
        return found

    def environment(self, state: str) -> Mapping[str, str]:
        """The variables of a state's function: settings and names, no secret."""
        variables: Mapping[str, str] = self.function(state)["Environment"]["Variables"]
        return variables

    @property
    def post(self) -> dict[str, str]:
        """The POST method as API Gateway's calls name it."""
        resource = self.called[self.properties("ApiGateway::Method", POST)["ResourceId"]["Ref"]]
        return {"restApiId": self.id("ApiGateway::RestApi"), "resourceId": resource, "httpMethod": "POST"}

    def integration(self) -> Json:
        """What stands behind POST, as API Gateway keeps it."""
        found: Json = self.client("apigateway").get_integration(**self.post)
        return found
