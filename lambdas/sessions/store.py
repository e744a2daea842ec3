"""The bucket is the record: where everything lies, the lease, and what is granted. A turn is committed by commit.py.

    {session_id}.zip                          the session; metadata say what it is and which run committed it
    locks/{session_id}.json                   the lease: a courtesy that spares a second writer its work
    runs/{run_id}/request.json                who asked what; written first
    runs/{run_id}/base.json                   the session's version that the run works on; another while none is staged
    runs/{run_id}/{attempt}/started, checkpoint.zip, changes.zip, messages.json, result.json
                                              staged by RunClaude through grants, the last three at once
    runs/{run_id}/{attempt}/spent.json        US dollars so far, for an attempt that dies without a word
    runs/{run_id}/{attempt}/detail.txt        or, where it fails, what its operator should know of it
    runs/{run_id}/response.json               the committed answer
    runs/{run_id}/failure.json                what the run died of
    index/hours/{hour}/{outcome}/{run_id}     empty; `claimed`, then `done` or `failed`: to list costs what is listed
    index/sessions/{session_id}/{run_id}      empty

Every write that decides something is conditional, and recognises itself: a request that botocore repeated because its
answer was lost meets its own work, and says so instead of refusing it.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from math import ceil, isfinite
from time import sleep
from typing import Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from lambdas import strict
from lambdas.contract import FORMAT, Base, Claim, Grant, Grants, Json, Result, dollars
from lambdas.errors import (
    AgentCrashed,
    RunInProgress,
    SessionBusy,
    SessionDamaged,
    StorageUnavailable,
    WorkflowError,
)
from lambdas.next_step import Left, Pin, Staging

RESULT_BYTES = 8 * 1024 * 1024
"""No honest result.json is larger; a larger one is not read into memory."""


SPENT_BYTES = 32
"""A number is not longer."""

CLAUDE_SESSION = re.compile(r"[0-9A-Za-z-]{1,80}")
"""A conversation's id names directories, so it is nothing but a name."""


@dataclass(frozen=True)
class Lease:
    """Who works on a session, and until when (epoch seconds)."""

    run_id: str
    execution: str
    expires_at: float


FIRST_WAIT = 5
"""Seconds after which whoever meets a lease is asked to come again, at first."""


WHOLE = ("changes.zip", "messages.json", "result.json")
"""What an attempt has to have left for its result to be one."""

OUTCOMES = ("claimed", "done", "failed")
"""Where a run stands in the index. Were it to stand in two places (a crash between two writes), `done` is true."""


CONFLICTS = (0.05, 0.2, 0.8)
"""Seconds between the tries of a conditional write that meets another one."""


class Refusal(Exception):
    """S3 said no to a condition (412): the object is there, or is not, or has changed."""


class Missing(Exception):
    """S3 said 404, or that there is nothing in the range asked for. It says so too of a write with `If-Match` where
    there is nothing any more."""


