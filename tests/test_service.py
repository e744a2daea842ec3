"""The whole thing: real HTTP, the template on the engine, the real CLI, real zips; only the model is scripted."""

import base64
import hashlib
import io
import json
import math
import os
import shutil
import signal
import stat
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError
from rich.console import Console

from claude_workflow.cli.resume import resumed
from claude_workflow.local import histories, service
from claude_workflow.local.model import MARK, ScriptedModel
from claude_workflow.local.service import Model, Service
from lambdas.agent.equipment import NOTHING
from lambdas.archive.unpack import unpack
from lambdas.bucket import ledger, versions
from lambdas.bucket.ledger import RESERVED, Entry
from lambdas.bucket.objects import Bucket
from lambdas.bucket.record import WHOLE
from lambdas.contract import ANSWER_BYTES
from lambdas.receipt import Receipt
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support.client import ANY, HTTP, Client
from tests.support.commands import assert_nothing_runs
from tests.support.opened import Opened
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def running(model: ScriptedModel, prepared: Path, in_memory: InMemory) -> Iterator[Service]:
    state = in_memory("state")
    shutil.copy(prepared, state)
    with service.running(state, Model(model.url, "sk-scripted"), key="k" * 24) as started:
        yield started


@pytest.fixture
def client(running: Service) -> Client:
    return Client(running)


def test_a_post_runs_claude_and_answers(client: Client) -> None:
    """The answer has every field of the contract, and the CLI's own messages."""
    answer = client.ask("Hello there")
    assert answer["success"] is True
    assert answer["session_id"].startswith("session-")
    assert answer["run_id"].startswith("run-")
    assert MARK in answer["result"]
    assert (answer["stop_reason"], answer["num_turns"]) == ("end_turn", 1)
    assert answer["cost_usd"] > 0
    assert answer["session_cost_usd"] == pytest.approx(answer["cost_usd"], abs=1e-5)
    assert answer["messages"][0]["type"] == "system"
    assert "deployment:handover" in answer["messages"][0]["skills"]  # of the project's own agent/, behind the wall
    assert answer["messages"][-1]["type"] == "result"
    assert answer["s3_url"] == f"s3://{client.service.deployed.bucket}/{answer['session_id']}.zip"
    assert answer["structured_output"] is None
    assert answer["files"] == []
    assert zipfile.ZipFile(io.BytesIO(HTTP.request("GET", answer["session_url"]).data)).testzip() is None


def test_the_conversation_and_its_files_go_on(client: Client) -> None:
    """The second turn knows the first, and reads the file that it wrote."""
    first = client.ask("write notes.txt: remember the milk")
    assert first["files"] == [{"path": "notes.txt", "change": "added", "size": 17}]
    second = client.ask("read notes.txt", first)
    assert "remember the milk" in second["result"]
    assert second["files"] == []
    assert "Turn 3" in client.ask("What did I say first?", second)["result"]
    assert "write notes.txt" in client.ask("And now?", second)["result"]


def uploaded(client: Client, archive: bytes) -> str:
    """What a request names that is to find this in its workspace."""
    size = json.dumps({"size_bytes": len(archive)})
    asked = {"x-api-key": client.service.key, "content-type": "application/json"}
    offer = HTTP.request("POST", f"{client.service.url}/uploads", body=size, headers=asked)
    told = offer.json()
    assert (offer.status, told["success"]) == (200, True)
    assert HTTP.request("PUT", told["url"], body=archive + b"x", headers={"If-None-Match": "*"}).status == 403
    assert HTTP.request("PUT", told["url"], body=archive, headers=told["headers"]).status == 200
    return str(told["upload"])


