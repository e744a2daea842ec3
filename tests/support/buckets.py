"""A bucket that keeps versions, as that of the sessions does."""

import uuid
from typing import Any

from lambdas.bucket.objects import Bucket


def a_bucket(s3: Any, name: str | None = None) -> Bucket:
    """A new one, by a name of its own where it is given none."""
    name = name or f"sessions-{uuid.uuid4()}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return Bucket(s3, name)
