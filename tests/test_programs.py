"""What the agent's shell has in RunClaude's image: docs/api.md's promise, and the check of it in the image's build."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdas.agent.programs import PROGRAMS, broken
from tests.support.commands import ROOT


@pytest.fixture
def shelf() -> Iterator[Path]:
    """A directory of programs into which everybody can look, as in an image."""
    made = Path(tempfile.mkdtemp(prefix="programs-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def put(shelf: Path, name: str, script: str) -> None:
    program = shelf / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_program_runs_without_the_functions_environment(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that needs a variable of Lambda's, as its Python does, is told with what it said; so is one that is not
    there."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/var/lang/lib")
    put(shelf, "runs", 'test "$*" = --version')
    put(shelf, "python3", 'test -n "$LD_LIBRARY_PATH" || { echo "libpython3.13.so.1.0: not found" >&2; exit 127; }')
    programs = {"runs": ("--version",), "python3": (), "absent": ()}
    told = list(broken(programs, str(shelf)))
    assert [each.partition(":")[0] for each in told] == ["python3", "absent"]
    assert "libpython3.13" in told[0]


def test_what_is_tried_is_what_readme_promises() -> None:
    """The same programs, in the same order, and the image's build tries them when everything is in its place."""
    (promised,) = re.findall(r"finds in AWS: (.*?)\. ", (ROOT / "docs/api.md").read_text())
    assert re.findall(r"`([^`]+)`", promised) == list(PROGRAMS)
    built = (ROOT / "lambdas/Dockerfile").read_text().splitlines()
    (tried,) = [number for number, line in enumerate(built) if "python -m lambdas.agent.programs" in line]
    assert not [line for line in built[tried + 1 :] if line.startswith(("RUN", "COPY", "ENV", "USER"))]


def test_python_finds_its_library_without_a_variable() -> None:
    """The image's loader knows Lambda's own directory of libraries, before anything is tried."""
    built = (ROOT / "lambdas/Dockerfile").read_text()
    known = built.index("RUN echo /var/lang/lib > /etc/ld.so.conf.d/python.conf && ldconfig\n")
    assert known < built.index("python -m lambdas.agent.programs")
