"""What a run's caller is told of it, and what a DELETE does: the function, on real records."""

import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from lambdas import record_failure
from lambdas.bucket import record
from lambdas.contract import attempt
from lambdas.errors import ModelOverloaded
from lambdas.read_run import ReadRun
from lambdas.strict import Json
from tests.support.metered import receipt_of
from tests.support.past_runs import Past
from tests.support.played_workflow import LEASE_SECONDS, unlinked
from tests.support.reading import LONG_LEASE, event, going, lines, reader


def told(history: Past, run: str, method: str = "GET", **asked: Any) -> tuple[int, Json]:
    answer = reader(history.store).answer(event(method, run, **asked))
    assert answer["headers"]["Access-Control-Allow-Origin"] == "https://app.example"
    return answer["statusCode"], json.loads(answer["body"])


# --- where a run stands ---


def test_a_run_that_is_done_is_answered_as_a_post(history: Past) -> None:
    """In its shape, with its status, and with links."""
    run = history.play("done")
    status, answer = told(history, run)
    stored = record.response(history.store, run)
    assert stored
    given = {name: stored[name] for name in stored if name not in ("format", "execution", "receipt_at")}
    assert status == 200
    assert unlinked(answer) == given | {"s3_url": answer["s3_url"]}
    assert answer["session_url"].startswith("http")
    assert answer["receipt_url"].startswith("http")


def test_a_run_that_failed_is_answered_as_its_post_was(history: Past) -> None:
    """With the status of its code and Retry-After, and without what only its operator may know."""
    run = history.play("failed", fails=ModelOverloaded(retry_after=7, cost_usd=0.5, detail="core dumped"))
    answer = reader(history.store).answer(event("GET", run))
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (503, "7")
    body = json.loads(answer["body"])
    assert body.keys() == {*("success", "error", "code", "retryable", "session_id", "run_id", "cost_usd", "resumes")}
    assert (body["success"], body["code"], body["run_id"], body["cost_usd"]) == (False, "ModelOverloaded", run, 0.5)
    assert "core dumped" not in answer["body"]


def test_a_run_that_goes_on_says_what_it_is_doing(history: Past) -> None:
    """Since when, until when, turns and cost so far, and the newest message in a line."""
    begun = going(history, started=b'{"deadline": 1800000021.5}')
    begun.stages(lines({"type": "system"}, used("Bash", command="pytest -q\nmore")), receipt=receipt_of(0.25))
    status, answer = told(history, begun.run)
    assert status == 200
    assert datetime.fromisoformat(answer.pop("since")).timestamp() == pytest.approx(history.now, abs=1)
    assert answer == {
        "success": True,
        "status": "running",
        "session_id": begun.task.session_id,
        "run_id": begun.run,
        "deadline": "2027-01-15T08:00:21Z",
        "turns": 1,
        "cost_usd": 0.25,
        "doing": "Bash: pytest -q more",
        "messages": 2,
    }


def used(tool: str, **given: Any) -> Json:
    block = {"type": "tool_use", "name": tool, "input": given}
    return {"type": "assistant", "message": {"content": [{"type": "text", "text": "now"}, block]}}


@pytest.mark.parametrize(
    ("message", "doing"),
    [
        (used("Read", file_path="/a/b.py"), "Read: /a/b.py"),
        (used("TodoWrite", todos=[]), "TodoWrite"),
        (used("Bash", command="x" * 10_000), "Bash: " + "x" * 114),
        (used("Bash", command="\x1b[2Jrm \u202e x"), "Bash: [2Jrm  x"),
        ({"type": "assistant", "message": {"content": [{"type": "thinking", "thinking": "hm"}]}}, "thinking"),
        ({"type": "user", "message": {"content": [{"type": "tool_result"}]}}, "thinking"),
        ({"type": "result"}, "finishing"),
        ({"type": "assistant", "message": "a stranger's"}, "thinking"),
        ({"type": "assistant", "message": {"content": [{"type": "tool_use", "name": None, "input": 3}]}}, "None"),
    ],
)
def test_what_it_is_doing_is_one_short_line(history: Past, message: Json, doing: str) -> None:
    """Whatever a stranger staged: no line end, no control character, no more than fits a line."""
    begun = going(history)
    begun.stages(lines(message))
    assert told(history, begun.run)[1]["doing"] == doing


@pytest.mark.parametrize("rubbish", [b"", b"[]", b"{", b"\xff\n\xfe", b'[\n1,\n"x"\n]\n', b"[" * 10_000, b"\n" * 5000])
def test_rubbish_under_an_attempt_does_no_harm(history: Past, rubbish: bytes) -> None:
    """What RunClaude staged is a stranger's: the run goes on all the same, for as long as it may."""
    begun = going(history, started=rubbish)
    begun.stages(rubbish)
    history.s3.put_object(Bucket=history.bucket, Key=f"{attempt_of(history, begun.run)}receipt.json", Body=rubbish)
    status, answer = told(history, begun.run)
    assert (status, answer["status"], answer["deadline"], answer["cost_usd"]) == (200, "running", None, 0.0)


