"""The ledger: what is taken passes no limit, what fits is not refused, and nothing stays reserved."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.bucket import ledger
from lambdas.bucket.ledger import LEAST, RESERVED, SPENT, Limits
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim
from lambdas.errors import BudgetExhausted, BudgetReserved
from tests.support.memory_bucket import MemoryBucket
from tests.support.metered import receipt_of

NOW = 1_800_000_000.0
"""Some noon of 2027."""
LATER = NOW + 60
DAY = "2027-01-15"
NONE = Limits(None, None)


def claim(number: int, owner: str = "alice", session: str = "session-1", execution: str = "") -> Claim:
    """An attempt of a run of its own, which began `number` seconds after NOW."""
    asked = {"run_id": f"run-{number}", "session_id": session, "owner": owner, "requested_at": NOW}
    return Claim.of(asked | {"claude_session": "c"}, execution or f"execution {number}", NOW + number, repeated=False)


def taken(bucket: Bucket, now: float = NOW) -> dict[str, float]:
    """What stands in the ledger, in US dollars, by kind."""
    found = ledger.entries(bucket, DAY, now)
    return {kind: sum(each.micros for each in found if each.kind == kind) / 1e6 for kind in (RESERVED, SPENT)}


def staged(bucket: Bucket, attempt: Claim, usd: float | None) -> None:
    """What RunClaude leaves of an attempt: that it was started, and its receipt."""
    bucket.touch(f"{attempt.staging}started")
    if usd is not None:
        bucket.write(f"{attempt.staging}receipt.json", receipt_of(usd).dump() | ({"format": 9} if usd < 0 else {}))


def test_what_is_left_is_taken_and_given_back(bucket: Bucket) -> None:
    """The second gets what the first leaves; when that one has spent less, there is room for a third."""
    limits = Limits(caller=1.0, everybody=None)
    assert ledger.reserve(bucket, claim(1), 0.75, limits, LATER, NOW) == 0.75
    assert ledger.reserve(bucket, claim(2), 0.75, limits, LATER, NOW) == 0.25
    with pytest.raises(BudgetReserved) as busy:
        ledger.reserve(bucket, claim(3), 0.75, limits, LATER, NOW)
    assert (busy.value.retry_after, busy.value.retryable, busy.value.code()) == (5, True, "BudgetExhausted")
    ledger.settle(bucket, claim(1), 0.02, committed=True)
    assert ledger.reserve(bucket, claim(3), 0.75, limits, LATER, NOW) == 0.73
    assert taken(bucket) == {RESERVED: 0.98, SPENT: 0.02}


def test_who_came_first_and_looks_last_gets_what_is_left(bucket: Bucket) -> None:
    """It waits for who stands behind to give way; that one has been accepted, and does not."""
    limits = Limits(caller=1.0, everybody=None)
    assert ledger.reserve(bucket, claim(2), 0.3, limits, LATER, NOW) == 0.3
    assert ledger.reserve(bucket, claim(1), 0.75, limits, LATER, NOW) == 0.7


def test_what_two_said_of_one_attempt_counts_once(bucket: Bucket) -> None:
    """Its end was late, and another had read its receipt: the most counts."""
    ledger.settle(bucket, claim(1), 0.25, committed=True)
    ledger.settle(bucket, claim(1), 0.125, committed=True)
    assert taken(bucket) == {RESERVED: 0.0, SPENT: 0.25}


def test_what_is_spent_is_free_again_at_midnight(bucket: Bucket) -> None:
    """The refusal names the limit, and when; another caller, and another day, have their own."""
    limits = Limits(caller=0.5, everybody=2.0)
    ledger.settle(bucket, claim(1), 0.5, committed=True)
    with pytest.raises(BudgetExhausted, match="max_caller_usd_per_day; it is free again at 00:00 UTC") as over:
        ledger.reserve(bucket, claim(2), 0.1, limits, LATER, NOW)
    assert (over.value.retryable, over.value.retry_after) == (False, 16 * 3600)
    assert ledger.reserve(bucket, claim(3, owner="bob"), 0.1, limits, LATER, NOW) == 0.1
    assert ledger.reserve(bucket, claim(86_400), 0.1, limits, LATER, NOW) == 0.1
    with pytest.raises(BudgetExhausted, match="max_usd_per_day"):
        ledger.reserve(bucket, claim(4, owner="eve"), 0.1, Limits(None, 0.5), LATER, NOW)


def test_a_repeated_reservation_meets_its_own(bucket: Bucket) -> None:
    """A state that is tried again takes nothing twice, and gets no more than it was given first."""
    limits = Limits(caller=None, everybody=1.0)
    ledger.reserve(bucket, claim(1), 0.75, limits, LATER, NOW)
    assert [ledger.reserve(bucket, claim(2), 0.75, limits, LATER, NOW) for _ in range(3)] == [0.25] * 3
    assert taken(bucket)[RESERVED] == 1.0


@pytest.mark.parametrize(
    ("left", "spent"), [(0.25, 0.25), (None, 0.0), (0.0, 0.0), (-1, 0.75)], ids=["some", "none", "empty", "damaged"]
)
def test_what_a_lost_attempt_reserved_ends_with_its_lease(bucket: Bucket, left: float | None, spent: float) -> None:
    """By its receipt, without which no call was passed on; one that does not add up is taken for all of it."""
    attempt = claim(1)
    ledger.reserve(bucket, attempt, 0.75, NONE, LATER, NOW)
    staged(bucket, attempt, left)
    assert taken(bucket, NOW + 59) == {RESERVED: 0.75, SPENT: 0.0}
    assert taken(bucket, NOW + 61) == {RESERVED: 0.0, SPENT: spent}
    ledger.settle(bucket, attempt, spent, committed=False)
    assert taken(bucket, NOW + 61) == {RESERVED: 0.0, SPENT: spent}


def test_one_that_never_began_gives_all_back(bucket: Bucket) -> None:
    """It had reserved, and was lost before RunClaude began."""
    ledger.reserve(bucket, claim(1), 0.75, NONE, LATER, NOW)
    assert taken(bucket, NOW + 61) == {RESERVED: 0.0, SPENT: 0.0}


def test_failed_runs_count_against_their_session_until_they_are_committed(bucket: Bucket) -> None:
    """The session's own sum has what is committed, with all that its run cost."""
    ledger.settle(bucket, claim(1), 0.25, committed=False)
    ledger.settle(bucket, claim(2), 0.5, committed=False)
    assert ledger.failed_usd(bucket, "session-1") == 0.75
    again = replace(claim(1), staging=claim(1, execution="another").staging, repeated=True)
    ledger.settle(bucket, again, 0.1, committed=True)
    assert ledger.failed_usd(bucket, "session-1") == 0.5
    assert taken(bucket)[SPENT] == 0.85


