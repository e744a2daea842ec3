"""`claude-workflow runs` and `show`, against records as the functions write them."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from claude_workflow.cli.history import Event, Visit, console_link, logged, visits
from claude_workflow.cli.record import Requests, each, look
from claude_workflow.cli.show import _bar
from claude_workflow.local import histories
from claude_workflow.local.engine import ACCOUNT, REGION
from lambdas.bucket import listing, record
from lambdas.bucket.listing import UNFINISHED, since
from lambdas.bucket.record import WHOLE
from lambdas.contract import Claim
from lambdas.errors import AgentCrashed, RunCancelled
from lambdas.receipt import Refusal
from lambdas.strict import Json
from tests.support.commands import Serve, at_terminal, command, plain
from tests.support.metered import receipt_of
from tests.support.past_runs import Past, past
from tests.support.played_workflow import Fuse
from tests.support.waiting import eventually


def listed(history: Past, *arguments: str) -> dict[str, Json]:
    """The rows of `runs --json`, by run."""
    done = command("runs", "--json", "--state", history.state, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {row["run_id"]: row for row in rows}
    assert len(found) == len(rows)
    assert [row["requested_at"] for row in rows] == sorted(row["requested_at"] for row in rows)
    return found


def test_each_outcome_is_told(history: Past) -> None:
    """Done, failed, running under its lease, and lost past it, or where another had it meanwhile."""
    done, failed, running = history.play("done"), history.play("failed"), history.play("claimed", ago=1)
    lost, never = history.play("claimed"), history.play("claimed", history.session(done))
    history.play("done", history.session(done), ago=10)
    rows = listed(history)
    outcomes = {name: rows[name]["outcome"] for name in (done, failed, running, lost, never)}
    assert outcomes == {done: "done", failed: "failed", running: "running", lost: "lost", never: "lost"}
    assert (rows[done]["cost_usd"], rows[done]["stop_reason"], rows[done]["code"]) == (0.25, "end_turn", None)
    assert (rows[failed]["cost_usd"], rows[failed]["code"]) == (0.5, "AgentCrashed")
    assert rows[lost]["cost_usd"] is None
    assert set(listed(history, "--failed")) == {failed, lost, never}


def test_a_span_and_a_session_narrow_the_list(history: Past) -> None:
    """The span is exact although the index has hours; a session's runs are listed whatever their age."""
    older = history.play("done", ago=50 * 3600)
    session = history.session(older)
    old, new = history.play("failed", session, ago=5000), history.play("done", session, ago=30)
    assert {old, new} & set(listed(history, "--since", "1h")) == {new}
    assert {old, older, new} & set(listed(history)) == {old, new}
    assert set(listed(history, "--session", session)) == {old, older, new}
    assert set(listed(history, "--session", session, "--failed")) == {old}
    assert set(listed(history, "--session", session, "--since", "2h")) == {old, new}


def test_a_run_that_the_index_has_twice_is_listed_once(history: Past) -> None:
    """A crash between the new key and the old one's end leaves two; what the record says counts."""
    ended, failed, replaying = history.play("done"), history.play("failed"), history.play("failed", key="replaying")
    for name in (ended, failed):
        asked = record.request(history.store, name)
        assert asked
        listing.mark(history.store, Claim.of(asked, "execution", 0, repeated=False), "claimed")
    assert history.play("claimed", key="replaying", ago=1) == replaying
    answered = history.play("done", fuse=Fuse(1, after=True, of="/response.json"))
    unanswered = history.play("done", fuse=Fuse(1, of="/response.json"), ago=1)
    listing.enter(history.store, Claim.of(history.asked(unanswered), "execution", 0, repeated=False), "done")
    every = [ended, failed, replaying, answered, unanswered]
    rows = listed(history)
    assert [rows[name]["outcome"] for name in every] == ["done", "failed", "running", "done", "running"]
    assert {*every} & set(listed(history, "--failed")) == {failed}


