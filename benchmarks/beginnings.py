"""How long a turn takes until the model is asked, and until its answer is there, by the size of the session."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from benchmarks import trees, workflow
from benchmarks.bare import Bare
from benchmarks.bench import Bench
from benchmarks.handlers import Call, Handler
from benchmarks.limiter import Exchange
from benchmarks.report import Check, Section, table
from claude_workflow.local.model import RecordedRequest, ScriptedModel

ROUNDS = 5
SIZES = [kind for kind in trees.SIZES if kind.name in ("1 MB", "110 MB", "570 MB")]
SMALL, MIDDLE = "1 MB", "110 MB"
THINKS = 1.5
"""Seconds that the model takes for its answer."""
PROMPT = f"wait {THINKS}\nsay Done."
MB = 1e6
PROMISED = 0.25
"""Seconds after the bare SDK's first request in which ours is made, at any size."""


class Asked(ScriptedModel):
    """Notes when it is asked, in monotonic seconds."""

    def __init__(self) -> None:
        super().__init__(kept=1)
        self.at = list[float]()

    async def record(self, request: RecordedRequest) -> None:
        self.at.append(time.monotonic())
        await super().record(request)


@dataclass
class Side:
    """Of one side, seconds from its beginning; a value a round."""

    asked: list[float] = field(default_factory=list)
    """Until the model's first request."""
    answered: list[float] = field(default_factory=list)
    """Until its answer was there."""
    peak: int = 0
    """Bytes: the most that RunClaude's handler had in memory."""


def measure(bench: Bench) -> list[Section]:
    """The bare SDK and RunClaude with the real Claude Code take turns."""
    kinds = [trees.TINY] if bench.quick else SIZES
    sides = {kind.name: (Side(), Side()) for kind in kinds}
    with Asked() as model, Bare(bench.folder / "beginnings-bare", model.url) as theirs:
        theirs("say Hello.")
        for kind in kinds:
            with _session(bench, kind, model) as (functions, session):
                for number in range(1 if bench.quick else ROUNDS):
                    bench.say(f"Until the model is asked, {kind.name}: round {number + 1} …")
                    bare, ours = sides[kind.name]
                    _bare(theirs, model, bare)
                    _ours(bench, functions, session, model, ours)
    return [_section(sides)]


@contextmanager
def _session(bench: Bench, kind: trees.Kind, model: Asked) -> Iterator[tuple[dict[str, Handler], str]]:
    """Warm functions, and a session of that size."""
    folder, tree = bench.folder / f"beginnings-{kind.files}", bench.folder / f"beginning-{kind.files}"
    folder.mkdir()
    trees.make(tree, kind)
    try:
        with workflow.functions(folder, bench.limiter.url, bench.template, model.url) as functions:
            calls = workflow.ask(functions, f"run cp -a {tree}/. .")
            yield functions, calls["PersistSession"].output["session_id"]
    finally:
        shutil.rmtree(tree)
        shutil.rmtree(folder)


def _bare(bare: Bare, model: Asked, side: Side) -> None:
    model.at.clear()
    start = time.monotonic()
    took = bare(PROMPT)
    side.asked.append(model.at[0] - start)
    side.answered.append(took.result)


def _ours(bench: Bench, functions: dict[str, Handler], session: str, model: Asked, side: Side) -> None:
    model.at.clear()
    first = len(bench.limiter.log)
    ran: Call = workflow.ask(functions, PROMPT, session)["RunClaude"]
    side.peak = ran.peak
    side.asked.append(model.at[0] - ran.start)
    side.answered.append(max(one.start for one in bench.limiter.log[first:] if _tells(one)) - ran.start)


def _tells(exchange: Exchange) -> bool:
    """Whether it stages the messages; the last one that does, when Claude Code has ended."""
    return exchange.method == "PUT" and "/messages.json?" in exchange.target


def _section(sides: dict[str, tuple[Side, Side]]) -> Section:
    text = (
        f"One more turn of a session of each size, from RunClaude's event on, with the real Claude Code and a model "
        f"that answers after {THINKS} s; S3 as above. Answered is when Claude Code has ended and its messages are "
        "about to be staged. The bare SDK is `query()` in a warm process, its session a small one on the disk; a round "
        "has one run of each, and what is more is the median of the rounds' differences. The peak is the handler's."
    )
    heads = ("session", "asked, s", "bare SDK, s", "more, s", "answered, s", "bare SDK, s", "more, s", "peak MB")
    rows = [
        (name, *_compared(ours.asked, bare.asked), *_compared(ours.answered, bare.answered), ours.peak / MB)
        for name, (bare, ours) in sides.items()
    ]
    section = Section("Until the model is asked", [text, table(heads, rows)])
    for name, (bare, ours) in sides.items():
        promise = f"The model is asked at {name} at most {PROMISED} s later than by the bare SDK"
        section.checks.append(Check.at_most(promise, _compared(ours.asked, bare.asked)[2], PROMISED, " s"))
    if SMALL in sides and MIDDLE in sides:
        later = _later(*sides[MIDDLE]) - _later(*sides[SMALL])
        promise = f"The answer at {MIDDLE} is there no later than at {SMALL}, given {THINKS} s of thinking (≤ 0.1 s)"
        section.checks.append(Check.at_most(promise, later, 0.1, " s"))
    return section


def _compared(ours: list[float], bare: list[float]) -> tuple[float, float, float]:
    more = median(one - other for one, other in zip(ours, bare, strict=True))
    return median(ours), median(bare), more


def _later(bare: Side, ours: Side) -> float:
    return _compared(ours.answered, bare.answered)[2]
