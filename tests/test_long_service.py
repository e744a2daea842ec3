"""Long runs on the whole service, by HTTP: who waits, who comes back, who cancels, and that it is one conversation."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local import service
from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas.bucket import record
from lambdas.bucket.objects import Bucket
from lambdas.request import run_id
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support.client import HTTP, Client
from tests.support.played_workflow import unlinked
from tests.support.short_legs import shorten
from tests.support.waiting import eventually

KEY = "k" * 24
GATE, LIMIT = 3, 60


@pytest.fixture(scope="module")
def running(server: ScriptedModel, prepared: Path, in_memory: InMemory) -> Iterator[Service]:
    """A service whose legs end at the first gate after three seconds."""
    state = in_memory("state")
    shutil.copy(prepared, state)
    shorten(state, GATE, LIMIT)
    with service.running(state, Model(server.url, "sk-scripted"), key=KEY) as started:
        yield started


class Caller(Client):
    """Asks for runs, too."""

    def run(self, method: str, run_id: str) -> tuple[int, Json]:
        """GET or DELETE; not more often than a key may."""
        time.sleep(0.4)
        got = HTTP.request(method, f"{self.service.url}/runs/{run_id}", headers={"x-api-key": self.service.key})
        return got.status, got.json()

    def turns(self, run_id: str) -> int:
        """How many answers of the model's the receipts have."""
        found = record.receipts(Bucket(self.s3, self.service.deployed.bucket), run_id)
        return sum(receipt.turns for receipt in found.values() if receipt)

    def ended(self, run_id: str) -> Json:
        """The answer, or the failure, as soon as it is there."""
        found: dict[str, Any] = {}

        def over() -> bool:
            found["answer"] = self.run("GET", run_id)[1]
            return "status" not in found["answer"] and found["answer"].get("code") != "Throttled"

        assert eventually(over, 120), found
        answer: Json = found["answer"]
        return answer


@pytest.fixture
def caller(running: Service) -> Caller:
    return Caller(running)


def steps(name: str, seconds: float, count: int) -> str:
    """A prompt that writes so many lines, each after a while."""
    return "\n".join(f"run sleep {seconds}; echo {number} >> {name}" for number in range(count))


def requests(model: ScriptedModel, prompt: str) -> list[Json]:
    """The conversation's own, of the runs with this prompt, by what they end with."""
    return [request.body for request in list(model.requests) if prompt in "\n".join(request.conversation.prompts)]


def test_who_waits_long_enough_is_answered_as_ever(caller: Caller) -> None:
    """200 with the answer, which is the one of the run's own address, too."""
    status, answer, _ = caller.post({"prompt": steps("a", 0.5, 1)}, prefer="respond-async, wait=20")
    assert (status, answer["stop_reason"]) == (200, "end_turn")
    assert unlinked(caller.run("GET", answer["run_id"])[1]) == unlinked(answer)


def test_a_run_in_legs_asks_the_model_what_an_uninterrupted_one_asks(caller: Caller, model: ScriptedModel) -> None:
    """202 when the time to wait is over, and the run goes on in several legs: no request is repeated, none is lost, and
    the answer is over all of them. The same prompt without legs makes as many requests."""
    prompt = steps("b", 1.2, 6)
    status, accepted, headers = caller.post({"prompt": prompt}, prefer="respond-async, wait=2")
    assert (status, accepted["status"], headers["preference-applied"]) == (202, "running", "respond-async")
    assert headers["location"] == accepted["run_url"] == f"{caller.service.url}/runs/{accepted['run_id']}"
    assert headers["retry-after"] == "2"
    answer = caller.ended(accepted["run_id"])
    legs, asked = caller.keys(f"runs/{accepted['run_id']}/"), len(requests(model, prompt))
    assert len([key for key in legs if key.endswith("/checkpoint.zip")]) >= 2
    assert caller.archive(answer).read("workspace/b").split() == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert (answer["num_turns"], asked, answer["stop_reason"]) == (7, 7, "end_turn")
    kinds = [message["type"] for message in answer["messages"]]
    assert (kinds.count("assistant"), kinds[-1]) == (7, "result")
    assert [(file["path"], file["change"]) for file in answer["files"]] == [("b", "added")]
    whole = caller.ask(prompt)
    assert len(requests(model, prompt)) - asked == whole["num_turns"] == 7
    assert caller.ask("read b", answer)["result"].count("→") == 1


