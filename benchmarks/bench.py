"""What every benchmark is given: a place to work, an S3 server behind a limiter, and someone to tell of progress."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory, storage
from benchmarks.limiter import Limiter
from claude_workflow.local import deploy
from claude_workflow.local.api import Template

MBIT = 640
LATENCY = 0.015
"""Seconds that each request to S3 waits: what Lambda sees of S3 in its region, as far as we know."""
NEEDED_BYTES = 10 << 30
"""Free memory in /dev/shm that the largest session and its copies take."""


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks."""

    folder: Path
    """Empty at the start and gone at the end."""
    template: Template
    storage: storage.Storage
    limiter: Limiter
    quick: bool
    """Everything once and tiny: to see that it works, not to measure."""
    say: Callable[[str], None]


@contextmanager
def prepared(*, quick: bool, say: Callable[[str], None]) -> Iterator[Bench]:
    """Starts the S3 server and the limiter; all is ended and removed on the way out."""
    place = _place()
    say(f"Working in {place} …")
    with tempfile.TemporaryDirectory(dir=place, prefix="claude-workflow-benchmark-") as folder:
        template = deploy.synthesized(Path(folder), say)
        if not quick:
            say("Touching free memory …")
        with (
            nullcontext() if quick else memory.backed(),
            storage.running(Path(folder)) as server,
            Limiter(server.address, mbit=MBIT, latency=LATENCY) as limiter,
        ):
            yield Bench(Path(folder), template, server, limiter, quick, say)


def _place() -> Path:
    """Memory where there is enough: ext4 takes up to 30 times as long for a file that it makes soon after deleting
    many others, and every side here deletes what it made."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > NEEDED_BYTES:
        return shared
    return Path(tempfile.gettempdir())


def machine(folder: Path) -> str:
    """The machine, its system and where it worked, in one sentence."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    kibibytes = int(Path("/proc/meminfo").read_text().split()[1])
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    kind = "in memory (tmpfs)" if folder.is_relative_to("/dev/shm") else "on a disk"
    return f"{model}, {os.cpu_count()} cores, {kibibytes / 2**20:.0f} GiB of memory, {system}; files {kind}"


def elapsed(start: float) -> str:
    """Minutes and seconds since a monotonic moment."""
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02}"
