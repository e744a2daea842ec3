"""A conversation as a person reads it, out of the messages that Claude Code prints.

All of it is a stranger's: whatever has not the shape that it should is shown as what it is, and no message is missed.
"""

import base64
import binascii
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from claude_workflow.cli.telling import text_of, told
from lambdas.bucket.following import Messages, shown
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json

ON_A_PAGE = 100
"""Messages; a run of many hours has some thousands."""
PICTURE_CHARS = 3 * 1024 * 1024
"""Of base64; a larger picture is not shown."""
KEPT_BYTES = 64 * 1024 * 1024
"""Of messages that are kept in memory, of one run and, but for that which is looked at, of all together."""
OBJECT = 100
"""Bytes that a message takes in memory beside its own."""
MOST = 200_000
"""Messages of a run; those behind them are not read."""

DROPPED = b'{"type": "too many", "subtype": "messages to be kept here: this one is in the bucket"}'
"""What stands for a message that is not kept."""
LAST = b'{"type": "too many", "subtype": "messages to be read here: this one and those behind it are in the bucket"}'
"""What stands for the last one of `MOST`."""

PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
"""How those begin that are shown, and what they are said to be: no SVG, which is a program."""


def picture(content: bytes) -> str | None:
    """The type of a picture that is shown as one; None for all else."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begins, kind in PICTURES.items() if content.startswith(begins)), None)


@dataclass
class Step:
    """Something that was said or done."""

    kind: str
    """`text`, `thinking`, `tool`, `said` (by the user, or a result whose tool is on another page), `end` or `other`."""
    text: str = ""
    name: str = ""
    """Of a tool, or of what else it is."""
    told: str = ""
    """What a tool is to do, in one line."""
    given: Any = None
    """A tool's input."""
    failed: bool = False
    answered: bool = False
    """Whether a tool's result is there."""
    pictures: list[str] = field(default_factory=list)
    """As `data:` addresses."""
    steps: "list[Step]" = field(default_factory=list)
    """What the subagent did that a tool is."""


@dataclass(frozen=True)
class Conversation:
    """Some messages of a run."""

    steps: list[Step]
    begin: int
    """The number of the first message that is shown; the first of all is 1."""
    end: int
    count: int
    """How many there are."""


def read(messages: Sequence[bytes], begin: int) -> Conversation:
    """Those from number `begin` on, as many as a page has."""
    some = messages[begin - 1 : begin - 1 + ON_A_PAGE]
    reader = _Reader()
    for message in some:
        reader.take(json.loads(shown(message)))
    return Conversation(reader.steps, begin, begin - 1 + len(some), len(messages))


class _Reader:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._tools: dict[str, Step] = {}
        self._workspace = ""

    def take(self, message: Json) -> None:
        parent = self._tools.get(str(message.get("parent_tool_use_id")))
        into = parent.steps if parent else self.steps
        said = message.get("message")
        content: Any = said.get("content") if isinstance(said, dict) else None
        match message.get("type"):
            case "assistant" if isinstance(content, list):
                into += [self._block(block) for block in content]
            case "user" if isinstance(content, list):
                into += [step for block in content if (step := self._answer(block))]
            case "user" if isinstance(content, str):
                into.append(Step("said", content))
            case "system" if message.get("subtype") == "init":
                self._workspace = str(message.get("cwd") or "")
                into.append(Step("other", name=f"Claude Code began, with {message.get('model')}", given=message))
            case "result":
                into.append(Step("end", name=str(message.get("subtype") or ""), given=message))
            case _:
                into.append(Step("other", name=" ".join(str(message.get(each) or "") for each in KIND), given=message))

    def _block(self, block: Any) -> Step:
        match block:
            case {"type": "text", "text": str(text)}:
                return Step("text", text)
            case {"type": "thinking", "thinking": str(text)}:
                return Step("thinking", text)
            case {"type": "tool_use", "name": str(name), "id": str(id_), "input": dict(given)}:
                step = Step("tool", name=name, told=told(given, self._workspace), given=given)
                self._tools[id_] = step
                return step
        return Step("other", name=str(block.get("type")) if isinstance(block, dict) else "", given=block)

    def _answer(self, block: Any) -> Step | None:
        """A step of its own where no tool of this page is answered."""
        match block:
            case {"type": "tool_result", "tool_use_id": str(id_)}:
                content, failed = block.get("content"), bool(block.get("is_error"))
                step = self._tools.get(id_)
                into = step or Step("said", name="Result")
                into.text, into.failed, into.answered = text_of("" if content is None else content), failed, True
                into.pictures = _pictures(content)
                return None if step else into
            case {"type": "text", "text": str(text)}:
                return Step("said", text)
        return Step("other", name="said", given=block)


KIND = ("type", "subtype")


def _pictures(content: Any) -> list[str]:
    found: list[str] = []
    for block in content if isinstance(content, list) else ():
        match block:
            case {"type": "image", "source": {"type": "base64", "data": str(data)}} if len(data) < PICTURE_CHARS:
                try:
                    kind = picture(base64.b64decode(data, validate=True))
                except (binascii.Error, ValueError):
                    continue
                found += [f"data:{kind};base64,{data}"] if kind else []
    return found


class _Kept:
    """The messages of one run, as far as they were read."""

    def __init__(self, bucket: Bucket) -> None:
        self.guard = threading.Lock()
        self.messages: list[bytes] = []
        self.bytes = 0
        self._reader = Messages(bucket)
        self._dropped = 0

    def read_on(self, sizes: dict[str, int]) -> None:
        """Those that came since; where they are more than are kept, of the oldest no more than that they were."""
        for message in islice(self._reader.new(sizes), MOST - len(self.messages)):
            self.messages.append(message if len(self.messages) + 1 < MOST else LAST)
            self.bytes += len(self.messages[-1]) + OBJECT
            while self.bytes > KEPT_BYTES and self._dropped < len(self.messages):
                self.bytes -= len(self.messages[self._dropped]) + OBJECT
                self.messages[self._dropped] = DROPPED
                self._dropped += 1


class Conversations:
    """The messages of runs, read on from where they were read to; those that were looked at last are kept."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, run_id: str) -> list[bytes]:
        """All of a run's. Raises `StorageUnavailable`."""
        sizes: dict[str, int] = {}
        for one in self._bucket.listed(f"runs/{run_id}/"):
            attempt, _, name = one["Key"].rpartition("/")
            if name == "messages.json" and attempt != f"runs/{run_id}":
                sizes[f"{attempt}/"] = one["Size"]
        with self._guard:
            kept = self._kept.setdefault(run_id, _Kept(self._bucket))
            self._kept.move_to_end(run_id)
            while len(self._kept) > 1 and sum(each.bytes for each in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        with kept.guard:
            kept.read_on(sizes)
            return list(kept.messages)
