"""The deployment's MCP servers in one run: what of them is allowed, by the CLI and by the proxy.

A server's tools are `mcp__SERVER__TOOL` to the model, and so in `allowed_tools` and `disallowed_tools`; `mcp__SERVER`
means all of a server's. Where nothing of a server is allowed, the run has no such server.

**What is not allowed does not exist in the run.** Claude Code's `--tools` leaves MCP tools alone, so when the servers
are up, it is asked for their tools, and told which of them are denied: those are not offered (CLI 2.1.332).

**The boundary of a remote server is the proxy**: with the run's token, any program of the agent's can speak to it. So
each request is read here, and a call of a tool that is not allowed is refused, whoever makes it. Where two programs
read one body, the second may see another method: a body that names a field twice, or in capitals (some servers match
names whatever their case), is not let through.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdas.agent.approvals import Approvals
from lambdas.agent.credential import Anonymous, Credential, Key, Secret
from lambdas.agent.equipment import ROOT, Equipment, Remote, Server
from lambdas.agent.messages import NAME_CHARS, read
from lambdas.agent.proxy import Proxy
from lambdas.agent.upstream import Sent, Upstream
from lambdas.request import covers
from lambdas.strict import Json

HARMLESS = ("initialize", "ping", "server/discover", "tools/list", "logging/setLevel")
"""Methods by which no tool is called, beside notifications: all there are where not all of a server is allowed."""


@dataclass(frozen=True)
class Allowed:
    """Which tools a run may use, by the names that `allowed_tools` and `disallowed_tools` take."""

    tools: Sequence[str] | None = None
    """All there are, if given."""
    never: Sequence[str] = ()

    @property
    def builtin(self) -> list[str] | None:
        """Of Claude Code's own."""
        return None if self.tools is None else [tool for tool in self.tools if not tool.startswith("mcp__")]

    def has(self, tool: str) -> bool:
        """Whether one of Claude Code's own is there."""
        return (self.tools is None or tool in self.tools) and tool not in self.never

    def any_of(self, server: str) -> bool:
        """Whether the run has this server."""
        whole = f"mcp__{server}"
        named = self.tools is None or any(tool == whole or tool.startswith(f"{whole}__") for tool in self.tools)
        return named and whole not in self.never

    def all_of(self, server: str) -> bool:
        """Whether nothing of it is taken away."""
        whole = f"mcp__{server}"
        given = self.tools is None or whole in self.tools
        return given and not any(tool == whole or tool.startswith(f"{whole}__") for tool in self.never)

    def tool(self, server: str, tool: str) -> bool:
        """Whether one tool of a server is."""
        name = tool_name(server, tool)
        return (self.tools is None or covers(self.tools, name)) and not covers(self.never, name)


def tool_name(server: str, tool: str) -> str:
    """What a server's tool is called to the model."""
    return f"mcp__{server}__{re.sub('[^A-Za-z0-9_-]', '_', tool)}"


def servers(equipment: Equipment, allowed: Allowed) -> list[Server]:
    """Those that a run has."""
    return [server for server in equipment.servers if allowed.any_of(server.name)]


def upstreams(
    equipment: Equipment, allowed: Allowed, secret: Callable[[str], Secret], approvals: Approvals | None = None
) -> list[Upstream]:
    """Its remote servers, for the proxy; `secret` has the field of the deployment's secret, `approvals` what of their
    tools is asked for."""
    return [
        Upstream(
            name=_upstream(server),
            base_url=server.origin,
            credential=_credential(server, secret),
            requests=(re.compile(rf"(GET|POST|DELETE) {re.escape(server.path)}"),),
            admits=_admitting(server.name, allowed, approvals),
            needed=False,
        )
        for server in servers(equipment, allowed)
        if isinstance(server, Remote)
    ]


def _upstream(server: Remote) -> str:
    return f"mcp-{server.name}"


def _credential(server: Remote, secret: Callable[[str], Secret]) -> Credential:
    return Key(secret(server.secret), {"authorization": "Bearer {}"}) if server.secret else Anonymous()


