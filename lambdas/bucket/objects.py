"""The one layer over S3: objects read and written, with conditions, and what S3 says put into errors of ours.

Every write that decides something is conditional, and recognises itself: a request that botocore repeated because its
answer was lost meets its own work, and says so instead of refusing it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from lambdas import strict
from lambdas.errors import StorageUnavailable
from lambdas.strict import Json

CONFLICTS = (0.05, 0.2, 0.8)
"""Seconds between the tries of a conditional write that meets another one."""


class ConditionFailed(Exception):
    """S3 said no to a condition (412): the object is there, or is not, or has changed."""


class Missing(Exception):
    """S3 said 404, or that there is nothing in the range asked for. It says so too of a write with `If-Match` where
    there is nothing any more."""


@contextmanager
def storage(doing: str) -> Iterator[None]:
    """Turns what S3 can fail with into `ConditionFailed`, `Missing` or, for all the rest, `StorageUnavailable`."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("PreconditionFailed", "412"):
            raise ConditionFailed(doing) from error
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


@dataclass(frozen=True)
class Bucket:
    """The bucket, by its name, and the client that asks it. Every method raises `StorageUnavailable` where S3 fails."""

    s3: Any
    name: str

    def head(self, key: str, **version: str) -> Any:
        """What S3 says of an object, or None where there is none."""
        try:
            with storage(f"looking for {key}"):
                return self.s3.head_object(Bucket=self.name, Key=key, **version)
        except Missing:
            return None

    def read(self, key: str, most: int | None = None) -> Json | None:
        """An object's JSON, or None where there is none. `ValueError`: it has more than `most` bytes, which a
        stranger wrote, or is not JSON."""
        try:
            with storage(f"reading {key}"):
                got = self.s3.get_object(Bucket=self.name, Key=key)
                if most is not None and got["ContentLength"] > most:
                    got["Body"].close()  # unread, so its connection is good for nothing more
                    raise ValueError(f"{key} has {got['ContentLength']} bytes, and {most} are read at most")
                data = got["Body"].read()
        except Missing:
            return None
        strangers = most is not None
        found: Json = strict.read(data, strict.DEPTH + strict.ENVELOPE) if strangers else json.loads(data)
        return found

    def read_with_etag(self, key: str) -> tuple[Json, str] | None:
        """An object's JSON with its ETag, for a write that is to replace no other; None where there is none."""
        try:
            with storage(f"reading {key}"):
                got = self.s3.get_object(Bucket=self.name, Key=key)
                return json.loads(got["Body"].read()), got["ETag"]
        except Missing:
            return None

    def read_end(self, key: str, most: int) -> bytes:
        """The last bytes of an object, `most` at the most; none where there is none."""
        try:
            with storage(f"reading {key}"):
                got = self.s3.get_object(Bucket=self.name, Key=key, Range=f"bytes=-{most}")
                with closing(got["Body"]) as body:
                    found: bytes = body.read(most)
                    return found
        except Missing:
            return b""

    def read_part(self, key: str, start: int, most: int) -> bytes:
        """An object's bytes from `start` on, `most` at the most; none where there are none."""
        try:
            with storage(f"reading {key}"):
                got = self.s3.get_object(Bucket=self.name, Key=key, Range=f"bytes={start}-{start + most - 1}")
                found: bytes = got["Body"].read(most)
                got["Body"].close()
                return found
        except Missing:
            return b""

    def write(self, key: str, data: Json, **condition: str) -> None:
        """Writes JSON. Raises `ConditionFailed`, and `Missing` where `IfMatch` finds nothing any more."""
        body = strict.written(data)
        about = {"Bucket": self.name, "Key": key, "ContentType": "application/json"}
        with storage(f"writing {key}"):
            decided(partial(self.s3.put_object, **about, Body=body, **condition))

    def upload(self, key: str, file: BinaryIO) -> None:
        """Writes JSON out of a file."""
        with storage(f"writing {key}"):
            self.s3.put_object(Bucket=self.name, Key=key, ContentType="application/json", Body=file)

    def write_once(self, key: str, data: Json) -> tuple[Json, bool]:
        """Writes JSON where there is nothing. Whoever comes second gets what the first wrote, and False."""
        try:
            self.write(key, data, IfNoneMatch="*")
        except ConditionFailed:
            return self.read(key) or data, False
        return data, True

    def touch(self, key: str) -> None:
        """Writes an empty object, whose key is all that it says."""
        with storage(f"writing {key}"):
            self.s3.put_object(Bucket=self.name, Key=key, Body=b"")

    def delete(self, key: str, **condition: str) -> None:
        """Deletes an object. Raises `ConditionFailed` and `Missing` where there is a condition."""
        with storage(f"deleting {key}"):
            decided(partial(self.s3.delete_object, Bucket=self.name, Key=key, **condition))

    def pages(self, prefix: str, after: str = "") -> Iterator[list[Json]]:
        """What is below a prefix, and behind the key `after`, as S3 lists it: some 1,000 objects at a time."""
        start = {"StartAfter": after} if after else {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix, **start)
        with storage(f"listing {prefix}"):
            for page in pages:
                if found := page.get("Contents"):
                    yield found

    def folders(self, prefix: str) -> Iterator[str]:
        """The names directly below a prefix, up to the next slash, as S3 lists them: in one request some 1,000."""
        asked = {"Bucket": self.name, "Prefix": prefix, "Delimiter": "/"}
        pages = self.s3.get_paginator("list_objects_v2").paginate(**asked)
        with storage(f"listing {prefix}"):
            for page in pages:
                yield from (one["Prefix"].removeprefix(prefix).rstrip("/") for one in page.get("CommonPrefixes", []))

    def listed(self, prefix: str) -> Iterator[Json]:
        """What is below a prefix, as S3 lists it."""
        for page in self.pages(prefix):
            yield from page
