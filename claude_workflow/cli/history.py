"""What an execution went through, state by state: in AWS from the machine's log, or of the long machine's, which keep
their history, from the service; on one machine from what is kept of it (`local.histories`), and while it runs from the
engine.

They tell the same story in two forms: service, engine and what is kept of it, `{type, timestamp, …EventDetails: {…}}`,
the log one JSON object an event, `{type, event_timestamp, details: {…}, execution_arn}`.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from claude_workflow.cli.backend import Backend
from claude_workflow.local import histories
from claude_workflow.local.histories import SIGNED, UNSIGNED
from lambdas.strict import Json

EVENTS = 1000
"""An execution of five states with their retries has some thirty."""

QUERY_SECONDS = 60
LEEWAY_SECONDS = 60
"""Clocks that differ, before a run's first request."""


LEGS_ENDED = {"gate": "ended at a gate, where nothing is lost", "limit": "ended at its limit"}
"""How a leg of a long run ended, in words."""


class Event(NamedTuple):
    """One event of an execution; `moment` in epoch seconds."""

    moment: float
    type: str
    details: Json


@dataclass
class Visit:
    """One state that was entered."""

    name: str
    entered: float
    """Epoch seconds."""
    input: Any
    left: float | None = None
    output: Any = None
    errors: list[Json] = field(default_factory=list)
    """`{error, cause}` of each try that failed; the last one is not an end where the definition repeats or catches."""


@dataclass(frozen=True)
class Story:
    """One execution."""

    execution: str
    link: str | None
    """Where the console shows it; None on one machine."""
    visits: list[Visit]
    """None of them, where the history is gone."""
    damage: str | None = None
    """Why what is kept of it cannot be told, in a sentence."""


def story_of(backend: Backend, execution: str, begin: float) -> Story:
    """The story of an execution that started at `begin` (epoch seconds) or later. Raises botocore's errors."""
    if backend.engine:
        try:
            kept = histories.events(backend.engine.state, execution)
        except histories.Damaged as damaged:
            return Story(execution, None, [], str(damaged))
        events = _from_machine(backend.client("stepfunctions"), execution) if kept is None else map(_event, kept)
        return Story(execution, None, visits(events))
    return Story(execution, console_link(execution, begin), visits(signed(backend, execution, begin)))


def signed(backend: Backend, execution: str, begin: float) -> list[Event]:
    """The events with the presigned URLs in them whole: to try what these open, and not to be shown.

    None of them on one machine, once the service has started anew. Raises botocore's errors.
    """
    if backend.engine or not _is_express(execution):
        return list(_from_machine(backend.client("stepfunctions"), execution))
    return _from_log(backend, execution, begin)


def _is_express(execution: str) -> bool:
    """Whether nothing but the log has its history."""
    return execution.split(":")[5] == "express"


def console_link(execution: str, begin: float) -> str:
    """The console's page of an execution; that of an express one looks for its log from `begin` (epoch seconds) on."""
    region = execution.split(":")[3]
    page = f"#/v2/executions/details/{execution}"
    if _is_express(execution):
        page = f"#/express-executions/details/{execution}?startDate={round(begin * 1000)}"
    return f"https://{region}.console.aws.amazon.com/states/home?region={region}{page}"


def visits(events: Iterable[Event]) -> list[Visit]:
    """The states in the order they were entered."""
    found: list[Visit] = []
    for event in events:
        details = event.details
        if event.type.endswith("StateEntered"):
            found.append(Visit(details["name"], event.moment, _data(details.get("input"))))
        elif found and event.type.endswith("StateExited"):
            found[-1].left, found[-1].output = event.moment, _data(details.get("output"))
        elif found and "error" in details:
            _end(found[-1], event)
    return found


def _end(visit: Visit, event: Event) -> None:
    """A try that failed; or the end of the execution, which is what its Fail state says and no second error."""
    if event.type == "ExecutionFailed":
        visit.left = event.moment
        if visit.errors:
            return
    visit.errors.append({"error": event.details["error"], "cause": _data(event.details.get("cause"))})


def _data(text: str | None) -> Any:
    """The JSON in a text, or the text; without signatures, of which a log or a run at work has whole ones."""
    try:
        return None if text is None else unsigned(json.loads(text))
    except ValueError:
        return unsigned(text)


