"""Restoring and persisting sessions of every size: ours, the naive way, backup tools and the limits take turns."""

import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import backups, naive, trees, workflow
from benchmarks.bench import Bench
from benchmarks.handlers import HandlerFailed
from benchmarks.naive import Took
from benchmarks.report import Check
from benchmarks.storage import BUCKET, client
from benchmarks.workflow import Turn

ONE_PERCENT, FEW = 0.01, 0.0001
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5)
BY_CHANGE = "110 MB"
"""The size at which more shares are measured."""
ROUNDS = {"1 MB": (5, 5), "10 MB": (5, 5), "110 MB": (7, 7), "570 MB": (3, 2), "1 GB": (1, 1)}
"""How often ours is measured at each size, and the others: the naive way takes a minute for the largest."""
WITH_BACKUPS = ("110 MB", "570 MB")


class Cost(NamedTuple):
    """What one side took, once."""

    seconds: float
    cpu: float
    peak: float
    """Bytes; 0 where it was not measured."""
    sent: float
    """Bytes of bodies to S3."""
    received: float
    requests: float
    archive: float
    """Of the seconds, those for the archive alone (see `workflow.Turn`)."""


def ours(share: float) -> str:
    """The name of our side where that share of the files changed."""
    return f"ours, {share * 100:g} % changed"


@dataclass
class Results:
    """All that was measured of one size."""

    kind: trees.Kind
    sides: dict[tuple[str, str], list[Cost]] = field(default_factory=lambda: defaultdict(list))
    """By what was done (`persist`, `restore`, `limit`) and by whom."""
    turns: list[Turn] = field(default_factory=list)
    archive_bytes: int = 0
    """Of the session's newest version."""
    directory_bytes: int = 0
    """Of its central directory."""

    def of(self, done: str, side: str) -> Cost:
        """Medians."""
        return Cost(*(median(values) for values in zip(*self.sides[done, side], strict=True)))

    def ratio(self, done: str, other: str, what: Callable[[Cost], float]) -> float:
        """How many times as much as ours, with 1 % changed, the other takes."""
        return what(self.of(done, other)) / what(self.of(done, ours(ONE_PERCENT)))

    def peak(self, state: str) -> float:
        """Most bytes of memory that the state's function had in any turn."""
        return max(turn.calls[state].peak for turn in self.turns)


def measure(bench: Bench) -> tuple[list[Results], list[Check]]:
    """Every size; and of those at which ours fails, that it does."""
    measured, failed = [], []
    for kind in [trees.TINY] if bench.quick else trees.SIZES:
        try:
            with _folder(bench, kind) as folder:
                measured.append(_Size(bench, Results(kind), folder).measured())
        except HandlerFailed as error:
            bench.say(f"{kind.name}: failed: {error}")
            failed.append(Check(f"A session of {kind.name} works", str(error)[:200].replace("|", " "), met=False))
    return measured, failed


@contextmanager
def _folder(bench: Bench, kind: trees.Kind) -> Iterator[Path]:
    folder = bench.folder / f"size-{kind.files}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class _Size:
    """One size being measured."""

    bench: Bench
    results: Results
    folder: Path

    @property
    def tree(self) -> Path:
        """The tree that ours begins with, and that the other sides keep."""
        return self.folder / "tree"

    def measured(self) -> Results:
        kind = self.results.kind
        trees.make(self.tree, kind)
        kept = self._backups()
        mine, others = ROUNDS.get(kind.name, (1, 1))
        with workflow.running(self.folder / "functions", self.bench.limiter, self.bench.template) as flow:
            self._say("first turn …")
            session = flow.turn("fill", source=str(self.tree)).session_id
            for number in range(mine):
                self._say(f"round {number + 1} of {mine} …")
                self._ours(flow, session, number, ONE_PERCENT, FEW)
                if number < others:
                    self._others(number, kept)
            if self.bench.quick or kind.name == BY_CHANGE:
                self._say("other shares of change …")
                self._ours(flow, session, mine, *(share for share in SHARES if share not in (ONE_PERCENT, FEW)))
        self._look_at(session)
        self._limits(others)
        return self.results

    def _say(self, text: str) -> None:
        self.bench.say(f"{self.results.kind.name}: {text}")

    def _backups(self) -> list[backups.Tool]:
        if not self.bench.quick and self.results.kind.name not in WITH_BACKUPS:
            return []
        tools = list(backups.tools(self.folder / "backups", self.tree, self.bench.limiter))
        for tool in tools:
            self._say(f"first snapshot of {tool.name} …")
            tool.begin()
        return tools

    def _ours(self, flow: workflow.Workflow, session: str, seed: int, *shares: float) -> None:
        for share in shares:
            turn = flow.turn("change", session, share=share, seed=seed)
            self.results.turns.append(turn)
            for done, span, state in (
                ("persist", turn.persist, "PersistSession"),
                ("restore", turn.restore, "RunClaude"),
            ):
                cost = Cost(
                    seconds=span.seconds,
                    cpu=span.cpu,
                    peak=turn.calls[state].peak,
                    sent=span.up,
                    received=span.down,
                    requests=span.requests,
                    archive=span.archive_seconds,
                )
                self.results.sides[done, ours(share)].append(cost)

    def _others(self, seed: int, kept: list[backups.Tool]) -> None:
        """The change of 1 % that ours has just had, and all others once."""
        trees.change(self.tree, ONE_PERCENT, seed)
        for tool in kept:
            took = tool.snapshot()
            cost = Cost(took.seconds, took.cpu, 0, took.moved, 0, 0, took.seconds)
            self.results.sides["persist", tool.name].append(cost)
        unpacked = self.folder / "unpacked"
        for what, tree in (("persist", self.tree), ("restore", unpacked)):
            self.results.sides[what, "naive"].append(self._naive(what, tree))
        shutil.rmtree(unpacked)

    def _naive(self, what: str, tree: Path) -> Cost:
        first = len(self.bench.limiter.log)
        took = naive.run(what, tree, self.bench.limiter.url, "naive.zip")
        exchanges = self.bench.limiter.log[first:]
        sent, received = sum(one.up for one in exchanges), sum(one.down for one in exchanges)
        return Cost(took.seconds, took.cpu, took.peak, sent, received, len(exchanges), took.seconds)

    def _look_at(self, session: str) -> None:
        s3 = client(f"http://{self.bench.storage.address}")
        s3.download_file(BUCKET, f"{session}.zip", str(self.folder / "session.zip"))
        with zipfile.ZipFile(self.folder / "session.zip") as opened:
            self.results.archive_bytes = (self.folder / "session.zip").stat().st_size
            self.results.directory_bytes = self.results.archive_bytes - opened.start_dir

    def _limits(self, rounds: int) -> None:
        """The raw copy, the plain inflate and the walk."""
        copied = self.folder / "copied"
        for _ in range(rounds):
            self._limit("copy", naive.run("copy", self.tree, copied))
            self._limit("inflate", naive.run("inflate", self.folder / "session.zip"))
            self._limit("walk", naive.run("walk", self.tree))
            shutil.rmtree(copied)

    def _limit(self, side: str, took: Took) -> None:
        self.results.sides["limit", side].append(Cost(took.seconds, took.cpu, took.peak, 0, 0, 0, took.seconds))
