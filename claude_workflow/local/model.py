"""A scripted stand-in for the model: it speaks the Anthropic Messages API to the real Claude Code CLI.

**The rule.** It reads the last prompt of the user in the request. Each line of it that is a directive, from
the first to the last character of the line, is carried out, in order; other lines are only talk.

- *Tool calls*, one an answer: `write PATH: TEXT`, `read PATH`, `run COMMAND`, `sure COMMAND`,
  `tool NAME {JSON}`, `json {JSON}`, `crash`; `also NAME {JSON}` is one more of the same answer. The number of tool
  results since the prompt tells which one is next. After the last comes the final text, which quotes what they
  returned. A tool that the request does not offer is called all the same, as a hostile model would.
- *What befalls one answer*, namely that of the next tool call below (or the final one):
  `wait SECONDS [silent]`, `cost TOKENS`, `usage {JSON}`, `status CODE [retry-after SECONDS] [times N]`,
  `cut [times N]`, `garbage [times N]`.
- *What the final text says*, wherever they stand: `say TEXT`, `big N`.

`docs/stand-in.md` has the table with an example of each, which the tests run.

Nothing is remembered between requests, so a conversation survives a restart. The one exception is how often a
fault with `times N` has been served. Paths and texts are taken as they are, without quotes or escapes.
"""

import argparse
import asyncio
import json
import re
import socket
import threading
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import takewhile
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MARK = "[stand-in, no real model]"
"""Every final answer begins with it."""

PING_SECONDS = 1.0
"""How often a stream that waits says so; the API does it every few seconds."""

Fields = Mapping[str, str | None]

_TIMES = r"(?: times (?P<times>\d+))?"
_JSON = r"(?P<input>\{.*\})"
SYNTAX: dict[str, re.Pattern[str]] = {
    "write": re.compile(r"write (?P<path>\S+): (?P<text>.*)"),
    "read": re.compile(r"read (?P<path>\S+)"),
    "run": re.compile(r"run (?P<command>.+)"),
    "sure": re.compile(r"sure (?P<command>.+)"),
    "tool": re.compile(rf"tool (?P<name>\w+) {_JSON}"),
    "also": re.compile(rf"also (?P<name>\w+) {_JSON}"),
    "json": re.compile(rf"json {_JSON}"),
    "crash": re.compile(r"crash"),
    "wait": re.compile(r"wait (?P<seconds>\d+(?:\.\d+)?)(?P<silent> silent)?"),
    "cost": re.compile(r"cost (?P<tokens>\d+)"),
    "usage": re.compile(r"usage (?P<usage>\{.*\})"),
    "status": re.compile(rf"status (?P<code>[45]\d\d)(?: retry-after (?P<retry_after>\d+))?{_TIMES}"),
    "cut": re.compile(rf"cut{_TIMES}"),
    "garbage": re.compile(rf"garbage{_TIMES}"),
    "say": re.compile(r"say (?P<text>.*)"),
    "big": re.compile(r"big (?P<kilobytes>\d+)"),
}
"""What a whole line must look like to be a directive."""

CALLS: dict[str, Callable[[Fields], tuple[str, Any]]] = {
    "write": lambda f: ("Write", {"file_path": f["path"], "content": f["text"]}),
    "read": lambda f: ("Read", {"file_path": f["path"]}),
    "run": lambda f: ("Bash", {"command": f["command"]}),
    "sure": lambda f: ("Bash", {"command": f["command"]}),
    "tool": lambda f: (str(f["name"]), json.loads(str(f["input"]))),
    "also": lambda f: (str(f["name"]), json.loads(str(f["input"]))),
    "json": lambda f: ("StructuredOutput", json.loads(str(f["input"]))),
    # The shell's parent is the CLI: this is its death, not the command's.
    "crash": lambda _: ("Bash", {"command": "kill -9 $PPID"}),
}
"""The directives that are tool calls: the tool's name and its input."""

FAULTS = ("status", "cut", "garbage")

UNKNOWN = "its outcome is unknown"
"""What the CLI (2.1.332) says of a call whose result was lost, as it dies."""

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""`error.type` by status, as the API documents them; any other 4xx is a 400's, any other 5xx `api_error`."""

GARBAGE = b"\x00\xff\xfe these are not the events you are looking for \x00"

NOT_PROMPTS = (
    *("<system-reminder>", "[structured-output-enforce]", "[Request interrupted"),  # CLI 2.1.332
    "Continue from where you left off.",  # the same, where it goes on with a call that had waited
    "[This turn was cut off",  # RunClaude, where a replay goes on with a turn
)
"""How texts begin that stand among the user's without the user having said them."""


