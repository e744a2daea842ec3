"""`claude-workflow sessions put`: a folder of this machine becomes a session's workspace."""

import os
import stat
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.filesize import decimal

from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable, typed
from claude_workflow.cli.printing import line, to_stderr
from claude_workflow.cli.sessions import progress
from claude_workflow.cli.sessions.held import held
from claude_workflow.cli.sessions.progress import Told
from lambdas.archive.directory import Directory
from lambdas.archive.format import SECOND, Limits
from lambdas.archive.pack import pack
from lambdas.archive.tree import Fingerprint, never, shown
from lambdas.bucket import commit, versions
from lambdas.bucket.objects import Bucket
from lambdas.contract import FORMAT, Base

DEFAULT = "default"
"""The caller that `cdk.json` names, as it comes."""

NAMED = 10
"""Paths that are named of each kind of loss; of the others, how many they are."""

STEP = 1 << 20
"""Bytes of a large file after which `pack` tells that it goes on."""


def run(backend: Backend, folder: Path, session_id: str | None, caller: str | None) -> int:
    """Prints the session's id to stdout, and what it cannot keep to stderr. Raises `Unusable`."""
    root = folder.resolve()
    if not root.is_dir():
        raise Unusable(f"{folder} is no folder.")
    bucket, into = Bucket(backend.client("s3"), backend.bucket), session_id or f"session-{uuid.uuid4()}"
    limits, losses = backend.limits(), Losses(root)
    with held(bucket, into, "put"), tempfile.TemporaryFile() as file:
        metadata, base = _described(bucket, into, caller)
        last = commit.opened(bucket, base)
        size, files = _packed(root, file, limits, losses, last.directory)
        with progress.of_bytes("Sending", size) as told:
            commit.put(bucket, into, base, last, AtHand(file.fileno(), size, told), metadata, limits)
    print(into, flush=True)
    console = to_stderr()
    losses.say(console)
    console.print(f"{counted(files, 'file')}, {decimal(losses.size)}, packed to {decimal(size)}.", soft_wrap=True)
    ask = typed("ask", "--session", into, *backend.options)
    console.print(f"Ask about it: {ask} …", style="dim", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class AtHand:
    """An archive in a file of this machine; several threads read at once."""

    handle: int
    size: int
    told: Told

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`."""
        while start < end:
            piece = os.pread(self.handle, end - start, start)
            if not piece:
                raise OSError("the temporary file with the session is shorter than it was")
            self.told(len(piece))
            start += len(piece)
            yield piece


class Losses:
    """What of a folder a session does not keep, by what becomes of it; and how much there is to keep."""

    def __init__(self, root: Path) -> None:
        self.size = 0
        """Bytes of its files."""
        self._below = f"{root}/"
        self._found = defaultdict[str, list[str]](list)
        self._counted = defaultdict[str, int](int)

    def look(self, path: str, facts: os.stat_result) -> int:
        """Takes one path of the archive with its `lstat`. Returns the steps that it takes to pack it."""
        for what in self._lost(path, facts):
            self._counted[what] += 1
            if len(self._found[what]) < NAMED:
                self._found[what].append(shown(path.partition("/")[2] or "."))
        kind = stat.S_IFMT(facts.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFLNK):
            return 2 if kind == stat.S_IFDIR else 0  # listed, and written
        self.size += facts.st_size
        return 1 + facts.st_size // STEP

    def say(self, console: Console) -> None:
        """Names them, some of each."""
        for what, paths in sorted(self._found.items()):
            more = self._counted[what] - len(paths)
            named = [*(line(path, 300) for path in paths), *([f"and {more:,} more"] if more else [])]
            console.print(f"{what}: {', '.join(named)}", style="yellow", soft_wrap=True)

    def _lost(self, path: str, facts: os.stat_result) -> Iterator[str]:
        mode, kind = facts.st_mode, stat.S_IFMT(facts.st_mode)
        if kind in SPECIAL:
            yield f"Not kept, {SPECIAL[kind]}"
            return
        if mode & 0o7000 and kind != stat.S_IFLNK:
            yield "Kept without the set-id and sticky bits"
        if kind == stat.S_IFREG and facts.st_nlink > 1:
            yield "Kept as files of their own, which share their bytes with other names here (hard links)"
        if not -(2**31) <= facts.st_mtime_ns // SECOND < 2**31:
            yield "Kept with the nearest modification time between 1901 and 2038"
        if attributes(self._below + path.partition("/")[2]):
            yield "Kept without extended attributes and access lists"


SPECIAL = {
    stat.S_IFIFO: "FIFOs",
    stat.S_IFSOCK: "sockets",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
}


def attributes(path: str) -> bool:
    """Whether a file has attributes of its user's, or an access list; what the system labels it with is its own."""
    if not hasattr(os, "listxattr"):  # macOS
        return False
    try:
        found = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a disk that has none
        return False
    return any(name.startswith(("user.", "system.posix_acl")) or name == "security.capability" for name in found)


def _described(bucket: Bucket, session_id: str, caller: str | None) -> tuple[dict[str, str], Base | None]:
    """The next version's metadata, and the one that there is. Raises `Unusable` where that is another caller's.

    What is put there is nobody's turn and cost nothing; a new session has no conversation yet.
    """
    own = {"run": f"put-{uuid.uuid4()}", "format": str(FORMAT)}
    found = versions.newest(bucket, session_id)
    if found is None:
        created, claude_session = datetime.now(UTC).isoformat(timespec="seconds"), str(uuid.uuid4())
        new = {"created": created, "owner": caller or DEFAULT, "turns": "0", "cost-usd": "0.000000"}
        return own | new | {"claude-session": claude_session}, None
    base, metadata = found
    if caller and caller != metadata["owner"]:
        raise Unusable(f"The session {session_id} is {line(metadata['owner'], 100)}'s, and stays so.")
    return metadata | own, base


def _packed(root: Path, file: BinaryIO, limits: Limits, losses: Losses, last: Directory) -> tuple[int, int]:
    """Packs the folder as all of a workspace, in whose place it comes: bytes of the archive, and how many files."""
    with progress.of_steps("Packing") as (to_come, done):
        packed = pack(
            {"workspace": root},
            file,
            limits,
            since=_replaced(last),
            go_on=lambda: done(1),
            look=lambda path, facts: to_come(losses.look(path, facts)),
        )
    file.flush()
    return packed.size, packed.session_files


def _replaced(last: Directory) -> dict[str, Fingerprint]:
    """Of the last version's workspace nothing stays: what is not there any more has to be said to be gone."""
    found = (member for member in last.members() if member.path.startswith("workspace/"))
    return {member.path: never(member.mode) for member in found}
