"""The scratch directory: made, closed to others, and gone afterwards, whatever lies in it."""

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from lambdas.agent.environment import environment
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import HELD, UNSEEN, Scratch, crowded, sweep, wipe
from lambdas.errors import Internal, SessionBusy
from tests.support import ordinary_user
from tests.support.commands import ROOT
from tests.support.trees import dig

linux = pytest.mark.skipif(sys.platform != "linux", reason="a kernel interface of Linux")


def test_scratch_is_empty_private_and_gone_afterwards(tmp_path: Path) -> None:
    """What an earlier run left is not there, only this user can look in, and nothing stays."""
    root = tmp_path / "agents" / "session-1"
    root.mkdir(parents=True)
    (root / "left-over").write_text("secret of an earlier run")
    with Scratch(root) as scratch:
        assert not (root / "left-over").exists()
        for directory in (root, scratch.workspace, scratch.claude, scratch.home, scratch.tmp, scratch.private):
            assert directory.stat().st_mode & 0o777 == 0o700
        (scratch.workspace / "file").write_text("x")
    assert list(root.parent.iterdir()) == []


def test_scratch_is_wiped_after_a_failure(tmp_path: Path) -> None:
    """An exception leaves as little behind as a success."""
    with pytest.raises(ZeroDivisionError), Scratch(tmp_path / "session-1"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_session_exclude_each_other(tmp_path: Path) -> None:
    """The second would wipe the first one's files; it is refused, and another session's is not."""
    with Scratch(tmp_path / "session-1") as scratch:
        (scratch.workspace / "file").write_text("x")
        with pytest.raises(SessionBusy), Scratch(tmp_path / "session-1"):
            pass
        with Scratch(tmp_path / "session-2"):
            pass
        assert (scratch.workspace / "file").exists()
    with Scratch(tmp_path / "session-1"):
        pass


def test_scratch_is_not_made_where_a_link_leads(tmp_path: Path) -> None:
    """A parent that is a link, as another user might have put into /tmp, is refused."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "agents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Internal), Scratch(tmp_path / "agents" / "session-1"):
        pass


def test_wiping_hostile_trees(tmp_path: Path) -> None:
    """Modes, links, pipes, odd names and a tree deeper than any path are no hindrance; links are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    root = tmp_path / "session-1"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"\xff\n -rf")).mkdir()
    locked = root / "locked"
    (locked / "in").mkdir(parents=True)
    (locked / "in" / "file").write_text("x")
    (locked / "in").chmod(0)
    locked.chmod(0)
    dig(root, 3000)
    wipe(root)
    assert not root.exists()
    assert (outside / "kept").read_text() == "x"


def test_wiping_what_was_closed_to_its_owner() -> None:
    """By an ordinary user, whom a mode stops: at the top, and below."""
    program = "import sys; from pathlib import Path; from lambdas.agent.scratch import wipe; wipe(Path(sys.argv[1]))"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        root = Path(folder) / "session-1"
        (root / "locked" / "in").mkdir(parents=True)
        (root / "locked" / "in" / "file").touch()
        tree = [root / "locked" / "in", root / "locked", root]
        user = ordinary_user.USER if os.geteuid() == 0 else None
        for path in (*tree, Path(folder)):
            os.chown(path, user or -1, user or -1)
        for path in tree:
            path.chmod(0)
        command = [str(ordinary_user.python()), "-c", program, str(root)]
        done = subprocess.run(command, cwd=ROOT, user=user, group=user, capture_output=True, text=True)
        assert (done.stderr, root.exists()) == ("", False)


