"""The repository that a session works on, cloned behind the agent's wall before its first turn.

What a host sends is a stranger's, and git has to make sense of it: so git runs as the agent, in its sandbox, with its
environment and its way through the proxy. Here is only read how it ended. The workspace itself becomes the clone; what
is in it already stays, or the clone fails.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from lambdas.agent.processes import Processes
from lambdas.agent.proxy import Proxy
from lambdas.agent.scratch import Scratch
from lambdas.archive.format import Limits
from lambdas.errors import (
    DiskFull,
    Internal,
    NotAsked,
    RefNotFound,
    RepositoryRefused,
    RepositoryUnavailable,
    RunCancelled,
    SessionTooLarge,
    WorkflowError,
    WorkspaceTaken,
)
from lambdas.strict import Json

SHELL = Path("/bin/sh")

TAKEN, TOO_LARGE, CONFLICT = 91, 92, 93
"""How the script ends where git would not say it so plainly."""

SCRIPT = f"""
set -eu
url=$1 ref=$2 commit=$3 depth=$4 files=$5 bytes=$6
if [ -e .git ]; then
    known=$(git config --local --get remote.origin.url) || exit {TAKEN}
    [ "${{known%.git}}" = "${{url%.git}}" ] && exit 0
    exit {TAKEN}
fi
clone=$(mktemp -d ./.clone.XXXXXX)
git clone --quiet --no-checkout --template= ${{depth:+--depth "$depth"}} ${{ref:+--branch "$ref"}} -- "$url" "$clone"
at=HEAD
if [ -n "$commit" ]; then
    git -C "$clone" fetch --quiet ${{depth:+--depth "$depth"}} origin "$commit"
    at=FETCH_HEAD
fi
if git -C "$clone" rev-parse --quiet --verify "$at" > /dev/null; then
    history=$(du -sk "$clone" | cut -f 1)
    git -C "$clone" ls-tree -r -l "$at" | awk -v files="$files" -v bytes="$bytes" -v history="$history" \\
        '{{ size += $4 }} END {{ exit size + history * 1024 > bytes || NR > files }}' || exit {TOO_LARGE}
    mv "$clone/.git" .git
    if [ -n "$commit" ]; then
        git checkout --quiet --detach "$commit" || exit {CONFLICT}
    else
        git checkout --quiet || exit {CONFLICT}
    fi
else
    mv "$clone/.git" .git
fi
rmdir "$clone"
"""
"""Sizes are git's own words of what it has got, before any of it is written into the workspace."""

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

LOOK_SECONDS = 1.0
"""How often it is looked whether the run is cancelled."""

SAID_BYTES = 2000
"""How much of what git said is kept, of its end."""

GIT_FAILED = 128

SAID: Sequence[tuple[re.Pattern[str], type[WorkflowError]]] = (
    (re.compile(r"credential is unset"), RepositoryRefused),
    (re.compile(r"Remote branch .* not found|couldn't find remote ref|not our ref"), RefNotFound),
    (re.compile(r"File too large"), SessionTooLarge),
    (re.compile(r"No space left on device"), DiskFull),
    (
        re.compile(r"returned error: (?:429|5\d\d)|early EOF|RPC failed|hung up unexpectedly"),
        RepositoryUnavailable,
    ),
)
"""What git (2.39) and the proxy say of some failures; the first that is found counts."""


@dataclass(frozen=True)
class Repository:
    """What a request's field `repository` says, as `lambdas.request` has let it through."""

    url: str
    ref: str = ""
    """A branch, a tag or a whole commit id; empty: the host's default branch."""
    depth: int | None = None

    @classmethod
    def of(cls, said: Json) -> Self:
        """The field's value."""
        return cls(**said)

    def clone(
        self,
        scratch: Scratch,
        environment: Mapping[str, str],
        proxy: Proxy,
        limits: Limits,
        deadline: float,
        cancelled: Callable[[], bool],
    ) -> None:
        """Make the workspace a clone, where it is none of this repository yet. `environment` leads to the `proxy`.

        At `deadline` (epoch seconds) it is given up, and so it is when it is `cancelled`. Raises `RepositoryRefused`
        (and those below it), `RepositoryUnavailable`, `SessionTooLarge`, `NotAsked`, `RunCancelled`, and `Internal`
        where git is missing or does not die.
        """
        launcher = scratch.launcher(SHELL, environment, proxy)
        commit = COMMIT.fullmatch(self.ref)
        arguments = [self.url, "" if commit else self.ref, self.ref if commit else "", str(self.depth or "")]
        most = [str(limits.members), str(limits.bytes)]
        with tempfile.TemporaryFile() as said:
            command = [str(launcher), "-c", SCRIPT, "clone", *arguments, *most]
            if code := _ended(command, scratch, said, deadline, cancelled):
                raise _failure(code, _end_of(said))


def _ended(
    command: list[str], scratch: Scratch, said: IO[bytes], deadline: float, cancelled: Callable[[], bool]
) -> int:
    """The program's exit code. Nothing of what it started outlives this."""
    with Processes(scratch.root, scratch.sandbox) as processes:
        quiet = subprocess.DEVNULL
        program = subprocess.Popen(command, cwd=scratch.workspace, env={}, stdin=quiet, stdout=quiet, stderr=said)
        try:
            while (left := deadline - time.time()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    return program.wait(min(left, LOOK_SECONDS))
                if cancelled():
                    raise RunCancelled
            raise NotAsked(detail="the deadline passed while the repository was cloned")
        finally:
            processes.kill()
            program.wait()


def _end_of(said: IO[bytes]) -> str:
    said.seek(max(0, os.fstat(said.fileno()).st_size - SAID_BYTES))
    return said.read().decode(errors="replace")


def _failure(code: int, said: str) -> WorkflowError:
    """What an exit code and git's last words mean. They are for the operator: who wrote them is unknown."""
    if code in (TAKEN, CONFLICT):
        return WorkspaceTaken(detail=said)
    if code == TOO_LARGE:
        return SessionTooLarge(detail="the repository")
    for words, kind in SAID:
        if words.search(said):
            return kind(detail=said)
    return RepositoryRefused(detail=said) if code == GIT_FAILED else Internal(detail=said)
