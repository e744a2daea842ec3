"""Runs seen and ended over HTTP while they go on: real runs of a real service, of which only the model is scripted."""

import http.client
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from claude_workflow.local.watching import SharedBucket
from lambdas.request import run_id
from lambdas.settings import ReaderSettings
from lambdas.stream_run import StreamRun
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support import patched_service
from tests.support.client import Client
from tests.support.played_workflow import unlinked
from tests.support.waiting import SECONDS, eventually


@pytest.fixture(scope="module")
def running(unhurried: Json, in_memory: InMemory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two callers."""
    with ScriptedModel() as model:
        added = {"SCRATCH": str(tmp_path_factory.mktemp("scratch"))}
        state = in_memory("watching")
        with patched_service.serving(state, unhurried, Model(model.url, "sk-scripted"), added) as started:
            yield started


@dataclass
class Asked:
    """A run that its POST waits for."""

    service: Service
    run: str
    answer: "Future[tuple[int, Json, dict[str, str]]]"

    def send(self, method: str = "GET", below: str = "", caller: str = "default-1", **headers: str) -> tuple[int, Json]:
        """A request about it, and its answer."""
        with self.open(method, below, caller, **headers) as response:
            return response.status, json.loads(response.read() or b"{}")

    @contextmanager
    def open(
        self, method: str = "GET", below: str = "", caller: str = "default-1", **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """The same, with the answer unread."""
        address, _, path = self.service.url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(address, timeout=SECONDS)
        sent = {"x-api-key": self.service.keys[caller]} | {name.replace("_", "-"): v for name, v in headers.items()}
        try:
            connection.request(method, f"/{path}/runs/{self.run}{below}", headers=sent)
            yield connection.getresponse()
        finally:
            connection.close()


@contextmanager
def asked(service: Service, prompt: str) -> Iterator[Asked]:
    """A run, from when it is recorded; in the end, its answer is waited for."""
    key = str(uuid.uuid4())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(Client(service).post, {"prompt": prompt}, idempotency_key=key)
        begun = Asked(service, run_id("default", key), answer)
        assert eventually(lambda: begun.send()[0] == 200)
        yield begun


def test_a_run_of_another_caller_is_not_found_on_any_path(running: Service) -> None:
    """Not to be seen, not to be followed, not to be ended; its own caller sees it all the while, and its end."""
    with asked(running, "wait 2") as begun:
        for method, below in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "?wait=5")):
            status, answer = begun.send(method, below, caller="another")
            assert (status, answer["code"]) == (404, "RunNotFound")
            with begun.open(method, below.partition("?")[0], x_api_key="wrong") as refused:
                assert refused.status == 403
        assert begun.send()[1]["status"] == "running"
        status, answer, _ = begun.answer.result()
        assert (status, answer["stop_reason"]) == (200, "end_turn")
        assert begun.send()[1].items() >= {"run_id": begun.run, "result": answer["result"]}.items()


def events(response: http.client.HTTPResponse, most: int = 1 << 30) -> Iterator[tuple[str, str, str]]:
    """Kind, id and data of those that come, `most` at the most."""
    fields: dict[str, str] = {}
    while most and (line := response.readline()):
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], fields.get("id", ""), fields["data"]
            most -= 1
            fields = {}


STEPS = "write notes.txt: one\nwait 2\nread notes.txt"


def test_who_comes_back_misses_nothing_of_a_run(running: Service) -> None:
    """One that goes on meanwhile: its messages by their numbers, and at last the very answer of its POST."""
    with asked(running, STEPS) as begun:
        seen: list[tuple[str, str, str]] = []
        while not seen or seen[-1][0] != "answer":
            with begun.open(below="/events", last_event_id=seen[-1][1] if seen else "0") as stream:
                assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
                seen += events(stream, most=3)
        status, answer, _ = begun.answer.result()
        *messages, (_, last, data) = seen
        assert status == 200
        assert [int(number) for _, number, _ in messages] == list(range(1, int(last)))
        assert [json.loads(message) for _, _, message in messages] == answer["messages"]
        assert unlinked(json.loads(data)) == unlinked(answer)
        with begun.open(below="/events", last_event_id=last) as nothing:
            assert nothing.status == 204


def test_a_get_says_what_becomes_of_a_run(running: Service) -> None:
    """While it goes on, by waiting for news, and when it has failed: as its POST is answered."""
    with asked(running, "run sleep 2\nstatus 400") as begun:
        told = begun.send()[1]
        assert (told["success"], told["status"], told["run_id"]) == (True, "running", begun.run)
        status = 200
        while status == 200:
            status, told = begun.send(below="?wait=20")
        assert (status, told) == begun.answer.result()[:2]
        assert (status, told["code"]) == (422, "ModelRejected")
        assert begun.send("DELETE") == (200, told)


WATCHERS = 100


def test_a_hundred_watch_one_run(running: Service) -> None:
    """Each gets all of it, and POSTs are answered all the while."""
    with asked(running, f"{STEPS}\nwait 2\nread notes.txt") as begun, ThreadPoolExecutor(WATCHERS) as pool:

        def watch(_: int) -> list[tuple[str, str, str]]:
            with begun.open(below="/events") as stream:
                return list(events(stream))

        watching = [pool.submit(watch, n) for n in range(WATCHERS)]
        assert Client(running).post({"prompt": "another"})[0] == 200
        _, answer, _ = begun.answer.result()
        for each in watching:
            *messages, last = each.result()
            assert [json.loads(data) for _, _, data in messages] == answer["messages"]
            assert unlinked(json.loads(last[2])) == unlinked(answer)


class CountingS3:
    """A client that counts what it is asked for."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._s3, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self.asked[f"{name}_part" if "Range" in more else name] += 1
            return method(*arguments, **more)

        return counted


def test_a_hundred_are_no_more_to_the_engine_than_one(running: Service) -> None:
    """What one of them has just asked, the others are told."""
    counted = CountingS3(running.engine.client("s3"))
    bucket = SharedBucket(counted, running.deployed.bucket)
    settings = ReaderSettings.read(running.deployed.environment("StreamRun"))
    stream = StreamRun(settings, bucket, time.time, time.sleep)
    with asked(running, "wait 3") as begun, ThreadPoolExecutor(WATCHERS) as pool:
        caller = {"identity": {"apiKeyId": next(iter(settings.callers))}}
        event = {"httpMethod": "GET", "resource": "x/events", "path": "", "pathParameters": {"run_id": begun.run}}
        watching = [
            pool.submit(lambda: b"".join(stream.stream(event | {"requestContext": caller}).pieces))
            for _ in range(WATCHERS)
        ]
        assert len({each.result()[:1000] for each in watching}) == 1
    assert counted.asked["get_object_part"] < WATCHERS
    assert counted.asked["get_paginator"] < WATCHERS
