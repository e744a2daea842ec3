"""The HTTP door: one regional REST API, whose every answer is JSON of one shape and readable from a browser."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack, aws_iam, aws_lambda, aws_logs
from aws_cdk import aws_apigateway as gateway
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from lambdas import errors
from lambdas.request import BODY_BYTES
from lambdas.settings import EXPOSED_HEADERS
from stacks import gateway_answers
from stacks.deployment import Deployment
from stacks.findings import meant
from stacks.functions import GATEWAY_MARGIN, OFFER_TIMEOUT, STREAM_TIMEOUT

ORIGIN = "https://$context.domainName"
"""Where the API is, to its own templates."""
POLL_SECONDS = 2
"""When who was answered 202 may ask how the run goes."""
TEMPLATES = Path(__file__).resolve().parent / "templates"
MAX_ESCAPED = 1_000_000
"""Characters of a body, escaped as the call's JSON has it: of the call's 1 MiB the rest is the envelope's."""
ALLOWED_HEADERS = (
    "content-type,x-api-key,authorization,idempotency-key,prefer,last-event-id,x-amz-date,x-amz-security-token"
)
STREAM_WAIT = Duration.seconds(STREAM_TIMEOUT)
NEVER_SENT = "method.request.header.X-Never-Allowed"
ALLOW = "POST, OPTIONS"
ACCESS_LOG = {
    "time": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "key": "$context.identity.apiKeyId",
    "user": "$context.identity.userArn",
    "method": "$context.httpMethod",
    "path": "$context.path",
    "status": "$context.status",
    "request": "$context.requestId",
    "extended": "$context.extendedRequestId",
    "integration_ms": "$context.integrationLatency",
    "ms": "$context.responseLatency",
}
"""Who, from where, what came of it. Not what was asked: no body, no header."""
NO_AUTHORIZER = {
    "api-key": "POST asks for an API key of the usage plan, which names the caller.",
    "none": "The deployment's cdk.json says that everyone may ask.",
}
"""Why POST has no authorizer, where it has none."""


