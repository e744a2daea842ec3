"""A service with a hundred thousand runs, in memory: the few requests of S3 and Step Functions that listing takes.

The engine keeps two files an object, and sorts them all for each page; so many runs in it take minutes.
"""

import fcntl
import json
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from claude_workflow.cli.endpoint import Endpoint, announce
from tests.support.http_servers import Answering

BUCKET = "crowd"
PAGE = 1000
"""Keys in an answer, as in S3."""


class Shelf:
    """The S3 client by which it is filled: keeps what is written, in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_object(self, **asked: Any) -> None:
        self.objects[asked["Key"]] = asked["Body"]

    def delete_object(self, **asked: Any) -> None:
        self.objects.pop(asked["Key"], None)


class Crowd(ThreadingHTTPServer):
    """Holds objects by key, in any bucket, and the inputs of the executions that were started."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.objects = objects
        self.keys = sorted(objects)
        self.started: list[dict[str, Any]] = []

    def listed(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """A page of keys, and whether more follow."""
        first = max(bisect_left(self.keys, prefix), bisect_right(self.keys, after))
        last = bisect_left(self.keys, f"{prefix}\U0010ffff")
        return self.keys[first : min(last, first + PAGE)], last > first + PAGE

    def folders(self, prefix: str) -> list[str]:
        """What is directly below a prefix, each found by leaping over what is below it."""
        found, after = list[str](), prefix
        while (keys := self.listed(prefix, after)[0]) and "/" in keys[0].removeprefix(prefix):
            found.append(f"{prefix}{keys[0].removeprefix(prefix).partition('/')[0]}/")
            after = f"{found[-1]}\U0010ffff"
        return found


MODIFIED = "<LastModified>2026-11-27T05:00:00.000Z</LastModified>"


class Connection(Answering):
    """One connection."""

    server: Crowd

    def do_GET(self) -> None:
        """GetObject, or ListObjectsV2."""
        url = urlsplit(self.path)
        key = unquote(url.path.split("/", 2)[2]) if url.path.count("/") > 1 else ""
        if key:
            found = self.server.objects.get(key)
            if found is None:
                return self.answer(404, NO_SUCH_KEY)
            begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = found[int(begin) : int(end) + 1 if end else None]
            ranged = {"Content-Range": f"bytes {begin}-{int(begin) + len(part) - 1}/{len(found)}", "ETag": '"1"'}
            return self.answer(206 if "Range" in self.headers else 200, part, ranged)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        after = query.get("continuation-token") or query.get("start-after") or ""
        keys, more = self.server.listed(query["prefix"], after)
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        if query.get("delimiter"):
            folders = self.server.folders(query["prefix"])
            below = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
            return self.answer(200, f"<ListBucketResult>{below}</ListBucketResult>".encode())
        sizes = ((one, len(self.server.objects[one])) for one in keys)
        contents = "".join(
            f"<Contents><Key>{escape(one)}</Key><Size>{size}</Size>{MODIFIED}</Contents>" for one, size in sizes
        )
        listing = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
        return self.answer(200, f"<ListBucketResult>{listing}</ListBucketResult>".encode())

    def do_POST(self) -> None:
        """StartSyncExecution, whose execution succeeds at once."""
        assert self.headers["X-Amz-Target"] == "AWSStepFunctions.StartSyncExecution"
        call = json.loads(self.received())
        self.server.started.append(json.loads(call["input"]))
        answer = {"stop_reason": "end_turn", "result": "Done.", "cost_usd": 0.25}
        ended = {
            "executionArn": "arn",
            "status": "SUCCEEDED",
            "output": json.dumps(answer),
            "startDate": 0,
            "stopDate": 0,
        }
        self.answer(200, json.dumps(ended).encode())


NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"


@contextmanager
def crowd(state: Path, objects: dict[str, bytes]) -> Iterator[Crowd]:
    """The service, announced in `state` and holding its lock, as a running one does."""
    with Crowd(objects) as server, (state / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        backend = {"engine_url": url, "engine_root": "root", "bucket": "crowd", "state_machine_arn": "arn:machine"}
        announce(state, Endpoint("http://unused", None), **backend)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
