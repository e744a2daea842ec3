"""What a turn asks of S3, request by request: each has a reason in docs/requests.md."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.buckets import a_bucket
from tests.support.handed_over import Long
from tests.support.in_a_row import in_a_row
from tests.support.in_a_row import noted as noted_in_time
from tests.support.played_workflow import Execution, Workflow

DOCUMENT = Path(__file__).parent.parent / "docs" / "requests.md"


class Noted:
    """An S3 client that writes down what is asked of it."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._s3, name)

        def noted(*also: Any, **arguments: Any) -> Any:
            if "Key" in arguments:
                self.asked.append(f"{name.split('_')[0].upper()} {_shape(arguments['Key'])}")
            return method(*also, **arguments)

        return noted


def _shape(key: str) -> str:
    """A key as the document writes it."""
    key = re.sub(r"run-[0-9a-f]+", "{run}", key)
    key = re.sub(r"/\d{13}-[0-9a-f]{8}/", "/…/", key)
    key = re.sub(r"session-[0-9a-f-]+", "{session}", key)
    key = re.sub(r"^ledger/[\d-]+/.*~(reserved|spent)~.*", r"ledger/{day}/…~\1", key)
    key = re.sub(r"^(ledger/sessions/[^~]+~).*", r"\1…", key)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d", "{hour}", key)


@pytest.fixture
def noted(s3: Any) -> Noted:
    return Noted(s3)


def documented(column: str) -> list[str]:
    """RestoreSession's requests by the document, of a new session or of one that goes on."""
    rows = re.findall(r"^\| `([A-Z]+ [^`]+)` \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    return [request for request, when in rows if when in ("always", column)]


def test_restoring_asks_for_what_is_documented_and_no_more(noted: Noted) -> None:
    """A new session takes six requests, one that goes on nine; some at once, but each step only when the one before
    is done."""
    workflow = Workflow(a_bucket(noted))
    session = workflow.new_session("one")
    for key, when, body in (
        ("two", "new", {"prompt": "x"}),
        ("three", "goes on", {"prompt": "x", "session_id": session}),
    ):
        noted.asked.clear()
        workflow.restore(Execution(f"execution-{key}", key, body))
        assert sorted(noted.asked) == sorted(documented(when))
        steps = [asked for asked in noted.asked if re.match("PUT (runs|locks)", asked)]
        assert steps == [asked for asked in documented(when) if asked in steps]


def test_a_commit_asks_for_what_is_documented_and_no_more(noted: Noted) -> None:
    """Thirteen requests for a small session, some of them at once."""
    workflow = Workflow(a_bucket(noted))
    session = workflow.new_session("four")
    restored = workflow.restore(Execution("fourth", "five", {"prompt": "x", "session_id": session}))
    assert restored.task
    told = workflow.run(restored.task)
    noted.asked.clear()
    workflow.persist(restored.claim, told)
    assert sorted(noted.asked) == sorted(listed("## PersistSession"))


def test_handing_over_asks_for_the_record_and_the_lease(noted: Noted) -> None:
    """As RestoreSession's table has it, down to the lease."""
    workflow = Workflow(a_bucket(noted))
    for when, body in (("goes on", {"session_id": workflow.new_session("six")}), ("new", {})):
        noted.asked.clear()
        Long(workflow, when.replace(" ", "-"), **body).post()
        asked = documented(when)
        assert sorted(noted.asked) == sorted(asked[: asked.index("PUT locks/{session}.json") + 1])


def test_a_later_leg_asks_for_what_is_documented_and_no_more(noted: Noted) -> None:
    """Twenty requests between the first two legs, and a receipt more between each two that follow."""
    workflow = Workflow(a_bucket(noted))
    long = Long(workflow, session_id=workflow.new_session("seven"))
    long.post()
    long.next()
    between = listed("## RestoreSession, between")
    for more in range(3):
        long.work("a step")
        noted.asked.clear()
        long.next()
        assert sorted(noted.asked) == sorted([*between, *["GET runs/{run}/…/receipt.json"] * more])


@pytest.mark.parametrize("column", [1, 2])
def test_as_many_answers_are_waited_for_in_a_row_as_is_documented(s3: Any, column: int) -> None:
    """A busy machine sends what is sent at once one after the other, now and then: the best of some tries counts."""
    waits = {row[0]: int(row[column]) for row in rows("## Answers in a row")}
    workflow = Workflow(a_bucket(s3))
    session = {} if column == 1 else {"session_id": workflow.new_session("eight")}
    best: dict[str, int] = {}
    for number in range(5):
        with noted_in_time(s3) as restoring:
            body = {"prompt": "x", "max_caller_usd_per_day": 100.0, **session}
            restored = workflow.restore(Execution(f"row-{number}", f"row-{number}", body))
        assert restored.task
        told = workflow.run(restored.task)
        with noted_in_time(s3) as persisting:
            workflow.persist(restored.claim, told)
        for state, spans in (("RestoreSession", restoring), ("PersistSession", persisting)):
            best[state] = min(in_a_row(spans), best.get(state, len(spans)))
        if best == waits:
            break
    assert best == waits


def rows(title: str) -> list[list[str]]:
    """The cells of the table below a title of the document, without its head."""
    section = DOCUMENT.read_text().split(title)[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return lines[1:]


def listed(title: str) -> list[str]:
    """The requests in the table below a title of the document."""
    section = DOCUMENT.read_text().split(title)[1].split("\n## ")[0]
    return re.findall(r"^\| `([A-Z]+ [^`]+)`", section, re.MULTILINE)
