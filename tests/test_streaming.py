"""The runtime of functions that answer piece by piece, against a Runtime API of the test's."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from lambdas.strict import Json
from tests.support.http_servers import Answering, listening
from tests.support.waiting import SECONDS

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = """
import time
from lambdas.streaming import Streamed

def pieces(event):
    yield b"first"
    yield b""
    if event.get("breaks"):
        raise ValueError("in the middle")
    while event.get("waits"):
        yield b"more"
        time.sleep(0.02)
    yield "z\\u00e4hlt".encode()

def handler(event):
    if event.get("refuses"):
        raise KeyError("at once")
    return Streamed(201, {"Content-Type": "text/plain"}, pieces(event))
"""


@dataclass
class Told:
    """What the runtime told of an event."""

    path: str
    headers: dict[str, str]
    pieces: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class RuntimeApi:
    """As much of Lambda's Runtime API as a runtime needs."""

    events: "Queue[Json]" = field(default_factory=Queue)
    told: "Queue[Told]" = field(default_factory=Queue)
    piece: threading.Event = field(default_factory=threading.Event)
    hangs_up: bool = False
    """After the third piece."""


class _Asked(Answering):
    api: RuntimeApi

    def do_GET(self) -> None:
        assert self.path == "/2018-06-01/runtime/invocation/next"
        event = self.api.events.get()
        self.answer(200, json.dumps(event).encode(), {"Lambda-Runtime-Aws-Request-Id": f"request-{event['n']}"})

    def do_POST(self) -> None:
        told = Told(self.path, {name.lower(): value for name, value in self.headers.items()})
        if "content-length" in told.headers:
            told.pieces.append(self.received())
        elif self._chunks(told):
            self.close_connection = True
            self.api.told.put(told)
            return
        self.api.told.put(told)
        self.answer(202)

    def _chunks(self, told: Told) -> bool:
        """Whether this side hangs up before the end."""
        while size := int(self.rfile.readline(), 16):
            told.pieces.append(self.rfile.read(size))
            assert self.rfile.read(2) == b"\r\n"
            if self.api.hangs_up and len(told.pieces) == 3:
                return True
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            told.trailers[name.lower()] = value
        return False


@contextmanager
def runtime(folder: Path, api: RuntimeApi, handler: str = "functions.handler") -> Iterator["subprocess.Popen[str]"]:
    """The runtime, started by the script as Lambda starts it: with its own Python, and what that should have run."""
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "lambdas").symlink_to(ROOT / "lambdas")
    with listening(_Asked, api=api) as url:
        process = subprocess.Popen(
            ["/bin/sh", ROOT / "lambdas/streaming.sh", sys.executable, "/var/runtime/bootstrap.py"],
            env={
                "PATH": os.environ["PATH"],
                "AWS_LAMBDA_RUNTIME_API": url.removeprefix("http://"),
                "LAMBDA_TASK_ROOT": str(folder),
                "_HANDLER": handler,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            api.events.put({"n": 0})  # for the thread that waits to give one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeApi]:
    """A runtime that all tests send their events to."""
    api = RuntimeApi()
    with runtime(tmp_path_factory.mktemp("task"), api):
        yield api


def answered(api: RuntimeApi, n: int, **event: Any) -> Told:
    api.events.put({"n": n, **event})
    return api.told.get(timeout=SECONDS)


def test_an_answer_goes_out_piece_by_piece(served: RuntimeApi) -> None:
    """Behind its status and headers, as API Gateway takes them; what is empty is no piece. Then comes the next one."""
    for n in (1, 2):
        told = answered(served, n)
        assert told.path == f"/2018-06-01/runtime/invocation/request-{n}/response"
        assert told.headers["lambda-runtime-function-response-mode"] == "streaming"
        assert told.headers["transfer-encoding"] == "chunked"
        assert told.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
        prelude, first, last = told.pieces
        assert prelude.endswith(bytes(8))
        assert json.loads(prelude[:-8]) == {"statusCode": 201, "headers": {"Content-Type": "text/plain"}}
        assert (first, last.decode()) == (b"first", "zählt")
        assert told.trailers == {}


def test_what_breaks_before_its_answer_is_the_invocations_error(served: RuntimeApi) -> None:
    """Lambda is told its class; the function serves the next event."""
    told = answered(served, 3, refuses=True)
    assert told.path == "/2018-06-01/runtime/invocation/request-3/error"
    assert told.headers["lambda-runtime-function-error-type"] == "KeyError"
    assert json.loads(told.body) == {"errorType": "KeyError", "errorMessage": "'at once'"}
    assert answered(served, 4).pieces[1:]


def test_what_breaks_in_the_middle_is_told_behind_what_went_out(served: RuntimeApi) -> None:
    """In the answer's trailers."""
    told = answered(served, 5, breaks=True)
    assert told.pieces[1:] == [b"first"]
    assert told.trailers["lambda-runtime-function-error-type"] == "ValueError"
    error = json.loads(base64.b64decode(told.trailers["lambda-runtime-function-error-body"]))
    assert error == {"errorType": "ValueError", "errorMessage": "in the middle"}
    assert answered(served, 6).trailers == {}


def test_who_hangs_up_ends_the_answer_and_not_the_function(served: RuntimeApi) -> None:
    """It serves the next event."""
    served.hangs_up = True
    try:
        assert len(answered(served, 7, waits=True).pieces) == 3
    finally:
        served.hangs_up = False
    assert answered(served, 8).pieces[1:]


def test_a_handler_that_cannot_be_loaded_is_told_once(tmp_path: Path) -> None:
    """With its class; Lambda decides what becomes of it."""
    api = RuntimeApi()
    with runtime(tmp_path, api, "functions.missing") as process:
        told = api.told.get(timeout=SECONDS)
        assert process.wait(SECONDS) == 1
    assert told.path == "/2018-06-01/runtime/init/error"
    assert json.loads(told.body)["errorType"] == "AttributeError"