def test_a_session_works_on_what_comes_with_its_requests(client: Client, model: ScriptedModel) -> None:
    """An upload, once; more in a later turn; and one that is not as it should be is refused by name, without the
    model, and leaves the session as it was."""
    honest, hostile = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=honest, mode="w:gz") as archive:
        archive.add(__file__, "src/there.py")
    with zipfile.ZipFile(hostile, "w") as packed:
        packed.writestr("../../out", "x")
    upload = uploaded(client, honest.getvalue())
    first = client.ask("run head -c 40 up/src/there.py", workspace={"upload": upload, "path": "up"})
    assert Path(__file__).read_text()[:40] in first["result"]
    assert (first["files"], "workspace/up/src/there.py" in client.archive(first).namelist()) == ([], True)
    status, refused, _ = client.post({"prompt": "Again", "workspace": {"upload": upload}})
    assert (status, refused["code"]) == (409, "UploadUsed")
    assert first["run_id"] in refused["error"]
    before, asked = client.metadata(first), len(model.requests)
    body = {
        "prompt": "Go on",
        "session_id": first["session_id"],
        "workspace": {"upload": uploaded(client, hostile.getvalue())},
    }
    status, refused, _ = client.post(body)
    assert (status, refused["code"], refused["retryable"], refused["cost_usd"]) == (422, "MaterialsRefused", False, 0.0)
    assert "cannot be taken: workspace: ../../out: its path leads out of the workspace. The model" in refused["error"]
    assert (client.metadata(first), len(model.requests)) == (before, asked)
    more = client.ask("run cat up/src/more", first, files=[{"path": "up/src/more", "content": "and more"}])
    assert "and more" in more["result"]


def test_a_session_says_what_it_is(client: Client) -> None:
    """Metadata tell the owner, the turns and the cost; the zip holds the workspace and what resuming needs."""
    first = client.ask("write a/b.txt: x")
    second = client.ask("Hello again", first)
    described = client.metadata(second)
    assert (described["owner"], described["turns"], described["format"]) == ("default", "2", "1")
    assert described["run"] == second["run_id"]
    assert float(described["cost-usd"]) == pytest.approx(second["session_cost_usd"])
    assert second["session_cost_usd"] == pytest.approx(first["cost_usd"] + second["cost_usd"], abs=1e-5)
    names = client.archive(second).namelist()
    assert "workspace/a/b.txt" in names
    assert [name for name in names if name.endswith(".jsonl")] == [
        name for name in names if name.endswith(f"/{described['claude-session']}.jsonl")
    ]
    assert not [name for name in names if not name.startswith(("workspace/", "claude/projects/", "claude/"))]
    assert described["file-count"] == str(len([name for name in names if not name.endswith("/")]))


def test_work_is_fetched_by_its_name_and_removed(client: Client) -> None:
    """Its files and its archive, with the key alone; then nothing of it is in the bucket but what its run cost."""
    answer = client.ask("write 50%25-é.txt: remember the milk")
    session = answer["session_id"]

    def asked(below: str = "", method: str = "GET", key: str = client.service.key) -> tuple[int, bytes, Any]:
        url = f"{client.service.url}/sessions/{session}{below}"
        got = HTTP.request(method, url, headers={"x-api-key": key}, redirect=False)
        return got.status, got.data, got.headers

    told = json.loads(asked()[1])
    assert (told["turns"], told["cost_usd"]) == (1, pytest.approx(answer["session_cost_usd"]))
    (listed,) = json.loads(asked("/files")[1])["files"]
    assert (listed["path"], listed["size"]) == (answer["files"][0]["path"], 17)
    status, content, headers = asked(f"/files/{quote(listed['path'])}")
    assert (status, content) == (200, b"remember the milk")
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("application/octet-stream", "nosniff")
    status, _, headers = asked("/archive")
    assert status == 303
    assert zipfile.ZipFile(io.BytesIO(HTTP.request("GET", headers["Location"]).data)).testzip() is None
    for below, method in (("", "GET"), ("/files", "GET"), ("/files/x", "GET"), ("/archive", "GET"), ("", "DELETE")):
        assert asked(below, method, key="wrong")[0] == 403
    status, content, _ = asked(method="DELETE")
    assert status == 200, content
    assert json.loads(content)["removed"]["runs"] == 1
    assert asked()[0] == asked(method="DELETE")[0] == 404
    assert client.post({"prompt": "x", "session_id": session})[0] == 404
    left = versions.below(Bucket(client.s3, client.service.deployed.bucket), "")
    about = {each.key.partition("/")[0] for each in left if session in each.key or answer["run_id"] in each.key}
    assert about == {"ledger"}


