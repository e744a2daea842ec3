"""A handler as Lambda runs it: a warm process of its own, driven by events, with the environment of the template.

`python -m benchmarks.handlers STATE` reads events from standard input, a JSON line each, and answers with a line that
has the output and what it took. Only the entry points and their environment are used, so that nothing that is measured
can be rewritten out of the harness' reach.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.usage import cpu_seconds, peak
from claude_workflow.local.api import Template
from lambdas.strict import Json

SAMPLE_SECONDS = 0.01
STOP_SECONDS = 10
TICK = os.sysconf("SC_CLK_TCK")


class HandlerFailed(RuntimeError):
    """A handler raised, which no measured one may; or its process is gone."""


class Call(NamedTuple):
    """One event with what came of it."""

    start: float
    """Monotonic seconds."""
    end: float
    cpu: float
    """Seconds of this process, its threads and the children that it has waited for."""
    peak: int
    """Bytes: the most that the process had in memory since it began (VmHWM)."""
    output: Any

    @property
    def seconds(self) -> float:
        return self.end - self.start


def environment(template: Template, state: str, changed: Mapping[str, str]) -> dict[str, str]:
    """The variables of the state's function, where their values are known, and those of `changed` that it has."""
    variables = _function(template, state)["Environment"]["Variables"]
    known = {name: value for name, value in variables.items() if isinstance(value, str)}
    return known | {name: value for name, value in changed.items() if name in variables}


def memory_mb(template: Template, state: str) -> int:
    """Megabytes that the state's function is given."""
    return int(_function(template, state)["MemorySize"])


def _function(template: Template, state: str) -> Json:
    """Its properties; a function is known by its description, since RunClaude's image names no handler."""
    every = [one["Properties"] for one in template["Resources"].values() if one["Type"] == "AWS::Lambda::Function"]
    (found,) = (one for one in every if one.get("Description", "").startswith(f"State {state} of"))
    return dict(found)


@dataclass
class Handler:
    """A warm function; a context manager."""

    state: str
    environment: Mapping[str, str]
    log: Path
    """Where its standard error goes."""

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.handlers", self.state],
                env=dict(self.environment),
                cwd=Path(__file__).resolve().parent.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def __call__(self, event: Json) -> Call:
        """Raises `HandlerFailed`."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(event).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        said = json.loads(line) if line else {"raised": f"its process is gone; see {self.log}"}
        if "raised" in said:
            raise HandlerFailed(f"{self.state}: {said['raised']}")
        return Call(**said)


class Sampler:
    """Watches a process' CPU time while the `with` block lasts."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._ended = threading.Event()
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            fields = self._stat.read_bytes().rpartition(b")")[2].split()
            self._samples.append((time.monotonic(), sum(map(int, fields[11:15])) / TICK))

    def between(self, start: float, end: float) -> float:
        """CPU seconds, children that were waited for included, between two moments."""
        until = [cpu for moment, cpu in self._samples if moment <= end] or [0.0]
        before = [cpu for moment, cpu in self._samples if moment <= start] or [
            self._samples[0][1] if self._samples else 0
        ]
        return until[-1] - before[-1]


def main() -> None:
    """Serves events until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a handler prints is no answer
    name = "".join(f"_{char.lower()}" if char.isupper() else char for char in sys.argv[1]).lstrip("_")
    handler = importlib.import_module(f"lambdas.{name}").handler
    for line in sys.stdin:
        print(json.dumps(_called(handler, json.loads(line))), file=answers, flush=True)


class Context:
    """As much of Lambda's as a handler asks for."""

    def get_remaining_time_in_millis(self) -> int:
        """As if no time limit were near."""
        return 300_000


def _called(handler: Any, event: Json) -> Json:
    cpu, start = cpu_seconds(), time.monotonic()
    try:
        output = handler(event, Context())
    except Exception as error:  # as Lambda does: it is the caller's, and the process stays
        return {"raised": " < ".join(_story(error))}
    end = time.monotonic()
    return {"start": start, "end": end, "cpu": cpu_seconds() - cpu, "peak": peak(), "output": output}


def _story(error: BaseException | None) -> Iterator[str]:
    """An error and what led to it, also where the handler keeps that from its function's log."""
    while error is not None:
        yield f"{type(error).__name__}: {error} {getattr(error, 'detail', None) or ''}".strip()
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
