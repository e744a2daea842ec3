"""`claude-workflow verify` over a record that the functions wrote: all holds, and each planted fault is found."""

import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.cli.bill import COST, USAGE, lined_up, read
from claude_workflow.cli.books import Books, opened
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.verify import faults
from lambdas.agent.meter import Meter
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json
from tests.conftest import InMemory
from tests.support.commands import command
from tests.support.metered import ask, call
from tests.support.spent import HAIKU, Spent, spent, two_models

Plant = AbstractContextManager[None]


@pytest.fixture(scope="module")
def record(in_memory: InMemory) -> Iterator[Spent]:
    with spent(in_memory("spent")) as made:
        yield made


def books(record: Spent, begin: float = 0.0) -> Books:
    return opened(record.store, begin, time.time())


def test_all_holds(record: Spent) -> None:
    """Answered, failed, repeated, lost, forked and of an older version: one sentence, and what is no fault."""
    done = command("verify", "--state", record.state)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "All holds: 11 runs, 10 receipts, 12 calls, $1.722445.",
            f"{record.runs['differing']}: Claude Code itself says $0.2000 of "
            f"{record.attempt('differing')}, its receipt $0.1000.",
            "Without a receipt: 1 attempt, $0.2500 by the runs' records alone.",
            "Without a receipt or a word: 1 attempt, whose cost nobody knows.",
        ],
    )


def test_nothing_is_written(record: Spent) -> None:
    """Not even by what a run does that reads the ledger."""
    before = record.past.objects()
    books(record)
    assert record.past.objects() == before


def in_call(number: int, **fields: Any) -> Callable[[Json], None]:
    """What changes a call of a receipt."""

    def change(data: Json) -> None:
        data["calls"][number] |= fields

    return change


def of_usage(data: Json) -> None:
    data["calls"][0]["usage"]["output_tokens"] += 1


def of_price(data: Json) -> None:
    data["prices"]["models"]["claude-opus-5-5"]["output"] = 21


def of_time(data: Json) -> None:
    data["calls"][-1]["passed_at"] = data["limit_at"] + 60


def changed(record: Spent, name: str, object_name: str, change: Callable[[Json], None]) -> Plant:
    """An object of a run says something else."""
    key = record.key(name, object_name)
    data = deepcopy(record.read(key))
    change(data)
    return record.changed(key, data)


def twice(record: Spent) -> Plant:
    first = record.read(record.key("first", "receipt.json"))["calls"][0]["request_id"]
    return changed(record, "second", "receipt.json", in_call(0, request_id=first))


@contextmanager
def in_metadata(record: Spent) -> Iterator[None]:
    """The newest version of a session says that it cost more."""
    store, name = record.store, record.read(f"runs/{record.runs['second']}/request.json")["session_id"]
    key = f"{name}.zip"
    about = {"Bucket": store.name, "Key": key}
    metadata = store.head(key)["Metadata"] | {"cost-usd": "0.762500"}
    made = store.s3.copy_object(**about, CopySource=about, Metadata=metadata, MetadataDirective="REPLACE")
    try:
        yield
    finally:
        store.s3.delete_object(**about, VersionId=made["VersionId"])


@contextmanager
def in_ledger(record: Spent, micros: int | None) -> Iterator[None]:
    """What a failed run spent stands there as something else, or not at all."""
    store: Bucket = record.store
    (key,) = (one["Key"] for one in store.listed("ledger/2") if record.runs["failed"] in one["Key"])
    other = f"{key.rpartition('~')[0]}~{micros}"
    store.delete(key)
    if micros is not None:
        store.touch(other)
    try:
        yield
    finally:
        store.delete(other)
        store.touch(key)


