"""Server-sent events, as they come (WHATWG HTML, 9.2)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """One event of a stream."""

    name: str
    data: str
    id: str | None
    """By which the stream is gone on with behind it; None where it has none."""


def read(pieces: Iterable[bytes]) -> Iterator[Event | None]:
    """The events in the pieces of a stream; None for each comment, which says that somebody is there.

    What a stream that was cut off left without its empty line is no event.
    """
    fields: dict[str, str] = {}
    for line in _lines(pieces):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if "data" in fields:
                yield Event(fields.get("event", "message"), fields["data"], fields.get("id"))
            fields = {}
        elif not name:
            yield None
        elif name == "data" and "data" in fields:
            fields["data"] += f"\n{value}"
        else:
            fields[name] = value


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines; the pieces of a long one are put together once."""
    begun: list[bytes] = []
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for end in ended:
            yield b"".join((*begun, end)).removesuffix(b"\r").decode(errors="replace")
            begun = []
        begun.append(rest)