def test_a_cancelled_run_is_none_that_failed(history: Past) -> None:
    """Whether the model had answered by then or not; nor is it one that was cut short."""
    answered = history.play("done", stop_reason="cancelled", long=True)
    at_once = history.play("failed", fails=RunCancelled())
    rows = listed(history)
    assert [(rows[name]["outcome"], rows[name]["long"]) for name in (answered, at_once)] == [
        ("cancelled", True),
        ("cancelled", False),
    ]
    for option in ("--failed", "--cut-short"):
        assert not {answered, at_once} & set(listed(history, option))
    screen = command("runs", "--session", history.session(answered), "--state", history.state).stdout
    assert "  cancelled (long)  " in screen
    assert "in all: 1 runs, 1 cancelled" in screen
    assert "ended it before the model had answered." in command("show", at_once, "--state", history.state).stdout


LEGS = {
    "QueryLanguage": "JSONata",
    "StartAt": "RestoreSession",
    "States": {
        "RestoreSession": {"Type": "Pass", "Next": "RunClaude"},
        "RunClaude": {
            "Type": "Pass",
            "Output": "{% $states.input.first ? {'leg': 'gate'} : {'stop_reason': 'cancelled'} %}",
            "Next": "LegOver",
        },
        "LegOver": {
            "Type": "Choice",
            "Choices": [{"Condition": "{% $exists($states.input.leg) %}", "Output": {}, "Next": "RestoreSession"}],
            "Default": "Answered",
        },
        "Answered": {"Type": "Succeed"},
    },
}
"""The long machine, of a run in two legs."""


def test_show_tells_the_legs_of_a_long_run(history: Past) -> None:
    """Each by its number, in the time line and beside what it staged, and how it ended; and that it was cancelled."""
    machines = history.engine.client("stepfunctions")
    role = machines.describe_state_machine(stateMachineArn=history.state_machine_arn)["roleArn"]
    made = machines.create_state_machine(name="Long", roleArn=role, definition=json.dumps(LEGS))
    begun = machines.start_execution(stateMachineArn=made["stateMachineArn"], input=json.dumps({"first": True}))
    execution = begun["executionArn"]
    assert eventually(lambda: machines.describe_execution(executionArn=execution)["status"] == "SUCCEEDED")
    name = history.play("done", execution=execution, stop_reason="cancelled", long=True)
    (attempt,) = shown(history, name)["staged"]
    moment, digest = attempt.split("-")
    history.store.touch(f"runs/{name}/{int(moment) + 1000:013d}-{digest}/started")
    seen = command("show", name, "--state", history.state).stdout
    assert seen.startswith(f"{name}  cancelled (long)  ")
    assert "Cancelled by its caller; what was done until then is saved." in seen
    assert re.findall(r"^Staged in \S+ (\(leg \d\))", seen, re.MULTILINE) == ["(leg 1)", "(leg 2)"]
    assert re.findall(r"^  (\S.*?) +at ", seen, re.MULTILINE) == [
        "RestoreSession",
        "RunClaude leg 1",
        "LegOver",
        "RestoreSession",
        "RunClaude leg 2",
        "LegOver",
        "Answered",
    ]
    assert seen.count("    ended at a gate, where nothing is lost; the next leg goes on\n") == 1


LONG = "session-fa326321-97ad-4c07-9aeb-39309a61fc01"

NARROW = """\
time (UTC)      run                                           owner
took            session                                       outcome
cost            prompt
TIME            run-ef916f06426ad4b2f7f28a1d4550a691          default
1.2 s           session-fa326321-97ad-4c07-9aeb-39309a61fc01  done, model failed
$0.2500         Prompt of run-ef916f06426ad4b2f7f28a1d4550a6  (529 ×7)
TIME            run-c10dccf4f3d47a16752d7a86cbf3ce26          default
                session-fa326321-97ad-4c07-9aeb-39309a61fc01  failed,
$0.5000         Prompt of run-c10dccf4f3d47a16752d7a86cbf3ce  AgentCrashed

   $0.7500  owner default
   $0.7500  session-fa326321-97ad-4c07-9aeb-39309a61fc01
   $0.7500  in all: 2 runs, 1 done, 1 failed
"""

