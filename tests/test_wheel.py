"""What `pip install` makes of the project works without a clone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Serve, command


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: those of a wheel that was built from what git would commit."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    copied = subprocess.run(["cp", "-P", "--parents", *files.stdout.decode().split("\0")[:-1], source], cwd=ROOT)
    assert copied.returncode == 0
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", place, source], capture_output=True)
    assert done.returncode == 0, done.stderr
    return place


def test_the_service_runs_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    """Outside a clone: the template is synthesized, and a prompt answered, from the installed files alone."""
    path = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}  # nothing from the working directory
    service = Serve.start(tmp_path, **path)
    try:
        done = command("ask", "hello", "--state", tmp_path, env=path)
    finally:
        service.end()
    assert done.returncode == 0, done


def test_a_wheel_takes_few_names(installed: Path) -> None:
    """What others may call `cli` or `local` is theirs."""
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} - {"bin"}
    assert names == {"claude_workflow", "lambdas", "stacks", "statemachine"}
