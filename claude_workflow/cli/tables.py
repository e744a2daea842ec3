"""Tables that fit any terminal and cut no id: a row in a line where there is room, else in a block of lines."""

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from claude_workflow.cli.printing import to_stdout

NARROW = 80
"""Columns of the narrowest terminal that is laid out for; a narrower one breaks lines, and cuts no id."""
PIPED = 240
"""Columns that a pipe gets: a row in a line."""

Columns = Mapping[tuple[str, ...], int | None]
"""Heads that stand one below the other, with their column's width; None for what is left."""


def console() -> Console:
    """Standard output, with the terminal's width or what a pipe gets."""
    return to_stdout(width=max(NARROW, Console().width) if sys.stdout.isatty() else PIPED)


def table(
    columns: Columns, rows: Iterable[Mapping[str, Text]], *, head: bool, width: int, figures: Collection[str] = ()
) -> Table:
    """One page. Widths are fixed, so that pages printed one below the other make one table. Columns that begin with one
    of `figures` stand to the right."""
    made = Table(box=None, show_header=head, pad_edge=False, padding=(0, 2, 0, 0), width=width, header_style="bold")
    lines = max(map(len, columns))
    for names, size in columns.items():
        heads = [*names, *[""] * (lines - len(names))]  # else the shorter ones stand lower than what they name
        side: Literal["left", "right"] = "right" if names[0] in figures else "left"
        made.add_column("\n".join(heads), width=size, ratio=None if size else 1, overflow="fold", justify=side)
    for row in rows:
        made.add_row(*(Text("\n").join(row[name] for name in names) for names in columns))
    return made