WIDE = """\
time (UTC)      run                                   session                                       owner       outcome                      cost       took     prompt
TIME            run-ef916f06426ad4b2f7f28a1d4550a691  session-fa326321-97ad-4c07-9aeb-39309a61fc01  default     done, model failed (529 ×7)  $0.2500    1.2 s    Prompt of run-ef916f06426ad4b2f7f28a1d4
TIME            run-c10dccf4f3d47a16752d7a86cbf3ce26  session-fa326321-97ad-4c07-9aeb-39309a61fc01  default     failed, AgentCrashed         $0.5000             Prompt of run-c10dccf4f3d47a16752d7a86c
"""  # noqa: E501 - 200 columns


@pytest.fixture(scope="module")
def two(history: Past) -> tuple[str, str]:
    """A run that its model's provider failed in the middle, and one of its session that failed."""
    ended: Json = {"stop_reason": "deadline", "model_failure": {"status": 529, "times": 7}, "duration_ms": 1234}
    long = history.play("done", key="key-90", **ended)
    return long, history.play("failed", history.session(long), key="key-91", ago=30)


@pytest.mark.parametrize(("columns", "screen"), [(80, NARROW), (200, WIDE), (None, WIDE)], ids=["80", "200", "piped"])
def test_runs_fit_their_screen(history: Past, two: tuple[str, str], columns: int | None, screen: str) -> None:
    """Whole ids at any width, a head for every column; a pipe gets a run in a line, with more of its prompt."""
    session = history.session(two[0])
    asked = ("runs", "--session", session, "--state", history.state)
    if columns:
        code, seen = at_terminal(*asked, columns=columns, NO_COLOR="1")
        assert max(map(len, plain(seen).splitlines())) <= columns
    else:
        done = command(*asked)
        code, seen = done.returncode, re.sub(r"(Prompt of run-.{25}).*", r"\1", done.stdout)
        # One list; a done run is two objects, one that is not is looked for in four places.
        assert "7 S3 requests" in done.stderr
    assert code == 0
    timeless = re.sub(r"\d\d-\d\d \d\d:\d\d:\d\d", "TIME          ", plain(seen)).replace(session, LONG)
    assert timeless.startswith(screen), seen


def test_what_the_provider_cut_short_is_found(history: Past, two: tuple[str, str]) -> None:
    """Beside what failed; with what and how often in the JSON, in `show`, and in a replay's table."""
    session = history.session(two[0])
    limit = history.play("done", session, ago=30, stop_reason="max_turns")
    rows = listed(history, "--session", session, "--cut-short")
    assert set(rows) == {two[0], limit}
    assert (rows[two[0]]["model_failure"], rows[limit]["model_failure"]) == ({"status": 529, "times": 7}, None)
    assert {two[0], limit} <= set(listed(history, "--cut-short", "--since", "1h"))
    assert two[1] not in listed(history, "--cut-short", "--since", "1h")
    seen = command("show", two[0], "--state", history.state).stdout
    assert "done, model failed (529 ×7)" in seen
    assert "The model's provider failed 7 times during this run (529)." in seen


def test_the_table_sums_by_owner_and_session(history: Past) -> None:
    """The dearest first. Run ids stand there whole, and a prompt can't drive the terminal."""
    nasty = "one\n\x1b[31mtwo\x1b]0;title\x07 [red]three"
    first = history.play("done", caller="alice", prompt=nasty, cost_usd=40)
    history.play("done", history.session(first), caller="alice", cost_usd=30)
    other = history.play("done", caller="bob", cost_usd=80)
    done = command("runs", "--state", history.state)
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if first in line)
    assert "one" in line
    assert "[red]three" in line
    assert "\x1b" not in done.stdout
    *sums, all_of_them = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    owners, sessions = ([each for each in sums if ("owner" in each) == owned] for owned in (True, False))
    assert owners[:2] == [["$80.0000", "owner", "bob"], ["$70.0000", "owner", "alice"]]
    assert sessions[:2] == [["$80.0000", history.session(other)], ["$70.0000", history.session(first)]]
    assert all_of_them[1:3] == ["in", "all:"]


def test_listing_failures_costs_what_it_lists(history: Past) -> None:
    """Two requests an hour, and none for runs that are done."""
    asked = Requests(history.s3)
    now = time.time()
    list(since(history.store, now - 7200, now, UNFINISHED))
    assert dict(asked.counted) == {"ListObjectsV2": 6}


