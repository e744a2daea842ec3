"""`claude-workflow sessions`: what it shows is what there is, what goes in comes out, what is removed is gone, and no
run is raced."""

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.books import opened
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.sessions import export, files, get, listing, put, remove, show
from claude_workflow.cli.sessions.get import Into
from claude_workflow.cli.verify import faults
from claude_workflow.local.engine import REGION
from claude_workflow.local.guard import BUCKET, ROOT_KEY
from lambdas.archive.format import RATIO, Limits
from lambdas.bucket import commit, lease, ledger, versions
from lambdas.bucket.commit import opened as opened_version
from lambdas.bucket.contents import File
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket, ConditionFailed
from lambdas.bucket.versions import below
from lambdas.errors import SessionNotFound
from tests import large_put
from tests.support.archives import DIR, LINK, ROOTS, item, staged
from tests.support.commands import Serve, at_terminal, command, plain
from tests.support.commits import MIB, archive_of, files_of, gone
from tests.support.opened import Opened
from tests.support.ordinary_user import unprivileged
from tests.support.past_runs import CRASH, Past
from tests.support.played_workflow import Execution, Workflow
from tests.support.whole_bucket import mentions


def versions_of(history: Past, prefix: str) -> list[str]:
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
    assert versions_of(history, f"{session}.zip") == [f"{session}.zip"]
    for name in (first, run):
        left = {key.rpartition("/")[2] for key in versions_of(history, f"runs/{name}/")}
        assert left - {"failure.json"} == {"request.json", "base.json", "response.json", "started", "receipt.json"}
    assert "8 staged objects are gone" in said
    assert "What stays: what its runs were asked" in said
    assert "0 dead bytes, 0 older versions and 0 staged objects" in purge(history, session)


LIMITED = {"MaxSessionMb": "1", "MaxSessionFiles": "3"}
OUTPUTS = LIMITED | {"BucketName": BUCKET, "StateMachineArn": "arn:aws:states:us-east-1:000000000000:stateMachine:past"}


def test_a_deployed_stacks_sessions(history: Past, tmp_path: Path) -> None:
    """Their bucket is found by the stack's name, with the ordinary AWS credentials, and what they may weigh."""
    resource = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "any"}}
    outputs = {name: {"Value": value} for name, value in OUTPUTS.items()}
    body = json.dumps({"Resources": {"Any": resource}, "Outputs": outputs})
    history.engine.client("cloudformation").create_stack(StackName="Deployed", TemplateBody=body)
    session = a_session(history)
    root = {"AWS_ACCESS_KEY_ID": ROOT_KEY, "AWS_SECRET_ACCESS_KEY": history.engine.root}
    account = root | {"AWS_ENDPOINT_URL": history.engine.url, "AWS_DEFAULT_REGION": REGION}
    done = command("sessions", "purge", session, "--stack", "Deployed", env=account)
    assert (done.returncode, "1 older versions" in done.stderr) == (0, True), done.stderr
    assert versions_of(history, f"{session}.zip") == [f"{session}.zip"]
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    done = command("sessions", "put", tmp_path, "--stack", "Deployed", env=account)
    assert (done.returncode, "more than 3 files, links and directories" in done.stderr) == (2, True), done.stderr


def test_a_session_that_was_deleted_leaves_no_version(history: Past) -> None:
    """Deleting alone keeps its versions for 30 days."""
    session = a_session(history)
    history.store.delete(f"{session}.zip")
    assert "No version of it is left" in purge(history, session)
    assert versions_of(history, f"{session}.zip") == []


def test_a_session_at_work_is_refused(history: Past) -> None:
    """A purge takes the lease like a run, and gives it back; of a run that died it takes it over."""
    session = a_session(history)
    history.play("claimed", session, ago=50)
    assert history.lease(session)
    purge(history, session)
    assert len(versions_of(history, f"{session}.zip")) == 1
    assert history.lease(session) is None
    history.play("done", session, ago=2)
    history.play("claimed", session, ago=1)
    assert re.search(rf"A run is working on {session}. Try again in \d+ seconds", refused(history, session))
    assert len(versions_of(history, f"{session}.zip")) == 2


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


# --- put, get, list, show, files, export, rm ---


