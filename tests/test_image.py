"""RunClaude's image, as far as it can be had without Docker: its packages for both architectures, and a warm function
that serves two requests in a look-alike of Lambda's machine.

Of Lambda's the look-alike has the Python (3.13 where this machine has one), its packages as locked, by their hashes,
the place of both, a root that is read-only with /tmp alone to write to, an ordinary user, and 1,024 processes and open
files. The kernel, the system's libraries and programs are this machine's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from claude_workflow.local import engine
from claude_workflow.local.guard import ROOT_KEY
from claude_workflow.local.model import ScriptedModel
from lambdas.contract import RunResult
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import foreign_programs
from tests.support.buckets import a_bucket
from tests.support.commands import ROOT
from tests.support.played_workflow import Execution, Workflow

LOCKED = ROOT / "lambdas" / "requirements.txt"
UV = Path(sys.executable).with_name("uv")
VERSION = "3.13"
pytestmark = pytest.mark.skipif(
    not foreign_programs.in_ci(), reason="It asks the package index, and installs some 400 MB."
)
USER, GROUP = 993, 990
"""Lambda's sandbox has an ordinary user's."""
LIMIT = 1024
CLI_BYTES = 100_000_000
WINDOWS = {"pywin32"}
SECONDS = 120

FUNCTION = """
import json, sys
from lambdas.run_claude import handler
class Context:
    get_remaining_time_in_millis = staticmethod(lambda: 600_000)
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), Context)), flush=True)
"""
ASKED = """
run id -u; ulimit -n; for i in / /var/task /var/tmp /dev/shm /tmp; do touch $i/left && echo "in $i"; done
write notes.txt: kept
say First.
"""
AGAIN = """
run cat /tmp/left 2>/dev/null || cat notes.txt
say Second.
"""


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_each_package_has_a_wheel_that_is_the_one_locked(architecture: str) -> None:
    """For Lambda's Python and its glibc, 2.34, by what the index tells; the SDK's is as large as the CLI in it."""
    platform = f"--python-platform {architecture}-manylinux_2_34 --python-version {VERSION}"
    options = f"--system-certs --no-python-downloads --quiet --no-deps --only-binary :all: {platform}"
    command = f"{UV} pip compile --format pylock.toml {options} {LOCKED}"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packages = tomllib.loads(done.stdout)["packages"]
    text = LOCKED.read_text()
    assert {package["name"] for package in packages} == set(re.findall("^([^ =]+)==", text, re.MULTILINE)) - WINDOWS
    found = {package["name"]: wheel for package in packages for wheel in package["wheels"]}
    assert [name for name, wheel in found.items() if wheel["hashes"]["sha256"] not in text] == []
    assert found["claude-agent-sdk"]["size"] > CLI_BYTES


def _installed(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = f"{UV} pip install --system-certs --require-hashes --only-binary :all: --target {folder} -r {LOCKED}"
    done = subprocess.run([*command.split(), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Python:
    """An interpreter, and where all of it lies."""

    name: str
    prefix: Path

    @classmethod
    def found(cls) -> "Python":
        """Lambda's version where there is one, else that of the tests."""
        asked = "import sys; print(sys.base_prefix, 'python%d.%d' % sys.version_info[:2])"
        environment = os.environ | {"PYENV_VERSION": VERSION}  # pyenv hides all but one version
        for candidate in (shutil.which(f"python{VERSION}"), sys.executable):
            if candidate:
                told = subprocess.run([candidate, "-c", asked], env=environment, capture_output=True, text=True)
                if told.returncode == 0:
                    prefix, name = told.stdout.split()
                    return cls(name, Path(prefix))
        raise AssertionError("The Python that runs this does not run.")


@dataclass(frozen=True)
class Function:
    """A warm function in the look-alike, the workflow around it, and the model behind it."""

    process: "subprocess.Popen[str]"
    workflow: Workflow

    def turn(self, prompt: str, **body: str) -> Json:
        """RestoreSession, the function, PersistSession: the answer, in whose result the stand-in tells what its tools
        printed."""
        self.workflow.now = time.time() + SECONDS
        restored = self.workflow.restore(Execution(uuid.uuid4().hex, uuid.uuid4().hex, {"prompt": prompt, **body}))
        assert restored.task is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(restored.dump()["task"]), file=self.process.stdin, flush=True)
        told = RunResult(**json.loads(self.process.stdout.readline()))
        return self.workflow.persist(restored.claim, told)


