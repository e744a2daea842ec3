"""A repository in, a branch out: what a run begins with that names one, through RunClaude with the real CLI and git."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from lambdas.agent.credential import Secret
from lambdas.agent.environment import lent
from lambdas.agent.git import upstreams
from lambdas.agent.processes import _left_of
from lambdas.agent.proxy import Proxy
from lambdas.agent.repository import Repository
from lambdas.agent.scratch import Scratch
from lambdas.agent.transfer import Transfer
from lambdas.agent.upstream import anthropic
from lambdas.archive.format import Limits
from lambdas.archive.unpack import unpack
from lambdas.contract import Grant, RunResult, Task
from lambdas.errors import (
    ModelUnauthorized,
    NotAsked,
    RefNotFound,
    RepositoryRefused,
    RepositoryUnavailable,
    RunCancelled,
    SessionTooLarge,
    WorkflowError,
    WorkspaceTaken,
)
from lambdas.repositories import Repositories
from lambdas.run_claude import RunClaude
from tests.support.git_host import TOKEN, GitHost, git_host
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_servers import listening
from tests.support.kept_checkpoints import LIMITS
from tests.support.opened import Opened
from tests.support.running import settings_of

IDENTITY = (("name", "Claude of Acme"), ("email", "claude@acme.example"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    """A host with a repository."""
    with git_host(tmp_path_factory.mktemp("host")) as made:
        made.make("acme/site", page="hello", script="echo 1")
        yield made


@pytest.fixture
def host(served: GitHost) -> GitHost:
    """The host, with nothing asked of it yet."""
    served.forget()
    return served


@pytest.fixture
def bucket() -> Iterator[GrantedBucket]:
    """As much of S3 as a run needs."""
    made = GrantedBucket()
    with listening(BucketHandler, bucket=made) as made.url:
        yield made


def entries_of(host: GitHost) -> tuple[Repositories, ...]:
    return (Repositories(host.host, ("acme/*",), push=True, secret="GIT_TOKEN"),)


def worker_of(model: ScriptedModel, host: GitHost, place: Path) -> RunClaude:
    """RunClaude of a deployment that has the host in its setting."""
    entries, protected = entries_of(host), ("main",)
    settings = settings_of(model.url, place)
    settings = replace(settings, git_identity=IDENTITY, repositories=entries, protected_branches=protected)
    lent = {"GIT_TOKEN": Secret(lambda: host.token)}
    return RunClaude(settings, Transfer(), [anthropic(Secret(lambda: "key"), model.url)], lent=lent)


def answered(worker: RunClaude, bucket: GrantedBucket, task: Task, **body: Any) -> dict[str, Any]:
    """What a run staged as its result."""
    bucket.objects["/request"] = json.dumps({"body": body}).encode()
    assert isinstance(worker.run(task), RunResult)
    attempt = task.grants.result.url.rsplit("/", 2)[1]
    result: dict[str, Any] = json.loads(bucket.objects[f"/{attempt}/result"])
    return result


def next_of(task: Task, bucket: GrantedBucket, attempt: str, result: dict[str, Any]) -> Task:
    """The session's next turn, on what the first one staged."""
    later = a_task(bucket, attempt, task.claude_session)
    session = Grant(task.grants.changes.url, {})
    size = len(bucket.objects["/1/changes"])
    grants = replace(later.grants, session=session)
    return replace(later, resume=True, size=size, directory=result["session_directory"], grants=grants)


