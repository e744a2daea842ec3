"""`claude-workflow costs`, against a record that the functions wrote."""

import csv
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from claude_workflow.cli.accounts import Attempt, accounts
from claude_workflow.cli.costs import NONE, sums
from lambdas.agent.meter import Meter
from tests.conftest import InMemory
from tests.support.commands import at_terminal, command, plain
from tests.support.metered import OPUS, call
from tests.support.spent import HAIKU, Spent, spent

ALL, FIRST_SESSION = 1.972445, 0.762405
"""US dollars: of everything, an attempt without a receipt included; and of the session that has three turns."""


@pytest.fixture(scope="module")
def record(in_memory: InMemory) -> Iterator[Spent]:
    with spent(in_memory("spent")) as made:
        yield made


def test_each_key_adds_up_to_the_same(record: Spent) -> None:
    """Of a failed attempt as of an answered one; of a model, what it answered."""
    found = list(accounts(record.store, 0.0, time.time()))
    of = {
        by: {row.of: round(row.usd, 10) for row in sums(found, by)[0]} for by in ("caller", "session", "model", "day")
    }
    session = next(of_.run.session_id for of_ in found if of_.run.run_id == record.runs["first"])
    assert of["caller"] == {"default": ALL}
    assert round(sum(of["day"].values()), 10) == ALL
    assert of["model"] == {OPUS: 1.72044, NONE: 0.25, HAIKU: 0.002005}
    assert (of["session"][session], round(sum(of["session"].values()), 10)) == (FIRST_SESSION, ALL)
    assert list(of["session"].values()) == sorted(of["session"].values(), reverse=True)
    everything = sums(found, "day")[1]
    assert (len(everything.runs), everything.calls, everything.without_receipt, everything.unknown) == (11, 12, 1, 1)
    assert (
        0.02 < (everything.rest or 0) < 0.03
    )  # the worst of the call that is open; of the one cut off, by the time it took


def test_a_call_counts_on_its_own_day(record: Spent) -> None:
    """A run over midnight (UTC) is on both; days are in order."""
    key = record.key("limited", "receipt.json")
    data = record.read(key)
    data["calls"][0]["at"] -= 2 * 86_400
    with record.changed(key, data):
        before, *since = sums(accounts(record.store, 0.0, time.time()), "day")[0]
    assert (before.usd, len(before.runs), before.of < since[0].of) == (0.08, 1, True)
    assert (round(sum(row.usd for row in since), 10), max(len(row.runs) for row in since)) == (
        round(ALL - 0.08, 10),
        11,
    )


def test_what_nobody_can_tell_is_no_figure(record: Spent) -> None:
    """What an open call of a tool of the provider's own will cost, and what it has cost where a function died."""
    of = next(accounts(record.store, 0.0, time.time()))
    meter = Meter()
    with meter.call(call(tools=[{"type": "web_search_20250305"}]), lambda: None) as charge:
        charge.sent()
        unbounded = replace(of, attempts=[Attempt("runs/run-1/1800000000000-a/", meter.receipt())])
    (row,), _ = sums([of, unbounded], "caller")
    assert (row.rest, row.calls, row.row("caller", row.usd)["rest_usd"]) == (None, 3, None)


NARROW = """\
model                                           runs   input  written       cost
                                               calls  output     read      share
claude-opus-5-5                                    9     110   20,000    $1.7204
============================================      11  78,000     300K        87%
–                                                  2       0        0    $0.2500
======                                             0       0        0        13%
claude-haiku-4-5-20251001                          1   2,000        0    $0.0020
                                                   1       1        0         0%
in all                                            11   2,110   20,000    $1.9724
                                                  12  78,001     300K       100%
"""

FIGURES = """\
model                                            runs     calls          input        output        written            read          cost   share
claude-opus-5-5                                     9        11            110        78,000         20,000         300,000       $1.7204     87%BAR
–                                                   2         0              0             0              0               0       $0.2500     13%BAR
claude-haiku-4-5-20251001                           1         1          2,000             1              0               0       $0.0020      0%
in all                                             11        12          2,110        78,001         20,000         300,000       $1.9724    100%
"""  # noqa: E501 - 147 columns

BARS = FIGURES.replace("BAR", "  " + 53 * "=", 1).replace("BAR", "  " + 8 * "=")


@pytest.mark.parametrize(
    ("columns", "screen"), [(80, NARROW), (200, BARS), (None, FIGURES.replace("BAR", ""))], ids=["80", "200", "piped"]
)
def test_costs_fit_their_screen(record: Spent, columns: int | None, screen: str) -> None:
    """The figures with bars beside them, or below; none in a pipe. What they do not say stands under them."""
    asked = ("costs", "--by", "model", "--state", record.state)
    seen = at_terminal(*asked, columns=columns, NO_COLOR="1")[1] if columns else command(*asked).stdout
    assert plain(seen).startswith(screen), plain(seen)
    assert columns is None or max(map(len, plain(seen).splitlines())) <= columns
    under = " ".join(plain(seen)[len(screen) :].split())
    assert under.startswith(
        "Without a receipt: 1 attempt, by what the runs' records say. "
        "Not in the sums: 1 attempt, whose cost nobody knows. "
        f"See claude-workflow verify --state {record.state} Up to $0.02"
    ), under


def test_pipes_get_figures(record: Spent) -> None:
    """As CSV and as JSON the same, exact; what nobody knows is told beside them."""
    table = list(
        csv.DictReader(io.StringIO(command("costs", "--csv", "--by", "model", "--state", record.state).stdout))
    )
    told = command("costs", "--json", "--by", "model", "--state", record.state).stdout.splitlines()
    rows = [json.loads(line) for line in told]
    assert [{name: str(value) for name, value in row.items()} for row in rows] == table
    assert rows[1] == {
        "model": NONE,
        "runs": 2,
        "calls": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cache_write_tokens": 0,
        "cache_read_tokens": 0,
        "usd": 0.25,
        "rest_usd": 0.0,
        "share": 0.1267,
        "without_receipt": 1,
        "unknown": 1,
    }
    assert (rows[0]["model"], rows[0]["usd"], rows[0]["cache_read_tokens"]) == (OPUS, 1.72044, 300_000)


def test_nothing_to_add_up_is_told(record: Spent) -> None:
    """In a span in which nothing was asked for."""
    done = command("costs", "--since", "0m", "--state", record.state)
    assert (done.returncode, done.stdout) == (0, "No runs.\n")
