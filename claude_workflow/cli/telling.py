"""A step of the agent's in a few words: what a tool is to do, and what it came back with."""

import json
from pathlib import PurePath
from typing import Any

from claude_workflow.cli.client import Document
from claude_workflow.cli.printing import line

TELLING = ("command", "file_path", "notebook_path", "pattern", "url", "query", "description", "prompt")
"""Of a tool's input, what says best what it does; the first that is there."""

STEP_CHARS = 200
"""Of one step's line; a terminal shows as many as it has columns."""


def told(given: Document, workspace: str) -> str:
    """What a tool is to do, by its input, in one line; a path in the workspace is told from there."""
    told = next((given[name] for name in TELLING if isinstance(given.get(name), str)), None)
    if told is None:
        return line(json.dumps(given, ensure_ascii=False), STEP_CHARS) if given else ""
    path = PurePath(told)
    if workspace and path.is_relative_to(workspace):
        told = str(path.relative_to(workspace))
    return line(told, STEP_CHARS)


def text_of(content: Any) -> str:
    """What a tool came back with: text, or blocks of it."""
    if isinstance(content, list):
        return " ".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content)