def test_a_repository_in_and_a_branch_out(
    model: ScriptedModel, host: GitHost, bucket: GrantedBucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first turn finds the clone, and pushes a branch of its own; the next one fetches what others did meanwhile,
    and is not cloned into again. The token of the deployment is in nothing that is left."""
    worker, first = worker_of(model, host, tmp_path), a_task(bucket, "1", str(uuid.uuid4()))
    wanted = {"url": f"{host.url}/acme/site", "ref": "main"}
    push = "git switch -c work && echo more >> page && git commit -qam more && git push origin work; env"
    result = answered(worker, bucket, first, prompt=f"run {push}", repository=wanted, append_system_prompt="Be brief.")
    assert "[new branch]" in result["result"]
    pushed = host.head("acme/site", "work")
    log = host.git("-C", str(host.root / "acme/site.git"), "log", "-1", "--format=%an %ae %s", pushed)
    assert log == "Claude of Acme claude@acme.example more"
    system = json.dumps(model.requests[0].body["system"])
    assert f"- {host.host}/acme/* (read and push)" in system
    assert "nothing can be pushed to: main." in system
    assert system.count("Be brief.") == 1

    later = host.commit("acme/site", "work", "later")
    prompt = "run git pull -q --ff-only origin work && git log -2 --format=%H && git status --short"
    task = next_of(first, bucket, "2", result)
    told = answered(worker, bucket, task, prompt=prompt, repository=wanted)
    assert f"{later}\n{pushed}" in told["result"]

    (tmp_path / "opened").mkdir()
    unpack(Opened(bucket.objects["/1/changes"]), tmp_path / "opened", LIMITS)
    left = {str(path): path.read_bytes() for path in (tmp_path / "opened").rglob("*") if path.is_file()}
    config = left[str(tmp_path / "opened/workspace/.git/config")].decode()
    assert f"url = {host.url}/acme/site\n" in config
    assert "key" not in config
    logged = "".join(capfd.readouterr()).encode()
    asked = b"".join(request.raw for request in model.requests)
    for form in (TOKEN.encode(), b"Basic "):
        assert [name for name, content in {**left, **bucket.objects}.items() if form in content] == []
        assert form not in logged + asked


def test_what_cannot_be_cloned_asks_the_model_nothing(
    model: ScriptedModel, host: GitHost, bucket: GrantedBucket, tmp_path: Path
) -> None:
    """Its reason is git's, which the operator gets; a turn that goes on is not cloned for again."""
    worker, session = worker_of(model, host, tmp_path), str(uuid.uuid4())
    none = {"url": f"{host.url}/acme/none"}
    with pytest.raises(RepositoryRefused):
        answered(worker, bucket, a_task(bucket, "1", session), prompt="hello", repository=none)
    assert b"not found" in bucket.objects["/1/detail"]
    assert set(bucket.puts) == {"/1/started", "/1/detail"}
    assert not model.requests


def cloned(
    scratch: Scratch,
    host: GitHost,
    limits: Limits = LIMITS,
    seconds: float = 60,
    cancelled: Callable[[], bool] = lambda: False,
    **said: Any,
) -> None:
    """The step by itself."""
    wanted = Repository.of({"url": f"{host.url}/acme/site", **said})
    with Proxy(upstreams(entries_of(host), lambda _: Secret(lambda: host.token))) as proxy:
        wanted.clone(scratch, lent(scratch, proxy), proxy, limits, time.time() + seconds, cancelled)


def test_a_commit_a_tag_and_a_depth(host: GitHost, scratch: Scratch) -> None:
    """A commit may be one that is no branch's any more, as hosts allow."""
    url, first = host.make("acme/long", page="hello", script="echo 1"), host.head("acme/long", "main")
    host.commit("acme/long", "main", "second", page="changed")
    host.git("-C", str(host.root / "acme/long.git"), "config", "uploadpack.allowAnySHA1InWant", "true")
    cloned(scratch, host, url=url, ref=first, depth=1)
    git = scratch.workspace / ".git"
    assert ((git / "HEAD").read_text().strip(), (scratch.workspace / "page").read_text()) == (first, "hello")
    assert (git / "shallow").exists()
    assert sorted(path.name for path in scratch.workspace.iterdir()) == [".git", "page", "script"]


def test_a_workspace_that_has_it_stays_as_it_is(host: GitHost, scratch: Scratch) -> None:
    """Its host is not even asked; files that are nobody's are left beside the clone's."""
    (scratch.workspace / "notes").write_text("mine")
    cloned(scratch, host)
    (scratch.workspace / "page").write_text("my work")
    host.asked.clear()
    cloned(scratch, host, url=f"{host.url}/acme/site.git")
    assert (scratch.workspace / "page").read_text() == "my work"
    assert (scratch.workspace / "notes").read_text() == "mine"
    assert host.asked == []


def test_an_empty_repository_is_one_to_begin(host: GitHost, scratch: Scratch) -> None:
    """With nothing to check out."""
    host.git("init", "--quiet", "--bare", str(host.root / "acme/new.git"))
    cloned(scratch, host, url=f"{host.url}/acme/new")
    assert [path.name for path in scratch.workspace.iterdir()] == [".git"]


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ({"ref": "nowhere"}, RefNotFound),
        ({"ref": "0" * 40}, RefNotFound),
        ({"url": "{host}/acme/none"}, RepositoryRefused),
        ({"url": "{host}/other/site"}, RepositoryRefused),
        ({"limits": Limits(1, 1 << 30, 100)}, SessionTooLarge),
        ({"limits": Limits(100, 10_000, 100)}, SessionTooLarge),
        ({"seconds": 0}, NotAsked),
    ],
    ids=["no such branch", "no such commit", "none", "another's", "many files", "many bytes", "late"],
)
def test_a_clone_fails_by_a_name_that_helps(
    said: dict[str, Any], failure: type[WorkflowError], host: GitHost, scratch: Scratch
) -> None:
    """What is the request's mistake is told from what is the session's limit."""
    said = {name: value.format(host=host.url) if name == "url" else value for name, value in said.items()}
    with pytest.raises(WorkflowError) as caught:
        cloned(scratch, host, **said)
    assert type(caught.value) is failure


def test_a_token_that_nobody_set_is_not_the_hosts_failure(host: GitHost, scratch: Scratch) -> None:
    """A repeat would not help: the operator has to set it."""

    def unset() -> str:
        raise ModelUnauthorized(detail="GIT_TOKEN")

    wanted = Repository(f"{host.url}/acme/site")
    with Proxy(upstreams(entries_of(host), lambda _: Secret(unset))) as proxy, pytest.raises(RepositoryRefused):
        wanted.clone(scratch, lent(scratch, proxy), proxy, LIMITS, time.time() + 60, lambda: False)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_host_that_fails_may_be_asked_again(status: int, host: GitHost, scratch: Scratch) -> None:
    """The error says so."""
    host.fails = status
    with pytest.raises(RepositoryUnavailable):
        cloned(scratch, host)


@pytest.mark.parametrize(
    ("said", "failure"), [({"cancelled": lambda: True}, RunCancelled), ({"seconds": 0.5}, NotAsked)]
)
def test_a_clone_that_takes_long_ends_when_it_has_to(
    said: dict[str, Any], failure: type[WorkflowError], host: GitHost, scratch: Scratch
) -> None:
    """With its run, or with the time that the run has; nothing of it stays at work."""
    host.holds.clear()
    with pytest.raises(failure):
        cloned(scratch, host, **said)
    host.holds.set()
    assert _left_of(scratch.root, None) == []


def test_what_is_in_the_workspace_is_not_overwritten(host: GitHost, scratch: Scratch) -> None:
    """Neither a file of the same name, nor another repository."""
    (scratch.workspace / "page").write_text("mine")
    with pytest.raises(WorkspaceTaken) as caught:
        cloned(scratch, host)
    assert "page" in caught.value.detail
    assert (scratch.workspace / "page").read_text() == "mine"
    with pytest.raises(WorkspaceTaken):
        cloned(scratch, host, url=f"{host.url}/acme/another")
