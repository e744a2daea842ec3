"""Every row, from `rows.toml`, which says of each who asks, and who judges."""

import tomllib
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from claude_workflow.cli.check.row import Row, either, unlike
from lambdas.strict import Json


def _row(name: str, said: Json, here: Json) -> Row:
    facts, judge = said.get("expect", {}), _named(said["judge"]) if "judge" in said else lambda _: ""
    why: str = said.get("here", "")
    words = said.get("expects") or ", ".join(f"{fact} {either(value)}" for fact, value in facts.items())
    return Row(
        name,
        said["asks"],
        words,
        ask=partial(_named(said["ask"]), **said.get("with", {})),
        judge=lambda raw: unlike(raw, facts) or judge(raw),
        needs=said.get("needs", ""),
        here=here.get(why, why),
        last=said.get("last", False),
    )


def _named(name: str) -> Any:
    return resolve_name(f"{__package__}.{name}")


_TABLE = tomllib.loads(Path(__file__).with_name("rows.toml").read_text())
ROWS = tuple(_row(name, said, _TABLE["here"]) for name, said in _TABLE["rows"].items())
