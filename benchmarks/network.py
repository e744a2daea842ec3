"""What a network of its own costs a run: a whole run with one and without, in turns."""

import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench
from benchmarks.protection import PROMPTS, protected, seconds
from benchmarks.report import Check, Section, table
from claude_workflow.local import sandbox
from claude_workflow.local.model import ScriptedModel

ROUNDS = 30
MOST = 1.02
"""The largest ratio that is accepted."""


def measure(bench: Bench) -> list[Section]:
    """One run of each a round, either first as often."""
    with ScriptedModel(kept=1) as model, tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        folder.chmod(0o711)
        kind = sandbox.holding(folder)
        if kind is None or sandbox.network(kind) != "own":
            return [
                Section("The network", ["This machine gives a run no network of its own, so nothing was measured."])
            ]
        run = partial(protected, folder, model.url, PROMPTS[0], kind)
        found: dict[str, list[float]] = {"own": [], "shared": []}
        for network in () if bench.quick else found:
            run(network)  # files into the cache
        for number in range(1 if bench.quick else ROUNDS):
            bench.say(f"The network: round {number + 1} …")
            for network in sorted(found, reverse=bool(number % 2)):
                found[network].append(seconds(partial(run, network)))
    ratio = median(found["own"]) / median(found["shared"])
    rows = [("its own", median(found["own"])), ("the machine's", median(found["shared"])), ("ratio", ratio)]
    text = (
        f"A run whose model answers at once, behind {sandbox.NAMES[kind]}, on {os.cpu_count()} cores: scratch made, "
        "Claude Code started, asked and ended, scratch removed. A network of its own is made as it starts, and the "
        "proxy is handed a listener in there; else the proxy listens on the machine's loopback."
    )
    check = Check.at_most("A run with a network of its own: its time over that without", ratio, MOST, "×")
    return [Section("The network", [text, table(("network", "s"), rows)], checks=[check])]