@pytest.fixture
def behind(history: Past) -> Backend:
    """What the commands act on."""
    return Backend(BUCKET, history.state_machine_arn, history.engine, ("--state", str(history.state)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a file, one in a folder, a link, and something that no session keeps."""
    made = tmp_path / "folder"
    (made / "in").mkdir(parents=True)
    (made / "a.txt").write_text("from the folder")
    (made / "in" / "b.sh").write_text("echo b")
    (made / "in" / "b.sh").chmod(0o750)
    (made / "link").symlink_to("nowhere")
    os.mkfifo(made / "fifo")
    return made


Out = pytest.CaptureFixture[str]


def putting(behind: Backend, out: Out, folder: Path, session: str | None = None, caller: str | None = None) -> str:
    """Puts it, and returns the session's id."""
    out.readouterr()
    assert put.run(behind, folder, session, caller) == 0
    return out.readouterr().out.strip()


def metadata(history: Past, session: str) -> dict[str, str]:
    found = versions.newest(history.store, session)
    assert found
    return found[1]


def test_a_project_becomes_a_session_and_comes_out_again(serve: Serve, tmp_path: Path) -> None:
    """With packages, a virtual environment, a repository and its submodule, and all that names and files can be: what
    is not kept is named, and all else comes out as it went in; `python -m tests.large_put` does it with 300 MB."""
    large_put.grow(tmp_path / "project", 1)
    large_put.tried(serve, tmp_path / "project", tmp_path / "out", lambda _: None)


def test_what_was_put_has_no_conversation_yet(history: Past, behind: Backend, folder: Path, capsys: Out) -> None:
    """The first turn, of a fork too, begins one, under the id that is kept for it; the second resumes it. It is its
    caller's alone, and is nobody's cost."""
    session = putting(behind, capsys, folder, caller="alice")
    assert metadata(history, session)["turns"] == "0"
    asked = {"prompt": "x", "session_id": session}
    history.now = time.time()
    with pytest.raises(SessionNotFound):
        history.restore(Execution("e-bob", "bob", asked, "bob"))
    fork = history.restore(Execution("e-fork", "fork", asked | {"fork": True}, "alice"))
    first = history.restore(Execution("e-first", "first", asked, "alice"))
    for restored in (fork, first):
        assert restored.task
        assert (restored.task.resume, restored.task.size > 0) == (False, True)
        assert restored.task.claude_session == metadata(history, session)["claude-session"]
        turn = staged(*ROOTS, item("workspace/turn", b"1"))
        answer = history.persist(restored.claim, history.run(restored.task, archive=turn))
        assert answer["session_cost_usd"] == 0.25
    assert {**files_of(archive_of(history.store, session))}.keys() == {"a.txt", "in/", "in/b.sh", "link", "turn"}
    second = history.restore(Execution("e-second", "second", asked, "alice"))
    assert second.task
    assert (second.task.resume, metadata(history, session)["turns"]) == (True, "1")


def test_a_workspace_is_replaced_and_the_conversation_stays(
    history: Past, behind: Backend, folder: Path, capsys: Out
) -> None:
    """What the folder has not is gone from the session, without a dead byte; its older version stays, as ever."""
    secret = random.Random(3).randbytes(MIB)
    transcript = (item("claude/projects", mode=DIR | 0o755), item("claude/projects/t.jsonl", b"{}"))
    before = staged(*ROOTS, *transcript, item("workspace/a.txt", secret), item("workspace/in", b"now a folder"))
    session = history.session(history.play("done", archive=before))
    told = metadata(history, session)
    assert putting(behind, capsys, folder, session) == session
    archive = archive_of(history.store, session)
    assert files_of(archive) == {"a.txt": b"from the folder", "in/": b"", "in/b.sh": b"echo b", "link": b"nowhere"}
    assert (b"t.jsonl" in archive, secret[1000:2000] in archive) == (True, False)
    kept = ("created", "owner", "turns", "cost-usd", "claude-session")
    assert {name: metadata(history, session)[name] for name in kept} == {name: told[name] for name in kept}
    assert metadata(history, session)["file-count"] == "4"
    assert len(versions_of(history, f"{session}.zip")) == 2
    history.play("done", session, archive=staged(*ROOTS, item("workspace/later", b"1")))
    assert metadata(history, session)["turns"] == "2"
    assert faults(opened(history.store, 0, time.time())) == []


def test_what_cannot_be_put_is_refused_by_name(history: Past, behind: Backend, folder: Path) -> None:
    """Another caller's session, one at work, what no session may weigh, what is no folder: nothing is written."""
    session = a_session(history)
    before = history.objects()
    with pytest.raises(Unusable, match=f"{session} is default's"):
        put.run(behind, folder, session, "alice")
    with pytest.raises(Unusable, match=r"a\.txt is no folder"):
        put.run(behind, folder / "a.txt", None, None)
    with (folder / "sparse").open("wb") as sparse:
        sparse.truncate(2 << 30)
    with pytest.raises(Unusable, match="limit: more than 1,073,741,824 bytes"):
        put.run(behind, folder, session, None)
    assert history.objects() == before
    history.play("claimed", session, ago=1)
    with pytest.raises(Unusable, match="A run is working on"):
        put.run(behind, folder, session, None)


class Twice:
    """An S3 client whose conditional writes arrive, and are repeated as if their answers had been lost; or another
    writer comes before each."""

    def __init__(self, s3: Any, before: Callable[[], object] = lambda: None, times: int = 2) -> None:
        self._s3, self._before, self._times = s3, before, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._s3, name)

    def put_object(self, **asked: Any) -> Any:
        if asked["Key"].endswith(".zip"):
            self._before()
            for _ in range(self._times - 1):
                self._s3.put_object(**asked)
        return self._s3.put_object(**asked)


def test_a_put_meets_its_own_work_and_no_others(history: Past) -> None:
    """A write that was repeated is recognised; where the session has gone on meanwhile, nothing is overwritten."""
    limits, session = Limits(100, MIB, RATIO), a_session(history)
    found = versions.newest(history.store, session)
    assert found
    base, told = found
    archive = Opened(staged(item("workspace", mode=DIR | 0o755), item("workspace/a", b"mine")))
    last = opened_version(history.store, base)
    twice = Bucket(Twice(history.s3), BUCKET)
    commit.put(twice, session, base, last, archive, told | {"run": "put-1"}, limits)
    assert files_of(archive_of(history.store, session))["a"] == b"mine"
    other = Bucket(Twice(history.s3, lambda: history.play("done", session), 1), BUCKET)
    found = versions.newest(history.store, session)
    assert found
    with pytest.raises(ConditionFailed):
        commit.put(other, session, found[0], opened_version(history.store, found[0]), archive, told, limits)
    assert metadata(history, session)["turns"] == "3"


def test_sessions_are_listed_and_shown(history: Past, behind: Backend, folder: Path, capsys: Out) -> None:
    """With what their metadata say; one whose metadata are damaged is there, too."""
    session, damaged = a_session(history), "session-damaged"
    put_there = putting(behind, capsys, folder, caller="alice")
    history.s3.put_object(Bucket=BUCKET, Key=f"{damaged}.zip", Body=b"x", Metadata={"owner": "alice"})
    listing.run(behind, True)
    rows = {row["session_id"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (rows[session]["owner"], rows[session]["turns"], rows[session]["cost_usd"]) == ("default", 2, 0.5)
    assert (rows[put_there]["owner"], rows[put_there]["turns"], rows[put_there]["files"]) == ("alice", 0, 3)
    assert (rows[damaged]["turns"], "created" in rows[damaged]["damage"]) == (None, True)
    show.run(behind, session, True)
    shown = json.loads(capsys.readouterr().out)
    assert shown == rows[session] | {"older_versions": 1, "runs": 2, "at_work": None}
    history.s3.delete_object(Bucket=BUCKET, Key=f"{damaged}.zip")
    for screen in (at_terminal("sessions", "list", "--state", history.state)[1],):
        assert session in plain(screen)
        assert re.search(r"^\d+ sessions, ", plain(screen), re.MULTILINE)
    for missing in (show.run, files.run):
        with pytest.raises(Unusable, match="There is no session session-53"):
            missing(behind, "session-53", False)


def strange(history: Past) -> str:
    """A session whose agent wants to write elsewhere, and to a terminal."""
    names = [item("workspace/\x1b[31mred\nline", b"1"), item("workspace/b", b"2")]
    held = [item("workspace/in", mode=DIR | 0o555), item("workspace/in/c", b"3" * 9000), item("workspace/shut", b"4")]
    links = [item("workspace/away", b"/etc", LINK | 0o777)]
    return history.session(history.play("done", archive=staged(*ROOTS, *names, *held, *links)))


def test_files_are_listed_for_terminals_and_for_pipes(history: Past, behind: Backend, capsys: Out) -> None:
    """Nothing that a terminal obeys; as JSON each path is whole."""
    session = strange(history)
    files.run(behind, session, True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == ["\x1b[31mred\nline", "away", "b", "in", "in/c", "shut"]
    assert rows[4] == {"path": "in/c", "kind": "file", "size": 9000, "modified": "1970-01-01T00:00:01Z", "mode": "0644"}
    screen = at_terminal("sessions", "files", session, "--state", history.state)[1]
    assert "-rw-r--r--               1  1970-01-01T00:00:01Z  \ufffd[31mred\ufffdline" in screen
    assert "dr-xr-xr-x               0  1970-01-01T00:00:01Z  in/" in screen


def test_nothing_is_got_outside_the_folder(history: Past, behind: Backend, tmp_path: Path) -> None:
    """No link on the way is followed, none is written through; what is in the way is named, and what is refused leaves
    nothing behind. A file takes another's place, with its mode and time."""
    session, out, elsewhere = strange(history), tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b").write_text("mine")
    out.mkdir()
    (out / "in").symlink_to(elsewhere)
    (out / "b").symlink_to(elsewhere / "b")
    (out / "shut").mkdir()
    with pytest.raises(Unusable, match=r"in/c cannot be put there: Not a directory"):
        get.run(behind, session, ["in/c"], out)
    with pytest.raises(Unusable, match=r"shut cannot be put there: Is a directory"):
        get.run(behind, session, ["shut"], out)
    with pytest.raises(Unusable, match=r"There is no \.\./b in"):
        get.run(behind, session, ["b", "../b"], out)
    get.run(behind, session, ["./b", "away/"], out)
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"b": "mine"}
    assert sorted(path.name for path in out.iterdir()) == ["away", "b", "in", "shut"]
    assert ((out / "b").read_text(), (out / "b").is_symlink(), (out / "b").stat().st_mtime) == ("2", False, 1.0)
    assert (out / "away").readlink() == Path("/etc")
    get.run(behind, session, ["."], tmp_path / "all")
    assert (tmp_path / "all/in/c").read_text() == "3" * 9000
    assert (tmp_path / "all/in").stat().st_mode & 0o777 == 0o555
    (tmp_path / "all/in").chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o300, 0])
def test_a_shut_folder_is_got_again(mode: int) -> None:
    """By an ordinary user, whom its mode stops; it is shut again when all is in it."""
    folders = [File(path, "folder", 0, 0, mode) for path in ("in/deeper", "in")]
    with TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        for content in (b"1", b"2"):
            with unprivileged(), Into.opened(Path(place)) as into:
                into.make(File("in/deeper/c", "file", 1, 0, 0o644), iter([content]))
                for folder in folders:
                    into.finish(folder)
        modes = []
        for path in (Path(place, "in"), Path(place, "in/deeper")):
            modes.append(path.stat().st_mode & 0o777)
            path.chmod(0o755)
        assert modes == [mode, mode]
        assert Path(place, "in/deeper/c").read_bytes() == b"2"


def test_a_disk_that_takes_one_name_for_another(tmp_path: Path) -> None:
    """As macOS does with a case, and with an accent: the second file does not take the first one's place."""
    with Into.opened(tmp_path) as into:
        into.make(File("Readme", "file", 1, 0, 0o644), iter([b"1"]))
        (tmp_path / "README").hardlink_to(tmp_path / "Readme")  # what such a disk finds by that name
        with pytest.raises(Unusable, match="This disk takes README for another file"):
            into.make(File("README", "file", 1, 0, 0o644), iter([b"2"]))
    assert (tmp_path / "Readme").read_bytes() == b"1"


def test_an_archive_is_exported_whole_or_not(history: Past, behind: Backend, tmp_path: Path, capsys: Out) -> None:
    """As it is in the bucket; what had its name stays where it cannot be had."""
    session, into = strange(history), tmp_path / "s.zip"
    into.write_text("before")
    with pytest.raises(Unusable, match="There is no session session-53"):
        export.run(behind, "session-53", into)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    capsys.readouterr()
    export.run(behind, session, into)
    assert capsys.readouterr().out.strip() == str(into)
    assert into.read_bytes() == archive_of(history.store, session)
    assert [*tmp_path.iterdir()] == [into]


def test_removed_sessions_are_gone(history: Past, behind: Backend, capsys: Out) -> None:
    """Of several those that can be; one at work, and one that is not there, are said, and the exit code tells."""
    gone_by_now, at_work = a_session(history), a_session(history)
    now = time.time()
    lease.take(history.store, at_work, Lease("run-1", "execution", now + 60), now)
    assert remove.sessions(behind, [gone_by_now, at_work, "session-53"]) == 1
    said = capsys.readouterr().err
    assert f"{gone_by_now} is gone: 2 versions and 2 runs, in all 2" in said
    assert f"A run is working on {at_work}." in said
    assert "There is no session session-53." in said
    until = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 30 * 86400))
    assert f"prompts and answers stay until {until} at the latest, in histories/, with files that a " in said
    remove.sessions(replace(behind, stack="Prod"), [gone_by_now])
    told = capsys.readouterr().err
    assert "/aws/vendedlogs/states/Prod has what each state was given and gave, without the session's files, " in told
    assert "but with those that a request brought in its body" in told
    for left in (said, told):
        assert "with files that came in a request's body. And sessions" in left
    assert versions_of(history, f"{gone_by_now}.zip") == versions_of(history, f"index/sessions/{gone_by_now}") == []
    assert len(versions_of(history, f"{at_work}.zip")) == 2


