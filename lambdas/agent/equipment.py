"""What a deployment gives its agent, as `agent/` has it: a plugin folder of Claude Code's, instructions, MCP servers.

    .claude-plugin/plugin.json      with it, skills/, agents/, commands/ and hooks/ are loaded
    CLAUDE.md                       instructions, in every run's system prompt
    mcp.json                        servers: {"mcpServers": {"NAME": {…}}}

A *remote* server (`type`, `url`, `secret`, `required`) is an upstream of the proxy, which adds the bearer out of the
field `secret` of the deployment's secret: the agent has a loopback address and the run's token. A *stdio* server
(`command`, `args`, `env`, `required`) is a process in the agent's own world, which code of the model's can look into;
so it may hold no secret. `${CLAUDE_PLUGIN_ROOT}` in it stands for the folder, as in Claude Code's own files.

**Nothing in a workspace adds to it.** Plugins are named on the command line, MCP servers are `strict`, and no settings
are read from anywhere (CLI 2.1.332). Instructions are appended to the system prompt, of subagents too: as one of Claude
Code's own memory files they would be in the transcript, which the agent can rewrite, and a resumed turn is sent what is
there. So `@path` in them includes nothing.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lambdas import strict
from lambdas.agent.environment import CREDENTIAL
from lambdas.agent.scratch import Scratch
from lambdas.strict import Json

PLUGIN = ("skills", "agents", "commands", "hooks")
"""What a plugin is made of."""

PROGRAMS = frozenset(("hooks", "mcpServers", "lspServers"))
"""What else a plugin's manifest may name, which is started."""

INSTRUCTIONS_BYTES = 64 * 1024
"""The longest CLAUDE.md: each call of the model is sent it."""

SERVER = re.compile(r"[a-z][a-z0-9-]{0,30}")
"""A server's name, which is a part of its tools' names: `mcp__NAME__tool`."""

FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

OURS = ("ANTHROPIC_API_KEY", "SUPABASE_SERVICE_KEY")
"""Fields of the secret that are lent to other services than these."""

ROOT = "${CLAUDE_PLUGIN_ROOT}"


class Unusable(ValueError):
    """The folder holds what cannot be used; the text says what, and where."""


@dataclass(frozen=True)
class Remote:
    """An MCP server at an address (streamable HTTP)."""

    name: str
    url: str
    secret: str | None
    """The field of the deployment's secret that is its bearer; None: it asks for none."""
    required: bool
    """Whether no run goes on without it."""

    @property
    def origin(self) -> str:
        """Of its address, all but the path."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def path(self) -> str:
        """The one path of it that is asked."""
        return urlsplit(self.url).path or "/"


@dataclass(frozen=True)
class Stdio:
    """An MCP server that Claude Code starts."""

    name: str
    command: str
    args: tuple[str, ...]
    environment: Mapping[str, str]
    required: bool


Server = Remote | Stdio


@dataclass(frozen=True)
class Equipment:
    """What is in the folder, checked."""

    folder: Path | None = None
    """None: there is no plugin, and nothing else in it that a run needs."""
    plugin: bool = False
    instructions: str = ""
    servers: tuple[Server, ...] = field(default=())

    @classmethod
    def read(cls, folder: Path) -> "Equipment":
        """Raises `Unusable`, or `OSError` where there is no such folder."""
        folder = folder.resolve(strict=True)
        return cls(folder, _plugin(folder), _instructions(folder), _servers(folder))

    @property
    def starts_programs(self) -> bool:
        """Whether Claude Code may start something of it before the model has said anything, which would look at the
        workspace: a server, or a plugin's hook."""
        hooked = self.plugin and self.folder is not None and _hooked(self.folder)
        return hooked or any(isinstance(server, Stdio) for server in self.servers)

    @property
    def secrets(self) -> set[str]:
        """The fields of the secret that it names."""
        return {server.secret for server in self.servers if isinstance(server, Remote) and server.secret}

    def shown(self, scratch: Scratch) -> Path | None:
        """Where the agent finds the folder. A user of its own gets a copy, to be read and not changed, since the folder
        may lie where it cannot go."""
        if self.folder is None or scratch.sandbox.uid is None:
            return self.folder
        copy = scratch.private / "agent"
        shutil.copytree(self.folder, copy)
        for path in (copy, *copy.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
        return copy


NOTHING = Equipment()


def _plugin(folder: Path) -> bool:
    manifest = folder / ".claude-plugin" / "plugin.json"
    if not manifest.exists():
        if parts := [name for name in PLUGIN if (folder / name).exists()]:
            raise Unusable(f"{parts[0]}/ is loaded with a .claude-plugin/plugin.json only, and there is none.")
        return False
    name = _json(manifest).get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,63}", name):
        raise Unusable(".claude-plugin/plugin.json needs a name: small letters, digits and hyphens.")
    return True


