"""RunClaude's whole reach into the bucket: presigned requests, made with an ordinary HTTP client and no credential."""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from mmap import ACCESS_READ, mmap
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple, TypedDict

from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from lambdas.archive.prefetch import Arriving, blocks
from lambdas.contract import Grant
from lambdas.errors import StorageUnavailable

ATTEMPTS = Retry(
    total=3, backoff_factor=0.2, status_forcelist=(409, 500, 502, 503, 504), allowed_methods=("GET", "PUT")
)
"""A GET or PUT of one object can be repeated, also where it met another write (409); urllib3 rewinds the body."""


class Patience(TypedDict, total=False):
    """For how long S3 is waited for, in urllib3's words; what is not said is the pool's."""

    retries: Retry
    timeout: Timeout


PATIENT: Patience = {}
HASTY: Patience = {"retries": Retry(total=0), "timeout": Timeout(connect=1, read=2)}
"""For what is done again in a second."""

CONNECTIONS = 4
"""At once; more wait for none, and are closed after use."""

TAIL_BYTES = 1 << 20
"""What the first request for an object reads of its end at least: all of a small one."""

NEAR = 1 << 20
"""When so much of the end is still to come, its beginning is asked for: then the network is never without work, and the
directory, for which all else waits, is not held up."""

EARLY = 5
"""How many blocks of its beginning: as much as comes until the directory has been read, and tells what else to ask."""

PIECE = 256 * 1024
"""Bytes that are waited for before they are given on."""

CUTS = 3
"""How often a range is asked for again from where it was cut off."""

