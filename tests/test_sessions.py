"""`claude-workflow sessions purge`: what was removed is gone, what is there stays, and no run is raced."""

import json
import random
import re

from claude_workflow.local.engine import REGION
from claude_workflow.local.guard import BUCKET, ROOT_KEY
from lambdas.bucket.versions import below
from tests.support.archives import ROOTS, item, staged
from tests.support.commands import Serve, command
from tests.support.commits import MIB, archive_of, files_of, gone
from tests.support.past_runs import Past


def versions(history: Past, prefix: str) -> list[str]:
    return [each.key for each in below(history.store, prefix)]


def purge(history: Past, session: str) -> str:
    done = command("sessions", "purge", session, "--state", history.state)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(history: Past, session: str) -> str:
    done = command("sessions", "purge", session, "--state", history.state)
    assert done.returncode == 2
    return done.stderr


def a_session(history: Past) -> str:
    """With two versions of it."""
    session = history.session(history.play("done"))
    history.play("done", session)
    return session


def test_what_was_removed_is_gone(history: Past) -> None:
    """Not a byte of it is in the bucket: not in the archive, its versions, or what runs staged; the rest stays."""
    secret, noise = random.Random(1).randbytes(MIB // 2), random.Random(2).randbytes(6 * MIB)
    kept = (item("workspace/a", noise), item("workspace/c", noise))
    first = history.play("done", archive=staged(*ROOTS, *kept, item("workspace/b", secret)))
    session = history.session(first)
    run = history.play("failed", session, key="cut", ago=120, after="checkpoint")
    assert history.play("done", session, key="cut", archive=staged(gone("workspace/b"))) == run
    assert secret[1000:2000] in archive_of(history.store, session)
    said = purge(history, session)
    assert files_of(archive_of(history.store, session)) == {"a": noise, "c": noise}
    assert secret[1000:2000] not in archive_of(history.store, session)
    assert versions(history, f"{session}.zip") == [f"{session}.zip"]
    for name in (first, run):
        left = {key.rpartition("/")[2] for key in versions(history, f"runs/{name}/")}
        assert left - {"failure.json"} == {"request.json", "base.json", "response.json", "started", "receipt.json"}
    assert "8 staged objects are gone" in said
    assert "What stays: what its runs were asked" in said
    assert "0 dead bytes, 0 older versions and 0 staged objects" in purge(history, session)


OUTPUTS = {"BucketName": BUCKET, "StateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:past"}


def test_a_deployed_stacks_session_is_purged(history: Past) -> None:
    """Its bucket is found by the stack's name, with the ordinary AWS credentials."""
    resource = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "any"}}
    outputs = {name: {"Value": value} for name, value in OUTPUTS.items()}
    body = json.dumps({"Resources": {"Any": resource}, "Outputs": outputs})
    history.engine.client("cloudformation").create_stack(StackName="Deployed", TemplateBody=body)
    session = a_session(history)
    root = {"AWS_ACCESS_KEY_ID": ROOT_KEY, "AWS_SECRET_ACCESS_KEY": history.engine.root}
    account = root | {"AWS_ENDPOINT_URL": history.engine.url, "AWS_DEFAULT_REGION": REGION}
    done = command("sessions", "purge", session, "--stack", "Deployed", env=account)
    assert (done.returncode, "1 older versions" in done.stderr) == (0, True), done.stderr
    assert versions(history, f"{session}.zip") == [f"{session}.zip"]


def test_a_session_that_was_deleted_leaves_no_version(history: Past) -> None:
    """Deleting alone keeps its versions for 30 days."""
    session = a_session(history)
    history.store.delete(f"{session}.zip")
    assert "No version of it is left" in purge(history, session)
    assert versions(history, f"{session}.zip") == []


def test_a_session_at_work_is_refused(history: Past) -> None:
    """A purge takes the lease like a run, and gives it back; of a run that died it takes it over."""
    session = a_session(history)
    history.play("claimed", session, ago=50)
    assert history.lease(session)
    purge(history, session)
    assert len(versions(history, f"{session}.zip")) == 1
    assert history.lease(session) is None
    history.play("done", session, ago=2)
    history.play("claimed", session, ago=1)
    assert re.search(rf"A run is working on {session}. Try again in \d+ seconds", refused(history, session))
    assert len(versions(history, f"{session}.zip")) == 2


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
