"""What all the protection costs: the time of a run with and without it, taking turns in one run of this benchmark.

    python -m benchmarks.protection [RUNS]

With: this machine's sandbox, the launcher with its limits and filters, the credential proxy, the sealed handler,
scratch made and wiped, every process found and killed. Without: the same CLI, started by the Agent SDK alone, with the
model's address and key in its environment and its files in a plain directory. The model is the scripted one, which
answers at once, or after a second as a fast one does. A run is one answer without a tool: with the first tool comes a
checkpoint, which is insurance and not protection. What is compared are medians. It exits with 1 where the ratio with
the second's latency is over the limit.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

from claude_workflow.local import sandbox
from claude_workflow.local.model import ScriptedModel
from lambdas.agent.claude import Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.environment import SWITCHES
from lambdas.agent.processes import seal
from lambdas.agent.proxy import Proxy
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch
from lambdas.agent.upstream import anthropic
from tests.support.kept_checkpoints import Kept

RUNS = 15
MOST = 1.05
"""The largest ratio that is accepted."""
PROMPTS = {0: "say Done.", 1: "wait 1\nsay Done."}
"""By the seconds that the model takes."""


def protected(folder: Path, url: str, prompt: str, kind: str, network: str) -> None:
    """A run as RunClaude makes it."""
    session = str(uuid.uuid4())
    within = Sandbox.of(kind, session, network=network)
    with (
        Scratch(folder / "agents" / session, within) as scratch,
        Proxy([anthropic(Secret(lambda: "key"), url)], inside=within.its_own_network) as proxy,
    ):
        turn = Turn(prompt, session, resume=False)
        outcome = asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))
        assert outcome.result, outcome


def bare(folder: Path, url: str, prompt: str) -> None:
    """The same by the SDK alone."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        paths = {"HOME": place, "CLAUDE_CONFIG_DIR": f"{place}/claude", "TMPDIR": place, "IS_SANDBOX": "1"}
        options = ClaudeAgentOptions(
            env=SWITCHES | paths | {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "key"},
            cwd=place,
            permission_mode="bypassPermissions",
            setting_sources=[],
            system_prompt={"type": "preset", "preset": "claude_code"},
        )
        asyncio.run(_asked(options, prompt))


async def _asked(options: ClaudeAgentOptions, prompt: str) -> None:
    async with ClaudeSDKClient(options) as client:
        await client.query(prompt)
        async for _ in client.receive_response():
            pass


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compared(folder: Path, url: str, prompt: str, kind: str, network: str, runs: int) -> tuple[float, float]:
    """Medians with and without, in seconds."""
    sides: tuple[Callable[[], None], ...] = (
        partial(protected, folder, url, prompt, kind, network),
        partial(bare, folder, url, prompt),
    )
    for side in sides:
        side()  # files into the cache
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * runs):
        which = (number + number // 2) % 2  # either is first as often
        times[which].append(seconds(sides[which]))
    return statistics.median(times[0]), statistics.median(times[1])


def main(runs: int) -> int:
    """Prints a line for each latency; 1 if the last ratio is too large."""
    seal()
    ratio = 0.0
    with ScriptedModel(kept=1) as model, tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        folder.chmod(0o711)
        kind = sandbox.holding(folder) or "none"
        network = sandbox.network(kind)
        print(f"{os.cpu_count()} cores; sandbox: {kind}; network: {network}; medians of {runs} runs each")
        for latency, prompt in PROMPTS.items():
            with_it, without = compared(folder, model.url, prompt, kind, network, runs)
            ratio = with_it / without
            print(f"model after {latency} s: {with_it:.3f} s with, {without:.3f} s without: {ratio:.3f}")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else RUNS))
