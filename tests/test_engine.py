"""The engine: the definition walked state by state, policies enforced, data that survive, no process that stays."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from claude_workflow.local import deploy, engine
from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from claude_workflow.local.guard import BUCKET
from claude_workflow.local.mend import mend
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import ordinary_user
from tests.support.scripted_workflow import Workflow, function_id, with_stand_ins
from tests.support.waiting import eventually
from tests.support.ways import WAYS, Walk, Way, assert_went

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def started(template: Json, in_memory: InMemory) -> Iterator[tuple[Engine, Deployed]]:
    with engine.running(in_memory("state")) as running:
        yield running, deploy.deploy(running, with_stand_ins(template), secret={"ANTHROPIC_API_KEY": "sk-test"})


@pytest.fixture
def workflow(started: tuple[Engine, Deployed], tmp_path: Path) -> Workflow:
    return Workflow(*started, tmp_path)


def failure(answer: Json) -> Json:
    assert answer["status"] == "FAILED"
    cause: Json = json.loads(answer["cause"])
    return cause


@pytest.fixture(scope="module")
def walked(started: tuple[Engine, Deployed], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """All ways, some at once."""
    scripts = {way.name: way.script for way in WAYS if way.locally}
    folders = [tmp_path_factory.mktemp("way") for _ in scripts]
    workflows = [Workflow(*started, folder) for folder in folders]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda workflow, script: workflow.run(**script), workflows, scripts.values())
        walks = map(partial(Walk.of, started[0].client("stepfunctions")), answers, folders)
        return dict(zip(scripts, walks, strict=True))


@pytest.mark.parametrize("way", [way for way in WAYS if way.locally], ids=lambda way: way.name)
def test_every_way_is_as_it_has_to_be(walked: dict[str, Walk], way: Way) -> None:
    """What the definition makes of every kind of outcome; `test_interpreter.py` asks another interpreter the same."""
    assert_went(walked[way.name], way)


def test_restore_session_learns_its_execution(workflow: Workflow) -> None:
    """Envelope, execution and start, which the lease is made of; that no leg came before, and where longer runs go."""
    answer = workflow.run()
    call = workflow.calls("RestoreSession")[0]
    assert set(call) == {"envelope", "execution", "started_at", "began_at", "before", "long_machine"}
    assert call["execution"] == answer["executionArn"]
    assert abs(datetime.fromisoformat(call["started_at"]).timestamp() - time.time()) < 60
    assert (call["began_at"], call["before"]) == (call["started_at"], None)
    machines = {each for each in workflow.deployed.resources.values() if ":stateMachine:" in each}
    assert {call["long_machine"]} == machines - {workflow.deployed.state_machine_arn}


def test_an_unknown_decision_fails(workflow: Workflow) -> None:
    """No step is a default."""
    answer = workflow.run(next="something else")
    assert (answer["status"], answer["error"]) == ("FAILED", "States.NoChoiceMatched")


def test_a_function_that_dies_is_recorded(workflow: Workflow) -> None:
    """Lambda reports that its runtime exited."""
    assert failure(workflow.run(RunClaude={"exits": 3}))["raised"] == "Runtime.ExitError"
    assert len(workflow.calls("RunClaude")) == 1


def test_a_handler_that_cannot_be_loaded_is_named(workflow: Workflow) -> None:
    """Its runtime tells so before there is an event, by the channel that knows who tells."""
    lambdas = workflow.engine.client("lambda")
    like = lambdas.get_function(FunctionName=workflow.deployed.resources[function_id(workflow.deployed, "run_claude")])
    lambdas.create_function(
        FunctionName="broken",
        Handler="tests.nowhere.handler",
        Role=like["Configuration"]["Role"],
        Runtime=like["Configuration"]["Runtime"],
        Code={"S3Bucket": deploy.CODE_BUCKET, "S3Key": deploy.CODE_KEY},
    )
    invoked = json.load(lambdas.invoke(FunctionName="broken", Payload="{}")["Payload"])
    assert invoked["errorMessage"].startswith("init error: ")
    assert "Runtime.ImportModuleError" in invoked["errorMessage"]


def test_a_function_that_hangs_is_cut_off_with_all_that_it_started(workflow: Workflow) -> None:
    """Its timeout is recorded, and no child of it lives on, however detached."""
    assert failure(workflow.run(RunClaude={"hangs": True}))["raised"] == "Sandbox.Timedout"
    pids = [int(pid) for pid in (workflow.folder / "pids").read_text().split()]
    own_session, orphan = pids
    assert wait_until_gone([own_session, orphan] if sys.platform == "linux" else [])


@pytest.mark.parametrize(
    ("state", "call", "outcome"),
    [
        ("RunClaude", f's3 put_object {{"Bucket": "{BUCKET}", "Key": "runs/x"}}', "AccessDenied"),
        ("RunClaude", f's3 get_object {{"Bucket": "{BUCKET}", "Key": "session-1.zip"}}', "AccessDenied"),
        ("RunClaude", f's3 list_objects_v2 {{"Bucket": "{BUCKET}"}}', "AccessDenied"),
        ("RunClaude", "lambda list_functions {}", "AccessDeniedException"),
        ("RunClaude", "stepfunctions list_state_machines {}", "AccessDeniedException"),
        ("PersistSession", f's3 put_object {{"Bucket": "{BUCKET}", "Key": "session-x.zip"}}', "allowed"),
        ("PersistSession", f's3 put_object {{"Bucket": "{BUCKET}", "Key": "elsewhere"}}', "AccessDenied"),
        ("PersistSession", f's3 get_object {{"Bucket": "{BUCKET}", "Key": "runs/none"}}', "NoSuchKey"),
        ("PersistSession", "secretsmanager list_secrets {}", "AccessDeniedException"),
    ],
)
def test_the_policies_of_the_template_are_enforced(workflow: Workflow, state: str, call: str, outcome: str) -> None:
    """Every function's calls are judged by its role, RunClaude's above all."""
    with_result = workflow.run(next="run" if state == "RunClaude" else "persist", **{state: {"calls": [call]}})
    if state == "PersistSession":
        assert json.loads(with_result["output"])["calls"] == {call: outcome}
        return
    lambdas = workflow.engine.client("lambda")
    name = workflow.deployed.resources[function_id(workflow.deployed, "run_claude")]
    event = {"script": {"folder": str(workflow.folder), state: {"calls": [call]}}}
    invoked = lambdas.invoke(FunctionName=name, Payload=json.dumps(event))
    assert json.load(invoked["Payload"])["calls"] == {call: outcome}


def test_settings_replace_only_what_the_template_has(template: Json) -> None:
    """A model's URL reaches the two functions that read it, and no other."""
    fitted = deploy.fit(template, {"ANTHROPIC_BASE_URL": "http://model"})["Resources"].values()
    functions = [one["Properties"] for one in fitted if one["Type"] == "AWS::Lambda::Function"]
    having = [one for one in functions if "ANTHROPIC_BASE_URL" in one["Environment"]["Variables"]]
    assert [one["Handler"] for one in having] == ["lambdas.run_claude.handler"] * 2
    assert having[0]["Environment"]["Variables"]["ANTHROPIC_BASE_URL"] == "http://model"


