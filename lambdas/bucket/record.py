"""The record of a run: who asked what, on which version it works, what its attempts staged, and how it ended.

    runs/{run_id}/request.json                who asked what; written first
    runs/{run_id}/base.json                   the session's version that the run works on; another while none is staged
    runs/{run_id}/{attempt}/started, checkpoint.zip, changes.zip, messages.json, result.json
                                              staged by RunClaude through grants, the last three at once
    runs/{run_id}/{attempt}/receipt.json      every call of the model and what it cost, written as the run goes
    runs/{run_id}/{attempt}/detail.txt        or, where it fails, what its operator should know of it
    runs/{run_id}/cancel                      its caller has ended it; empty
    runs/{run_id}/messages.json               the messages of all attempts, where they are too many for the answer
    runs/{run_id}/again.json                  that it was handed over once more, and when
    runs/{run_id}/response.json               the committed answer
    runs/{run_id}/failure.json                what the run died of
    runs/{run_id}/cancel                      the mark by which its caller ends it

What lies under an attempt was written by RunClaude, which runs strangers' code: it is read as a stranger's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from tempfile import TemporaryFile
from typing import cast

from lambdas import strict
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

NOTHING_CALLED = Receipt((), {}, None, None)

MESSAGES_BYTES = 8 * 1024 * 1024
"""The most that is read into memory of an attempt's messages."""

LEFT_OUT = "messages_left_out"
"""The message that stands for those of an attempt that are more, and says where they are."""

AT_ONCE = 8
"""How many attempts' receipts are read at a time: a run of many hours has some hundreds."""

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


def cancel(bucket: Bucket, run_id: str) -> None:
    """Write the mark by which the run's caller ends it."""
    bucket.touch(f"runs/{run_id}/cancel")


@dataclass(frozen=True)
class Earlier:
    """What a run's attempts before one came to."""

    costs: Mapping[str, float | None]
    """US dollars by attempt; None for one that nobody can tell."""
    receipts: Mapping[str, Receipt | None]
    """By attempt, in their order."""
    conversation: Sequence[str]
    """The attempts through which the conversation has gone that is gone on with, in their order."""

    @property
    def usd(self) -> float:
        """US dollars, as far as they could tell."""
        return sum((cost or 0.0 for cost in self.costs.values()), 0.0)

    @property
    def said(self) -> list[Receipt]:
        """The receipts of the conversation."""
        return [receipt for at in self.conversation if (receipt := self.receipts.get(at))]

    @property
    def turns(self) -> int:
        """Of the conversation."""
        return sum(receipt.turns for receipt in self.said)

    def seconds(self, until: str) -> float:
        """How long the conversation took before the attempt `until`: a leg lasted until the next one began, of another
        attempt it is known when it asked the model."""
        total = 0.0
        for at, after in pairwise((*self.conversation, until)):
            (begun, execution), (end, other) = _named(at), _named(after)
            receipt = self.receipts.get(at) or NOTHING_CALLED
            total += (end - begun) / 1000 if execution == other else receipt.seconds
        return total


def earlier(bucket: Bucket, claim: Claim) -> Earlier:
    """Before the claim's own attempt. What version 0.2 wrote down of its attempts, which kept no receipts, stands in
    the run's failure."""
    if not claim.repeated:
        return Earlier({}, {}, ())
    written: dict[str, float | None] = (failure(bucket, claim.run_id) or {"costs": {}})["costs"]
    found = {at: one for at, one in receipts(bucket, claim.run_id).items() if at != claim.staging}
    costs = written | {at: one.usd if one else None for at, one in found.items()}
    costs.pop(claim.staging, None)
    return Earlier(costs, found, _conversation(bucket, claim))


def _conversation(bucket: Bucket, claim: Claim) -> list[str]:
    """The attempts, before the claim's, since the first that left a checkpoint: each of them has gone on from one."""
    if not claim.staging.startswith(f"runs/{claim.run_id}/"):
        return []
    number = _number(claim.staging.split("/")[2])
    keys = _staged(bucket, claim.run_id, "started", "checkpoint.zip")
    since = next((key.rpartition("/")[0] for key in keys if key.endswith("checkpoint.zip")), "~")
    attempts = dict.fromkeys(key.rpartition("/")[0] for key in keys)
    own = [at for at in attempts if _number(at.split("/")[2]) == number]
    return [f"{at}/" for at in own if since <= at < claim.staging.rstrip("/")]


def hand_over_again(bucket: Bucket, run_id: str, began_at: float) -> None:
    """Say that a run which had failed, or was lost, goes on: the execution that began at `began_at` (epoch seconds)
    hands it over. Until its next attempt leaves something, nothing else tells that."""
    bucket.write(f"runs/{run_id}/again.json", {"format": FORMAT, "began_at": began_at})