def unsigned(data: Any) -> Any:
    """The same data with the queries of presigned URLs cut out: on a screen, or in what is sent on, they are keys."""
    return each_text(data, lambda text: SIGNED.sub(UNSIGNED, text))


def each_text(data: Any, change: Callable[[str], str]) -> Any:
    """The same data with each of its texts changed; names stay."""
    match data:
        case str():
            return change(data)
        case list() | tuple():
            return [each_text(one, change) for one in data]
        case dict():
            return {name: each_text(one, change) for name, one in data.items()}
    return data


def _from_machine(machines: Any, execution: str) -> Iterator[Event]:
    pages = machines.get_paginator("get_execution_history").paginate(executionArn=execution)
    try:
        for event in (event for page in pages for event in page["events"]):
            yield _event(event | {"timestamp": event["timestamp"].timestamp()})
    except machines.exceptions.ExecutionDoesNotExist:
        return  # of an earlier start of the engine, killed before it ended


def _event(event: Json) -> Event:
    details: Json = next((value for name, value in event.items() if name.endswith("EventDetails")), {})
    return Event(event["timestamp"], event["type"], details)


def _from_log(backend: Backend, execution: str, begin: float) -> list[Event]:
    """By CloudWatch Logs Insights; events reach it some seconds after they happened."""
    machine = backend.client("stepfunctions").describe_state_machine(stateMachineArn=backend.state_machine_arn)
    destinations = machine.get("loggingConfiguration", {}).get("destinations")
    if not destinations:
        return []  # a machine that somebody has told to log nowhere
    group = destinations[0]["cloudWatchLogsLogGroup"]["logGroupArn"]
    return logged(backend.client("logs"), group.removesuffix(":*"), execution, begin)


def logged(logs: Any, group: str, execution: str, begin: float) -> list[Event]:
    """The execution's events in the log group (an ARN). Raises `TimeoutError` for a query that does not end well."""
    query = logs.start_query(
        logGroupIdentifiers=[group],
        startTime=int(begin - LEEWAY_SECONDS),
        endTime=int(time.time()) + LEEWAY_SECONDS,
        queryString=f'fields @message | filter execution_arn = "{execution}" | sort @timestamp asc | limit {EVENTS}',
    )
    deadline = time.monotonic() + QUERY_SECONDS
    while (answer := logs.get_query_results(queryId=query["queryId"]))["status"] in ("Scheduled", "Running"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"CloudWatch Logs did not answer within {QUERY_SECONDS} seconds.")
        time.sleep(0.5)
    if answer["status"] != "Complete":
        raise TimeoutError(f"CloudWatch Logs ended the query as {answer['status']}. Try again.")
    messages = [json.loads(column["value"]) for row in answer["results"] for column in row if _is_message(column)]
    mine = [message for message in messages if message["execution_arn"] == execution]
    return [_logged(message) for message in sorted(mine, key=lambda message: int(message["id"]))]


def _is_message(column: Json) -> bool:
    return bool(column["field"] == "@message")


def _logged(message: Json) -> Event:
    return Event(int(message["event_timestamp"]) / 1000, message["type"], message["details"])


def legs(attempts: Iterable[str]) -> dict[str, str]:
    """By attempt of a run in several legs, which of its execution it is: those of one share their names' digest."""
    begun, found = Counter[str](), dict[str, str]()
    for attempt in sorted(attempts):
        _, _, rest = attempt.partition("-")
        digest = rest.partition("-")[0]
        begun[digest] += 1
        found[attempt] = f" (leg {begun[digest]})"
    return found if len(found) > len(begun) else {}


def named(visits: Sequence[Visit]) -> Iterator[tuple[str, Visit]]:
    """The states with their names; each leg, where there is more than one, with its number."""
    number, many = 0, sum(visit.name == "RunClaude" for visit in visits) > 1
    for visit in visits:
        leg = many and visit.name == "RunClaude"
        number += leg
        yield f"{visit.name} leg {number}" if leg else visit.name, visit


def clock(moment: float) -> str:
    """A moment (epoch seconds) as the time of day, UTC, to the millisecond."""
    return f"{datetime.fromtimestamp(moment, UTC):%H:%M:%S.%f}"[:-3]
