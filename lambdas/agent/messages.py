"""The Messages API as it passes the proxy: what a call asks for, and what its answer says.

**A call is read as the provider reads it, or not let through.** Where two programs read one body, the second may see
another model or another limit than the first had counted with. So a body that is not JSON in UTF-8, names a field
twice, or holds what JSON has not, is refused; so are prices that are not in the table (`speed`, `inference_geo`,
`service_tier`).

**An answer is read while it streams**, event by event, before the agent gets it. Numbers are read as JavaScript reads
them, which is what Claude Code is written in: one that is too large is none.
"""

import base64
import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lambdas.strict import DEPTH, ENVELOPE, Json, no_number, too_deep

EVENT_BYTES = 16 * 1024 * 1024
"""The longest event of a stream; the API's have some kilobytes."""

SPEEDS, PLACES, TIERS = (None, "standard", "fast"), (None, "global", "us"), (None, "auto", "standard_only")
"""What a call may ask for of what changes its price."""


SEARCH = "web_search_20250305"
"""The tool of the provider's by which Claude Code (2.1.332) searches the web."""

AT_THE_CLIENT = re.compile(r"custom|(?:bash|text_editor|computer|memory)_\d{8}|tool_search_tool_(?:regex|bm25)_\d{8}")
"""Types of tools that the provider does not run, or that search nothing but the tools of the request."""

A_TOOL = re.compile(r"mcp_toolset|.*_\d{8}", re.DOTALL)
"""What a tool's type looks like where it stands in a message: CLI 2.1.332 can define tools there, too."""

ELSEWHERE = ("mcp_servers", "container")
"""Fields of a call by which the provider speaks with others, or runs code."""


NAME_CHARS = 200
"""The longest name of a model, a tool or a method that is read: it comes back in refusals, and in the run's record."""


class Unreadable(ValueError):
    """A body that cannot be read, or could be read in two ways; its text says why."""


@dataclass(frozen=True)
class Call:
    """What the agent asks of the model, as far as it matters for money and trust."""

    model: str
    input_bytes: int
    """A token is a byte at least, so it has no more tokens; but see `bounded`."""
    output_tokens: int | None
    """The most that it may answer; None where it does not say, which the provider refuses."""
    reaches: tuple[str, ...]
    """What of it makes the provider fetch something, speak with others, run code, or read a file that it has."""
    searches: bool
    """Whether the provider is to search the web."""
    fallbacks: tuple[str, ...]
    """The models that the provider may take instead; `default` where it is to choose."""
    fast: bool
    us: bool
    main: bool
    """Whether it is of the conversation itself; a subagent's names its agent (CLI 2.1.332)."""
    conversation: str | None = None
    """Claude's id of the conversation that it says it is of."""
    free: bool = False
    """Whether it asks for no answer, but how many tokens it has."""

    @property
    def bounded(self) -> bool:
        """Whether its input is in its body."""
        return not self.reaches and not self.searches

    @classmethod
    def of(cls, body: bytes, headers: Mapping[str, str], model: str | None = None, free: bool = False) -> "Call":
        """Read a request; `model` is given where it is in the path. Raises `Unreadable`."""
        asked = read(body, headers)
        if not isinstance(asked, dict):
            raise Unreadable("not a JSON object")
        named = asked.get("model") if model is None else model
        if not isinstance(named, str) or len(named) > NAME_CHARS:
            raise Unreadable("it names no model")
        for name, allowed in (("speed", SPEEDS), ("inference_geo", PLACES), ("service_tier", TIERS)):
            if asked.get(name) not in allowed:
                raise Unreadable(f"this {name} has no price here")
        most, served = asked.get("max_tokens"), list(_served(asked.get("tools")))
        return cls(
            model=named,
            input_bytes=len(body),
            output_tokens=most if type(most) is int and most > 0 else None,
            reaches=(
                *(name for name in ELSEWHERE if name in asked),
                *(f"the tool {name}" for name in served if name != SEARCH),
                *dict.fromkeys(_sources([asked.get("messages"), asked.get("system")])),
            ),
            searches=SEARCH in served,
            fallbacks=tuple(_fallbacks(asked.get("fallbacks"))),
            fast=asked.get("speed") == "fast",
            us=asked.get("inference_geo") == "us",
            main="x-claude-code-agent-id" not in headers,
            conversation=headers.get("x-claude-code-session-id"),
            free=free,
        )


def refuse_encoded(headers: Mapping[str, str]) -> None:
    """Raises `Unreadable` for a body that is not what it looks like."""
    if headers.get("content-encoding", "identity") != "identity":
        raise Unreadable("an encoded body")


