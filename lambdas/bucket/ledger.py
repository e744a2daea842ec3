"""The ledger: what the day's runs have spent and may still spend, so that no two take the same last dollar.

    ledger/{YYYY-MM-DD}/{attempt}~{run_id}~{caller}~reserved~{millionths of a dollar}~{epoch seconds of its end}
    ledger/{YYYY-MM-DD}/{attempt}~{run_id}~{caller}~spent~{millionths of a dollar}
    ledger/sessions/{session_id}/{run_id}~{attempt}~{millionths of a dollar}     of attempts that failed, or were lost

Empty objects: all they say is in their keys, so a day is read by listing it (a request for each 1,000 attempts).
Days are UTC's; a run belongs to the one on which its attempt began.

**A reservation is written before the sum is looked at.** S3 lists what was written before (it is strongly consistent),
so of two that come at once at least one sees the other, and what is taken never passes the limit. Where both see each
other and there is room for one, the one with the later key gives way, and the first looks again. A write that is
repeated meets its own key and changes nothing.

**What is left is given back** when the attempt ends: `spent` is written before `reserved` goes, and counts alone where
both are there. The reservation of an attempt that died without a word ends with its lease; then whoever reads the
ledger writes down what its receipt says.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from time import sleep

from lambdas.bucket import record, versions
from lambdas.bucket.lease import FIRST_WAIT
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim
from lambdas.errors import BudgetExhausted, BudgetReserved

LEAST = 0.01
"""US dollars for which a run is begun: Claude Code takes no budget of 0."""

LOOKS = (0.05, 0.1, 0.2, 0.4)
"""Seconds between looks, while another that came at once may still give way."""

RESERVED, SPENT = "reserved", "spent"

NOBODY = "-"
"""Stands for a run and a caller that are forgotten."""


@dataclass(frozen=True)
class Entry:
    """What one attempt has reserved, or spent."""

    attempt: str
    run_id: str
    caller: str
    kind: str
    micros: int
    """Millionths of a US dollar, rounded up."""
    ends: int = 0
    """Epoch seconds at which a reservation ends by itself."""

    @classmethod
    def of(cls, claim: Claim, kind: str, usd: float, ends: float = 0.0) -> "Entry":
        """That of a claim's attempt."""
        return cls(_attempt(claim), claim.run_id, caller(claim.owner), kind, _micros(usd), int(ends))

    @classmethod
    def read(cls, key: str) -> "Entry":
        """Out of its key."""
        attempt, run_id, who, kind, micros, *ends = key.rpartition("/")[2].split("~")
        return cls(attempt, run_id, who, kind, int(micros), int(ends[0]) if ends else 0)

    @property
    def key(self) -> str:
        """Where it stands; all of it."""
        ends = [str(self.ends)] if self.kind == RESERVED else []
        fields = (self.attempt, self.run_id, self.caller, self.kind, str(self.micros), *ends)
        return f"ledger/{self.day}/{'~'.join(fields)}"

    @property
    def day(self) -> str:
        """The day to which it belongs."""
        return _day(self.attempt)


@dataclass(frozen=True)
class Limits:
    """What may be spent in a day, in US dollars; None: no limit."""

    caller: float | None
    everybody: float | None


def caller(owner: str) -> str:
    """A caller's name as it stands in keys, whatever characters it has."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def reserve(bucket: Bucket, claim: Claim, wanted: float, limits: Limits, ends: float, now: float) -> float:
    """Reserve up to `wanted` US dollars for a claim's attempt, until `ends` (epoch seconds). Returns what is reserved.

    Raises `BudgetExhausted`, or `BudgetReserved` where it is only that others have reserved what is left.
    """
    own = Entry.of(claim, RESERVED, wanted, ends)
    bucket.touch(own.key)
    if limits.caller is None and limits.everybody is None:
        return own.micros / 1e6
    for pause in (*LOOKS, None):
        found = entries(bucket, own.day, now)
        mine = [own, *(each for each in found if each.attempt == own.attempt)]
        own = min(mine, key=lambda each: each.micros)
        others = [each for each in found if each.attempt != own.attempt]
        room = _room(own, others, limits)
        # Of those that came at once, the ones behind give way.
        ahead = _room(own, [each for each in others if each.kind == SPENT or each.attempt < own.attempt], limits)
        if room >= own.micros or (room >= _micros(LEAST) and (room == ahead or pause is None)):
            return _take(bucket, replace(own, micros=min(room, own.micros)), mine) / 1e6
        if ahead < _micros(LEAST) or pause is None:
            break
        sleep(pause)
    _take(bucket, None, mine)
    raise _exhausted(own, others, limits, now)


def reserved(bucket: Bucket, claim: Claim) -> list[Entry]:
    """What the ledger has of a claim's attempt; nothing of what another run staged, which this one forks: that one has
    paid for it."""
    if not _own(claim):
        return []
    attempt = _attempt(claim)
    return [Entry.read(one["Key"]) for one in bucket.listed(f"ledger/{_day(attempt)}/{attempt}~{claim.run_id}~")]


def settle(bucket: Bucket, claim: Claim, usd: float | None, *, committed: bool) -> None:
    """Say what a claim's attempt has spent in place of what it had reserved; None: nobody can tell, so all of that.

    What failed counts against its session here; what is committed does in the session's own sum.
    """
    settle_held(bucket, claim, reserved(bucket, claim), usd, committed=committed)


def settle_held(bucket: Bucket, claim: Claim, held: list[Entry], usd: float | None, *, committed: bool) -> None:
    """The same, where what the ledger has of the attempt was looked at before."""
    if not _own(claim) or (not held and not usd):
        return
    attempt, sessions = _attempt(claim), f"ledger/sessions/{claim.session_id}/{claim.run_id}~"
    micros = max((each.micros for each in held), default=0) if usd is None else _micros(usd)
    bucket.touch(replace(Entry.of(claim, SPENT, 0), micros=micros).key)
    if committed and claim.repeated:
        for one in bucket.listed(sessions):
            bucket.delete(one["Key"])
    elif not committed:
        bucket.touch(f"{sessions}{attempt}~{micros}")
    for each in held:
        if each.kind == RESERVED:
            bucket.delete(each.key)


def count_lost(bucket: Bucket, run_id: str, attempt: str) -> None:
    """Say what an attempt has spent that is at work no more, if it has not said so itself: before its receipt is
    removed. What it had reserved stays, and counts no more."""
    found = [Entry.read(one["Key"]) for one in bucket.listed(f"ledger/{_day(attempt)}/{attempt}~{run_id}~")]
    if found and all(each.kind == RESERVED for each in found):
        _count(bucket, max(found, key=lambda each: each.micros))


def forget(bucket: Bucket, owner: str) -> int:
    """Let what a caller's attempts have spent count for the days' sums alone: nothing says any more whose they were,
    and the caller's own days begin anew. For its operator, when none of them is at work. Returns how many they were."""
    mine, days = caller(owner), "ledger/2"  # the years of this millennium, and not the sessions
    standing = [each for each in (Entry.read(one["Key"]) for one in bucket.listed(days)) if each.caller == mine]
    for each in standing:
        bucket.touch(replace(each, run_id=NOBODY, caller=NOBODY).key)
    every = (each for each in versions.below(bucket, days) if Entry.read(each.key).caller == mine)
    versions.delete(bucket, list(every))
    return len(standing)


