"""The whole service on this machine: engine, deployed template, gateway. What `serve`, `demo` and the tests start."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local import api, deploy, engine, gateway, sandbox, sweep
from local.deploy import Deployed
from local.engine import Engine

PATH = "/claude-code"


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
    """The API key it asks for."""
    engine: Engine
    deployed: Deployed
    sandbox: str | None = None
    """What keeps the agent from the user's files, of `settings.SANDBOXES`; None: nothing, it runs as the user."""


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
) -> Iterator[Service]:
    """The service with its sessions in `state`, ended with all it started on the way out.

    The agent is kept in a sandbox where the machine offers one, unless `unsandboxed`.
    `say` hears of what takes longer than a second. Raises `EngineFailed`, `DeployFailed`, or `OSError` where the port
    is taken.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    template = deploy.synthesized(state, say)
    say("Starting the engine …")
    with sweep.sweeping(sandbox.scratch()), engine.running(state) as started:
        holding = None if unsandboxed else sandbox.holding(state)
        settings = {
            "ANTHROPIC_BASE_URL": model.url,
            "SCRATCH": str(sandbox.scratch()),
            "SANDBOX": holding or "none",
        }
        deployed = deploy.deploy(started, template, settings=settings, secret={"ANTHROPIC_API_KEY": model.key})
        started.seal()
        described = api.read_api(template, deployed.resources)
        keys = {key: described.api_keys[0]} if described.api_keys else {}
        with gateway.serving(described, started.url, keys, root=started.root, host=host, port=port) as base:
            yield Service(base + PATH, key, started, deployed, holding)
