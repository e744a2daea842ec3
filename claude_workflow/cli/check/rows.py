"""Every row in the order of `rows.toml`, which words them; how each asks is in the file of its subject."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from claude_workflow.cli.check import contract, deploy, door, functions, grants, machine, rights, shell, storage
from claude_workflow.cli.check.row import Ask, Judge, Row, facts
from lambdas.strict import Json

SUBJECTS = (contract, deploy, door, functions, grants, machine, rights, shell, storage)
ASKED: Mapping[str, Ask] = {name: ask for subject in SUBJECTS for name, ask in subject.ASKED.items()}
JUDGED: Mapping[str, Judge] = {name: judge for subject in SUBJECTS for name, judge in subject.JUDGED.items()}
"""Of rows that facts alone do not judge."""


def _row(name: str, said: Json, here: Mapping[str, str]) -> Row:
    expect = said.get("expect", {})
    words = said.get("expects") or ", ".join(f"{fact} {_either(value)}" for fact, value in expect.items())
    aws = here[said["here"]] if "here" in said else None
    judge = JUDGED[name] if name in JUDGED else facts(**expect)
    return Row(name, said["asks"], words, ASKED[name], judge, tuple(said.get("needs", ())), aws)


def _either(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


_TABLE = tomllib.loads(Path(__file__).with_name("rows.toml").read_text())
ROWS = tuple(_row(name, said, _TABLE["here"]) for name, said in _TABLE["rows"].items())
