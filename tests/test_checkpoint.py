"""Checkpoints: what a run leaves that is cut off hard, and how another goes on from there."""

import asyncio
import http.server
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import pytest

from lambdas.agent.checkpoint import SHARE, Checkpoints
from lambdas.agent.claude import CONTINUE, Outcome, Turn, converse
from lambdas.agent.credentials import Proxy, Secret, anthropic
from lambdas.agent.sandbox import Scratch
from lambdas.contract import Allowance, Grant, Grants, Task
from lambdas.errors import AgentCrashed, ModelRejected, StorageUnavailable, WorkflowError
from lambdas.run_claude import Worker
from lambdas.sessions.grants import Grantee
from lambdas.sessions.unpack import unpack
from lambdas.settings import AgentSettings
from local.model import NOT_PROMPTS, ScriptedModel
from tests.kept import LIMITS, Kept
from tests.opened import Opened
from tests.ranges import extent

KILL = "kill -9 $PPID"
"""The shell's parent is the CLI."""

THREE = f"""run echo one >> log
run echo two >> log
run echo three >> log; (until [ -e ../saved ]; do sleep 0.1; done; {KILL}) >/dev/null 2>&1 &
wait 6
run echo four >> log
say All four."""
"""Three calls, and the CLI dies while the model thinks about the fourth, once a checkpoint knows all three."""


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedModel]:
    """One stand-in for all tests of this file."""
    with ScriptedModel() as served:
        yield served


@pytest.fixture
def model(server: ScriptedModel) -> ScriptedModel:
    """The stand-in, with no requests on its record."""
    server.requests.clear()
    return server


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """The directory of a run."""
    with Scratch(tmp_path / "session-1") as scratch:
        yield scratch


def a_turn(prompt: str) -> Turn:
    return Turn(prompt, claude_session=str(uuid.uuid4()), resume=False)


def run(turn: Turn, saver: Kept, url: str, seconds: float = 60) -> Outcome:
    with Proxy([anthropic(Secret(lambda: "key"), url)]) as proxy:
        return asyncio.run(converse(turn, saver.scratch, proxy, saver, time.time() + seconds))


def go_on(turn: Turn, saver: Kept, url: str, which: int = -1) -> tuple[Outcome, list[str]]:
    """What a replay does: an empty directory, the checkpoint, the continuation; the outcome and the log's lines."""
    with Scratch(saver.scratch.root) as scratch:
        saver.restore(scratch, which)
        outcome = run(replace(turn, prompt=CONTINUE, resume=True), Kept(scratch), url)
        log = scratch.workspace / "log"
        return outcome, log.read_text().split() if log.exists() else []


def calls(model: ScriptedModel) -> list[str]:
    """The commands of the conversation that the last request carries."""
    blocks = [b for m in model.requests[-1].body["messages"] if isinstance(m["content"], list) for b in m["content"]]
    return [block["input"]["command"] for block in blocks if block["type"] == "tool_use"]


class Telling(Kept):
    """Says so in the scratch directory when a checkpoint knows of three results."""

    def upload(self, archive: BinaryIO, size: int) -> None:
        super().upload(archive, size)
        if results(self.archives[-1]) == 3:
            (self.scratch.root / "saved").touch()


def results(archive: bytes) -> int:
    """The tool results in its transcript."""
    with ZipFile(io.BytesIO(archive)) as opened:
        transcripts = [name for name in opened.namelist() if name.endswith(".jsonl")]
        return sum(opened.read(name).count(b'"type":"tool_result"') for name in transcripts)


@pytest.mark.parametrize("which", [-2, -1], ids=["taken while it ran", "taken when it failed"])
def test_a_run_cut_off_after_three_calls_goes_on_at_the_fourth(
    which: int, model: ScriptedModel, tmp_path: Path
) -> None:
    """The first three are in the conversation and not repeated, and the workspace has each effect once."""
    turn = a_turn(THREE)
    with Scratch(tmp_path / "session-1") as scratch:
        saver = Telling(scratch)
        with pytest.raises(AgentCrashed) as caught:
            run(turn, saver, model.url)
    assert len(model.requests) == 4
    assert caught.value.cost_usd
    assert saver.costs == sorted(saver.costs)
    assert 0 < saver.costs[-1] <= caught.value.cost_usd
    outcome, log = go_on(turn, saver, model.url, which)
    assert (outcome.stop_reason, log) == ("end_turn", ["one", "two", "three", "four"])
    assert len(model.requests) == 4 + 2
    assert [command.split()[1] for command in calls(model)] == ["one", "two", "three", "four"]
    assert "All four." in str(outcome.result)