class Api(Construct):
    """`/claude-code`: POST runs, OPTIONS serves browsers, anything else is 405. Below it: runs, sessions, uploads."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        deployment: Deployment,
        machine: sfn.StateMachine,
        door: Mapping[str, aws_lambda.Function],
    ) -> None:
        super().__init__(scope, construct_id)
        self._deployment = deployment
        self._cors = {
            "Access-Control-Allow-Origin": deployment.cors_origin,
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        }
        self.api = self._rest_api()
        self._gateway_responses()
        self.keys = self._keys_and_plan() if deployment.auth == "api-key" else {}
        """API keys by caller and generation; empty where another way of authentication is configured."""
        claude_code = self.api.root.add_resource("claude-code")
        self._role = aws_iam.Role(self, "Role", assumed_by=aws_iam.ServicePrincipal("apigateway.amazonaws.com"))
        self._post(claude_code, machine)
        self._options(claude_code, "POST")
        self._any_other(claude_code)
        self._let_ask(door)
        self._runs(claude_code, door)
        self._sessions(claude_code, door)
        self._uploads(claude_code, door["OfferUpload"])
        self.url = self.api.url_for_path("/claude-code")

    def _rest_api(self) -> gateway.RestApi:
        deployment = self._deployment
        log_group = aws_logs.LogGroup(
            self, "AccessLog", retention=aws_logs.RetentionDays.ONE_MONTH, removal_policy=RemovalPolicy.DESTROY
        )
        api = gateway.RestApi(
            self,
            "Api",
            rest_api_name=Stack.of(self).stack_name,
            description="Runs Claude Code: one POST is one execution of the state machine",
            # CDK's default is an edge-optimized API, which can never wait longer than 29 seconds.
            endpoint_types=[gateway.EndpointType.REGIONAL],
            cloud_watch_role=deployment.cloud_watch_role,
            deploy_options=gateway.StageOptions(
                stage_name="prod",
                throttling_rate_limit=deployment.rate,
                throttling_burst_limit=deployment.burst,
                tracing_enabled=True,
                access_log_destination=gateway.LogGroupLogDestination(log_group),
                access_log_format=gateway.AccessLogFormat.custom(json.dumps(ACCESS_LOG)),
            ),
        )
        api.node.try_remove_child("Endpoint")
        self._acknowledge(api)
        return api

    def _acknowledge(self, api: gateway.RestApi) -> None:
        meant(
            api,
            {
                "APIG2": "POST validates its body and has no parameters; ANY validates a parameter and has no body. "
                "One validator for both would take from the refusal of ANY what makes it 405."
            },
        )
        meant(
            api.deployment_stage,
            {
                "APIG3": "A web ACL costs by the month and its rules are the account's: it is put before the stage by "
                "who wants one. Keys, quota and throttling are here.",
                "APIG6": "Execution logs go to a group that API Gateway makes for itself, outside of the stack and "
                "kept for ever. The access log names every request, the machine's log every execution.",
            },
        )
        if self._deployment.cloud_watch_role:
            policy = "Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonAPIGatewayPushToCloudWatchLogs"
            meant(
                api,
                {f"IAM4[{policy}]": "The account's role for API Gateway's logs, with AWS's own policy for just that."},
            )

    def _gateway_responses(self) -> None:
        for kind, given in gateway_answers.GATEWAY.items():
            headers = dict(self._cors)
            if given.retry_after:
                headers["Retry-After"] = str(given.retry_after)
            if given is gateway_answers.NOT_ALLOWED:
                headers["Allow"] = ALLOW
            default = kind in (gateway.ResponseType.DEFAULT_4_XX, gateway.ResponseType.DEFAULT_5_XX)
            self.api.add_gateway_response(
                kind.response_type,
                type=kind,
                # The defaults stand for many statuses and keep the one that the gateway chose.
                status_code=None if default else str(given.http_status),
                response_headers={name: f"'{value}'" for name, value in headers.items()},
                templates={"application/json": given.body()},
            )

    def _keys_and_plan(self) -> dict[str, dict[int, gateway.ApiKey]]:
        deployment = self._deployment
        plan = self.api.add_usage_plan(
            "UsagePlan",
            throttle=gateway.ThrottleSettings(rate_limit=deployment.rate, burst_limit=deployment.burst),
            quota=gateway.QuotaSettings(limit=deployment.requests_per_day, period=gateway.Period.DAY),
            api_stages=[gateway.UsagePlanPerApiStage(api=self.api, stage=self.api.deployment_stage)],
        )
        keys: dict[str, dict[int, gateway.ApiKey]] = {}
        for caller, generations in deployment.callers.items():
            for generation in generations:
                description = f"{Stack.of(self).stack_name}: caller {caller}, generation {generation}"
                key = gateway.ApiKey(self, f"Key-{caller}-{generation}", description=description)
                plan.add_api_key(key)
                keys.setdefault(caller, {})[generation] = key
        return keys

    def _post(self, resource: gateway.Resource, machine: sfn.StateMachine) -> None:
        self._role.add_to_policy(
            aws_iam.PolicyStatement(actions=["states:StartSyncExecution"], resources=[machine.state_machine_arn])
        )
        integration = gateway.AwsIntegration(
            service="states",
            action="StartSyncExecution",
            integration_http_method="POST",
            options=gateway.IntegrationOptions(
                credentials_role=self._role,
                passthrough_behavior=gateway.PassthroughBehavior.NEVER,
                timeout=Duration.seconds(self._deployment.integration_timeout),
                request_templates={"application/json": self._request_template(machine)},
                # API Gateway keeps one for each status: of two with the same, the second replaces the first.
                integration_responses=[
                    self._integration_response("200", _answer_template()),
                    self._integration_response("400", _not_started_template(), selection_pattern=r"4\d{2}"),
                    self._integration_response("500", gateway_answers.INTERNAL.body(), selection_pattern=r"5\d{2}"),
                ],
            ),
        )
        method = resource.add_method(
            "POST",
            integration,
            **self._lock(),
            request_validator=gateway.RequestValidator(
                self, "JsonObject", rest_api=self.api, validate_request_body=True
            ),
            request_models={"application/json": self._json_object()},
            method_responses=[self._method_response(status, "Retry-After") for status in ("200", "400", "500")],
        )
        self._acknowledge_lock(method)

    def _lock(self) -> dict[str, Any]:
        """How a method asks who calls."""
        iam = self._deployment.auth == "iam"
        return {
            "authorization_type": gateway.AuthorizationType.IAM if iam else gateway.AuthorizationType.NONE,
            "api_key_required": self._deployment.auth == "api-key",
        }

    def _acknowledge_lock(self, method: gateway.Method) -> None:
        cognito = "Callers are programs with a key or an AWS identity, not people with a password."
        meant(
            method,
            {"COG4": cognito}
            | ({} if self._deployment.auth == "iam" else {"APIG4": NO_AUTHORIZER[self._deployment.auth]}),
        )

    def _let_ask(self, door: Mapping[str, aws_lambda.Function]) -> None:
        """The API may call them; they know who asks by which key."""
        ids = {caller: [key.key_id for key in keys.values()] for caller, keys in self.keys.items()}
        for function in door.values():
            function.add_environment("CALLERS", Stack.of(self).to_json_string(ids))
            self._role.add_to_policy(
                aws_iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[function.function_arn])
            )

    def _runs(self, above: gateway.Resource, door: Mapping[str, aws_lambda.Function]) -> None:
        """`/claude-code/runs/{run_id}`: GET and DELETE; below it `events`, whose answer comes as it is made.

        Any other method is the reader's to refuse, which knows who asks, and what the path takes.
        """
        run = above.add_resource("runs").add_resource("{run_id}")
        events = run.add_resource("events")
        wait = Duration.seconds(self._deployment.integration_timeout)
        read = self._handed_to(door["ReadRun"], wait)
        stream = self._handed_to(door["StreamRun"], STREAM_WAIT, gateway.ResponseTransferMode.STREAM)
        for resource, method, integration in (
            (run, "GET", read),
            (run, "DELETE", read),
            (run, "ANY", read),
            (events, "GET", stream),
            (events, "ANY", read),
        ):
            self._acknowledge_lock(resource.add_method(method, integration, **self._lock()))
        self._options(run, "GET, DELETE")
        self._options(events, "GET")

    def _sessions(self, above: gateway.Resource, door: Mapping[str, aws_lambda.Function]) -> None:
        """`/claude-code/sessions/{session_id}`: GET and DELETE; below it `files`, each by its path, and `archive`."""
        read = self._handed_to(door["ReadSession"], STREAM_WAIT, gateway.ResponseTransferMode.STREAM)
        remove = self._handed_to(door["RemoveSession"], Duration.seconds(self._deployment.integration_timeout))
        session = above.add_resource("sessions").add_resource("{session_id}")
        files = session.add_resource("files")
        below = (files, files.add_resource("{path+}"), session.add_resource("archive"))
        self._acknowledge_lock(session.add_method("DELETE", remove, **self._lock()))
        for resource in (session, *below):
            for method in ("GET", "ANY"):
                self._acknowledge_lock(resource.add_method(method, read, **self._lock()))
            self._options(resource, "GET, DELETE" if resource is session else "GET")

    def _uploads(self, above: gateway.Resource, offer: aws_lambda.Function) -> None:
        """`/claude-code/uploads`: POST. Any other method is the function's to refuse."""
        uploads = above.add_resource("uploads")
        offered = self._handed_to(offer, Duration.seconds(OFFER_TIMEOUT + GATEWAY_MARGIN))
        for method in ("POST", "ANY"):
            self._acknowledge_lock(uploads.add_method(method, offered, **self._lock()))
        self._options(uploads, "POST")

    def _handed_to(
        self,
        reader: aws_lambda.Function,
        wait: Duration,
        mode: gateway.ResponseTransferMode = gateway.ResponseTransferMode.BUFFERED,
    ) -> gateway.AwsIntegration:
        """Gives a request to a function as it came, in the API's own role: the function has no policy of its own."""
        streamed = mode == gateway.ResponseTransferMode.STREAM
        version, action = (
            ("2021-11-15", "response-streaming-invocations") if streamed else ("2015-03-31", "invocations")
        )
        return gateway.AwsIntegration(
            service="lambda",
            proxy=True,
            path=f"{version}/functions/{reader.function_arn}/{action}",
            options=gateway.IntegrationOptions(
                credentials_role=self._role, timeout=wait, response_transfer_mode=mode if streamed else None
            ),
        )

    def _json_object(self) -> gateway.Model:
        # No more than this: the gateway's own text on what is wrong cannot be quoted safely, RestoreSession's can.
        schema = gateway.JsonSchema(
            schema=gateway.JsonSchemaVersion.DRAFT4, type=gateway.JsonSchemaType.OBJECT, title="JSON object"
        )
        return gateway.Model(self, "Request", rest_api=self.api, content_type="application/json", schema=schema)

    def _options(self, resource: gateway.Resource, methods: str) -> None:
        preflight = {"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": ALLOWED_HEADERS}
        resource.add_method(
            "OPTIONS",
            gateway.MockIntegration(
                request_templates={"application/json": '{"statusCode": 204}'},
                integration_responses=[self._integration_response("204", "", headers=preflight)],
            ),
            method_responses=[self._method_response("204", *preflight)],
        )

    def _any_other(self, resource: gateway.Resource) -> None:
        """API Gateway answers 403 for methods that are not there, and a mock stumbles over unknown content types.

        So every other method asks for a header that nobody sends: the validator refuses before anything else is looked
        at, and that refusal, which no other method can give, is worded as 405.
        """
        method = resource.add_method(
            "ANY",
            gateway.MockIntegration(
                request_templates={"application/json": '{"statusCode": 405}'},
                integration_responses=[
                    self._integration_response("405", gateway_answers.NOT_ALLOWED.body(), headers={"Allow": ALLOW})
                ],
            ),
            request_parameters={NEVER_SENT: True},
            request_validator=gateway.RequestValidator(
                self, "NoOtherMethod", rest_api=self.api, validate_request_parameters=True
            ),
            method_responses=[self._method_response("405", "Allow")],
        )
        fixed = "It answers every request with the same 405 and reaches nothing."
        meant(method, {"APIG4": fixed, "COG4": fixed})

    def _integration_response(
        self, status: str, template: str, *, selection_pattern: str | None = None, headers: dict[str, str] | None = None
    ) -> gateway.IntegrationResponse:
        return gateway.IntegrationResponse(
            status_code=status,
            selection_pattern=selection_pattern,
            response_templates={"application/json": template},
            response_parameters={
                f"method.response.header.{name}": f"'{value}'" for name, value in (self._cors | (headers or {})).items()
            },
        )

    def _method_response(self, status: str, *headers: str) -> gateway.MethodResponse:
        names = (*self._cors, *headers)
        return gateway.MethodResponse(
            status_code=status, response_parameters={f"method.response.header.{name}": True for name in names}
        )

    def _request_template(self, machine: sfn.StateMachine) -> str:
        return _template(
            "request.vtl",
            CALLER=self._caller_template(),
            MAX_BODY=BODY_BYTES,  # in characters, of which each is a byte at least
            MAX_ESCAPED=MAX_ESCAPED,
            STATE_MACHINE=machine.state_machine_arn,
        )

    def _caller_template(self) -> str:
        """The VTL that sets `$caller`, from what the gateway itself knows about the request."""
        if self._deployment.auth == "none":
            return '#set($caller = "public")'
        if self._deployment.auth == "iam":
            # The user is `unique id` or `unique id:session name`; a role's sessions are one caller.
            return (
                '#set($user = $context.identity.user.replaceAll(":.*", ""))\n'
                '#set($caller = "$context.identity.accountId:$user")'
            )
        # A key that somebody else added to the usage plan is a caller of its own: no name of ours has a colon.
        lines = ['#set($caller = "key:$context.identity.apiKeyId")']
        for caller, keys in self.keys.items():
            lines += [
                f'#if($context.identity.apiKeyId == "{key.key_id}")#set($caller = "{caller}")#end'
                for key in keys.values()
            ]
        return "\n".join(lines)


def _answer_template() -> str:
    return _template(
        "answer.vtl",
        ORIGIN=ORIGIN,
        POLL=POLL_SECONDS,
        STATUSES=json.dumps(errors.statuses()),
        TIMED_OUT_STATUS=gateway_answers.TIMED_OUT.http_status,
        TIMED_OUT=gateway_answers.TIMED_OUT.body(),
        INTERNAL=gateway_answers.INTERNAL.body(),
    )


def _not_started_template() -> str:
    return _template(
        "not_started.vtl",
        THROTTLED=gateway_answers.THROTTLED.body(),
        TOO_LARGE=gateway_answers.TOO_LARGE.body(),
        INVALID=gateway_answers.INVALID.body(),
        INTERNAL=gateway_answers.INTERNAL.body(),
    )


def _template(file: str, **values: Any) -> str:
    """The template's text with each `@NAME@` replaced by its value."""
    text = (TEMPLATES / file).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
