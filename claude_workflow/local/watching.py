"""StreamRun and ReadSession on this machine: run by the gateway, since the engine gives no answer out before it is
whole.

A hundred who watch one run are no more to the engine than one: what one of them has just asked, the others are told.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from claude_workflow.local.deploy import Deployed
from claude_workflow.local.engine import Engine
from lambdas.bucket.objects import Bucket
from lambdas.read_session import ReadSession
from lambdas.settings import DoorSettings, ReaderSettings
from lambdas.stream_run import POLL_SECONDS, StreamRun
from lambdas.streaming import Handler
from lambdas.strict import Json

FRESH_SECONDS = POLL_SECONDS / 2
"""How old what is told may be."""
KEPT = 16
"""Answers that are kept, of a megabyte at the most."""


def stream(engine: Engine, deployed: Deployed) -> Handler:
    """Both of them, with the settings that they have in the template: who asks for a session asks ReadSession."""
    settings = ReaderSettings.read(deployed.environment("StreamRun"))
    bucket = SharedBucket(engine.client("s3", read_timeout=5), settings.bucket)
    watch = StreamRun(settings, bucket, time.time, time.sleep).stream
    sessions = Bucket(engine.client("s3", read_timeout=60), settings.bucket)
    show = ReadSession(DoorSettings.read(deployed.environment("ReadSession")), sessions, time.time).answer
    return lambda event: (show if "session_id" in event["pathParameters"] else watch)(event)


@dataclass
class _Answers:
    """What was asked within the last moments."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    kept: dict[Any, tuple[float, Any]] = field(default_factory=dict)

    def to(self, question: Any, ask: Callable[[], Any]) -> Any:
        """The answer, which is asked for by whoever comes first; the others wait for it."""
        with self.guard:
            now = time.monotonic()
            asked_at, answer = self.kept.pop(question, (0.0, None))
            if now - asked_at > FRESH_SECONDS:
                asked_at, answer = now, ask()
            self.kept[question] = asked_at, answer
            while len(self.kept) > KEPT:
                del self.kept[next(iter(self.kept))]
            return answer


@dataclass(frozen=True)
class SharedBucket(Bucket):
    """The bucket, for many who ask the same."""

    answers: _Answers = field(default_factory=_Answers)

    def pages(self, prefix: str, after: str = "") -> Iterator[list[Json]]:
        """As they were within the last half second."""
        asked = super().pages
        yield from self.answers.to((prefix, after), lambda: list(asked(prefix, after)))

    def read_part(self, key: str, start: int, most: int) -> bytes:
        """As it was within the last half second."""
        asked = super().read_part
        part: bytes = self.answers.to((key, start, most), lambda: asked(key, start, most))
        return part
