"""Archives as a commit reads and writes them: ranges of one version, and a new version out of such ranges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice, takewhile
from typing import Any, NamedTuple

from lambdas.archive.directory import Archive, Span
from lambdas.archive.format import END_BYTES
from lambdas.bucket.objects import Bucket, ConditionFailed, Missing, decided, storage
from lambdas.bucket.relocate import PART, length
from lambdas.errors import WorkflowError

COPY = 16 * 1024 * 1024
"""The most that one request copies: S3 takes a tenth of a second and more for it, and works on several at a time."""

CARRY = PART
"""What one request carries at least of bytes that go through memory; several are under way at a time."""

THREADS = 6
"""Parts under way at a time."""

AHEAD = 4
"""How many of them may be copied before it is known what else the version is made of."""

WHOLE = 16 * 1024 * 1024
"""The most that is written without parts."""

NEAR = 64 * 1024
"""Ranges so near to each other are read as one."""


class Source:
    """One version of an archive in the bucket, read by ranges; its end is read first, and kept.

    `tail` is how many bytes of it: enough for the directory is one request in all. `pinned` is the version's id and
    ETag; without them it is the newest, from the first answer on. Where it is not there, or is another than the ETag
    says, `lost` is raised; without one, `Missing` or `ConditionFailed`.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        tail: int,
        pinned: tuple[str, str] | None = None,
        lost: WorkflowError | None = None,
    ) -> None:
        self._s3 = bucket.s3
        self._object = {"Bucket": bucket.name, "Key": key}
        self._etag: str | None = None
        if pinned:
            self._pin(*pinned)
        self._lost = lost
        self._first = max(tail, END_BYTES)
        self._read_end: tuple[int, bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._end[0]

    @property
    def _end(self) -> tuple[int, bytes]:
        # No cached_property: before Python 3.12 all of them wait for one lock, and so sources for each other.
        if self._read_end is None:
            self._read_end = self._get(None, self._first)
        return self._read_end

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Some bytes of it."""
        held = self.size - len(self._end[1])
        if start < min(end, held):
            yield self._get(start, min(end, held))[1]
            start = min(end, held)
        if start < end:
            yield self._end[1][start - held : end - held]

    def copy(self, span: Span, part: Mapping[str, Any]) -> str:
        """Make some bytes of it a part of an upload, inside S3. Returns the part's ETag."""
        which = {"CopySourceIfMatch": self._etag, "CopySourceRange": f"bytes={span[0]}-{span[1] - 1}"}
        with self._asking():
            copied = self._s3.upload_part_copy(**part, CopySource=self._object, **which)
        return str(copied["CopyPartResult"]["ETag"])

    def _pin(self, version_id: str, etag: str) -> None:
        self._object["VersionId"], self._etag = version_id, etag

    def _get(self, start: int | None, end: int) -> tuple[int, bytes]:
        """The size of the whole, and a range of it; without `start`, its last bytes, `end` of them or more."""
        wanted = f"bytes=-{end}" if start is None else f"bytes={start}-{end - 1}"
        with self._asking():
            same = {"IfMatch": self._etag} if self._etag else {}
            got = self._s3.get_object(**self._object, **same, Range=wanted)
            data: bytes = got["Body"].read()
        if not self._etag:
            self._pin(got["VersionId"], got["ETag"])
        if "ContentRange" in got:
            return int(got["ContentRange"].rpartition("/")[2]), data
        # A server may answer with the whole: then that is the end, and kept.
        return len(data), data if start is None else data[start:end]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with storage(f"reading {self._object['Key']}"):
                yield
        except (ConditionFailed, Missing) as error:
            if self._lost:
                raise self._lost from error
            raise


Piece = tuple[Source, Span]
Carried = tuple[Archive, Span]
"""Of an archive that may lie anywhere, since its bytes go through memory."""


def read(pieces: Sequence[Carried]) -> list[bytes]:
    """The bytes of each piece; what lies near to each other in one source is asked for together."""
    found: list[bytes] = []
    near: list[Carried] = []
    for piece in pieces:
        if near and not (piece[0] is near[-1][0] and 0 <= piece[1][0] - near[-1][1][1] <= NEAR):
            found += _together(near)
            near = []
        near.append(piece)
    return found + _together(near)


def _together(near: Sequence[Carried]) -> list[bytes]:
    if not near:
        return []
    (source, (start, _)), (_, (_, end)) = near[0], near[-1]
    data = b"".join(source.read(start, end))
    return [data[span[0] - start : span[1] - start] for _, span in near]


class Layout(NamedTuple):
    """What a version is made of, in this order."""

    copied: Sequence[Piece]
    """Of 5 MiB at least, each."""
    carried: Sequence[Carried]
    """What goes through memory."""
    end: Sequence[bytes | memoryview]

    @property
    def directory(self) -> int:
        """Bytes of the end."""
        return sum(map(len, self.end))


class Writing:
    """One new version of an object: whole where it is small, else in parts, several at a time.

    It is to be closed: what was begun and not made leaves no parts behind; where aborting fails too, the bucket's
    lifecycle rule sweeps them. Raises `ConditionFailed` where the condition does not hold, and `Missing` where S3 does
    not know the upload any more: then it was completed before, and the answer was lost.
    """

    def __init__(self, bucket: Bucket, key: str, condition: dict[str, str], metadata: dict[str, str]) -> None:
        self._s3 = bucket.s3
        self._target = {"Bucket": bucket.name, "Key": key}
        self._about = {**self._target, "Metadata": metadata, "ContentType": "application/zip"}
        self._condition = condition
        self._pool = ThreadPoolExecutor(THREADS, "part")
        self._upload: Future[str] | None = None
        """Its id; None where there is nothing that would have to be aborted."""
        self._begun: list[tuple[Piece, Future[str]]] = []

    def close(self) -> None:
        """Abort the upload, unless it is complete."""
        self._pool.shutdown(cancel_futures=True)  # a part that comes after the upload was aborted would stay
        if self._upload and not self._upload.cancelled() and not self._upload.exception():
            with suppress(Missing), storage("aborting an upload"):
                self._s3.abort_multipart_upload(**self._part())

    def begin(self, source: Source, end: int) -> None:
        """Copy the beginning of what ends there, before it is known what the version is made of: it is likely to stay.

        Nothing is waited for. What does not stay is left out when the parts are put together.
        """
        for piece in islice(_cut((source, (0, end))), AHEAD):
            if piece[1][1] < end:
                number = len(self._begun) + 1
                self._begun.append((piece, self._submit(_copying(piece), number)))

    def write(self, layout: Layout) -> None:
        """Make the version."""
        carried = sum(length(span) for _, span in layout.carried)
        if layout.copied or carried + layout.directory > WHOLE:
            return self._write_parts(layout)
        body = b"".join([*read(layout.carried), *layout.end])
        with storage("committing"):
            decided(partial(self._s3.put_object, **self._about, **self._condition, Body=body))
        return None

    def _write_parts(self, layout: Layout) -> None:
        copies = [piece for each in layout.copied for piece in _cut(each)]
        stays = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1][0], zip(copies, self._begun, strict=False)))
        jobs = [*map(_copying, copies[stays:]), *_carrying(self._s3, layout)]
        # The last first: what goes through memory takes longest.
        numbered = list(enumerate(jobs, len(self._begun) + 1))
        made = {number: self._submit(job, number) for number, job in reversed(numbered)}
        made |= {number: part for number, (_, part) in enumerate(self._begun[:stays], 1)}
        parts = [{"PartNumber": number, "ETag": part.result()} for number, part in sorted(made.items())]
        wait([part for _, part in self._begun])  # S3 forgets what is not named, but only once it is there
        upload = self._part()
        # Where it meets another write (409) S3 wants all of the upload anew: that is the state's next try.
        with storage("committing"):
            self._s3.complete_multipart_upload(**upload, **self._condition, MultipartUpload={"Parts": parts})
        self._upload = None

    def _submit(self, job: "Job", number: int) -> "Future[str]":
        self._upload = self._upload or self._pool.submit(self._create)
        return self._pool.submit(lambda: job(self._part() | {"PartNumber": number}))

    def _create(self) -> str:
        with storage("starting the commit"):
            return str(self._s3.create_multipart_upload(**self._about)["UploadId"])

    def _part(self) -> dict[str, Any]:
        """What each part is a part of."""
        assert self._upload
        return {**self._target, "UploadId": self._upload.result()}


