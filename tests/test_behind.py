"""A restore behind the start of Claude Code: what the model is asked, and what waits until the session is in place.

The S3 of these tests holds back what is neither at an archive's beginning nor at its end, until it is told to go on."""

import io
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import RecordedRequest, ScriptedModel
from lambdas.agent import behind as behind_start
from lambdas.agent.behind import hides
from lambdas.agent.equipment import NOTHING
from lambdas.agent.restored import Restored
from lambdas.agent.scratch import Scratch
from lambdas.agent.transcript import Transcript
from lambdas.archive.landing import Landing
from lambdas.contract import Grant, LegEnded, RunResult, Task
from lambdas.errors import Internal, RunCancelled, SessionDamaged
from lambdas.receipt import Receipt
from lambdas.run_claude import RunClaude, Saver
from lambdas.strict import Json
from tests.support.archives import DIR, FILE, LINK, ROOTS, item, staged
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_ranges import extent
from tests.support.http_servers import listening
from tests.support.kept_checkpoints import LIMITS
from tests.support.opened import Opened
from tests.support.running import run_claude_of, settings_of
from tests.support.waiting import eventually

BEGINNING, END = 1 << 19, 1 << 20
"""Bytes that are given at once: the first block that is asked for, and the last ones."""
HELD_SECONDS = 0.5
"""So long an answer is seen not to come through."""
ENDED_SECONDS = 0.5
"""So long after the death of its last process, it has been judged what a run came to."""
LARGE = 4 << 20
SECONDS = 60

FIRST = f"""run git init -q . && git config user.email a@b && git config user.name n && echo 1 > kept && git add -A
write {{workspace}}/written: one
read {{workspace}}/kept
tool Edit {{{{"file_path": "{{workspace}}/kept", "old_string": "1", "new_string": "2"}}}}
run git commit -qam first && head -c {LARGE} /dev/urandom > zz"""
"""A repository, a file that was written and one that was edited; behind all of that, a large one."""

SECOND = """run test -s zz && ls
write {workspace}/written: two
write {workspace}/kept: three"""


class Held(BucketHandler):
    """Holds back the middle of the session's archive."""

    go_on: threading.Event

    def do_GET(self) -> None:
        if self.path == "/session" and "Range" in self.headers:
            size = len(self.bucket.objects[self.path])
            start, _ = extent(self.headers["Range"], size)
            if BEGINNING <= start < size - END:
                self.go_on.wait(SECONDS)
        super().do_GET()


@dataclass
class Behind:
    """A session of one turn, and a RunClaude to go on with it."""

    model: ScriptedModel
    bucket: GrantedBucket
    go_on: threading.Event
    worker: RunClaude
    session: str = field(default_factory=lambda: str(uuid.uuid4()))
    attempts: int = 0

    @property
    def workspace(self) -> str:
        return f"{self.worker.settings.scratch}/{self.session}/workspace"

    def asks(self, prompt: str, **more: Any) -> None:
        body = {"prompt": prompt.format(workspace=self.workspace), **more}
        self.bucket.objects["/request"] = json.dumps({"body": body}).encode()

    def task(self, **facts: Any) -> Task:
        """The next attempt, on the session if there is one."""
        self.attempts += 1
        task = a_task(self.bucket, str(self.attempts), self.session)
        if archive := self.bucket.objects.get("/session"):
            grants = replace(task.grants, session=Grant(f"{self.bucket.url}/session", {}))
            task = replace(task, resume=True, size=len(archive), grants=grants)
        return replace(task, **facts)

    def staged(self, name: str) -> Any:
        """What the last attempt staged."""
        return json.loads(self.bucket.objects[f"/{self.attempts}/{name}"])

    def nothing_staged(self) -> bool:
        """Whether the last attempt left nothing to go on from."""
        return not {f"/{self.attempts}/{name}" for name in ("result", "changes", "checkpoint")} & set(self.bucket.puts)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    bucket, go_on, place = GrantedBucket(), threading.Event(), tmp_path_factory.mktemp("behind")
    with ScriptedModel() as model, listening(Held, bucket=bucket, go_on=go_on) as bucket.url:
        made = Behind(model, bucket, go_on, run_claude_of(settings_of(model.url, place)))
        made.asks(FIRST)
        assert isinstance(made.worker.run(made.task()), RunResult)
        bucket.objects["/session"] = bucket.objects["/1/changes"]
        yield made


def begin(behind: Behind, task: Task) -> "Future[RunResult | LegEnded]":
    """A run, as far as the model has been asked and has answered; the session is not in place then."""
    behind.go_on.clear()
    asked = len(behind.model.requests)
    running = ThreadPoolExecutor(1).submit(behind.worker.run, task)
    receipt = f"/{behind.attempts}/receipt"
    eventually(lambda: running.done() or paid(behind.bucket.objects.get(receipt)))
    assert not running.done(), running.exception()
    assert len(behind.model.requests) == asked + 1
    return running


def paid(receipt: bytes | None) -> bool:
    """Whether a call is over, and cost something."""
    return receipt is not None and Receipt.load(json.loads(receipt)).usd > 0


