"""`claude-workflow sessions purge`: what was removed is gone, what is there stays, and no run is raced."""

import json
import random
import re

import pytest

from claude_workflow.local.engine import REGION
from claude_workflow.local.guard import BUCKET, ROOT_KEY
from lambdas.bucket.objects import Bucket
from tests.support.archives import ROOTS, item, staged
from tests.support.commands import Serve, command
from tests.support.commits import MIB, archive_of, commit_of, files_of, gone
from tests.support.past_runs import Past


@pytest.fixture
def store(history: Past) -> Bucket:
    return Bucket(history.engine.client("s3"), BUCKET)


def versions(store: Bucket, prefix: str) -> list[str]:
    listed = store.s3.list_object_versions(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]]


def purge(history: Past, session: str) -> str:
    done = command("sessions", "purge", session, "--state", history.state)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(history: Past, session: str) -> str:
    done = command("sessions", "purge", session, "--state", history.state)
    assert done.returncode == 2
    return done.stderr


def test_what_was_removed_is_gone(history: Past, store: Bucket) -> None:
    """Not a byte of it is in the bucket: not in the archive, its versions, or what runs staged; the rest stays."""
    secret, noise = random.Random(1).randbytes(MIB // 2), random.Random(2).randbytes(6 * MIB)
    first = staged(*ROOTS, item("workspace/a", noise), item("workspace/b", secret), item("workspace/c", noise))
    base = commit_of(store, None, first, session="session-50")
    commit_of(store, base, staged(gone("workspace/b")), session="session-50")
    run = history.run(50, "done", session="session-50")
    history.put(f"runs/{run}/0001-aa/started")
    for name in ("changes.zip", "checkpoint.zip", "messages.json"):
        history.put(f"runs/{run}/0001-aa/{name}", secret[:100])
        history.put(f"runs/{run}/0001-aa/{name}", secret[:100])
    assert secret[1000:2000] in archive_of(store, "session-50")
    said = purge(history, "session-50")
    assert files_of(archive_of(store, "session-50")) == {"a": noise, "c": noise}
    assert secret[1000:2000] not in archive_of(store, "session-50")
    assert versions(store, "session-50.zip") == ["session-50.zip"]
    record = {name.removeprefix(f"runs/{run}/") for name in versions(store, f"runs/{run}/")}
    assert record == {"request.json", "response.json", "0001-aa/started"}
    assert "6 staged objects are gone" in said
    assert "What stays: what its runs were asked" in said
    assert "0 dead bytes, 0 older versions and 0 staged objects" in purge(history, "session-50")


OUTPUTS = {"BucketName": BUCKET, "StateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:past"}


def test_a_deployed_stacks_session_is_purged(history: Past, store: Bucket) -> None:
    """Its bucket is found by the stack's name, with the ordinary AWS credentials."""
    resource = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "any"}}
    outputs = {name: {"Value": value} for name, value in OUTPUTS.items()}
    body = json.dumps({"Resources": {"Any": resource}, "Outputs": outputs})
    history.engine.client("cloudformation").create_stack(StackName="Deployed", TemplateBody=body)
    base = commit_of(store, None, staged(*ROOTS), session="session-54")
    commit_of(store, base, staged(item("workspace/x", b"x")), session="session-54")
    root = {"AWS_ACCESS_KEY_ID": ROOT_KEY, "AWS_SECRET_ACCESS_KEY": history.engine.root}
    account = root | {"AWS_ENDPOINT_URL": history.engine.url, "AWS_DEFAULT_REGION": REGION}
    done = command("sessions", "purge", "session-54", "--stack", "Deployed", env=account)
    assert (done.returncode, "1 older versions" in done.stderr) == (0, True), done.stderr
    assert versions(store, "session-54.zip") == ["session-54.zip"]


def test_a_session_that_was_deleted_leaves_no_version(history: Past, store: Bucket) -> None:
    """Deleting alone keeps its versions for 30 days."""
    commit_of(store, None, staged(*ROOTS), session="session-51")
    store.s3.delete_object(Bucket=BUCKET, Key="session-51.zip")
    assert "No version of it is left" in purge(history, "session-51")
    assert versions(store, "session-51.zip") == []


def test_a_session_at_work_is_refused(history: Past, store: Bucket) -> None:
    """A purge takes the lease like a run, and gives it back."""
    base = commit_of(store, None, staged(*ROOTS), session="session-52")
    commit_of(store, base, staged(item("workspace/x", b"x")), session="session-52")
    history.lease("run-1", "session-52", 60)
    assert re.search(r"A run is working on session-52. Try again in \d+ seconds", refused(history, "session-52"))
    assert len(versions(store, "session-52.zip")) == 2
    history.lease("run-1", "session-52", -1)
    purge(history, "session-52")
    assert len(versions(store, "session-52.zip")) == 1
    assert not store.s3.list_objects_v2(Bucket=BUCKET, Prefix="locks/session-52").get("Contents")


def test_no_such_session(history: Past) -> None:
    """Said, with exit code 2; so is what is not a session's id."""
    assert "There is no session session-53." in refused(history, "session-53")
    assert "is not a session's id" in refused(history, "runs/")


def test_a_purged_session_goes_on(serve: Serve) -> None:
    """The next turn knows the conversation and the files."""
    first = json.loads(serve.ask("run echo secret > a.txt; echo kept > b.txt", "--json").stdout)
    session = first["session_id"]
    serve.ask("run rm a.txt", "--session", session)
    done = command("sessions", "purge", session, "--state", serve.state)
    assert (done.returncode, "older versions" in done.stderr) == (0, True), done.stderr
    later = json.loads(serve.ask("run ls; cat b.txt", "--session", session, "--json").stdout)
    assert "Turn 3" in later["result"]
    assert "kept" in later["result"]
    assert "a.txt" not in later["result"].split("run ls")[-1]
