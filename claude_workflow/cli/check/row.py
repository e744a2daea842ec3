"""One row of the kit: what is asked, what is expected of the answer, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdas.strict import Json

if TYPE_CHECKING:
    from claude_workflow.cli.check.kit import Kit

Ask = Callable[["Kit"], Json]
"""Gives the raw answer. Raises `NotAsked`; by whatever else it raises, the row is broken."""
Judge = Callable[[Json], str | None]
"""What is wrong with a raw answer, in a sentence or a few words; None where it holds."""

HELD, BROKEN, NOT_ASKED = "held", "broken", "not asked"


class NotAsked(Exception):
    """It cannot be asked here, or not now; the text is a sentence that says why."""


@dataclass(frozen=True)
class Row:
    """A question to a stack. Asking and judging are apart, so that a recorded answer can be judged again."""

    name: str
    """Stable: `docs/unproven.md` names it."""
    asks: str
    expects: str
    ask: Ask
    wrong: Judge
    needs: tuple[str, ...] = ()
    """Rows that have to hold first, since it uses their answers."""
    aws: str | None = None
    """Why only AWS can tell, as a sentence for whoever asks a service on one machine; None: that is asked, too."""


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    row: Row
    outcome: str
    """`HELD`, `BROKEN` or `NOT_ASKED`."""
    why: str = ""
    """What is wrong, or why it was not asked."""
    raw: Json | None = None
    """The answer, without secrets; None where there was none."""
    seconds: float = 0.0


def judged(row: Row, raw: Json) -> Outcome:
    """The outcome of a row that was answered so."""
    try:
        wrong = row.wrong(raw)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = f"The answer has another shape than expected ({type(error).__name__}: {error})"
    return Outcome(row, BROKEN if wrong else HELD, wrong or "", raw)


def facts(**expected: Any) -> Judge:
    """Holds where the raw answer has these values; a list stands for any of its members."""

    def wrong(raw: Json) -> str | None:
        off = []
        for name, wanted in expected.items():
            either = wanted if isinstance(wanted, list) else [wanted]
            if raw.get(name) not in either:
                off.append(f"{name} is {raw.get(name)!r}, not {' or '.join(map(repr, either))}")
        return "; ".join(off) or None

    return wrong


def as_template(raw: Json) -> str | None:
    """What of an answer `{kept, template}` is kept otherwise than the template has it."""
    kept, template = raw["kept"], raw["template"]
    off = [name for name in sorted({*kept, *template}) if kept.get(name) != template.get(name)]
    return "; ".join(f"{name} is {kept.get(name)!r}, not {template.get(name)!r}" for name in off) or None
