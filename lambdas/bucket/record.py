"""The record of a run: who asked what, on which version it works, what its attempts staged, and how it ended.

    runs/{run_id}/request.json                who asked what; written first
    runs/{run_id}/base.json                   the session's version that the run works on; another while none is staged
    runs/{run_id}/{attempt}/started, checkpoint.zip, changes.zip, messages.json, result.json
                                              staged by RunClaude through grants, the last three at once
    runs/{run_id}/{attempt}/spent.json        US dollars so far, for an attempt that dies without a word
    runs/{run_id}/{attempt}/detail.txt        or, where it fails, what its operator should know of it
    runs/{run_id}/response.json               the committed answer
    runs/{run_id}/failure.json                what the run died of

What lies under an attempt was written by RunClaude, which runs strangers' code: it is read as a stranger's.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import cast

from lambdas.bucket.objects import Bucket, ConditionFailed, Missing
from lambdas.contract import FORMAT, Base, Claim, Result, dollars
from lambdas.errors import AgentCrashed
from lambdas.next_step import Left, Pin, Staging
from lambdas.strict import Json

RESULT_BYTES = 8 * 1024 * 1024
"""No honest result.json is larger; a larger one is not read into memory."""

SPENT_BYTES = 32
"""A number is not longer."""

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
    if not claim.repeated:
        return 0.0
    costs = (failure(bucket, claim.run_id) or {"costs": {}})["costs"]
    attempts = {key.rpartition("/")[0] + "/" for key in _staged(bucket, claim.run_id, "spent.json")}
    said = {attempt: spent_by(bucket, attempt) for attempt in attempts - costs.keys() - {claim.staging}}
    return float(sum(cost or 0 for attempt, cost in (costs | said).items() if attempt != claim.staging))


def spent_by(bucket: Bucket, attempt: str) -> float | None:
    """US dollars that an attempt said it had spent when it last said so; None where it never could."""
    try:
        said: object = bucket.read(f"{attempt}spent.json", most=SPENT_BYTES)
    except ValueError:
        said = None  # a stranger may have written it
    if said is None:
        return 0.0 if bucket.head(f"{attempt}started") is None else None
    return float(cast(float, said)) if dollars(said) else None


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
    """What RunClaude staged, if it is whole and of the right shape. Raises `AgentCrashed` if it is not."""
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