def test_a_call_whose_result_was_lost_is_told_as_such(model: ScriptedModel, tmp_path: Path) -> None:
    """A tool that died with the CLI may have done its work: the model learns that, and does not call it unaware."""
    turn = a_turn(f"run echo one >> log\nrun echo two >> log; sleep 0.5; {KILL}; sleep 5\nsay Done.")
    with Scratch(tmp_path / "session-1") as scratch:
        saver = Kept(scratch)
        with pytest.raises(AgentCrashed):
            run(turn, saver, model.url)
    outcome, log = go_on(turn, saver, model.url)
    assert (outcome.stop_reason, log) == ("end_turn", ["one", "two"])
    assert b"its outcome is unknown" in model.requests[-1].raw


def test_a_run_that_the_provider_refused_in_mid_run_goes_on(model: ScriptedModel, tmp_path: Path) -> None:
    """What waiting does not cure ends the run, with what it has spent; a replay tries the refused step again."""
    turn = a_turn("run echo one >> log\nstatus 413 times 1\nrun echo two >> log\nsay Done.")
    with Scratch(tmp_path / "session-1") as scratch:
        saver = Kept(scratch)
        with pytest.raises(ModelRejected) as caught:
            run(turn, saver, model.url)
    assert (caught.value.cost_usd or 0) > 0
    outcome, log = go_on(turn, saver, model.url)
    assert (outcome.stop_reason, log) == ("end_turn", ["one", "two"])
    assert len(model.requests) == 2 + 2


def test_the_continuation_is_no_prompt_of_the_users() -> None:
    """The stand-in knows it by its beginning."""
    assert CONTINUE.startswith(NOT_PROMPTS)


def test_a_checkpoint_is_one_instant_of_the_run(model: ScriptedModel, scratch: Scratch) -> None:
    """Whatever writes meanwhile: each archive opens, two files written in turn never lie apart, and writing goes on."""
    write = (
        'i=0; while :; do i=$((i+1)); echo $i > a.new; mv a.new a; echo $i > b.new; mv b.new b; echo "$i" >> c; done'
    )
    (scratch.workspace / "write").write_text(write)
    saver = Kept(scratch)
    steps = "\n".join("run sh -c 'sleep 0.8'" for _ in range(6))
    outcome = run(a_turn(f"run (sh write >/dev/null 2>&1 &) ; sleep 0.2\n{steps}"), saver, model.url)
    assert outcome.stop_reason == "end_turn"
    assert len(saver.archives) >= 3
    seen = []
    for archive in saver.archives:
        with ZipFile(io.BytesIO(archive)) as opened:
            a, b, lines = (opened.read(f"workspace/{name}") for name in "abc")
        assert int(a) - int(b) in (0, 1)
        assert len(lines.split()) in (int(b) - 1, int(b))
        seen.append(int(a))
    assert seen == sorted(set(seen))


def test_checkpoints_take_a_tenth_of_the_time_at_most(model: ScriptedModel, scratch: Scratch) -> None:
    """The dearer one is, the later comes the next; the last tool result gets its own when it may."""
    saver = Kept(scratch, delay=0.2)
    steps = "\n".join(f"run echo {n} >> log" for n in range(8))
    for _ in range(3):  # on a busy machine eight seconds may not hold two of them
        saver.times.clear()
        run(a_turn(f"{steps}\nwait 8\nsay Done."), saver, model.url)
        if len(saver.times) > 1:
            break
    gaps = [later - earlier for earlier, later in pairwise(saver.times)]
    assert gaps
    assert min(gaps) > saver.delay / SHARE
    with ZipFile(io.BytesIO(saver.archives[-1])) as last:
        assert last.read("workspace/log").split()[-1] == b"7"


class Failing(Kept):
    """Storage is not there."""

    def upload(self, archive: BinaryIO, size: int) -> None:
        raise StorageUnavailable(detail=f"staging {size} bytes at {archive.tell()}: S3 answered 503")


