"""What callers upload for a workspace, each for one run.

    uploads/{upload}/offer.json     whose it is, and how large; written when the address is given out
    uploads/{upload}/content        the archive, written once by a presigned request, which nobody here has opened
    uploads/{upload}/used           the run that took it; written by RestoreSession, conditionally

All of it expires after a day.
"""

import secrets
from collections.abc import Iterator

from lambdas.bucket import record
from lambdas.bucket.grants import uploading
from lambdas.bucket.objects import Bucket
from lambdas.contract import FORMAT, Grant
from lambdas.errors import UploadNotFound, UploadUsed
from lambdas.request import Request

OPEN_SECONDS = 3600
"""How long the address takes the upload to begin; the credentials of its signer can end it sooner."""


def offer(bucket: Bucket, owner: str, size: int, now: float) -> tuple[str, Grant]:
    """A new upload of so many bytes, at `now` (epoch seconds), with the right to write it."""
    upload = f"upload-{secrets.token_hex(16)}"
    told = {"format": FORMAT, "owner": owner, "size": size, "offered_at": now}
    bucket.write(f"uploads/{upload}/offer.json", told)
    return upload, uploading(bucket, _content(upload), size, OPEN_SECONDS)


def taken(request: Request) -> str | None:
    """The key of what a request brings."""
    return _content(request.upload) if request.upload else None


def take(bucket: Bucket, request: Request, session_id: str) -> None:
    """Take what a request brings, if it brings anything, for its run. To take it again is to have it.

    Raises `UploadNotFound`, of another caller's too, and `UploadUsed`; a replay takes what the run took that it
    replays.
    """
    if (upload := request.upload) is None:
        return
    ids = {"session_id": session_id, "run_id": request.run_id}
    offered = bucket.read(f"uploads/{upload}/offer.json")
    if offered is None or offered["owner"] != request.caller:
        raise UploadNotFound(f"The upload {upload} was not found: uploads are kept for a day.").but(**ids)
    if bucket.head(_content(upload)) is None:
        raise UploadNotFound(f"Nothing has come to the upload {upload} yet: PUT it to its url first.").but(**ids)
    used, _ = bucket.write_once(f"uploads/{upload}/used", {"format": FORMAT, "run_id": request.run_id})
    if used["run_id"] not in _line(bucket, request):
        again = "Send that request again with its Idempotency-Key, or upload anew."
        raise UploadUsed(f"The upload {upload} was used by {used['run_id']}, and is for one run. {again}").but(**ids)


def _content(upload: str) -> str:
    return f"uploads/{upload}/content"


def _line(bucket: Bucket, request: Request) -> Iterator[str]:
    """The run, the one that it replays, and on."""
    yield request.run_id
    run = request.replay_of
    while run:
        yield run
        run = (record.request(bucket, run) or {}).get("replay_of")
