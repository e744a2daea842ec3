"""What the meter costs in time: a call of the model through the proxy with it and without, in turns."""

import http.client
import json
import time
from dataclasses import replace
from statistics import median
from urllib.parse import urlsplit

from benchmarks.bench import LATENCY, Bench
from benchmarks.report import Check, Section, table
from claude_workflow.local.model import ScriptedModel
from lambdas.agent.credential import Secret
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.upstream import anthropic

ROUNDS = 20
SECONDS = 1.0
"""How long the model takes: a short answer's time, so that little weighs much."""
MOST = 1.01
"""The largest ratio that is accepted."""


def measure(bench: Bench) -> list[Section]:
    """Two calls a round, as a run makes them: the second waits until the first is on the receipt."""
    found: dict[bool, list[float]] = {True: [], False: []}
    with ScriptedModel() as model:
        for number in range(1 if bench.quick else ROUNDS):
            bench.say(f"The meter: round {number + 1} …")
            for metered, times in found.items():
                times.append(_two_calls(model.url, metered, 0.05 if bench.quick else SECONDS))
    ratio = median(found[True]) / median(found[False])
    rows = [("metered", median(found[True])), ("passed on", median(found[False])), ("ratio", ratio)]
    text = (
        f"Two calls of {SECONDS:g} s, streamed, one after the other. Metered, each is read as it passes, priced, and "
        f"its line put on the receipt, which takes {LATENCY * 1000:.0f} ms to be written; the empty one that has to be "
        "there before the first call is written while Claude Code starts. What the limits take beside it are requests "
        "of RestoreSession and PersistSession, which are listed above with their reasons."
    )
    check = Check.at_most("A run with the meter: its time over that without", ratio, MOST, "×")
    return [Section("The meter", [text, table(("", "s"), rows)], checks=[check])]


def _two_calls(url: str, metered: bool, seconds: float) -> float:
    upstream = anthropic(Secret(lambda: "key"), url)
    with (
        Proxy([upstream if metered else replace(upstream, call=lambda _: None)]) as proxy,
        Receipts(proxy.meter, lambda _: time.sleep(LATENCY)) as receipts,
    ):
        proxy.meter.allow(1.0, 10, receipts)
        while not receipts.kept():  # in a run, while Claude Code starts
            time.sleep(0.001)
        begun = time.perf_counter()
        for _ in range(2):
            _call(proxy, seconds)
        took = time.perf_counter() - begun
    assert proxy.meter.calls == (2 if metered else 0)
    return took


def _call(proxy: Proxy, seconds: float) -> None:
    said = [{"role": "user", "content": f"wait {seconds}\nsay {'word ' * 500}"}]
    body = {"model": "claude-opus-5-5", "max_tokens": 4000, "stream": True, "messages": said}
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
    connection.request(
        "POST", "/model/v1/messages", json.dumps(body), {"x-api-key": proxy.environment["ANTHROPIC_API_KEY"]}
    )
    response = connection.getresponse()
    assert (response.status, len(response.read()) > 2000) == (200, True)
    connection.close()
