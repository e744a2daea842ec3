"""What RunClaude reads of a stored object: ranges of one version, whole or not at all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from threading import Event

import pytest

from lambdas.agent.transfer import CUTS, EARLY, PIECE, TAIL_BYTES, RemoteArchive, Transfer
from lambdas.archive.prefetch import blocks
from lambdas.contract import Grant
from lambdas.errors import StorageUnavailable
from tests.support.granted import BucketHandler, GrantedBucket
from tests.support.http_ranges import extent
from tests.support.http_servers import Answering, listening

CONTENT = Random(5).randbytes(TAIL_BYTES + 40_000_000)
BEFORE = len(CONTENT) - TAIL_BYTES
FIRST = list(islice(blocks(0, BEFORE), EARLY))
"""The ranges that are asked for unasked."""
HEAD = FIRST[-1][1]


@dataclass
class Bucket:
    """One object, and how it is given."""

    url: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    shift: int = 0
    """By how many bytes the range that is given differs from the one asked for."""
    cuts: int = 0
    """How many bodies are yet to be cut off, each after one and a half pieces; not those of ends."""
    held: Event = field(default_factory=Event)
    """Not set while only ends are given."""
    refusals: int = 0
    """How many requests are yet to be answered with 503."""
    asked: list[str] = field(default_factory=list)


class Handler(Answering):
    bucket: Bucket

    def do_GET(self) -> None:
        bucket = self.bucket
        bucket.asked.append(self.headers["Range"])
        if not self.headers["Range"].startswith("bytes=-"):
            bucket.held.wait(10)
        if bucket.refusals:
            bucket.refusals -= 1
            return self._answer(503, b"")
        if self.headers.get("If-Match", bucket.etag) != bucket.etag:
            return self._answer(412, b"")
        if not bucket.ranges:
            return self._answer(200, bucket.content)
        start, end = extent(self.headers["Range"], len(bucket.content))
        start, end = start + bucket.shift, end + bucket.shift
        return self._answer(206, bucket.content[start:end], f"bytes {start}-{end - 1}/{len(bucket.content)}")

    def _answer(self, status: int, body: bytes, given: str = "") -> None:
        self.send_response(status)
        for name, value in {
            "ETag": self.bucket.etag,
            "Content-Length": str(len(body)),
            "Content-Range": given,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if status == 206 and self.bucket.cuts and not self.headers["Range"].startswith("bytes=-"):
            self.bucket.cuts -= 1
            self.close_connection = True
            body = body[: PIECE * 3 // 2]
        self.wfile.write(body)


def opened(bucket: Bucket, size: int = 0, directory: int = 0) -> RemoteArchive:
    """The object, its end read."""
    stored = Transfer().open(Grant(bucket.url, {}), size, directory)
    assert stored.size == len(bucket.content)
    return stored


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """A server for one object on loopback."""
    state = Bucket()
    with listening(Handler, bucket=state) as base:
        state.url = f"{base}/session.zip"
        state.held.set()
        yield state


def test_any_range_can_be_read(bucket: Bucket) -> None:
    """Ranges before, across and in the end of the object are its bytes, and no byte is sent twice."""
    stored = opened(bucket)
    for start, end in ((0, 10), (5, BEFORE), (BEFORE - 5, BEFORE + 5), (BEFORE, len(CONTENT)), (0, len(CONTENT))):
        assert b"".join(stored.read(start, end)) == CONTENT[start:end]
    assert bucket.asked == [
        f"bytes=-{TAIL_BYTES}",
        "bytes=0-9",
        f"bytes=5-{BEFORE - 1}",
        f"bytes={BEFORE - 5}-{BEFORE - 1}",
        f"bytes=0-{BEFORE - 1}",
    ]


def test_the_beginning_comes_after_the_end(bucket: Bucket) -> None:
    """Of an object whose size is known the beginning is asked for at once, and once; so is its directory."""
    directory = TAIL_BYTES + 1000
    stored = opened(bucket, len(CONTENT), directory)
    assert b"".join(stored.read(0, HEAD + 10)) == CONTENT[: HEAD + 10]
    assert b"".join(stored.read(len(CONTENT) - directory, len(CONTENT))) == CONTENT[-directory:]
    assert b"".join(stored.read(HEAD - 10, HEAD)) == CONTENT[HEAD - 10 : HEAD]
    assert bucket.asked[0] == f"bytes=-{directory}"
    assert sorted(bucket.asked[1:]) == sorted(f"bytes={start}-{end - 1}" for start, end in [*FIRST, (HEAD, HEAD + 10)])


def test_what_waits_for_the_beginning_does_not_hold_up_the_end(bucket: Bucket) -> None:
    """The directory is read while the beginning is still on its way."""
    bucket.held.clear()
    stored = opened(bucket, len(CONTENT))
    assert b"".join(stored.read(BEFORE, len(CONTENT))) == CONTENT[BEFORE:]
    bucket.held.set()
    assert b"".join(stored.read(0, 10)) == CONTENT[:10]


def test_a_beginning_that_is_cut_off_is_asked_for_from_there(bucket: Bucket) -> None:
    """What came of it is used, and the rest comes as any other range does."""
    bucket.cuts = 1
    assert b"".join(opened(bucket, len(CONTENT)).read(0, HEAD)) == CONTENT[:HEAD]
    assert len(bucket.asked) == 1 + len(FIRST) + 1
    assert bucket.asked[0] == f"bytes=-{TAIL_BYTES}"


def test_a_small_object_takes_one_request(bucket: Bucket) -> None:
    """What is shorter than the end that is asked for comes whole with it."""
    bucket.content = b"short"
    stored = opened(bucket)
    assert b"".join(stored.read(0, stored.size)) == b"short"
    assert len(bucket.asked) == 1


def test_a_cut_body_is_asked_for_again_from_where_it_was_cut(bucket: Bucket) -> None:
    """A connection that breaks in the middle costs a request, not the restore, and nothing twice."""
    stored = opened(bucket)
    bucket.cuts = 2
    assert b"".join(stored.read(0, 1_000_000)) == CONTENT[:1_000_000]
    assert bucket.asked[1:] == [f"bytes={start}-999999" for start in (0, PIECE, 2 * PIECE)]


def test_bodies_that_are_always_cut_fail(bucket: Bucket) -> None:
    """A storage that never gives a whole body is given up, with nothing of the grant's URL in the error."""
    stored = opened(bucket)
    bucket.cuts = 1000
    with pytest.raises(StorageUnavailable) as caught:
        list(stored.read(0, 3_000_000))
    assert len(bucket.asked) == 1 + 1 + CUTS
    assert bucket.url not in str(caught.value)


