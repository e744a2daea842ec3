"""What a leg costs: one long run in one leg and in several, in turns, and what an hour of it comes to in AWS."""

import time
import uuid
from collections import Counter
from statistics import median
from typing import NamedTuple

from benchmarks import workflow
from benchmarks.bench import Bench
from benchmarks.cost import Prices
from benchmarks.handlers import Handler, memory_mb
from benchmarks.limiter import Exchange
from benchmarks.report import Check, Section, figure, table
from claude_workflow.local.model import ScriptedModel
from lambdas.settings import Legs
from lambdas.strict import Json

ROUNDS = 5
STEPS, STEP_SECONDS = 12, 0.5
GATE_SECONDS = 2.0
"""So that a run of so many steps takes some three legs more than one."""
STATES_OF_A_LEG = 4
"""Transitions that a leg adds: RestoreSession, NextStep, RunClaude, LegOver."""
WRITES_AN_HOUR, LOOKS_AN_HOUR = 3600, 3600
"""At the most, of progress, and of the mark of a cancel: one a second."""
CALLS_AN_HOUR, CACHED, SAID = 240, 50_000, 400
"""Of the model, by the hour's example: one in 15 s, with so many tokens of its prompt read from the cache, and so many
written to it and said."""
MODEL_DOLLARS = {"read": 0.2e-6, "write": 5e-6, "output": 20e-6}
"""Of Claude Opus 5.5 for a token, as `lambdas/prices.toml` has them."""


class Run(NamedTuple):
    """One long run."""

    seconds: float
    legs: int
    exchanges: list[Exchange]
    sent: int
    """Bytes of all requests to the model."""
    calls: int


def measure(bench: Bench) -> list[Section]:
    """One leg, and several, each in every round."""
    folder = bench.folder / "legs"
    folder.mkdir()
    one: list[Run] = []
    several: list[Run] = []
    with (
        ScriptedModel() as model,
        workflow.functions(folder, bench.limiter.url, bench.template, model.url) as functions,
    ):
        _run(bench, functions, model, None)  # warms up
        for number in range(1 if bench.quick else ROUNDS):
            bench.say(f"Legs: round {number + 1} …")
            one.append(_run(bench, functions, model, None))
            several.append(_run(bench, functions, model, 0.5 if bench.quick else GATE_SECONDS))
    return [_section(one, several), _hour(bench)]


def _run(bench: Bench, functions: dict[str, Handler], model: ScriptedModel, gate: float | None) -> Run:
    steps = 3 if bench.quick else STEPS
    prompt = "\n".join(f"wait {STEP_SECONDS} silent\nrun echo {number} >> log" for number in range(steps))
    envelope: Json = {"caller": "benchmark", "key": str(uuid.uuid4()), "body": {"prompt": prompt}}
    envelope |= {"prefer": "respond-async", "requested_at": time.time() * 1000}
    execution = f"{workflow.LONG_MACHINE.replace(':stateMachine:', ':execution:')}:{uuid.uuid4()}"
    first, before, legs = len(bench.limiter.log), None, 0
    model.requests.clear()
    start = time.monotonic()
    while True:
        restored = functions["RestoreSession"](workflow.asking(envelope, execution, before)).output
        restored["task"]["gate"] = time.time() + (gate or 600)
        told = functions["RunClaude"](restored["task"]).output
        legs, before = legs + 1, restored["claim"]["staging"]
        if "leg" not in told:
            break
    functions["PersistSession"]({"claim": restored["claim"], "told": told})
    seconds = time.monotonic() - start
    sent = sum(len(str(request.body)) for request in model.requests)
    return Run(seconds, legs, bench.limiter.log[first:], sent, len(model.requests))


def _section(one: list[Run], several: list[Run]) -> Section:
    more = median(run.legs for run in several) - median(run.legs for run in one)

    def each(of: list[float], than: list[float]) -> float:
        return (median(of) - median(than)) / max(1, more)

    seconds = each([run.seconds for run in several], [run.seconds for run in one])
    requests = each([len(run.exchanges) for run in several], [len(run.exchanges) for run in one])
    sent = each([run.sent for run in several], [run.sent for run in one])
    methods = {name: sum(_methods(run)[name] for run in several) for name in ("GET", "PUT", "DELETE")}
    rows = [
        ("the run in one leg, s", median(run.seconds for run in one), ""),
        ("the run in several, s", median(run.seconds for run in several), ""),
        ("legs", median(run.legs for run in several), ""),
        ("**a leg more, s**", seconds, "RestoreSession, a start of Claude Code, a checkpoint"),
        ("**S3 requests of a leg more**", requests, f"of all: {', '.join(f'{n} {m}' for m, n in methods.items())}"),
        ("**bytes sent to the model for a leg more**", sent, "the prompt that goes on stays in the conversation"),
        ("calls of the model, in one leg", median(run.calls for run in one), ""),
        ("calls of the model, in several", median(run.calls for run in several), "none is repeated"),
    ]
    text = (
        f"A run of {STEPS} steps, each a call of the model of {STEP_SECONDS} s and a call of Bash, with gates after "
        f"{GATE_SECONDS:g} s, where a deployment has them after {Legs(0).gate} s. The same handlers, Claude Code with "
        "the scripted model, S3 behind the limiter."
    )
    same = median(run.calls for run in several) == median(run.calls for run in one)
    checks = [Check("Legs repeat no call of the model", f"{more:g} more legs, {'none' if same else 'some'}", same)]
    return Section("What a leg costs", [text, table(("", "", ""), rows)], checks=checks)


def _methods(run: Run) -> Counter[str]:
    return Counter(exchange.method for exchange in run.exchanges)


def _hour(bench: Bench) -> Section:
    """By the prices of prices.toml."""
    prices, legs = Prices.read(), Legs(3600)
    count = 3600 / legs.gate
    model = CALLS_AN_HOUR * (CACHED * MODEL_DOLLARS["read"] + SAID * (MODEL_DOLLARS["write"] + MODEL_DOLLARS["output"]))
    gb_seconds = 3600 * memory_mb(bench.template, "RunLeg") / 1024
    rows = [
        ("Lambda: RunLeg, all the time", gb_seconds * prices.lambda_gb_second),
        ("Step Functions: the legs' transitions", count * STATES_OF_A_LEG * prices.standard_step),
        ("S3: progress, at the most", WRITES_AN_HOUR * prices.s3_write),
        ("S3: looking for a cancel", LOOKS_AN_HOUR * prices.s3_read),
    ]
    rows.append(("**AWS, together**", sum(dollars for _, dollars in rows)))
    rows.append((f"**the model**, {CALLS_AN_HOUR} calls", model))
    text = (
        f"US dollars for an hour of one run ({prices.region}, {prices.date}), in {count:g} legs. The model's is an "
        f"example: Claude Opus 5.5 is called {CALLS_AN_HOUR} times, each time reads {CACHED:,} tokens from its cache "
        f"and writes {SAID} to it, and says {SAID}."
    )
    return Section("What an hour costs", [text, table(("", "$"), [(name, figure(dollars)) for name, dollars in rows])])
