"""The agent's messages: one JSON array, which is seen while it grows."""

from collections.abc import Callable

from lambdas import strict
from lambdas.agent.staged import Staged
from lambdas.strict import Json


class Progress(Staged):
    """Every message is a line of `messages.json`: what was once written stays as it is, but for the closing bracket.

    Each is kept as the text that it is written as, and nothing else of it.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        # RunClaude stages the last ones, as a part of the result.
        super().__init__("progress", lambda: write(self.text), rest=1.0, share=0.1, to_the_end=False)
        self._lines: list[bytes] = []

    def add(self, message: Json) -> None:
        """Keep one more."""
        self._lines.append(strict.written(message))
        self.changed()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._lines)

    @property
    def text(self) -> bytes:
        """All of them, as they are staged."""
        return b"[" + b",".join(b"\n" + line for line in self._lines) + b"\n]\n"