@dataclass
class Conversation:
    """What a request tells of the conversation so far."""

    prompts: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    """The tool results since the last prompt."""

    @classmethod
    def of(cls, messages: list[Any]) -> Self:
        """Read the messages of a request.

        Each text block is a prompt of its own: the CLI joins prompts that got no answer into one message.
        Messages of the role `system`, which the CLI sends in between, are not the user's.
        """
        seen = cls()
        for block in (b for m in messages if m["role"] == "user" for b in _blocks(m["content"])):
            if block["type"] == "tool_result":
                seen.results.append(_text(block.get("content", "")))
            elif block["type"] == "text" and not block["text"].startswith(NOT_PROMPTS):
                seen.prompts.append(block["text"])
                seen.results.clear()
        return seen


def _blocks(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: str | list[Any]) -> str:
    return "\n".join(b["text"] if b["type"] == "text" else f"<{b['type']}>" for b in _blocks(content))


@dataclass(frozen=True)
class RecordedRequest:
    """A Messages request as it arrived."""

    headers: Mapping[str, str]
    """Names in lower case."""
    raw: bytes
    """The body, byte for byte."""
    body: dict[str, Any]
    model: str
    conversation: Conversation


@dataclass(frozen=True)
class Directive:
    """One line of the prompt that asks for something."""

    verb: str
    line: str
    fields: Fields


def directives(prompt: str) -> list[Directive]:
    """The directives of a prompt, in order."""
    found = []
    for line in prompt.split("\n"):
        verb = line.partition(" ")[0]
        match = SYNTAX[verb].fullmatch(line) if verb in SYNTAX else None
        if match:
            found.append(Directive(verb, line, match.groupdict()))
    return found


def settled(script: list[Directive], results: list[str]) -> list[str]:
    """The results without those that say that nobody knows what came of a `sure` call, which is made again."""
    calls = iter([directive for directive in script if directive.verb in CALLS])
    kept: list[str] = []
    call = next(calls, None)
    for result in results:
        if call and call.verb == "sure" and UNKNOWN in result:
            continue
        kept.append(result)
        call = next(calls, None)
    return kept


def next_step(script: list[Directive], done: int) -> tuple[list[Directive], list[Directive]]:
    """After `done` calls: what befalls the next answer, and the calls that it makes (none: the final text)."""
    effects: list[Directive] = []
    for place, directive in enumerate(script):
        if directive.verb not in CALLS:
            effects.append(directive)
        elif done == 0:
            return effects, [directive, *takewhile(lambda later: later.verb == "also", script[place + 1 :])]
        else:
            done -= 1
            effects = []
    return effects, []