def test_no_more_work_is_taken_than_can_be_kept() -> None:
    """Items are drawn as results are."""
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield number

    results = each(lambda number: number * 2, items(), 4)
    taken = [next(results)]
    assert drawn <= 8
    assert sorted([*taken, *results]) == [2 * number for number in range(1000)]


def test_show_tells_what_is_staged_and_what_a_replay_would_do(history: Past) -> None:
    """Commit what is whole, resume from a checkpoint, else start over; a moved session wants a choice."""
    fresh, cut, whole = (history.play("failed", after=after) for after in ("started", "checkpoint", "result"))
    assert [shown(history, name)["replay"] for name in (fresh, cut, whole)] == ["restart", "resume", "commit"]
    (staged,) = shown(history, whole)["staged"].values()
    assert staged.keys() == {"started", "receipt.json", *WHOLE}
    assert (staged["started"], staged["messages.json"]) == (0, 2)
    text = command("show", whole, "--state", history.state)
    assert "messages.json (2 bytes)" in text.stdout
    assert "finish without a model call" in text.stdout
    assert "core dumped" in text.stdout


def shown(history: Past, name: str) -> Json:
    done = command("show", name, "--json", "--state", history.state)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


def test_a_session_that_has_gone_on_is_noticed(history: Past) -> None:
    """It matters to a run of which something is staged; not to one that has nothing to lose."""
    session = history.session(history.play("done"))
    cut, fresh = (history.play("failed", session, after=after) for after in ("checkpoint", "started"))
    assert [shown(history, name)["replay"] for name in (cut, fresh)] == ["resume", "restart"]
    history.play("done", session)
    assert [shown(history, name)["replay"] for name in (cut, fresh)] == ["moved", "restart"]


LINK = "http://x/sessions/s.zip?X-Amz-Expires=900&X-Amz-Signature=0123abcd"


@pytest.fixture(scope="module")
def hopeless(history: Past) -> str:
    """A run whose execution failed, with links in all that is told of it."""
    machines = history.engine.client("stepfunctions")
    envelope = {"key": "hopeless", "replay": "again", "caller": LINK}
    done = machines.start_sync_execution(
        stateMachineArn=history.state_machine_arn, name="hopeless", input=json.dumps(envelope)
    )
    detail = (
        f"Nobody answers at {LINK} any more, the connection was refused, and then again when it was tried once more."
    )
    fails = AgentCrashed(cost_usd=0.5, detail=detail)
    refused = Refusal("CONNECT evil.example:443", "evil.example is not listed\x1b[2J", 3)
    receipt = replace(receipt_of(0.5), refused=(refused,))
    return history.play("failed", execution=done["executionArn"], fails=fails, after="checkpoint", receipt=receipt)


SHOW_NARROW = """\
RUN  failed, AgentCrashed  $0.5000
default in SESSION
asked TIME UTC
> Prompt of RUN

AgentCrashed in RunClaude: Claude Code stopped before it had a result. The
session is as it was; try again.
Nobody answers at http://x/sessions/s.zip?... any more, the connection was
refused, and then again when it was tried once more.
A replay would go on with the conversation where its checkpoint stands.
  claude-workflow replay RUN --state DIR
Staged in ATTEMPT: checkpoint.zip (N bytes), started (0 bytes)
Receipt of ATTEMPT: 1 call of claude-opus-5-5, $0.5000
  refused 3 times: CONNECT evil.example:443: evil.example is not listed�[2J

Execution hopeless  TIME UTC
  Which            at T s  took T s  =
  Failed           at T s  took T s  =
    failed with AgentCrashed

What each state got and gave:
  claude-workflow show RUN --verbose --state DIR
"""
SHOW_WIDE = SHOW_NARROW.replace("was\nrefused", "was refused").replace("The\nsession", "The session")


