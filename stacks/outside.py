"""Who, outside AWS, is spoken to from RunClaude: by the settings, and by the equipment in agent/."""

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from lambdas.agent.equipment import Equipment, Remote
from lambdas.agent.registries import FILES
from lambdas.repositories import origin
from stacks.deployment import BadContext, Deployment


def hosts(deployment: Deployment, equipment: Equipment) -> tuple[str, ...]:
    """Their names, each once, of which one may begin with `*.`: all that a network of the stack's own lets out, by TLS
    and on port 443.

    Raises `BadContext` for who is spoken to in another way.
    """
    return tuple(dict.fromkeys(_host(url, setting) for setting, url in _named(deployment, equipment)))


def _named(deployment: Deployment, equipment: Equipment) -> Iterator[tuple[str, str]]:
    """What names it, and the address."""
    if deployment.provider == "anthropic":
        yield "anthropic_base_url", deployment.anthropic_base_url
    if deployment.supabase_url:
        yield "supabase_url", deployment.supabase_url
    for entry in deployment.repositories:
        yield "repositories", origin(entry.host)
    for host in deployment.egress.hosts:
        yield "egress", f"https://{host}"
    for url in deployment.registries.values():
        yield "registries", url
        yield from (("registries", files) for at, files in FILES.items() if f"{url}/".startswith(f"{at}/"))
    for server in equipment.servers:
        if isinstance(server, Remote):
            yield "agent/mcp.json", server.url


def _host(url: str, setting: str) -> str:
    try:
        parts = urlsplit(url)
        named = parts.hostname if parts.scheme == "https" and parts.port in (None, 443) else None
    except ValueError:  # a port beyond 65535, half a bracket
        named = None
    if not named or _is_address(named):
        what = "what goes out goes by https on port 443, to a host by its name"
        raise BadContext(f'With network "private", {what}: {setting} names {url}.')
    return named


def _is_address(host: str) -> bool:
    """What no TLS greeting names."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
