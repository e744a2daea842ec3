"""A stand-in for Claude Code's CLI that takes no time: it changes the workspace as its prompt says, and ends.

What is measured are the handlers around the agent. So the agent is replaced at the one seam that no rewrite of a
handler moves, the CLI's own protocol on standard input and output: SDK, proxy, sandbox and all else are the real ones.
The stand-in writes down when it began, when what was restored was in place, and when it was done. It asks the model
once before it does anything, through the proxy: no end of a run is believed that the model has not said, and no answer
comes before all is in place.
It runs with the standard library alone, to start in a few hundredths of a second.
"""

import http.client
import json
import os
import random
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import trees

VERSION = "2.1.332"
MODEL = "claude-haiku-5-5"
LINE_BYTES = 2000
"""A turn's growth of the transcript."""


def overlay(folder: Path) -> Path:
    """A directory for PYTHONPATH in which the Agent SDK has this stand-in as its bundled CLI."""
    import claude_agent_sdk  # takes most of a second, and the stand-in itself has no need of it

    real = Path(claude_agent_sdk.__file__).parent
    package = folder / real.name
    (package / "_bundled").mkdir(parents=True)
    for path in real.iterdir():
        if path.name != "_bundled":
            (package / path.name).symlink_to(path)
    root = Path(__file__).resolve().parent.parent
    program = package / "_bundled" / "claude"
    program.write_text(
        f"#!{sys.executable} -IS\nimport time\n\nbegan = time.monotonic()\n\n"
        f"import sys\n\nsys.path.insert(0, {str(root)!r})\nfrom benchmarks.cli import main\n\nmain(began)\n"
    )
    program.chmod(0o755)
    return folder


def prompt(act: str, stamps: Path, **arguments: Any) -> str:
    """What makes the stand-in do `act` (see `ACTS`), and write its stamps to a file."""
    return json.dumps({"act": act, "stamps": str(stamps), "arguments": arguments})


def _fill(source: str) -> None:
    shutil.copytree(source, ".", symlinks=True, dirs_exist_ok=True)


def _change(share: float, seed: int) -> None:
    trees.change(Path(), share, seed)


ACTS: dict[str, Callable[..., None]] = {
    "fill": _fill,
    "change": _change,
    "nothing": lambda: None,
}


def main(began: float) -> None:
    """One turn, as the SDK drives it; `began` is when this process did, in monotonic seconds."""
    if "-v" in sys.argv or "--version" in sys.argv:
        print(f"{VERSION} (Claude Code)")
        return
    for frame in _frames():
        if frame["type"] == "control_request":
            response = {"subtype": "success", "request_id": frame["request_id"], "response": {"commands": []}}
            _say({"type": "control_response", "response": response})
        elif frame["type"] == "user":
            _turn(began, _text(frame["message"]["content"]))
    os._exit(0)  # Python takes some milliseconds to put itself away


def _frames() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _say(frame: dict[str, Any]) -> None:
    print(json.dumps(frame), flush=True)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _turn(began: float, text: str) -> None:
    orders = json.loads(text)
    words = [word for argument in sys.argv for word in argument.split("=", 1)]
    session = next(after for word, after in pairwise(words) if word in ("--session-id", "--resume"))
    _ask(session)
    in_place = _in_place()
    ACTS[orders["act"]](**orders["arguments"])
    _remember(session, text)
    about = {"session_id": session, "uuid": session}
    stated = {"type": "system", "subtype": "init", "claude_code_version": VERSION}
    _say(stated | about | {"cwd": "", "tools": [], "mcp_servers": [], "model": "stand-in", "apiKeySource": "none"})
    stamps = {"began": began, "in_place": in_place, "done": time.monotonic(), "cpu": time.process_time()}
    Path(orders["stamps"]).write_text(json.dumps(stamps))
    _say(_result() | about)


def _ask(session: str) -> None:
    """One call of the model, as Claude Code makes it, which names its conversation."""
    address = urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"])
    body = {"model": MODEL, "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "say Done."}]}
    headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
    headers["x-claude-code-session-id"] = session
    proxy = http.client.HTTPConnection(address.netloc)
    proxy.request("POST", f"{address.path}/v1/messages", json.dumps(body), headers)
    proxy.getresponse().read()


def _in_place() -> float:
    """Monotonic seconds of the last that restoring does: it tells the mode and times of the workspace, or of Claude's
    own directory.

    File times tick every few milliseconds at the most.
    """
    changed = max(Path(each).stat().st_ctime for each in (os.environ["CLAUDE_CONFIG_DIR"], "."))
    return changed - time.time() + time.monotonic()


def _remember(session: str, text: str) -> None:
    """A transcript with a line more."""
    folder = Path(os.environ["CLAUDE_CONFIG_DIR"]) / "projects" / "workspace"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{session}.jsonl").open("a") as transcript:
        said = random.Random(len(text)).randbytes(LINE_BYTES // 2).hex()
        transcript.write(json.dumps({"type": "user", "prompt": text, "said": said}) + "\n")


def _result() -> dict[str, Any]:
    return {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "result": "Done.",
        "num_turns": 1,
        "total_cost_usd": 0.0,
        "usage": {"input_tokens": 1, "output_tokens": 1},
        "duration_ms": 1,
        "duration_api_ms": 1,
    }
