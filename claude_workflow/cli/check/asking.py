"""Asks every row, and reports."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from claude_workflow import __version__
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.check import report
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import BROKEN, HELD, NOT_ASKED, NotAsked, Outcome, Row, judged
from claude_workflow.cli.check.rows import ROWS
from claude_workflow.cli.endpoint import STAND_IN, Endpoint, Unusable
from claude_workflow.cli.printing import document, to_stderr, whole
from lambdas.errors import WorkflowError

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
"""What AWS says to an operator who may not ask."""


def asked(kit: Kit, rows: Iterable[Row], say: Callable[[Row], None] = lambda _: None) -> Iterator[Outcome]:
    """The rows' outcomes, as they come; `say` hears of each row before. What it costs, and what has to be removed
    afterwards, the kit knows."""
    held: set[str] = set()
    for row in rows:
        say(row)
        begin = time.monotonic()
        outcome = _ask(kit, row, held)
        if outcome.outcome == HELD:
            held.add(row.name)
        yield replace(outcome, seconds=time.monotonic() - begin)


def _ask(kit: Kit, row: Row, held: set[str]) -> Outcome:
    if row.aws and not kit.stack:
        return Outcome(row, NOT_ASKED, row.aws)
    if lacking := [name for name in row.needs if name not in held]:
        return Outcome(row, NOT_ASKED, f"It needs the answer of {' and '.join(lacking)}.")
    if kit.seconds_left < 0:
        return Outcome(row, NOT_ASKED, "The kit's ten minutes are over.")
    try:
        kit.answers[row.name] = raw = row.ask(kit)
    except NotAsked as why:
        return Outcome(row, NOT_ASKED, str(why))
    except ClientError as error:
        if error.response["Error"]["Code"] in DENIED and kit.stack:
            return Outcome(row, NOT_ASKED, kit.clean(f"Your credentials may not ask that: {error}"))
        return Outcome(row, BROKEN, kit.clean(str(error)))
    except Exception as error:  # whatever it is, it is this row's, and the others are asked all the same
        return Outcome(row, BROKEN, kit.clean(f"{type(error).__name__}: {error}"))
    return judged(row, kit.clean(raw))


def run(
    endpoint: Endpoint,
    backend: Backend,
    stack: str | None,
    *,
    max_dollars: float,
    model: str | None,
    redeploy: str | None,
    recorded: Path | None,
    as_json: bool,
) -> int:
    """Prints the report to stdout: 0 where no row is broken, else 1. Raises `Unusable` where nothing could be asked."""
    if recorded:
        recorded.mkdir(parents=True, exist_ok=True)  # before anything is paid
    kit = Kit(endpoint, backend, stack, max_dollars=max_dollars, model=model, redeploy=redeploy)
    console, outcomes = to_stderr(), list[Outcome]()
    columns = (
        TextColumn("Asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(ROWS))
            for outcome in asked(kit, ROWS, lambda row: progress.update(task, description=row.name)):
                outcomes.append(outcome)
                progress.advance(task)
    finally:
        console.print(_removed(kit), style="dim", soft_wrap=True)
    paid = "no real cost" if endpoint.answering == STAND_IN else f"${kit.spent:.2f} for the model"
    about = {
        "of": f"The stack {stack}" if stack else "The service on this machine",
        "version": __version__,
        "cost": f"{paid}, {time.time() - kit.began:.0f} s.",
        "dollars": round(kit.spent, 4),
    }
    whole_report = report.as_json(outcomes, about)
    if recorded:
        report.record(recorded, whole_report)
    print(document(whole_report, sys.stdout) if as_json else report.as_markdown(outcomes, about))
    console.print(f"{report.summary(outcomes)}; {about['cost']}", soft_wrap=True)
    return 1 if any(one.outcome == BROKEN for one in outcomes) else 0


def _removed(kit: Kit) -> str:
    """Removes what the kit left; a sentence on it."""
    try:
        return f"{kit.remove():,} objects of the kit's own are removed."
    except (BotoCoreError, ClientError, WorkflowError, Unusable) as error:
        said = whole(kit.clean(str(error)), sys.stderr)
        return f"What the kit left could not be removed ({said}). It expires after 30 days; its sessions stay."
