"""The contract's status table by curl, row by row, against the service that `claude-workflow serve` runs."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.cli import backend
from claude_workflow.local.guard import BUCKET
from lambdas import errors
from lambdas.settings import EXPOSED_HEADERS
from tests.support.commands import Serve
from tests.support.foreign_programs import program
from tests.support.waiting import eventually

JSON = ("-H", "content-type: application/json")
KEY = ("-H", "x-api-key: @KEY@")
USUAL = (*JSON, *KEY)
FAILURE = {"success", "error", "code", "retryable", "session_id", "run_id", "cost_usd"}


@dataclass(frozen=True)
class Answer:
    """What curl got."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text)
        return document


def curl(serve: Serve, *arguments: str, path: str = "") -> Answer:
    """One request. Waits and repeats where it comes faster than a key's rate allows, as callers should."""
    for _ in range(5):
        answer = once(serve, *arguments, path=path)
        if answer.status != 429 or answer.json["code"] != "Throttled":
            break
        time.sleep(int(answer.headers["retry-after"]))
    return answer


def once(serve: Serve, *arguments: str, path: str = "") -> Answer:
    """One request, or as many as a range in the path asks for, over one connection: the last answer."""
    filled = [argument.replace("@KEY@", serve.key) for argument in arguments]
    line = [program("curl", "curl"), "-sSi", "--max-time", "60", *filled, path or serve.url]
    # Bytes: in text mode, Python would take the line ends of HTTP for its own.
    shown = subprocess.run(line, capture_output=True, check=True).stdout.decode()
    # Before the last one may be others: that of an earlier request, or 100 to a large body that curl asks about.
    head, text = ("HTTP/1.1 " + shown.rpartition("HTTP/1.1 ")[2]).split("\r\n\r\n", 1)
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return Answer(int(first.split()[1]), headers, text)


