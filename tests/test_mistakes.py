"""A user's mistake, or a machine's, is told in a sentence with exit code 2, by every command: never a traceback."""

import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_workflow.local.histories import Damaged, events, path
from tests.support.commands import COMMAND, ENVIRONMENT, ROOT, Serve, command

NOT_UTF8 = b"\xff"


def told(done: "subprocess.CompletedProcess[str]", says: str) -> None:
    """Exit code 2, and the sentence that it ends with."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert says in done.stderr.splitlines()[-1], done.stderr


ARGUMENTS: list[tuple[str, tuple[str | bytes, ...]]] = [
    ("is not UTF-8 text", ("ask", NOT_UTF8)),
    ("is not UTF-8 text", ("ask", "hi", "--session", NOT_UTF8)),
    ("is not UTF-8 text", ("ask", "hi", "--url", b"http://x/\xff")),
    ("is not a run's id", ("show", NOT_UTF8)),
    ("is not a run's id", ("show", "../x")),
    ("is not a run's id", ("replay", "run-1", "a\nb")),
    ("is not a session's id", ("runs", "--session", NOT_UTF8)),
    ("is not a session's id", ("sessions", "purge", "session-/")),
    ("is not a span", ("runs", "--since", "٣h")),
    ("it is empty", ("runs", "--state", "")),
    ("is no URL", ("ask", "hi", "--url", "")),
    ("is no URL", ("ask", "hi", "--url", "http://")),
    ("is no URL", ("ask", "hi", "--url", "http://localhost:99999/")),
    ("is no URL", ("ask", "hi", "--url", "http://a b/")),
    ("cannot be looked up", ("serve", "--port", "0", "--host", "ä..b")),
]


@pytest.mark.parametrize(("says", "arguments"), ARGUMENTS)
def test_an_argument_that_nothing_can_use(tmp_path: Path, says: str, arguments: tuple[str | bytes, ...]) -> None:
    """Before anything is asked or written."""
    state = () if "--state" in arguments else ("--state", str(tmp_path / "state"))
    done = command(*arguments, *state)
    told(done, says)
    assert "The run may go on" not in done.stderr


def test_https_to_what_does_not_speak_it(serve: Serve) -> None:
    """Nothing was sent, so no run goes on."""
    done = command("ask", "hi", "--url", serve.url.replace("http", "https"))
    told(done, "Nothing was sent")
    assert "The run may go on" not in done.stderr


@pytest.mark.parametrize("key", ["a\nb", "ключ", " "])
def test_a_key_that_no_header_can_hold(tmp_path: Path, key: str) -> None:
    """The service would start, and answer nobody."""
    done = command("serve", "--port", "0", "--state", tmp_path, env={"CLAUDE_WORKFLOW_API_KEY": key})
    told(done, "CLAUDE_WORKFLOW_API_KEY holds what no header can")


@pytest.mark.parametrize(
    "arguments", [("ask", "hi"), ("runs",), ("serve", "--port", "0")], ids=["ask", "runs", "serve"]
)
def test_a_state_that_is_no_directory(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A file, or a link to itself, also for root."""
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.touch()
    loop.symlink_to(loop)
    for state in (file, loop):
        told(command(*arguments, "--state", state), str(state))


@pytest.mark.skipif(os.geteuid() == 0, reason="Root may do everything.")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("", "serve"), ("", "runs"), ("lock", "serve"), ("lock", "runs"), ("engine.log", "serve"), ("template", "serve")],
)
def test_what_is_shut_against_its_user(state: Path, prepared: Path, name: str, arguments: str) -> None:
    """The state directory, or one of its files."""
    (state / "s3").mkdir()
    shut = state / (prepared.name if name == "template" else name)
    if name:
        shut.touch()
    shut.chmod(0)
    try:
        told(command(arguments, *(["--port", "0"] if arguments == "serve" else []), "--state", state), "Permission")
    finally:
        shut.chmod(0o700)


