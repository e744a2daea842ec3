"""Checkpoints: what a run leaves that is cut off hard, and how another goes on from there."""

import asyncio
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from claude_workflow.local.model import NOT_PROMPTS, RecordedRequest, ScriptedModel
from lambdas.agent import frames
from lambdas.agent.checkpoint import SHARE, Checkpoints
from lambdas.agent.claude import CONTINUE, Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.outcome import Outcome
from lambdas.agent.proxy import Proxy
from lambdas.agent.scratch import Scratch
from lambdas.agent.upstream import anthropic
from lambdas.archive.unpack import unpack
from lambdas.contract import RunResult, Task
from lambdas.errors import AgentCrashed, ModelRejected, RunTimedOut, StorageUnavailable, WorkflowError
from lambdas.run_claude import RunClaude
from lambdas.settings import AgentSettings
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_servers import listening
from tests.support.kept_checkpoints import LIMITS, Kept
from tests.support.opened import Opened
from tests.support.running import run_claude_of, settings_of
from tests.support.waiting import eventually

SECONDS = 600
"""What a run may take, on a machine that does much else meanwhile."""

THREE = """run echo one >> log
run echo two >> log
run echo three >> log; echo $PPID > {cli}
run echo four >> log
say All four."""
"""Four calls; with the third, the shell tells the process id of its parent, the CLI."""


class Thinking(ScriptedModel):
    """Thinks about its answer to one request until it is told to go on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        """The request's number, from 1."""
        self.go_on = threading.Event()

    async def record(self, request: RecordedRequest) -> None:
        await super().record(request)
        if len(self.requests) == self.at:
            await asyncio.to_thread(self.go_on.wait, SECONDS)


@dataclass
class Cut:
    """Kills the CLI as soon as a checkpoint knows three results, and then lets the model go on."""

    model: Thinking
    cli: Path
    """Where its process id is told."""

    def saved(self, archive: bytes) -> None:
        if results(archive) == 3 and not self.model.go_on.is_set():
            os.kill(int(self.cli.read_text()), signal.SIGKILL)
            self.model.go_on.set()


@pytest.fixture
def thinking() -> Iterator[Thinking]:
    """A model that thinks about the fourth call."""
    with Thinking(at=4) as model:
        yield model


def a_turn(prompt: str) -> Turn:
    return Turn(prompt, claude_session=str(uuid.uuid4()), resume=False)


def run(turn: Turn, saver: Kept, url: str, seconds: float = SECONDS) -> Outcome:
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


@dataclass
class Telling(Kept):
    """Shows each checkpoint that it has."""

    tell: Callable[[bytes], object] = lambda _: None

    def upload(self, archive: BinaryIO, size: int) -> None:
        super().upload(archive, size)
        self.tell(self.archives[-1])


def results(archive: bytes) -> int:
    """The tool results in its transcript."""
    with ZipFile(io.BytesIO(archive)) as opened:
        transcripts = [name for name in opened.namelist() if name.endswith(".jsonl")]
        return sum(opened.read(name).count(b'"type":"tool_result"') for name in transcripts)


@pytest.mark.parametrize("which", [-2, -1], ids=["taken while it ran", "taken when it failed"])
def test_a_run_cut_off_after_three_calls_goes_on_at_the_fourth(which: int, thinking: Thinking, tmp_path: Path) -> None:
    """The first three are in the conversation and not repeated, and the workspace has each effect once."""
    cli = tmp_path / "cli"
    turn = a_turn(THREE.format(cli=cli))
    with Scratch(tmp_path / "session-1") as scratch:
        saver = Telling(scratch, tell=Cut(thinking, cli).saved)
        with pytest.raises(AgentCrashed) as caught:
            run(turn, saver, thinking.url)
    assert len(thinking.requests) == 4
    assert caught.value.cost_usd
    costs = [receipt.usd for receipt in saver.receipts]
    assert costs == sorted(costs)
    assert 0 < costs[-1] <= caught.value.cost_usd
    outcome, log = go_on(turn, saver, thinking.url, which)
    assert (outcome.stop_reason, log) == ("end_turn", ["one", "two", "three", "four"])
    assert len(thinking.requests) == 4 + 2
    assert [command.split()[1] for command in calls(thinking)] == ["one", "two", "three", "four"]
    assert "All four." in str(outcome.result)


