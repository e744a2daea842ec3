"""Archives as a commit reads and writes them: ranges of one version, and a new version out of such ranges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

from lambdas.errors import WorkflowError
from lambdas.sessions.index import Run
from lambdas.sessions.plan import PART, size
from lambdas.sessions.records import END_BYTES
from lambdas.sessions.store import Missing, Refusal, Store, storage

COPY = 16 * 1024 * 1024
"""The most that one request copies: S3 takes a tenth of a second and more for it, and works on several at a time."""

CARRY = PART
"""What one request carries at least of bytes that go through memory; several are under way at a time."""

WHOLE = 16 * 1024 * 1024
"""The most that is written without parts."""

NEAR = 64 * 1024
"""Ranges so near to each other are read as one."""


class Source:
    """One version of an archive in the bucket, read by ranges; its end is read at once, and kept.

    `tail` is how many bytes of it: enough for the directory is one request in all. Where the version is not there, or
    is another than `etag` says, `lost` is raised; without one, `Missing` or `Refusal`.
    """

    def __init__(
        self, store: Store, key: str, version_id: str, etag: str, tail: int, lost: WorkflowError | None = None
    ) -> None:
        self._s3 = store.s3
        self._object = {"Bucket": store.bucket, "Key": key, "VersionId": version_id}
        self._etag = etag
        self._lost = lost
        self.size, self._tail = self._get(None, max(tail, END_BYTES))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Some bytes of it."""
        held = self.size - len(self._tail)
        if start < min(end, held):
            yield self._get(start, min(end, held))[1]
            start = min(end, held)
        if start < end:
            yield self._tail[start - held : end - held]

    def copy(self, run: Run, part: Mapping[str, Any]) -> str:
        """Make some bytes of it a part of an upload, inside S3. Returns the part's ETag."""
        which = {"CopySourceIfMatch": self._etag, "CopySourceRange": f"bytes={run[0]}-{run[1] - 1}"}
        with self._asking():
            copied = self._s3.upload_part_copy(**part, CopySource=self._object, **which)
        return str(copied["CopyPartResult"]["ETag"])

    def _get(self, start: int | None, end: int) -> tuple[int, bytes]:
        """The size of the whole, and a range of it; without `start`, its last bytes, `end` of them or more."""
        wanted = f"bytes=-{end}" if start is None else f"bytes={start}-{end - 1}"
        with self._asking():
            got = self._s3.get_object(**self._object, IfMatch=self._etag, Range=wanted)
            data: bytes = got["Body"].read()
        if "ContentRange" in got:
            return int(got["ContentRange"].rpartition("/")[2]), data
        # A server may answer with the whole, as the local engine does for a version: then that is the end, and kept.
        return len(data), data if start is None else data[start:end]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with storage(f"reading {self._object['Key']}"):
                yield
        except (Refusal, Missing) as error:
            if self._lost:
                raise self._lost from error
            raise


Piece = tuple[Source, Run]


def read(pieces: Sequence[Piece]) -> list[bytes]:
    """The bytes of each piece; what lies near to each other in one source is asked for together."""
    found: list[bytes] = []
    near: list[Piece] = []
    for piece in pieces:
        if near and not (piece[0] is near[-1][0] and 0 <= piece[1][0] - near[-1][1][1] <= NEAR):
            found += _together(near)
            near = []
        near.append(piece)
    return found + _together(near)


def _together(near: Sequence[Piece]) -> list[bytes]:
    if not near:
        return []
    (source, (start, _)), (_, (_, end)) = near[0], near[-1]
    data = b"".join(source.read(start, end))
    return [data[run[0] - start : run[1] - start] for _, run in near]


class Writing:
    """One new version of an object: whole where it is small, else in parts, several at a time.

    Raises `Refusal` where the condition does not hold, and `Missing` where S3 does not know the upload any more: then
    it was completed before, and the answer was lost. Whatever goes wrong, no parts are left behind; where aborting
    fails too, the bucket's lifecycle rule sweeps them.
    """

    def __init__(self, store: Store, key: str, condition: dict[str, str]) -> None:
        self._s3 = store.s3
        self._target = {"Bucket": store.bucket, "Key": key}
        self._condition = condition

    def write(
        self,
        pool: Executor,
        metadata: dict[str, str],
        copied: Sequence[Piece],
        carried: Sequence[Piece],
        end: Sequence[bytes | memoryview],
    ) -> None:
        """The copied pieces (of 5 MiB at least, each), those that go through memory, and the end."""
        about = {**self._target, "Metadata": metadata, "ContentType": "application/zip"}
        if not copied and sum(size(run) for _, run in carried) + sum(map(len, end)) <= WHOLE:
            body = b"".join([*read(carried), *end])
            with storage("committing"):
                self._s3.put_object(**about, **self._condition, Body=body)
            return
        with storage("starting the commit"):
            upload = self._s3.create_multipart_upload(**about)
        part = {**self._target, "UploadId": upload["UploadId"]}
        try:
            self._complete(pool, part, [*map(_copying, _even(copied)), *self._carrying(carried, end)])
        except Exception:
            with suppress(Missing), storage("aborting an upload"):
                self._s3.abort_multipart_upload(**part)
            raise

    def _complete(self, pool: Executor, part: dict[str, Any], jobs: Sequence[Callable[[dict[str, Any]], str]]) -> None:
        # The last first: what goes through memory takes longest.
        numbered = reversed(list(enumerate(jobs, 1)))
        made = {number: pool.submit(job, part | {"PartNumber": number}) for number, job in numbered}
        wait(made.values())  # all of them: a part that comes after the upload was aborted would stay
        parts = [{"PartNumber": number, "ETag": each.result()} for number, each in sorted(made.items())]
        with storage("committing"):
            self._s3.complete_multipart_upload(**part, **self._condition, MultipartUpload={"Parts": parts})

    def _carrying(
        self, carried: Sequence[Piece], end: Sequence[bytes | memoryview]
    ) -> Iterator[Callable[[dict[str, Any]], str]]:
        """Parts of some MiB; the last one has the end, and may be small."""
        batch: list[Piece] = []
        for piece in carried:
            batch.append(piece)
            if sum(size(run) for _, run in batch) >= CARRY:
                yield partial(self._upload, batch, ())
                batch = []
        yield partial(self._upload, batch, end)

    def _upload(self, pieces: Sequence[Piece], end: Sequence[bytes | memoryview], part: dict[str, Any]) -> str:
        body = b"".join([*read(pieces), *end])
        with storage("writing a part"):
            return str(self._s3.upload_part(**part, Body=body)["ETag"])


def _copying(piece: Piece) -> Callable[[Mapping[str, Any]], str]:
    return partial(piece[0].copy, piece[1])


def _even(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Each in equal parts, so that none is too small."""
    for source, (start, end) in pieces:
        count = -(-(end - start) // COPY)
        cuts = [start + (end - start) * number // count for number in range(count + 1)]
        yield from ((source, run) for run in pairwise(cuts))