@pytest.mark.parametrize(
    "deadline", [b"[1]", b'{"deadline": true}', b'{"deadline": 1e300}', b'{"deadline": "soon"}', b""]
)
def test_a_deadline_is_a_moment_or_none(history: Past, deadline: bytes) -> None:
    """Attempts of before have an empty mark."""
    assert told(history, going(history, started=deadline).run)[1]["deadline"] is None


def attempt_of(history: Past, run: str) -> str:
    (key,) = [key for key in history.objects() if key.startswith(f"runs/{run}/") and key.endswith("/started")]
    return key.removesuffix("started")


def test_a_run_that_nobody_can_be_at_work_on_is_lost(history: Past) -> None:
    """Once the longest time is over that an attempt has: counted from where the newest began, or from the request."""
    run = history.play("claimed", ago=0)
    assert [stands(history, run, at) for at in (LEASE_SECONDS - 5, LEASE_SECONDS + 5)] == ["running", "lost"]


def stands(history: Past, run: str, later: float) -> str:
    """Its status, so many seconds from now."""
    answer = reader(history.store, lambda: time.time() + later).answer(event("GET", run))
    return str(json.loads(answer["body"])["status"])


def test_a_long_runs_leg_has_longer(history: Past) -> None:
    """Its record says that it is long."""
    run = history.play("claimed", ago=0)
    asked = record.request(history.store, run)
    assert asked
    history.store.write(f"runs/{run}/request.json", asked | {"long": True})
    answers = [stands(history, run, at) for at in (LEASE_SECONDS + 5, LONG_LEASE - 5, LONG_LEASE + 5)]
    assert answers == ["running", "running", "lost"]


def test_a_run_that_is_asked_anew_goes_on(history: Past) -> None:
    """Its failure is over once an attempt has begun after it; a failure of that attempt is one again."""
    key = str(uuid.uuid4())
    run = history.play("failed", key=key, ago=100)
    assert told(history, run)[0] == 502
    again = going(history, key=key)
    assert again.run == run
    again.stages(lines({"type": "system"}), receipt=receipt_of(0.125))
    status, answer = told(history, run)
    assert (status, answer["status"], answer["messages"], answer["cost_usd"]) == (200, "running", 1, 0.625)


def test_a_run_that_was_handed_over_again_goes_on(history: Past) -> None:
    """Also before its attempt has left anything: nobody is told of its old failure, or that it was lost, any more. A
    failure of what took it over is one again."""
    failed, lost = history.play("failed", ago=100), history.play("claimed", ago=9000)
    assert (told(history, failed)[0], told(history, lost)[1]["status"]) == (502, "lost")
    now = time.time()
    for run in (failed, lost):
        record.hand_over_again(history.store, run, now)
        assert told(history, run)[1]["status"] == "running"
    failure = record.failure(history.store, failed)
    assert failure
    costs = {f"runs/{failed}/{attempt('arn:this', now)}/": 0.0}
    record.fail(history.store, failed, failure | {"costs": failure["costs"] | costs})
    assert told(history, failed)[0] == 502


def test_a_failure_before_any_attempt_is_one(history: Past) -> None:
    """RestoreSession may die before RunClaude can have begun."""
    run = history.play("claimed", ago=1)
    state = record_failure.RecordFailure(history.store, lambda _: None)
    asked = record.request(history.store, run)
    assert asked
    state.record(
        {
            "state": "RestoreSession",
            "error": {"Error": "States.Timeout"},
            "claim": None,
            "replay": None,
            "execution": asked["execution"],
            "caller": "default",
            "key": asked["key"],
            "started_at": datetime.fromtimestamp(history.now, UTC).isoformat(),
        }
    )
    assert told(history, run)[1]["code"] == "RunTimedOut"


# --- messages ---


def test_messages_are_counted_over_all_attempts(history: Past) -> None:
    """Also those of before, whose array is one line."""
    key = str(uuid.uuid4())
    run = history.play("failed", key=key, ago=100)
    old = f"{attempt_of(history, run)}messages.json"
    history.s3.put_object(Bucket=history.bucket, Key=old, Body=json.dumps([{"n": 1}, {"n": 2}]).encode())
    again = going(history, key=key)
    again.stages(lines({"n": 3}))
    assert told(history, again.run)[1]["messages"] == 3


# --- waiting ---


class Clock:
    """A clock that goes on by the pauses alone; each is a chance for the run to go on."""

    def __init__(self, *then: Any) -> None:
        self.at = time.time()
        self.then = list(then)
        self.pauses = 0

    def now(self) -> float:
        return self.at

    def pause(self, seconds: float) -> None:
        self.at += seconds
        self.pauses += 1
        if self.then and (does := self.then.pop(0)):
            does()

    def reader(self, history: Past) -> ReadRun:
        return reader(history.store, self.now, self.pause)


