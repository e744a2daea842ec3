"""The API as the synthesized template describes it: methods, integrations, schemas, gateway responses, keys and rates.

Everything that the gateway answers with comes out of here; what the template uses and this reader does not know is an
error at the start (`NotUnderstood`), never a difference at a request.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from claude_workflow.local.engine import ACCOUNT, REGION

Template = Mapping[str, Any]


class NotUnderstood(ValueError):
    """The template uses something of API Gateway that the local gateway does not do."""


@dataclass(frozen=True)
class Answer:
    """An integration response: how one kind of result of the backend becomes HTTP."""

    status: int
    pattern: re.Pattern[str] | None
    """Matched whole against the backend's status; None: what is taken when no other matches."""
    templates: Mapping[str, str]
    headers: Mapping[str, str]
    """Name to expression: a quoted constant, or `integration.response.header.…`."""


@dataclass(frozen=True)
class Integration:
    """What stands behind a method: `AWS` (StartSyncExecution), `AWS_PROXY` (a function) or `MOCK`."""

    kind: str
    templates: Mapping[str, str]
    """Request templates by content type."""
    passthrough: str
    """`NEVER`, `WHEN_NO_MATCH` or `WHEN_NO_TEMPLATES`."""
    timeout: float
    """Seconds."""
    answers: tuple[Answer, ...]
    function: str | None = None
    """Physical name of the function behind it."""
    streams: bool = False
    """Whether the function's answer goes out as it is made."""


@dataclass(frozen=True)
class Method:
    """One method of one resource."""

    needs_key: bool
    schemas: Mapping[str, Mapping[str, Any]]
    """JSON schemas of the body by content type; none where the method has no validator for bodies."""
    required: tuple[str, ...]
    """`method.request.header.X` and the like, where the method has a validator for parameters."""
    integration: Integration


@dataclass(frozen=True)
class GatewayResponse:
    """A gateway response: what the API says when it does not let a request through, or its backend fails."""

    status: int | None
    body: str | None
    """With `$context.…` in it; None: the service's own."""
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Api:
    """The API of a template."""

    stage: str
    methods: Mapping[str, Mapping[str, Method]]
    """By path, then by HTTP method or `ANY`."""
    gateway_responses: Mapping[str, GatewayResponse]
    """By response type, such as `INVALID_API_KEY` or `DEFAULT_4XX`."""
    machine_timeout: float | None
    """Seconds that the express machine gives an execution."""
    rate: float | None
    """Requests a second of one key, by the usage plan."""
    burst: int | None
    api_keys: tuple[str, ...] = field(default=())
    """Logical ids of the API keys."""

    def route(self, path: str) -> tuple[str, dict[str, str]] | None:
        """The resource of a path, and what stands in it for the resource's parameters; None where there is none."""
        if path in self.methods:
            return path, {}
        for resource in self.methods:
            one = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(resource))
            pattern = re.sub(r"\\{(\w+)\\\+\\}", r"(?P<\1>.+)", one)
            if found := re.fullmatch(pattern, path):
                return resource, found.groupdict()
        return None


def read_api(template: Template, ids: Mapping[str, str]) -> Api:
    """The API of `template`; `ids` has the physical ids of what was deployed (anything else keeps its logical id)."""
    return _Reader(template, ids).api()


def callers(template: Template) -> dict[str, str]:
    """The logical ids of the API keys, with the caller and the generation of each, such as `default-1`.

    The first is the one that the output `ApiKeyId` names: the first caller's newest.
    """
    first = template.get("Outputs", {}).get("ApiKeyId", {}).get("Value", {}).get("Ref")
    found = {}
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::ApiGateway::ApiKey":
            described = re.search(r"caller (\S+), generation (\d+)$", resource["Properties"]["Description"])
            if not described:
                raise NotUnderstood(f"The description of the API key {name}.")
            found[name] = f"{described[1]}-{described[2]}"
    return dict(sorted(found.items(), key=lambda item: item[0] != first))