def test_nothing_of_a_run_is_left_but_its_record(client: Client) -> None:
    """The lease is free, the ledger holds no reservation, and the record what the design lists."""
    answer = client.ask("Hello")
    assert client.keys(f"locks/{answer['session_id']}") == []
    kept = [key.rsplit("/", 1)[1] for key in client.keys(f"runs/{answer['run_id']}/")]
    assert sorted(kept) == sorted(
        ["started", "receipt.json", *WHOLE, "base.json", "request.json", "response.json"],
    )
    (spent,) = [key for key in client.keys("ledger/") if answer["run_id"] in key]
    assert spent.endswith(f"~spent~{math.ceil(answer['cost_usd'] * 1e6)}")


def test_whoever_waits_at_the_event_bus_hears_how_a_run_ended(client: Client) -> None:
    """Well or not; a request that is refused is no run."""
    answer = client.ask("Hello")
    _, failed, _ = client.post({"prompt": "status 400"})
    client.post({"prompt": ""})
    told = [json.loads(line) for line in (client.service.engine.state / "events.jsonl").read_text().splitlines()][-2:]
    assert [one["detail"]["run_id"] for one in told] == [answer["run_id"], failed["run_id"]]
    done, died = (one["detail"] for one in told)
    assert (done["outcome"], done["stop_reason"], done["cost_usd"]) == ("done", "end_turn", answer["cost_usd"])
    assert (died["outcome"], died["code"], died["session_id"]) == ("failed", "ModelRejected", failed["session_id"])
    assert "Hello" not in json.dumps(told)
    assert [one["resources"] for one in told] == [[done["execution"]], [died["execution"]]]


def test_an_answer_leads_to_its_receipt(client: Client) -> None:
    """Which adds up to what it says that the run cost."""
    answer = client.ask("run echo 1")
    receipt = Receipt.load(json.loads(HTTP.request("GET", answer["receipt_url"]).data))
    assert len(receipt.calls) == 2
    assert receipt.usd == pytest.approx(answer["cost_usd"])


def test_the_agent_has_the_network_that_is_told_of(client: Client) -> None:
    """Its own where the service found that it can have one, and else this machine's."""
    answer = client.ask("run readlink /proc/self/ns/net > network")
    network = client.archive(answer).read("workspace/network").decode().strip()
    assert network.startswith("net:[")
    assert (network != str(Path("/proc/self/ns/net").readlink())) == (client.service.network == "own")


def test_a_caller_whose_day_is_spent_is_told_when_it_is_free_again(client: Client) -> None:
    """What the day's runs have cost before is more than this request would allow."""
    client.ask("Hello")
    status, answer, headers = client.post({"prompt": "More", "max_caller_usd_per_day": 0.01})
    assert (status, answer["code"], answer["retryable"], answer["cost_usd"]) == (402, "BudgetExhausted", False, 0.0)
    assert "max_caller_usd_per_day" in answer["error"]
    assert 0 < int(headers["retry-after"]) <= 86_400


NASTY = (
    'He said "it\'s" \\ and \\\' and \\" and @@ and $foo ${bar} $!x #set($a = 1) #foreach #end %s {% raw %} '
    '</script>\n\tüñí 🎈👩‍👩‍👧 \u2028 \u2029 \u0001 {"json": [1, 2]} @/etc/passwd /help\r\n'
)


