"""RunClaude's whole reach into the bucket: presigned requests, made with an ordinary HTTP client and no credential."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from lambdas.contract import Grant, Staged
from lambdas.errors import StorageUnavailable

ATTEMPTS = Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), allowed_methods=("GET", "PUT"))
"""A GET or PUT of one object can be repeated; urllib3 rewinds the body."""

CHUNK = 1 << 20


class Grantee:
    """Uses grants. Every method raises `StorageUnavailable` where S3 does not do what was granted."""

    def __init__(self) -> None:
        self.pool = PoolManager(retries=ATTEMPTS, timeout=Timeout(connect=2, read=10))

    def read(self, grant: Grant) -> bytes:
        """One small object."""
        with self._get(grant) as response, _speaking("reading"):
            return response.data

    def download(self, grant: Grant, out: BinaryIO) -> None:
        """One object into a file, left at its beginning. A body cut short raises (urllib3 enforces its length)."""
        with self._get(grant) as response, _speaking("downloading"):
            for chunk in response.stream(CHUNK):
                out.write(chunk)
        out.seek(0)

    def put(self, grant: Grant, body: bytes | BinaryIO, size: int) -> Staged | None:
        """Stage one object of `size` bytes. None where the grant's condition does not hold (412)."""
        headers = {**grant.headers, "Content-Length": str(size)}
        with _speaking("staging"):
            response = self.pool.request("PUT", grant.url, body=body, headers=headers)
        if response.status == 412:
            return None
        _expect(response, "staging")
        return Staged(response.headers.get("x-amz-version-id", ""), response.headers["ETag"], size)

    @contextmanager
    def _get(self, grant: Grant) -> Iterator[BaseHTTPResponse]:
        with _speaking("asking"):
            response = self.pool.request("GET", grant.url, headers=grant.headers, preload_content=False)
        try:
            _expect(response, "reading")
            yield response
        finally:
            response.release_conn()


@contextmanager
def _speaking(doing: str) -> Iterator[None]:
    """The text of urllib3's errors holds the URL, and with it the grant: only the kind of the error is told."""
    try:
        yield
    except HTTPError as error:
        raise StorageUnavailable(detail=f"{doing}: {type(error).__name__}") from None


def _expect(response: BaseHTTPResponse, doing: str) -> None:
    if response.status != 200:
        raise StorageUnavailable(detail=f"{doing}: S3 answered {response.status}")
