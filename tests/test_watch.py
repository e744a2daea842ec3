"""`ask`, `watch` and `cancel` of a run that lasts: what is seen of it, and how to leave it and come back.

Against a service that is played from a script, where it breaks streams off, knows no `Prefer` or does not end.
"""

import json
import re
import signal
import subprocess

import pytest

from claude_workflow.cli.client import Unanswered, Unreachable
from claude_workflow.cli.endings import lasted
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.cli.events import Event, read
from claude_workflow.cli.follow import Run
from tests.support.commands import COMMAND, ENVIRONMENT, at_terminal, command, plain
from tests.support.long_runs import (
    ANSWER,
    CANCELLED,
    FAILURE,
    MESSAGES,
    RUN,
    SESSION,
    Script,
    comes_back,
    playing,
    says,
    text,
    uses,
)

STEPS = """\
I look at the tests first.
  Bash  pytest -q tests/test_sum.py tests/test_total.py # all that the report names, as it came
    failed: 2 failed
  Edit  src/sum.py
  Task  Find the callers
    Grep  total(
"""
FILES = "  modified src/sum.py (120 bytes)\n5 model calls, 12m 34s, $1.2500. Go on with: claude-workflow ask --session"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_read_however_they_come(size: int) -> None:
    """In any pieces, with either end of line, data of several lines and comments; a cut one is none."""
    stream = (
        ": there\n\nid: 1\nevent: message\ndata: {}\n\ndata:a\r\ndata: ä\r\nid\r\n\r\nevent: nothing\n\n"
        "retry: 5\nevent: answer\ndata\n\nid: 3\ndata: cut\n"
    ).encode()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert list(read(pieces)) == [
        None,
        Event("message", "{}", "1"),
        Event("message", "a\nä", ""),
        Event("answer", "", None),
    ]


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(1.64, "1.6 s"), (599.9, "599.9 s"), (725, "12m 05s"), (11_100, "3h 05m"), (90_000, "25h 00m")],
)
def test_a_time_is_told_in_seven_characters(seconds: float, says: str) -> None:
    """Whatever a run may take."""
    assert lasted(seconds) == says


def test_ask_shows_what_happens_and_waits_for_the_answer() -> None:
    """The request says that it need not wait, and how long the run may take; each step is a line on standard error."""
    script = Script()
    with playing(script) as url:
        done = command("ask", "Hello", "--timeout", "3600", "--session", SESSION, "--url", url)
    assert (done.returncode, done.stdout) == (0, "Both tests pass now.\n")
    assert done.stderr.startswith(f"{RUN} is at work.\n{STEPS}{FILES}")
    _, _, headers, body = script.asked[0]
    assert headers["prefer"] == "respond-async"
    assert body == {"prompt": "Hello", "session_id": SESSION, "timeout_seconds": 3600}


