"""The same tree kept by backup tools: Debian's `restic`, `borg` and `casync` take what changed, `tar | zstd` all of it.

`restic` writes to the same S3 behind the same limiter, and the archive of `tar | zstd` is uploaded there. `borg` and
`casync` have no S3: they write to a local directory, which is in their favour.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import naive
from benchmarks.limiter import Limiter
from benchmarks.storage import BUCKET, KEY

PACKAGES = {"restic": "restic", "borg": "borgbackup", "casync": "casync", "zstd": "zstd"}
"""Debian's package of each program."""


NAMES = {"restic": "restic", "borg": "borg", "casync": "casync", "tar.zst": "zstd"}
"""What each tool is called in the report, and the program that it needs."""


class Snapshot(NamedTuple):
    """What a tool took for one."""

    seconds: float
    cpu: float
    moved: int
    """Bytes sent to S3, or by which the local repository grew."""


@dataclass
class Tool:
    """A backup tool with a repository of its own for one tree."""

    name: str
    folder: Path
    tree: Path
    limiter: Limiter
    taken: int = 0

    def begin(self) -> None:
        """The repository, with a first snapshot."""
        self.folder.mkdir()
        for command in self._init():
            self._run(command)
        self.snapshot()

    def snapshot(self) -> Snapshot:
        """One more. Raises `RuntimeError` where the tool fails."""
        self.taken += 1
        sent, size = self._sent(), self._size()
        cpu, start = _children(), time.monotonic()
        self._run(self._take())
        seconds, cpu = time.monotonic() - start, _children() - cpu
        if self.name == "tar.zst":
            seconds += naive.run("upload", self.folder / "tar.zst", self.limiter.url, "tar.zst").seconds
        return Snapshot(seconds, cpu, self._sent() - sent or self._size() - size)

    def _init(self) -> list[list[str]]:
        return {
            "restic": [["restic", "init", "--quiet"]],
            "borg": [["borg", "init", "--encryption=none", f"{self.folder}/repo"]],
        }.get(self.name, [])

    def _take(self) -> list[str]:
        folder, tree = self.folder, str(self.tree)
        return {
            "restic": ["restic", "backup", "--quiet", tree],
            "borg": ["borg", "create", f"{folder}/repo::{self.taken}", tree],
            "casync": ["casync", "make", f"--store={folder}/store", f"{folder}/{self.taken}.caidx", tree],
            "tar.zst": ["sh", "-c", f"tar -c -C {tree} . | zstd -q -f -T0 -o {folder}/tar.zst"],
        }[self.name]

    def _run(self, command: list[str]) -> None:
        given = {"HOME": str(self.folder), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        given |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY, "RESTIC_PASSWORD": KEY}
        given |= {"RESTIC_REPOSITORY": f"s3:{self.limiter.url}/{BUCKET}/restic/{self.tree.parent.name}"}
        given |= {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "LANG": "C.UTF-8"}
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} failed: {done.stderr[-1000:]}")

    def _sent(self) -> int:
        return sum(exchange.up for exchange in self.limiter.log)

    def _size(self) -> int:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files if ".cache" not in path.parts)


def tools(folder: Path, tree: Path, limiter: Limiter) -> Iterator[Tool]:
    """Those that are installed."""
    folder.mkdir()
    for name, program in NAMES.items():
        if shutil.which(program):
            yield Tool(name, folder / program, tree, limiter)


def missing() -> list[str]:
    """Debian packages of those that are not."""
    return [package for program, package in PACKAGES.items() if not shutil.which(program)]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