def alike(seen: str, history: Past, name: str) -> str:
    """A screen of `show` without what differs from run to run."""
    text = plain(seen).replace(str(history.state), "DIR").replace(name, "RUN").replace(history.session(name), "SESSION")
    text = re.sub(r"(in|of) \d{13}-\w{8}: ", r"\1 ATTEMPT: ", re.split(r"\n\d+ S3", text)[0])
    text = re.sub(r"checkpoint\.zip \(\d+", "checkpoint.zip (N", text)
    text = re.sub(r"(asked|hopeless ) [\d .:-]+ UTC", r"\1 TIME UTC", re.sub(r" +\d+\.\d{3} s", " T s", text))
    return re.sub(r" +=+$", "  =", text, flags=re.MULTILINE).rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("columns", "screen"), [(80, SHOW_NARROW), (200, SHOW_WIDE), (None, SHOW_WIDE)], ids=["80", "200", "piped"]
)
def test_show_fits_its_screen(history: Past, hopeless: str, columns: int | None, screen: str) -> None:
    """What happened comes first, then what to do, then where the time went; only lines to be pasted may be longer."""
    asked = ("show", hopeless, "--state", history.state)
    if columns:
        code, seen = at_terminal(*asked, columns=columns, NO_COLOR="1")
        told = [line for line in plain(seen).splitlines() if str(history.state) not in line]
        assert max(map(len, told)) <= columns
    else:
        done = command(*asked)
        code, seen = done.returncode, done.stdout
    assert code == 0
    assert alike(seen, history, hopeless) == screen, seen


def test_no_screen_has_a_link_that_opens(history: Past, hopeless: str) -> None:
    """With what each state got and gave neither, nor as JSON; of a run that still goes on neither."""
    for much in ((), ("--verbose",), ("--json",)):
        done = command("show", hopeless, *much, "--state", history.state)
        assert done.returncode == 0, done.stderr
        assert "http://x/sessions/s.zip?..." in done.stdout
        assert "X-Amz" not in done.stdout
    verbose = command("show", hopeless, "--verbose", "--state", history.state).stdout
    assert '"key": "hopeless"' in verbose
    assert "It crashed." in verbose.partition("cause ")[2]
    entered = {"name": "RunClaude", "input": json.dumps({"links": [LINK, {"in": json.dumps(LINK)}]})}
    (visit,) = visits(
        [Event(1.0, "TaskStateEntered", entered), Event(2.0, "TaskFailed", {"error": "x", "cause": LINK})]
    )
    assert "X-Amz" not in json.dumps([visit.input, visit.errors])
    assert visit.input["links"][0] == "http://x/sessions/s.zip?..."


def test_bars_are_to_scale() -> None:
    """Each stands where its state began, as long as it took, and is there at the least."""
    states = [Visit("a", 0, None, left=1), Visit("b", 1, None, left=1), Visit("c", 1, None, left=10)]
    assert [_bar(state, 0, 10, 11) for state in states] == ["=", " =", " ========="]
    assert _bar(Visit("d", 0, None), 0, 0, 11) == "="


def test_an_unknown_run_is_one_sentence(history: Past) -> None:
    """And exit code 2, as for all that a user has to mend."""
    done = command("show", "run-unknown", "--state", history.state)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "claude-workflow: There is no run run-unknown.\n"


def test_a_span_is_understood_or_refused(history: Past) -> None:
    """Minutes, hours, days, up to a year of them."""
    assert command("runs", "--since", "90m", "--state", history.state).returncode == 0
    assert "say 30m, 2h or 7d" in command("runs", "--since", "yesterday", "--state", history.state).stderr
    assert "365d at the most" in command("runs", "--since", "366d", "--state", history.state).stderr


def test_where_nothing_ran_it_says_what_to_start(tmp_path: Path) -> None:
    """In one sentence, which works when pasted, and without making the directory."""
    done = command("runs", "--state", tmp_path / "my state")
    assert done.returncode == 2
    assert f"Nothing has run in {tmp_path}/my state. Start the service: " in done.stderr
    assert done.stderr.endswith(f"claude-workflow serve --state '{tmp_path}/my state'\n")
    assert not (tmp_path / "my state").exists()


