"""ReadRun: where a run stands, for its caller (GET), who may also end it (DELETE); and for the machine, which looks
whether a run that it handed over has ended. Each look is read anew, and changes nothing but the mark of a DELETE.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from lambdas.answer import with_links
from lambdas.bucket import following, record
from lambdas.bucket.client import s3_client
from lambdas.bucket.following import RUNNING, Messages, Standing
from lambdas.bucket.objects import Bucket
from lambdas.errors import InvalidRequest, WorkflowError
from lambdas.proxied import Answer, Asked
from lambdas.settings import ReaderSettings
from lambdas.strict import Json

POLL_SECONDS = 1.0
"""Between two looks of a GET that waits for news."""


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: API Gateway's proxy event → its answer, or the machine's `{look}` → what it saw."""
    return state().look(event["look"]) if "look" in event else state().answer(event)


@cache
def state() -> "ReadRun":
    """ReadRun by the function's environment, made once in a warm function."""
    settings = ReaderSettings.read(os.environ)
    return ReadRun(settings, Bucket(s3_client(), settings.bucket), time.time, time.sleep)


@dataclass(frozen=True)
class ReadRun:
    """Tells of runs what is recorded of them."""

    settings: ReaderSettings
    bucket: Bucket
    now: Callable[[], float]
    pause: Callable[[float], None]

    def answer(self, event: Json) -> Json:
        """What is answered to a request."""
        try:
            answer = self._answered(Asked.of(event, self.settings))
        except WorkflowError as error:
            answer = Answer.refused(error)
        return answer.dump(self.settings)

    def look(self, look: Json) -> Json:
        """What a POST's execution sees of the execution that it waits for (`contract.Look`)."""
        run_id = look["run_id"]
        if response := record.response(self.bucket, run_id):
            return {"next": "answered", "response": with_links(response, self.bucket)}
        failure = record.failure(self.bucket, run_id)
        if failure and failure["execution"] == look["execution"]:
            return {"next": "failed", "failure": following.public(failure)}
        return {"next": "look"}

    def _answered(self, asked: Asked) -> Answer:
        if asked.resource.endswith("/events"):  # of which GET is StreamRun's
            return Answer.not_allowed("GET")
        if asked.method == "GET":
            return self._seen(following.asked(self.bucket, asked.run_id, asked.caller), _seconds(asked))
        if asked.method == "DELETE":
            return self._cancelled(following.asked(self.bucket, asked.run_id, asked.caller))
        return Answer.not_allowed("GET, DELETE")

    def _seen(self, asked: Json, seconds: float) -> Answer:
        """Where the run stands; if it goes on, after `seconds` at the most, or as soon as there is news."""
        until = self.now() + min(seconds, self.settings.wait)
        messages = Messages(self.bucket)
        standing = self._look(asked, messages)
        before = messages.count
        while standing.status == RUNNING and messages.count == before and self.now() < until:
            self.pause(POLL_SECONDS)
            standing = self._look(asked, messages)
        if standing.ended is not None:
            return Answer.of(standing, self.bucket)
        return Answer(200, following.progress(self.bucket, standing, messages.count))

    def _look(self, asked: Json, messages: Messages) -> Standing:
        standing = self._standing(asked)
        if standing.ended is None:
            for _ in messages.new(standing.attempts):
                pass
        return standing

    def _standing(self, asked: Json) -> Standing:
        return following.standing(self.bucket, asked, self.settings.lease_of(asked), self.now())

    def _cancelled(self, asked: Json) -> Answer:
        """Marks the run as one that its caller wants to end. One that has ended is answered with its end."""
        standing = self._standing(asked)
        if standing.ended is not None:
            return Answer(200, Answer.of(standing, self.bucket).body)
        if not standing.cancelled:
            record.cancel(self.bucket, asked["run_id"])
        ids = {"session_id": asked["session_id"], "run_id": asked["run_id"]}
        return Answer(202, {"success": True, "status": "cancelling", **ids})


def _seconds(asked: Asked) -> float:
    """For how long a GET waits for news. Raises `InvalidRequest`."""
    try:
        seconds = float(asked.query.get("wait", "0"))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequest("The parameter wait must be a number of seconds, from 0.")
    return seconds
