"""StreamRun: a run's messages as they come, as server-sent events, and at last its answer.

    retry: 1000

    id: 1
    event: message
    data: {…}               as Claude Code printed it

    : still running         where there is no news for a while

    id: 2
    event: answer           one more than there are messages; what a POST is answered, as GET
    data: {…}

A stream that ends without an answer is not the run's end: the client comes back with the last id that it saw, in
`Last-Event-ID` or `?last_event_id=`, and gets what is behind it. Behind the answer there is nothing (204), at which a
browser's EventSource gives up coming back.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from lambdas import strict
from lambdas.bucket import following
from lambdas.bucket.client import s3_client
from lambdas.bucket.following import LOST, RUNNING, Messages, Standing
from lambdas.bucket.objects import Bucket
from lambdas.errors import InvalidRequest, WorkflowError
from lambdas.proxied import Answer, Asked, common
from lambdas.settings import ReaderSettings
from lambdas.streaming import Streamed
from lambdas.strict import Json

POLL_SECONDS = 1.0
STREAM_SECONDS = 300
"""How long a stream lasts. Whoever left is noticed by nobody in AWS, and the function is paid for until its end."""
SILENT_SECONDS = 15
"""After how long without news the client is told that the stream is alive."""
COME_BACK_MS = 1000
LOST_MS = 60_000
"""When a client is to come back: of a run that is lost, which nobody is at work on, seldom."""


def handler(event: Json) -> Streamed:
    """The entry point (`lambdas.streaming`): API Gateway's proxy event → the answer, as it comes."""
    return state().stream(event)


@cache
def state() -> "StreamRun":
    """StreamRun by the function's environment, made once in a warm function."""
    settings = ReaderSettings.read(os.environ)
    return StreamRun(settings, Bucket(s3_client(), settings.bucket), time.time, time.sleep)


@dataclass(frozen=True)
class StreamRun:
    """Tells of a run what comes of it."""

    settings: ReaderSettings
    bucket: Bucket
    now: Callable[[], float]
    pause: Callable[[float], None]

    def stream(self, event: Json) -> Streamed:
        """The answer to a request. Its pieces are empty where there is no news: about once a second."""
        headers = common(self.settings)
        try:
            request = Asked.of(event, self.settings)
            last = _last(request)
            asked = following.asked(self.bucket, request.run_id, request.caller)
            if last and self._knows_the_end(asked, last):
                return Streamed(204, headers, iter(()))
        except WorkflowError as error:
            answer = Answer.refused(error)
            headers |= {"Content-Type": "application/json", **answer.headers}
            return Streamed(answer.status, headers, iter([answer.text]))
        headers |= {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        return Streamed(200, headers, self._events(asked, last))

    def _knows_the_end(self, asked: Json, last: int) -> bool:
        """Whether the run has ended, and the event `last` was its answer."""
        messages = Messages(self.bucket)
        standing = self._look(asked, messages)
        return standing.ended is not None and last > sum(1 for _ in messages.new(standing.attempts))

    def _look(self, asked: Json, messages: Messages) -> Standing:
        lease = self.settings.lease_of(asked)
        return following.standing(self.bucket, asked, lease, self.now(), messages.attempt)

    def _events(self, asked: Json, last: int) -> Iterator[bytes]:
        """Those behind the event `last`."""
        yield b"retry: %d\n\n" % COME_BACK_MS
        messages, until, said = Messages(self.bucket), self.now() + STREAM_SECONDS, self.now()
        while True:
            standing = self._look(asked, messages)
            for message in messages.new(standing.attempts):
                if messages.count > last:
                    yield _event("message", following.shown(message), messages.count)
                    said = self.now()
            if standing.status != RUNNING:
                yield self._end(standing, messages.count)
                return
            if self.now() >= until:
                return
            alive = self.now() >= said + SILENT_SECONDS
            said = self.now() if alive else said
            yield b": still running\n\n" if alive else b""
            self.pause(POLL_SECONDS)

    def _end(self, standing: Standing, messages: int) -> bytes:
        if standing.status == LOST:
            # Without a number: if it goes on after all, so does the stream.
            lost = strict.written(following.progress(self.bucket, standing, messages))
            return b"retry: %d\n" % LOST_MS + _event("lost", lost)
        return _event("answer", Answer.of(standing, self.bucket).text, messages + 1)


def _last(asked: Asked) -> int:
    """The number of the last event that the client saw; 0 for none. Raises `InvalidRequest`."""
    said = asked.headers.get("last-event-id") or asked.query.get("last_event_id") or "0"
    if not re.fullmatch(r"[0-9]{1,15}", said):
        raise InvalidRequest("Last-Event-ID must be the id of an event of this run.")
    return int(said)


def _event(kind: str, data: bytes, number: int | None = None) -> bytes:
    named = b"id: %d\n" % number if number is not None else b""
    return named + b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
