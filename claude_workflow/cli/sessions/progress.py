"""How far a command is, as a bar on standard error: at a terminal, and nowhere else."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from claude_workflow.cli.printing import to_stderr

Told = Callable[[int], None]
"""Takes how much more is done."""


@contextmanager
def of_bytes(doing: str, total: int) -> Iterator[Told]:
    """While so many bytes go from here to there."""
    with _bar(doing, DownloadColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.advance(task, more)


@contextmanager
def of_steps(doing: str) -> Iterator[tuple[Told, Told]]:
    """While it takes steps of which nobody knows at first how many there are: told of those to come, and of those
    done."""
    with _bar(doing) as bar:
        task, total = bar.add_task("", total=0), 0

        def to_come(more: int) -> None:
            nonlocal total
            total += more
            bar.update(task, total=total)

        yield to_come, lambda more: bar.advance(task, more)


def passing(content: Iterable[bytes], told: Told) -> Iterator[bytes]:
    """The same, of which is told as it passes."""
    for piece in content:
        told(len(piece))
        yield piece


def _bar(doing: str, *what: DownloadColumn) -> Progress:
    console = to_stderr()
    columns = (TextColumn(doing), BarColumn(), TaskProgressColumn(), *what, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
