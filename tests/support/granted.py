"""As much of S3 as grants need, and a task that has them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lambdas.contract import Grant, Grants, Task
from lambdas.request import Allowance
from tests.support.http_ranges import extent
from tests.support.http_servers import NO_HEADERS, Answering


@dataclass
class GrantedBucket:
    """As much of S3 as grants need: objects by path, in the order in which they came."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    told: dict[str, list[bytes]] = field(default_factory=dict)
    """What messages there were, each time that they were written."""
    refused: tuple[str, ...] = ()
    """Paths that nothing can be written to."""
    saved: Callable[[bytes], object] = lambda _: None
    """Shown each checkpoint."""


class BucketHandler(Answering):
    bucket: GrantedBucket

    def do_PUT(self) -> None:
        content = self.received()
        if self.path in self.bucket.refused:
            return self.answer(403)
        self.bucket.objects[self.path] = content
        self.bucket.puts.append(self.path)
        if self.path.endswith("/checkpoint"):
            self.bucket.saved(content)
        if self.path.endswith("/messages"):
            self.bucket.told.setdefault(self.path, []).append(content)
        return self._give(b"")

    def do_GET(self) -> None:
        content = self.bucket.objects.get(self.path)
        if content is None:
            return self.answer(404)
        if "Range" not in self.headers:
            return self._give(content)
        start, end = extent(self.headers["Range"], len(content))
        return self._give(content[start:end], {"content-range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _give(self, content: bytes, extent: Mapping[str, str] = NO_HEADERS) -> None:
        self.answer(206 if extent else 200, content, {"etag": '"etag"', **extent})


def a_task(bucket: GrantedBucket, attempt: str, claude_session: str, checkpoint: str | None = None) -> Task:
    def grant(name: str) -> Grant:
        return Grant(f"{bucket.url}/{name}", {})

    staged = {
        name: grant(f"{attempt}/{name}")
        for name in ("cancel", "started", "receipt", "checkpoint", "changes", "messages", "result", "detail")
    }
    resumed = grant(f"{checkpoint}/checkpoint") if checkpoint else None
    return Task(
        run_id="run-1",
        session_id="session-1",
        claude_session=claude_session,
        resume=checkpoint is not None,
        cut=checkpoint is not None,
        deadline=time.time() + 60,
        gate=None,
        limit=None,
        handed_at=time.time(),
        size=0,
        directory=0,
        allowance=Allowance(10, 5.0, None, [], False),
        grants=Grants(request=grant("request"), session=None, approved=None, resumed=resumed, **staged),
    )
