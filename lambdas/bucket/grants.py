"""Grants and links: requests to the bucket, signed for whoever has no right of its own on it."""

from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import session_key
from lambdas.contract import Claim, Grant, Grants


def grants(
    bucket: Bucket,
    claim: Claim,
    checkpoint: str | None,
    seconds: int,
    *,
    uploaded: str | None = None,
    approves_of: str | None = None,
) -> Grants:
    """What RunClaude may do to the bucket, for `seconds`; its signer's credentials can end a grant sooner.

    `checkpoint` is the staging of the attempt whose checkpoint is to be gone on with, if there is one; `uploaded` the
    key of what came for the workspace, if anything did; `approves_of` the run whose call is approved.

    """
    at, base = claim.staging, claim.base
    return Grants(
        request=_get(bucket, f"runs/{claim.run_id}/request.json", seconds),
        cancel=_get(bucket, f"runs/{claim.run_id}/cancel", seconds),
        session=_get(bucket, session_key(base.session_id), seconds, VersionId=base.version_id) if base else None,
        approved=_put(bucket, f"runs/{approves_of}/approved", seconds, IfNoneMatch="*") if approves_of else None,
        started=_put(bucket, f"{at}started", seconds, IfNoneMatch="*"),
        receipt=_put(bucket, f"{at}receipt.json", seconds),
        resumed=_get(bucket, f"{checkpoint}checkpoint.zip", seconds) if checkpoint else None,
        checkpoint=_put(bucket, f"{at}checkpoint.zip", seconds),
        changes=_put(bucket, f"{at}changes.zip", seconds),
        messages=_put(bucket, f"{at}messages.json", seconds),
        result=_put(bucket, f"{at}result.json", seconds),
        detail=_put(bucket, f"{at}detail.txt", seconds),
        upload=_get(bucket, uploaded, seconds) if uploaded else None,
    )


def link(bucket: Bucket, key: str, seconds: int, version_id: str | None = None) -> str:
    """A URL that reads one object for `seconds`: as it is then, or this version of it."""
    return _get(bucket, key, seconds, **({"VersionId": version_id} if version_id else {})).url


def uploading(bucket: Bucket, key: str, size: int, seconds: int) -> Grant:
    """The right to write one object once, of exactly so many bytes."""
    params = {"Bucket": bucket.name, "Key": key, "ContentLength": size, "IfNoneMatch": "*"}
    url = bucket.s3.generate_presigned_url("put_object", Params=params, ExpiresIn=seconds)
    return Grant(url, {"Content-Length": str(size), "If-None-Match": "*"})


def _get(bucket: Bucket, key: str, seconds: int, **more: str) -> Grant:
    params = {"Bucket": bucket.name, "Key": key, **more}
    return Grant(bucket.s3.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds), {})


def _put(bucket: Bucket, key: str, seconds: int, **conditions: str) -> Grant:
    params = {"Bucket": bucket.name, "Key": key, **conditions}
    headers = {"If-None-Match": conditions["IfNoneMatch"]} if conditions else {}
    return Grant(bucket.s3.generate_presigned_url("put_object", Params=params, ExpiresIn=seconds), headers)