def test_a_call_whose_result_was_lost_is_told_as_such(model: ScriptedModel, tmp_path: Path) -> None:
    """A tool that died with the CLI may have done its work: the model learns that, and does not call it unaware."""
    told = """[ "$(grep -o '"type":"tool_use"' ../claude/projects/*/*.jsonl | wc -l)" = 2 ]"""
    die = f"until {told}; do sleep 0.1; done; kill -9 $PPID; sleep 60"  # the transcript is written a moment late
    turn = a_turn(f"run echo one >> log\nrun echo two >> log; {die}\nsay Done.")
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
    saver = Telling(scratch, tell=lambda _: (scratch.root / f"saved-{len(saver.archives)}").touch())
    steps = "\n".join(f"run until [ -e ../saved-{number} ]; do sleep 0.1; done" for number in (1, 2, 3))
    started = "(sh write >/dev/null 2>&1 &) ; until [ -e c ]; do sleep 0.1; done"
    outcome = run(a_turn(f"run {started}\n{steps}"), saver, model.url)
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


def test_checkpoints_take_a_tenth_of_the_time_at_most(scratch: Scratch) -> None:
    """The dearer one is, the later comes the next; the last tool result gets its own when it may."""
    steps = "\n".join(f"run echo {n} >> log" for n in range(8))
    with Thinking(at=9) as model:
        saver = Telling(scratch, delay=0.2, tell=lambda last: model.go_on.set() if results(last) == 8 else None)
        run(a_turn(f"{steps}\nsay Done."), saver, model.url)
    gaps = [later - earlier for earlier, later in pairwise(saver.times)]
    assert gaps
    assert min(gaps) > saver.delay / SHARE
    with ZipFile(io.BytesIO(saver.archives[-1])) as last:
        assert last.read("workspace/log").split()[-1] == b"7"


@dataclass
class Failing(Kept):
    """Storage is not there."""

    asked: threading.Event = field(default_factory=threading.Event)

    def upload(self, archive: BinaryIO, size: int) -> None:
        self.asked.set()
        raise StorageUnavailable(detail=f"staging {size} bytes at {archive.tell()}: S3 answered 503")


def test_a_checkpoint_that_fails_is_told_and_ends_nothing(scratch: Scratch, capfd: pytest.CaptureFixture[str]) -> None:
    """The run's own result is what counts."""
    with Thinking(at=2) as model:
        outcome = run(a_turn("run echo hi"), Failing(scratch, asked=model.go_on), model.url)
    assert outcome.stop_reason == "end_turn"
    assert "no checkpoint: StorageUnavailable" in capfd.readouterr().err


@dataclass
class Endless(Kept):
    """A session that takes for ever to pack."""

    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    packing: float = 0.0
    """Seconds until it was told to end."""

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        began = time.monotonic()
        self.begun.set()
        try:
            while True:
                go_on()
                out.write(b"more")
                time.sleep(0.01)
        finally:
            self.packing = max(self.packing, time.monotonic() - began)
            self.ended.set()


