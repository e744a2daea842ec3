"""`claude-workflow replay`: against a machine that only says how it ends, and against the whole service."""

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from claude_workflow.cli.record import Requests
from claude_workflow.cli.resume import resumed
from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from claude_workflow.local.lost import Lost
from claude_workflow.local.service import Service
from lambdas.bucket import listing, record
from lambdas.bucket.listing import since
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim
from lambdas.errors import RunCancelled
from lambdas.request import run_id
from lambdas.strict import Json
from tests.support.commands import COMMAND, ENVIRONMENT, Serve, command
from tests.support.crowded_bucket import Shelf, crowd
from tests.support.past_runs import GONE, Past
from tests.support.played_workflow import Fuse
from tests.support.waiting import eventually


def replay(history: Past, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return command("replay", *arguments, "--state", history.state)


def outcomes(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """What the table says became of each run."""
    return dict(re.findall(r"^(run-\S+)\s+(\S+)", done.stdout, re.MULTILINE))


def test_a_replay_asks_the_machine_in_the_runs_own_name(history: Past) -> None:
    """Its owner, its key, and how; nothing of its body travels. Exit code 0, since it succeeded."""
    name = history.play("failed", caller="alice", key="key-1")
    for option, verb in ((), "again"), (("--fork",), "fork"), (("--rebase",), "rebase"):
        done = replay(history, name, *option)
        assert done.returncode == 0, done.stderr
        assert outcomes(done) == {name: "end_turn"}
        assert "1 succeeded, 0 failed." in done.stderr
        executed = executions(history)[0]
        given = json.loads(executed["input"])
        assert abs(given.pop("requested_at") / 1000 - time.time()) < 60
        assert given == {
            "caller": "alice",
            "key": "key-1",
            "key_given": True,
            "oversize": False,
            "body": None,
            "replay": verb,
        }
        assert f"{verb} for alice" in done.stdout


def executions(history: Past) -> list[Json]:
    """The machine's executions, newest first."""
    machines = history.engine.client("stepfunctions")
    listed = machines.list_executions(stateMachineArn=history.state_machine_arn)["executions"]
    return [machines.describe_execution(executionArn=one["executionArn"]) for one in listed]


def test_serve_starts_the_long_runs_that_were_at_work_again(history: Past) -> None:
    """As `replay` does, and no other; one that cannot go on is said, and one that is left is not touched."""
    good, bad = (history.play("claimed", key=key) for key in ("long", "hopeless-long"))
    lost = [Lost(good, "s", True, False), Lost(bad, "s", True, False), Lost(history.play("claimed"), "s", False, False)]
    deployed = Deployed({}, {}, history.store.name, history.state_machine_arn, "")
    running, said = Service("", "", history.engine, deployed, lost=lost), StringIO()
    before, console = len(executions(history)), Console(file=said, width=400)
    with resumed(running, history.state, console, leave=True):
        assert len(executions(history)) == before
    with resumed(running, history.state, console, leave=False):
        assert eventually(lambda: "does not go on" in said.getvalue() and len(executions(history)) == before + 2)
    assert f"{bad} does not go on: It crashed.\n" in said.getvalue()
    assert {json.loads(each["input"])["key"] for each in executions(history)[:2]} == {"long", "hopeless-long"}


def test_failures_are_told_and_counted(history: Past) -> None:
    """Exit code 1 if one of them failed again; an unknown run is one of them."""
    good = history.play("failed", ago=9000)
    bad = history.play("failed", ago=9000, key="hopeless")
    done = replay(history, good, bad, "run-unknown", good)
    assert done.returncode == 1
    assert outcomes(done) == {good: "end_turn", bad: "AgentCrashed", "run-unknown": "Unknown"}
    assert "1 succeeded, 2 failed." in done.stderr


def test_a_moved_session_offers_a_choice(history: Past) -> None:
    """What both cost is said too."""
    done = replay(history, history.play("failed", ago=9000, key="moved"))
    assert done.returncode == 1
    assert re.search(r"--fork .* without paying.* --rebase .* pays", done.stderr, re.DOTALL)


def test_a_dry_run_counts_what_cannot_be_replayed_as_that(history: Past) -> None:
    """Where the session has moved, is gone, or is at work; and the exit code is 1, unless each can be replayed."""
    session, other = (history.session(history.play("done", ago=9000)) for _ in range(2))
    fine = history.play("failed", session, ago=9000)
    moved = history.play("failed", session, ago=9000, after="checkpoint")
    history.play("done", session, ago=9000)
    running = history.play("claimed", ago=1)
    gone = history.play("claimed", other, ago=9000, fuse=Fuse(1, after=True))  # it died before it was pinned
    history.store.delete(f"{other}.zip")
    dry = replay(history, fine, moved, running, gone, "--dry-run")
    assert outcomes(dry) == {fine: "restart", moved: "moved", running: "wait", gone: "gone"}
    assert "1 can be replayed, 3 cannot." in dry.stderr
    assert "Of 1 the session has gone on." in dry.stderr
    assert dry.returncode == 1
    assert replay(history, fine, "--dry-run").returncode == 0
    forked = replay(history, moved, running, gone, "--fork", "--dry-run")
    assert (forked.returncode, outcomes(forked)) == (1, {moved: "resume", running: "restart", gone: "gone"})
    rebased = replay(history, moved, gone, "--rebase", "--dry-run")
    assert (rebased.returncode, outcomes(rebased)) == (1, {moved: "rebase", gone: "gone"})


def test_all_that_failed_or_was_lost_is_replayed(history: Past) -> None:
    """Neither what is done, nor what runs, nor what is older; a dry run starts nothing."""
    failed, lost = history.play("failed"), history.play("claimed")
    old, running = history.play("failed", ago=3 * 3600), history.play("claimed", ago=1)
    history.play("done")
    before = len(executions(history))
    dry = replay(history, "--failed", "--since", "30m", "--dry-run")
    assert {failed, lost} <= set(outcomes(dry))
    assert not {old, running} & set(outcomes(dry))
    assert outcomes(dry)[failed] == "restart"
    assert len(executions(history)) == before
    done = replay(history, "--failed", "--since", "30m")
    assert outcomes(done).keys() == outcomes(dry).keys()
    assert outcomes(done)[lost] == "end_turn"


def replaying(history: Past, *arguments: str) -> "subprocess.Popen[str]":
    """A replay that waits."""
    line = [*COMMAND, "replay", *arguments, "--state", str(history.state)]
    return subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_long_run_is_waited_for(history: Past) -> None:
    """The machine only says that it goes on; what came of it is in its record. In the background, that is all."""
    play = partial(history.play, key="long-1", execution=f"{GONE}long", ago=1, long=True)
    name = play("claimed")
    before = len(executions(history))
    left = replay(history, name, "--background")
    assert (left.returncode, outcomes(left)) == (0, {name: "running"})
    assert "It goes on in the long machine." in left.stdout
    waiting = replaying(history, name)
    assert eventually(lambda: len(executions(history)) == before + 2)
    assert waiting.poll() is None
    play("done", stop_reason="max_turns")
    out, said = waiting.communicate(timeout=60)
    assert re.findall(r"^(run-\S+)\s+(\S+)", out, re.MULTILINE) == [(name, "max_turns")]
    assert "1 succeeded, 0 failed." in said


def test_nobody_has_to_wait_for_a_long_run(history: Past) -> None:
    """Ctrl-C ends the replay, and not the run."""
    name = history.play("claimed", key="long-2", ago=1, long=True)
    before = len(executions(history))
    waiting = replaying(history, name)
    assert eventually(lambda: len(executions(history)) == before + 1)
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "Traceback" not in said
    assert outcomes(replay(history, name, "--dry-run")) == {name: "wait"}


def test_a_dry_run_says_where_a_long_run_goes_on(history: Past) -> None:
    """And that a cancelled one does not: among all that failed it is none of them."""
    long = history.play("failed", after="checkpoint", long=True)
    cancelled = history.play("failed", key="cancelled-1", fails=RunCancelled())
    history.store.touch(f"runs/{cancelled}/cancel")
    dry = replay(history, long, cancelled, "--dry-run")
    assert (dry.returncode, outcomes(dry)) == (1, {long: "resume", cancelled: "cancelled"})
    assert "its checkpoint stands (in the long machine)" in dry.stdout
    assert "RunCancelled, for its caller has ended it" in dry.stdout
    for option in ("--dry-run", "--background"):
        seen = outcomes(replay(history, "--failed", "--since", "30m", option))
        assert long in seen
        assert cancelled not in seen


def test_nothing_to_replay_is_no_failure(history: Past) -> None:
    """And is said."""
    done = replay(history, "--failed", "--since", "0m")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Nothing to replay." in done.stderr


def test_runs_or_all_that_failed(history: Past) -> None:
    """One of them has to be said, and not both."""
    for arguments in ([], ["--failed", "run-1"], ["run-1", "--fork", "--rebase"]):
        assert replay(history, *arguments).returncode == 2


ALL, FAILED = 100_000, 1_000
MEGABYTES = 150
"""With these runs the commands take some 60 to 70; what Python and boto3 weigh is nearly all of it."""


@pytest.fixture(scope="module")
def day(history: Past) -> dict[str, bytes]:
    """The record of 100,000 runs, of which 1,000 failed, each as one did on a real S3."""
    shelf, now = Shelf(), time.time()
    bucket, one = Bucket(shelf, "crowd"), history.play("failed", prompt="x")
    asked, failure = record.request(history.store, one), record.failure(history.store, one)
    assert asked
    assert failure
    for number in range(ALL):
        name, fails = run_id("default", str(number)), number % (ALL // FAILED) == 0
        own = {"run_id": name, "session_id": f"session-{number}", "key": str(number)}
        said = asked | own | {"requested_at": now - 80_000 * number / ALL}
        listing.mark(bucket, Claim.of(said, "execution", now, repeated=False), "failed" if fails else "done")
        if fails:
            record.open_run(bucket, name, said)
            record.fail(bucket, name, failure | own)
    return shelf.objects


MEASURED = """
import resource, sys
from claude_workflow.cli.main import main
code = main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def measured(*arguments: str | Path) -> tuple[str, str, float]:
    """Runs the command; what it printed, what it said, and the most memory it ever had, in MB."""
    # The shell in between is small: what counts for a process begins with what its parent was when it forked.
    program = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    return done.stdout, done.stderr, int(done.stderr.split()[-1]) * unit / 1e6


def test_a_thousand_failures_among_a_hundred_thousand_runs(day: dict[str, bytes], tmp_path: Path) -> None:
    """Listed by their own keys alone, and replayed by one command, in memory that does not grow with them."""
    where = ("--failed", "--since", "24h", "--state", tmp_path)
    with crowd(tmp_path, day) as service:
        printed, said, listing = measured("runs", *where)
        assert len(set(re.findall(r"run-[0-9a-f]{32}", printed))) == FAILED
        assert "1,000 runs, 1,000 failed" in printed
        # Two lists for each of 25 hours; request, answer and failure of each that is shown.
        assert "3,050 S3 requests: 3,000 GetObject, 50 ListObjectsV2" in said
        printed, said, replaying = measured("replay", *where)
        assert re.findall(r"run-\S+\s+(\S+)", printed) == ["end_turn"] * FAILED
        assert "1,000 succeeded, 0 failed." in said
        assert "1,050 S3 requests: 1,000 GetObject, 50 ListObjectsV2" in said
        assert len({start["key"] for start in service.started}) == len(service.started) == FAILED
    assert max(listing, replaying) < MEGABYTES, (listing, replaying)


def test_all_of_a_hundred_thousand_runs_are_listed_by_the_thousand(day: dict[str, bytes], tmp_path: Path) -> None:
    """A hundred requests find them; what is read of each comes on top, and none of it is kept."""
    with crowd(tmp_path, day) as service:
        s3 = Engine(f"http://127.0.0.1:{service.server_port}", 0, tmp_path, "root").client("s3")
        requests = Requests(s3)
        now = time.time()
        assert sum(len(page) for page in since(Bucket(s3, "crowd"), now - 86_400, now)) == ALL
        assert dict(requests.counted) == {"ListObjectsV2": ALL // 1000}


def test_a_failed_run_replayed_is_the_run_itself(serve: Serve) -> None:
    """The provider refuses once; a replay under the same id is answered, and then is nothing more to replay."""
    asked = serve.ask("status 401 times 3\nsay here I am", "--json")
    refused = json.loads(asked.stdout)
    assert (asked.returncode, refused["code"]) == (1, "ModelUnauthorized")
    name, where = refused["run_id"], ("--state", serve.state)
    before = json.loads(command("show", name, "--json", *where).stdout)
    assert (before["outcome"], before["replay"]) == ("failed", "restart")
    assert [visit["name"] for visit in before["executions"][0]["visits"]][-2:] == ["RecordFailure", "Failed"]
    done = persistent("replay", name, *where)
    assert outcomes(done) == {name: "end_turn"}
    after = json.loads(command("show", name, "--json", *where).stdout)
    assert (after["outcome"], after["replay"], after["session_id"]) == ("done", "answer", refused["session_id"])
    assert "here I am" in after["answer"]["result"]
    assert name not in command("runs", "--failed", "--json", *where).stdout


def test_a_session_that_went_on_is_forked_or_asked_anew(serve: Serve) -> None:
    """A replay says SessionMoved; a fork answers in a new session, a rebase in the same; both can be repeated."""
    session = json.loads(serve.ask("Hello", "--json").stdout)["session_id"]
    # As often as the CLI tries; what the tool did is staged by then.
    failing = "run echo better > late.txt\ncut times 3"
    refused = json.loads(serve.ask(failing, "--json", "--session", session).stdout)
    name, where = refused["run_id"], ("--state", serve.state)
    assert serve.ask("Meanwhile", "--session", session).returncode == 0
    moved = command("replay", name, *where)
    assert (moved.returncode, outcomes(moved)) == (1, {name: "SessionMoved"})
    assert outcomes(command("replay", name, "--fork", "--dry-run", *where)) == {name: "resume"}
    forked, again = (made(persistent("replay", name, "--fork", *where)) for _ in range(2))
    assert forked == again
    assert forked[0] != name
    assert forked[1] != session
    rebased = made(persistent("replay", name, "--rebase", *where))
    assert rebased[0] not in (name, forked[0])
    assert rebased[1] == session
    rows = [json.loads(line) for line in command("runs", "--session", session, "--json", *where).stdout.splitlines()]
    assert {row["replay_of"] for row in rows} == {None, name}


def persistent(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """A replay, repeated while the scripted provider fails: it does so for each conversation anew."""
    done = command(*arguments)
    for _ in range(3):
        if done.returncode:
            done = command(*arguments)
    return done


def made(done: "subprocess.CompletedProcess[str]") -> tuple[str, str]:
    """The run and the session that a replay's table says it made."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(run-\S+) in (session-\S+)", done.stdout)
    assert found, done.stdout
    return found[1], found[2]