def lost(bucket: Bucket, session_id: str, run_id: str) -> None:
    """Count what a run cost against its session that died without a word, as what fails is counted. Where it was
    committed before, the session's own sum has it."""
    if record.response(bucket, run_id) is not None:
        return
    for attempt, receipt in record.receipts(bucket, run_id).items():
        if receipt and receipt.most:
            bucket.touch(f"ledger/sessions/{session_id}/{run_id}~{attempt.split('/')[2]}~{_micros(receipt.most)}")


def failed_usd(bucket: Bucket, session_id: str) -> float:
    """What failed runs of a session cost that its own sum does not have."""
    return sum(int(one["Key"].rpartition("~")[2]) for one in bucket.listed(f"ledger/sessions/{session_id}/")) / 1e6


def entries(bucket: Bucket, day: str, now: float) -> list[Entry]:
    """What a day's attempts have spent, and what the others have reserved, by `now` (epoch seconds)."""
    found = sorted((Entry.read(one["Key"]) for one in bucket.listed(f"ledger/{day}/")), key=lambda each: each.micros)
    spent = {each.attempt: each for each in found if each.kind == SPENT}  # the most, where two said it
    reserved = (each for each in found if each.kind == RESERVED and each.attempt not in spent)
    return [*spent.values(), *(_ended(bucket, each) if each.ends < now else each for each in reserved)]


def _ended(bucket: Bucket, lost: Entry) -> Entry:
    spent = _count(bucket, lost)
    bucket.delete(lost.key)
    return spent


def _count(bucket: Bucket, lost: Entry) -> Entry:
    """Say what an attempt has spent that died without a word: by its receipt, and otherwise all that it could."""
    most = record.most_by(bucket, f"runs/{lost.run_id}/{lost.attempt}/")
    spent = replace(lost, kind=SPENT, micros=lost.micros if most is None else _micros(most))
    bucket.touch(spent.key)
    return spent


def _take(bucket: Bucket, own: Entry | None, mine: Iterable[Entry]) -> int:
    """Let `own` stand of what the attempt has reserved, and nothing else. Returns how much that is."""
    if own and own not in mine:
        bucket.touch(own.key)
    for each in {*mine} - {own}:
        bucket.delete(each.key)
    return own.micros if own else 0


def _room(own: Entry, others: Iterable[Entry], limits: Limits) -> int:
    """Millionths of a dollar that are left beside `others`."""
    return min((left for left, _ in _left(own, others, limits)), default=own.micros)


def _left(own: Entry, others: Iterable[Entry], limits: Limits) -> list[tuple[int, str]]:
    """What is left of each limit, by the name of its setting."""
    everybody = sum(each.micros for each in others)
    callers = sum(each.micros for each in others if each.caller == own.caller)
    of = ((limits.caller, callers, "max_caller_usd_per_day"), (limits.everybody, everybody, "max_usd_per_day"))
    return [(int(limit * 1e6) - taken, name) for limit, taken, name in of if limit is not None]


def _exhausted(own: Entry, others: list[Entry], limits: Limits, now: float) -> BudgetExhausted:
    spent = [each for each in others if each.kind == SPENT]
    left, name = min(_left(own, spent, limits))
    if left >= _micros(LEAST):
        return BudgetReserved(limit=min(_left(own, others, limits))[1], retry_after=FIRST_WAIT)
    return BudgetExhausted(limit=name, retry_after=ceil(86400 - now % 86400))


def _own(claim: Claim) -> bool:
    """Whether the claim is on an attempt of its own run."""
    return claim.staging.startswith(f"runs/{claim.run_id}/")


def _attempt(claim: Claim) -> str:
    return claim.staging.split("/")[2]


def _day(attempt: str) -> str:
    """The day (UTC) on which an attempt began, as its name says."""
    return f"{datetime.fromtimestamp(int(attempt[:13]) / 1000, UTC):%Y-%m-%d}"


def _micros(usd: float) -> int:
    return ceil(round(usd * 1e6, 3))
