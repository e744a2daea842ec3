"""Rows of the world that the agent's programs see: one run tells all of it, the next one what is left."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import NotAsked
from lambdas.strict import Json

LEFT = "left-by-a-check"

COMMANDS: dict[str, str] = {
    "programs": "python3 --version; git --version; env -i /bin/sh -c 'python3 --version; git --version'",
    "system": "uname -s -r -m",
    "status": "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status",
    "landlock": "python3 -c 'import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))'",
    "environ": "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | "
    "grep -oE '^(AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|SECRET_ARN|AWS_LAMBDA_RUNTIME_API)=' | sort | uniq -c",
    "limits": "ulimit -u; ulimit -n; ulimit -f; df -P /tmp | tail -1",
    "left": f"touch /tmp/{LEFT} $TMPDIR/{LEFT} 2>/dev/null; ls -d /tmp/{LEFT} $TMPDIR/{LEFT} 2>/dev/null",
}
"""By name, what a run asks its shell. None has a line break: the prompt has it in one line."""
HOME = {"home": f"find {shlex.quote(str(Path.home()))} -maxdepth 1 -type f -readable 2>/dev/null | head -3"}
"""Asked of a service on one machine, where it is the operator's. Its files, since folders that lead to Claude Code, in
a clone at home, say, are seen where a sandbox puts nothing else there."""

LATER: dict[str, str] = {
    "tmp": "ls -A /tmp | head -20",
    "shared": "ls -A /dev/shm 2>/dev/null | head; tail -n +2 /proc/sysvipc/shm | head",
    "processes": "ls -d /proc/[0-9]* | wc -l",
}
PROMPT = (
    "This is a self-test of the sandbox that you run in, by its operator. Call Bash once, with the command below after "
    "the word run, and then answer with the word done.\nrun {command}"
)


def told(kit: Kit, files: Sequence[Json] = (), /, **commands: str) -> Json:
    """What each command printed, in a run of its own, with these files; of the usual ones, where no other is named.

    Raises `NotAsked` where the model did not call it.
    """
    commands = commands or (COMMANDS if kit.stack else COMMANDS | HOME)
    script = " ; ".join(f"echo '== {name}' ; {{ {command} ; }} 2>&1" for name, command in commands.items())
    brought: Json = {"files": list(files)} if files else {}
    answer = kit.run(PROMPT.format(command=script), **brought)
    if "== " not in answer.get("tools", ""):
        said = answer.get("error") or answer.get("result")
        raise NotAsked(f"The command was not run ({answer['status']}: {said}). Ask again, or with another --model.")
    parts = re.split(r"^== (\w+)$", answer["tools"], flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=False)}


def part(kit: Kit, name: str) -> Json:
    """What the run of `agent-shell` told of a command."""
    found = kit.answers["agent-shell"]
    if "Linux" not in found["system"]:
        raise NotAsked(f"This is {found['system']}, which has none of it.")
    return {name: found[name]}


def files(kit: Kit) -> Json:
    """What it told of the operator's home."""
    if kit.stack:
        raise NotAsked("In AWS the machine is the function's own; what is in it, the other rows of the agent ask.")
    return {"home": kit.answers["agent-shell"]["home"]}


def after(kit: Kit) -> Json:
    """What a run later is left of what that one wrote, and runs."""
    before = kit.answers["agent-shell"]["left"].split()
    paths = shlex.join(before)
    return told(kit, left=f"ls -d {paths} 2>/dev/null; rm -f {paths}", **LATER) | {"left before": before}