def test_the_secret_is_what_it_was_given(workflow: Workflow) -> None:
    """Written as the operator does it in AWS."""
    vault = workflow.engine.client("secretsmanager")
    stored = vault.get_secret_value(SecretId=workflow.deployed.secret_arn)["SecretString"]
    assert json.loads(stored) == {"ANTHROPIC_API_KEY": "sk-test"}


def test_links_serve_pages_of_the_allowed_origin(workflow: Workflow) -> None:
    """The bucket's CORS rules are the template's."""
    s3 = workflow.engine.client("s3")
    s3.put_object(Bucket=BUCKET, Key="session-cors.zip", Body=b"zip")
    link = s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": "session-cors.zip"})
    request = urllib.request.Request(link, headers={"Origin": "https://example.com"})
    with urllib.request.urlopen(request) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_the_bucket_is_versioned_as_in_the_template(workflow: Workflow) -> None:
    """Although the bucket was there before the stack."""
    assert workflow.engine.client("s3").get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory that an ordinary user can reach; pytest's own cannot be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def with_one(running: Engine) -> Any:
    """A client, and a versioned bucket with two versions of an object and one of another."""
    s3 = running.client("s3")
    s3.create_bucket(Bucket="kept")
    s3.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    for key, body in (("deep/a", b"one"), ("deep/a", b"two"), ("b", b"other")):
        s3.put_object(Bucket="kept", Key=key, Body=body, Metadata={"of": body.decode()})
    return s3


def versions_of(s3: Any) -> Json:
    """Every version and its metadata, and the delete markers."""
    found = s3.list_object_versions(Bucket="kept")
    which = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found["Versions"]]
    got = [s3.get_object(Bucket="kept", **one) for one in which]
    return {
        "versions": [(one, it["Body"].read(), it["Metadata"]) for one, it in zip(which, got, strict=True)],
        "newest": [one["VersionId"] for one in found["Versions"] if one["IsLatest"]],
        "markers": [one["VersionId"] for one in found.get("DeleteMarkers", [])],
    }