@dataclass(frozen=True)
class Answer:
    """One answer of the stand-in."""

    blocks: list[dict[str, Any]]
    """The content blocks: one `text`, or `tool_use`."""
    usage: dict[str, Any]
    wait: float = 0.0
    """Seconds before the content comes."""
    silent: bool = False
    """No pings meanwhile."""
    fault: Directive | None = None

    def message(self, model: str) -> dict[str, Any]:
        """The whole answer as the API's message object."""
        return {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self.blocks,
            "stop_reason": "tool_use" if self.blocks[0]["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, **self.usage},
        }


class Rule:
    """Turns requests into answers."""

    def __init__(self) -> None:
        self._served: Counter[tuple[object, ...]] = Counter()

    def answer(self, request: RecordedRequest) -> Answer:
        """What the stand-in answers. Raises ModelError for a directive with broken JSON."""
        seen = request.conversation
        script = directives(seen.prompts[-1])
        results = settled(script, seen.results)
        effects, calls = next_step(script, len(results))
        blocks = [tool_use(call) for call in calls] or [{"type": "text", "text": final_text(seen, script, results)}]
        usage: dict[str, Any] = {
            "input_tokens": len(request.raw) // 4,
            "output_tokens": sum(len(json.dumps(block)) // 4 for block in blocks),
        }
        wait = 0.0
        silent = False
        for effect in effects:
            if effect.verb == "cost":
                usage["output_tokens"] = int(effect.fields["tokens"] or 0)
            elif effect.verb == "usage":
                usage |= _parsed(effect)
            elif effect.verb == "wait":
                wait += float(effect.fields["seconds"] or 0)
                silent = effect.fields["silent"] is not None
        session = request.headers.get("x-claude-code-session-id")
        fault = self._fault(
            effects, (session, hash(tuple(prompt.rstrip() for prompt in seen.prompts)), len(seen.results))
        )
        return Answer(blocks, usage, wait=wait, silent=silent, fault=fault)

    def _fault(self, effects: list[Directive], request: tuple[object, ...]) -> Directive | None:
        """The first fault that has not yet been served as often as it asks for."""
        for position, effect in enumerate(effects):
            if effect.verb in FAULTS:
                times = effect.fields["times"]
                if times is None:
                    return effect
                self._served[(*request, position)] += 1
                if self._served[(*request, position)] <= int(times):
                    return effect
        return None


def _parsed(effect: Directive) -> dict[str, Any]:
    """The JSON of a directive. Raises ModelError if it is broken."""
    try:
        parsed: dict[str, Any] = json.loads(str(effect.fields["usage"]))
    except ValueError as problem:
        raise ModelError(400, f"{MARK} not JSON: {effect.line}: {problem}") from problem
    return parsed


def tool_use(call: Directive) -> dict[str, Any]:
    """The content block that makes a call. Raises ModelError if its JSON is broken."""
    try:
        name, tool_input = CALLS[call.verb](call.fields)
    except json.JSONDecodeError as problem:
        raise ModelError(400, f"{MARK} {call.line}: {problem}") from problem
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": name, "input": tool_input}


def final_text(seen: Conversation, script: list[Directive], results: list[str]) -> str:
    """The text after the last tool call: what was asked or should be said, and what the tools returned."""
    said = [str(d.fields["text"]) for d in script if d.verb == "say"]
    sentence = (
        f"Turn {len(seen.prompts)} of a conversation that began with “{_short(seen.prompts[0])}”. "
        f"You asked: “{_short(seen.prompts[-1])}”."
    )
    called = [d.line for d in script if d.verb in CALLS]
    parts = [f"{MARK} " + ("\n".join(said) if said else sentence)]
    parts += [f"{line}\n→ {result}" for line, result in zip(called, results, strict=False)]
    parts += ["stand-in " * (int(d.fields["kilobytes"] or 0) * 1024 // 9) for d in script if d.verb == "big"]
    return "\n\n".join(parts)


def _short(prompt: str, limit: int = 120) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= limit else line[:limit] + "…"


def events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A message as the API streams it."""
    usage = message["usage"]
    yield {
        "type": "message_start",
        "message": {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}},
    }
    for index, block in enumerate(message["content"]):
        yield from _block_events(index, block)
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": usage}
    yield {"type": "message_stop"}


def _block_events(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        text, empty, delta, key = block["text"], {**block, "text": ""}, "text_delta", "text"
    else:
        text, empty = json.dumps(block["input"]), {**block, "input": {}}
        delta, key = "input_json_delta", "partial_json"
    yield {"type": "content_block_start", "index": index, "content_block": empty}
    size = min(4096, len(text) // 2 + 1)  # at least two pieces, so that a cut comes in the middle
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        yield {"type": "content_block_delta", "index": index, "delta": {"type": delta, key: piece}}
    yield {"type": "content_block_stop", "index": index}


class ModelError(Exception):
    """What the stand-in answers instead of a message."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class CutError(Exception):
    """Raised in mid-answer: the server then drops the connection without ending the body."""


async def event_stream(answer: Answer, model: str) -> AsyncIterator[str]:
    """The body of a streamed answer. Raises CutError in the middle if it is to be cut."""
    start, *rest = events(answer.message(model))
    yield _sse(start)
    left = answer.wait
    while left > 0:
        await asyncio.sleep(min(left, PING_SECONDS))
        left -= PING_SECONDS
        if not answer.silent:
            yield _sse({"type": "ping"})
    cut = answer.fault is not None and answer.fault.verb == "cut"
    for event in rest[: len(rest) // 2] if cut else rest:
        yield _sse(event)
    if cut:
        raise CutError


def _sse(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


async def whole_body(answer: Answer, model: str) -> AsyncIterator[str]:
    """The body of an answer that is not streamed. Raises CutError in the middle if it is to be cut."""
    await asyncio.sleep(answer.wait)
    text = json.dumps(answer.message(model))
    if answer.fault is not None and answer.fault.verb == "cut":
        yield text[: len(text) // 2]
        raise CutError
    yield text


def error(status: int, sentence: str, retry_after: str | None = None) -> JSONResponse:
    """An error as the API words it."""
    kind = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    request_id = f"req_{uuid.uuid4().hex}"
    headers = {"request-id": request_id}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    body = {"type": "error", "error": {"type": kind, "message": sentence}, "request_id": request_id}
    return JSONResponse(body, status, headers)


async def receive(request: Request) -> RecordedRequest:
    """The request, if its body is what the API asks for. Raises ModelError if not."""
    raw = await request.body()
    try:
        body = json.loads(raw)
        seen = Conversation.of(body["messages"])
        return RecordedRequest(dict(request.headers), raw, body, str(body["model"]), seen)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(400, f"{MARK} not a Messages request: {problem!r}") from problem


def check(request: RecordedRequest) -> None:
    """Raises ModelError where the API would refuse: no credential, no such model, nothing to answer."""
    if not {"x-api-key", "authorization"} & set(request.headers):
        raise ModelError(401, "x-api-key header is required")
    if "claude" not in request.model:
        raise ModelError(404, f"model: {request.model}")
    if not request.conversation.prompts:
        raise ModelError(400, "messages: at least one message is required")


async def respond(request: RecordedRequest, answer: Answer) -> Response:
    """The answer as HTTP, with what is to befall it."""
    streamed = bool(request.body.get("stream"))
    media_type = "text/event-stream; charset=utf-8" if streamed else "application/json"
    fault = answer.fault
    if fault is None or fault.verb == "cut":
        body = event_stream if streamed else whole_body
        headers = {"request-id": f"req_{uuid.uuid4().hex}"}
        return StreamingResponse(body(answer, request.model), headers=headers, media_type=media_type)
    await asyncio.sleep(answer.wait)
    if fault.verb == "garbage":
        return Response(GARBAGE, media_type=media_type)
    status = int(fault.fields["code"] or 0)
    return error(status, f"{MARK} as asked: {fault.line}", fault.fields["retry_after"])


Record = Callable[[RecordedRequest], Awaitable[None]]


def application(record: Record) -> Starlette:
    """The stand-in as an ASGI application; `record` gets each Messages request, refused ones too."""
    rule = Rule()

    async def messages(request: Request) -> Response:
        received = await receive(request)
        await record(received)
        check(received)
        return await respond(received, rule.answer(received))

    async def count_tokens(request: Request) -> Response:
        return JSONResponse({"input_tokens": len(await request.body()) // 4})

    async def refused(_: Request, refusal: Exception) -> Response:
        if isinstance(refusal, ModelError):
            return error(refusal.status, refusal.sentence)
        status = refusal.status_code if isinstance(refusal, HTTPException) else 500
        return error(status, f"{MARK} {HTTPStatus(status).phrase}")

    routes = [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused, ModelError: refused})


def _listen(port: int) -> tuple[socket.socket, str]:
    """A socket that takes connections from now on, and its URL. Raises OSError if the port is taken."""
    listener = socket.create_server(("127.0.0.1", port))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def _server(record: Record) -> uvicorn.Server:
    # "critical": a cut answer is an exception to uvicorn, which would print its traceback.
    return uvicorn.Server(
        uvicorn.Config(
            application(record),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
    )


class ScriptedModel:
    """The stand-in, served from a thread of this process for as long as the `with` block lasts.

    `port` 0 takes a free one; of the requests the last `kept` are remembered. Entering raises OSError if the port is
    taken.
    """

    def __init__(self, port: int = 0, *, kept: int | None = None) -> None:
        self.url = ""
        """Where it listens, for `ANTHROPIC_BASE_URL`; set on entering."""
        self.requests: deque[RecordedRequest] = deque(maxlen=kept)
        """The Messages requests, in order of arrival."""
        self._port = port

    def __enter__(self) -> Self:
        listener, self.url = _listen(self._port)
        self._server = _server(self.record)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        return self

    async def record(self, request: RecordedRequest) -> None:
        """Called with every Messages request before it is answered."""
        self.requests.append(request)

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True  # an answer that still waits shall not hold up the caller
        self._thread.join()


def main() -> None:
    """Serve in the foreground until a signal ends it; the first line printed is the URL."""
    parser = argparse.ArgumentParser(
        prog="python -m claude_workflow.local.model", description="Serve the stand-in model."
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    listener, url = _listen(parser.parse_args().port)
    print(url, flush=True)
    with suppress(KeyboardInterrupt):
        _server(_forget).run(sockets=[listener])


async def _forget(_: RecordedRequest) -> None:
    """Nobody asks for them."""


if __name__ == "__main__":
    main()