PLANTED: dict[str, tuple[str, Callable[[Spent], Plant], str]] = {
    "usage": (
        "second",
        lambda record: changed(record, "second", "receipt.json", of_usage),
        r"the receipt of ATTEMPT does not add up: its call 1 says \$0\.2500; its usage and the prices with it make "
        r"\$0\.25002",
    ),
    "usd": (
        "second",
        lambda record: changed(record, "second", "receipt.json", in_call(0, usd=0.2)),
        r"the receipt of ATTEMPT does not add up: its call 1 says \$0\.2000; .* make \$0\.2500",
    ),
    "a price": (
        "second",
        lambda record: changed(record, "second", "receipt.json", of_price),
        r"the receipt of ATTEMPT does not add up: its call 1 says \$0\.2500; .* make \$0\.2625",
    ),
    "no receipt": (
        "second",
        lambda record: record.changed(record.key("second", "receipt.json"), None),
        r"the receipt of ATTEMPT is gone, which made \$0\.2500",
    ),
    "no receipt of a failure": (
        "failed",
        lambda record: record.changed(record.key("failed", "receipt.json"), None),
        r"the receipt of ATTEMPT is gone, which made \$0\.1000",
    ),
    "a request twice": (
        "second",
        twice,
        r"call 1 of ATTEMPT is counted twice: as req_\S+ it is call 1 of \d+-\S+ in RUN",
    ),
    "an answer": (
        "twice",
        lambda record: changed(record, "twice", "response.json", lambda data: data.update(cost_usd=0.3)),
        r"the answer says \$0\.3000, its receipts \$0\.3500",
    ),
    "an answer's session": (
        "second",
        lambda record: changed(record, "second", "response.json", lambda data: data.update(session_cost_usd=0.25)),
        r"the answer says \$0\.2500 of all the session, its base and receipts \$0\.512405",
    ),
    "a failure": (
        "failed",
        lambda record: changed(record, "failed", "failure.json", lambda data: data.update(cost_usd=0.0)),
        r"the failure says \$0\.0000, its receipts \$0\.1000",
    ),
    "a session": ("unanswered", in_metadata, r"session-\S+ says \$0\.7625, the receipts of its runs \$0\.762405"),
    "no entry": (
        "failed",
        lambda record: in_ledger(record, None),
        r"the ledger of \d{4}-\d\d-\d\d has nothing of ATTEMPT, its receipt \$0\.1000",
    ),
    "an entry": (
        "failed",
        lambda record: in_ledger(record, 90_000),
        r"the ledger of \d{4}-\d\d-\d\d says \$0\.0900 of ATTEMPT, its receipt \$0\.1000",
    ),
    "a late call": (
        "limited",
        lambda record: changed(record, "limited", "receipt.json", of_time),
        r"call 2 of ATTEMPT was passed on 60 s after max_budget was met",
    ),
}
"""By what is changed: the run that is named then, how, and what is said of it: nothing else is."""


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found(record: Spent, what: str) -> None:
    """By its own line, and no other."""
    name, plant, said = PLANTED[what]
    pattern = said.replace("ATTEMPT", r"\d{13}-[0-9a-f]{8}").replace("RUN", record.runs["first"])
    with plant(record):
        found = faults(books(record))
    assert [fault.run_id for fault in found] == [record.runs[name]], found
    assert re.fullmatch(pattern, found[0].what), found[0].what


@pytest.mark.parametrize(
    "lie",
    [
        lambda data: data.update(limit_at="soon"),
        lambda data: data.update(limit=["max_budget"]),
        lambda data: data.update(claude_code_usd="much"),
        lambda data: data["prices"].update(version=5),
        lambda data: data["prices"]["models"]["claude-opus-5-5"].update(output=10**400),
        lambda data: data.update(calls=5),
        in_call(0, request_id={}),
        in_call(0, at=9e11),
        lambda data: data["calls"][0]["usage"].update(service_tier=[1]),
    ],
)
def test_what_no_meter_writes_is_a_fault(record: Spent, lie: Callable[[Json], None]) -> None:
    """A stranger may have staged it: it is told as any other, and stops nothing."""
    with changed(record, "second", "receipt.json", lie):
        found = faults(books(record))
    assert [fault.run_id for fault in found] == [record.runs["second"]], found
    assert "does not add up" in found[0].what


def test_a_fault_is_told_with_the_next_command(record: Spent) -> None:
    """A line each, exit code 1, and the same as JSON."""
    failed = record.runs["failed"]
    told = f"{failed}: the failure says $0.0000, its receipts $0.1000: claude-workflow show {failed} "
    with changed(record, "failed", "failure.json", lambda data: data.update(cost_usd=0.0)):
        done = command("verify", "--state", record.state)
        as_json = command("verify", "--json", "--state", record.state)
    assert (done.returncode, as_json.returncode) == (1, 1)
    assert done.stdout.splitlines()[0] == f"{told}--state {record.state}"
    assert "1 fault in 11 runs" in done.stdout
    found = json.loads(as_json.stdout)
    assert found["faults"] == [{"run_id": failed, "what": "the failure says $0.0000, its receipts $0.1000"}]
    assert (found["runs"], found["receipts"], found["calls"], found["usd"]) == (11, 10, 12, 1.722445)


def test_a_dearer_price_is_found_where_all_of_a_receipt_agrees_with_it(record: Spent) -> None:
    """The table of that version is here, too."""

    def dearer(data: Json) -> None:
        of_price(data)
        data["calls"][0] |= {"usd": 0.2625, "most": 0.2625}

    with changed(record, "second", "receipt.json", dearer):
        said = [fault.what for fault in faults(books(record)) if "price" in fault.what]
    version = record.read(record.key("second", "receipt.json"))["prices"]["version"]
    assert said == [
        f"the receipt of {record.attempt('second')} asks another price for claude-opus-5-5 than the table of {version}"
    ]


