"""What the proxy has not passed on, so that it is in the run's record.

It stands in the receipt, beside what was passed on: the one object that is there of every attempt, failed and killed
ones too, and that no code of the agent's writes.
"""

import threading
from collections import Counter

from lambdas.receipt import REFUSAL_CHARS, REFUSALS, Refusal

OTHERS = ("other requests", "more kinds of them than are kept")


class Refusals:
    """Those of one run, by what they were and why. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def note(self, what: str, why: str) -> bool:
        """Whether this was the first of its kind."""
        kind = _cleaned(what), _cleaned(why)
        with self._lock:
            if kind not in self._counts and len(self._counts) >= REFUSALS - 1:
                kind = OTHERS
            self._counts[kind] += 1
            return self._counts[kind] == 1

    @property
    def rows(self) -> tuple[Refusal, ...]:
        """As they came."""
        with self._lock:
            return tuple(Refusal(what, why, times) for (what, why), times in self._counts.items())


def _cleaned(text: str) -> str:
    """Without what a terminal obeys, or cannot show: it is a stranger's."""
    kept = "".join(char if char.isascii() and char.isprintable() else "?" for char in text[:REFUSAL_CHARS])
    return kept if len(text) <= REFUSAL_CHARS else f"{kept[:-1]}…"
