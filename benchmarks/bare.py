"""The bare Agent SDK, as one writes it first: one process, one `query` after the other, in one session.

`python -m benchmarks.bare FOLDER` reads prompts from standard input, a JSON line each, and answers with the seconds
until the result was there, and until the SDK's generator was at its end and with it the CLI.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple, Self

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query


class Took(NamedTuple):
    """Seconds from `query` on."""

    result: float
    end: float


class Bare:
    """A warm process; a context manager."""

    def __init__(self, folder: Path, model_url: str) -> None:
        self._folder, self._model_url = folder, model_url

    def __enter__(self) -> Self:
        self._folder.mkdir()
        root = Path(__file__).resolve().parent.parent
        given = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "LANG": "C.UTF-8", "PYTHONPATH": str(root)}
        given |= {"ANTHROPIC_BASE_URL": self._model_url, "ANTHROPIC_API_KEY": "sk-scripted", "IS_SANDBOX": "1"}
        given |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare", self._folder],
            env=given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def __call__(self, prompt: str) -> Took:
        """One run of the session. Raises `ValueError` where it ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(prompt) + "\n")
        self._process.stdin.flush()
        return Took(*json.loads(self._process.stdout.readline()))


async def _run(prompt: str, options: ClaudeAgentOptions) -> Took:
    start = result = time.monotonic()
    async for message in query(prompt=prompt, options=options):
        if isinstance(message, ResultMessage):
            if message.is_error:
                raise RuntimeError(message.result)
            result = time.monotonic()
    return Took(result - start, time.monotonic() - start)


def main() -> None:
    """Runs prompts until standard input ends."""
    session, cwd = str(uuid.uuid4()), Path(sys.argv[1])
    options = ClaudeAgentOptions(cwd=cwd, permission_mode="bypassPermissions", setting_sources=[], session_id=session)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_run(json.loads(line), options))), flush=True)
        options.session_id, options.resume = None, session


if __name__ == "__main__":
    main()