@dataclass(frozen=True)
class Alone(Backend):
    """A bucket with nothing behind it."""

    s3: Any = None

    def client(self, service: str) -> Any:
        """Its own."""
        assert service == "s3"
        return self.s3


def test_nothing_of_a_caller_is_left_in_the_bucket(workflow: Workflow, folder: Path, capsys: Out) -> None:
    """No key, no metadata and no byte of any version names it, its sessions or its runs, or holds what it asked and
    what is its: of a session that was put, of one with turns, a deleted one, one that never was committed. What the
    day's runs cost is as it was, and nothing is missing for `verify`; others' sessions are as they were."""
    store, behind = workflow.store, Alone(workflow.bucket, "", None, s3=workflow.s3)
    workflow.now = time.time()

    def play(caller: str, session: str | None = None, **played: Any) -> str:
        asked = {"prompt": f"{caller} asks"} | ({"session_id": session} if session else {})
        turn = {"archive": staged(*ROOTS, item("workspace/turn", f"{caller} wrote".encode()))}
        execution = Execution(f"execution-{uuid.uuid4()}", str(uuid.uuid4()), asked, caller)
        sessions.append(workflow.execute(execution, **turn | played)["session_id"])
        runs.append(execution.run)
        return sessions[-1]

    runs, sessions = list[str](), list[str]()
    others = play("bob")
    runs.clear()
    sessions.clear()
    (folder / "a.txt").write_text("what carol keeps")
    play("carol", putting(behind, capsys, folder, caller="carol"))
    kept, deleted = play("carol"), play("carol")
    play("carol", fails=CRASH)
    play("carol", kept, fails=CRASH, after="checkpoint")
    store.delete(f"{deleted}.zip")
    texts = ["carol", ledger.caller("carol"), *runs, *sessions]
    assert len(mentions(store, *texts)) > 40
    day = time.strftime("%Y-%m-%d", time.gmtime(workflow.now))
    before, bobs = ledger.entries(store, day, workflow.now), mentions(store, "bob")
    assert remove.of_caller(behind, "carol") == 0
    assert "Nothing in the bucket is carol's any more." in capsys.readouterr().err
    assert mentions(store, *texts) == set()
    after = ledger.entries(store, day, workflow.now)
    assert sum(one.micros for one in after) == sum(one.micros for one in before)
    assert (mentions(store, "bob"), store.head(f"{others}.zip") is None) == (bobs, False)
    assert faults(opened(store, 0, workflow.now)) == []
    with pytest.raises(Unusable, match="There is nothing of carol's"):
        remove.of_caller(behind, "carol")
