"""What a run does, as it does it, on standard error: a line a step, and at a terminal one that says what goes on now.

The agent's last text is the answer, which has its place on standard output. So each text waits until it is known not to
be that one.
"""

import sys
import time
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from claude_workflow.cli.client import Document
from claude_workflow.cli.endings import dollars
from claude_workflow.cli.printing import line, whole
from claude_workflow.cli.telling import STEP_CHARS, text_of, told


class View:
    """A run, for people; `shown` is whether anybody wants to see it."""

    def __init__(self, console: Console, *, shown: bool = True, free: bool = False) -> None:
        self.live = shown and console.is_terminal
        """Whether somebody looks on, who wants to know what it costs meanwhile."""
        self.console = console
        self._shown = shown
        self._free = free
        self._began = time.time()
        self._cost: float | None = None
        self._calls: set[object] = set()
        self._doing = ""
        self._workspace = ""
        self._held = ""
        self._spinner = Spinner("dots")
        self._line = Live(
            get_renderable=self._now,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self.live:
            self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.stop()

    def say(self, sentence: str, style: str = "dim") -> None:
        """A sentence of the command's own."""
        if self._shown:
            self.console.print(sentence, style=style, soft_wrap=True)

    def message(self, message: Document) -> None:
        """Shows one of the agent's messages, as Claude Code prints them; of what it does not know, nothing."""
        nested = message.get("parent_tool_use_id") is not None
        match message:
            case {"type": "system", "subtype": "init", "cwd": str(workspace)}:
                self._workspace = workspace
            case {"type": "assistant", "message": {"content": list(blocks)} as said}:
                self._calls.add(said.get("id"))
                for block in blocks:
                    self._block(block, nested)
            case {"type": "user", "message": {"content": list(blocks)}}:
                for block in blocks:
                    self._result(block, nested)
        if self.live:
            self._line.refresh()

    def status(self, status: Document) -> None:
        """Takes what the service says of the run: since when it has been going on, and what it has cost so far."""
        if isinstance(cost := status.get("cost_usd"), int | float):
            self._cost = cost
        try:
            self._began = datetime.fromisoformat(str(status.get("since"))).timestamp()
        except ValueError:
            return  # it is this command's beginning then

    def end(self, answer: Document | None) -> None:
        """Shows what was held back, unless the answer has it."""
        if self._held.strip() not in str((answer or {}).get("result") or ""):
            self._flush()
        self._held = ""

    def _block(self, block: Any, nested: bool) -> None:
        match block:
            case {"type": "text", "text": str(text)} if not nested:
                self._flush()
                self._held, self._doing = text, ""
            case {"type": "thinking"}:
                self._doing = "thinking"
            case {"type": "tool_use", "name": str(name), "input": dict(given)}:
                self._flush()
                self._doing = f"{line(name, 60)} {told(given, self._workspace)}"
                self._step(f"{line(name, 60)}  {told(given, self._workspace)}", nested)

    def _result(self, block: Any, nested: bool) -> None:
        match block:
            case {"type": "tool_result", "is_error": True, "content": content}:
                self._step(f"  failed: {line(text_of(content), STEP_CHARS)}", nested, "red")
        self._doing = ""

    def _flush(self) -> None:
        if self._shown and self._held.strip():
            self.console.print(Text(whole(self._held.strip(), sys.stderr)), soft_wrap=not self.console.is_terminal)
        self._held = ""

    def _step(self, words: str, nested: bool, style: str = "dim") -> None:
        """One line, whatever the width; a subagent's stands further in."""
        if not self._shown:
            return
        text = Text(f"{'    ' if nested else '  '}{words}", style)
        if self.console.is_terminal:
            self.console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            self.console.print(text, soft_wrap=True)

    def _now(self) -> Spinner:
        """The line that passes: how long, how many calls, what it has cost, what it does at the moment."""
        elapsed = timedelta(seconds=max(0, int(time.time() - self._began)))
        calls = f"{len(self._calls)} model call{'s' * (len(self._calls) != 1)}" if self._calls else ""
        cost = dollars(self._cost) if self._cost is not None and not self._free else ""
        words = ", ".join(word for word in (str(elapsed), calls, cost, self._doing) if word)
        text = Text(f"Claude is working… {words}", no_wrap=True, overflow="ellipsis")
        text.truncate(self.console.width - 4, overflow="ellipsis")  # the spinner's place is beside it
        self._spinner.update(text=text)
        return self._spinner