def test_what_ran_is_read_where_no_service_runs(tmp_path: Path) -> None:
    """The record, and what its executions went through, survive a kill; only a replay needs the service."""
    with past(tmp_path) as was:
        machines, started = was.engine.client("stepfunctions"), []
        for key in ("well", "hopeless"):
            envelope = {"key": key, "replay": "again", "caller": "me", "link": "http://x/y?a=b&X-Amz-Signature=0123"}
            done = machines.start_sync_execution(stateMachineArn=was.state_machine_arn, input=json.dumps(envelope))
            started.append(done["executionArn"])
        well = was.play("done", execution=started[0])
        hopeless = was.play("failed", execution=started[1])
        os.kill(was.engine.pid, signal.SIGKILL)
    state = ("--state", tmp_path)
    assert set(listed(was)) == {well, hopeless}
    stories = {name: shown(was, name)["executions"][0]["visits"] for name in (well, hopeless)}
    visited = {name: [visit["name"] for visit in story] for name, story in stories.items()}
    assert visited == {well: ["Which", "Answered"], hopeless: ["Which", "Failed"]}
    assert stories[well][0]["input"]["link"] == "http://x/y?..."
    assert command("replay", "--failed", "--dry-run", *state).returncode == 0
    refused = command("replay", "--failed", *state)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"The service has to run for that. Start it in another terminal: {SERVE} {tmp_path}\n" in refused.stderr
    kept = [file.stat().st_mode & 0o777 for file in (tmp_path / "histories").iterdir()]
    assert kept == [0o600, 0o600]


SERVE = "claude-workflow serve --state"

SLOW = {"StartAt": "Slow", "States": {"Slow": {"Type": "Wait", "Seconds": 1, "End": True}}}


def test_an_execution_nobody_waits_for_is_kept_too(history: Past) -> None:
    """One that was stopped, as the gateway does at its limit, one whose client hung up, and one that nobody started to
    wait for, such as a long run's."""
    machines = history.engine.client("stepfunctions")
    role = machines.describe_state_machine(stateMachineArn=history.state_machine_arn)["roleArn"]
    arn = machines.create_state_machine(name="Slow", type="EXPRESS", roleArn=role, definition=json.dumps(SLOW))
    hurried = history.engine.client("stepfunctions", read_timeout=0.3)
    ends = {"stopped": "ExecutionAborted", "left": "ExecutionSucceeded"}
    for name in ends:
        with pytest.raises(ReadTimeoutError):
            hurried.start_sync_execution(stateMachineArn=arn["stateMachineArn"], name=name, input="{}")
    prefix = arn["stateMachineArn"].replace(":stateMachine:", ":execution:")
    machines.stop_execution(executionArn=f"{prefix}:stopped")
    machines.start_execution(stateMachineArn=arn["stateMachineArn"], name="alone", input="{}")
    for name, end in (ends | {"alone": "ExecutionSucceeded"}).items():
        kept = partial(histories.events, history.state, f"{prefix}:{name}")
        assert eventually(kept)
        assert end in [event["type"] for event in kept() or []]


def test_a_history_goes_with_the_record(tmp_path: Path) -> None:
    """After 30 days; and a name that is no file's is none."""
    assert histories.path(tmp_path, "arn:aws:states:r:1:execution:M:../../x") is None
    old, new = (histories.path(tmp_path, f"arn:{name}") for name in ("old", "new"))
    assert old
    assert new
    new.parent.mkdir()
    for file, days in ((old, 31), (new, 29)):
        file.touch()
        os.utime(file, (0, time.time() - days * 86_400))
    with past(tmp_path) as was:
        machines = was.engine.client("stepfunctions")
        machines.start_sync_execution(stateMachineArn=was.state_machine_arn, input=json.dumps({"key": "well"}))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_run_is_shown_as_the_console_shows_it(serve: Serve) -> None:
    """Every state of a real execution, with its times, its input and its output."""
    asked = serve.ask("Hello", "--json")
    name = json.loads(asked.stdout)["run_id"]
    done = command("show", name, "--json", "--state", serve.state)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (story,) = found["executions"]
    states = [visit["name"] for visit in story["visits"]]
    assert states == ["RestoreSession", "NextStep", "RunClaude", "LegOver", "PersistSession", "Answered"]
    assert story["visits"][0]["input"]["body"] == {"prompt": "Hello"}
    assert story["visits"][-1]["output"]["run_id"] == name
    assert all(visit["left"] >= visit["entered"] for visit in story["visits"])
    assert (found["outcome"], found["replay"]) == ("done", "answer")


