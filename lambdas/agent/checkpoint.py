"""Checkpoints: the state of a run, saved as it goes, so that a replay of a run that died goes on where it stood.

**When.** After every tool result, but not so often that more than a tenth of the run's time goes into it; the last
result gets its checkpoint when it may. None after the run's result, which saves everything itself.

**What is consistent.** A replay must not repeat what the workspace holds already. So the transcript in a checkpoint
has to know every call that may have left a trace there. The proxy holds back the model's answers: from then on no
new tool begins. The CLI writes its transcript a moment late: that is waited for. Then all processes are stopped,
the tree is packed, and they go on; the upload is beside them. A tool that was at work meanwhile is in the transcript
as a call without a result, and the CLI tells the model so when it resumes. Where the model thinks longer than this
takes, which is the rule, nobody waits for anything.

**It is insurance.** A checkpoint that cannot be taken (the disk is full, the session too large, S3 not there) says so
in the function's log, is tried again, and does not end the run: its own result is what counts, and the checkpoint
before stays good.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from io import FileIO
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from lambdas.agent.frames import blocks, kind
from lambdas.errors import Internal, WorkflowError
from lambdas.strict import Json

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

REST_SECONDS = 0.5
"""The least time between two checkpoints."""

SHARE = 0.1
"""How much of the run's time may go into checkpoints; also how much of what it has left one may stop it for."""

FREEZE_SECONDS = 0.5
"""How long a checkpoint may stop the run in any case."""

SETTLE_SECONDS = 0.15
"""How late CLI 2.1.330 writes to its transcript: measured 0.02 to 0.16, on a machine with three times its load."""

LAG_SECONDS = 1.0
"""How long it is waited for where it takes longer."""

CLOSE_SECONDS = 1.0
"""How long the end waits for a checkpoint that is being given up; nothing but S3 can make that long."""

UPLOAD_SECONDS = 15.0
"""How long it waits where another one follows, which the one before must not take the place of."""

TRANSCRIPT_BYTES = 256 * 1024 * 1024
"""How much of a transcript is looked through at a time. It is the agent's to write, so it may be anything."""


class Saver(Protocol):
    """Where a checkpoint goes."""

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        """Write the session to `out`, asking `go_on` (which may raise) all the time, and return its size in bytes."""

    def upload(self, archive: BinaryIO, size: int) -> None:
        """Make it the checkpoint of this attempt."""


class Answers(Protocol):
    """What lets the model's answers through: the proxy."""

    def hold(self) -> None:
        """Nothing more, from now on."""

    def release(self) -> None:
        """Go on."""