def alive(workspace: str) -> bool:
    """Whether there is a process of the run's."""
    mark, found = f"PWD={workspace}\0".encode(), list[bytes]()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another's, or gone
            found.append(environment.read_bytes())
    return any(mark in each for each in found)


def without_names(request: RecordedRequest) -> bytes:
    """A request without what Claude Code draws anew at each start."""
    return re.sub(rb"device_id[^,]*,", b"", request.raw)


def test_the_model_thinks_while_the_session_lands(behind: Behind) -> None:
    """It is asked what it would be asked with all in place, and its answer waits until that is so: what it then calls
    finds everything. Claude Code knows the files that it has written before, and need not read them again. What a run
    changed is what it changed, and no checkpoint came before."""
    behind.asks(SECOND)
    running = begin(behind, behind.task())
    place = Path(behind.workspace)
    assert {path.name for path in place.iterdir()} == {".git", "written", "kept"}
    assert not (place / ".git/config").exists()
    time.sleep(HELD_SECONDS)
    asked = len(behind.model.requests)
    behind.go_on.set()
    assert isinstance(running.result(), RunResult)
    assert len(behind.model.requests) == asked + 3
    result = behind.staged("result")
    assert "written\nzz" in result["result"]
    assert "Read it again" not in json.dumps(behind.staged("messages"))
    assert [(each["path"], each["change"]) for each in result["files"]] == [
        ("kept", "modified"),
        ("written", "modified"),
    ]

    behind.asks(SECOND, files=[{"path": "brought", "content": "so all is there before"}])
    behind.worker.run(behind.task())
    first, again = list(behind.model.requests)[asked - 1], list(behind.model.requests)[asked + 3]
    assert without_names(first) == without_names(again)


def test_what_does_not_land_fails_by_its_name(behind: Behind) -> None:
    """With what the call has cost that was made meanwhile; the answer is given to nobody."""
    whole = behind.bucket.objects["/session"]
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 1
    behind.bucket.objects["/session"] = bytes(spoiled)
    try:
        behind.asks(SECOND)
        running, asked = begin(behind, behind.task()), len(behind.model.requests)
        behind.go_on.set()
        with pytest.raises(SessionDamaged) as failed:
            running.result()
    finally:
        behind.bucket.objects["/session"] = whole
    assert failed.value.cost_usd
    assert "zz: wrong size or CRC" in behind.bucket.objects[f"/{behind.attempts}/detail"].decode()
    assert len(behind.model.requests) == asked
    assert behind.nothing_staged()


def test_who_ends_a_run_meanwhile_leaves_nothing_half(behind: Behind) -> None:
    """Its session is as it was, and neither a result nor a checkpoint is there of what had landed by then."""
    behind.asks(SECOND)
    running = begin(behind, behind.task())
    behind.bucket.objects[f"/{behind.attempts}/cancel"] = b""
    eventually(lambda: not alive(behind.workspace))
    time.sleep(ENDED_SECONDS)
    behind.go_on.set()
    with pytest.raises(RunCancelled) as cancelled:
        running.result()
    assert cancelled.value.cost_usd
    assert behind.nothing_staged()
    assert not Path(behind.workspace).parent.exists()


@pytest.mark.parametrize(
    ("body", "facts", "settings"),
    [
        ({}, {"resume": False}, {}),
        ({}, {"cut": True}, {}),
        ({"files": []}, {}, {}),
        ({"workspace": {}}, {}, {}),
        ({"repository": {}}, {}, {}),
        ({"approve": "digest"}, {}, {}),
        ({"deny": {}}, {}, {}),
        ({}, {}, {"workspace_instructions": True}),
    ],
)
def test_where_the_workspace_is_looked_at_before_it_is_there_first(
    body: Json, facts: Json, settings: Json, tmp_path: Path
) -> None:
    """By who brings something into it, by a call that waited, by Claude Code itself; and where there is none yet, or
    it is put together of two archives."""
    usual, asked = settings_of("", tmp_path), {"prompt": "Go on."}
    task = replace(a_task(GrantedBucket(), "2", str(uuid.uuid4())), resume=True)
    assert hides(task, asked, usual, NOTHING)
    assert not hides(replace(task, **facts), asked | body, replace(usual, **settings), NOTHING)
    resumed = a_task(GrantedBucket(), "2", str(uuid.uuid4()), checkpoint="1")
    assert not hides(replace(resumed, cut=False), asked, usual, NOTHING)


@pytest.mark.parametrize("spoiled", ["call that waits", "a link for a repository"])
def test_what_shows_late_lands_before_the_start_too(spoiled: str, scratch: Scratch) -> None:
    """A call that waits is made before the model is asked; and what is shown would not tell of a repository that is
    elsewhere: so all is in place then when Claude Code starts."""
    session = str(uuid.uuid4())
    transcript = item(f"claude/projects/w/{session}.jsonl", b'{"type":"attachment","hook_deferred_tool":1}\n')
    folders = [item("claude/projects", mode=DIR | 0o755), item("claude/projects/w", mode=DIR | 0o755)]
    git = item("workspace/.git", b"gitdir: elsewhere")
    items = [*folders, transcript] if spoiled == "call that waits" else [git]
    archive = staged(*ROOTS, *items, item("workspace/file", b"there"))
    landing = Landing(Opened(archive), scratch.root, scratch.landing, LIMITS)
    with behind_start.landing(landing, scratch, session, lambda _: True) as restored:
        assert restored.done()
        assert (scratch.workspace / "file").read_bytes() == b"there"


