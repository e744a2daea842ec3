"""The account's event bus, where each run that ends is told of: one event, of ids and figures, with nothing of what was
said. Rules on the bus lead it on, to people, queues and webhooks (docs/events.md).

It is told of once the record says it, and what is told can fail nothing any more.
"""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

from botocore.config import Config
from botocore.session import Session

from lambdas.contract import Claim
from lambdas.errors import RunCancelled
from lambdas.strict import Json

SOURCE = "claude-agent-workflow"
"""Who tells it. The roles may say nothing in another's name."""
RUN_ENDED = "Run Ended"
"""What it tells of: the event's `detail-type`."""

CONFIG = Config(connect_timeout=0.5, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 2})
"""Two attempts, since a warm function's idle connection may be gone; and both within the three seconds that
RecordFailure has."""

CANCELLED = "cancelled"
"""As the outcome, and as the `stop_reason` of an answer."""


@dataclass(frozen=True)
class RunEnded:
    """What is told of a run that ended."""

    run_id: str
    session_id: str
    caller: str
    outcome: str
    """`done`, `failed` or `cancelled`."""
    code: str | None
    """Of a failure."""
    stop_reason: str | None
    """Of an answer, as `num_turns` is."""
    cost_usd: float | None
    """US dollars, over all attempts; None where nobody can tell."""
    num_turns: int | None
    execution: str
    at: str
    """When it was told, in ISO 8601."""

    @classmethod
    def of(cls, claim: Claim, answer: Json) -> Self:
        """By the answer that the run's caller gets, whether that is a success or a failure."""
        code, stop_reason = answer.get("code"), answer.get("stop_reason")
        outcome = "done" if answer["success"] else "failed"
        return cls(
            run_id=claim.run_id,
            session_id=claim.session_id,
            caller=claim.owner,
            outcome=CANCELLED if stop_reason == CANCELLED or code == RunCancelled.code() else outcome,
            code=code,
            stop_reason=stop_reason,
            cost_usd=answer["cost_usd"],
            num_turns=answer.get("num_turns"),
            execution=claim.execution,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


class Bus:
    """The default bus of the account. `session` is that of another client, which read what clients have in common: so
    this one is made in 7 ms instead of 80."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def tell(self, ended: RunEnded) -> None:
        """Raises nothing: what ended has ended, whether or not the bus takes it. That is in the function's log then."""
        entry = {
            "Source": SOURCE,
            "DetailType": RUN_ENDED,
            "Detail": json.dumps(asdict(ended)),
            "Resources": [ended.execution],
        }
        try:
            (taken,) = self._client.put_events(Entries=[entry])["Entries"]
            refused = taken.get("ErrorCode")
        except Exception as error:  # whatever it is
            refused = error
        if refused:
            logging.getLogger(__name__).error("The end of %s could not be told: %s", ended.run_id, refused)

    @cached_property
    def _client(self) -> Any:
        """Made when it is needed, beside the function's last requests of S3: no start is slower for it."""
        return self._session.create_client("events", config=CONFIG)
