"""A run's messages as they come, and its answer: the function, on real records and a clock of the test's."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from claude_workflow.local.watching import SharedBucket
from lambdas.bucket import following, record
from lambdas.bucket.following import PIECE, UNREADABLE, Messages
from lambdas.bucket.objects import Bucket
from lambdas.stream_run import SILENT_SECONDS, STREAM_SECONDS
from lambdas.strict import Json
from tests.support.past_runs import Past
from tests.support.played_workflow import LEASE_SECONDS, unlinked
from tests.support.reading import Going, event, going, lines, reader, streamer


@dataclass
class Event:
    """One server-sent event, as the standard has it read."""

    kind: str
    data: str
    id: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def read(text: bytes) -> list[Event]:
    """The events of a stream. Fails for what the standard would read otherwise than it is meant."""
    events = []
    for block in text.decode().split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            assert "\r" not in line
            name, _, value = line.partition(": ")
            assert name in ("", "retry", "id", "event", "data"), line
            assert name == "" or name not in fields
            fields[name] = value
        if "data" in fields:
            events.append(Event(fields["event"], fields["data"], fields.get("id")))
    return events


@dataclass
class Watcher:
    """Who watches a run, on a clock that goes on by the pauses of the stream alone; at each of them `then` happens."""

    bucket: Bucket
    then: Callable[[], object] = lambda: None
    at: float = field(default_factory=time.time)
    pauses: int = 0

    def watch(self, run: str, **headers: str) -> tuple[int, bytes]:
        """The status, and all of the body."""
        answer = streamer(self.bucket, lambda: self.at, self._pause).stream(event("GET", run, events=True, **headers))
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        return answer.status, b"".join(answer.pieces)

    def _pause(self, seconds: float) -> None:
        self.at += seconds
        self.pauses += 1
        self.then()


def watched(history: Past, run: str, **headers: str) -> list[Event]:
    status, body = Watcher(history.store).watch(run, **headers)
    assert status == 200
    assert body.startswith(b"retry: 1000\n\n")
    return read(body)


def told(history: Past, run: str) -> Json:
    answer: Json = json.loads(reader(history.store).answer(event("GET", run))["body"])
    return answer


def ended(history: Past, begun: Going) -> None:
    """Its answer is written."""
    record.answer(history.store, begun.run, {"session_id": begun.task.session_id, "run_id": begun.run})


@pytest.mark.parametrize("ending", ["done", "failed"])
def test_a_run_that_has_ended_is_told_at_once(history: Past, ending: str) -> None:
    """Its messages, as they were printed, and what GET answers, with the number behind theirs."""
    run = history.play(ending)
    (staged,) = [key for key in history.objects() if key.startswith(f"runs/{run}/") and key.endswith("/started")]
    messages: list[Json] = [{"type": "system", "text": "ä\u2028\n"}, {"type": "result"}]
    key = staged.replace("started", "messages.json")
    history.s3.put_object(Bucket=history.bucket, Key=key, Body=lines(*messages))
    *first, last = watched(history, run)
    assert [(one.kind, one.id, one.json) for one in first] == [
        ("message", "1", messages[0]),
        ("message", "2", messages[1]),
    ]
    assert (last.kind, last.id, unlinked(last.json)) == ("answer", "3", unlinked(told(history, run)))


@pytest.mark.parametrize(("last", "ids"), [("0", ["1", "2", "3"]), ("1", ["2", "3"]), ("2", ["3"])])
def test_whoever_comes_back_gets_what_is_behind_the_last(history: Past, last: str, ids: list[str]) -> None:
    """And no message twice."""
    begun = going(history)
    begun.stages(lines({"n": 1}, {"n": 2}))
    ended(history, begun)
    assert [one.id for one in watched(history, begun.run, Last_Event_ID=last)] == ids
    asked = event("GET", begun.run, events=True) | {"queryStringParameters": {"last_event_id": last}}
    assert [one.id for one in read(b"".join(streamer(history.store).stream(asked).pieces))] == ids


@pytest.mark.parametrize("last", ["3", "999999"])
def test_behind_the_answer_there_is_nothing(history: Past, last: str) -> None:
    """204: a browser's EventSource gives up coming back then."""
    begun = going(history)
    begun.stages(lines({"n": 1}, {"n": 2}))
    ended(history, begun)
    assert Watcher(history.store).watch(begun.run, last_event_id=last) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "1" * 16])