@contextmanager
def storage(doing: str) -> Iterator[None]:
    """Turns what S3 can fail with into `Refusal`, `Missing` or, for all the rest, `StorageUnavailable`."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("PreconditionFailed", "412"):
            raise Refusal(doing) from error
        if code in ("NoSuchKey", "NoSuchVersion", "NoSuchUpload", "InvalidRange", "404"):
            raise Missing(doing) from error
        raise StorageUnavailable(detail=f"{doing}: {error}") from error
    except BotoCoreError as error:
        raise StorageUnavailable(detail=f"{doing}: {error}") from error


def decided(write: Callable[[], object]) -> None:
    """Asks for a conditional write of one request. Where it meets another write (409) S3 has decided nothing, and is
    asked again until it says which of them was first."""
    for pause in CONFLICTS:
        try:
            write()
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 409:
                raise
            sleep(pause)
        else:
            return
    write()


def in_the_way(lease: Lease | None, run_id: str, now: float) -> type[WorkflowError] | None:
    """What a run is refused with as long as another execution has this lease."""
    if lease is None or lease.expires_at <= now:
        return None
    return RunInProgress if lease.run_id == run_id else SessionBusy


def _number(attempt: str) -> int:
    """Which pin of its run an attempt worked on; see `Claim.pinned`."""
    number = attempt.split("-")[2:]
    return int(number[0]) if number and number[0].isdigit() else 0


def session_key(session_id: str) -> str:
    return f"{session_id}.zip"


class Store:
    """The bucket's layout, and nothing of what the handlers decide with it.

    Every method raises `StorageUnavailable` where S3 fails.
    """

    def __init__(self, s3: Any, bucket: str) -> None:
        self.s3 = s3
        self.bucket = bucket

    # The session

    def session(self, session_id: str, owner: str) -> Base | None:
        """The newest version of a session, or None if there is none for this owner. Raises `SessionDamaged` where its
        metadata are not what a commit writes, or do not say whose it is."""
        head = self._head(session_key(session_id))
        if head is None or head["Metadata"].get("owner", owner) != owner:
            return None
        return _base(session_id, head)

    def newest(self, session_id: str) -> tuple[Base, dict[str, str]] | None:
        """The newest version of a session, whoever owns it, with its metadata; for its operator."""
        head = self._head(session_key(session_id))
        return (_base(session_id, head), head["Metadata"]) if head else None

    def committed(self, run_id: str, session_id: str, base: Base | None) -> bool:
        """Whether a version between the base and now was committed by this very run."""
        key = session_key(session_id)
        with storage("listing versions"):
            pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key)
            versions = [v for page in pages for v in page.get("Versions", []) if v["Key"] == key]
        for version in versions:
            if base and version["VersionId"] == base.version_id:
                return False
            head = self._head(key, VersionId=version["VersionId"])
            if head and head["Metadata"].get("run") == run_id:
                return True
        return False

    # The run

    def open_run(self, run_id: str, record: Json) -> tuple[Json, bool]:
        """Write the run's request.json if there is none. Returns the one that stands, and whether it is this one."""
        return self._settle(f"runs/{run_id}/request.json", record)

    def run(self, run_id: str) -> Json | None:
        return self._read(f"runs/{run_id}/request.json")

    def pin(self, run_id: str, pin: Pin, old: Pin | None) -> bool:
        """Write the run's base.json if there is none, or over the `old` one if it still is that; whether it stands.

        It does not where another execution of the run has been at work meanwhile.
        """
        base = asdict(pin.base) if pin.base else None
        wanted = {"format": FORMAT, "base": base, "number": pin.number, "execution": pin.execution}
        condition = {"IfMatch": old.etag} if old else {"IfNoneMatch": "*"}
        try:
            self._write(f"runs/{run_id}/base.json", wanted, **condition)
        except (Refusal, Missing):
            standing = self.pinned(run_id)
            return standing == pin and standing.execution == pin.execution
        return True

    def pinned(self, run_id: str) -> Pin | None:
        """What the run is pinned to; None for one that never came so far."""
        try:
            with storage(f"reading the base of {run_id}"):
                got = self.s3.get_object(Bucket=self.bucket, Key=f"runs/{run_id}/base.json")
                pinned = json.loads(got["Body"].read())
        except Missing:
            return None
        base = Base(**pinned["base"]) if pinned["base"] else None
        return Pin(base, pinned.get("number", 0), got["ETag"], pinned.get("execution", ""))

    def response(self, run_id: str) -> Json | None:
        return self._read(f"runs/{run_id}/response.json")

    def answer(self, run_id: str, response: Json) -> Json:
        """Write the run's committed answer if there is none, and return the one that stands."""
        standing, _ = self._settle(f"runs/{run_id}/response.json", response)
        return standing

    def failed(self, run_id: str, failure: Json) -> None:
        self._write(f"runs/{run_id}/failure.json", failure)

    def failure(self, run_id: str) -> Json | None:
        return self._read(f"runs/{run_id}/failure.json")

    def spent_before(self, claim: Claim) -> float:
        """US dollars that earlier attempts of the run cost, as far as they could tell."""
        if not claim.repeated:
            return 0.0
        costs = (self.failure(claim.run_id) or {"costs": {}})["costs"]
        attempts = {key.rpartition("/")[0] + "/" for key in self._staged(claim.run_id, "spent.json")}
        told = {attempt: self.told(attempt) for attempt in attempts - costs.keys() - {claim.staging}}
        return float(sum(cost or 0 for attempt, cost in (costs | told).items() if attempt != claim.staging))

    def told(self, attempt: str) -> float | None:
        """US dollars that an attempt said it had spent when it last said so; None where it never could."""
        try:
            said: object = self._read(f"{attempt}spent.json", most=SPENT_BYTES)
        except ValueError:
            said = None  # a stranger may have written it
        if said is None:
            return 0.0 if self._head(f"{attempt}started") is None else None
        return float(cast(float, said)) if dollars(said) else None

    def detail(self, claim: Claim, most: int) -> str:
        """The end of what RunClaude left of its failure, up to `most` bytes; empty where it could leave nothing."""
        try:
            with storage("reading what failed"):
                key = f"{claim.staging}detail.txt"
                got = self.s3.get_object(Bucket=self.bucket, Key=key, Range=f"bytes=-{most}")
                with closing(got["Body"]) as body:
                    return str(body.read(most).decode(errors="replace"))
        except Missing:
            return ""

    def left(self, run_id: str, unfit: Collection[str] = ()) -> Left:
        """What the run is pinned to, and what its attempts staged on that, without the results of `unfit` attempts."""
        pin = self.pinned(run_id)
        number = pin.number if pin else 0
        keys = [key for key in self._staged(run_id, *WHOLE, "checkpoint.zip") if _number(key.split("/")[2]) == number]
        attempts = list(dict.fromkeys(key.rpartition("/")[0] + "/" for key in reversed(keys)))

        def newest(among: list[str], *names: str) -> str | None:
            return next((at for at in among if all(at + name in keys for name in names)), None)

        fit = [at for at in attempts if at not in unfit]
        return Left(pin, Staging(newest(fit, *WHOLE), newest(attempts, "checkpoint.zip")))

    def unfit(self, run_id: str) -> list[str]:
        """The attempts whose results could not be committed, whatever was wrong with them: nor could they again."""
        return list((self.failure(run_id) or {}).get("unfit", []))

    def _staged(self, run_id: str, *names: str) -> list[str]:
        """The keys of these names that attempts of the run left, in the order of the attempts."""
        with storage("listing attempts"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"runs/{run_id}/")
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(key for key in keys if key.count("/") == 3 and key.endswith(names))

    def mark(self, claim: Claim, outcome: str) -> None:
        """Say in the index where the run stands; a run that had an attempt before may stand there as failed."""
        hour = datetime.fromtimestamp(claim.recorded_at, UTC).strftime("%Y-%m-%dT%H")
        keys = {name: f"index/hours/{hour}/{name}/{claim.run_id}" for name in OUTCOMES}
        if outcome == "claimed":
            self._touch(f"index/sessions/{claim.session_id}/{claim.run_id}")
        self._touch(keys[outcome])
        left = {"done": ["claimed"], "failed": ["claimed"], "claimed": []}[outcome]
        for name in left + (["failed"] if claim.repeated and outcome != "failed" else []):
            with storage("writing the index"):
                self.s3.delete_object(Bucket=self.bucket, Key=keys[name])

    def result(self, claim: Claim) -> Result:
        """What RunClaude staged, if it is whole and of the right shape. Raises `AgentCrashed` if it is not."""
        try:
            return Result.load(self._read(f"{claim.staging}result.json", most=RESULT_BYTES))
        except ValueError as error:
            raise AgentCrashed(run_id=claim.run_id, session_id=claim.session_id, detail=str(error)) from error

    def messages(self, claim: Claim, most: int) -> list[Json] | None:
        """The agent's messages; None where they have more than `most` bytes, or are none: a stranger staged them."""
        try:
            found: object = self._read(f"{claim.staging}messages.json", most)
        except ValueError:
            return None
        honest = isinstance(found, list) and all(isinstance(message, dict) for message in found)
        return cast(list[Json], found) if honest else None

    # The lease

    def lease(self, session_id: str, wanted: Lease, now: float) -> None:
        """Take the session's lease, or find it mine, or take it over if it is expired (`now` in epoch seconds).

        Raises `RunInProgress` where another execution of this run holds it, `SessionBusy` where another run does. Both
        say when to come again: soon, then after as long as the other has been at work by then. So whoever comes again
        sees it end soon after it does, and with five tries outlasts a lease of half a minute.
        """
        key = f"locks/{session_id}.json"
        for _ in range(5):
            try:
                return self._write(key, asdict(wanted), IfNoneMatch="*")
            except Refusal:
                held = self._held(key)
            if held is None:
                continue
            lease, etag = held
            if lease.execution == wanted.execution:
                return None
            if busy := in_the_way(lease, wanted.run_id, now):
                ahead = wanted.expires_at - lease.expires_at  # leases are of one length
                wait = ceil(min(lease.expires_at - now, max(FIRST_WAIT, ahead)))
                raise busy(retry_after=wait, session_id=session_id, run_id=wanted.run_id)
            try:
                return self._write(key, asdict(wanted), IfMatch=etag)
            except (Refusal, Missing):  # taken over, or given back
                continue
        raise SessionBusy(retry_after=1, session_id=session_id, run_id=wanted.run_id)

    def holder(self, session_id: str) -> Lease | None:
        """Who holds the session's lease, expired or not."""
        held = self._held(f"locks/{session_id}.json")
        return held[0] if held else None

    def free(self, session_id: str, mine: Callable[[Lease], bool]) -> None:
        """Give the session's lease back, if it is `mine`."""
        key = f"locks/{session_id}.json"
        held = self._held(key)
        if held and mine(held[0]):
            try:
                with storage("freeing the session"):
                    decided(partial(self.s3.delete_object, Bucket=self.bucket, Key=key, IfMatch=held[1]))
            except (Refusal, Missing):
                return  # Expired and taken over between the look and the delete: it is another's now, or nobody's.

    def _held(self, key: str) -> tuple[Lease, str] | None:
        try:
            with storage("reading the lease"):
                got = self.s3.get_object(Bucket=self.bucket, Key=key)
                return Lease(**json.loads(got["Body"].read())), got["ETag"]
        except Missing:
            return None

    # Grants and links

    def grants(self, claim: Claim, checkpoint: str | None, seconds: int) -> Grants:
        """What RunClaude may do to the bucket, for `seconds`; its signer's credentials can end a grant sooner.

        `checkpoint` is the staging of the attempt whose checkpoint is to be gone on with, if there is one.
        """
        at = claim.staging
        return Grants(
            request=self._get(f"runs/{claim.run_id}/request.json", seconds),
            session=self._session(claim.base, seconds),
            started=self._put(f"{at}started", seconds, IfNoneMatch="*"),
            spent=self._put(f"{at}spent.json", seconds),
            resumed=self._get(f"{checkpoint}checkpoint.zip", seconds) if checkpoint else None,
            checkpoint=self._put(f"{at}checkpoint.zip", seconds),
            changes=self._put(f"{at}changes.zip", seconds),
            messages=self._put(f"{at}messages.json", seconds),
            result=self._put(f"{at}result.json", seconds),
            detail=self._put(f"{at}detail.txt", seconds),
        )

    def _session(self, base: Base | None, seconds: int) -> Grant | None:
        return self._get(session_key(base.session_id), seconds, VersionId=base.version_id) if base else None

    def link(self, key: str, seconds: int) -> str:
        """A URL that reads one object for `seconds`."""
        return self._get(key, seconds).url

    def _get(self, key: str, seconds: int, **more: str) -> Grant:
        params = {"Bucket": self.bucket, "Key": key, **more}
        return Grant(self.s3.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds), {})

    def _put(self, key: str, seconds: int, **conditions: str) -> Grant:
        params = {"Bucket": self.bucket, "Key": key, **conditions}
        headers = {"If-None-Match": conditions["IfNoneMatch"]} if conditions else {}
        return Grant(self.s3.generate_presigned_url("put_object", Params=params, ExpiresIn=seconds), headers)

    # Objects

    def _head(self, key: str, **version: str) -> Any:
        try:
            with storage(f"looking for {key}"):
                return self.s3.head_object(Bucket=self.bucket, Key=key, **version)
        except Missing:
            return None

    def _read(self, key: str, most: int | None = None) -> Json | None:
        """The object, or None where there is none. `ValueError`: it has more than `most` bytes, which a
        stranger wrote, or is not JSON."""
        try:
            with storage(f"reading {key}"):
                got = self.s3.get_object(Bucket=self.bucket, Key=key)
                if most is not None and got["ContentLength"] > most:
                    got["Body"].close()  # unread, so its connection is good for nothing more
                    raise ValueError(f"{key} has {got['ContentLength']} bytes, and {most} are read at most")
                data = got["Body"].read()
        except Missing:
            return None
        strangers = most is not None
        found: Json = strict.read(data, strict.DEPTH + strict.ENVELOPE) if strangers else json.loads(data)
        return found

    def _write(self, key: str, data: Json, **condition: str) -> None:
        body = strict.written(data)
        about = {"Bucket": self.bucket, "Key": key, "ContentType": "application/json"}
        with storage(f"writing {key}"):
            decided(partial(self.s3.put_object, **about, Body=body, **condition))

    def _touch(self, key: str) -> None:
        with storage("writing the index"):
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"")

    def _settle(self, key: str, data: Json) -> tuple[Json, bool]:
        """Write once. Whoever comes second gets what the first wrote, and False."""
        try:
            self._write(key, data, IfNoneMatch="*")
        except Refusal:
            return self._read(key) or data, False
        return data, True


