"""What keeps the agent from the rest of this machine: found out by trying, not by versions."""

import errno
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from claude_workflow.local.engine import EngineFailed
from lambdas.agent.environment import environment
from lambdas.agent.launch import ABI_TCP, landlock_abi
from lambdas.agent.network import PORT
from lambdas.agent.proxy import Proxy
from lambdas.agent.sandbox import Sandbox, home_directory
from lambdas.agent.scratch import Scratch
from lambdas.errors import Internal

NAMES = {
    "bubblewrap": "bubblewrap",
    "readonly": "Landlock and a mount namespace",
    "landlock": "Landlock",
    "seatbelt": "sandbox-exec",
}

ATTEMPT = 'cat -- "$1"; ls -A -- "$2"; echo changed > "$1"; touch -- "$3"'
"""What must come to nothing: reading a secret and the home directory, changing it, making a file."""
MODES = 'chmod 600 -- "$1"; chmod 700 -- "$4"; touch -d @1 -- "$1" "$4"'
"""What Landlock alone does not keep from a user: setting mode and times, of the secret and of the state."""

OWN_NETWORK = Path("/proc/self/ns/net")
NETWORK = f"readlink {OWN_NETWORK}; cat /proc/self/net/tcp"
"""What says which network a process has, and who listens there."""
LISTENER = f":{PORT:04X} 00000000:0000 0A "
"""How that tells of the proxy's listener: the port, from anywhere, and that it listens."""

SECONDS = 20


def scratch() -> Path:
    """Where the runs of this user have their directories."""
    mine = "" if os.geteuid() == 0 else f"-{os.geteuid()}"
    return Path(tempfile.gettempdir()) / f"claude-agent{mine}"


def holding(state: Path) -> str | None:
    """The first sandbox here in which a run reads nothing in `state` and at home, and writes to neither; or None.

    With a user id of its own, Landlock keeps the agent in, and asks for nothing. With the user's own id it would leave
    it chmod and stat on everything; in a mount namespace it leaves stat, and bubblewrap neither. Raises EngineFailed
    where a run could not even begin.

    Root of a user namespace (`unshare -r`, some containers) has only the user ids that the namespace maps.
    """
    if sys.platform == "darwin":
        kinds = ["seatbelt"]
    elif os.geteuid() == 0:
        kinds = ["landlock", "bubblewrap"]
    else:
        kinds = ["bubblewrap", "readonly", "landlock"]
    try:
        return next((kind for kind in kinds if holds(kind, state)), None)
    except (Internal, PermissionError) as refused:
        raise EngineFailed(
            f"{scratch()} is somebody else's. Remove it, or name another directory: TMPDIR."
        ) from refused
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise
        raise EngineFailed(
            "Root of this user namespace has no user ids to give to sessions. Serve as an ordinary user, or as root "
            "outside of it."
        ) from refused


def holds(kind: str, state: Path) -> bool:
    """Whether a run in this sandbox comes to nothing outside its own directories."""
    session = str(uuid.uuid4())
    sandbox, made = Sandbox.of(kind, session), state / f"made-{session}"
    with tempfile.NamedTemporaryFile(dir=state) as secret, Scratch(scratch() / session, sandbox) as within:
        secret.write(b"secret")
        secret.flush()
        shell = str(within.launcher(Path("/bin/sh"), environment(within)))
        before = _changed(secret.name, state)
        modes = "" if kind == "landlock" and sandbox.uid is None else MODES
        script = f"{ATTEMPT}; {modes}\necho up"
        command = [shell, "-c", script, "sh", secret.name, str(home_directory()), str(made), str(state)]
        done = subprocess.run(command, cwd=within.workspace, capture_output=True, timeout=SECONDS)
        kept = _changed(secret.name, state) == before and not made.exists()
    made.unlink(missing_ok=True)
    return kept and done.stdout == b"up\n"


def network(kind: str) -> str:
    """What network a run in this sandbox can have here, of `settings.NETWORKS`: its own, if one is to be had, in which
    the proxy listens. Else this machine's, closed as far as `reach` says."""
    session = str(uuid.uuid4())
    sandbox = Sandbox.of(kind, session, network="own")
    if sys.platform != "linux":
        return "shared"
    with Scratch(scratch() / session, sandbox) as within, Proxy([], inside=True) as proxy:
        shell = str(within.launcher(Path("/bin/sh"), environment(within), proxy))
        command = [shell, "-c", NETWORK]
        done = subprocess.run(command, cwd=within.workspace, capture_output=True, text=True, timeout=SECONDS)
    which, _, listeners = done.stdout.partition("\n")
    return "own" if which not in ("", str(OWN_NETWORK.readlink())) and LISTENER in listeners else "shared"


def reach(network: str) -> str:
    """A sentence on what the agent reaches in such a network, which is not open."""
    if network == "own":
        return "It has a network of its own: it reaches its proxy, and nothing else."
    if sys.platform == "darwin":
        return "It has no network of its own here: sandbox-exec keeps it from all but its proxy."
    if landlock_abi() >= ABI_TCP:
        return "It has no network of its own here: Landlock closes all TCP ports but its proxy's, and UDP is refused."
    return (
        "It has no network of its own here, and Landlock knows no ports before Linux 6.7: it reaches every TCP port "
        "that this machine does. UDP is refused."
    )


def _changed(*paths: str | Path) -> list[int]:
    """When contents, modes or times of each were changed last: not even its owner sets that."""
    return [Path(path).stat().st_ctime_ns for path in paths]
