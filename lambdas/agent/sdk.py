"""The Agent SDK, imported without `mcp`.

The SDK needs mcp, and by it pydantic, httpx and starlette, for tools that run in the process of whoever calls it. A run
has none, and mcp is two thirds of what the start of RunClaude's function would take. So while the SDK is imported,
mcp's names stand for nothing; whoever else imports mcp gets it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

MODULES = ("mcp", "mcp.server", "mcp.shared", "mcp.shared.memory", "mcp.shared.message", "mcp.types")
"""Those that the SDK imports, of version 0.2.189."""


class _Empty:
    """What stands for a class; the SDK has one of its own made from it."""

    def __init_subclass__(cls, **_: object) -> None:
        pass


class _Nothing(ModuleType):
    """A module in which whatever is asked for is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty


@contextmanager
def _without_mcp() -> Iterator[None]:
    if "mcp" in sys.modules:  # it is there already, and costs no more
        yield
        return
    for name in MODULES:
        sys.modules[name] = _Nothing(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        yield
    finally:
        for name in MODULES:
            del sys.modules[name]


with _without_mcp():
    import claude_agent_sdk
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError
    from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport, _LineFramer

__all__ = [
    "CLIConnectionError",
    "ClaudeAgentOptions",
    "ClaudeSDKClient",
    "SubprocessCLITransport",
    "_LineFramer",
    "claude_agent_sdk",
]
