"""One row of the kit: what is asked, what is expected of the answer, and what came of it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdas.strict import Json

if TYPE_CHECKING:
    from claude_workflow.cli.check.kit import Kit

Ask = Callable[["Kit"], Json]
"""Gives the raw answer. Raises `NotAsked`; by whatever else it raises, the row is broken."""
Judge = Callable[[Json], str]
"""What is wrong with a raw answer, in a sentence or a few words; nothing where it holds."""

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
    judge: Judge
    needs: str = ""
    """The row that has to hold first, since it uses its answer."""
    here: str = ""
    """Why only AWS can tell, as a sentence for whoever asks a service on one machine; empty: that is asked, too."""
    last: bool = False
    """Whether all rows before it have to be done."""


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
        wrong = row.judge(raw)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = f"The answer has another shape than expected ({type(error).__name__}: {error})"
    return Outcome(row, BROKEN if wrong else HELD, wrong, raw)


def unlike(raw: Json, wanted: Json) -> str:
    """What of an answer is not as wanted: a list stands for any of its members, `{matches: …}` for what matches that
    from the beginning, and another object for facts of an object."""
    return "; ".join(_unlike(raw, wanted, ""))


def _unlike(raw: Json, wanted: Json, of: str) -> Iterator[str]:
    for name, value in wanted.items():
        found = raw.get(name)
        match value:
            case {"matches": pattern}:
                fits = name in raw and re.match(pattern, str(found)) is not None
            case dict():
                yield from _unlike(found or {}, value, f"{of}{name}: ")
                continue
            case list():
                fits = found in value
            case _:
                fits = found == value
        if not fits:
            yield f"{of}{name} is {found!r}, not {either(value)}"


def either(wanted: object) -> str:
    """A value that is wanted, in words."""
    match wanted:
        case {"matches": pattern}:
            return f"like {pattern}"
        case list():
            return " or ".join(map(str, wanted))
    return str(wanted)


def compared(probe: Callable[..., Iterable[tuple[str, object, object]]]) -> Callable[..., Json]:
    """Asks for names, each with what is kept under it and what the template has."""

    def ask(kit: "Kit", **given: Any) -> Json:
        found = list(probe(kit, **given))
        return {"kept": {name: kept for name, kept, _ in found}, "template": {name: had for name, _, had in found}}

    return ask


def as_template(raw: Json) -> str:
    """What of an answer `{kept, template}` is kept otherwise than the template has it."""
    kept, template = raw["kept"], raw["template"]
    off = [name for name in sorted({*kept, *template}) if kept.get(name) != template.get(name)]
    return "; ".join(f"{name} is {kept.get(name)!r}, not {template.get(name)!r}" for name in off)