def test_an_id_that_is_none_is_refused(history: Past, last: str) -> None:
    """As JSON, as every refusal."""
    status, body = Watcher(history.store).watch(history.play("done"), last_event_id=last)
    assert (status, json.loads(body)["code"]) == (400, "InvalidRequest")


@pytest.mark.parametrize("run", ["run-" + "0" * 32, "nothing", None])
def test_there_is_no_stream_of_what_is_not_the_callers(history: Past, run: str | None) -> None:
    """404, as GET says it."""
    asked = event("GET", run or history.play("done"), events=True, key="key-3" if run is None else "key-1")
    answer = streamer(history.store).stream(asked)
    assert (answer.status, json.loads(b"".join(answer.pieces))["code"]) == (404, "RunNotFound")


def test_messages_come_as_they_are_staged(history: Past) -> None:
    """Over two attempts, each once, until the answer; what was staged already comes first."""
    key = str(uuid.uuid4())
    history.play("failed", key=key, ago=100)
    first = going(history, key=key, ago=20)
    history.s3.delete_object(Bucket=history.bucket, Key=f"locks/{first.task.session_id}.json")
    steps: Iterator[Callable[[], None]] = iter(
        [
            lambda: first.stages(lines({"n": 1}, {"n": 2})),
            lambda: None,
            lambda: first.stages(lines({"n": 1}, {"n": 2}, {"n": 3})),
            lambda: going(history, key=key).stages(lines({"n": 4})),
            lambda: ended(history, first),
        ]
    )
    status, body = Watcher(history.store, lambda: next(steps)()).watch(first.run)
    *messages, last = read(body)
    assert status == 200
    assert [(one.id, one.json["n"]) for one in messages] == [(str(n), n) for n in (1, 2, 3, 4)]
    assert (last.kind, last.id) == ("answer", "5")


def test_a_stream_ends_by_itself_and_shows_that_it_is_alive(history: Past) -> None:
    """After five minutes without an answer, with a comment every 15 seconds."""
    begun = going(history, ago=-STREAM_SECONDS)
    watcher = Watcher(history.store)
    _, body = watcher.watch(begun.run)
    assert read(body) == []
    assert (watcher.pauses, body.count(b": still running\n\n")) == (
        STREAM_SECONDS,
        (STREAM_SECONDS - 1) // SILENT_SECONDS,
    )


def test_a_lost_run_is_told_and_may_go_on(history: Past) -> None:
    """Without a number, so that whoever comes back, seldom, misses nothing."""
    begun = going(history, ago=LEASE_SECONDS + 5)
    begun.stages(lines({"n": 1}))
    status, body = Watcher(history.store).watch(begun.run)
    message, lost = read(body)
    assert (status, message.id, lost.kind, lost.id) == (200, "1", "lost", None)
    assert lost.json == told(history, begun.run)
    assert lost.json["status"] == "lost"
    assert b"retry: 60000\n" in body


STRANGE = [
    b'{"n": 1}\r,{"event": "answer"}',
    b'{"a":\r1,\r"b": 2}',
    b"[1, {}, null]",
    b"null",
    b'"a text"',
    b"{",
    b"\xff\xfe{\x00}\x00",
    b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"a": NaN}',
    b'{"a": "\ndata: {}\n\nevent: answer"}',
    b'{"text": "' + "\N{GRINNING FACE}".encode() * 100 + b'"}',
]


