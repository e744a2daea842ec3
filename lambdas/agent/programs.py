"""What the agent's shell has in RunClaude's image. docs/api.md promises it, and the image's build tries it.

    python -m lambdas.agent.programs        in the image, as root (see the Dockerfile)

A program that is there may still not run: Lambda's own Python needs a library that only the function's environment
leads to. So each one is started as the agent will start it, with the agent's PATH and nothing else, by a user who owns
nothing.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from lambdas.agent.environment import PATH

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "bash": ("--version",),
    "python3": ("-c", "import ssl"),
    "git": ("--version",),
    "curl": ("--version",),
    "tar": ("--version",),
    "gzip": ("--version",),
    "unzip": ("-v",),
    "find": ("--version",),
    "xargs": ("--version",),
    "diff": ("--version",),
    "grep": ("--version",),
    "sed": ("--version",),
    "awk": ("BEGIN {}",),
    "ps": ("--version",),
}
"""Each with arguments by which it does nothing but run."""

NOBODY = 65534


def broken(programs: Mapping[str, tuple[str, ...]], path: str = PATH) -> Iterator[str]:
    """What cannot be run with this PATH as the whole environment, each with the reason."""
    who = NOBODY if os.geteuid() == 0 else None
    for name, arguments in programs.items():
        # By env, since Python would look for the program on the PATH of its own.
        command = ["/usr/bin/env", "-i", f"PATH={path}", name, *arguments]
        done = subprocess.run(
            command,
            user=who,
            group=who,
            extra_groups=None if who is None else [],
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            yield f"{name}: {done.stderr.strip() or done.returncode}"


if __name__ == "__main__":
    if reasons := list(broken(PROGRAMS)):
        sys.exit("The agent's shell lacks what docs/api.md promises:\n" + "\n".join(reasons))