def status(call: Callable[..., Any], **arguments: Any) -> int:
    try:
        answer: Json = call(Bucket="kept", **arguments)
    except ClientError as refused:
        answer = refused.response
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def uploaded(s3: Any) -> Json:
    upload = s3.create_multipart_upload(Bucket="kept", Key="deep/a")
    which = {"Key": "deep/a", "UploadId": upload["UploadId"]}
    part = s3.upload_part(Bucket="kept", **which, PartNumber=1, Body=b"in parts")
    return {**which, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}}


def changes(s3: Any, version: str, upload: Json) -> list[int]:
    """The statuses of all that would change an object."""
    source = {"Bucket": "kept", "Key": "b"}
    batch = {"Objects": [{"Key": "deep/a", "VersionId": version}]}
    return [
        status(s3.put_object, Key="deep/a", Body=b"three" * 1000),
        status(s3.put_object, Key="new/er/c", Body=b"new"),
        status(s3.copy_object, Key="deep/a", CopySource=source),
        status(s3.complete_multipart_upload, **upload),
        status(s3.delete_object, Key="deep/a"),
        status(s3.delete_object, Key="deep/a", VersionId=version),
        status(s3.delete_objects, Delete=batch),
    ]


@contextmanager
def refusing(kind: str, running: Engine) -> Iterator[None]:
    """A disk that takes nothing more."""
    files = running.state / "s3" / "000000000000"
    if kind == "limited":
        ordinary_user.limit(running.pid, 0)
        yield
        ordinary_user.limit(running.pid, 1 << 30)
    elif kind == "full":
        filling = running.state / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        yield
        filling.unlink()
    else:
        owners = {
            path: path.stat() for path in (files / "kept", files / "kept" / "deep", running.state / "s3/.versions")
        }
        for path in owners:
            os.chown(path, 0, 0)
            path.chmod(0o555)
        yield
        for path, facts in owners.items():
            os.chown(path, facts.st_uid, facts.st_gid)
            path.chmod(facts.st_mode)


@contextmanager
def disk_of(kind: str, state: Path) -> Iterator[None]:
    if kind == "full":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=400", "tmpfs", state], check=True)
    try:
        yield
    finally:
        if kind == "full":
            subprocess.run(["umount", state], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="It sets limits of another process.")
@pytest.mark.parametrize("kind", ["limited", "full", "anothers"])
def test_what_the_disk_refuses_is_not_acknowledged(kind: str, state: Path) -> None:
    """An error it is, each kind of change; nothing of it is seen then, nor after a kill -9 and a new start. When there
    is room again, the same upload can be completed."""
    if (kind == "limited") == (os.geteuid() == 0):
        pytest.skip("Only root can make the others, which say more.")
    with disk_of(kind, state):
        with ordinary_user.running(state) as running:
            s3 = with_one(running)
            before, upload = versions_of(s3), uploaded(s3)
            oldest = before["versions"][-1][0]["VersionId"]
            with refusing(kind, running):
                assert changes(s3, oldest, upload) == [500] * 7
                assert versions_of(s3) == before
            assert versions_of(s3) == before
            assert status(s3.complete_multipart_upload, **upload) == 200
            after = versions_of(s3)
            assert [body for _, body, _ in after["versions"]].count(b"in parts") == 1
            os.kill(running.pid, signal.SIGKILL)
        with ordinary_user.running(state) as running:
            assert versions_of(running.client("s3")) == after


def test_modes_that_another_changed_are_set_right(state: Path) -> None:
    """An agent of the same user may, with Landlock alone; the directory is the engine's, which opens it again."""
    with ordinary_user.running(state) as running:
        s3 = with_one(running)
        for path in [state, *sorted((state / "s3").rglob("*"))]:
            before = versions_of(s3)
            path.chmod(0)
            assert versions_of(s3) == before
            path.chmod(0)
            assert status(s3.put_object, Key="new", Body=b"new") == 200
            assert status(s3.delete_object, Key="new") == 204
        after = versions_of(s3)
    for path in sorted((state / "s3").rglob("*"), reverse=True):
        path.chmod(0)
    with ordinary_user.running(state) as running:
        assert versions_of(running.client("s3")) == after


def test_what_cannot_be_read_is_an_error_and_no_miss(state: Path) -> None:
    """Bytes that are gone, or not as many as were written: by name, by version, as the source of a copy."""
    with ordinary_user.running(state) as running:
        s3 = with_one(running)
        versions = [one for one, _, _ in versions_of(s3)["versions"] if one["Key"] == "deep/a"]
        for path in [path for path in (state / "s3").rglob("a") if path.is_file()]:
            path.write_bytes(b"tw")
        assert status(s3.get_object, Key="deep/a") == 500
        for path in [path for path in (state / "s3").rglob("a") if path.is_file()]:
            path.unlink()
        assert status(s3.get_object, Key="deep/a") == 500
        assert [status(s3.get_object, **one) for one in versions] == [500, 500]
        assert status(s3.copy_object, Key="c", CopySource={"Bucket": "kept", "Key": "deep/a"}) == 500
        assert status(s3.get_object, Key="c") == 404