def config(run: Sequence[Server], proxy: Proxy, folder: Path | None) -> Json:
    """What Claude Code is told of them. Their tools are there from the first request on, and it waits for them."""
    return {"mcpServers": {server.name: {**_entry(server, proxy, folder), "alwaysLoad": True} for server in run}}


def _entry(server: Server, proxy: Proxy, folder: Path | None) -> Json:
    if isinstance(server, Remote):
        return {
            "type": "http",
            "url": f"{proxy.url}/{_upstream(server)}{server.path}",
            "headers": {"x-api-key": proxy.token},
        }
    command, *args = (text.replace(ROOT, str(folder)) for text in (server.command, *server.args))
    env = {name: text.replace(ROOT, str(folder)) for name, text in server.environment.items()}
    return {"type": "stdio", "command": command, "args": args, "env": env}


def down(run: Sequence[Server], status: Any) -> list[str]:
    """What is missing though it is required, in words, by the CLI's `mcp_status`."""
    said = {each["name"]: each for each in status["mcpServers"]}
    return [
        f"the MCP server {server.name} is required and did not come up: {_why(said.get(server.name, {}))}"
        for server in run
        if server.required and said.get(server.name, {}).get("status") != "connected"
    ]


def _why(said: Json) -> str:
    return " ".join(str(said[name]) for name in ("status", "error") if name in said) or "nothing is known of it"


def denied(run: Sequence[Server], status: Any, allowed: Allowed) -> list[str]:
    """Names of tools that are there and not allowed, by the CLI's `mcp_status`."""
    ours = {server.name for server in run}
    return [
        tool_name(each["name"], tool["name"])
        for each in status["mcpServers"]
        if each["name"] in ours
        for tool in each.get("tools", [])
        if not allowed.tool(each["name"], tool["name"])
    ]


def _admitting(server: str, allowed: Allowed, approvals: Approvals | None) -> Callable[[Sent], str | None]:
    def admits(request: Sent) -> str | None:
        if request.method != "POST":
            return None
        try:
            messages = list(_messages(request))
            wrong = [each for message in messages if (each := _refusal(message, server, allowed))]
            wrong = wrong or [each for message in messages if (each := _unapproved(message, server, approvals))]
        except ValueError as unreadable:
            return f"not a request that can be read: {unreadable}"
        return wrong[0] if wrong else None

    return admits


def _messages(request: Sent) -> Iterator[Json]:
    """Those in a body, one or several. Raises `ValueError` for what could be read in two ways."""
    said = read(request.body, request.named)
    for message in said if isinstance(said, list) else [said]:
        if not isinstance(message, dict):
            raise ValueError("no JSON-RPC")
        _plainly(message, "method", "params")
        yield message


def _plainly(named: Json, *names: str) -> None:
    if any(name.casefold() in names and name not in names for name in named):
        raise ValueError("a field in capitals")


def _refusal(message: Json, server: str, allowed: Allowed) -> str | None:
    if "method" not in message:
        return None  # an answer to what the server asked
    method = message["method"]
    if method == "tools/call":
        params = message.get("params")
        if not isinstance(params, dict):
            return "a call that names no tool"
        name = params.get("name")
        if not isinstance(name, str) or len(name) > NAME_CHARS:
            return "a call that names no tool"
        _plainly(params, "name")
        return None if allowed.tool(server, name) else f"the tool {name} is not allowed in this run"
    if not isinstance(method, str) or len(method) > NAME_CHARS:
        return "a method that is no text"
    plain = method in HARMLESS or method.startswith("notifications/") or allowed.all_of(server)
    return None if plain else f"{method} is not allowed in this run, which has some of the server's tools only"


def _unapproved(message: Json, server: str, approvals: Approvals | None) -> str | None:
    """For a call that is allowed, and to be asked for, unless it is the one that was approved; which is spent by it."""
    if approvals is None or message.get("method") != "tools/call":
        return None
    params = message["params"]
    _plainly(params, "arguments")
    given = params.get("arguments") or {}
    if not isinstance(given, dict):
        return "a call whose arguments are no object"
    tool = tool_name(server, params["name"])
    return None if approvals.spend(tool, given) else f"the tool {params['name']} needs the user's approval"