def test_a_checkpoint_stops_the_run_for_a_tenth_of_its_time_at_most(
    model: ScriptedModel, scratch: Scratch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that takes longer is given up, and said to be."""
    saver = Endless(scratch)
    outcome = run(a_turn("run echo hi"), saver, model.url, seconds=40)
    assert outcome.stop_reason == "end_turn"
    assert 0 < saver.packing < 20  # 4 seconds, and what a busy machine adds
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


def message(kind: str, block: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {"type": kind, "message": {"content": [block]}, **fields}


CALL = message("assistant", {"type": "tool_use", "id": "toolu_1"})
RESULT = message("user", {"type": "tool_result", "tool_use_id": "toolu_1"})


@contextmanager
def checkpoints(transcript: Path) -> Iterator[tuple[Checkpoints, Counted, Answers]]:
    saver, answers = Counted(), Answers()
    find = lambda: transcript.open("rb") if transcript.exists() else None  # noqa: E731 - a name for it says no more
    with Checkpoints(saver, answers, nullcontext, find, time.time() + SECONDS) as taking:
        yield taking, saver, answers


def test_answers_are_held_until_the_transcript_has_caught_up(tmp_path: Path) -> None:
    """From the tool result on; a line that is not whole yet does not count."""
    transcript, saver, answers = tmp_path / "transcript.jsonl", Counted(), Answers()
    transcript.touch()
    lines = f"{json.dumps(CALL)}\n{json.dumps(RESULT)}\n"
    looks: list[tuple[int, bool]] = []

    def growing() -> BinaryIO:
        looks.append((saver.count, answers.held))
        if len(looks) > 1:  # what was there before the run does not count
            transcript.write_text(lines if len(looks) > 5 else lines[:-1])
        return transcript.open("rb")

    with Checkpoints(saver, answers, nullcontext, growing, time.time() + SECONDS) as taking:
        taking.note(CALL)
        assert not answers.held
        taking.note(RESULT)
        assert answers.held
        assert eventually(lambda: saver.count == 1)
        assert set(looks[1:]) == {(0, True)}
        assert eventually(lambda: not answers.held)


def test_a_transcript_that_never_catches_up_is_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The answers flow again, and the log says why there is no checkpoint."""
    with checkpoints(tmp_path / "none") as (taking, saver, answers):
        taking.note(RESULT)
        assert eventually(lambda: not answers.held)
    assert saver.count == 0
    assert "no checkpoint: Internal" in capfd.readouterr().err


def test_no_checkpoint_after_the_end(tmp_path: Path) -> None:
    """The run saves everything itself then."""
    with checkpoints(tmp_path / "none") as (taking, saver, answers):
        pass
    taking.note(RESULT)
    assert not answers.held
    assert saver.count == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["user", "system", "result", "tool_result", "tool_use"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "message", "content", "id", "tool_use_id", "uuid"]), inner)
    ),
    max_leaves=12,
)


@given(frame=st.dictionaries(st.sampled_from(["type", "message", "parent_tool_use_id", "uuid", "origin"]), JSON))
@example(frame={"type": "system", "subtype": "permission_denied", "message": "This command would remove …"})
@example(frame={"type": "user", "message": {"content": [{"type": "tool_result"}, "text", None]}})
@example(frame={"type": []})
def test_whatever_claude_code_prints_ends_nothing(frame: dict[str, Any]) -> None:
    """A frame of a shape that nobody knows is passed over by all that looks at it on its way."""
    taking = Checkpoints(Counted(), Answers(), nullcontext, lambda: None, time.time() + SECONDS)
    taking.note(frame)
    assert frames.is_message(frame) in (True, False)
    assert frames.for_the_sdk(frame) in (True, False)
    assert frames.ends(frame, "a prompt") in (True, False)


def test_a_transcript_nested_without_end_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is the agent's to write; the line is passed over, and the checkpoint taken."""
    transcript = tmp_path / "transcript.jsonl"
    with checkpoints(transcript) as (taking, saver, _):
        transcript.write_text("[" * 100_000 + "\n" + json.dumps(RESULT) + "\n")
        taking.note(RESULT)
        assert eventually(lambda: saver.count == 1)
    assert capfd.readouterr().err == ""


def test_the_end_does_not_wait_for_a_checkpoint(tmp_path: Path, scratch: Scratch) -> None:
    """One at work is dropped when the run ends or its deadline comes, and the answers flow."""
    transcript = tmp_path / "transcript.jsonl"
    saver, answers = Endless(scratch), Answers()
    transcript.touch()
    with Checkpoints(saver, answers, nullcontext, lambda: transcript.open("rb"), time.time() + 1e6) as taking:
        taking.note(RESULT)
        transcript.write_text(json.dumps(RESULT) + "\n")
        assert saver.begun.wait(SECONDS)
        assert answers.held
    assert saver.ended.is_set()
    assert not answers.held


@pytest.fixture
def bucket() -> Iterator[GrantedBucket]:
    state = GrantedBucket()
    with listening(BucketHandler, bucket=state) as state.url:
        yield state


def completed(worker: RunClaude, task: Task) -> RunResult:
    """What comes of a run that is no leg of one."""
    result = worker.run(task)
    assert isinstance(result, RunResult)
    return result


