"""What ends a turn before it has its result.

| by | when | what becomes of it |
|---|---|---|
| `deadline` | the run's time is over | it is complete, as far as it came |
| `cancelled` | its caller has ended it | likewise |
| `gate` | from `Leg.gate` on, the conversation's next request is held back | another leg goes on; nothing is lost |
| `limit` | a leg's time is over, and no such request came | likewise; what was under way is cut off |
| `unrestored` | what it goes on from could not be restored, beside it | it fails by that |

Deadline and limit come sooner where a run has changed so much that saving it, or made so many files that removing them,
will take the rest of the time.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lambdas.agent.checkpoint import Saver
from lambdas.agent.gate import Gate
from lambdas.agent.restored import Restored
from lambdas.agent.scratch import crowded
from lambdas.receipt import Receipt

TAIL_FILES, FILE_SECONDS = 20_000, 50e-6
"""For how many files there is always time after the deadline, and what each more takes to be looked at and removed: the
deadline comes earlier by that. 20 µs were measured, and twice as much on a busy machine."""

COUNT_SECONDS = 1.0
"""How often files are counted, where that does not take a quarter of the time."""

CANCEL_SECONDS = 1.0
"""How often it is looked whether the run is cancelled."""

GATE_SECONDS = 0.05
"""How often it is looked whether the gate is reached, or the session in place."""


class Outside(Saver, Protocol):
    """What a run has outside: where what has to outlive it goes, and who may end it."""

    def saving_seconds(self) -> float:
        """About how long saving what the run has changed by now would take, at its end."""

    def receipt(self, receipt: Receipt) -> None:
        """Keep what the attempt has cost by now. Raises StorageUnavailable."""

    def messages(self, text: bytes) -> None:
        """Show what the agent has said by now. Raises StorageUnavailable."""

    def cancelled(self) -> bool:
        """Whether the run's caller has ended it, as far as can be told."""


@dataclass(frozen=True)
class Leg:
    """When a leg of a long run ends, in epoch seconds."""

    gate: float
    limit: float


@dataclass(frozen=True)
class Ending:
    """Looks for what ends one turn."""

    deadline: float
    leg: Leg | None
    gate: Gate
    outside: Outside
    root: Path
    """Where the run's files are."""
    restored: Restored
    """Done when the session is in place, or could not be restored."""

    @property
    def last(self) -> float:
        """Epoch seconds at which it ends in any case."""
        return min(self.deadline, self.leg.limit) if self.leg else self.deadline

    async def awaited(self, turn: "asyncio.Task[None]") -> str | None:
        """By what it ends; None where the turn has."""
        watches = {asyncio.create_task(self._cancelled()): "cancelled"}
        if not self.restored.done() or self.restored.exception():
            watches[asyncio.create_task(self._unrestored())] = "unrestored"
        if self.leg:
            watches[asyncio.create_task(self._held(self.leg.gate))] = "gate"
        watches[asyncio.create_task(self._crowd())] = self._late
        left = max(0.0, self.last - time.time())
        await asyncio.wait({turn, *watches}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        over = [by for watch, by in watches.items() if watch.done()]
        for watch in watches:
            watch.cancel()
        return None if turn.done() else [*over, self._late][0]

    @property
    def _late(self) -> str:
        return "deadline" if self.last == self.deadline else "limit"

    async def _cancelled(self) -> None:
        loop, beside = asyncio.get_running_loop(), ThreadPoolExecutor(1, "cancelled")
        try:
            await asyncio.sleep(CANCEL_SECONDS)
            while not await loop.run_in_executor(beside, self.outside.cancelled):
                await asyncio.sleep(CANCEL_SECONDS)
        finally:
            beside.shutdown(wait=False)  # the end waits for no S3 that is silent

    async def _unrestored(self) -> None:
        while not self.restored.done():
            await asyncio.sleep(GATE_SECONDS)
        if not self.restored.exception():
            await asyncio.Event().wait()  # all is well, and this is no end

    async def _held(self, since: float) -> None:
        await asyncio.sleep(max(0.0, since - time.time()))
        self.gate.close()
        while not self.gate.reached:
            await asyncio.sleep(GATE_SECONDS)

    async def _crowd(self) -> None:
        """Ends when the time that is left is needed to save what the run changed, or to remove its files."""
        took = late = 0.0
        while (left := self.last - late - time.time()) > 0:
            await asyncio.sleep(min(left, max(COUNT_SECONDS, 3 * took)))
            began = time.time()
            if crowded(self.root, TAIL_FILES + int((self.last - began) / FILE_SECONDS)):
                return
            late = self.outside.saving_seconds()
            took = time.time() - began