@pytest.fixture(scope="module")
def function(template: Json, in_memory: InMemory) -> Iterator[Function]:
    foreign_programs.program("bubblewrap", "bwrap")
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as task,
        engine.running(in_memory("state")) as running,
        ScriptedModel() as model,
    ):
        python = Python.found()
        _build(Path(task), python)
        bucket = a_bucket(running.client("s3"), "sessions")
        secrets = running.client("secretsmanager")
        secret = secrets.create_secret(Name="model", SecretString='{"ANTHROPIC_API_KEY": "key"}')
        environment = _environment(template) | {
            "ANTHROPIC_BASE_URL": model.url,
            "SECRET_ARN": secret["ARN"],
            "AWS_ENDPOINT_URL": running.url,
            "AWS_ACCESS_KEY_ID": ROOT_KEY,
            "AWS_SECRET_ACCESS_KEY": running.root,
        }
        with subprocess.Popen(
            [*_machine(Path(task), python), f"/var/lang/bin/{python.name}", "-c", FUNCTION],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            yield Function(process, Workflow(bucket))
            assert process.stdin is not None
            process.stdin.close()


def _build(task: Path, python: Python) -> None:
    """What the Dockerfile puts there."""
    task.chmod(0o755)
    _installed(task, "--python", str(python.prefix / "bin" / python.name))
    shutil.copytree(ROOT / "lambdas", task / "lambdas", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "agent", task / "agent")
    for path in task.rglob("*"):
        path.chmod(path.stat().st_mode | 0o444)


def _environment(template: Json) -> dict[str, str]:
    """What the template gives the function, and Lambda."""
    functions = [one["Properties"] for one in template["Resources"].values() if one["Type"] == "AWS::Lambda::Function"]
    given = next(one["Environment"]["Variables"] for one in functions if one.get("PackageType") == "Image")
    return {name: value for name, value in given.items() if isinstance(value, str)} | {
        "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
        "LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PYTHONPATH": "/var/task",
        "AWS_REGION": engine.REGION,
        "AWS_DEFAULT_REGION": engine.REGION,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
    }


def _machine(task: Path, python: Python) -> list[str]:
    """A view of this machine as Lambda's. Root takes the user's id; an ordinary user has the name of it only."""
    view = (
        f"bwrap --die-with-parent --unshare-pid --unshare-ipc --ro-bind / / --proc /proc --dev /dev --remount-ro /dev"
        f" --perms 1777 --tmpfs /tmp --tmpfs /var --dir /var/tmp --ro-bind {python.prefix} /var/lang"
        f" --ro-bind {task} /var/task --remount-ro /var --chdir /var/task"
    )
    limits = f"prlimit --nproc={LIMIT} --nofile={LIMIT}"
    if os.geteuid() == 0:
        become = "--cap-add CAP_SETUID --cap-add CAP_SETGID"
        command = f"{view} {become} setpriv --reuid={USER} --regid={GROUP} --clear-groups --no-new-privs {limits}"
    else:
        command = f"{view} --unshare-user --uid {USER} --gid {GROUP} {limits}"
    return command.split()


def test_two_turns_on_a_machine_like_lambdas(function: Function) -> None:
    """The agent has the machine that its function has, what it leaves in /tmp is gone in the next turn, what it leaves
    in its workspace is there."""
    answer = function.turn(ASKED)
    printed = re.findall(r"^(?:in )?(\S+)$", answer["result"].partition("→ ")[2], re.MULTILINE)
    assert printed == [str(USER), str(LIMIT), "/tmp"]
    again = function.turn(AGAIN, session_id=answer["session_id"])
    assert again["result"].split("→ ")[1].split()[0] == "kept", again["result"]
    archive = function.workflow.s3.get_object(Bucket="sessions", Key=f"{answer['session_id']}.zip")["Body"].read()
    with ZipFile(BytesIO(archive)) as opened:
        assert opened.read("workspace/notes.txt") == b"kept"