def read(body: bytes, headers: Mapping[str, str]) -> Any:
    """The JSON of a request that whoever reads it next reads alike. Raises `Unreadable`."""
    refuse_encoded(headers)
    try:
        return json.loads(body.decode(), object_pairs_hook=_once, parse_constant=no_number)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> Json:
    """Makes an object, which may name no field twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Unreadable("a field is named twice")
    return made


def _served(tools: object) -> Iterator[str]:
    """The types of the tools that the provider runs itself, or may run, for all that is known of them here."""
    for tool in tools if isinstance(tools, list) else []:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind is not None and not (isinstance(kind, str) and AT_THE_CLIENT.fullmatch(kind)):
            yield str(kind)[:100]


def _sources(messages: object) -> Iterator[str]:
    """What of messages is elsewhere, at any depth; but for the inputs of tools, which are data to the provider."""
    left = [messages]
    while left:
        each = left.pop()
        if isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            said = each.get("type")
            kind = said if isinstance(said, str) else ""
            if kind in ("url", "file"):
                yield f"a source of the type {kind}"
            elif A_TOOL.fullmatch(kind) and not AT_THE_CLIENT.fullmatch(kind):
                yield f"the tool {kind[:100]}"
            elif "file_id" in each:
                yield "a file of the provider's"
            data = {"input_schema", *(["input"] if kind.endswith("tool_use") else [])}
            left += [value for name, value in each.items() if name not in data]


def _fallbacks(given: object) -> Iterator[str]:
    """The models in the field of that name, or what stands there instead."""
    for each in given if isinstance(given, list) else [] if given is None else [given]:
        yield str(each.get("model") if isinstance(each, dict) else each)[:100]


TOO_DEEP = object()
"""In place of an input that is nested too deeply to be handed on."""


@dataclass
class Answer:
    """What the model said in one answer, as far as it has come."""

    call: Call
    id: str = ""
    model: str | None = None
    """The one that says it answers."""
    usage: Json = field(default_factory=dict)
    """As announced by now: at the beginning for the input, at the end for all."""
    blocks: list[Json] = field(default_factory=list)
    """Those that are whole, in order; the input of a tool call may be `TOO_DEEP`."""
    stop_reason: str | None = None
    whole: bool = False
    broken: bool = False
    """Whether an error came in the middle of it."""
    _open: dict[Any, tuple[Json, list[str]]] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether anything was announced that has a price."""
        return bool(self.usage)

    def take(self, event: object) -> None:
        """One event of the stream, or the whole message of an answer that is not streamed."""
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind == "message_start":
            self._start(event.get("message"))
        elif kind == "message":
            self._start(event)
            self.blocks = [block for block in event.get("content") or [] if isinstance(block, dict)]
            self.stop_reason, self.whole = event.get("stop_reason"), True
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            self._open[event.get("index")] = (dict(event["content_block"]), [])
        elif kind == "content_block_delta":
            self._delta(event)
        elif kind == "content_block_stop":
            self._close(event)
        elif kind == "message_delta":
            self._count(event.get("usage"))
            self.stop_reason = (event.get("delta") or {}).get("stop_reason") or self.stop_reason
        elif kind == "message_stop":
            self.whole = bool(self.id)
        elif kind == "error":
            self.broken = True

    def _start(self, message: object) -> None:
        if isinstance(message, dict):
            self.id = str(message.get("id") or "")
            self.model = str(message["model"])[:100] if message.get("model") else None
            self._count(message.get("usage"))

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.usage |= {name: value for name, value in usage.items() if value is not None}

    def _delta(self, event: Json) -> None:
        block, pieces = self._open.get(event.get("index"), ({}, []))
        delta = event.get("delta") or {}
        kind = delta.get("type")
        if kind == "signature_delta":
            block["signature"] = delta.get("signature")
        elif kind in ("text_delta", "input_json_delta", "thinking_delta"):
            pieces.append(
                str(delta.get({"text_delta": "text", "thinking_delta": "thinking"}.get(kind, "partial_json")))
            )

    def _close(self, event: Json) -> None:
        block, pieces = self._open.pop(event.get("index"), ({}, []))
        said = "".join(pieces)
        if block.get("type") in ("text", "thinking"):
            block[block["type"]] = block.get(block["type"], "") + said
        elif "input" in block and said:
            block["input"] = _input(said)
        if block:
            self.blocks.append(block)

    @property
    def texts(self) -> list[str]:
        """What it says in words, block by block."""
        return [block.get("text", "") for block in self.blocks if block.get("type") == "text"]

    def calls(self, tool: str) -> list[Any]:
        """The inputs of its calls of a tool."""
        return [b.get("input") for b in self.blocks if b.get("type") == "tool_use" and b.get("name") == tool]


def _input(text: str) -> Any:
    """A tool's input as JavaScript reads it. What it cannot read either is None."""
    try:
        value = json.loads(text, parse_constant=no_number, parse_float=_or_null)
    except RecursionError:
        return TOO_DEEP
    except ValueError:
        return None
    return TOO_DEEP if too_deep(value, DEPTH - ENVELOPE) else value


def _or_null(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


Reader = Callable[[bytes], Iterator[Any]]
"""Takes an answer's bytes as they come, and gives the events that are whole; `b""` at its end."""


def reader(content_type: str) -> Reader:
    """What reads an answer of the Messages API of this content type."""
    if content_type.startswith("text/event-stream"):
        return _Events().read
    return _Whole().read


class _Events:
    """Server-sent events: lines of UTF-8, of which `data` is read; an empty line ends an event."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line = ""
        self._data: list[str] = []

    def read(self, piece: bytes) -> Iterator[Any]:
        *lines, self._line = (self._line + self._text.decode(piece)).split("\n")
        if len(self._line) > EVENT_BYTES:
            self._line = ""
        for line in lines:
            line = line.removesuffix("\r")
            if line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
            elif not line and self._data:
                data, self._data = "\n".join(self._data), []
                yield from _read(data)


class _Whole:
    """One JSON document."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def read(self, piece: bytes) -> Iterator[Any]:
        if piece:
            self._pieces.append(piece)
        else:
            yield from _read(b"".join(self._pieces).decode(errors="replace"))


def chunks(payload: bytes) -> Iterator[Any]:
    """The event in the payload of a chunk of Bedrock's stream."""
    for chunk in _read(payload.decode(errors="replace")):
        if isinstance(chunk, dict) and isinstance(chunk.get("bytes"), str):
            yield from _read(base64.b64decode(chunk["bytes"]).decode(errors="replace"))


def _read(text: str) -> Iterator[Any]:
    """What is no JSON is no event: the agent sees it as it is, and nothing is known of it here."""
    try:
        yield json.loads(text)
    except (ValueError, RecursionError):
        return