def test_a_checkpoint_that_fails_is_told_and_ends_nothing(
    model: ScriptedModel, scratch: Scratch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run's own result is what counts."""
    assert run(a_turn("run echo hi\nwait 1"), Failing(scratch), model.url).stop_reason == "end_turn"
    assert "no checkpoint: StorageUnavailable" in capfd.readouterr().err


class Endless(Kept):
    """A session that takes for ever to pack."""

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        while True:
            go_on()
            out.write(b"more")
            time.sleep(0.01)


def test_a_checkpoint_stops_the_run_for_a_tenth_of_its_time_at_most(
    model: ScriptedModel, scratch: Scratch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that takes longer is given up, and said to be."""
    outcome = run(a_turn("run echo hi"), Endless(scratch), model.url, seconds=12)
    assert outcome.stop_reason == "end_turn"
    assert outcome.duration_ms < 10_000
    assert "takes too long" in capfd.readouterr().err


@pytest.mark.parametrize(
    "evil",
    [
        "run mkdir many; cd many; seq 12000 | xargs touch",
        "run (sh -c 'while :; do sleep 0.01 & done' >/dev/null 2>&1 &)",
        "run mkfifo pipe; ln -s / root; truncate -s 100G sparse",
        "run cli=$PPID; (while :; do kill -CONT $cli; done >/dev/null 2>&1 &)",
    ],
    ids=["many files", "forks", "odd files", "continues"],
)
def test_a_hostile_workspace_cannot_hang_the_run(evil: str, model: ScriptedModel, scratch: Scratch) -> None:
    """Whatever it holds or runs, the turn goes on to its end."""
    outcome = run(a_turn(f"{evil}\nwait 1\nrun echo on\nwait 1\nsay Done."), Kept(scratch), model.url)
    assert outcome.stop_reason == "end_turn"


@dataclass
class Answers:
    """In the proxy's place."""

    held: bool = False

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False


@dataclass
class Counted:
    """Counts the checkpoints."""

    count: int = 0

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        go_on()
        return out.write(b"archive")

    def upload(self, archive: BinaryIO, size: int) -> None:
        assert archive.read() == b"archive"[:size]
        self.count += 1

    def spent(self, usd: float) -> None:
        raise AssertionError(f"a checkpoint costs nothing, and not {usd}")


def message(kind: str, block: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {"type": kind, "message": {"content": [block]}, **fields}


CALL = message("assistant", {"type": "tool_use", "id": "toolu_1"})
RESULT = message("user", {"type": "tool_result", "tool_use_id": "toolu_1"})


@contextmanager
def checkpoints(transcript: Path) -> Iterator[tuple[Checkpoints, Counted, Answers]]:
    saver, answers = Counted(), Answers()
    find = lambda: transcript if transcript.exists() else None  # noqa: E731 - a name for it says no more
    with Checkpoints(saver, answers, nullcontext, find, time.time() + 20) as taking:
        yield taking, saver, answers


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 5
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def test_answers_are_held_until_the_transcript_has_caught_up(tmp_path: Path) -> None:
    """From the tool result on; a line that is not whole yet does not count."""
    transcript = tmp_path / "transcript.jsonl"
    with checkpoints(transcript) as (taking, saver, answers):
        taking.note(CALL)
        assert not answers.held
        taking.note(RESULT)
        assert answers.held
        lines = f"{json.dumps(CALL)}\n{json.dumps(RESULT)}\n"
        transcript.write_text(lines[:-1])
        time.sleep(0.3)
        assert (saver.count, answers.held) == (0, True)
        transcript.write_text(lines)
        assert eventually(lambda: saver.count == 1)
        assert not answers.held


def test_a_transcript_that_never_catches_up_is_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The answers flow again, and the log says why there is no checkpoint."""
    with checkpoints(tmp_path / "none") as (taking, saver, answers):
        taking.note(RESULT)
        assert eventually(lambda: not answers.held)
    assert saver.count == 0
    assert "no checkpoint: Internal" in capfd.readouterr().err


def test_no_checkpoint_after_the_result(tmp_path: Path) -> None:
    """The run saves everything itself then."""
    with checkpoints(tmp_path / "none") as (taking, saver, answers):
        taking.note({"type": "result"})
        taking.note(RESULT)
        assert not answers.held
    assert saver.count == 0


def test_the_end_does_not_wait_for_a_checkpoint(tmp_path: Path, scratch: Scratch) -> None:
    """One at work is dropped when the run ends or its deadline comes, and the answers flow."""
    transcript = tmp_path / "transcript.jsonl"
    answers = Answers()
    transcript.touch()
    with Checkpoints(Endless(scratch), answers, nullcontext, lambda: transcript, time.time() + 1000) as taking:
        taking.note(RESULT)
        transcript.write_text(json.dumps(RESULT) + "\n")
        time.sleep(1)
        assert answers.held
        began = time.monotonic()
    assert time.monotonic() - began < 0.9
    assert not answers.held


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_transcript_that_is_no_file_holds_nothing_up(
    make: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The agent may put anything in its place."""
    transcript = tmp_path / "transcript.jsonl"
    with checkpoints(transcript) as (taking, saver, answers):
        make(transcript)
        taking.note(RESULT)
        assert eventually(lambda: not answers.held)
    assert saver.count == 0
    assert "no checkpoint" in capfd.readouterr().err


@dataclass
class Bucket:
    """As much of S3 as grants need: objects by path, in the order in which they came."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)


class BucketHandler(http.server.BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Quiet."""

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.bucket.objects[self.path] = content
        self.bucket.puts.append(self.path)
        self._answer(b"")

    def do_GET(self) -> None:
        content = self.bucket.objects[self.path]
        if "Range" not in self.headers:
            return self._answer(content)
        start, end = extent(self.headers["Range"], len(content))
        return self._answer(content[start:end], f"bytes {start}-{end - 1}/{len(content)}")

    def _answer(self, content: bytes, extent: str | None = None) -> None:
        self.send_response(206 if extent else 200)
        if extent:
            self.send_header("Content-Range", extent)
        self.send_header("ETag", '"etag"')
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    state = Bucket()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (BucketHandler,), {"bucket": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def a_task(bucket: Bucket, attempt: str, claude_session: str, checkpoint: str | None = None) -> Task:
    def grant(name: str) -> Grant:
        return Grant(f"{bucket.url}/{name}", {})

    staged = {
        name: grant(f"{attempt}/{name}")
        for name in ("started", "spent", "checkpoint", "changes", "messages", "result", "detail")
    }
    resumed = grant(f"{checkpoint}/checkpoint") if checkpoint else None
    return Task(
        run_id="run-1",
        session_id="session-1",
        claude_session=claude_session,
        resume=checkpoint is not None,
        cut=checkpoint is not None,
        deadline=time.time() + 60,
        allowance=Allowance(10, 5.0, None, []),
        grants=Grants(request=grant("request"), session=None, resumed=resumed, **staged),
    )


def test_the_handler_stages_checkpoints_and_goes_on_from_one(
    bucket: Bucket, model: ScriptedModel, tmp_path: Path
) -> None:
    """An attempt that died leaves a checkpoint and no result; the next, given it, ends in the answer."""
    settings = AgentSettings(
        provider="anthropic", model_url=model.url, bedrock_model=None, secret_arn="", supabase_url=None,
        max_session_bytes=1 << 30, max_session_files=1000, scratch=str(tmp_path / "agents"),
    )  # fmt: skip
    worker = Worker(settings, Grantee(), [anthropic(Secret(lambda: "key"), model.url)])
    session = str(uuid.uuid4())
    timed = THREE.replace("until [ -e ../saved ]; do sleep 0.1; done", "sleep 4")
    bucket.objects["/request"] = json.dumps({"body": {"prompt": timed}}).encode()
    with pytest.raises(AgentCrashed):
        worker.run(a_task(bucket, "1", session))
    assert set(bucket.puts) == {"/1/started", "/1/spent", "/1/checkpoint", "/1/detail"}

    result = worker.run(a_task(bucket, "2", session, checkpoint="1"))
    assert result.stop_reason == "end_turn"
    assert "All four." in json.loads(bucket.objects["/2/result"])["result"]
    (tmp_path / "opened").mkdir()
    unpack(Opened(bucket.objects["/2/changes"]), tmp_path / "opened", LIMITS)
    assert (tmp_path / "opened/workspace/log").read_text().split() == ["one", "two", "three", "four"]
    assert [re.sub(r";.*", "", command) for command in calls(model)] == [
        f"echo {word} >> log" for word in ("one", "two", "three", "four")
    ]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB, which is all the place there is, as /tmp on Lambda."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("Only root can mount a disk.")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("This container may not mount a disk.")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def worked(settings: AgentSettings, task: Task) -> str:
    """What comes of a run, in a process whose temporary directory is another."""
    worker = Worker(settings, Grantee(), [anthropic(Secret(lambda: "key"), settings.model_url)])
    try:
        return worker.run(task).stop_reason
    except WorkflowError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("filled", "outcome"),
    [("$TMPDIR/full", "end_turn"), ("full", "SessionTooLarge")],
    ids=["what is not kept", "the workspace"],
)
def test_a_full_disk(
    filled: str, outcome: str, bucket: Bucket, model: ScriptedModel, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no session keeps is removed first; a workspace that leaves no room for its archive fails by name."""
    settings = AgentSettings(
        provider="anthropic", model_url=model.url, bedrock_model=None, secret_arn="", supabase_url=None,
        max_session_bytes=1 << 30, max_session_files=1000, scratch=str(small / "agents"),
    )  # fmt: skip
    prompt = f"run cat /dev/urandom > {filled}\nrun echo on > note\nsay Done."
    bucket.objects["/request"] = json.dumps({"body": {"prompt": prompt}}).encode()
    monkeypatch.setenv("TMPDIR", str(small))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(worked, settings, a_task(bucket, "1", str(uuid.uuid4()))).result() == outcome
    assert [path.name for path in small.rglob("*")] == ["agents"]
