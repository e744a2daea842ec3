"""Files taken out of a session's archive, to be linked to: `extracts/{session_id}/{version}/{hash of the path}`.

A link reads an object, and in the archive a file is deflated, between others. So one that is too large for a function's
answer is written out once, in parts, by whoever first asks for it, and expires within some days: a copy, which nothing
depends on. Its type and its disposition make a browser save it, whatever it holds.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from lambdas.archive.tree import shown
from lambdas.bucket.contents import Contents
from lambdas.bucket.objects import Bucket, storage
from lambdas.contract import Base

PART = 8 * 1024 * 1024
"""Bytes of a part, of which one is in memory: S3 takes no less than 5 MiB, and 10,000 parts."""

CONTENT_TYPE = "application/octet-stream"
"""Of every file, whatever it is: nothing that a browser would show, or run."""

FRESH_SECONDS = 12 * 3600
"""How old an extract may be that is linked to: it does not expire before it is a day old."""


def extract(bucket: Bucket, contents: Contents, base: Base, path: str, now: float) -> str:
    """Write a file of a version where it is not yet (`now` in epoch seconds), and return its key.

    Raises what `Contents.open` does; then nothing is written.
    """
    key = f"extracts/{base.session_id}/{base.version_id}/{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}"
    there = bucket.head(key)
    if there is None or there["LastModified"].timestamp() < now - FRESH_SECONDS:
        _write(bucket, key, contents.open(path), disposition(path))
    return key


def disposition(path: str) -> str:
    """By which a browser saves a file under its own name (RFC 6266), as far as that is printable ASCII for old ones."""
    name = shown(path.rpartition("/")[2])
    return f"attachment; filename=\"{re.sub('[^A-Za-z0-9._-]', '_', name)}\"; filename*=UTF-8''{quote(name, safe='')}"


def _write(bucket: Bucket, key: str, content: Iterator[bytes], named: str) -> None:
    where = {"Bucket": bucket.name, "Key": key}
    about = {"ContentType": CONTENT_TYPE, "ContentDisposition": named}
    with storage(f"writing {key}"):
        upload: Any = where | {"UploadId": bucket.s3.create_multipart_upload(**where, **about)["UploadId"]}
        try:
            parts = [
                {"PartNumber": number, "ETag": bucket.s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
                for number, body in enumerate(_parts(content), 1)
            ]
            bucket.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            bucket.s3.abort_multipart_upload(**upload)
            raise


def _parts(content: Iterator[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for piece in content:
        held += piece
        if len(held) >= PART:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
