"""Who asks a reader of runs: for whom the POST's own template takes the same request."""

import json
from typing import Any

import pytest

from claude_workflow.local.api import read_api
from claude_workflow.local.mapping import Input, render, texts
from lambdas.proxied import caller
from lambdas.strict import Json
from tests.conftest import Templates

ROLE = "AROAEXAMPLE"
IDENTITIES: list[tuple[str, Json]] = [
    ("api-key", {"apiKeyId": "@web-app 1"}),
    ("api-key", {"apiKeyId": "@web-app 2"}),
    ("api-key", {"apiKeyId": "@nightly 4"}),
    ("api-key", {"apiKeyId": "somebody-elses"}),
    ("api-key", {"apiKeyId": "web-app"}),
    ("iam", {"accountId": "123456789012", "user": f"{ROLE}:a-session"}),
    ("iam", {"accountId": "123456789012", "user": f"{ROLE}:another:session"}),
    ("iam", {"accountId": "123456789012", "user": "AIDAEXAMPLE"}),
    ("iam", {"accountId": "210987654321", "user": ROLE}),
    ("none", {"apiKeyId": ""}),
    ("none", {}),
]
EXPECTED = [
    *("web-app", "web-app", "nightly", "key:somebody-elses", "key:web-app"),
    *(f"123456789012:{ROLE}", f"123456789012:{ROLE}", "123456789012:AIDAEXAMPLE", f"210987654321:{ROLE}"),
    *("public", "public"),
]


@pytest.mark.parametrize(
    ("auth", "identity", "name"), [(*one, name) for one, name in zip(IDENTITIES, EXPECTED, strict=True)]
)
def test_the_readers_take_a_caller_for_whom_the_template_does(
    templates: Templates, auth: str, identity: Json, name: str
) -> None:
    """In every way of authentication, for keys of the stack and for others, for a role's sessions."""
    template = templates(auth=auth, callers={"web-app": [1, 2], "nightly": [4]})
    keys = {
        key["Properties"]["Description"].partition("caller ")[2].replace(", generation", ""): logical
        for logical, key in template["Resources"].items()
        if key["Type"] == "AWS::ApiGateway::ApiKey"
    }
    known = {key: said.split()[0] for said, key in keys.items()}
    identity = {each: keys[value[1:]] if str(value).startswith("@") else value for each, value in identity.items()}
    assert caller(identity, auth, known) == name == _taken_for(template, identity)


def _taken_for(template: Json, identity: Json) -> str:
    """By the template of POST."""
    changed: Any = json.loads(json.dumps(template).replace('"AWS_IAM"', '"NONE"'))
    (request,) = read_api(changed, {}).methods["/claude-code"]["POST"].integration.templates.values()
    context = {
        "identity": texts(identity),
        "extendedRequestId": "Abc123_=",
        "requestTimeEpoch": 1_790_000_000_123,
        "responseOverride": {"header": {}},
    }
    empty: Json = {"path": {}, "querystring": {}, "header": {}}
    call = json.loads(render(request, Input("{}", empty), texts(context) | {"requestTimeEpoch": 1}))
    return str(json.loads(call["input"])["caller"])