def _hooked(folder: Path) -> bool:
    """Whether a plugin may have more than texts: hooks, or what its manifest says of other programs."""
    said = _json(folder / ".claude-plugin" / "plugin.json").keys()
    return (folder / "hooks").exists() or bool(said & PROGRAMS)


def _instructions(folder: Path) -> str:
    path = folder / "CLAUDE.md"
    if not path.exists():
        return ""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise Unusable("CLAUDE.md is not text in UTF-8.") from None
    if len(text.encode()) > INSTRUCTIONS_BYTES:
        raise Unusable(f"CLAUDE.md has more than {INSTRUCTIONS_BYTES} bytes.")
    return text.strip()


def _servers(folder: Path) -> tuple[Server, ...]:
    path = folder / "mcp.json"
    if not path.exists():
        return ()
    read = _json(path)
    named = read.get("mcpServers")
    if read.keys() != {"mcpServers"} or not isinstance(named, dict):
        raise Unusable('mcp.json must be {"mcpServers": {…}} and nothing more.')
    return tuple(_server(name, entry) for name, entry in named.items())


def _server(name: str, entry: Any) -> Server:
    if not SERVER.fullmatch(name):
        raise Unusable(f"mcp.json: a server's name must match {SERVER.pattern}; {name!r} does not.")
    if not isinstance(entry, dict):
        raise _wrong(name, "must be an object")
    kind = entry.get("type", "http" if "url" in entry else "stdio")
    if kind not in ("http", "stdio"):
        raise _wrong(name, f"has the type {kind!r}; http (streamable HTTP) and stdio are known")
    if not isinstance(entry.get("required", False), bool):
        raise _wrong(name, "has a required that is neither true nor false")
    return _remote(name, entry) if kind == "http" else _stdio(name, entry)


def _remote(name: str, entry: Json) -> Remote:
    _only(name, entry, "type", "url", "secret", "required")
    url, secret = entry.get("url"), entry.get("secret")
    if not isinstance(url, str) or not _is_address(url):
        raise _wrong(name, "needs a url: https, without user, query and fragment, and with a plain path")
    if secret is not None and not (isinstance(secret, str) and FIELD.fullmatch(secret)):
        raise _wrong(name, f"names a secret by the field of the deployment's secret, such as TRACKER_TOKEN: {secret!r}")
    if secret in OURS:
        raise _wrong(name, f"may not be lent {secret}, which is for another service")
    return Remote(name, url, secret, entry.get("required", False))


def _is_address(url: str) -> bool:
    """Whether a bearer may be sent there: encrypted, or on this machine."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in ("127.0.0.1", "localhost"))
    plain = re.fullmatch(r"(/[\w.~-]+)*/?", parts.path, re.ASCII) and not re.search(r"/\.\.?(/|$)", parts.path)
    return safe and bool(plain and host) and port != 0 and parts.netloc.isascii() and not re.search(r"[@?#\s]", url)


def _stdio(name: str, entry: Json) -> Stdio:
    if "secret" in entry:
        raise _wrong(name, "is a process in the agent's own world, so it may hold no secret; a remote server can")
    _only(name, entry, "type", "command", "args", "env", "required")
    command, args, env = entry.get("command"), entry.get("args", []), entry.get("env", {})
    if not isinstance(command, str) or not command:
        raise _wrong(name, "needs a command, or a url")
    if not isinstance(args, list) or not all(isinstance(each, str) for each in args):
        raise _wrong(name, "has args that are no list of texts")
    if not isinstance(env, dict) or not all(isinstance(each, str) for each in env.values()):
        raise _wrong(name, "has an env that is no object of texts")
    if found := sorted(variable for variable in env if CREDENTIAL.fullmatch(variable)):
        raise _wrong(name, f"has {found[0]} in its env, where the agent's code can read it: no secret belongs there")
    return Stdio(name, command, tuple(args), env, entry.get("required", False))


def _only(name: str, entry: Json, *known: str) -> None:
    if unknown := sorted(entry.keys() - set(known)):
        raise _wrong(name, f"has {unknown[0]!r}, which is unknown here; known: {', '.join(known)}")


def _wrong(name: str, what: str) -> Unusable:
    return Unusable(f"mcp.json: the server {name} {what}.")


def _json(path: Path) -> Json:
    place = "/".join(path.parts[-2:]) if path.parent.name == ".claude-plugin" else path.name
    try:
        read = strict.read(path.read_bytes())
    except ValueError as error:
        raise Unusable(f"{place} is not JSON: {error}.") from None
    if not isinstance(read, dict):
        raise Unusable(f"{place} is not a JSON object.")
    return read
