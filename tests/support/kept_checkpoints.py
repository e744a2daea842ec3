"""A place for a run's checkpoints: this process' memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from lambdas.agent.scratch import Scratch
from lambdas.archive.format import Limits
from lambdas.archive.pack import pack
from lambdas.archive.tree import Keep
from lambdas.archive.unpack import unpack
from lambdas.receipt import Receipt
from tests.support.opened import Opened

LIMITS = Limits(10_000, 1 << 30, 1100)


@dataclass
class Kept:
    """Packs the whole workspace and all transcripts, and keeps every checkpoint with the time at which it was there."""

    scratch: Scratch
    archives: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay: float = 0.0
    """Seconds that an upload takes."""
    receipts: list[Receipt] = field(default_factory=list)
    """In US dollars, as they were told."""
    told: list[bytes] = field(default_factory=list)
    """The messages, each time that they were shown."""
    cancel: Callable[[], bool] = lambda: False
    """Whether the run is cancelled."""
    saving: Callable[[], float] = lambda: 0.0
    """Seconds that the end is told to take."""

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        roots = {"workspace": self.scratch.workspace, "claude": self.scratch.claude}
        keep: dict[str, Keep] = {"claude": lambda path: path.startswith("claude/projects")}
        return pack(roots, out, LIMITS, keep, go_on=go_on).size

    def upload(self, archive: BinaryIO, size: int) -> None:
        time.sleep(self.delay)
        self.archives.append(archive.read())
        assert len(self.archives[-1]) == size
        self.times.append(time.monotonic())

    def saving_seconds(self) -> float:
        return self.saving()

    def receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)

    def messages(self, text: bytes) -> None:
        self.told.append(text)

    def cancelled(self) -> bool:
        return self.cancel()

    def restore(self, into: Scratch, which: int = -1) -> None:
        """What a replay does: the checkpoint in place of what is there."""
        unpack(Opened(self.archives[which]), into.root, LIMITS)
