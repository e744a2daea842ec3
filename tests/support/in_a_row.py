"""How many answers of S3 somebody waited for one after the other."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

ANSWERS_AFTER = 0.03
"""Seconds that each answer is held back: much longer than it takes to ask for the next."""


class Span(NamedTuple):
    """A request, from being sent until it was answered."""

    begin: float
    end: float


@contextmanager
def noted(s3: Any) -> Iterator[list[Span]]:
    """The requests that this client makes meanwhile, each of them answered late."""
    spans, begun = list[Span](), dict[int, float]()

    def sent(**_: Any) -> None:
        begun[threading.get_ident()] = time.monotonic()
        time.sleep(ANSWERS_AFTER)

    def answered(**_: Any) -> None:
        spans.append(Span(begun.pop(threading.get_ident()), time.monotonic()))

    handlers = {"before-send.s3": sent, "response-received.s3": answered}
    for event, handler in handlers.items():
        s3.meta.events.register(event, handler)
    try:
        yield spans
    finally:
        for event, handler in handlers.items():
            s3.meta.events.unregister(event, handler)


def in_a_row(spans: list[Span]) -> int:
    """The longest chain of requests, each sent when the one before was answered. It is never too short: what waits for
    an answer is sent after it."""
    longest = dict[Span, int]()
    for one in sorted(spans):
        longest[one] = 1 + max((longest[each] for each in longest if each.end <= one.begin), default=0)
    return max(longest.values(), default=0)
