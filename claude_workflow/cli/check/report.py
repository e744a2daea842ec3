"""The report: as JSON, whose answers can be judged again, and as Markdown for people."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from claude_workflow.cli.check.row import BROKEN, NOT_ASKED, Outcome
from claude_workflow.cli.printing import harmless
from lambdas.strict import Json

SHOWN = 1500
"""Characters of a raw answer in Markdown; the JSON has all of it."""


def as_json(outcomes: Iterable[Outcome], about: Mapping[str, Any]) -> Json:
    """The whole report."""
    rows = {
        one.row.name: {
            "outcome": one.outcome,
            "why": one.why,
            "asks": one.row.asks,
            "expects": one.row.expects,
            "seconds": round(one.seconds, 1),
            "raw": one.raw,
        }
        for one in outcomes
    }
    return {**about, "rows": rows}


def as_markdown(outcomes: list[Outcome], about: Mapping[str, Any]) -> str:
    """A table of all rows, what is broken first; then each raw answer."""
    order = sorted(outcomes, key=lambda one: (one.outcome != BROKEN, one.outcome == NOT_ASKED))
    lines = [f"# {about['of']}: {summary(outcomes)}", "", about["cost"], ""]
    lines += ["| row | outcome | asked | expected | |", "|---|---|---|---|---|"]
    for one in order:
        cells = (f"`{one.row.name}`", f"**{one.outcome}**" if one.outcome == BROKEN else one.outcome)
        lines.append(f"| {' | '.join(map(_cell, (*cells, one.row.asks, one.row.expects, one.why)))} |")
    lines += ["", "## Raw answers"]
    for one in order:
        if one.raw is not None:
            raw = json.dumps(one.raw, ensure_ascii=False)
            cut = f" (the first {SHOWN:,} of {len(raw):,} characters)" if len(raw) > SHOWN else ""
            lines += ["", f"`{one.row.name}`{cut}", "", "```json", harmless(raw[:SHOWN]), "```"]
    return "\n".join(lines)


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many of each."""
    counts = Counter(one.outcome for one in outcomes)
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())


def _cell(text: str) -> str:
    return harmless(" ".join(text.split())).replace("|", "\\|")