class _Reader:
    def __init__(self, template: Template, ids: Mapping[str, str]) -> None:
        self.resources: Mapping[str, Any] = template["Resources"]
        self.ids = ids

    def api(self) -> Api:
        throttle: Mapping[str, Any] = next((plan.get("Throttle", {}) for _, plan in self._all("UsagePlan")), {})
        return Api(
            stage=next((str(stage["StageName"]) for _, stage in self._all("Stage")), "prod"),
            methods=self._methods(),
            gateway_responses={
                one["ResponseType"]: self._gateway_response(one) for _, one in self._all("GatewayResponse")
            },
            machine_timeout=self._machine_timeout(),
            rate=throttle.get("RateLimit"),
            burst=throttle.get("BurstLimit"),
            api_keys=tuple(name for name, _ in self._all("ApiKey")),
        )

    def _all(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, resource in self.resources.items():
            if resource["Type"] == f"AWS::ApiGateway::{kind}":
                yield name, resource.get("Properties", {})

    def _methods(self) -> dict[str, dict[str, Method]]:
        methods: dict[str, dict[str, Method]] = {}
        for _, method in self._all("Method"):
            methods.setdefault(self._path(method["ResourceId"]), {})[method["HttpMethod"]] = self._method(method)
        return methods

    def _path(self, resource: Any) -> str:
        if "Ref" not in resource:  # Fn::GetAtt RootResourceId
            return "/"
        properties = self.resources[resource["Ref"]]["Properties"]
        return f"{self._path(properties['ParentId']).rstrip('/')}/{properties['PathPart']}"

    def _method(self, method: Mapping[str, Any]) -> Method:
        if method.get("AuthorizationType", "NONE") != "NONE":
            raise NotUnderstood(f"AuthorizationType {method['AuthorizationType']}: auth must be api-key or none here.")
        validator = self._referred(method.get("RequestValidatorId"))
        parameters = method.get("RequestParameters", {}) if validator.get("ValidateRequestParameters") else {}
        models = method.get("RequestModels", {}) if validator.get("ValidateRequestBody") else {}
        return Method(
            needs_key=bool(method.get("ApiKeyRequired")),
            schemas={kind: self._referred(model)["Schema"] for kind, model in models.items()},
            required=tuple(name for name, required in parameters.items() if required),
            integration=self._integration(method["Integration"]),
        )

    def _referred(self, reference: Any) -> Mapping[str, Any]:
        return self.resources[reference["Ref"]].get("Properties", {}) if reference else {}

    def _integration(self, integration: Mapping[str, Any]) -> Integration:
        kind, uri = integration["Type"], self.text(integration.get("Uri", ""))
        statuses = [answer["StatusCode"] for answer in integration.get("IntegrationResponses", [])]
        if len(set(statuses)) < len(statuses):
            raise NotUnderstood(
                f"Integration responses with the statuses {', '.join(statuses)}: AWS keeps one of each."
            )
        function, action = self._function(integration)
        streams = integration.get("ResponseTransferMode") == "STREAM"
        known = kind == "MOCK" or (kind == "AWS" and uri.endswith(":states:action/StartSyncExecution"))
        handed = kind == "AWS_PROXY" and action == ("response-streaming-invocations" if streams else "invocations")
        if not known and not handed:
            raise NotUnderstood(f"An integration of type {kind} with {uri or 'no URI'}.")
        return Integration(
            kind=kind,
            templates={name: self.text(text) for name, text in integration.get("RequestTemplates", {}).items()},
            passthrough=integration.get("PassthroughBehavior", "WHEN_NO_MATCH"),
            timeout=integration.get("TimeoutInMillis", 29_000) / 1000,
            answers=tuple(self._answer(answer) for answer in integration.get("IntegrationResponses", [])),
            function=function,
            streams=streams,
        )

    def _function(self, integration: Mapping[str, Any]) -> tuple[str | None, str]:
        """The function that an integration's URI names, and what is asked of it."""
        match integration.get("Uri"):
            case {"Fn::Join": ["", [*_, {"Fn::GetAtt": [str() as name, "Arn"]}, str() as action]]}:
                return self.ids.get(name, name), action.strip("/")
        return None, ""

    def _answer(self, answer: Mapping[str, Any]) -> Answer:
        pattern = answer.get("SelectionPattern")
        return Answer(
            status=int(answer["StatusCode"]),
            pattern=re.compile(pattern) if pattern else None,
            # By no other name than its own is this gateway reached, and by plain HTTP.
            templates={
                name: self.text(text).replace("https://$context.domainName", "http://$context.domainName")
                for name, text in answer.get("ResponseTemplates", {}).items()
            },
            headers=self._headers(answer, "method.response.header."),
        )

    def _gateway_response(self, response: Mapping[str, Any]) -> GatewayResponse:
        body = response.get("ResponseTemplates", {}).get("application/json")
        return GatewayResponse(
            status=int(response["StatusCode"]) if "StatusCode" in response else None,
            body=None if body is None else self.text(body),
            headers=self._headers(response, "gatewayresponse.header."),
        )

    def _headers(self, holder: Mapping[str, Any], prefix: str) -> dict[str, str]:
        parameters = holder.get("ResponseParameters", {})
        return {name.removeprefix(prefix): self.text(value) for name, value in parameters.items()}

    def _machine_timeout(self) -> float | None:
        for resource in self.resources.values():
            machine = resource["Type"] == "AWS::StepFunctions::StateMachine"
            if machine and resource["Properties"]["StateMachineType"] == "EXPRESS":
                definition = json.loads(self.text(resource["Properties"]["DefinitionString"]))
                seconds = definition.get("TimeoutSeconds")
                return None if seconds is None else float(seconds)
        return None

    def text(self, value: Any) -> str:
        """A value with its intrinsic functions worked out."""
        match value:
            case str() | int() | float():
                return str(value)
            case {"Ref": name}:
                return PSEUDO.get(name) or self.ids.get(name, name)
            case {"Fn::Join": [separator, parts]}:
                return str(separator).join(self.text(part) for part in parts)
            case {"Fn::GetAtt": [name, "Arn" | "Name"]}:
                return self.ids.get(name, name)
        raise NotUnderstood(f"The template's {json.dumps(value)}.")


PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::URLSuffix": "amazonaws.com",
}