class Checkpoints:
    """Takes the checkpoints of one run, in a thread of its own while the `with` block lasts."""

    def __init__(
        self,
        saver: Saver,
        answers: Answers,
        frozen: Callable[[], AbstractContextManager[None]],
        transcript: Callable[[], BinaryIO | None],
        deadline: float,
    ) -> None:
        self._saver = saver
        self._answers = answers
        self._frozen = frozen
        self._transcript = _Transcript(transcript)
        self._deadline = deadline
        self._changed = threading.Condition()
        self._wanted = False
        self._due = 0.0
        self._closed = self._settling = False
        self.staged = False
        """Whether one is there, to go on from."""
        self._thread = threading.Thread(target=self._work, daemon=True)

    def note(self, message: Json) -> None:
        """To be called with every message of the CLI, as soon as it is there."""
        ids = _ids(message)
        with self._changed:
            if message.get("parent_tool_use_id") is None:  # a subagent's are in a transcript of their own
                self._transcript.expected |= ids
            self._wanted |= kind(message) == "user" and bool(ids)
            if self._wanted and self._due <= time.monotonic() and not self._closed:
                self._answers.hold()  # now: the next answer may be here before the thread is
            self._changed.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close(CLOSE_SECONDS)
        self._answers.release()

    def settle(self, calls: Collection[str], seconds: float) -> bool:
        """Take no more checkpoints and let no more answers through, and wait until the transcript has caught up, the
        results of these calls included; whether it has, after so many seconds at the most."""
        self._settling = True
        self._close(UPLOAD_SECONDS)
        self._answers.hold()
        self._transcript.expected |= {f"result {each}" for each in calls}
        until = time.monotonic() + seconds
        time.sleep(SETTLE_SECONDS)
        while not self._transcript.complete():
            if time.monotonic() > until:
                return False
            time.sleep(SETTLE_SECONDS / 4)
        return True

    def _close(self, seconds: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _release(self) -> None:
        if not self._settling:
            self._answers.release()

    def last(self) -> None:
        """The checkpoint of a run that failed, whose processes are dead. Not where the one before is the better."""
        end = time.monotonic() + max(FREEZE_SECONDS, self._deadline - time.time())
        with self._insured():
            self._save(nullcontext(), partial(_in_time, end), partial(_in_time, end))

    def _work(self) -> None:
        while self._next():
            began, saved = time.monotonic(), False
            try:
                with self._insured():
                    self._await_transcript()
                    end = time.monotonic() + max(FREEZE_SECONDS, SHARE * (self._deadline - time.time()))
                    self._save(self._frozen(), partial(self._go_on, end), self._go_on)
                    saved = True
            finally:
                self._release()
            with self._changed:
                self._wanted |= not saved
                self._due = time.monotonic() + max(REST_SECONDS, (time.monotonic() - began) / SHARE)

    def _next(self) -> bool:
        """Waits until a checkpoint is to be taken: True. False when there will be none any more."""
        with self._changed:
            while not self._closed:
                left = self._due - time.monotonic()
                if self._wanted and left <= 0:
                    self._wanted, self._due = False, math.inf
                    self._answers.hold()
                    return True
                self._changed.wait(left if self._wanted else None)
        return False

    @contextmanager
    def _insured(self) -> Iterator[None]:
        """What goes wrong here is told and does not end the run (see above)."""
        try:
            yield
        except _Ended:
            pass
        except (WorkflowError, OSError) as failure:
            print(f"no checkpoint: {type(failure).__name__}: {failure}", file=sys.stderr)

    def _await_transcript(self) -> None:
        """Wait until the transcript has caught up."""
        until = time.monotonic() + LAG_SECONDS
        time.sleep(SETTLE_SECONDS)
        while not self._transcript.complete():
            self._go_on(until)
            time.sleep(SETTLE_SECONDS / 4)

    def _save(
        self, frozen: AbstractContextManager[None], packing: Callable[[], None], sending: Callable[[], None]
    ) -> None:
        """Pack, let the run go on, upload; `packing` and `sending` are asked all the time and raise to end it."""
        with TemporaryFile(buffering=0) as file, Leashed(file.fileno(), "r+b", closefd=False) as archive:
            with frozen:
                if not self._transcript.complete():
                    raise Internal(detail="the transcript lags behind")
                archive.go_on = packing
                size = self._saver.pack(archive, packing)
            self._release()
            archive.seek(0)
            archive.go_on = sending
            self._saver.upload(archive, size)
            self.staged = True

    def _go_on(self, end: float = math.inf) -> None:
        if self._closed:
            raise _Ended
        _in_time(end)


class _Ended(Exception):
    """The run has ended: it wants no checkpoint any more."""


def _in_time(end: float) -> None:
    if time.monotonic() > end:
        raise Internal(detail="the checkpoint takes too long")


class Leashed(FileIO):
    """A file that asks at every read and write whether to go on."""

    go_on: Callable[[], None]

    def write(self, data: "ReadableBuffer", /) -> int:
        """Some of it, if the run may go on."""
        self.go_on()
        return super().write(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Some of it, if the run may go on."""
        self.go_on()
        return super().read(size)


class _Transcript:
    """What the CLI has written of the conversation by now."""

    def __init__(self, find: Callable[[], BinaryIO | None]) -> None:
        self._find = find
        self._read = 0
        if file := find():
            with file:
                self._read = os.fstat(file.fileno()).st_size  # what was there before the run is not looked at
        self._found: set[str] = set()
        self.expected: set[str] = set()
        """The calls and results that the CLI has told of."""

    def complete(self) -> bool:
        """Whether all that is expected is there, and the last line is whole."""
        text = self._news()
        end = text.rfind(b"\n") + 1
        self._read += end
        for line in text[:end].split(b"\n"):
            with suppress(ValueError, RecursionError):  # not the CLI's writing, then
                self._found |= _ids(json.loads(line))
        return end == len(text) and self.expected <= self._found

    def _news(self) -> bytes:
        file = self._find()
        if file is None:
            return b""
        with file:
            file.seek(self._read)
            return file.read(TRANSCRIPT_BYTES)


def _ids(message: object) -> set[str]:
    """The tool calls in an assistant's message, the results in a user's; of whatever else, none."""
    found = blocks(message) if isinstance(message, dict) else []
    calls = {f"call {block.get('id')}" for block in found if kind(block) == "tool_use"}
    return calls | {f"result {block.get('tool_use_id')}" for block in found if kind(block) == "tool_result"}
