"""What the agent's programs find in their environment: built, not inherited, and without a credential."""

import os
import re
from collections.abc import Iterable, Mapping

from lambdas.agent.proxy import Proxy
from lambdas.agent.scratch import Scratch
from lambdas.errors import CarelessDeployment

PATH = ":".join(
    (
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/var/lang/bin",  # Python of Lambda's base images
        "/opt/homebrew/bin",
    )
)

SWITCHES = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",  # else an agent in the background ends the run with a second result
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # else a cut stream is paid for twice
    "CLAUDE_CODE_MAX_RETRIES": "2",
    "BASH_DEFAULT_TIMEOUT_MS": "120000",
    "BASH_MAX_TIMEOUT_MS": "600000",  # so long a leg of a run waits for a call that is under way (`settings.Legs`)
    "CLAUDE_CODE_DROP_UNAVAILABLE_DEFERRED_TOOL": "1",  # a call that waits for a tool that is gone is not made
    "MCP_TIMEOUT": "10000",  # so long the deployment's servers may take to come up
    "MCP_TOOL_TIMEOUT": "600000",  # as Bash's longest
    "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "60000",  # nothing else ends a silent stream
    "GIT_TERMINAL_PROMPT": "0",  # nobody is there to type a password
}
"""Switches of the CLI (2.1.332) and of git, the same in every run."""

GIT = (("core.checkStat", "minimal"), ("core.trustctime", "false"))
"""A restored tree has new inodes and ctimes; without these, git reads every file to see that none has changed."""


def lent(scratch: Scratch, proxy: Proxy, git: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """The agent's environment with what leads to the upstreams, and git configured so. Raises CarelessDeployment."""
    built = environment(scratch, [*git, *proxy.git]) | proxy.environment
    refuse_credentials(built, proxy.environment)
    return built


def environment(scratch: Scratch, git: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """The agent's environment, without what leads to the model: an allow list, nothing inherited."""
    places = {
        "PATH": PATH,
        "HOME": str(scratch.home),
        "TMPDIR": str(scratch.tmp),
        "CLAUDE_CONFIG_DIR": str(scratch.claude),
        "CLAUDE_CODE_TMPDIR": str(scratch.tmp),
        "PWD": str(scratch.workspace),
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
    }
    # The CLI refuses bypassPermissions to root unless told that it is in a sandbox.
    root = {"IS_SANDBOX": "1"} if os.geteuid() == 0 and scratch.sandbox.uid is None else {}
    return places | root | SWITCHES | _of_git([*GIT, *git])


def _of_git(configuration: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A configuration of git's, as variables of the environment have it."""
    numbered = list(enumerate(configuration))
    return {
        "GIT_CONFIG_COUNT": str(len(numbered)),
        **{f"GIT_CONFIG_KEY_{number}": name for number, (name, _) in numbered},
        **{f"GIT_CONFIG_VALUE_{number}": value for number, (_, value) in numbered},
    }


CREDENTIAL = re.compile(r".*(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)|AWS_.*|ANTHROPIC_.*")
"""Names of variables that may hold a credential."""


def refuse_credentials(built: Mapping[str, str], lent: Mapping[str, str]) -> None:
    """Raises CarelessDeployment if the agent's environment holds what may be a credential and is not the proxy's.

    `lent` is what the proxy gave: its own address, and tokens that end with the run. Nothing else that looks like a
    credential is in an environment that is built; so what is, was put there by a change that forgot why.
    """
    found = [name for name, value in built.items() if CREDENTIAL.fullmatch(name) and lent.get(name) != value]
    if found:
        raise CarelessDeployment(detail=f"the agent's environment would hold {', '.join(sorted(found))}")


def refuse_careless(environ: Mapping[str, str]) -> None:
    """Raises CarelessDeployment if this function's own environment holds a credential, other than its role's.

    It is the deployment's secret that holds them. An environment is seen by whoever may describe the function, and
    is inherited by every process that somebody forgets to give another.
    """
    found = [name for name in environ if CREDENTIAL.fullmatch(name) and not name.startswith("AWS_")]
    if found := [name for name in found if name not in ("ANTHROPIC_BASE_URL", "SECRET_ARN")]:
        raise CarelessDeployment(detail=f"RunClaude's environment holds {', '.join(sorted(found))}; use the secret")
