"""PersistSession: commits what a run staged as the session's next version, writes the answer, frees the session.

What it commits to comes from RestoreSession's claim alone. What RunClaude staged is a stranger's: it is checked for
its shape, and can name nothing outside its own attempt; see commit.py for what becomes of its files. What RunClaude
returned is to begin with: what it spent, and how large the session is. What it staged must say the same before
anything is committed.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from botocore.session import get_session

from lambdas import answer
from lambdas.archive.format import RATIO, Limits
from lambdas.bucket import lease, ledger, listing, record
from lambdas.bucket.client import s3_client
from lambdas.bucket.commit import Commit, Rules, of_archive
from lambdas.bucket.objects import Bucket
from lambdas.bus import Bus, RunEnded
from lambdas.contract import ANSWER_BYTES, FORMAT, Claim, RunResult
from lambdas.errors import AgentCrashed
from lambdas.settings import CommitSettings
from lambdas.strict import Json


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: `{claim, told}`, what RunClaude returned if it ran just now → the answer of the POST."""
    return state().persist(Claim.load(event["claim"]), event.get("told"))


@cache
def state() -> "PersistSession":
    """PersistSession by the function's environment, made once in a warm function."""
    settings = CommitSettings.read(os.environ)
    limits = Limits(settings.max_session_files, settings.max_session_bytes, RATIO)
    rules = Rules(limits, settings.max_dead_share)
    session = get_session()
    return PersistSession(Bucket(s3_client(session), settings.bucket), rules, Bus(session).tell)


@dataclass(frozen=True)
class PersistSession:
    """Commits a turn. Every step is conditional or recognises itself, so that all of it can be repeated."""

    bucket: Bucket
    rules: Rules
    tell: Callable[[RunEnded], None]
    """Tells of a run that ended, and raises nothing."""

    def persist(self, claim: Claim, returned: object) -> Json:
        """`returned` is what RunClaude returned, or anything else where an earlier attempt staged the result.

        Raises `SessionMoved`, `AgentCrashed` (nothing usable is staged), `SessionTooLarge` or one of `Internal`.
        """
        # Every request takes S3 some 20 ms: what does not need another's answer does not wait for it.
        with ThreadPoolExecutor(6) as pool, Commit(pool, self.bucket, claim, self.rules) as commit:
            receipt = pool.submit(record.staged_receipt, self.bucket, claim)
            reserved = pool.submit(ledger.reserved, self.bucket, claim)
            held = pool.submit(lease.seen, self.bucket, claim.session_id)
            earlier, now = record.earlier(self.bucket, claim), datetime.now(UTC)
            if likely := _run_result(returned):
                commit.begin(likely.staged_bytes, _metadata(claim, likely, earlier.usd, now))
            result = record.result(self.bucket, claim)
            attempts = (*earlier.conversation, claim.staging)
            messages = pool.submit(record.messages, self.bucket, attempts, ANSWER_BYTES)
            metadata = _metadata(claim, RunResult.of(claim.run_id, result), earlier.usd, now)
            if (kept := receipt.result()) and abs(kept.usd - result.cost_usd) > 1e-9:
                why = "result.json has another cost than receipt.json"
                raise AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=why)
            commit.make(result, metadata)
            spent = kept.most if kept else result.cost_usd
            settled = pool.submit(ledger.settle_held, self.bucket, claim, reserved.result(), spent, committed=True)
            entered = pool.submit(listing.enter, self.bucket, claim, "done")
            own = result.cost_usd + earlier.usd if claim.staging.startswith(f"runs/{claim.run_id}/") else 0.0
            total, whole = (
                float(metadata["cost-usd"]),
                answer.whole(result, earlier.said, earlier.seconds(claim.staging)),
            )
            built = answer.build(claim, whole, messages.result(), own, total, receipt=kept is not None)
            if "messages_at" in built and earlier.conversation:
                built["messages_at"] = record.keep_messages(self.bucket, claim.run_id, attempts)
            standing = record.answer(self.bucket, claim.run_id, built)
            pool.submit(self.tell, RunEnded.of(claim, standing))
            freed = pool.submit(lease.free_seen, self.bucket, claim.session_id, held.result(), claim.execution)
            entered.result()  # before it stands nowhere else
            listing.leave(self.bucket, claim, "done")
            freed.result()
            settled.result()
        return answer.with_links(standing, self.bucket)


def _run_result(returned: object) -> RunResult | None:
    """None for what is none of RunClaude's results: then the commit only begins later, with what was staged."""
    try:
        return RunResult.load(returned)
    except ValueError:
        return None


def _metadata(claim: Claim, run: RunResult, spent_before: float, now: datetime) -> dict[str, str]:
    """S3 user metadata: ASCII strings, at most 2 KB together."""
    base = claim.base
    goes_on = base is not None and base.session_id == claim.session_id
    return of_archive(run.session_files, run.session_directory) | {
        "created": base.created if base and goes_on else now.isoformat(timespec="seconds"),
        "owner": claim.owner,
        "turns": str((base.turns if base else 0) + 1),
        "cost-usd": f"{(base.cost_usd if base else 0.0) + spent_before + run.cost_usd:.6f}",
        "run": claim.run_id,
        "claude-session": claim.claude_session,
        "format": str(FORMAT),
    }