def test_a_get_waits_for_news(history: Past) -> None:
    """A message more, an end, or the time that it wants to wait, at most what the gateway waits."""
    begun = going(history)
    begun.stages(lines({"n": 1}))
    news = Clock(None, None, lambda: begun.stages(lines({"n": 1}, {"n": 2})))
    answer = json.loads(news.reader(history).answer(event("GET", begun.run, wait="20"))["body"])
    assert (news.pauses, answer["messages"]) == (3, 2)
    ends = Clock(None, lambda: record.fail(history.store, begun.run, {"code": "Internal", "costs": {"z": 1}}))
    assert ends.reader(history).answer(event("GET", begun.run, wait="20"))["statusCode"] == 500
    assert ends.pauses == 2


@pytest.mark.parametrize(("wait", "pauses"), [("3", 3), ("1e9", 24), ("0", 0), ("0.5", 1)])
def test_a_get_waits_as_long_as_it_may(history: Past, wait: str, pauses: int) -> None:
    """Where there is no news."""
    clock = Clock()
    begun = going(history)
    assert clock.reader(history).answer(event("GET", begun.run, wait=wait))["statusCode"] == 200
    assert clock.pauses == pauses


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "1;2"])
def test_a_wait_that_is_no_time_is_refused(history: Past, wait: str) -> None:
    """By its name."""
    status, answer = told(history, going(history).run, wait=wait)
    assert (status, answer["code"]) == (400, "InvalidRequest")
    assert "wait" in answer["error"]


# --- who ---


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("ending", ["done", "failed", "claimed"])
def test_a_run_of_another_caller_is_not_found(history: Past, ending: str, method: str) -> None:
    """However it stands, and in the very words of one that there is not; its second key opens it."""
    run = history.play(ending, ago=1)
    others, nobodys = told(history, run, method, key="key-3"), told(history, f"run-{'0' * 32}", method)
    assert others == nobodys
    assert (others[0], others[1]["code"]) == (404, "RunNotFound")
    assert f"runs/{run}/cancel" not in history.objects()
    assert told(history, run, "GET", key="key-2")[1].get("code") != "RunNotFound"


@pytest.mark.parametrize("run", ["run-1", "../locks", "run-" + "0" * 31 + "/", "", "run-" + "A" * 32])
def test_a_name_that_is_no_runs_is_not_looked_for(history: Past, run: str) -> None:
    """It would be another key of the bucket."""
    assert told(history, run)[1]["code"] == "RunNotFound"


# --- cancelling ---


def test_a_delete_leaves_its_mark_once(history: Past) -> None:
    """It asks for the run's end, and says so; what has ended it leaves alone."""
    begun = going(history)
    for _ in range(2):
        status, answer = told(history, begun.run, "DELETE")
        assert (status, answer["status"], answer["run_id"]) == (202, "cancelling", begun.run)
    marks = history.s3.list_object_versions(Bucket=history.bucket, Prefix=f"runs/{begun.run}/cancel")["Versions"]
    assert [mark["Size"] for mark in marks] == [0]


@pytest.mark.parametrize("ending", ["done", "failed"])
def test_a_delete_of_a_run_that_has_ended_says_how(history: Past, ending: str) -> None:
    """There is nothing to be cancelled, and nothing wrong with asking."""
    run = history.play(ending)
    status, answer = told(history, run, "DELETE")
    assert (status, unlinked(answer)) == (200, unlinked(told(history, run)[1]))
    assert f"runs/{run}/cancel" not in history.objects()


@pytest.mark.parametrize(
    ("method", "events", "allowed"),
    [("PUT", False, "GET, DELETE, OPTIONS"), ("HEAD", False, "GET, DELETE, OPTIONS"), ("DELETE", True, "GET, OPTIONS")],
)
def test_any_other_method_is_not_allowed(history: Past, method: str, events: bool, allowed: str) -> None:
    """On each path what it takes."""
    answer = reader(history.store).answer(event(method, history.play("done"), events=events))
    assert (answer["statusCode"], answer["headers"]["Allow"]) == (405, allowed)
    assert json.loads(answer["body"])["code"] == "MethodNotAllowed"


# --- the machine's look ---


def test_the_machine_looks_for_its_own_executions_end(history: Past) -> None:
    """An answer is the run's; a failure is one of the execution that is waited for, and not of one before it."""

    def looks(run: str, execution: str = "arn") -> Json:
        look = {"run_id": run, "session_id": "session-1", "execution": execution, "until": 0.0}
        return reader(history.store).look(look)

    done, failed = history.play("done"), history.play("failed", execution="arn:this")
    seen = looks(done)
    assert (seen["next"], unlinked(seen["response"])) == ("answered", unlinked(told(history, done)[1]))
    seen = looks(failed, "arn:this")
    assert seen["next"] == "failed"
    assert seen["failure"].items() >= {"code": "AgentCrashed", "run_id": failed, "success": False}.items()
    assert not seen["failure"].keys() & {"detail", "execution", "costs"}
    assert looks(failed, "arn:another") == {"next": "look"}