def test_twenty_at_once_take_a_callers_last_dollar(bucket: Bucket) -> None:
    """Of twenty that fit all go; of twenty that do not, as many as fit, whoever came in between."""
    limits = Limits(caller=1.0, everybody=None)
    for wanted, fits in ((0.05, 20), (0.25, 4)):
        start = threading.Barrier(20)
        first = 100 * fits

        def one(number: int, wanted: float = wanted, start: threading.Barrier = start) -> float:
            start.wait()
            try:
                return ledger.reserve(bucket, claim(number), wanted, limits, LATER, NOW)
            except BudgetReserved:
                return 0.0

        with ThreadPoolExecutor(20) as pool:
            got = list(pool.map(one, range(first, first + 20)))
        assert sorted(got, reverse=True)[:fits] == [wanted] * fits, got
        assert round(sum(got), 6) <= 1.0
        assert taken(bucket)[RESERVED] == pytest.approx(sum(got))
        for number in range(first, first + 20):
            ledger.settle(bucket, claim(number), 0.0, committed=True)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "call", "crash", "commit", "fail", "expire"]),
        st.integers(0, 5),
        st.sampled_from([0.04, 0.2, 0.5]),
    ),
    max_size=25,
)


@settings(max_examples=1000, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_no_limit_is_passed(steps: list[tuple[str, int, float]]) -> None:
    """Claim, call, crash, expiry and commit, in any order: spent and reserved are never more than the limit, and in the
    end nothing is reserved."""
    bucket, limits, now = MemoryBucket(), Limits(0.6, 1.0), NOW
    owners, running, number = ["alice", "bob"], dict[int, tuple[Claim, float, float]](), 0
    for step, who, usd in steps:
        if step == "claim" and who not in running:
            number += 1
            attempt = claim(number, owners[who % 2], f"session-{who}")
            if _room(bucket, attempt.owner, now) < LEAST:
                with pytest.raises(BudgetExhausted):
                    ledger.reserve(bucket, attempt, usd, limits, now + 60, now)
            else:
                running[who] = attempt, ledger.reserve(bucket, attempt, usd, limits, now + 60, now), 0.0
        elif step == "call" and who in running:
            attempt, reserved, spent = running[who]
            running[who] = attempt, reserved, min(reserved, spent + usd)
            staged(bucket, attempt, running[who][2])
        elif step == "crash":
            running.pop(who, None)
        elif step in ("commit", "fail") and who in running:
            attempt, _, spent = running.pop(who)
            ledger.settle(bucket, attempt, spent, committed=step == "commit")
        elif step == "expire":
            now += 61
            running.clear()
        standing = ledger.entries(bucket, DAY, now)
        assert _sum(standing) <= 1.0 + 1e-9
        for owner in owners:
            assert _sum([each for each in standing if each.caller == ledger.caller(owner)]) <= 0.6 + 1e-9
    assert taken(bucket, now + 100_000)[RESERVED] == 0


def _room(bucket: Bucket, owner: str, now: float) -> float:
    standing = ledger.entries(bucket, DAY, now)
    mine = [each for each in standing if each.caller == ledger.caller(owner)]
    return round(min(0.6 - _sum(mine), 1.0 - _sum(standing)), 6)


def _sum(entries: list[ledger.Entry]) -> float:
    return sum(each.micros for each in entries) / 1e6
