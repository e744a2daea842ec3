"""What stands between the agent and the machine that it runs on.

On Lambda the machine is the function's alone, and the wall around it is AWS'. On one machine, where the user's own
files are, the agent gets a sandbox of the system's, and a user id of its own where the service runs as root.
`lambdas.agent.launch` is the process that puts it up around itself.
"""

import hashlib
import os
import pwd
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix/store", "/proc", "/sys")
"""What the agent may read and execute beside its own. Of other processes, /proc shows it the command lines."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

INTERNET = (53, 80, 443)
"""TCP ports that it can reach beside the proxy's where the network is open: what the web needs. What else listens on
one machine is not its."""

PROCESSES = 1000
"""How many processes and threads a run may have; CLI 2.1.330 has some 30."""

FILE_BYTES = 1 << 30

FIRST_UID, UIDS = 0x7000_0000, 0x0FFF_FFFF
"""User ids that no system gives to anybody (systemd's UIDS-GIDS)."""

NOBODY = 65534


class Orders(TypedDict):
    """What is to become of the process."""

    program: str
    environment: dict[str, str]
    """All that it gets."""
    uid: int | None
    """The user and group to become; None: as it is."""
    sandbox: str | None
    """`landlock`; `readonly`, which is Landlock in a mount namespace; `bubblewrap`; `seatbelt`; or None: only what the
    kernel offers and nobody misses."""
    read: list[str]
    """What can be read, and executed, with all below."""
    write: list[str]
    """What can be changed, with all below."""
    devices: list[str]
    """Devices to read and write."""
    hidden: list[str]
    """What cannot be read, where a sandbox allows the rest (seatbelt)."""
    network: str
    """`own`: a namespace with nothing but loopback; `shared`: the machine's, closed but for `ports`; `open`: the
    machine's, with UDP, and as far as the sandbox goes."""
    handoff: str | None
    """With a network of its own, the directory where the proxy takes a listener on the last of `ports`; None: there is
    nothing at all in it."""
    ports: list[int]
    """TCP ports that can be connected to, on any address, where the sandbox knows ports."""
    processes: int
    """How many processes and threads its user may have more than now."""
    file_bytes: int
    """How large a file may grow."""


@dataclass(frozen=True)
class Sandbox:
    """How the agent is kept apart. Without a sandbox and a user id, only what the kernel offers and nobody misses."""

    kind: str | None = None
    """One of those that `Orders` names."""
    uid: int | None = None
    """The user that the agent is; None: this process' own."""
    file_bytes: int = FILE_BYTES
    """How large one of its files may grow."""
    alone: bool = False
    """Whether this process' user has no other processes on this machine than the run's, as on Lambda."""
    network: str = "open"
    """One of those that `Orders` names."""

    @classmethod
    def of(
        cls, kind: str, session: str, file_bytes: int = FILE_BYTES, *, alone: bool = False, network: str = "open"
    ) -> Self:
        """That of `kind` (one of `settings.SANDBOXES`) for a run of Claude's `session` (a UUID)."""
        if kind == "none":
            return cls(file_bytes=file_bytes, alone=alone, network=network)
        return cls(kind, _own_uid(session) if os.geteuid() == 0 else None, file_bytes, network=network)

    @property
    def its_own_network(self) -> bool:
        """Whether the agent's network is a namespace of its own."""
        return self.network == "own"

    @property
    def its_own_uid(self) -> bool:
        """Whether the agent's user id is its session's alone, so that all processes of that user are the run's."""
        return self.uid is not None and FIRST_UID <= self.uid < FIRST_UID + UIDS

    def orders(
        self,
        program: Path,
        environment: Mapping[str, str],
        read: Sequence[Path],
        write: Sequence[Path],
        port: int | None,
        handoff: Path | None,
    ) -> Orders:
        """For `launch`: beside the system, `read` can be read and `write` changed. `port` is the proxy's."""
        home = home_directory()
        system = [path for path in SYSTEM if not home.is_relative_to(path)]
        resolver = os.path.realpath("/etc/resolv.conf")
        return Orders(
            program=str(program),
            environment=dict(environment),
            uid=self.uid,
            sandbox=self.kind,
            read=[*system, resolver, *(os.path.realpath(path) for path in (program, *read))],
            write=[os.path.realpath(path) for path in write],
            devices=list(DEVICES),
            hidden=[str(home), os.path.realpath(write[0].parent.parent)],
            network=self.network,
            handoff=None if handoff is None else str(handoff),
            ports=[*(INTERNET if self.network == "open" else ()), *([] if port is None else [port])],
            processes=PROCESSES,
            file_bytes=self.file_bytes,
        )

    def reachable(self, program: Path, shelf: Path) -> Path:
        """`program`, or where its user cannot go to it (a home directory, mostly), the same file on `shelf`."""
        if self.uid is None or all(parent.stat().st_mode & 0o001 for parent in program.parents):
            return program
        facts = program.stat()
        version = f"{program} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
        shown = shelf / f"program-{hashlib.sha256(version.encode()).hexdigest()[:16]}"
        if not shown.exists():
            fresh = shelf / f"{shown.name}.{uuid.uuid4().hex}"
            try:
                fresh.hardlink_to(program)
            except OSError:  # another file system
                shutil.copy2(program, fresh)
            fresh.rename(shown)
        return shown


OPEN = Sandbox()
"""Only what the kernel offers and nobody misses."""


def home_directory() -> Path:
    """That of this process' user; in some containers, users have no name and so no home."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path(os.environ.get("HOME") or "/")


def _own_uid(session: str) -> int:
    """The same for every run of a session, and no other session's: or nobody's, where the container has no more."""
    uid = FIRST_UID + uuid.UUID(session).int % UIDS
    if sys.platform != "linux":
        return uid
    mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return uid if any(int(first) <= uid < int(first) + int(count) for first, _, count in mapped) else NOBODY