def test_wiping_what_is_a_link_removes_the_link(tmp_path: Path) -> None:
    """The directory behind a link that stands in the scratch directory's place stays."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "session-1").symlink_to(tmp_path / "outside")
    wipe(tmp_path / "session-1")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_a_directory_that_its_run_left_is_swept(tmp_path: Path) -> None:
    """Its lock is free, since who held it is dead. What another service's run uses stays, and what is no run's."""
    left, used, going = (str(uuid.uuid4()) for _ in range(3))
    (tmp_path / left / "workspace").mkdir(parents=True)
    (tmp_path / f"{going}.gone-{'0' * 32}" / "half").mkdir(parents=True)
    (tmp_path / f"{uuid.uuid4()}.lock").touch()
    (tmp_path / "program-0123").touch()
    (tmp_path / "other").mkdir()
    with Scratch(tmp_path / used) as scratch:
        (scratch.workspace / "file").touch()
        sweep(tmp_path)
        assert (scratch.workspace / "file").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "program-0123"]


def test_sweeping_does_not_make_the_next_run_wait(tmp_path: Path) -> None:
    """What a run left is out of its way before it is emptied; its successor and sweepers do not disturb each other."""
    session = str(uuid.uuid4())
    for number in range(1000):
        (tmp_path / session / str(number)).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        sweepers = [pool.submit(sweep, tmp_path) for _ in range(4)]
        for _ in range(20):
            with Scratch(tmp_path / session) as scratch:
                (scratch.workspace / "file").touch()
                sweep(tmp_path)
                assert (scratch.workspace / "file").exists()
        for each in sweepers:
            each.result()
    assert list(tmp_path.iterdir()) == []


SLEEP = ("/bin/sleep", "60")


@linux
@pytest.mark.parametrize("known_by", ["its environment", "its user"])
def test_what_runs_on_of_a_run_that_was_killed_is_killed_before_it_is_swept(tmp_path: Path, known_by: str) -> None:
    """Nobody is left whose children they are: they are known by the run's directory, or by the session's own user."""
    root = tmp_path / str(uuid.uuid4())
    root.mkdir()
    sandbox = Sandbox.of("landlock", root.name)
    if known_by == "its user" and not sandbox.its_own_uid:
        pytest.skip("Only root gives user ids away.")
    user = sandbox.uid if known_by == "its user" else None
    marked, other = ({"CLAUDE_CONFIG_DIR": f"{root}{suffix}/claude"} for suffix in ("", "0"))
    left = subprocess.Popen(SLEEP, env=marked if user is None else {}, start_new_session=True, user=user, cwd="/")
    with subprocess.Popen(SLEEP, env=other) as untouched:
        sweep(tmp_path)
        assert left.wait() == -signal.SIGKILL
        assert untouched.poll() is None
        untouched.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_counted_however_deep_it_is(tmp_path: Path) -> None:
    """A path that is longer than any can be named, and links, which are not followed."""
    dig(tmp_path, 150, link=tmp_path)
    assert crowded(tmp_path, 299)
    assert not crowded(tmp_path, 300)
    wipe(tmp_path / ("d" * 100))


def test_a_tree_that_branches_at_every_level_is_crowded(tmp_path: Path) -> None:
    """To count it would take more open directories than a function may have."""
    here = tmp_path / "all"
    for _level in range(4 * HELD):
        for _ in range(3):  # in whatever order they are listed, the last made is mostly not the last
            below = here / uuid.uuid4().hex[:6]
            below.mkdir(parents=True)
        here = below
    assert crowded(tmp_path, 100 * HELD)
    wipe(tmp_path / "all")


def test_what_cannot_be_looked_into_counts_for_many() -> None:
    """A directory of mode 0300 can be filled, and read by root alone."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be passed through by another user
        hidden = Path(folder) / "run/hidden"
        hidden.mkdir(parents=True)
        (hidden / "file").touch()
        hidden.chmod(0o300)
        Path(folder).chmod(0o711)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = [pool.submit(is_crowded_to_a_user, hidden, most).result() for most in (UNSEEN, UNSEEN + 1)]
        hidden.chmod(0o700)
    assert found == [True, False]


def is_crowded_to_a_user(hidden: Path, most: int) -> bool:
    """For a process of its own, which is one's from now on."""
    if os.geteuid() == 0:
        os.chown(hidden, 12_345, -1)
        os.setresuid(12_345, 12_345, 12_345)
    return crowded(hidden.parent, most)


def test_launcher_gives_exactly_the_environment_and_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is inherited, and values with quotes, spaces, newlines and dollars arrive as they are."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    wanted = {"PLAIN": "1", "HARD": "a 'b' \"c\" $HOME `id`\nline \\ 🦊", "EMPTY": ""}
    with Scratch(tmp_path / "session 1'") as scratch:
        code = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
        launch = scratch.launcher(Path(sys.executable), wanted)
        said = subprocess.run([launch, "-c", code, "--flag", "x y"], capture_output=True, check=True).stdout
    seen, arguments = json.loads(said)
    seen.pop("LC_CTYPE", None)  # Python's own doing
    assert (seen, arguments) == (wanted, ["--flag", "x y"])


def test_what_the_agents_home_is_furnished_with_is_its_own(tmp_path: Path) -> None:
    """Folders on the way too, since its programs keep more beside; and nobody else reads the token in it."""
    uid = os.getuid() or 12345
    with Scratch(tmp_path / "session-1", Sandbox(uid=uid)) as scratch:
        scratch.furnish({".npmrc": "a", ".cargo/config.toml": "b"})
        found = {path.name: path.stat() for path in scratch.home.rglob("*")}
    assert {name: each.st_uid for name, each in found.items()} == dict.fromkeys(
        (".npmrc", ".cargo", "config.toml"), uid
    )
    assert {name: stat.S_IMODE(found[name].st_mode) for name in (".npmrc", "config.toml", ".cargo")} == {
        ".npmrc": 0o600,
        "config.toml": 0o600,
        ".cargo": 0o700,
    }


def test_environment_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process' variables none is in it, and every path leads into the scratch directory or the system."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted")
    scratch = Scratch(tmp_path / "session-1")
    built = environment(scratch)
    assert "planted" not in built.values()
    assert not [name for name in built if name.startswith(("AWS_", "ANTHROPIC_"))]
    assert {built[name] for name in ("HOME", "TMPDIR", "CLAUDE_CONFIG_DIR", "PWD")} == {
        str(path) for path in (scratch.home, scratch.tmp, scratch.claude, scratch.workspace)
    }


CHAINS, GENERATIONS = 8, 1500
"""Together they take a third of a machine's process ids, and some eight seconds, should nobody stop them."""