EXTENT = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Transfer:
    """Uses grants. Every method raises `StorageUnavailable` where S3 does not do what was granted."""

    def __init__(self) -> None:
        self.pool = PoolManager(maxsize=CONNECTIONS, retries=ATTEMPTS, timeout=Timeout(connect=2, read=10))

    def read(self, grant: Grant) -> bytes:
        """One small object."""
        with self.get(grant, (200,), {}) as response, _speaking("reading"):
            return response.data

    def open(self, grant: Grant, size: int = 0, directory: int = 0) -> "RemoteArchive":
        """One object, to be read in ranges, of which the end is asked for now: `directory` bytes of it at the least.

        Where its `size` is known, its beginning is asked for next. Nothing is waited for, and nothing raised yet.
        """
        return RemoteArchive(self, grant, size, directory)

    def put(self, grant: Grant, body: bytes | BinaryIO, size: int, patience: Patience = PATIENT) -> bool:
        """Stage one object of `size` bytes. False where the grant's condition does not hold (412)."""
        headers = {**grant.headers, "Content-Length": str(size)}
        with _speaking("staging"):
            response = self.pool.request("PUT", grant.url, body=body, headers=headers, **patience)
        if response.status == 412:
            return False
        _expect(response, "staging", (200,))
        return True

    def there(self, grant: Grant) -> bool:
        """Whether an object is there. It is asked for once: an S3 that does not say is asked again by and by."""
        with suppress(HTTPError):
            return bool(self.pool.request("GET", grant.url, headers=grant.headers, **HASTY).status == 200)
        return False

    @contextmanager
    def get(self, grant: Grant, statuses: tuple[int, ...], headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
        """An answer of one of these statuses to a GET with these headers on top, its body unread."""
        with _speaking("asking"):
            response = self.pool.request("GET", grant.url, headers=grant.headers | headers, preload_content=False)
        try:
            _expect(response, "reading", statuses)
            yield response
        finally:
            response.close()  # a connection that has given all that it was asked for is in the pool again by now


class _Facts(NamedTuple):
    """What the answer to the first request says of an object."""

    etag: str
    size: int
    border: int
    """Where the bytes begin that come with it."""


class RemoteArchive:
    """One stored object, read in ranges that are all of one version. Threads may share it."""

    def __init__(self, transfer: Transfer, grant: Grant, size: int, directory: int) -> None:
        self._transfer = transfer
        self._grant = grant
        self._facts = Future[_Facts]()
        tail = max(directory, TAIL_BYTES)
        asking = ThreadPoolExecutor(CONNECTIONS, "opening")
        self._tail = asking.submit(self._ask_tail, tail)
        """Its last bytes; all of them, in a file, from an S3 that has no ranges of versions."""
        first = islice(blocks(0, size - tail), EARLY)
        self._early = [(span, Arriving(asking, partial(self._ask_early, *span))) for span in first]
        asking.shutdown(wait=False)

    @property
    def size(self) -> int:
        """Bytes in all. Raises `StorageUnavailable`."""
        return self._facts.result().size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces as they come. Raises `StorageUnavailable`."""
        border = self._facts.result().border
        for (begins, ends), block in self._early:
            if begins <= start < min(end, ends):
                for piece in block.read(start - begins, end - begins):
                    yield piece
                    start += len(piece)
        if start < min(end, border):
            yield from self._asked(start, min(end, border))
            start = min(end, border)
        if start < end:
            yield self._tail.result()[start - border : end - border]

    def _ask_tail(self, tail: int) -> bytes | mmap:
        try:
            with self._transfer.get(self._grant, (200, 206), {"Range": f"bytes=-{tail}"}) as answer:
                return self._tail_of(answer)
        except BaseException as error:
            if not self._facts.done():
                self._facts.set_exception(error)
            raise

    def _tail_of(self, response: BaseHTTPResponse) -> bytes | mmap:
        with _speaking("reading"):
            etag = response.headers["ETag"]
            if response.status == 200:
                whole = _spooled(response)
                self._facts.set_result(_Facts(etag, len(whole), 0))
                return whole
            extent = EXTENT.fullmatch(response.headers.get("Content-Range", ""))
            if extent is None:
                raise StorageUnavailable(detail="reading: S3 does not say what range it gave")
            first, last, size = map(int, extent.groups())
            left, pieces = last + 1 - first, list[bytes]()
            for piece in response.stream(PIECE):
                pieces.append(piece)
                left -= len(piece)
                if left < NEAR and not self._facts.done():
                    self._facts.set_result(_Facts(etag, size, first))
            return b"".join(pieces)

    def _ask_early(self, start: int, end: int) -> Iterator[bytes]:
        """Nothing, where there is nothing left to be asked for."""
        return self._asked(start, end) if self._facts.result().border else iter(())

    def _asked(self, start: int, end: int) -> Iterator[bytes]:
        """Where they are cut off they are asked for again, from there on."""
        cuts = 0
        while start < end:
            try:
                for piece in self._ask(start, end):
                    yield piece
                    start += len(piece)
            except _Cut as cut:
                cuts += 1
                if cuts > CUTS:
                    raise StorageUnavailable(detail=f"reading: {cut}") from None

    def _ask(self, start: int, end: int) -> Iterator[bytes]:
        etag, size, _ = self._facts.result()
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": etag}
        with self._transfer.get(self._grant, (206,), headers) as response:
            given = EXTENT.fullmatch(response.headers.get("Content-Range", ""))
            if given is None or given.groups() != (str(start), str(end - 1), str(size)):
                raise StorageUnavailable(detail="reading: S3 gave another range than it was asked for")
            try:
                yield from response.stream(PIECE)
            except HTTPError as error:
                raise _Cut(type(error).__name__) from None


class _Cut(Exception):
    """A body ended before its end; in words, how."""


def _spooled(response: BaseHTTPResponse) -> bytes | mmap:
    """A body of any size, as bytes that lie in a file which nobody else sees."""
    with TemporaryFile() as file:
        for piece in response.stream(PIECE):
            file.write(piece)
        file.flush()
        return mmap(file.fileno(), 0, access=ACCESS_READ) if file.tell() else b""


@contextmanager
def _speaking(doing: str) -> Iterator[None]:
    """The text of urllib3's errors holds the URL, and with it the grant: only the kind of the error is told."""
    try:
        yield
    except HTTPError as error:
        raise StorageUnavailable(detail=f"{doing}: {type(error).__name__}") from None


def _expect(response: BaseHTTPResponse, doing: str, statuses: tuple[int, ...]) -> None:
    if response.status not in statuses:
        raise StorageUnavailable(detail=f"{doing}: S3 answered {response.status}")
