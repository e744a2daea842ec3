"""A session in its operator's hands: no run works on it meanwhile, and what comes in the way is told."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from claude_workflow.cli.endpoint import Unusable
from lambdas.bucket import lease
from lambdas.bucket.lease import Lease
from lambdas.bucket.objects import Bucket, ConditionFailed, Missing
from lambdas.errors import SessionBusy, WorkflowError

LEASE_SECONDS = 900
"""How long a command may keep runs away. If it takes longer, a run that comes makes it fail, and undoes nothing."""


@contextmanager
def telling(session_id: str) -> Iterator[None]:
    """Raises `Unusable` for whatever comes in the way of the work on a session."""
    try:
        yield
    except (ConditionFailed, Missing):
        raise Unusable(f"The session {session_id} has gone on meanwhile. Try again.") from None
    except SessionBusy as busy:
        raise Unusable(f"A run is working on {session_id}. Try again in {busy.retry_after} seconds.") from None
    except WorkflowError as error:
        raise Unusable(error.said if error.said != error.sentence else error.detail or error.said) from error


@contextmanager
def held(bucket: Bucket, session_id: str, does: str) -> Iterator[None]:
    """Takes the session's lease, in the name of what the command `does`, and gives it back. Raises `Unusable` where a
    run has it, and for whatever comes in the way."""
    name = f"{does}-{uuid.uuid4()}"
    now = time.time()
    with telling(session_id):
        lease.take(bucket, session_id, Lease(name, name, now + LEASE_SECONDS), now)
        try:
            yield
        finally:
            lease.free(bucket, session_id, lambda found: found.execution == name)