def test_no_checkpoint_is_taken_of_half_a_session(scratch: Scratch) -> None:
    """One that is tried all the same is none."""
    task = a_task(GrantedBucket(), "2", str(uuid.uuid4()))
    saver = Saver(run_claude_of(settings_of("", scratch.root)), task, scratch, Restored())
    with pytest.raises(Internal, match="the session is not in place yet"):
        saver.pack(io.BytesIO(), lambda: None)
    assert saver.saving_seconds() == 0


def test_what_a_transcript_names_may_be_anything(scratch: Scratch) -> None:
    """Its files are looked for by their names alone, and only what can be a name, and is in the archive, is shown."""
    session = str(uuid.uuid4())
    said = [f"{scratch.workspace}/{name}" for name in ("file", "ü\n", "none", "link", "../claude", "a\0b")]
    named = [*said, "/etc/passwd", "\ud800", "a\0b"]
    calls = [{"input": {"file_path": name, "content": f'"file_path":"{name}"'}} for name in named]
    lines = [json.dumps(call, separators=(",", ":")) for call in calls]
    talk = "\n".join([*lines, '{"file_path":5}', '{"file_path":"cut']).encode()
    folders = [item("claude/projects", mode=DIR | 0o755), item("claude/projects/w", mode=DIR | 0o755)]
    transcript = item(f"claude/projects/w/{session}.jsonl", talk)
    files = [item(f"workspace/{name}", b"there") for name in ("a/b", "file", "ü\n", "other")]
    link = item("workspace/link", b"/etc/passwd", LINK | 0o777)
    archive = staged(*ROOTS, *folders, transcript, item("workspace/a", mode=DIR | 0o755), *files, link)
    landing = Landing(Opened(archive), scratch.root, scratch.landing, LIMITS)
    with behind_start.landing(landing, scratch, session, lambda _: True) as restored:
        assert Transcript(scratch, session).named() == {*said, "/etc/passwd", "a\0b"}
        assert {path.name for path in scratch.workspace.iterdir()} == {"file", "ü\n"}
        assert not restored.done()  # the rest waits until the model is asked, or somebody for it
        assert "workspace/link" in restored.result()
    assert {path.name for path in scratch.workspace.iterdir()} == {"a", "file", "ü\n", "other", "link"}


def test_what_git_obeys_is_not_shown(scratch: Scratch) -> None:
    """Though a tool was called with it: of a repository is shown what tells that there is one, and of what would be
    one without a `.git`, not what makes it one."""
    session = str(uuid.uuid4())
    git = (".git", ".git/HEAD", ".git/config", ".git/hooks", ".git/hooks/a", ".git/objects", ".git/refs")
    names = ("HEAD", "config", "objects", "objects/a", "refs", "refs/a", "sub", "sub/.git", "sub/.git/config")
    folders = {".git", ".git/hooks", ".git/objects", ".git/refs", "objects", "refs", "sub", "sub/.git"}
    talk = "\n".join(f'{{"file_path":"{scratch.workspace}/{name}"}}' for name in (*git, *names)).encode()
    transcript = item(f"claude/projects/w/{session}.jsonl", talk)
    archive = staged(
        *ROOTS,
        *(item(f"claude/{name}", mode=DIR | 0o755) for name in ("projects", "projects/w")),
        transcript,
        *(item(f"workspace/{name}", mode=(DIR if name in folders else FILE) | 0o755) for name in (*git, *names)),
    )
    landing = Landing(Opened(archive), scratch.root, scratch.landing, LIMITS)
    with behind_start.landing(landing, scratch, session, lambda _: True) as restored:
        shown = {str(path.relative_to(scratch.workspace)) for path in scratch.workspace.rglob("*")}
        restored.result()
    hidden = {".git/config", ".git/hooks", ".git/hooks/a", "HEAD", "sub/.git", "sub/.git/config"}
    assert shown == {*git, *names} - hidden
    assert (scratch.workspace / ".git/hooks/a").exists()


def test_a_long_string_takes_little_memory_to_be_read() -> None:
    """Where a file's name would be: as much as the string, and not 130 times that, which is 8 GB of a transcript."""
    looked = r"""if True:
        import resource
        from lambdas.agent.transcript import NAMED

        resource.setrlimit(resource.RLIMIT_DATA, (256 << 20,) * 2)
        for said in (b"a" * (4 << 20), b"a\\\\" * (2 << 20)):
            assert NAMED.findall(b'"file_path":"' + said + b'"') == [b'"' + said + b'"']
            assert not NAMED.findall(b'"file_path":"' + said)
    """
    subprocess.run([sys.executable, "-c", looked], check=True, timeout=SECONDS)
