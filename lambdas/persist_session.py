"""PersistSession: commits what a run staged as the session's next version, writes the answer, frees the session.

What it commits to comes from RestoreSession's claim alone. What RunClaude staged is a stranger's: it is checked for
its shape, and can name nothing outside its own attempt; see commit.py for what becomes of its files.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from lambdas import answer
from lambdas.contract import ANSWER_BYTES, FORMAT, Claim, Json
from lambdas.sessions.client import s3_client
from lambdas.sessions.commit import Commit, Rules
from lambdas.sessions.records import RATIO, Limits
from lambdas.sessions.store import Store
from lambdas.settings import CommitSettings


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: `Claim` → the answer of the POST."""
    return keeper().persist(Claim.load(event))


@cache
def keeper() -> "Keeper":
    settings = CommitSettings.read(os.environ)
    limits = Limits(settings.max_session_files, settings.max_session_bytes, RATIO)
    return Keeper(Store(s3_client(), settings.bucket), Rules(limits, settings.max_dead_share))


@dataclass(frozen=True)
class Keeper:
    """Commits a turn. Every step is conditional or recognises itself, so that all of it can be repeated."""

    store: Store
    rules: Rules

    def persist(self, claim: Claim) -> Json:
        """Raises `SessionMoved`, `AgentCrashed` (nothing usable is staged), `SessionTooLarge` or one of `Internal`."""
        # Every request takes S3 some 20 ms: what does not need another's answer does not wait for it.
        with ThreadPoolExecutor(3) as pool:
            commit = Commit(pool, self.store, claim, self.rules)
            result = self.store.result(claim)
            messages = pool.submit(self.store.messages, claim, result.messages, ANSWER_BYTES)
            spent = result.cost_usd + self.store.spent_before(claim)
            metadata = _metadata(claim, spent)
            commit.make(result, metadata)
            own = spent if claim.staging.startswith(f"runs/{claim.run_id}/") else 0.0
            built = answer.build(claim, result, messages.result(), own, float(metadata["cost-usd"]))
            standing = self.store.answer(claim.run_id, built)
            marked = pool.submit(self.store.mark, claim, "done")
            self.store.free(claim.session_id, lambda lease: lease.execution == claim.execution)
            marked.result()
        return answer.with_links(standing, self.store)


def _metadata(claim: Claim, spent: float) -> dict[str, str]:
    """S3 user metadata, but for what the commit knows: ASCII strings, at most 2 KB together."""
    base = claim.base
    goes_on = base is not None and base.session_id == claim.session_id
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "created": base.created if base and goes_on else now,
        "owner": claim.owner,
        "turns": str((base.turns if base else 0) + 1),
        "cost-usd": f"{(base.cost_usd if base else 0.0) + spent:.6f}",
        "run": claim.run_id,
        "claude-session": claim.claude_session,
        "format": str(FORMAT),
    }
