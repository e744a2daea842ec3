"""OfferUpload: where a caller may upload what is too large for a request's body, and what the request then calls it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from lambdas import strict
from lambdas.bucket import uploads
from lambdas.bucket.client import s3_client
from lambdas.bucket.objects import Bucket
from lambdas.errors import InvalidRequest, SessionTooLarge, WorkflowError
from lambdas.proxied import Answer, caller
from lambdas.settings import OfferSettings
from lambdas.strict import Json


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: API Gateway's proxy event → its answer."""
    return state().answer(event)


@cache
def state() -> "OfferUpload":
    """OfferUpload by the function's environment, made once in a warm function."""
    settings = OfferSettings.read(os.environ)
    return OfferUpload(settings, Bucket(s3_client(), settings.bucket), time.time)


@dataclass(frozen=True)
class OfferUpload:
    """Gives out addresses; each takes one upload, of the size that was asked for."""

    settings: OfferSettings
    bucket: Bucket
    now: Callable[[], float]

    def answer(self, event: Json) -> Json:
        """What is answered to a request."""
        try:
            answer = self._offered(event) if event["httpMethod"] == "POST" else Answer.not_allowed("POST")
        except WorkflowError as error:
            answer = Answer.refused(error)
        return answer.dump(self.settings)

    def _offered(self, event: Json) -> Answer:
        size, now = self._size(event.get("body")), self.now()
        owner = caller(event["requestContext"]["identity"], self.settings.auth, self.settings.callers)
        upload, grant = uploads.offer(self.bucket, owner, size, now)
        expires = datetime.fromtimestamp(now + uploads.OPEN_SECONDS, UTC)
        told = {"upload": upload, "url": grant.url, "headers": grant.headers}
        return Answer(200, {"success": True, **told, "expires_at": f"{expires:%Y-%m-%dT%H:%M:%SZ}"})

    def _size(self, body: str | None) -> int:
        """Bytes of the upload. Raises `InvalidRequest` and `SessionTooLarge`."""
        try:
            asked = strict.read(body or "")
        except ValueError:
            asked = None
        size = asked.get("size_bytes") if isinstance(asked, dict) and asked.keys() == {"size_bytes"} else None
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidRequest(
                'The body must be {"size_bytes": …}, with the upload\'s size as a whole number from 1.'
            )
        if size > self.settings.max_session_bytes:
            raise SessionTooLarge(
                f"An upload may have {self.settings.max_session_bytes:,} bytes at most, as a session."
            )
        return size