def test_a_span_takes_its_days_and_sessions_whole(record: Spent) -> None:
    """What was asked for before is read where the ledger of the day, or the session, has it."""
    first = record.runs["first"]
    late = max(of.run.request["requested_at"] for of in books(record).accounts.values())
    part = books(record, late - 0.001)
    assert first in part.accounts
    assert faults(part) == []


COST_ROW = dict.fromkeys(COST, "") | {"api_key": "one", "token_type": "output", "cost_type": "token"}


def exported(place: Path, rows: list[Json]) -> Path:
    """A CSV as the provider's Console exports it, with a mark for the order of bytes, and columns that are not read."""
    with place.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return place


def test_a_cost_export_is_lined_up(record: Spent, tmp_path: Path) -> None:
    """By day and model, under whatever name either has it; equal, and then a line that is not."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"

    def rows(opus: float) -> list[Json]:
        of = COST_ROW | {"usage_date_utc": today}
        return [
            of | {"model": "Claude Opus 5.5", "cost_usd": str(opus)},
            of | {"model": "Claude Opus 5.5", "cost_usd": "0.72", "token_type": "input_no_cache"},
            of | {"model": "Claude Haiku 4.5", "cost_usd": "0.00"},
        ]

    equal = exported(tmp_path / "equal.csv", rows(1.0))
    done = command("verify", "--against", equal, "--state", record.state)
    assert done.returncode == 0, done.stdout
    assert [line.split() for line in done.stdout.splitlines()[:4]] == [
        ["day", "(UTC)", "model", "receipts", "provider", "difference"],
        [today, "claude-haiku-4-5", "0.0020", "0.0000", "-0.0020"],
        [today, "claude-opus-5-5", "1.7204", "1.7200", "-0.0004"],
        ["in", "all", "1.7224", "1.7200", "-0.0024"],
    ]
    other = exported(tmp_path / "other.csv", rows(1.1))
    done = command("verify", "--json", "--against", other, "--state", record.state)
    assert done.returncode == 1
    assert [line["differs"] for line in json.loads(done.stdout)["against"]] == [False, True, True]


def test_a_usage_export_is_lined_up_by_its_tokens(tmp_path: Path) -> None:
    """By the plain prices of the table; searches, which a cost export has apart, are no tokens."""
    receipt, day = two_models(), f"{datetime.now(UTC):%Y-%m-%d}"
    tokens = [(HAIKU, 2000, 1, 0, 0, 0), ("claude-opus-5-5", 100, 5000, 20_000, 0, 300_000)]
    rows = [dict(zip(USAGE, (f"{day}T09:00:00Z", *each), strict=True)) for each in tokens]
    haiku, opus, everything = lined_up(read(exported(tmp_path / "usage.csv", rows)), [receipt], day)
    assert (haiku.receipts, opus.receipts) == (0.002005, 0.2604)
    assert [line.difference for line in (haiku, opus, everything)] == [0, 0, 0]
    cost = exported(
        tmp_path / "cost.csv",
        [
            COST_ROW | {"usage_date_utc": day, "cost_usd": "0.03", "cost_type": "web_search"},
            COST_ROW | {"usage_date_utc": day, "cost_usd": "0.02", "model": "Claude Opus 5.5"},
        ],
    )
    meter = Meter()
    ask(meter, call(), 1000, server_tool_use={"web_search_requests": 3})
    assert [(line.model, line.difference) for line in lined_up(read(cost), [meter.receipt()], day)] == [
        ("claude-opus-5-5", 0),
        ("web search", 0),
        ("", 0),
    ]


def test_days_that_the_file_or_the_record_does_not_have_whole_are_left_out(tmp_path: Path) -> None:
    """A record that begins later, and a file that ends earlier."""
    receipt = two_models()
    rows = [
        COST_ROW | {"usage_date_utc": day, "model": "Claude Opus 5.5", "cost_usd": "9"}
        for day in ("2026-01-01", "2026-01-02", "2026-01-03")
    ]
    lines = lined_up(read(exported(tmp_path / "cost.csv", rows)), [receipt], "2026-01-03")
    assert [(line.day, line.receipts, line.provider) for line in lines] == [("2026-01-03", 0, 9), ("in all", 0, 9)]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"foo,bar\n1,2\n",
        f"{','.join(COST)}\nAugust,x,1\n".encode(),
        f"{','.join(COST)}\n2026-01-01,x,much\n".encode(),
        f"{','.join(COST)}\n2026-01-01\n".encode(),
        b"\x00\xff",
    ],
    ids=["empty", "other columns", "no day", "no figure", "half a row", "no text"],
)
def test_another_file_is_refused(tmp_path: Path, text: bytes) -> None:
    """In a sentence that says what is read."""
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(Unusable, match=r"x\.csv (is no CSV that|cannot be read as an export)"):
        read(tmp_path / "x.csv")
