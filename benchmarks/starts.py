"""How long each function takes to start: its imports, and what its first event makes it set up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import workflow
from benchmarks.bench import Bench
from benchmarks.handlers import environment
from benchmarks.report import Section, table

ROUNDS = 5
FUNCTIONS = {
    "RestoreSession": "restore_session",
    "RunClaude": "run_claude",
    "PersistSession": "persist_session",
    "RecordFailure": "record_failure",
}
SCRIPT = """
import json, sys, time
start = time.monotonic()
import importlib
handler = importlib.import_module(sys.argv[1]).handler
imported = time.monotonic()
try:
    handler({}, None)
except KeyError:
    pass
done = time.monotonic()
print(json.dumps([imported - start, done - imported, len(sys.modules)]))
"""
"""An empty event is refused as soon as the function has set itself up, before it asks anything of S3."""


class Start(NamedTuple):
    """One start of one function."""

    imports: float
    """Seconds."""
    first_event: float
    modules: int


def measure(bench: Bench) -> list[Section]:
    """All four functions in turn, round by round."""
    found: dict[str, list[Start]] = {state: [] for state in FUNCTIONS}
    for number in range(1 if bench.quick else ROUNDS):
        bench.say(f"Starts of the functions: round {number + 1} …")
        for state, starts in found.items():
            starts.append(_start(bench, state))
    rows = [
        (
            state,
            median(one.imports for one in starts),
            median(one.first_event for one in starts),
            median(one.imports + one.first_event for one in starts),
            starts[0].modules,
        )
        for state, starts in found.items()
    ]
    text = (
        "From a started Python, with its files in the page cache and its bytecode compiled, until the function has set "
        "itself up for its first event. What Lambda adds for a sandbox cannot be measured here."
    )
    heads = ("function", "imports, s", "first event, s", "together, s", "modules")
    return [Section("Cold starts of the functions", [text, table(heads, rows)])]


def _start(bench: Bench, state: str) -> Start:
    root = Path(__file__).resolve().parent.parent
    given = environment(bench.template, state, workflow.SETTINGS | {"SCRATCH": str(bench.folder / "start")})
    given |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-c", SCRIPT, f"lambdas.{FUNCTIONS[state]}"]
    done = subprocess.run(command, env=given, cwd=bench.folder, capture_output=True, text=True, check=True)
    return Start(*json.loads(done.stdout))
