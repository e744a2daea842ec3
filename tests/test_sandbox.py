"""What keeps the agent in: which sandbox a machine has, whose the files are, and what a careless deployment gets."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_workflow.local import sandbox
from lambdas.agent.environment import environment, refuse_careless, refuse_credentials
from lambdas.agent.launch import ABI_TRUNCATE, landlock_abi
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch, swept
from lambdas.errors import CarelessDeployment
from tests.support.hostile_world import hand_over

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="Only root can give the agent a user id of its own.")
landlock = pytest.mark.skipif(landlock_abi() < ABI_TRUNCATE, reason="This kernel has no Landlock.")


@pytest.fixture
def passable() -> Iterator[Path]:
    """A directory that other users can pass through; pytest's own cannot be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def ran(scratch: Scratch, program: Path, *arguments: str) -> str:
    """What a program printed in the sandbox; its failure's reason, if it failed."""
    launcher = scratch.launcher(program, environment(scratch))
    done = subprocess.run([launcher, *arguments], cwd=scratch.workspace, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@landlock
def test_a_machine_with_landlock_keeps_the_agent_in(tmp_path: Path) -> None:
    """It is tried, and nothing of the trial stays."""
    assert sandbox.holding(tmp_path) in sandbox.NAMES
    assert list(tmp_path.iterdir()) == []


def test_a_wall_that_does_not_hold_is_noticed(tmp_path: Path) -> None:
    """Where there is none, what is tried succeeds, and nothing of that stays either."""
    assert not sandbox.holds("none", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_root_without_user_ids_to_give_is_told_so(tmp_path: Path) -> None:
    """Of a user namespace, as `unshare -r` makes one; it is no reason for a traceback."""
    code = "import pathlib, sys; import claude_workflow.local.sandbox as it; it.holding(pathlib.Path(sys.argv[1]))"
    command = ["unshare", "-r", sys.executable, "-c", code, str(tmp_path)]
    its_own = os.environ | {"TMPDIR": str(tmp_path)}  # in /tmp may be what another user's runs have left
    done = subprocess.run(command, env=its_own, capture_output=True, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("No user namespace may be made here.")
    assert done.stderr.splitlines()[-1].startswith(
        "claude_workflow.local.engine.EngineFailed: Root of this user namespace"
    ), done


def test_without_its_program_a_sandbox_does_not_begin(tmp_path: Path) -> None:
    """What cannot be had ends the run; it is not left out."""
    sandbox = Sandbox(kind="bubblewrap")
    with Scratch(tmp_path / str(uuid.uuid4()), sandbox) as scratch:
        launcher = scratch.launcher(Path("/bin/sh"), environment(scratch) | {"PATH": "/nowhere"})
        done = subprocess.run([launcher, "-c", "echo ran"], capture_output=True, text=True)
    assert (done.returncode != 0, done.stdout) == (True, "")


@as_root
def test_the_agent_has_a_user_id_of_its_own(passable: Path) -> None:
    """The same in every turn of a session and another in every other; all that is in its directories is its own."""
    session, other = str(uuid.uuid4()), str(uuid.uuid4())
    sandbox = Sandbox.of("landlock", session)
    assert sandbox.uid not in (None, 0)
    assert sandbox.uid == Sandbox.of("landlock", session).uid != Sandbox.of("landlock", other).uid
    with Scratch(passable / "agents" / session, Sandbox(uid=sandbox.uid)) as scratch:
        restored = scratch.workspace / "restored"
        restored.write_text("mine\n")
        restored.chmod(0o600)
        (scratch.workspace / "link").symlink_to("/etc/hostname")
        hand_over(scratch)
        said = ran(scratch, Path("/bin/sh"), "-c", "id -u; id -G; cat restored; ls ../..; cat ../private/launch")
    assert said.split()[:3] == [str(sandbox.uid), str(sandbox.uid), "mine"]
    assert said.count("Permission denied") == 2
    assert Path("/etc/hostname").lstat().st_uid == 0


@as_root
def test_a_program_in_a_closed_home_directory_is_reached(passable: Path) -> None:
    """The CLI of a root's own virtual environment, say; a copy is made once and only where no link can be."""
    closed = passable / "root"
    closed.mkdir(mode=0o700)
    program = shutil.copy("/bin/sh", closed / "sh")
    session = str(uuid.uuid4())
    with Scratch(passable / "agents" / session, Sandbox(uid=Sandbox.of("landlock", session).uid)) as scratch:
        assert ran(scratch, Path(program), "-c", "echo reached") == "reached\n"
        (shelved,) = (passable / "agents").glob("program-*")
        before = shelved.stat().st_ino
        assert ran(scratch, Path(program), "-c", "echo reached") == "reached\n"
    assert shelved.stat().st_ino == before


@landlock
def test_landlock_closes_what_is_not_the_runs(tmp_path: Path) -> None:
    """Even to root, if it were: reading, listing, making, removing, and the network but for the web's ports."""
    (tmp_path / "secret").write_text("secret")
    with Scratch(tmp_path / "agents" / "session", Sandbox(kind="landlock")) as scratch:
        script = (
            f"cat {tmp_path}/secret; ls {tmp_path}; echo x > {tmp_path}/new; rm {tmp_path}/secret; echo x > in; cat in"
        )
        said = ran(scratch, Path("/bin/sh"), "-c", script)
    assert (said.count("ermission denied"), said.startswith("x\n")) == (4, True)


def test_what_is_swept_is_empty_before_and_after(tmp_path: Path) -> None:
    """Whatever an earlier run or this one left, trees and links too; links are not followed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    shared = tmp_path / "shared"
    (shared / "left" / "deep").mkdir(parents=True)
    (shared / "link").symlink_to(tmp_path / "outside")
    with swept([str(shared), str(tmp_path / "missing")]):
        assert list(shared.iterdir()) == []
        (shared / "new").touch()
    assert list(shared.iterdir()) == []
    assert (tmp_path / "outside" / "kept").exists()


@as_root
def test_what_is_anothers_is_not_swept(tmp_path: Path) -> None:
    """Lambda's own files, if there are some."""
    os.chown(shutil.copy(sys.executable, tmp_path / "others"), 12345, 12345)
    with swept([str(tmp_path)]):
        pass
    assert (tmp_path / "others").exists()


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "SECRET"]
)
def test_a_credential_in_the_agents_environment_stops_the_run(name: str) -> None:
    """Whatever put it there; what the proxy lends is none. The operator is told the name, nobody the value."""
    lent = {"ANTHROPIC_API_KEY": "run-token", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1/model"}
    built = {"PATH": "/bin", "GIT_CONFIG_KEY_0": "core.checkStat"}
    refuse_credentials(built | lent, lent)
    with pytest.raises(CarelessDeployment, match=name) as refused:
        refuse_credentials(built | lent | {name: "real"}, lent)
    assert "real" not in str(refused.value)
    with pytest.raises(CarelessDeployment):
        refuse_credentials(built | lent | {"ANTHROPIC_API_KEY": "sk-real"}, lent)


def test_a_credential_in_the_functions_environment_stops_every_run() -> None:
    """Its role's are Lambda's doing, and the rest of its settings are none."""
    fine = {"AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "x", "SECRET_ARN": "arn", "ANTHROPIC_BASE_URL": "https"}
    refuse_careless(fine)
    with pytest.raises(CarelessDeployment, match="ANTHROPIC_API_KEY"):
        refuse_careless(fine | {"ANTHROPIC_API_KEY": "sk-real"})