WORDS = [
    '{"pid": 1}',
    '{"pid": 0, "url": "http://x"}',
    '{"pid": 99999999999999999999, "url": "http://x"}',
    '{"pid": 1, "url": 5}',
    "[",
]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A state directory in whose lock somebody's engine is."""
    with (tmp_path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


@pytest.mark.parametrize("word", WORDS)
def test_the_damaged_word_of_a_service(held: Path, word: str) -> None:
    """It is nobody's; and one without what is behind the service is an older version's."""
    (held / "service.json").write_text(word)
    told(command("ask", "hi", "--state", held), "No service is running")


def test_the_word_of_an_older_service(held: Path) -> None:
    """It can be asked; what is behind it is not known."""
    word = {"pid": os.getpid(), "url": "http://127.0.0.1:9/x", "answering": None, "engine_root": "x"}
    (held / "service.json").write_text(json.dumps(word))
    told(command("runs", "--state", held), "older than this command")


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b'{"events": []}')[:-9], gzip.compress(b"[]"), gzip.compress(b'{"events": [{}]}')],
    ids=["empty", "no gzip", "cut", "other JSON", "other events"],
)
def test_a_damaged_history_is_named(tmp_path: Path, content: bytes) -> None:
    """Whatever became of the file."""
    file = path(tmp_path, "arn:name")
    assert file
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"name\.json\.gz"):
        events(tmp_path, "arn:name")


def test_a_run_is_shown_without_its_damaged_history(serve: Serve) -> None:
    """All else is there, and the file is named."""
    name = json.loads(serve.ask("Hello", "--json").stdout)["run_id"]
    kept = json.loads(command("show", name, "--json", "--state", serve.state).stdout)["executions"][0]["execution"]
    file = path(serve.state, kept)
    assert file
    file.write_bytes(b"")
    done = command("show", name, "--state", serve.state)
    assert (done.returncode, str(file) in done.stdout, "Answer" in done.stdout) == (0, True, True), done.stderr


def shell(line: str, *arguments: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """The command in a shell's line, where it stands for `$@`."""
    program = ["sh", "-c", line, "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(program, env=ENVIRONMENT | more, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="It has no /dev/full.")
def test_streams_that_are_closed_or_full(serve: Serve) -> None:
    """What was asked for and cannot be given is said; what only goes along is not missed."""
    runs = ("runs", "--state", serve.state)
    told(shell('"$@" >&-', *runs), "Bad file descriptor")
    told(shell('"$@" > /dev/full', "--help"), "No space left")
    told(shell('"$@" - <&-', "ask", "--state", serve.state), "Bad file descriptor")
    for line, code in (('"$@" 2>&-', 0), ('"$@" <&-', 0), ('"$@" 2>/dev/full', 2)):
        done = shell(line, *runs)
        assert (done.returncode, done.stdout != "") == (code, True), done.stderr
    done = shell('{ "$@"; echo $? >&2; } | true', "show", "--help")
    assert "Exception ignored" not in done.stderr


HOMELESS = """
import sys
sys.argv[0] = "claude-workflow"
import pwd
pwd.getpwuid = lambda _: {}[0]
from claude_workflow.cli.main import main
sys.exit(main())
"""
"""The command for somebody whom the list of users does not have, as a container's user often is."""


def test_without_a_home_the_state_has_to_be_said(tmp_path: Path) -> None:
    """Where it is needed: not for --help, nor with --state or --url."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HOME"}

    def homeless(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        program: list[str] = [sys.executable, "-c", HOMELESS, *map(str, arguments)]
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)

    told(homeless("ask", "hi"), "There is no home directory")
    told(homeless("ask", "hi", "--state", tmp_path), "No service is running")
    told(homeless("ask", "hi", "--url", "http://127.0.0.1:9"), "does not answer")
    assert homeless("ask", "--help").returncode == 0


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of which a part is gone."""
    place = tmp_path_factory.mktemp("torn")
    for package in ("claude_workflow", "lambdas"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def test_an_installation_with_files_missing(torn: Path, tmp_path: Path) -> None:
    """What is missing is named."""
    path = {"PYTHONPATH": str(torn)}
    told(command("serve", "--port", "0", "--state", tmp_path, cwd=torn, env=path), f"{torn} lacks stacks")
    (torn / "claude_workflow/cli/backend.py").write_text("import a_library_that_is_missing")
    told(command("runs", "--state", tmp_path, cwd=torn, env=path), "This installation is not whole")


PAGE = 4096


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="Only root can mount a disk.")
@pytest.mark.parametrize("pages", [1, 3])
def test_a_start_on_a_full_disk(prepared: Path, tmp_path: Path, pages: int) -> None:
    """Full before the engine starts, and full for the engine."""
    size = (prepared.stat().st_size // PAGE + 1 + pages) * PAGE
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("This container may not mount a disk.")
    try:
        shutil.copy(prepared, tmp_path)
        told(command("serve", "--port", "0", "--state", tmp_path), "No space left on device")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
