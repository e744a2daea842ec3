"""The whole service on this machine: engine, deployed template, gateway. What `serve`, `demo` and the tests start."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from claude_workflow.local import api, deploy, engine, gateway, lost, sandbox, sweep, watching
from claude_workflow.local.api import Template
from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from claude_workflow.local.gateway import Served
from claude_workflow.local.lost import Lost
from lambdas.agent.equipment import Equipment
from lambdas.bucket.objects import Bucket
from lambdas.repositories import entries

PATH = "/claude-code"
AGENT = deploy.ROOT / "stacks" / "agent"
"""A link to the project's `agent/`, which a wheel has here."""


@dataclass(frozen=True)
class Model:
    """Who answers: the base URL of a Messages API, and the key for it."""

    url: str
    key: str


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    """POST here."""
    key: str
    """The API key it asks for: the first caller's newest."""
    engine: Engine
    deployed: Deployed
    sandbox: str | None = None
    """What keeps the agent from the user's files, of `settings.SANDBOXES`; None: nothing, it runs as the user."""
    network: str = "open"
    """What network the agent can have here, of `settings.NETWORKS`."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """All API keys, by caller and generation, such as `default-1`."""
    lost: Sequence[Lost] = ()
    """Runs that were at work when the service on these sessions ended."""


def _secret(template: Template, model: Model, equipment: Equipment) -> dict[str, str]:
    """What the deployment's secret holds here: the model's key, and of the fields that the setting `repositories` and
    the agent's `mcp.json` name those that this process' environment has."""
    functions = (each.get("Properties", {}).get("Environment", {}) for each in template["Resources"].values())
    settings = (function.get("Variables", {}).get("REPOSITORIES", "[]") for function in functions)
    of_git = {each.secret for setting in settings for each in entries(json.loads(setting))}
    lent = {name: value for name in {*of_git, *equipment.secrets} if (value := os.environ.get(name))}
    return lent | {"ANTHROPIC_API_KEY": model.key}


def _settings(model: Model, holding: str | None, network: str, agent: Path) -> dict[str, str]:
    """What RunClaude's environment has otherwise than on AWS."""
    return {
        "ANTHROPIC_BASE_URL": model.url,
        "SCRATCH": str(sandbox.scratch()),
        "SANDBOX": holding or "none",
        "AGENT_NETWORK": network,
        "AGENT_FOLDER": str(agent),
    }


@contextmanager
def running(
    state: Path,
    model: Model,
    key: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    unsandboxed: bool = False,
    say: Callable[[str], None] = lambda _: None,
    log: Callable[[Served], None] = lambda _: None,
    key_of: Callable[[str], str] = lambda _: secrets.token_urlsafe(24),
    agent: Path = AGENT,
) -> Iterator[Service]:
    """The service with its sessions in `state`, ended with all it started on the way out.

    The agent is kept in a sandbox where the machine offers one, unless `unsandboxed`.
    `say` hears of what takes longer than a second, `log` of each request. `key` is the first caller's newest API key,
    `key_of` has the others, by caller and generation. `agent` is the folder with the agent's equipment; the fields of
    the secret that it names are this process' environment variables of those names. Raises `EngineFailed`,
    `DeployFailed`, `StorageUnavailable`, `Unusable` for the folder, or `OSError` where the port is taken.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    template = deploy.synthesized(state, say)
    say("Starting the engine …")
    with sweep.sweeping(sandbox.scratch()), engine.running(state) as started:
        holding = None if unsandboxed else sandbox.holding(state)
        network = sandbox.network(holding) if holding else "open"
        settings = _settings(model, holding, network, agent)
        secret = _secret(template, model, Equipment.read(agent))
        deployed = deploy.deploy(started, template, settings=settings, secret=secret)
        started.seal()
        found = lost.settle(Bucket(started.client("s3"), deployed.bucket), time.time())
        described = api.read_api(template, deployed.resources)
        callers = api.callers(template)
        values = {ids: key_of(name) if number else key for number, (ids, name) in enumerate(callers.items())}
        keys = {value: ids for ids, value in values.items()}
        watch = watching.stream(started, deployed)
        with gateway.serving(
            described, started.url, keys, root=started.root, host=host, port=port, log=log, watch=watch
        ) as base:
            named = {callers[ids]: value for ids, value in values.items()}
            yield Service(base + PATH, key, started, deployed, holding, network, named, found)