def handed_over_again(bucket: Bucket, run_id: str) -> float:
    """When that was last; 0 for a run that never was."""
    return float((bucket.read(f"runs/{run_id}/again.json") or {"began_at": 0})["began_at"])


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
        return receipt(bucket, attempt) or NOTHING_CALLED
    except ValueError:
        return None


def receipts(bucket: Bucket, run_id: str) -> dict[str, Receipt | None]:
    """Those that the run's attempts left, by attempt (`runs/{run_id}/{attempt}/`), in their order; None for one that
    does not add up."""
    attempts = [key.removesuffix("receipt.json") for key in _staged(bucket, run_id, "receipt.json")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(attempts, pool.map(partial(_accounted, bucket), attempts), strict=True))


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
    """What the run is pinned to, what its attempts staged on that, without the results of `unfit` attempts, and whether
    it was cancelled."""
    standing = pinned(bucket, run_id)
    number = standing.number if standing else 0
    listed = [one["Key"] for one in bucket.listed(f"runs/{run_id}/")]
    staged = _attempts(listed, *WHOLE, "checkpoint.zip")
    keys = [key for key in staged if _number(key.split("/")[2]) == number]
    attempts = list(dict.fromkeys(key.rpartition("/")[0] + "/" for key in reversed(keys)))

    def newest(among: list[str], *names: str) -> str | None:
        return next((at for at in among if all(at + name in keys for name in names)), None)

    fit = [at for at in attempts if at not in unfit]
    staging = Staging(newest(fit, *WHOLE), newest(attempts, "checkpoint.zip"))
    return Left(standing, staging, cancelled=f"runs/{run_id}/cancel" in listed)


def unfit(bucket: Bucket, run_id: str) -> list[str]:
    """The attempts whose results could not be committed, whatever was wrong with them: nor could they again."""
    return list((failure(bucket, run_id) or {}).get("unfit", []))


def result(bucket: Bucket, claim: Claim) -> Result:
    """What RunClaude staged, if it is whole, and of the right shape. Raises `AgentCrashed` if it is not."""
    try:
        return Result.load(bucket.read(f"{claim.staging}result.json", most=RESULT_BYTES))
    except ValueError as error:
        raise AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=str(error)) from error


def messages(bucket: Bucket, attempts: Sequence[str], most: int) -> list[Json] | None:
    """The agent's messages in these attempts; None where those of one have more than `most` bytes, or are none: a
    stranger staged them."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda at: _messages(bucket, at, most), attempts))
    return None if None in found else [message for each in found for message in each or ()]


def keep_messages(bucket: Bucket, run_id: str, attempts: Iterable[str]) -> str:
    """Write the messages of several attempts as one object, and return its key. Of those of one attempt that are too
    many to be read, it says where they are."""
    key = f"runs/{run_id}/messages.json"
    with TemporaryFile() as file:
        between = b"[\n"
        for at in attempts:
            found = _messages(bucket, at, MESSAGES_BYTES)
            for message in found if found is not None else [{"type": "system", "subtype": LEFT_OUT, "at": at}]:
                file.write(between + strict.written(message))
                between = b",\n"
        file.write(b"\n]\n" if between == b",\n" else b"[]\n")
        file.seek(0)
        bucket.upload(key, file)
    return key


def _messages(bucket: Bucket, attempt: str, most: int) -> list[Json] | None:
    """An attempt's; none where it died before it had any."""
    try:
        found: object = bucket.read(f"{attempt}messages.json", most)
    except ValueError:
        return None
    found = [] if found is None else found
    honest = isinstance(found, list) and all(isinstance(message, dict) for message in found)
    return cast(list[Json], found) if honest else None


def _staged(bucket: Bucket, run_id: str, *names: str) -> list[str]:
    """The keys of these names that attempts of the run left, in the order of the attempts."""
    return _attempts((one["Key"] for one in bucket.listed(f"runs/{run_id}/")), *names)


def _attempts(keys: Iterable[str], *names: str) -> list[str]:
    return sorted(key for key in keys if key.count("/") == 3 and key.endswith(names))


def _named(attempt: str) -> tuple[int, str]:
    """When an attempt began, in milliseconds, and its execution, as its name has it (`contract.attempt`)."""
    begun, execution = attempt.split("/")[2].split("-")[:2]
    return int(begun), execution


def _number(attempt: str) -> int:
    """Which pin of its run an attempt worked on; see `Claim.pinned`."""
    number = attempt.split("-")[2:]
    return int(number[0]) if number and number[0].isdigit() else 0
