"""`claude-workflow` at a terminal: what it prints, how it exits, and what it leaves behind."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import urllib3

from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.serve import _checked, _is_open
from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from claude_workflow.local.model import MARK
from claude_workflow.local.service import Model, Service
from tests.conftest import Templates
from tests.support.commands import COMMAND, ENVIRONMENT, ROOT, Serve, assert_nothing_runs, at_terminal, command
from tests.support.http_servers import Answering, listening
from tests.support.waiting import eventually


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command said that could not begin: exit code 2 and one line."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("claude-workflow: ")
    return line


def session_of(done: "subprocess.CompletedProcess[str]") -> str:
    """The session that `ask` says how to go on with."""
    assert done.returncode == 0, done.stderr
    return done.stderr.split("ask --session ")[1].split()[0]


def test_serve_prints_a_curl_line_that_works(serve: Serve) -> None:
    """Pasted into a shell as it stands, it gets an answer; standard error says who answers and where sessions are."""
    done = subprocess.run(["bash", "-c", serve.curl], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout).get("success"), done.stdout
    assert MARK in done.stdout
    assert serve.printed().startswith(f"{serve.url} is ready:")
    assert "stand-in, no real model" in serve.said()
    assert str(serve.state) in serve.said()


def test_the_key_is_the_users_alone(serve: Serve) -> None:
    """Nobody else on the machine can read it, nor what the sessions hold."""
    assert (serve.state / "api-key").read_text() == serve.key
    assert (serve.state / "api-key").stat().st_mode & 0o777 == 0o600


def test_what_serve_leaves_word_of_is_the_users_alone(serve: Serve) -> None:
    """The key of the engine's root is in it."""
    assert (serve.state / "service.json").stat().st_mode & 0o777 == 0o600


