"""Imports point one way, so that a file's folder tells what it may touch (ARCHITECTURE.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NETWORK = ("botocore", "boto3", "urllib3", "http", "socket", "ssl", "urllib", "requests")

ORDER = (
    *(
        "errors",
        "strict",
        "pricing",
        "repositories",
        "egress",
        "settings",
        "output_schema",
        "materials",
        "receipt",
        "request",
    ),
    "contract",
    "next_step",
)
"""Of the files beside the rooms, those that others build on: each knows those before it only."""

STREAMED = ("stream_run", "read_session")
HANDLERS = (
    "restore_session",
    "run_claude",
    "persist_session",
    "record_failure",
    "read_run",
    "remove_session",
    "offer_upload",
    *STREAMED,
)

FORBIDDEN = {
    "lambdas/archive": (
        "lambdas.bucket",
        "lambdas.bus",
        "lambdas.agent",
        *(f"lambdas.{name}" for name in HANDLERS),
        *NETWORK,
    ),
    "lambdas/bucket": ("lambdas.agent", "lambdas.bus", "lambdas.answer", *(f"lambdas.{name}" for name in HANDLERS)),
    "lambdas/agent": ("lambdas.bucket", "lambdas.bus", "lambdas.answer", *(f"lambdas.{name}" for name in HANDLERS)),
    "lambdas/bus.py": ("lambdas.archive", "lambdas.bucket", "lambdas.agent", *(f"lambdas.{name}" for name in HANDLERS)),
    "lambdas/run_claude.py": ("lambdas.bucket", "lambdas.bus"),
    "lambdas": ("stacks", "claude_workflow", "tests", "benchmarks"),
    "stacks": (*(f"lambdas.{name}" for name in HANDLERS), "claude_workflow", "tests", "benchmarks"),
    # The engine streams no answer: there who does is the gateway's own.
    "claude_workflow/local": (
        *(f"lambdas.{name}" for name in HANDLERS if name not in STREAMED),
        "claude_workflow.cli",
        "tests",
        "benchmarks",
    ),
    "claude_workflow/cli": (*(f"lambdas.{name}" for name in HANDLERS), "tests", "benchmarks"),
    # Of the commands it knows what is known of runs and services, and none that prints to a terminal.
    "claude_workflow/console": (
        *(f"lambdas.{name}" for name in HANDLERS),
        *(
            f"claude_workflow.cli.{name}"
            for name in ("main", "operating", "serve", "console", "show", "tables", "view")
        ),
        "rich",
        "tests",
        "benchmarks",
    ),
} | {
    f"lambdas/{name}.py": tuple(f"lambdas.{other}" for other in (*ORDER[number + 1 :], "archive", "bucket", "agent"))
    for number, name in enumerate(ORDER)
}
"""By file, or by room: modules that nothing in it imports."""


def imported(text: str) -> Iterator[str]:
    """The modules, and what might be modules, that a program imports anywhere in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def wrong(text: str, forbidden: tuple[str, ...]) -> set[str]:
    """What of it is not to be imported."""
    return {name for name in imported(text) for other in forbidden if name == other or name.startswith(f"{other}.")}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_nothing_is_imported_from_a_room_that_is_not_to_be_known(room: str) -> None:
    """Nor by a file further inside."""
    place = ROOT / room
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    assert {path.name: found for path in files if (found := wrong(path.read_text(), FORBIDDEN[room]))} == {}


def test_an_import_is_seen_wherever_it_stands() -> None:
    """In a function, of a module by its package, under another name."""
    inside = "def f():\n    from lambdas import bucket as b\n    import botocore.session\n"
    assert wrong(inside, ("lambdas.bucket", "botocore")) == {"lambdas.bucket", "botocore.session"}


def test_no_test_imports_another() -> None:
    """What tests share is in tests/support/."""
    found = {path.name: set(imported(path.read_text())) for path in (ROOT / "tests").glob("*.py")}
    assert {name for name, names in found.items() if any(each.startswith("tests.test_") for each in names)} == set()


@pytest.mark.parametrize("room", ["", "archive", "bucket", "agent"])
def test_the_map_has_every_file_of_the_functions(room: str) -> None:
    """Each by its name, in ARCHITECTURE.md's drawing."""
    drawing = (ROOT / "ARCHITECTURE.md").read_text().split("```")[1]
    files = {path.stem for path in (ROOT / "lambdas" / room).glob("*.py")} - {"__init__"}
    assert files - set(re.findall(r"\w+", drawing)) == set()


def test_what_the_map_answers_with_is_there() -> None:
    """Its five questions name files and what is in them."""
    questions = (ROOT / "ARCHITECTURE.md").read_text().partition("## Five questions")[2]
    for file, name in re.findall(r"`(lambdas/\w+(?:/\w+)?\.py)`, `(?:\w+\.)?(\w+)`", questions):
        assert f"def {name}(" in (ROOT / file).read_text()
