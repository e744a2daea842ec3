"""Rows of S3 itself: what it answers to conditions, in a scratch prefix of the bucket that is removed afterwards."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from botocore.exceptions import ClientError

from claude_workflow.cli import sessions
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, as_template
from lambdas.bucket import versions
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json

ABSENT = '"' + "0" * 32 + '"'
"""An ETag that no object has."""
BODY = b"x" * 4096


class Scratch:
    """One object of a row's own. Every method that asks S3 gives what it answered: `{status, code}`."""

    def __init__(self, kit: Kit, name: str) -> None:
        self.s3 = kit.s3
        self.where = {"Bucket": kit.bucket, "Key": f"{kit.scratch}{name}"}

    def put(self, body: bytes = BODY, **condition: str) -> Json:
        """Writes it."""
        return _said(lambda: self.s3.put_object(**self.where, Body=body, **condition))

    def delete(self, **condition: str) -> Json:
        """Deletes it."""
        return _said(lambda: self.s3.delete_object(**self.where, **condition))

    def begin(self) -> str:
        """The id of an upload."""
        upload: str = self.s3.create_multipart_upload(**self.where)["UploadId"]
        return upload

    def part(self, upload: str, number: int = 1, body: bytes = BODY) -> Json:
        """A part that is sent."""
        return _said(lambda: self.s3.upload_part(**self.where, UploadId=upload, PartNumber=number, Body=body))

    def copy(self, upload: str, source: Json, **condition: str) -> Json:
        """A part from the first 1,024 bytes of a version."""
        copied = {"Bucket": self.where["Bucket"], "Key": self.where["Key"], "VersionId": source["version"]}
        how = {"CopySource": copied, "CopySourceRange": "bytes=0-1023"} | condition
        return _said(lambda: self.s3.upload_part_copy(**self.where, UploadId=upload, PartNumber=1, **how))

    def complete(self, upload: str, part: Json, **condition: str) -> Json:
        """The upload as the object; where S3 refuses that, it ends without."""
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["etag"]}]}
        done = _said(
            lambda: self.s3.complete_multipart_upload(**self.where, UploadId=upload, MultipartUpload=parts, **condition)
        )
        if done["status"] != 200:
            self.s3.abort_multipart_upload(**self.where, UploadId=upload)
        return done

    def size(self) -> int:
        """In bytes."""
        size: int = self.s3.head_object(**self.where)["ContentLength"]
        return size


def _said(call: Callable[[], Any]) -> Json:
    try:
        done = call()
    except ClientError as error:
        if error.response["Error"]["Code"] == "AccessDenied":  # that is about who asks
            raise
        return {"status": error.response["ResponseMetadata"]["HTTPStatusCode"], "code": error.response["Error"]["Code"]}
    etag = done.get("ETag") or done.get("CopyPartResult", {}).get("ETag")
    return {"status": done["ResponseMetadata"]["HTTPStatusCode"], "etag": etag, "version": done.get("VersionId")}


def _stale_put(own: Scratch) -> Json:
    old = own.put()
    own.put(b"newer")
    return own.put(b"mine", IfMatch=old["etag"])


def _second_put(own: Scratch) -> Json:
    own.put()
    return own.put(IfNoneMatch="*")


def _two_puts(own: Scratch) -> Json:
    """Two at once on what both have seen: the statuses, the lower one first."""
    seen = own.put()
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda body: own.put(body, IfMatch=seen["etag"]), (b"one", b"two"))
    first, second = sorted(answer["status"] for answer in both)
    return {"first": first, "second": second}


def _complete(own: Scratch, **condition: str) -> Json:
    upload = own.begin()
    return own.complete(upload, own.part(upload), **condition)


def _stale_complete(own: Scratch) -> Json:
    old = own.put()
    own.put(b"newer")
    return _complete(own, IfMatch=old["etag"])


