"""The record of a run: who asked what, on which version it works, what its attempts staged, and how it ended.

    runs/{run_id}/request.json                who asked what; written first
    runs/{run_id}/base.json                   the session's version that the run works on; another while none is staged
    runs/{run_id}/{attempt}/started, checkpoint.zip, changes.zip, messages.json, result.json
                                              staged by RunClaude through grants, the last three at once
    runs/{run_id}/{attempt}/receipt.json      every call of the model and what it cost, written as the run goes
    runs/{run_id}/{attempt}/detail.txt        or, where it fails, what its operator should know of it
    runs/{run_id}/response.json               the committed answer
    runs/{run_id}/failure.json                what the run died of

What lies under an attempt was written by RunClaude, which runs strangers' code: it is read as a stranger's.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import cast

from lambdas.bucket.objects import Bucket, ConditionFailed, Missing
from lambdas.contract import FORMAT, Base, Claim, Result
from lambdas.errors import AgentCrashed
from lambdas.next_step import Left, Pin, Staging
from lambdas.receipt import Receipt
from lambdas.strict import Json

RESULT_BYTES = 8 * 1024 * 1024
"""No honest result.json is larger; a larger one is not read into memory."""

RECEIPT_BYTES = 16 * 1024 * 1024
"""No honest receipt.json is larger: a call takes some 500 bytes, and a run has some hundreds."""

WHOLE = ("changes.zip", "messages.json", "result.json")
"""What an attempt has to have left for its result to be one."""


def open_run(bucket: Bucket, run_id: str, request: Json) -> tuple[Json, bool]:
    """Write the run's request.json if there is none. Returns the one that stands, and whether it is this one."""
    return bucket.write_once(f"runs/{run_id}/request.json", request)


def request(bucket: Bucket, run_id: str) -> Json | None:
    """Who asked what; None where there is no such run."""
    return bucket.read(f"runs/{run_id}/request.json")


def pin(bucket: Bucket, run_id: str, wanted: Pin, old: Pin | None) -> bool:
    """Write the run's base.json if there is none, or over the `old` one if it still is that; whether it stands.

    It does not where another execution of the run has been at work meanwhile.
    """
    base = asdict(wanted.base) if wanted.base else None
    data = {"format": FORMAT, "base": base, "number": wanted.number, "execution": wanted.execution}
    condition = {"IfMatch": old.etag} if old else {"IfNoneMatch": "*"}
    try:
        bucket.write(f"runs/{run_id}/base.json", data, **condition)
    except (ConditionFailed, Missing):
        standing = pinned(bucket, run_id)
        return standing == wanted and standing.execution == wanted.execution
    return True


def pinned(bucket: Bucket, run_id: str) -> Pin | None:
    """What the run is pinned to; None for one that never came so far."""
    found = bucket.read_with_etag(f"runs/{run_id}/base.json")
    if found is None:
        return None
    data, etag = found
    base = Base(**data["base"]) if data["base"] else None
    return Pin(base, data.get("number", 0), etag, data.get("execution", ""))


def response(bucket: Bucket, run_id: str) -> Json | None:
    """The run's committed answer, without links."""
    return bucket.read(f"runs/{run_id}/response.json")


def answer(bucket: Bucket, run_id: str, built: Mapping[str, object]) -> Json:
    """Write the run's committed answer if there is none, and return the one that stands."""
    standing, _ = bucket.write_once(f"runs/{run_id}/response.json", {**built})
    return standing


def fail(bucket: Bucket, run_id: str, what: Json) -> None:
    """Write what the run died of."""
    bucket.write(f"runs/{run_id}/failure.json", what)


def failure(bucket: Bucket, run_id: str) -> Json | None:
    """What the run died of last."""
    return bucket.read(f"runs/{run_id}/failure.json")


def spent_before(bucket: Bucket, claim: Claim) -> float:
    """US dollars that earlier attempts of the run cost, as far as they could tell."""
    return sum((cost or 0.0 for cost in costs_before(bucket, claim).values()), 0.0)


def costs_before(bucket: Bucket, claim: Claim) -> dict[str, float | None]:
    """US dollars by attempt, of those before the claim's; None for one that nobody can tell. What version 0.2 wrote
    down of its attempts, which kept no receipts, stands in the run's failure."""
    if not claim.repeated:
        return {}
    said: dict[str, float | None] = (failure(bucket, claim.run_id) or {"costs": {}})["costs"]
    costs = said | {at: found.usd if found else None for at, found in receipts(bucket, claim.run_id).items()}
    return {attempt: cost for attempt, cost in costs.items() if attempt != claim.staging}


