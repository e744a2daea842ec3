"""A service of the synthesized template, but for what a test needs: room for many clients, functions' settings."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from claude_workflow.local import api, deploy, engine, gateway, sandbox, watching
from claude_workflow.local.service import AGENT, Model, Service
from lambdas.strict import Json

KEY = "k" * 24
OWN = {"AGENT_FOLDER": str(AGENT)}


@contextmanager
def serving(state: Path, template: Json, model: Model, added: Mapping[str, str], key: str = KEY) -> Iterator[Service]:
    """The service, which throttles nobody; `added` comes into the environment of every function. A second key is of a
    caller that the template does not know.

    Its engine is not sealed, so that tests can ask it for more than the workflow does.
    """
    with engine.running(state) as started:
        deployed = deploy.deploy(
            started,
            _patched(template, OWN | {"SCRATCH": str(sandbox.scratch()), **added, "ANTHROPIC_BASE_URL": model.url}),
            secret={"ANTHROPIC_API_KEY": model.key},
        )
        described = api.read_api(deployed.template, deployed.resources)
        named = {"default-1": key, "another": f"{key}-of-another"}
        keys = {key: described.api_keys[0], named["another"]: "KeyOfAnother"}
        watch = watching.stream(started, deployed)
        with gateway.serving(described, started.url, keys, root=started.root, watch=watch) as base:
            yield Service(f"{base}/claude-code", key, started, deployed, keys=named)


def _patched(template: Json, added: Mapping[str, str]) -> Json:
    patched = copy.deepcopy(template)
    for resource in patched["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function" and "Environment" in resource["Properties"]:
            resource["Properties"]["Environment"]["Variables"].update(added)
        if resource["Type"] == "AWS::ApiGateway::UsagePlan":
            resource["Properties"]["Throttle"] = {"BurstLimit": 1000, "RateLimit": 1000}
    return patched