def test_a_run_is_cancelled_in_the_middle_of_a_tool(caller: Caller) -> None:
    """It ends as completed, what it did is saved, and the session goes on."""
    prompt = f"{steps('c', 0, 1)}\nrun sleep 300"
    _, accepted, _ = caller.post({"prompt": prompt}, prefer="respond-async")
    run = accepted["run_id"]
    assert eventually(lambda: "sleep 300" in str(caller.run("GET", run)[1].get("doing")))
    status, cancelling = caller.run("DELETE", run)
    assert (status, cancelling["status"]) == (202, "cancelling")
    answer = caller.ended(run)
    assert (answer["success"], answer["stop_reason"], answer["result"]) == (True, "cancelled", None)
    assert caller.archive(answer).read("workspace/c") == b"0\n"
    assert caller.run("DELETE", run)[0] == 200
    assert "0" in caller.ask("read c", answer)["result"]


def test_what_is_cancelled_before_an_answer_costs_and_leaves_nothing(caller: Caller) -> None:
    """A failure by its name, for whoever asks, and however often the same is posted."""
    body = {"prompt": "status 529\nsay late"}
    _, accepted, _ = caller.post(body, prefer="respond-async", idempotency_key="before")
    run = accepted["run_id"]
    assert eventually(lambda: [key for key in caller.keys(f"runs/{run}/") if key.endswith("started")])
    caller.run("DELETE", run)
    failure = caller.ended(run)
    assert (failure["code"], failure["retryable"], failure["cost_usd"]) == ("RunCancelled", False, 0)
    assert not caller.keys(f"{accepted['session_id']}.zip")
    status, again, _ = caller.post(body, prefer="respond-async, wait=20", idempotency_key="before")
    assert (status, again["code"]) == (409, "RunCancelled")


def test_a_synchronous_run_is_cancelled_as_well(caller: Caller) -> None:
    """Its client is answered 200, with what it did saved."""
    body = {"prompt": f"{steps('d', 0, 1)}\nrun sleep 15"}
    with ThreadPoolExecutor(1) as pool:
        posting = pool.submit(caller.post, body, idempotency_key="sync")
        run = run_id("default", "sync")
        assert eventually(lambda: caller.turns(run) == 2)
        assert caller.run("DELETE", run)[0] == 202
        status, answer, _ = posting.result()
    assert (status, answer["stop_reason"]) == (200, "cancelled")
    assert caller.archive(answer).read("workspace/d") == b"0\n"


def test_twenty_clients_with_one_key_are_one_conversation(caller: Caller, model: ScriptedModel) -> None:
    """Some prefer to be answered asynchronously, some wait, some do not say so, and some cancel at last: every answer
    is the same, every other one says that it goes on, and the run is asked for and committed once."""
    body, cancel = {"prompt": f"{steps('e', 1, 3)}\nrun sleep 300"}, threading.Event()
    ways: list[dict[str, str]] = [{"prefer": "respond-async"}, {"prefer": "respond-async, wait=10"}, {}, {}]

    def client(number: int) -> list[tuple[int, Json]]:
        seen, until = [], time.monotonic() + 180
        while time.monotonic() < until:
            if number % 5 == 4 and cancel.is_set():
                seen.append(caller.run("DELETE", run))
            status, answer, _ = caller.post(body, idempotency_key="twenty", **ways[number % len(ways)])
            seen.append((status, answer))
            if status == 200:
                return seen
            time.sleep(1 + number / 5)  # five requests a second are let through
        raise AssertionError(seen[-1])

    _, first, _ = caller.post(body, prefer="respond-async", idempotency_key="twenty")
    run = first["run_id"]
    with ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(client, number) for number in range(20)]
        assert eventually(lambda: caller.turns(run) == 4, 120)
        cancel.set()
        seen = [each for one in asking for each in one.result()]
    done = [answer for status, answer in seen if status == 200 and "result" in answer]
    assert {answer["stop_reason"] for answer in done} == {"cancelled"}
    assert len({json.dumps(unlinked(answer), sort_keys=True) for answer in done}) == 1
    others = {(status, answer.get("code") or answer["status"]) for status, answer in seen if "result" not in answer}
    assert others <= {(202, "running"), (202, "cancelling"), (409, "RunInProgress"), (429, "Throttled")}
    assert len(requests(model, body["prompt"])) == 4
    versions = caller.s3.list_object_versions(
        Bucket=caller.service.deployed.bucket, Prefix=f"{first['session_id']}.zip"
    )["Versions"]
    assert len(versions) == 1
    assert caller.archive(done[0]).read("workspace/e").split() == [b"0", b"1", b"2"]