Job = Callable[[dict[str, Any]], str]
"""Makes a part, and returns its ETag."""


def _copying(piece: Piece) -> Job:
    return partial(piece[0].copy, piece[1])


def _carrying(s3: Any, layout: Layout) -> Iterator[Job]:
    """Parts of some MiB; the last one has the end, and may be small."""
    batch: list[Carried] = []
    for piece in chain.from_iterable(map(_slices, layout.carried)):
        batch.append(piece)
        if sum(length(span) for _, span in batch) >= CARRY:
            yield partial(_upload, s3, batch, ())
            batch = []
    yield partial(_upload, s3, batch, layout.end)


def _slices(piece: Carried) -> Iterator[Carried]:
    """The same in as much as one request carries, so that memory does not depend on its length."""
    source, (start, end) = piece
    for at in range(start, end, CARRY):
        yield source, (at, min(at + CARRY, end))


def _upload(s3: Any, pieces: Sequence[Carried], end: Sequence[bytes | memoryview], part: dict[str, Any]) -> str:
    body = b"".join([*read(pieces), *end])
    with storage("writing a part"):
        return str(s3.upload_part(**part, Body=body)["ETag"])


def _cut(piece: Piece) -> Iterator[Piece]:
    """The same from the beginning on, however long it is; the last one is neither too small nor much larger."""
    source, (start, end) = piece
    while end - start >= COPY + PART:
        yield source, (start, start + COPY)
        start += COPY
    yield source, (start, end)