def _base(session_id: str, head: Any) -> Base:
    metadata = head["Metadata"]
    try:
        base = Base(
            session_id=session_id,
            version_id=head["VersionId"],
            etag=head["ETag"],
            created=metadata["created"],
            turns=int(metadata["turns"]),
            cost_usd=float(metadata["cost-usd"]),
            claude_session=metadata["claude-session"],
            size=head["ContentLength"],
            directory=int(metadata["directory"]),
        )
        wrong = _wrong(base, metadata)
    except (KeyError, ValueError) as error:
        raise SessionDamaged(session_id=session_id, detail=f"metadata of the session: {error!r}") from error
    if wrong:
        raise SessionDamaged(session_id=session_id, detail=f"metadata of the session: {', '.join(wrong)}")
    return base


def _wrong(base: Base, metadata: dict[str, str]) -> list[str]:
    """The names of metadata that no commit writes like this."""
    sane = {
        "owner": bool(metadata["owner"]),
        "format": metadata["format"] == str(FORMAT),
        "turns": base.turns >= 1,
        "cost-usd": isfinite(base.cost_usd) and base.cost_usd >= 0,
        "claude-session": CLAUDE_SESSION.fullmatch(base.claude_session) is not None,
        "directory": 0 < base.directory <= base.size,
    }
    return [name for name, is_sane in sane.items() if not is_sane]