def spent_by(bucket: Bucket, attempt: str) -> float | None:
    """US dollars that an attempt cost; None where its receipt does not add up. Without one the model was not called."""
    found = _accounted(bucket, attempt)
    return found.usd if found else None


def most_by(bucket: Bucket, attempt: str) -> float | None:
    """What an attempt can have cost, as the limits reckon it; None where nobody can tell."""
    found = _accounted(bucket, attempt)
    return found.most if found else None


def _accounted(bucket: Bucket, attempt: str) -> Receipt | None:
    """An attempt's receipt, an empty one where there is none; None for one that does not add up."""
    try:
        return receipt(bucket, attempt) or Receipt((), {}, None, None)
    except ValueError:
        return None


def receipts(bucket: Bucket, run_id: str) -> dict[str, Receipt | None]:
    """Those that the run's attempts left, by attempt (`runs/{run_id}/{attempt}/`), in their order; None for one that
    does not add up."""
    attempts = [key.removesuffix("receipt.json") for key in _staged(bucket, run_id, "receipt.json")]
    return {attempt: _accounted(bucket, attempt) for attempt in attempts}


def staged_receipt(bucket: Bucket, claim: Claim) -> Receipt | None:
    """The receipt of what is staged; None for what version 0.2 staged, which kept none. Raises `AgentCrashed` for one
    that does not add up."""
    try:
        return receipt(bucket, claim.staging)
    except ValueError as error:
        raise AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=str(error)) from error


def receipt(bucket: Bucket, attempt: str) -> Receipt | None:
    """What an attempt left of its receipt; `ValueError` where that does not add up."""
    found = bucket.read(f"{attempt}receipt.json", most=RECEIPT_BYTES)
    return None if found is None else Receipt.load(found)


def detail(bucket: Bucket, claim: Claim, most: int) -> str:
    """The end of what RunClaude left of its failure, up to `most` bytes; empty where it could leave nothing."""
    return bucket.read_end(f"{claim.staging}detail.txt", most).decode(errors="replace")


def left(bucket: Bucket, run_id: str, unfit: Collection[str] = ()) -> Left:
    """What the run is pinned to, and what its attempts staged on that, without the results of `unfit` attempts."""
    standing = pinned(bucket, run_id)
    number = standing.number if standing else 0
    staged = _staged(bucket, run_id, *WHOLE, "checkpoint.zip")
    keys = [key for key in staged if _number(key.split("/")[2]) == number]
    attempts = list(dict.fromkeys(key.rpartition("/")[0] + "/" for key in reversed(keys)))

    def newest(among: list[str], *names: str) -> str | None:
        return next((at for at in among if all(at + name in keys for name in names)), None)

    fit = [at for at in attempts if at not in unfit]
    return Left(standing, Staging(newest(fit, *WHOLE), newest(attempts, "checkpoint.zip")))


def unfit(bucket: Bucket, run_id: str) -> list[str]:
    """The attempts whose results could not be committed, whatever was wrong with them: nor could they again."""
    return list((failure(bucket, run_id) or {}).get("unfit", []))


def result(bucket: Bucket, claim: Claim) -> Result:
    """What RunClaude staged, if it is whole, and of the right shape. Raises `AgentCrashed` if it is not."""
    try:
        return Result.load(bucket.read(f"{claim.staging}result.json", most=RESULT_BYTES))
    except ValueError as error:
        raise AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=str(error)) from error


def messages(bucket: Bucket, claim: Claim, most: int) -> list[Json] | None:
    """The agent's messages; None where they have more than `most` bytes, or are none: a stranger staged them."""
    try:
        found: object = bucket.read(f"{claim.staging}messages.json", most)
    except ValueError:
        return None
    honest = isinstance(found, list) and all(isinstance(message, dict) for message in found)
    return cast(list[Json], found) if honest else None


def _staged(bucket: Bucket, run_id: str, *names: str) -> list[str]:
    """The keys of these names that attempts of the run left, in the order of the attempts."""
    keys = [one["Key"] for one in bucket.listed(f"runs/{run_id}/")]
    return sorted(key for key in keys if key.count("/") == 3 and key.endswith(names))


def _number(attempt: str) -> int:
    """Which pin of its run an attempt worked on; see `Claim.pinned`."""
    number = attempt.split("-")[2:]
    return int(number[0]) if number and number[0].isdigit() else 0