def test_json_is_the_answer_alone() -> None:
    """Of a run that lasts as of a short one: nothing on standard error."""
    with playing(Script()) as url:
        done = command("ask", "Hello", "--json", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == ANSWER


def test_a_terminal_sees_what_goes_on_at_the_moment() -> None:
    """In one line that passes, which never is wider than the terminal; without colour it says as much."""
    with playing(Script(messages=MESSAGES[:3])) as url:
        code, seen = at_terminal("watch", RUN, "--url", url, columns=60, NO_COLOR="1")
        narrow = at_terminal("watch", RUN, "--url", url, columns=24, NO_COLOR="1")[1]
    assert code == 0
    assert re.search(r"⠋ Claude is working… \d+:\d\d:\d\d, 1 model call, \$1\.2500, Bash…", seen), seen
    assert "Claude is working" not in plain(seen)
    assert max(len(plain(piece)) for piece in re.split(r"\n|\r", narrow) if "Claude is" in piece) <= 24


def test_a_service_that_knows_no_prefer_answers_as_ever() -> None:
    """At once, and in the background too, where it is said how to get what has been answered."""
    script = Script(old=True)
    with playing(script) as url:
        done = command("ask", "Hello", "--url", url)
        left = command("ask", "Hello", "--background", "--key", "mine", "--url", url)
    assert (done.returncode, done.stdout) == (0, "Both tests pass now.\n")
    assert done.stderr.startswith(FILES)
    assert (left.returncode, left.stdout) == (0, f"{RUN}\n")
    assert f"It has ended by now. Its answer: claude-workflow ask --key mine --url {url} -- Hello" in left.stderr
    assert script.paths() == []


def test_in_the_background_a_run_is_left_to_itself() -> None:
    """Its id is all that standard output gets; how to come back is a line to paste."""
    script = Script(held=True)
    with playing(script) as url:
        done = command("ask", "Hello", "--background", "--url", url)
        as_json = command("ask", "Hello", "--background", "--json", "--url", url)
    assert (done.returncode, done.stdout) == (0, f"{RUN}\n")
    for what in ("watch", "cancel"):
        assert f": claude-workflow {what} {RUN} --url {url}\n" in done.stderr
    assert json.loads(as_json.stdout)["status"] == "running"
    assert script.paths() == []


def test_a_stream_that_breaks_is_gone_on_with() -> None:
    """Behind the last whole message: each is shown once, and none is missed."""
    script = Script(cuts=[3, 3, 8])
    with playing(script) as url:
        done = command("ask", "Hello", "--url", url)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{RUN} is at work.\n{STEPS}{FILES}")
    assert script.resumed() == [None, "2", "2", "7"]


def test_a_service_that_stays_away_is_given_up() -> None:
    """After some tries, and some more after each message that has come meanwhile."""
    script, shown = Script(cuts=[2, 4], gone=True), list[dict[str, object]]()
    with playing(script) as url:
        run = Run(Endpoint(url, None), RUN, pauses=(0, 0))
        with pytest.raises(Unanswered, match="gave no answer"):
            run.end(shown.append)
    with pytest.raises(Unreachable):
        run.end(shown.append)
    assert shown == MESSAGES[:3]
    assert script.resumed() == [None, "1", "3", "3"]


def test_whatever_ends_the_watching_is_told_with_how_to_go_on() -> None:
    """Here an answer that is none. The run is not given up for that."""
    with playing(Script(answer={"success": True})) as url:
        done = command("watch", RUN, "--url", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"The run goes on without this command. Its answer: claude-workflow watch {RUN} --url {url}\n" in done.stderr
    assert "no answer of this API" in done.stderr


def interrupted(script: Script, *words: str) -> tuple[int, str, str]:
    """A command at which Ctrl-C is pressed once all messages are there, and again once a cancel has been asked for."""
    with playing(script) as url:
        line = [*COMMAND, *words, "--url", url]
        process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert script.shown.wait(60)
        process.send_signal(signal.SIGINT)
        if script.deaf:
            assert script.cancelled.wait(60)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_ctrl_c_cancels_and_waits_for_what_is_saved() -> None:
    """The run's answer comes all the same, without a final text."""
    script = Script(held=True, answer=CANCELLED)
    code, out, err = interrupted(script, "ask", "Hello")
    assert (code, out) == (3, "")
    assert "Cancelling the run … (a second Ctrl-C leaves it)\n" in err
    assert "The run was cancelled. What was done until then is saved.\n  modified src/sum.py" in err
    assert script.paths("DELETE") == [f"/claude-code/runs/{RUN}"]
    assert err.count("pytest") == 1


def test_a_second_ctrl_c_leaves_the_run() -> None:
    """And says how to get its answer."""
    code, out, err = interrupted(Script(held=True, deaf=True), "ask", "Hello")
    assert (code, out) == (130, "")
    assert f"The run goes on without this command. Its answer: claude-workflow watch {RUN} --url http" in err


def test_ctrl_c_ends_the_watching_and_nothing_else() -> None:
    """Whoever looks on at a run has not asked for it here."""
    script = Script(held=True)
    code, out, err = interrupted(script, "watch", RUN)
    assert (code, out) == (130, "")
    assert f"Its answer: claude-workflow watch {RUN} --url http" in err
    assert script.paths("DELETE") == []


@pytest.mark.parametrize(("answer", "code"), [(ANSWER, 0), (FAILURE, 1), (ANSWER | {"result": None}, 3)])
def test_watch_ends_as_ask_does(answer: dict[str, object], code: int) -> None:
    """With the answer's exit code, as text and as lines of JSON, of which the answer is the last."""
    with playing(Script(answer=answer)) as url:
        done = command("watch", RUN, "--url", url)
        lines = command("watch", RUN, "--json", "--url", url)
    assert (done.returncode, lines.returncode, lines.stderr) == (code, code, "")
    assert done.stderr.startswith(STEPS)
    assert [json.loads(one) for one in lines.stdout.splitlines()] == [*MESSAGES, answer]
    last = "Both tests pass now.\n"
    assert (last in done.stdout, last in done.stderr) == ((True, False) if code == 0 else (False, True))


def test_a_lost_run_is_told_with_how_to_go_on() -> None:
    """By the same question, where it is known; a URL alone replays nothing."""
    with playing(Script(lost=True)) as url:
        asked = command("ask", "Hello", "--key", "mine", "--url", url)
        watched = command("watch", RUN, "--url", url)
    assert (asked.returncode, watched.returncode) == (2, 2)
    sentence = f"claude-workflow: The run {RUN} is lost: nobody is at work on it any more."
    assert f"{sentence} Go on with it: claude-workflow ask --key mine --url {url} -- Hello\n" in asked.stderr
    assert watched.stderr.endswith(f"{sentence}\n")


@pytest.mark.parametrize("what", ["watch", "cancel"])
def test_what_cannot_be_looked_at_is_one_sentence(what: str) -> None:
    """A run that there is not, a key that opens nothing, and what is no id."""
    with playing(Script()) as url:
        for run, key, says in (
            ("run-unknown", "mine", "There is no run run-unknown of yours."),
            (RUN, "wrong", "Forbidden: No."),
            ("nonsense", "mine", "nonsense is not a run's id"),
        ):
            done = command(what, run, "--url", url, env={"CLAUDE_WORKFLOW_API_KEY": key})
            assert (done.returncode, done.stdout) == (2, "")
            assert says in done.stderr
            assert "Traceback" not in done.stderr


def test_cancel_waits_for_the_end_and_says_which_it_was() -> None:
    """One word on standard output: cancelled, before the first answer or later; or what it had come to by then."""
    before = FAILURE | {"code": "RunCancelled", "error": "It was cancelled."}
    for script, word in (
        (Script(held=True, answer=CANCELLED), "cancelled"),
        (Script(held=True, answer=before), "cancelled"),
        (Script(), "done"),
        (Script(answer=FAILURE), "AgentCrashed"),
    ):
        with playing(script) as url:
            done = command("cancel", RUN, "--url", url)
        assert (done.returncode, done.stdout) == (0, f"{word}\n")
        assert f"claude-workflow watch {RUN} --url {url}" in done.stderr


def test_what_a_run_says_drives_no_terminal() -> None:
    """Neither a tool's name nor its input, nor a text; and what is no message of Claude Code's is no traceback."""
    nasty = "a\x1b]0;title\x07\rb"
    messages = [
        says(text(nasty), uses(nasty, command=nasty), uses("Odd", odd=[nasty]), uses("None")),
        comes_back(nasty, failed=True),
        comes_back([nasty, {"type": "image"}], failed=True),
        {"type": "assistant"},
        {"type": "assistant", "message": {"content": "words"}},
        {"type": "user", "message": {"content": [None, 1, {"type": "tool_result"}]}},
        says({"type": "tool_use", "name": 1, "input": None}, {"type": "text"}),
        {},
    ]
    with playing(Script(messages=messages)) as url:
        code, seen = at_terminal("watch", RUN, "--url", url, NO_COLOR="1")
    assert code == 0
    assert "Traceback" not in seen
    assert "\x1b]0" not in seen
    assert "\x07" not in seen
    assert plain(seen).count("title") == 5