def test_what_a_stranger_staged_breaks_no_stream(history: Past) -> None:
    """Neither a line end of whatever kind nor what is no message: each event is one JSON object, in order."""
    begun = going(history)
    begun.stages(b"[\n" + b",\n".join(STRANGE) + b"\n]\n")
    ended(history, begun)
    *messages, last = watched(history, begun.run)
    assert all(isinstance(one.json, dict) and one.kind == "message" for one in messages)
    assert [one.id for one in messages] == [str(n + 1) for n in range(len(messages))]
    assert last.id == str(len(messages) + 1)
    assert {"a": 1, "b": 2} in [one.json for one in messages]


# --- what is read of it ---


@dataclass(frozen=True)
class Counting(Bucket):
    """Notes how much is read at a time, and from where."""

    parts: list[tuple[int, int]] = field(default_factory=list)

    def read_part(self, key: str, start: int, most: int) -> bytes:
        part = super().read_part(key, start, most)
        self.parts.append((start, len(part)))
        return part


def test_what_was_read_is_not_read_again(history: Past) -> None:
    """From the last message's end on; nothing where nothing has come."""
    begun, bucket = going(history), Counting(history.s3, history.bucket)
    messages, asked = Messages(bucket), record.request(history.store, begun.run)
    assert asked is not None
    standing = partial(following.standing, bucket, asked, LEASE_SECONDS, time.time())

    def new() -> list[bytes]:
        return list(messages.new(standing().attempts))

    begun.stages(lines({"n": 1}, {"n": "2" * 1000}))
    assert len(new()) == 2
    assert new() == []
    begun.stages(lines({"n": 1}, {"n": "2" * 1000}, {"n": 3}))
    assert new() == [b'{"n": 3}']
    (first, whole), (second, more) = bucket.parts
    assert (first, second) == (0, whole - len(b"\n]\n"))
    assert more == len(b',\n{"n": 3}\n]\n')


def many() -> Iterator[bytes]:
    """Files whose messages lie across the pieces that are read, or are too long."""
    yield lines(*({"n": n, "text": "x" * 300_000} for n in range(12)))
    yield lines({"text": "x" * (PIECE - 30)}, {"n": 2}, {"n": 3})
    yield lines({"text": "x" * (PIECE - 17)}, {"n": 2})
    yield json.dumps([{"n": n, "text": "x" * 1000} for n in range(2000)]).encode()


def test_what_another_was_told_is_not_less_than_there_is(history: Past) -> None:
    """On one machine readers share what they read: not that of before, where there is more by now."""
    begun, bucket = going(history), SharedBucket(history.s3, history.bucket)
    for messages in ([{"n": 1}], [{"n": 1}, {"n": 2}]):
        begun.stages(lines(*messages))
        assert len(list(Messages(bucket).new({begun.attempt: len(lines(*messages))}))) == len(messages)


@pytest.mark.parametrize("whole", list(many()), ids=["many", "over a piece", "to its end", "of before"])
def test_messages_are_whole_wherever_a_piece_ends(history: Past, whole: bytes) -> None:
    """None is lost, none is cut, none comes twice."""
    begun, bucket = going(history), Counting(history.s3, history.bucket)
    begun.stages(whole)
    found = list(Messages(bucket).new({begun.attempt: len(whole)}))
    assert [json.loads(following.shown(one)) for one in found] == json.loads(whole)
    assert max(size for _, size in bucket.parts) <= PIECE


def test_a_message_that_is_too_long_is_counted(history: Past) -> None:
    """It is not held in memory, and those behind it have their numbers."""
    begun = going(history)
    begun.stages(lines({"n": 1}, {"text": "x" * (6 * PIECE)}, {"n": 3}))
    found = list(Messages(history.store).new({begun.attempt: 7 * PIECE}))
    assert [following.shown(one) for one in found] == [b'{"n": 1}', UNREADABLE, b'{"n": 3}']
    assert max(map(len, found)) < 2 * PIECE
