"""Everything that a bucket holds, all versions included, to be searched for what is not to be there."""

import io
import zipfile
from collections.abc import Iterator

from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import below


def everything(bucket: Bucket) -> Iterator[tuple[str, bytes]]:
    """Every version of every object and every mark of deletion, with all that it says: inflated, where it is a zip."""
    for each in below(bucket, ""):
        if each.is_mark:
            yield each.key, b""
            continue
        got = bucket.s3.get_object(Bucket=bucket.name, Key=each.key, VersionId=each.version_id)
        body = got["Body"].read()
        if body.startswith(b"PK"):
            opened = zipfile.ZipFile(io.BytesIO(body))
            body += b"\n".join(name.encode() + opened.read(name) for name in opened.namelist())
        yield each.key, str(got["Metadata"]).encode() + body


def mentions(bucket: Bucket, *texts: str) -> set[str]:
    """The keys of what says one of these."""
    return {key for key, said in everything(bucket) if any(text in key or text.encode() in said for text in texts)}