def test_the_handler_stages_checkpoints_and_goes_on_from_one(
    bucket: GrantedBucket, thinking: Thinking, tmp_path: Path
) -> None:
    """An attempt that died leaves a checkpoint and no result; the next, given it, ends in the answer."""
    worker = run_claude_of(settings_of(thinking.url, tmp_path))
    session, cli = str(uuid.uuid4()), tmp_path / "cli"
    bucket.saved = Cut(thinking, cli).saved
    bucket.objects["/request"] = json.dumps({"body": {"prompt": THREE.format(cli=cli)}}).encode()
    with pytest.raises(AgentCrashed):
        worker.run(a_task(bucket, "1", session))
    assert set(bucket.puts) == {"/1/started", "/1/receipt", "/1/checkpoint", "/1/messages", "/1/detail"}

    result = completed(worker, a_task(bucket, "2", session, checkpoint="1"))
    assert result.stop_reason == "end_turn"
    assert "All four." in json.loads(bucket.objects["/2/result"])["result"]
    (tmp_path / "opened").mkdir()
    unpack(Opened(bucket.objects["/2/changes"]), tmp_path / "opened", LIMITS)
    assert (tmp_path / "opened/workspace/log").read_text().split() == ["one", "two", "three", "four"]
    assert [re.sub(r";.*", "", command) for command in calls(thinking)] == [
        f"echo {word} >> log" for word in ("one", "two", "three", "four")
    ]


def test_what_is_not_saved_in_time_fails_by_its_name(bucket: GrantedBucket, tmp_path: Path) -> None:
    """Before the function's own limit ends it without a word: with what it cost, and what a replay goes on from."""
    with Thinking(at=2) as model:
        worker = run_claude_of(settings_of(model.url, tmp_path))
        bucket.saved = lambda _: model.go_on.set()
        bucket.objects["/request"] = json.dumps({"body": {"prompt": "run echo one >> log\nsay Done."}}).encode()
        session = str(uuid.uuid4())
        with pytest.raises(RunTimedOut) as caught:
            worker.run(a_task(bucket, "1", session), end=time.time())
        assert (caught.value.cost_usd or 0) > 0
        assert not {"/1/changes", "/1/result"} & set(bucket.puts)
        assert b"could not be saved" in bucket.objects["/1/detail"]
        assert completed(worker, a_task(bucket, "2", session, checkpoint="1")).stop_reason == "end_turn"


def test_the_deadline_comes_earlier_by_what_saving_takes(model: ScriptedModel, scratch: Scratch) -> None:
    """What a run changed is looked at while it goes on: it ends while there is time to save that."""
    made = scratch.workspace / "made"
    saver = Kept(scratch, saving=lambda: 2.0 * SECONDS if made.exists() else 0.0)
    outcome = run(a_turn(f"run touch made; sleep {SECONDS}"), saver, model.url)
    assert outcome.stop_reason == "deadline"
    assert outcome.duration_ms < SECONDS * 1000 / 2


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
    worker = run_claude_of(settings)
    try:
        return completed(worker, task).stop_reason
    except WorkflowError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("filled", "before", "outcome"),
    [("$TMPDIR/full", 0, "end_turn"), ("full", 0, "DiskFull"), ("none", 64, "DiskFull")],
    ids=["what is not kept", "the workspace", "what is not the run's"],
)
def test_a_full_disk(
    filled: str,
    before: int,
    outcome: str,
    bucket: GrantedBucket,
    model: ScriptedModel,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What no session keeps is removed first; a disk without room for a run, or for its archive, fails it by name."""
    with suppress(OSError), (small / "full").open("wb") as file:
        file.write(bytes(before << 20))
    settings = settings_of(model.url, small)
    prompt = f"run cat /dev/urandom > {filled}\nrun echo on > note\nsay Done."
    bucket.objects["/request"] = json.dumps({"body": {"prompt": prompt}}).encode()
    monkeypatch.setenv("TMPDIR", str(small))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(worked, settings, a_task(bucket, "1", str(uuid.uuid4()))).result() == outcome
    (small / "full").unlink()
    assert [path.name for path in small.rglob("*")] == ["agents"]