@pytest.mark.parametrize("change", ["del s3._read_body", "s3._persist_object = lambda bucket, key: None"])
def test_an_engine_that_keeps_its_files_otherwise_does_not_start(change: str) -> None:
    """A new ministack's S3 has to be looked at first."""
    program = f"from ministack.services import s3; from claude_workflow.local import disk; {change}; disk.install()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "RuntimeError: ministack's S3 writes to its disk in another way" in done.stderr


def test_functions_see_nothing_of_the_users_environment_and_leave_no_process_and_no_file(
    template: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither credentials nor settings of the terminal that started the service. What the engine started is gone
    shortly after, its temporary directory at once."""
    for name in ("ANTHROPIC_API_KEY", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "CLAUDE_CODE_X", "SUPABASE_KEY"):
        monkeypatch.setenv(name, "the user's own")
    with engine.running(tmp_path / "state") as running:
        workflow = Workflow(running, deploy.deploy(running, with_stand_ins(template)), tmp_path)
        environment = json.loads(workflow.run()["output"])["environment"]
        family = [running.pid, *below(running.pid)]
    assert "the user's own" not in environment.values()
    assert environment["S3_BUCKET_NAME"] == BUCKET
    assert environment["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert wait_until_gone(family)
    assert not Path(environment["TMPDIR"]).exists()


def test_the_template_is_made_once(prepared: Path, template: Json) -> None:
    """The second start takes the kept one, and says nothing."""
    said: list[str] = []
    assert deploy.synthesized(prepared.parent, said.append) == template
    assert said == []


def stored(s3: Path, **files: str) -> Path:
    """An object, of which these files are there: `object`, or what lies beside it."""
    path = s3 / "000000000000" / "bucket" / "runs" / "x.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        ending = "" if name == "object" else "." + name.replace("_", ".")
        path.with_name(path.name + ending).write_text(text)
    return path


def lying(path: Path) -> Json:
    names = {file: file.name.removeprefix("x.zip").lstrip(".").replace(".", "_") for file in path.parent.iterdir()}
    return {names[file] or "object": file.read_text() for file in names}


WHOLE: Json = {"object": "old", "meta_json": "{old}"}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({**WHOLE, "tmp": "ne"}, WHOLE),
        ({**WHOLE, "tmp": "new", "meta_json_tmp": "{ne"}, WHOLE),
        ({**WHOLE, "tmp": "new", "meta_json_tmp": "{new}", "old_tmp": "old"}, WHOLE),
        ({**WHOLE, "object": "new", "meta_json_tmp": "{new}", "old_tmp": "old"}, WHOLE),
        ({"object": "new", "meta_json_tmp": "{new}"}, {}),
        ({"object": "new", "meta_json": "{new}", "old_tmp": "old"}, {"object": "new", "meta_json": "{new}"}),
        ({**WHOLE, "meta_json_alone_tmp": "{ne"}, WHOLE),
        ({"object": "new"}, {}),
    ],
)
def test_half_a_write_is_taken_back(files: Json, left: Json, tmp_path: Path) -> None:
    """Wherever the engine ended: only what its description says is there counts, and nothing else stays."""
    path = stored(tmp_path, **files)
    assert mend(tmp_path) == [path]
    assert lying(path) == left
    assert mend(tmp_path) == []


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    """An object as the engine leaves it, and a directory that is not there yet."""
    stored(tmp_path, **WHOLE)
    assert mend(tmp_path) == []
    assert mend(tmp_path / "none") == []


def below(pid: int) -> list[int]:
    """All processes under `pid`."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    children = [child for child, parent in pairs if parent == pid]
    return children + [deeper for child in children for deeper in below(child)]


def wait_until_gone(pids: list[int]) -> bool:
    return eventually(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


FLUSHING = """
import os, sys
from pathlib import Path
from claude_workflow.local import disk
flushed = []
sys.setprofile(lambda frame, event, called: flushed.append(1) if event == "c_call" and called is os.fsync else None)
disk._staged(Path(sys.argv[1], "file"), b"bytes")
staged = len(flushed)
disk._sync(Path(sys.argv[1]))
sys.setprofile(None)
print(staged, len(flushed) - staged)
"""


def test_what_is_acknowledged_was_flushed(tmp_path: Path) -> None:
    """The bytes, and the directory that names them; that the disk has them then, no test can see."""
    done = subprocess.run([sys.executable, "-c", FLUSHING, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1 1\n", done.stderr