def test_a_large_and_nasty_prompt_reaches_the_model_byte_for_byte(client: Client, model: ScriptedModel) -> None:
    """Neither templates nor shells nor the CLI's own mentions touch it."""
    prompt = (NASTY * (100_000 // len(NASTY.encode()) + 1)).strip()
    assert len(prompt.encode()) > 100_000 - len(NASTY.encode())
    client.ask(prompt)
    assert model.requests[-1].conversation.prompts[-1] == prompt


def test_allowed_tools_restrict(client: Client) -> None:
    """A model that calls Bash although only Read exists runs nothing."""
    answer = client.ask("run touch made-by-bash.txt", allowed_tools=["Read"])
    assert answer["files"] == []
    assert "workspace/made-by-bash.txt" not in client.archive(answer).namelist()


def test_at_its_deadline_a_run_is_saved(client: Client) -> None:
    """The agent is interrupted, the session kept, and the next request goes on with it."""
    for seconds in (6, 20):  # on a busy machine six may not hold the start and the first tool call
        began = time.time()
        status, answer, _ = client.post({"prompt": "write before.txt: kept\nwait 60", "timeout_seconds": seconds})
        if status == 200 and answer["files"]:
            break
    assert (status, answer["stop_reason"]) == (200, "deadline")
    assert time.time() - began < seconds + 14
    assert "kept" in client.ask("read before.txt", answer)["result"]


def test_limits_of_the_request_stop_the_run_and_save_it(client: Client) -> None:
    """A run that stopped at a limit is complete: 200, saved, and it can go on."""
    turns = client.ask("write a.txt: 1\nwrite b.txt: 2\nwrite c.txt: 3", max_turns=2)
    assert turns["stop_reason"] == "max_turns"
    assert turns["result"] is None
    budget = client.ask("cost 100000\nwrite a.txt: 1\nwrite b.txt: 2", max_budget_usd=0.01)
    assert budget["stop_reason"] == "max_budget"
    assert "Turn 2" in client.ask("Go on", budget)["result"]


def test_a_schema_gives_structured_output(client: Client) -> None:
    """The answer holds the object, beside the text."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert client.ask('json {"n": 7}', output_schema=schema)["structured_output"] == {"n": 7}


def test_messages_that_do_not_fit_are_behind_a_link(client: Client) -> None:
    """The answer stays below what Step Functions carries; all of it can be had."""
    answer = client.ask("big 120")
    assert answer["messages_truncated"] is True
    assert len(json.dumps(answer, ensure_ascii=False).encode()) <= ANSWER_BYTES
    assert len(answer["messages"]) == 1
    everything = HTTP.request("GET", answer["messages_url"]).json()
    assert everything[-1]["type"] == "result"
    assert len(everything[-1]["result"]) > 120 * 1024


def test_a_run_without_a_key_is_asked_for_by_the_gateways_id_and_by_its_input(client: Client) -> None:
    """The id that an answer had sent back as its key, and the console's "New execution" with the input of long ago, are
    the same run."""
    status, first, headers = client.post({"prompt": "status 401 times 3\nsay at last"})
    assert (status, first["code"]) == (502, "ModelUnauthorized")
    key = headers["x-amz-apigw-id"]
    given = {"caller": "default", "key": key, "key_given": False, "oversize": False, "requested_at": 1e12}
    given["body"] = {"prompt": "status 401 times 3\nsay at last"}
    started = client.service.engine.client("stepfunctions", read_timeout=60).start_sync_execution(
        stateMachineArn=client.service.deployed.state_machine_arn, input=json.dumps(given)
    )
    assert started["status"] == "SUCCEEDED", started
    answer = json.loads(started["output"])
    assert (answer["run_id"], answer["stop_reason"]) == (first["run_id"], "end_turn")
    assert client.post(given["body"], idempotency_key=key)[1]["run_id"] == first["run_id"]


def test_a_fork_leaves_its_origin_alone(client: Client) -> None:
    """It starts as a copy, and both go on by themselves."""
    origin = client.ask("write a.txt: origin")
    fork = client.ask("run echo fork > b.txt", origin, fork=True)
    assert fork["session_id"] != origin["session_id"]
    assert "workspace/b.txt" not in client.archive(origin).namelist()
    assert {"workspace/a.txt", "workspace/b.txt"} <= set(client.archive(fork).namelist())
    assert client.metadata(origin)["turns"] == "1"


def test_a_deadline_before_the_first_turn_commits_nothing(client: Client) -> None:
    """Nothing was said and nothing was spent, so the caller is told to come again."""
    session = client.ask("Hello")
    before = client.metadata(session)
    hurried = {"prompt": "Hello", "session_id": session["session_id"], "timeout_seconds": 0.1}
    status, answer, _ = client.post(hurried)
    assert (status, answer["code"], answer["retryable"]) == (503, "ModelOverloaded", True)
    assert "before the model was asked" in answer["error"]
    record = json.loads(HTTP.request("GET", client.link(f"runs/{answer['run_id']}/failure.json")).data)
    assert "while the session was restored" in record["detail"]
    assert client.metadata(session) == before


MAKE_TREE = """
import os, random
random.seed(7)
for n in range(1000):
    folder = f"d{n % 50}/e{n % 7}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/f{n}.bin", "wb") as file:
        file.write(random.randbytes(6000) + b"text " * 1200)
    os.chmod(f"{folder}/f{n}.bin", 0o755 if n % 3 == 0 else 0o640)
os.symlink("d1", "to-directory"); os.symlink("nowhere", "dangling"); os.mkdir("empty"); os.utime("empty", (1e9, 1e9))
os.makedirs("n\\u00e4me \\U0001f388"); os.symlink("../d2/e2/f2.bin", "d1/to-file")
"""


def tree(archive: bytes, into: Path) -> dict[str, Any]:
    """Every path of a session's workspace with kind, mode, time and content."""
    into.mkdir()
    unpack(Opened(archive), into, ANY)
    found = {}
    for path in sorted((into / "workspace").rglob("*")):
        facts = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(facts.st_mode) else None
        content = str(path.readlink()) if path.is_symlink() else content
        times = None if path.is_symlink() else facts.st_mtime_ns
        found[str(path.relative_to(into))] = (stat.filemode(facts.st_mode), times, content)
    return found


def test_twelve_megabytes_of_a_thousand_files_come_back_identical(client: Client, tmp_path: Path) -> None:
    """Content, modes, links, times, empty directories and names survive two turns."""
    script = base64.b64encode(MAKE_TREE.encode()).decode()
    first = client.ask(f"run echo {script} | base64 -d | python3 -")
    assert first["files_total"] == 1003
    before = tree(HTTP.request("GET", first["session_url"]).data, tmp_path / "first")
    second = client.ask("Hello", first)
    assert second["files"] == []
    assert tree(HTTP.request("GET", second["session_url"]).data, tmp_path / "second") == before
    assert len(before) > 1000


def test_a_damaged_session_is_an_error_and_not_a_new_conversation(client: Client, model: ScriptedModel) -> None:
    """A cut archive is noticed before the model is asked."""
    answer = client.ask("Hello")
    bucket, key = client.service.deployed.bucket, f"{answer['session_id']}.zip"
    whole = client.s3.get_object(Bucket=bucket, Key=key)
    client.s3.put_object(Bucket=bucket, Key=key, Body=whole["Body"].read()[:-200], Metadata=whole["Metadata"])
    asked = len(model.requests)
    status, refused, _ = client.post({"prompt": "Hello", "session_id": answer["session_id"]})
    assert (status, refused["code"]) == (500, "Internal")
    assert len(model.requests) == asked


def test_the_engine_of_a_service_is_sealed(client: Client) -> None:
    """Once the template is deployed not even root makes a function, or calls one."""
    with pytest.raises(ClientError, match="nothing that the workflow needs"):
        client.service.engine.client("lambda").list_functions()


def reservations(bucket: Bucket) -> list[Entry]:
    """What counts as reserved, on whatever day; what is spent counts in place of what was reserved for it."""
    days = {one["Key"].split("/")[1] for one in bucket.listed("ledger/2")}
    return [each for day in days for each in ledger.entries(bucket, day, 0.0) if each.kind == RESERVED]


def test_killing_the_service_at_any_point_leaves_a_session_that_opens(model: ScriptedModel, state: Path) -> None:
    """Killed while three turns are at three instants, each session is at the old version or the new one. At the next
    start it is free, and what the turn had reserved is settled: asked again with its key, it goes on at once."""
    started, key = Model(model.url, "sk-scripted"), "k" * 24
    with service.running(state, started, key=key) as running, ThreadPoolExecutor(3) as pool:
        sessions = list(pool.map(Client(running).ask, ["write n.txt: 0"] * 3))
        bodies = [
            {"prompt": f"run echo {number} > n.txt", "session_id": session["session_id"]}
            for number, session in enumerate(sessions, 1)
        ]
        racing = []
        for number, body in enumerate(bodies, 1):
            racing.append(pool.submit(Client(running).post, body, idempotency_key=f"killed-{number}"))
            time.sleep(0.6)
        os.kill(running.engine.pid, signal.SIGKILL)
        for each in racing:
            each.exception()
    with service.running(state, started, key=key) as running:
        for number, session in enumerate(sessions, 1):
            archive = Client(running).archive(session)
            assert archive.testzip() is None
            assert int(archive.read("workspace/n.txt")) in (0, number)
        client = Client(running)
        assert client.keys("locks/") == []
        assert reservations(Bucket(client.s3, running.deployed.bucket)) == []
        for number, body in enumerate(bodies, 1):
            status, answer, _ = client.post(body, idempotency_key=f"killed-{number}")
            assert status == 200
            assert int(client.archive(answer).read("workspace/n.txt")) == number
    assert_nothing_runs(state)


def test_long_runs_go_on_when_their_service_does(model: ScriptedModel, state: Path) -> None:
    """Killed after their first step, they go on from their checkpoints when the service starts again: without
    their caller, and each step is done once. One that was cancelled meanwhile ends as that, with its first step."""
    prompts = {
        name: f"run echo 1 >> n.txt\nwait {6 + len(name)}\nrun echo 2 >> n.txt" for name in ("cancelled", "done")
    }

    def asked(name: str) -> int:
        return sum(request.conversation.prompts[-1] == prompts[name] for request in list(model.requests))

    def checkpointed(client: Client, run: Json) -> bool:
        return any(key.endswith("checkpoint.zip") for key in client.keys(f"runs/{run['run_id']}/"))

    started, said = Model(model.url, "sk-scripted"), io.StringIO()
    with service.running(state, started, key="k" * 24) as running:
        client = Client(running)
        runs = {name: client.post({"prompt": prompt}, prefer="respond-async")[1] for name, prompt in prompts.items()}
        assert eventually(lambda: all(asked(name) == 2 and checkpointed(client, run) for name, run in runs.items()))
        os.kill(running.engine.pid, signal.SIGKILL)
    with service.running(state, started, key="k" * 24) as running:
        client = Client(running)
        mark = f"runs/{runs['cancelled']['run_id']}/cancel"
        client.s3.put_object(Bucket=running.deployed.bucket, Key=mark, Body=b"")
        with resumed(running, state, Console(file=said, width=200), leave=False):
            for run in runs.values():
                answer = f"runs/{run['run_id']}/response.json"
                assert eventually(partial(client.keys, answer))
            assert eventually(lambda: not client.keys("locks/"))
        assert {name: client.archive(run).read("workspace/n.txt") for name, run in runs.items()} == {
            "done": b"1\n2\n",
            "cancelled": b"1\n",
        }
        assert asked("done") == 4
        assert asked("cancelled") <= 3
        assert eventually(lambda: len((state / "events.jsonl").read_text().splitlines()) == 2)
        events = [json.loads(line)["detail"] for line in (state / "events.jsonl").read_text().splitlines()]
        assert {one["outcome"]: one["run_id"] for one in events} == {name: run["run_id"] for name, run in runs.items()}
        for one in events:
            assert eventually(partial(histories.events, state, one["execution"]))
            assert f"{one['run_id']} was at work when the service ended: goes on." in said.getvalue()


def test_tokens_of_gits_hosts_come_from_the_services_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the setting names, and nothing else of it."""
    entry = {"host": "github.com", "match": ["acme/*"], "access": "push", "secret": "GIT_TOKEN"}
    entries = json.dumps([entry, entry | {"secret": "UNSET_TOKEN"}])
    agent = {"Properties": {"Environment": {"Variables": {"REPOSITORIES": entries}}}}
    monkeypatch.setenv("GIT_TOKEN", "ghp-1")
    held = service._secret({"Resources": {"Agent": agent, "Bucket": {}}}, Model("http://127.0.0.1:1", "sk-1"), NOTHING)
    assert held == {"ANTHROPIC_API_KEY": "sk-1", "GIT_TOKEN": "ghp-1"}
