"""`claude-workflow runs` and `show`, against records as the functions write them."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cli.history import Event, console_link, logged, visits
from cli.records import UNFINISHED, Entry, Records, each
from lambdas.sessions.store import WHOLE
from local.engine import ACCOUNT, REGION
from tests.commands import Serve, command
from tests.past import BUCKET, Past, failure, hour, response, run_id

Json = dict[str, Any]


def listed(history: Past, *arguments: str) -> dict[str, Json]:
    """The rows of `runs --json`, by run."""
    done = command("runs", "--json", "--state", history.state, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {row["run_id"]: row for row in rows}
    assert len(found) == len(rows)
    assert [row["requested_at"] for row in rows] == sorted(row["requested_at"] for row in rows)
    return found


def requests(done: "subprocess.CompletedProcess[str]") -> int:
    """How many S3 requests a command says it made."""
    return int(done.stderr.split(" S3 requests")[0].split()[-1].replace(",", ""))


def test_each_outcome_is_told(history: Past) -> None:
    """Done, failed, running under its lease, and lost past it."""
    done = history.run(1, "done")
    failed = history.run(2, "failed")
    running, lost, never = (history.run(number, "claimed") for number in (3, 4, 5))
    history.lease(running, "session-3", 60)
    history.lease(lost, "session-4", -1)
    rows = listed(history)
    outcomes = {name: rows[name]["outcome"] for name in (done, failed, running, lost, never)}
    assert outcomes == {done: "done", failed: "failed", running: "running", lost: "lost", never: "lost"}
    assert (rows[done]["cost_usd"], rows[done]["stop_reason"], rows[done]["code"]) == (0.125, "end_turn", None)
    assert (rows[failed]["cost_usd"], rows[failed]["code"]) == (0.5, "AgentCrashed")
    assert rows[lost]["cost_usd"] is None
    assert set(listed(history, "--failed")) == {failed, lost, never}


def test_a_span_and_a_session_narrow_the_list(history: Past) -> None:
    """The span is exact although the index has hours; a session's runs are listed whatever their age."""
    old = history.run(10, "done", ago=5000, session="session-long")
    older = history.run(11, "failed", ago=50 * 3600, session="session-long")
    new = history.run(12, "done", ago=30, session="session-long")
    assert {old, new} & set(listed(history, "--since", "1h")) == {new}
    assert {old, older, new} & set(listed(history)) == {old, new}
    assert set(listed(history, "--session", "session-long")) == {old, older, new}
    assert set(listed(history, "--session", "session-long", "--failed")) == {older}
    assert set(listed(history, "--session", "session-long", "--since", "2h")) == {old, new}


def test_a_run_that_the_index_has_twice_is_listed_once(history: Past) -> None:
    """A crash between the new key and the old one's end leaves two; what the record says counts."""
    ended, failed, replaying, answered = (history.run(number, "claimed", ago=10) for number in range(20, 24))
    history.put(f"index/hours/{hour(time.time() - 10)}/done/{ended}")
    history.put(f"runs/{ended}/response.json", response(ended, "session-20"))
    history.put(f"index/hours/{hour(time.time() - 10)}/failed/{failed}")
    history.put(f"runs/{failed}/failure.json", failure(failed, "session-21"))
    history.put(f"runs/{replaying}/failure.json", failure(replaying, "session-22"))
    history.lease(replaying, "session-22", 60)
    history.put(f"runs/{answered}/response.json", response(answered, "session-23"))
    rows = listed(history)
    outcomes = [rows[name]["outcome"] for name in (ended, failed, replaying, answered)]
    assert outcomes == ["done", "failed", "running", "done"]
    assert {ended, failed, replaying, answered} & set(listed(history, "--failed")) == {failed}


def test_the_table_sums_by_owner_and_session(history: Past) -> None:
    """Run ids stand there whole, and a prompt can't drive the terminal."""
    session = "session-sums"
    nasty = "one\n\x1b[31mtwo\x1b]0;title\x07 [red]three"
    first = history.run(30, "done", session=session, owner="alice", body={"prompt": nasty})
    history.run(31, "failed", session=session, owner="bob")
    done = command("runs", "--session", session, "--state", history.state)
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if first in line)
    assert "one" in line
    assert "[red]three" in line
    assert "\x1b" not in done.stdout
    ending = done.stdout.split("\n\n")[-1].splitlines()
    assert [line.split() for line in ending] == [
        ["$0.5000", "owner", "bob"],
        ["$0.1250", "owner", "alice"],
        ["$0.6250", session],
        ["$0.6250", "in", "all:", "2", "runs,", "1", "done,", "1", "failed"],
    ]
    # One list; a done run is two objects, one that is not is looked for in four places.
    assert requests(done) == 1 + 2 + 4


def test_listing_failures_costs_what_it_lists(history: Past) -> None:
    """Two requests an hour, and none for runs that are done."""
    records = Records(history.engine.client("s3"), BUCKET)
    now = time.time()
    list(records.since(now - 7200, now, UNFINISHED))
    assert dict(records.requests) == {"ListObjectsV2": 6}


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
    fresh, cut, whole = (history.run(number, "failed") for number in (40, 41, 42))
    for name, objects in ((cut, ["started", "checkpoint.zip"]), (whole, ["started", *WHOLE])):
        history.pin(name)
        for one in objects:
            history.put(f"runs/{name}/0001-aa/{one}", b"12345")
    assert [shown(history, name)["replay"] for name in (fresh, cut, whole)] == ["restart", "resume", "commit"]
    assert shown(history, whole)["staged"] == {"0001-aa": {"started": 5} | dict.fromkeys(WHOLE, 5)}
    text = command("show", whole, "--state", history.state)
    assert "changes.zip (5 bytes)" in text.stdout
    assert "finish without a model call" in text.stdout
    assert "core dumped" in text.stdout


def shown(history: Past, name: str) -> Json:
    done = command("show", name, "--json", "--state", history.state)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


def test_a_session_that_has_gone_on_is_noticed(history: Past) -> None:
    """It matters to a run of which something is staged; not to one that has nothing to lose."""
    body = {"prompt": "x", "session_id": "session-50"}
    cut, fresh = (history.run(number, "failed", session="session-50", body=body) for number in (50, 51))
    first = history.version("session-50", "run-0")
    for name in (cut, fresh):
        history.pin(name, first)
    history.put(f"runs/{cut}/0001-aa/checkpoint.zip", b"12345")
    assert [shown(history, name)["replay"] for name in (cut, fresh)] == ["resume", "restart"]
    history.version("session-50", "run-9")
    assert [shown(history, name)["replay"] for name in (cut, fresh)] == ["moved", "restart"]


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


def test_without_a_service_it_says_what_to_start(tmp_path: Any) -> None:
    """In one sentence."""
    done = command("runs", "--state", tmp_path)
    assert done.returncode == 2
    assert "No service is running" in done.stderr


def test_a_run_is_shown_as_the_console_shows_it(serve: Serve) -> None:
    """Every state of a real execution, with its times, its input and its output."""
    asked = serve.ask("Hello", "--json")
    name = json.loads(asked.stdout)["run_id"]
    done = command("show", name, "--json", "--state", serve.state)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (story,) = found["executions"]
    states = [visit["name"] for visit in story["visits"]]
    assert states == ["RestoreSession", "NextStep", "RunClaude", "PersistSession", "Answered"]
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
    """The page of an express execution, which asks for its start."""
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
    name = run_id(60)
    history.put(f"index/hours/{hour(time.time())}/done/{name}")
    assert Records(history.engine.client("s3"), BUCKET).run(Entry(name, hour(time.time()), "done"), time.time()) is None