def test_a_real_model_gets_no_shell_where_nothing_keeps_it_in(state: Path) -> None:
    """One sentence names the switch; with it the service starts, and says what it means."""
    key = {"ANTHROPIC_API_KEY": "sk-none", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    bare = [sys.executable, "-m", "tests.support.no_sandbox", *COMMAND, "serve", "--port", "0", "--state", str(state)]
    done = subprocess.run(bare, env=ENVIRONMENT | key, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "no sandbox" in one_sentence(done)
    assert "--unsandboxed" in done.stderr
    started = Serve.start(state, "--unsandboxed", **key)
    assert "The agent runs as you" in started.said()
    assert "The model at http://127.0.0.1:1 cannot be reached" in started.said()
    assert started.end() == 0


class Provider(Answering):
    """Refuses every key by the path it is asked under."""

    def do_GET(self) -> None:
        says = {"error": {"type": "authentication_error", "message": f"invalid x-api-key {self.headers['x-api-key']}"}}
        self.answer(int(self.path.split("/")[1]), json.dumps(says).encode())


def test_a_wrong_key_is_found_at_the_start(tmp_path: Path) -> None:
    """One sentence with the provider's own, and without the key; nothing is started for it."""
    with listening(Provider) as url:
        real = {"ANTHROPIC_API_KEY": "sk-wrong", "ANTHROPIC_BASE_URL": f"{url}/401"}
        said = one_sentence(command("serve", "--port", "0", "--unsandboxed", "--state", tmp_path, env=real))
        assert "refuses the key in ANTHROPIC_API_KEY (invalid x-api-key …)" in said
        assert "sk-wrong" not in said
        assert not (tmp_path / "engine.log").exists()
        for status, warns in ((403, "Runs may fail"), (404, None)):
            found = _checked(Model(f"{url}/{status}", "sk-wrong"))
            assert (found is None) == (warns is None)
            assert "sk-wrong" not in str(found)
            assert not warns or warns in str(found)
    with pytest.raises(Unusable, match="is no URL"):
        _checked(Model("nowhere", "sk-wrong"))


def test_a_scratch_directory_of_somebody_elses_is_one_sentence(state: Path) -> None:
    """In /tmp anybody can make one of that name; it is a link here, as a thief would make it."""
    name = "claude-agent" if os.geteuid() == 0 else f"claude-agent-{os.geteuid()}"
    (state / name).symlink_to(state)
    done = command("serve", "--port", "0", "--state", state, env={"TMPDIR": str(state)})
    assert "somebody else's" in one_sentence(done)


def test_ask_prints_the_answer_and_how_to_go_on(serve: Serve) -> None:
    """The answer goes to standard output, everything else to standard error; --session goes on."""
    first = serve.ask("write plan.txt: first milk\nsay Noted.")
    session = session_of(first)
    assert first.stdout.startswith(f"{MARK} Noted.")
    assert session not in first.stdout
    assert "added plan.txt (10 bytes)" in first.stderr
    second = serve.ask("read plan.txt", "--session", session)
    assert "first milk" in second.stdout
    assert session_of(second) == session


def test_ask_json_is_one_document(serve: Serve) -> None:
    """Standard output holds the API's own answer, a failure's too, and nothing else."""
    done = serve.ask("Hello", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["success"] is True
    failed = serve.ask("Hello", "--json", "--session", "session-unknown")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert json.loads(failed.stdout)["code"] == "SessionNotFound"


def test_a_minus_reads_the_prompt_from_standard_input(serve: Serve) -> None:
    """A prompt of several lines, with what a shell would mangle, comes from a pipe."""
    done = serve.ask("-", input="write $HOME.txt: `x` \"y\" 'z'\nread $HOME.txt\n")
    assert "`x` \"y\" 'z'" in done.stdout


def test_what_looks_like_markup_is_printed_as_it_is(serve: Serve) -> None:
    """Brackets and emoji codes in answers, names and errors are text, whatever the terminal library makes of them."""
    done = serve.ask("write [red]:bug:[/x].txt: x\nsay [bold]a[/red] :smile: \\[b]")
    assert "[bold]a[/red] :smile: \\[b]" in done.stdout
    assert "added [red]:bug:[/x].txt (1 byte)" in done.stderr
    failed = serve.ask("Hello", "--session", "[red]:bug:[/x]")
    assert failed.returncode == 1
    assert "InvalidRequest: The field session_id" in failed.stderr


NASTY = "\x1b]0;title\x07\x1b[2J\x9b31m\rpaste \u202eme"
"""What a model may answer: it sets the title, clears the screen, writes over the line."""


def test_a_terminal_is_not_driven_by_what_the_model_wrote(serve: Serve) -> None:
    """Neither by the answer nor by the names of files, nor in its JSON; a pipe gets the answer as it is."""
    question = f"write \x1b[31m\x07.txt: x\nsay {NASTY}"
    code, seen = at_terminal("ask", question, "--state", serve.state)
    assert code == 0, seen
    title = seen.partition(MARK)[2]
    assert "]0;title" in title
    assert "[31m�.txt" in title
    for driven in ("\x1b]", "\x1b[2J", "\x1b[31m", "\x07", "\x9b", "\u202e", "\rpaste"):
        assert driven not in seen
    code, seen = at_terminal("ask", question, "--json", "--state", serve.state)
    assert (code, NASTY in json.loads(seen[seen.index("{\n") :])["result"]) == (0, True)
    assert "\x1b]" not in seen
    assert NASTY.replace("\r", "\n") in serve.ask(question).stdout  # which is how Python reads a pipe


def test_streams_take_what_their_encoding_lacks(serve: Serve) -> None:
    """An escape stands for it, and no traceback."""
    plain = serve.ask("say naïve", env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stderr.count("Traceback")) == (0, 0)
    assert "na\\xefve" in plain.stdout


@pytest.mark.parametrize(
    ("prompt", "code", "again"),
    [
        ("status 400", "ModelRejected", False),
        ("status 500 times 3", "ModelOverloaded", True),
    ],
)
def test_a_failure_exits_with_1_and_its_code(serve: Serve, prompt: str, code: str, again: bool) -> None:
    """The sentence is on standard error, with whether asking again can help."""
    done = serve.ask(prompt)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"^{code}: ", done.stderr, re.MULTILINE)
    assert ("again can help" in done.stderr) == again
    assert re.search(
        rf"This is run-\w+\. What happened: claude-workflow show run-\w+ --state {serve.state}\n", done.stderr
    )
    assert "Its cause: " in done.stderr


def test_a_failed_question_is_asked_again_under_its_key(serve: Serve) -> None:
    """What to type is said; the same run is answered then, and another question under that key is refused."""
    question = "status 500 times 3\nrun echo hi"
    failed = serve.ask(question)
    assert failed.returncode == 1
    key = failed.stderr.partition("--key ")[2].split()[0]
    assert serve.ask(question, "--key", key).returncode == 0
    assert serve.ask("another", "--key", key).stderr.startswith("IdempotencyMismatch: ")


def test_ask_takes_a_url_and_sends_the_key_of_the_environment(serve: Serve) -> None:
    """The right key is answered, a wrong one and none are Forbidden."""
    asked = ("ask", "Hello", "--url", serve.url)
    assert command(*asked, env={"CLAUDE_WORKFLOW_API_KEY": serve.key}).returncode == 0
    for wrong in ({"CLAUDE_WORKFLOW_API_KEY": "wrong"}, {}):
        done = command(*asked, env=wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("Forbidden: ")


ANSWER = {
    "success": True,
    "session_id": "session-1; reboot",
    "result": None,
    "stop_reason": "deadline",
    "model_failure": {"status": None, "times": 1},
    "num_turns": 1,
    "cost_usd": 0.5,
    "duration_ms": 21000,
    "files": [],
}
BODIES = {
    "/html": b"<html>",
    "/json": b"[]",
    "/half": b'{"success": true, "result": 1}',
    "/cut-short": json.dumps(ANSWER).encode(),
}


class Stranger(Answering):
    """Is not this API."""

    def do_POST(self) -> None:
        self.received()
        if self.path == "/broken":
            self.close_connection = True
            return
        if self.path == "/silent":
            asked.set()
            released.wait(60)
            return
        self.answer(404, BODIES[self.path])


@pytest.fixture
def stranger() -> Iterator[str]:
    """The URL of a server that is not this API."""
    with listening(Stranger) as url:
        yield url


def test_a_url_of_something_else_is_one_sentence(stranger: str) -> None:
    """Neither HTML nor another API's JSON is taken for an answer."""
    for path in ("/html", "/json", "/half"):
        assert "not as this API does" in one_sentence(command("ask", "Hello", "--url", stranger + path))


asked, released = Event(), Event()
"""Whether the stranger has the request that it does not answer, and whether it may go."""


def test_an_answer_that_does_not_come_can_be_got_later(stranger: str) -> None:
    """The connection broke, or the user pressed Ctrl-C: the run may go on, and the line to paste has its key."""
    broken = command("ask", "Hello", "--url", f"{stranger}/broken")
    line = [*COMMAND, "ask", "Hello", "--url", f"{stranger}/silent"]
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert asked.wait(60)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    released.set()
    assert (broken.returncode, process.returncode) == (2, 130)
    assert (broken.stdout, out) == ("", "")
    for text, path in ((broken.stderr, "broken"), (said, "silent")):
        assert "The run may go on. Its answer, once it is there: claude-workflow ask --key " in text
        assert f"--url {stranger}/{path} -- Hello\n" in text
        assert "Traceback" not in text
    assert "gave no answer" in broken.stderr


def test_a_provider_that_failed_is_named_beside_the_answer(stranger: str) -> None:
    """The run is saved, and it is said what cut it short; a stranger's words stay one word of the line to paste."""
    done = command("ask", "Hello", "--url", f"{stranger}/cut-short")
    assert "The model's provider failed once during this run (no connection)." in done.stderr
    assert f"--session 'session-1; reboot' --url {stranger}/cut-short …" in done.stderr
    assert (done.returncode, done.stdout) == (3, "")
    assert "There is no final text: the run stopped at deadline." in done.stderr


def test_the_version_is_the_one_that_was_released_last() -> None:
    """The changelog's newest heading has it, with its day."""
    newest = re.findall(r"^## (\S+) – \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"claude-workflow {newest}\n")


def test_without_a_service_ask_says_what_to_do(tmp_path: Path) -> None:
    """No service on this state, nobody at that URL, and no URL at all are one sentence each."""
    assert "claude-workflow serve" in one_sentence(command("ask", "Hello", "--state", tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/claude-code"
        assert "does not answer" in one_sentence(command("ask", "Hello", "--url", nobody))
    assert "is no URL" in one_sentence(command("ask", "Hello", "--url", "gopher://x"))


@pytest.mark.parametrize("arguments", [("ask", "Hello"), ("runs",)])
def test_without_an_aws_account_a_stack_is_one_sentence(arguments: tuple[str, ...]) -> None:
    """No region, then no credentials, then no such profile: each says what to set."""
    nothing = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
    nothing["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for environment, says in (
        ({}, "AWS_DEFAULT_REGION"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "AWS_PROFILE"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
    ):
        assert says in one_sentence(command(*arguments, "--stack", "Any", env=nothing | environment))


def test_a_prompt_that_is_no_text_is_one_sentence(serve: Serve) -> None:
    """Bytes that are not UTF-8, as an argument or on standard input."""
    assert "UTF-8" in one_sentence(serve.ask(b"\xff\xfe"))


def test_a_busy_port_is_one_sentence(serve: Serve, tmp_path: Path) -> None:
    """Said at once, and nothing is started for it."""
    port = serve.url.split(":")[2].split("/")[0]
    said = one_sentence(command("serve", "--port", port, "--state", tmp_path))
    assert f"Port {port} on 127.0.0.1 is in use" in said
    assert "--port" in said
    assert not (tmp_path / "engine.log").exists()
    assert "cannot listen" in one_sentence(command("serve", "--host", "192.0.2.1", "--state", tmp_path))
    assert "65535" in one_sentence(command("serve", "--port", "70000", "--state", tmp_path))


def test_a_second_service_on_the_same_state_is_one_sentence(serve: Serve) -> None:
    """Two engines would write the same files."""
    said = one_sentence(command("serve", "--port", "0", "--state", serve.state))
    assert "Another service uses" in said
    assert serve.ask("Hello").returncode == 0


def directory(path: Path) -> None:
    path.mkdir()


def damaged(path: Path) -> None:
    path.write_bytes(b'["\xff')


def other_json(path: Path) -> None:
    path.write_text('["pid"]')


MISTAKES = [
    *[("service.json", damage, ("ask", "Hello")) for damage in (directory, damaged, other_json)],
    *[("service.json", damage, ("runs",)) for damage in (directory, other_json)],
    *[(name, directory, ("serve", "--port", "0")) for name in ("api-key", "lock", "engine.log")],
    ("s3", directory, ("show", "run-1")),
    ("api-key", damaged, ("serve", "--port", "-1")),
]


@pytest.mark.parametrize(("name", "mistake", "arguments"), MISTAKES)
def test_what_is_wrong_in_the_state_is_one_sentence(
    state: Path, name: str, mistake: Callable[[Path], None], arguments: tuple[str, ...]
) -> None:
    """A file of another kind, or a damaged one, is no traceback of any command."""
    mistake(state / name)
    done = command(*arguments, "--state", state)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "claude-workflow: " in done.stderr


@pytest.mark.parametrize("arguments", [("ask", "Hello"), ("runs",), ("runs", "--json")])
def test_output_that_nobody_takes_is_no_traceback(serve: Serve, arguments: tuple[str, ...]) -> None:
    """A full disk is said; of a closed pipe, as of `| head -0`, the exit code tells."""
    serve.ask("Hello")
    line = [*COMMAND, *arguments, "--state", str(serve.state)]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, for a stream
        done = subprocess.run(line, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "No space left" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(line, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_state_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "file").touch()
    assert "--state" in one_sentence(command("serve", "--port", "0", "--state", tmp_path / "file" / "state"))


def test_an_empty_key_file_opens_nothing(tmp_path: Path) -> None:
    """An empty key would be one that every request has, so the service does not start with it."""
    (tmp_path / "api-key").touch()
    assert "is empty" in one_sentence(command("serve", "--port", "0", "--state", tmp_path))


def test_ctrl_c_ends_everything(templates: Templates, prepared: Path, state: Path) -> None:
    """Also in the middle of a run, with what the agent started, and the run is told. Each caller has a key; the first
    one's is the user's own where there is one. Each request is one line."""
    (state / prepared.name).write_text(json.dumps(templates(callers={"default": [1], "alice": [2]})))
    started = Serve.start(state, CLAUDE_WORKFLOW_API_KEY="my-own-key")
    alice = (state / "api-key-alice-2").read_text()
    assert (state / "api-key-alice-2").stat().st_mode & 0o777 == 0o600
    assert f"  default-1  my-own-key\n  alice-2    {alice}\n" in started.printed()
    hers = command("ask", "Hello", "--json", "--url", started.url, env={"CLAUDE_WORKFLOW_API_KEY": alice})
    run = json.loads(hers.stdout)["run_id"]
    assert re.search(rf"^[\d:.]+  POST  /claude-code  202  –  \d+ ms  –  {run}$", started.said(), re.MULTILINE)
    assert json.loads(command("runs", "--json", "--state", state).stdout)["owner"] == "alice"
    assert started.key == "my-own-key"
    assert not (state / "api-key").exists()
    refused = subprocess.run(
        ["bash", "-c", started.curl.replace("my-own-key", "another")], capture_output=True, text=True, check=True
    )
    assert json.loads(refused.stdout)["code"] == "Forbidden"
    slow = f"sleep 60.{random.randrange(10**9)}"
    waiting = {"prompt": f"run sh -c '{slow}; true'"}
    post = partial(urllib3.request, headers={"x-api-key": "my-own-key"}, json=waiting, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(post, "POST", started.url)
        assert eventually(lambda: bool(agents(slow)))
        assert started.end(signal.SIGINT) == 0
        cut = asking.result()
    assert (cut.status, cut.json()["code"]) == (503, "ServiceStopped")
    assert "503  ServiceStopped" in started.said()
    assert "Ending … (a second Ctrl-C ends it at once)" in started.said()
    assert_nothing_runs(state)
    assert eventually(lambda: not agents(slow))
    assert started.said().endswith("Ended.\n")
    assert not (state / "service.json").exists()


def agents(command_line: str) -> list[str]:
    """Processes of exactly this command."""
    listing = subprocess.run(["ps", "ax", "-o", "args="], capture_output=True, text=True, errors="replace", check=True)
    return [line for line in listing.stdout.splitlines() if line.strip() == command_line]


def test_a_killed_service_leaves_its_sessions_and_nothing_else(state: Path) -> None:
    """kill -9 leaves no process; the next start on the same state has the same key and goes on with the session, which
    the run that was at work holds no more, if it is to be left."""
    started = Serve.start(state)
    key, session = started.key, session_of(started.ask("write notes.txt: still here"))
    slow = f"sleep 60.{random.randrange(10**9)}"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(started.ask, f"run sh -c '{slow}; true'", "--session", session)
        assert eventually(lambda: bool(agents(slow)))
        started.end(signal.SIGKILL)
    assert "No service is running" in one_sentence(started.ask("Hello"))
    again = Serve.start(state, "--leave-runs")
    assert again.key == key
    assert len(re.findall(r"^run-\w+ was at work when the service ended: ", again.said(), re.MULTILINE)) == 1
    assert "still here" in again.ask("read notes.txt", "--session", session).stdout
    assert again.end(signal.SIGTERM) == 0
    assert_nothing_runs(state)


def test_the_word_of_a_killed_service_is_not_believed(tmp_path: Path) -> None:
    """Its process id may be another's by now; without the lock there is no service."""
    word = {"url": "http://127.0.0.1:9/claude-code", "answering": "x", "pid": os.getpid()}
    (tmp_path / "service.json").write_text(json.dumps(word))
    (tmp_path / "lock").touch()
    assert "No service is running" in one_sentence(command("ask", "Hello", "--state", tmp_path))


def test_demo_asks_twice_whatever_the_machine_offers_and_leaves_nothing_running(state: Path) -> None:
    """Two answers of one session, the second knowing the first; the relative state is where the user stands. Without a
    sandbox it says so, and asks for no shell."""
    bare = [sys.executable, "-m", "tests.support.no_sandbox", *COMMAND, "demo", "--state", state.name]
    done = subprocess.run(bare, env=ENVIRONMENT, cwd=state.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "The agent runs as you" in done.stderr
    first, second = done.stdout.split("\n> ")[1:]
    assert first.startswith("write notes.txt: Remember the milk.\n")
    assert second.startswith("read notes.txt\n")
    assert "Remember the milk." in second.split("→")[1]
    assert "Answering: a scripted stand-in, no real model" in done.stderr
    assert len({piece.split()[0] for piece in done.stderr.split("--session ")[1:]}) == 1
    assert (state / "s3").is_dir()
    assert not (ROOT / state.name).exists()
    assert_nothing_runs(state)


@pytest.mark.parametrize(("egress", "is_open"), [("open", True), ([], False), (["open.example"], False)])
def test_an_open_network_is_said_at_the_start(egress: object, is_open: bool) -> None:
    """By what RunClaude's function is told."""
    function = {"Environment": {"Variables": {"EGRESS": json.dumps(egress)}}}
    resource = {"Type": "AWS::Lambda::Function", "Properties": function}
    deployed = Deployed({"Resources": {"FunctionsRunClaude0123ABCD": resource}}, {}, "", "", "")
    assert _is_open(Service("", "", Engine("", 0, Path(), ""), deployed)) == is_open