def _overtaken_complete(own: Scratch) -> Json:
    upload = own.begin()
    part = own.part(upload)
    return own.complete(upload, part, IfMatch=own.put()["etag"])


def _stale_delete(own: Scratch) -> Json:
    old = own.put()
    own.put(b"newer")
    return own.delete(IfMatch=old["etag"])


def _copy(own: Scratch) -> Json:
    """A part of a version that is not the newest any more."""
    old = own.put()
    own.put(b"newer")
    upload = own.begin()
    part = own.copy(upload, old, CopySourceIfMatch=old["etag"])
    return own.complete(upload, part) | {"size": own.size()}


def _stale_copy(own: Scratch) -> Json:
    old, upload = own.put(), own.begin()
    copied = own.copy(upload, old, CopySourceIfMatch=ABSENT)
    own.s3.abort_multipart_upload(**own.where, UploadId=upload)
    return copied


def _forgotten(own: Scratch) -> Json:
    """A part that Complete does not name."""
    upload = own.begin()
    part = own.part(upload)
    own.part(upload, 2, b"in vain")
    done = own.complete(upload, part)
    where = {"Bucket": own.where["Bucket"], "Prefix": own.where["Key"]}
    return done | {"size": own.size(), "uploads": _uploads(own, where)}


def _uploads(own: Scratch, where: Json) -> int | str:
    """How many are under way; the local engine's guard lists none."""
    try:
        return len(own.s3.list_multipart_uploads(**where).get("Uploads", []))
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        return "not told"


STEPS: dict[str, Callable[[Scratch], Json]] = {
    "s3-missing": lambda own: _said(lambda: own.s3.head_object(**own.where)),
    "s3-if-match-missing": lambda own: own.put(IfMatch=ABSENT),
    "s3-if-match-stale": _stale_put,
    "s3-if-none-match": _second_put,
    "s3-two-writers": _two_puts,
    "s3-complete": lambda own: _complete(own, IfNoneMatch="*"),
    "s3-complete-missing": lambda own: _complete(own, IfMatch=ABSENT),
    "s3-complete-stale": _stale_complete,
    "s3-complete-overtaken": _overtaken_complete,
    "s3-delete-missing": lambda own: own.delete(IfMatch=ABSENT),
    "s3-delete-stale": _stale_delete,
    "s3-copy-part": _copy,
    "s3-copy-stale": _stale_copy,
    "s3-forgotten-parts": _forgotten,
}


def _lifecycle(kit: Kit) -> Json:
    kept = kit.s3.get_bucket_lifecycle_configuration(Bucket=kit.bucket)["Rules"]
    template = kit.account.properties("S3::Bucket")["LifecycleConfiguration"]["Rules"]
    return {
        "kept": {one["ID"]: _days(one, one.get("Expiration", {}).get("Days")) for one in kept},
        "template": {one["Id"]: _days(one, one.get("ExpirationInDays")) for one in template},
    }


def _days(rule: Json, objects: int | None) -> list[int | None]:
    """Until objects expire, until replaced versions do, until uploads that were cut off do."""
    replaced = rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
    return [objects, replaced, rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")]


def _purged(kit: Kit) -> Json:
    """Purges the first turn's session, of which each turn left a version; what it said, and how many are left."""
    session = kit.answers["first-turn"]["session_id"]
    with redirect_stderr(StringIO()) as said:
        code = sessions.purge(kit.backend, session)
    left = list(versions.below(Bucket(kit.s3, kit.bucket), f"{session}.zip"))
    return {"exit": code, "versions": len(left), "said": said.getvalue().splitlines()[0]}


def _own(name: str) -> Ask:
    return lambda kit: STEPS[name](Scratch(kit, name))


ASKED: dict[str, Ask] = {name: _own(name) for name in STEPS} | {"lifecycle": _lifecycle, "purge": _purged}
JUDGED: dict[str, Judge] = {"lifecycle": as_template}
