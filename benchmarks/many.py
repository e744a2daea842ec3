"""More posts at once than the machine has cores, through the service of this machine."""

import http.client
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from urllib.parse import urlsplit

from benchmarks.bench import Bench
from benchmarks.report import Check, Section, plot, table
from claude_workflow.local.model import ScriptedModel
from claude_workflow.local.service import Model, Service
from tests.support import patched_service

AT_ONCE = {1: 6, 2: 8, 4: 10, 8: 14, 16: 22, 32: 34, 64: 66}
"""How many posts are answered, by how many are under way."""
KEPT = 0.9
"""Share of the best level's throughput that each level from the best one on is to keep."""
SLOWEST = 1.5
"""How many times as long as its place in the queue takes the slowest twentieth of the posts may wait."""


@dataclass
class _Level:
    at_once: int
    seconds: list[float] = field(default_factory=list)
    """Of each post, from when it was first sent until its 200; what it was told to wait is in it."""
    sent_back: int = 0
    """How often a post was told to come again (429)."""
    failed: list[str] = field(default_factory=list)
    elapsed: float = 0.0

    @property
    def throughput(self) -> float:
        """Posts a second that were answered with 200."""
        return len(self.seconds) / self.elapsed

    @property
    def p95(self) -> float:
        """Seconds."""
        return sorted(self.seconds)[math.ceil(len(self.seconds) * 0.95) - 1] if self.seconds else math.nan

    @property
    def queue(self) -> float:
        """Seconds that all who are under way at once take at this throughput, one after the other."""
        return self.at_once / self.throughput if self.seconds else math.nan


def measure(bench: Bench) -> list[Section]:
    """Each level on the same service, whose functions have been started by some posts before."""
    folder = bench.folder / "many"
    folder.mkdir()
    wanted = {1: 1, 2: 2} if bench.quick else AT_ONCE
    with ScriptedModel(kept=1) as model:
        added = {"SCRATCH": str(folder / "scratch")}
        named = Model(model.url, "sk-scripted")
        with patched_service.serving(folder / "state", dict(bench.template), named, added) as service:
            bench.say("Starting the service …")
            _crowd(service, max(wanted) // 4 or 1, max(wanted) // 4 or 1)
            levels = []
            for at_once, posts in wanted.items():
                bench.say(f"{at_once} posts at a time …")
                levels.append(_crowd(service, at_once, posts))
    return [_section(levels)]


def _crowd(service: Service, at_once: int, posts: int) -> _Level:
    """`posts` posts, each of a new session, `at_once` of them under way."""
    level = _Level(at_once)
    with ThreadPoolExecutor(at_once) as pool:
        begun = time.monotonic()
        list(pool.map(lambda number: _one(service, level, number), range(posts)))
        level.elapsed = time.monotonic() - begun
    return level


def _one(service: Service, level: _Level, number: int) -> None:
    begun = time.monotonic()
    while True:
        status, headers, body = _post(service, f"say Number {number}.")
        if status != 429:
            break
        level.sent_back += 1
        time.sleep(int(headers["Retry-After"]))
    if status == 200:
        level.seconds.append(time.monotonic() - begun)
    else:
        level.failed.append(body[:200])


def _post(service: Service, prompt: str) -> tuple[int, http.client.HTTPMessage, str]:
    url = urlsplit(service.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=120)
    try:
        headers = {"Content-Type": "application/json", "X-Api-Key": service.key}
        connection.request("POST", url.path, json.dumps({"prompt": prompt}), headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def _section(levels: list[_Level]) -> Section:
    text = (
        "Posts of new sessions through the local service, with a model that answers at once. Each starts a Claude Code "
        "of 0.8 CPU-seconds, so that the machine's cores are the limit here; in AWS each has its own. The service "
        "admits as many agents at a time as it has room for, and the others wait in order; who would wait too long is "
        "told when to come again, and does. The queue is how long all who are under way at once take at the "
        "throughput of their level."
    )
    heads = ("at once", "answered", "failed", "a second", "median s", "p95 s", "queue, s", "told to come again")
    rows = [
        (
            one.at_once,
            len(one.seconds),
            len(one.failed),
            one.throughput,
            median(one.seconds or [math.nan]),
            one.p95,
            one.queue,
            one.sent_back,
        )
        for one in levels
    ]
    section = Section("Many at once", [text, table(heads, rows)])
    for failure in [failure for one in levels for failure in one.failed][:3]:
        section.blocks.append(f"A POST failed: `{failure}`")
    lines = {
        "p95": [(float(one.at_once), one.p95) for one in levels],
        "median": [(float(one.at_once), median(one.seconds or [math.nan])) for one in levels],
        "queue": [(float(one.at_once), one.queue) for one in levels],
    }
    section.plots["at-once"] = plot("Many at once", "posts under way", "seconds", lines, logarithmic=False)
    section.plots["at-once-throughput"] = plot(
        "Many at once",
        "posts under way",
        "posts a second",
        {"throughput": [(float(one.at_once), one.throughput) for one in levels]},
        logarithmic=False,
    )
    section.checks = _checks(levels)
    return section


def _checks(levels: list[_Level]) -> list[Check]:
    best = max(levels, key=lambda one: one.throughput)
    after = [one for one in levels if one.at_once >= best.at_once]
    least = min(one.throughput for one in after) / best.throughput
    slowest = max(one.p95 / (one.queue + levels[0].p95) for one in levels)
    failed = sum(len(one.failed) for one in levels)
    found = [
        Check("1 to 64 posts at once: all are answered", f"{failed} failed", failed == 0),
        Check.at_least(
            "… and from the best level on, throughput keeps at least 90 % of it", least * 100, KEPT * 100, " %"
        ),
        Check.at_most("… and p95 is at most 1.5 times the queue and one run", slowest, SLOWEST, "×"),
    ]
    by = {one.at_once: one for one in levels}
    if {8, 16} <= by.keys():
        ratio = by[16].throughput / by[8].throughput
        found.append(Check.at_least("16 at once do at least what 8 do", ratio, 1.0))
    return found