def test_a_storage_that_stumbles_is_asked_again(bucket: Bucket) -> None:
    """A 503 on the way is repeated, for the end and for a range."""
    bucket.refusals = 1
    stored = opened(bucket)
    bucket.refusals = 1
    assert b"".join(stored.read(0, 10)) == CONTENT[:10]


@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_two_versions_are_never_mixed(bucket: Bucket, size: int) -> None:
    """An object that is written anew between two ranges stops the reading."""
    stored = opened(bucket, size)
    list(stored.read(0, HEAD if size else 1))
    bucket.etag, bucket.content = '"two"', bytes(len(CONTENT))
    with pytest.raises(StorageUnavailable, match="412"):
        list(stored.read(size and HEAD, HEAD + 10))


def test_a_storage_without_ranges_gives_the_whole_once(bucket: Bucket) -> None:
    """The local engine ignores the range: then there is one request, and all reads are served from it."""
    bucket.ranges = False
    for content in (CONTENT, b"short", b""):
        bucket.content = content
        bucket.asked.clear()
        stored = opened(bucket)
        assert b"".join(stored.read(0, stored.size)) == content
        assert b"".join(stored.read(2, 4)) == content[2:4]
        assert len(bucket.asked) == 1


def test_what_is_no_answer_to_the_range_is_refused(bucket: Bucket) -> None:
    """Another range than the one asked for, or suddenly the whole, is not taken for it."""
    stored = opened(bucket)
    bucket.shift = 7
    with pytest.raises(StorageUnavailable, match="another range"):
        list(stored.read(0, 10))
    bucket.ranges = False
    with pytest.raises(StorageUnavailable, match="200"):
        list(stored.read(0, 10))


def test_what_s3_does_not_say_is_there_is_not() -> None:
    """It is asked once, and a silent or missing one is no error: it is asked again by and by."""
    granted = GrantedBucket(objects={"/there": b"{}"})
    with listening(BucketHandler, bucket=granted) as url:
        found = [Transfer().there(Grant(f"{at}/{name}", {})) for at, name in ((url, "there"), (url, "not"))]
    assert found == [True, False]
    assert not Transfer().there(Grant(f"{url}/there", {}))  # it is gone by now