ROWS: list[tuple[str, list[str], int, str, str]] = [
    ("no prompt", [*USUAL, "-d", "{}"], 400, "InvalidRequest", "prompt"),
    ("an empty prompt", [*USUAL, "-d", '{"prompt": " "}'], 400, "InvalidRequest", "prompt"),
    ("an unknown field", [*USUAL, "-d", '{"prompt": "x", "colour": 1}'], 400, "InvalidRequest", "colour"),
    ("half a surrogate pair", [*USUAL, "-d", r'{"prompt": "half \ud83d"}'], 400, "InvalidRequest", "UTF-8"),
    (
        "a number that is none",
        [*USUAL, "-d", '{"prompt": "x", "max_budget_usd": 1e999}'],
        400,
        "InvalidRequest",
        "JSON",
    ),
    (
        "a key with a space",
        [*USUAL, "-H", "idempotency-key: a b", "-d", '{"prompt": "x"}'],
        400,
        "InvalidRequest",
        "Idempotency-Key",
    ),
    ("no credential", [*JSON, "-d", '{"prompt": "x"}'], 403, "Forbidden", "credential"),
    ("a wrong key", [*JSON, "-H", "x-api-key: wrong", "-d", "{}"], 403, "Forbidden", "credential"),
    (
        "an unknown session",
        [*USUAL, "-d", '{"prompt": "x", "session_id": "session-unknown"}'],
        404,
        "SessionNotFound",
        "not found",
    ),
    ("GET", ["-X", "GET"], 405, "MethodNotAllowed", "not allowed"),
    ("PUT of JSON", [*USUAL, "-X", "PUT", "-d", "{}"], 405, "MethodNotAllowed", "not allowed"),
    ("a large body", [*USUAL, "-d", "@LARGE@"], 413, "RequestTooLarge", "240 KiB"),
    ("a huge body", [*USUAL, "-d", "@HUGE@"], 413, "RequestTooLarge", "240 KiB"),
    ("a form", [*KEY, "-d", "prompt=x"], 415, "UnsupportedMediaType", "application/json"),
    ("a refusal of the model", [*USUAL, "-d", '{"prompt": "status 400"}'], 422, "ModelRejected", "provider"),
    ("a crash", [*USUAL, "-d", '{"prompt": "crash"}'], 502, "AgentCrashed", "Claude Code"),
    ("a refused model key", [*USUAL, "-d", '{"prompt": "status 401"}'], 502, "ModelUnauthorized", "credential"),
    ("a provider that fails", [*USUAL, "-d", '{"prompt": "status 529"}'], 503, "ModelOverloaded", "try again"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "code", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_row_of_the_status_table(
    serve: Serve, tmp_path: Path, arguments: list[str], status: int, code: str, says: str
) -> None:
    """The status, the code, a sentence that helps, the shape of every failure, and the CORS header."""
    large = {"@LARGE@": 250_000, "@HUGE@": 11_000_000}
    if (size := large.get(arguments[-1])) is not None:
        (tmp_path / "body").write_text(json.dumps({"prompt": "x" * size}))
        arguments = [*arguments[:-1], f"@{tmp_path / 'body'}"]
    answer = curl(serve, *arguments)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert errors.statuses()[code] == status
    assert says in answer.json["error"]
    assert set(answer.json) - {"resumes"} == FAILURE
    assert answer.json["success"] is False
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-expose-headers"] == EXPOSED_HEADERS
    assert answer.headers.get("allow") == ("POST, OPTIONS" if status == 405 else None)


def test_an_answer_is_200(serve: Serve) -> None:
    """Whatever the case of the header's name and the parameters of the content type."""
    answer = curl(
        serve, "-H", "Content-Type: Application/JSON; charset=utf-8", "-H", "X-API-KEY: @KEY@", "-d", '{"prompt": "Hi"}'
    )
    assert (answer.status, answer.json["success"]) == (200, True)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "application/json"


def test_a_throttling_model_says_when_to_come_back(serve: Serve) -> None:
    """429 of the provider, with Retry-After."""
    answer = curl(serve, *USUAL, "-d", '{"prompt": "status 429 retry-after 61"}')
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (429, "ModelRateLimited", True)
    assert int(answer.headers["retry-after"]) > 0


def test_too_many_requests_are_told_when_to_come_back(serve: Serve) -> None:
    """429 of the gateway, with Retry-After, before anything was run."""
    for _ in range(9):  # one request in 0.2 s is let in, and it may be the last of the sixty
        answer = once(serve, *USUAL, "-d", "[]", path=f"{serve.url}?[1-60]")
        if answer.status == 429:
            break
    assert (answer.json["code"], answer.json["retryable"]) == ("Throttled", True)
    assert set(answer.json) - {"resumes"} == FAILURE
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_busy_session_says_when_to_come_back(serve: Serve) -> None:
    """409 with Retry-After for a second run on the session, and for the same key while its run goes on."""
    session = curl(serve, *USUAL, "-d", '{"prompt": "Hello"}').json["session_id"]
    slow = json.dumps({"prompt": "wait 8", "session_id": session})
    lease = {"Bucket": BUCKET, "Prefix": f"locks/{session}"}
    held = ("-H", "idempotency-key: held")
    line = [program("curl", "curl"), "-sS", *USUAL, *held, "-d", slow, serve.url]
    line = [part.replace("@KEY@", serve.key) for part in line]
    there = backend.found(serve.state, None, starts=False)
    with there as found, subprocess.Popen(line, stdout=subprocess.PIPE) as running:
        assert eventually(lambda: found.client("s3").list_objects_v2(**lease).get("Contents"))
        busy = curl(serve, *USUAL, "-d", json.dumps({"prompt": "Hi", "session_id": session}))
        same = curl(serve, *USUAL, *held, "-d", slow)
        answered, _ = running.communicate(timeout=60)
    assert json.loads(answered)["success"] is True
    assert [(answer.status, answer.json["code"]) for answer in (busy, same)] == [
        (409, "SessionBusy"),
        (409, "RunInProgress"),
    ]
    for answer in (busy, same):
        assert answer.json["retryable"]
        assert 1 <= int(answer.headers["retry-after"]) <= 6
        assert f"gain in {answer.headers['retry-after']} second" in answer.json["error"]
    other = curl(serve, *USUAL, *held, "-d", '{"prompt": "another body"}')
    assert (other.status, other.json["code"]) == (422, "IdempotencyMismatch")