EXECUTION = f"arn:aws:states:{REGION}:{ACCOUNT}:express:Machine:name:0123"


def log_events(execution: str) -> list[Json]:
    """An execution whose second try failed too, as Step Functions writes it to its log."""
    told: list[tuple[str, Json]] = [
        ("ExecutionStarted", {"input": "{}", "roleArn": "arn"}),
        ("TaskStateEntered", {"name": "RunClaude", "input": '{"a": 1}', "inputDetails": {"truncated": False}}),
        ("TaskFailed", {"error": "AgentCrashed", "cause": '{"errorMessage": "x"}', "resource": "invoke"}),
        ("TaskFailed", {"error": "RunTimedOut", "cause": "plain", "resource": "invoke"}),
        ("TaskStateExited", {"name": "RunClaude", "output": '{"b": 2}'}),
        ("FailStateEntered", {"name": "Failed", "input": "{}"}),
        ("ExecutionFailed", {"error": "RunTimedOut", "cause": "{}"}),
    ]
    now = round(time.time() * 1000)
    return [
        {
            "id": str(number),
            "type": kind,
            "details": details,
            "event_timestamp": str(now + number),
            "execution_arn": execution,
        }
        for number, (kind, details) in enumerate(told, 1)
    ]


def test_the_log_tells_the_same_story(history: Past) -> None:
    """CloudWatch Logs Insights, asked for one execution, in whatever order its events arrived."""
    logs = history.engine.client("logs")
    group, stream = {"logGroupName": "/aws/vendedlogs/states/Test"}, {"logStreamName": "one"}
    logs.create_log_group(**group)
    logs.create_log_stream(**group, **stream)
    events = [*reversed(log_events(EXECUTION)), *log_events(f"{EXECUTION}4")]
    entries = [{"timestamp": int(event["event_timestamp"]), "message": json.dumps(event)} for event in events]
    logs.put_log_events(**group, **stream, logEvents=sorted(entries, key=lambda entry: str(entry["timestamp"])))
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group['logGroupName']}"
    found = visits(logged(logs, arn, EXECUTION, time.time()))
    assert [(visit.name, visit.input, visit.output) for visit in found] == [
        ("RunClaude", {"a": 1}, {"b": 2}),
        ("Failed", {}, None),
    ]
    assert [error["error"] for error in found[0].errors] == ["AgentCrashed", "RunTimedOut"]
    assert [error["error"] for error in found[1].errors] == ["RunTimedOut"]
    assert found[1].left is not None


class Failing:
    """CloudWatch Logs, as it answers a query that it gave up."""

    def start_query(self, **_: Any) -> Json:
        return {"queryId": "1"}

    def get_query_results(self, **_: Any) -> Json:
        return {"status": "Failed", "results": []}


def test_a_query_that_fails_is_no_history_that_is_gone() -> None:
    """It is said, and not shown as an execution without states."""
    with pytest.raises(TimeoutError, match="as Failed"):
        logged(Failing(), "arn", EXECUTION, time.time())


def test_the_console_is_linked() -> None:
    """The page of an express execution, which asks for its start, and that of one of the long machine's."""
    long = EXECUTION.replace(":express:", ":execution:").rpartition(":")[0]
    assert console_link(long, 1.5).endswith(f"#/v2/executions/details/{long}")
    link = console_link(EXECUTION, 1.5)
    assert link.startswith(f"https://{REGION}.console.aws.amazon.com/states/home?region={REGION}#/express-executions/")
    assert link.endswith(f"{EXECUTION}?startDate=1500")


def test_an_event_without_a_state_is_no_visit() -> None:
    """An execution that failed before its first state has none."""
    assert (
        visits([Event(1.0, "ExecutionStarted", {}), Event(2.0, "ExecutionFailed", {"error": "States.Runtime"})]) == []
    )


def test_what_expired_is_not_listed(history: Past) -> None:
    """An index key whose record is gone is no run."""
    name, now = history.play("done"), time.time()
    history.store.delete(f"runs/{name}/request.json")
    (entry,) = (each for page in since(history.store, now - 60, now) for each in page if each.run_id == name)
    assert look(history.store, entry, now) is None
