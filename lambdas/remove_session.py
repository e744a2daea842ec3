"""RemoveSession: a session of the caller's is removed (DELETE), with all that the bucket holds of it
(`bucket/removal.py`). It is the only function that may delete a session, and does nothing else.
"""

import os
from dataclasses import asdict, dataclass
from functools import cache

from lambdas.bucket import removal
from lambdas.bucket.client import s3_client
from lambdas.bucket.objects import Bucket
from lambdas.errors import SessionNotFound, WorkflowError
from lambdas.proxied import Answer, Asked
from lambdas.request import SESSION_ID
from lambdas.settings import DoorSettings
from lambdas.strict import Json


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: API Gateway's proxy event → its answer."""
    return state().answer(event)


@cache
def state() -> "RemoveSession":
    """RemoveSession by the function's environment, made once in a warm function."""
    settings = DoorSettings.read(os.environ)
    return RemoveSession(settings, Bucket(s3_client(), settings.bucket))


@dataclass(frozen=True)
class RemoveSession:
    """Removes sessions for their callers."""

    settings: DoorSettings
    bucket: Bucket

    def answer(self, event: Json) -> Json:
        """What is answered to a request."""
        try:
            answer = self._removed(Asked.of(event, self.settings))
        except WorkflowError as error:
            answer = Answer.refused(error)
        return answer.dump(self.settings)

    def _removed(self, asked: Asked) -> Answer:
        """Raises `SessionNotFound`, of another caller's too, and `SessionBusy`."""
        session_id = asked.session_id
        is_id = SESSION_ID.fullmatch(session_id) is not None
        if not is_id or removal.owner_of(self.bucket, session_id) != asked.caller:
            raise SessionNotFound(session_id=session_id)
        removed = asdict(removal.remove(self.bucket, session_id))
        return Answer(200, {"success": True, "session_id": session_id, "removed": removed, "stays": removal.STAYS})
