"""Rows of what the agent reaches, tried by its own shell; and what keeps it in, by name: a network of its own, the
stack's private one, a VPC of the account's, whose routes decide, or its sandbox, which closes ports.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from claude_workflow.cli.check import reach, shell
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.network import PART
from claude_workflow.cli.check.row import NotAsked
from lambdas import egress
from lambdas.strict import Json

PROGRAM = "reach.py"
OWN, PRIVATE, ACCOUNTS = "its own network", "the private network", "a VPC of the account's"
SANDBOX, NOTHING = "its sandbox", "nothing"
PROVIDER = "api.anthropic.com"
"""Asked directly: with a key of its own, code could carry away there what it likes."""


def tried(kit: Kit) -> Json:
    """What came of each way that the agent's shell tried, and what networks it sees."""
    said = _outside(kit)
    program = {"path": PROGRAM, "content": Path(reach.__file__).read_text()}
    command = shlex.join(["python3", PROGRAM, said["provider"], *said["allowed"][:1]])
    told = shell.told(kit, [program], reach=command)
    try:
        found = json.loads(told["reach"].splitlines()[-1])
    except (ValueError, IndexError):
        raise NotAsked(f"The program did not run: {told['reach'][-300:]}") from None
    inside = found.pop("networks")
    return {"ways": found, "networks": inside, "egress": said["egress"]}


def _outside(kit: Kit) -> Json:
    """Whom the deployment lets the agent's programs reach, and whose model it asks."""
    environment: Mapping[str, str] = kit.account.environment("RunClaude") if kit.stack else {}
    listed = json.loads(environment.get("EGRESS", "[]"))
    hosts = [] if listed == egress.OPEN else [host for host in listed if host[:2] != "*."]
    direct = environment.get("MODEL_PROVIDER", "bedrock") == "anthropic"
    provider = urlsplit(environment["ANTHROPIC_BASE_URL"]).hostname if direct else PROVIDER
    return {"provider": provider, "allowed": hosts, "egress": listed if listed == egress.OPEN else "listed"}


def kept_in(kit: Kit) -> Json:
    """By what, and whether the deployment wants it so."""
    told = kit.answers["agent-ways"]
    return {"holds": _holding(kit, told["networks"], told["ways"]), "egress": told["egress"]}


def _holding(kit: Kit, networks: list[str], found: Mapping[str, str]) -> str:
    if set(networks) <= {"lo"}:
        return OWN
    if kit.stack and (kit.account.function("RunClaude").get("VpcConfig") or {}).get("SubnetIds"):
        return PRIVATE if kit.account.all("EC2::VPC", PART) else ACCOUNTS
    led_out = any(came == reach.OPEN for name, came in found.items() if name != reach.ALLOWED)
    return NOTHING if led_out else SANDBOX


def way(kit: Kit, names: list[str]) -> Json:
    """What came of these ways. Raises `NotAsked` for one that nobody took."""
    found = kit.answers["agent-ways"]["ways"]
    if set(names) - set(found):
        raise NotAsked("The setting egress names no host by its whole name.")
    return {name: found[name] for name in names}


def closed(raw: Json) -> str:
    """Which of the ways are open."""
    led_out = [name for name, came in raw.items() if came == reach.OPEN]
    return f"Open: {', '.join(led_out)}" if led_out else "" if raw else "Nothing was tried"
