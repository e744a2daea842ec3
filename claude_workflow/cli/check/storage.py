"""Rows of S3 itself: what it answers to conditions, in a scratch prefix of the bucket that is removed afterwards."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from functools import cached_property
from io import StringIO
from typing import Any

from botocore.exceptions import ClientError

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import compared
from claude_workflow.cli.sessions import purge
from lambdas.bucket import versions
from lambdas.bucket.versions import session_key
from lambdas.strict import Json

ABSENT = '"' + "0" * 32 + '"'
"""An ETag that no object has."""
BYTES = 4096


class Scratch:
    """One object of a row's own, with the ETags and versions that S3 named, and the answers to its parts."""

    def __init__(self, kit: Kit) -> None:
        self.s3 = kit.bucket.s3
        self.where = {"Bucket": kit.bucket.name, "Key": f"{kit.scratch}{uuid.uuid4().hex}"}
        self.etags = {"absent": ABSENT}
        self.versions: list[str] = []
        self.parts: list[Json] = []

    @cached_property
    def upload(self) -> str:
        """The id of its upload, which is begun when it is needed."""
        upload: str = self.s3.create_multipart_upload(**self.where)["UploadId"]
        return upload

    def step(self, said: str) -> Json:
        """What S3 answers to a request such as `put IfMatch=first`: `{status, etag, version}`, or `{status, code}`."""
        verb, *conditions = said.split()
        operation, given = self._request(verb)
        for name, _, value in (condition.partition("=") for condition in conditions):
            given[name] = self.etags.get(value, value)
        raw = answered(getattr(self.s3, operation), **self.where, **given)
        if verb == "put" and raw["status"] == 200:
            self.etags = {"first": raw["etag"]} | self.etags | {"last": raw["etag"]}
            self.versions.append(raw["version"])
        if verb in ("part", "copy"):
            self.parts.append(raw)
        return raw

    def _request(self, verb: str) -> tuple[str, Json]:
        match verb:
            case "put":
                return "put_object", {"Body": b"x" * (BYTES + len(self.versions))}
            case "part":
                number = len(self.parts) + 1
                return "upload_part", {"UploadId": self.upload, "PartNumber": number, "Body": b"x" * BYTES}
            case "copy":  # of the first put, a part
                source = {"CopySource": {**self.where, "VersionId": self.versions[0]}}
                how = source | {"CopySourceRange": "bytes=0-1023"}
                return "upload_part_copy", {"UploadId": self.upload, "PartNumber": 1} | how
            case "complete":  # of the first part alone
                parts = {"Parts": [{"PartNumber": 1, "ETag": self.parts[0]["etag"]}]}
                return "complete_multipart_upload", {"UploadId": self.upload, "MultipartUpload": parts}
        return f"{verb}_object", {}


def answered(call: Callable[..., Any], **given: Any) -> Json:
    """What S3 answers; raises what is about who asks."""
    try:
        done = call(**given)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "AccessDenied":
            raise
        return {"status": error.response["ResponseMetadata"]["HTTPStatusCode"], "code": code}
    etag = done.get("ETag") or done.get("CopyPartResult", {}).get("ETag")
    return {"status": done["ResponseMetadata"]["HTTPStatusCode"], "etag": etag, "version": done.get("VersionId")}


def asked(kit: Kit, steps: str) -> Json:
    """The answer to the last of these requests; of a whole upload with its size, and how many uploads are left."""
    own = Scratch(kit)
    raw = [own.step(said) for said in steps.split("; ")][-1]
    if own.parts and raw["status"] != 200:
        own.s3.abort_multipart_upload(**own.where, UploadId=own.upload)
    elif own.parts:
        raw |= {"size": own.s3.head_object(**own.where)["ContentLength"], "uploads": _uploads(own)}
    return raw


def _uploads(own: Scratch) -> int | str:
    try:
        found = own.s3.list_multipart_uploads(Bucket=own.where["Bucket"], Prefix=own.where["Key"])
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":  # the local engine's guard lists none
            raise
        return "not told"
    return len(found.get("Uploads", []))


def two_writers(kit: Kit) -> Json:
    """Two at once on what both have seen: the statuses, the lower one first."""
    own = Scratch(kit)
    own.step("put")
    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(one["status"] for one in pool.map(own.step, ["put IfMatch=first"] * 2))
    return {"first": first, "second": second}


@compared
def lifecycle(kit: Kit) -> Iterator[tuple[str, object, object]]:
    """Each rule's days."""
    kept = kit.bucket.s3.get_bucket_lifecycle_configuration(Bucket=kit.bucket.name)["Rules"]
    days = {one["ID"]: _days(one, one.get("Expiration", {}).get("Days")) for one in kept}
    template = kit.account.properties("S3::Bucket")["LifecycleConfiguration"]["Rules"]
    meant = {one["Id"]: _days(one, one.get("ExpirationInDays")) for one in template}
    yield from ((name, days.get(name), meant.get(name)) for name in {**days, **meant})


def _days(rule: Json, objects: int | None) -> list[int | None]:
    """Until objects expire, until replaced versions do, until uploads that were cut off do."""
    replaced = rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
    return [objects, replaced, rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")]


def purged(kit: Kit) -> Json:
    """Purges the first turn's session, of which each turn left a version; what it said, and how many are left."""
    session = kit.first["session_id"]
    with redirect_stderr(StringIO()) as said:
        code = purge.run(kit.backend, session)
    left = list(versions.below(kit.bucket, session_key(session)))
    return {"exit": code, "versions": len(left), "said": said.getvalue().splitlines()[0]}
