"""A service of one long run, played from a script: for what the real one cannot be made to do, such as a cut stream."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from tests.support.http_servers import Answering, listening

RUN = "run-00000000000000000000000000000001"
SESSION = "session-00000000-0000-0000-0000-000000000001"
SECONDS = 60

Message = dict[str, Any]


def says(*blocks: Message, call: str = "msg_1", within: str | None = None) -> Message:
    """An answer of the model's, as Claude Code prints it; of a subagent `within` a call of a tool."""
    message = {"id": call, "role": "assistant", "content": list(blocks)}
    return {"type": "assistant", "message": message, "parent_tool_use_id": within}


def text(words: str) -> Message:
    return {"type": "text", "text": words}


def uses(name: str, **given: Any) -> Message:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}


def comes_back(content: Any, *, failed: bool = False) -> Message:
    """What a tool came back with."""
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, "is_error": failed}
    return {"type": "user", "message": {"role": "user", "content": [result]}, "parent_tool_use_id": None}


MESSAGES = [
    {"type": "system", "subtype": "init", "cwd": "/scratch/workspace", "model": "claude-opus-5-5"},
    says(text("I look at the tests first."), call="msg_1"),
    says(
        uses(
            "Bash",
            command="pytest -q tests/test_sum.py tests/test_total.py\n# all that the report names, as it came",
            description="Run the tests",
        ),
        call="msg_1",
    ),
    comes_back("2 failed", failed=True),
    says(
        {"type": "thinking", "thinking": "Hm."}, uses("Edit", file_path="/scratch/workspace/src/sum.py"), call="msg_2"
    ),
    comes_back([{"type": "text", "text": "done"}]),
    says(uses("Task", description="Find the callers", prompt="Look."), call="msg_3"),
    says(uses("Grep", pattern="total(", path="src"), call="msg_4", within="toolu_1"),
    comes_back("none"),
    says(text("Both tests pass now."), call="msg_5"),
    {"type": "result", "subtype": "success", "result": "Both tests pass now."},
]
ANSWER: Message = {
    "success": True,
    "session_id": SESSION,
    "run_id": RUN,
    "result": "Both tests pass now.",
    "stop_reason": "end_turn",
    "num_turns": 5,
    "cost_usd": 1.25,
    "duration_ms": 754_000,
    "files": [{"path": "src/sum.py", "change": "modified", "size": 120}],
}
CANCELLED = ANSWER | {"result": None, "stop_reason": "cancelled"}
FAILURE: Message = {"success": False, "code": "AgentCrashed", "error": "It crashed.", "retryable": True, "run_id": RUN}


@dataclass
class Script:
    """What the service does."""

    messages: list[Message] = field(default_factory=lambda: list(MESSAGES))
    answer: Message = field(default_factory=lambda: dict(ANSWER))
    cuts: list[int] = field(default_factory=list)
    """After how many messages the next streams break off, without the end of their last event."""
    held: bool = False
    """Whether the run goes on after its last message, until it is cancelled."""
    deaf: bool = False
    """Whether it goes on even then."""
    old: bool = False
    """Whether the service knows no `Prefer`."""
    lost: bool = False
    gone: bool = False
    """Whether it breaks off every stream for which there is no cut."""
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    """Method, path, headers and body of each request."""
    shown: Event = field(default_factory=Event)
    """Whether all messages have been sent."""
    cancelled: Event = field(default_factory=Event)

    def paths(self, method: str = "GET") -> list[str]:
        """Those that were asked for so."""
        return [path for asked, path, _, _ in self.asked if asked == method]

    def resumed(self) -> list[str | None]:
        """The `Last-Event-ID` of each stream."""
        return [headers.get("last-event-id") for _, path, headers, _ in self.asked if path.endswith("/events")]


class _Service(Answering):
    script: Script

    def _begin(self) -> None:
        body = json.loads(self.received()) if self.headers["content-length"] else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.asked.append((self.command, self.path, headers, body))

    def _says(self, status: int, document: Message) -> None:
        self.answer(status, json.dumps(document).encode(), {"content-type": "application/json"})

    def _under_way(self, status: str) -> Message:
        words = {"since": "2026-11-27T05:00:00Z", "deadline": "2026-11-27T06:00:00Z", "doing": None}
        return {"success": True, "status": status, "session_id": SESSION, "run_id": RUN, "cost_usd": 0.5, **words}

    def _ended(self) -> None:
        self._says(200 if self.script.answer["success"] else 500, self.script.answer)

    def _is_mine(self) -> bool:
        if self.headers["x-api-key"] == "wrong":
            self._says(403, {"success": False, "code": "Forbidden", "error": "No.", "retryable": False})
        elif RUN in self.path:
            return True
        else:
            failure = {"success": False, "code": "RunNotFound", "error": "The run was not found.", "retryable": False}
            self._says(404, failure)
        return False

    @property
    def _goes_on(self) -> bool:
        return self.script.held and (self.script.deaf or not self.script.cancelled.is_set())

    def do_POST(self) -> None:
        self._begin()
        if self.script.old or "respond-async" not in self.headers.get("prefer", ""):
            return self._ended()
        return self._says(202, self._under_way("running"))

    def do_DELETE(self) -> None:
        self._begin()
        if self._is_mine():
            self.script.cancelled.set()
            self._says(202, self._under_way("cancelling"))

    def do_GET(self) -> None:
        self._begin()
        if not self._is_mine():
            return
        if self.path.endswith("/events"):
            self._stream()
        elif self._goes_on or self.script.lost:
            self._says(200, self._under_way("lost" if self.script.lost else "running"))
        else:
            self._ended()

    def _stream(self) -> None:
        if self.script.gone and not self.script.cuts:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._chunk(": welcome\n\n")
        cut = self.script.cuts.pop(0) if self.script.cuts else None
        for number, message in enumerate(self.script.messages, 1):
            if number > int(self.headers.get("last-event-id", 0)):
                event = f"id: {number}\nevent: message\ndata: {json.dumps(message)}\n\n"
                self._chunk(event[:-1] if number == cut else event)
            if number == cut:
                self.close_connection = True
                return
        self.script.shown.set()
        while self._goes_on:
            self._chunk(": \n\n")
            self.script.cancelled.wait(0.1 if not self.script.deaf else 1)
        name, data = ("lost", {}) if self.script.lost else ("answer", self.script.answer)
        self._chunk(f"event: {name}\ndata: {json.dumps(data)}\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: str) -> None:
        data = piece.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextmanager
def playing(script: Script) -> Iterator[str]:
    """The URL of `POST /claude-code` of such a service."""
    with listening(_Service, script=script) as url:
        yield f"{url}/claude-code"
