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


def _changed(*paths: str | Path) -> list[int]:
    """When contents, modes or times of each were changed last: not even its owner sets that."""
    return [Path(path).stat().st_ctime_ns for path in paths]
