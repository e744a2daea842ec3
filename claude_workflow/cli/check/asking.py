"""Asks every row, and reports."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from botocore.exceptions import BotoCoreError, ClientError
from rich.progress import Progress

from claude_workflow import __version__
from claude_workflow.cli import backend
from claude_workflow.cli.check import report
from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import BROKEN, HELD, NOT_ASKED, NotAsked, Outcome, Row, judged
from claude_workflow.cli.check.rows import ROWS
from claude_workflow.cli.endpoint import Unusable, find
from claude_workflow.cli.printing import document, to_stderr, whole
from lambdas.errors import StorageUnavailable

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
"""What AWS says to an operator who may not ask."""

AT_ONCE = 3
"""Rows that are asked side by side where runs cost nothing. Elsewhere one comes after the other: before each run what
is spent has to be known, and in AWS the function that served one run is to serve the next."""


def asked(kit: Kit, rows: Iterable[Row], say: Callable[[Row], None] = lambda _: None) -> list[Outcome]:
    """The rows' outcomes, in their order; `say` hears of each row before it is asked. Whoever interrupts it waits for
    the rows that are being asked. What it costs, and what has to be removed afterwards, the kit knows."""
    begun: dict[str, Future[Outcome]] = {}
    pool = ThreadPoolExecutor(AT_ONCE if kit.is_free else 1)
    try:
        for row in rows:
            begun[row.name] = pool.submit(_timed, kit, row, dict(begun), say)
        return [outcome.result() for outcome in begun.values()]
    finally:
        pool.shutdown(cancel_futures=True)


def _timed(kit: Kit, row: Row, before: Mapping[str, Future[Outcome]], say: Callable[[Row], None]) -> Outcome:
    """A row, once those `before` it are done that it waits for: they are at work by now."""
    wait([outcome for name, outcome in before.items() if row.last or name == row.needs])
    say(row)
    begin = time.monotonic()
    outcome = _ask(kit, row, {name for name, one in before.items() if one.done() and one.result().outcome == HELD})
    return replace(outcome, seconds=time.monotonic() - begin)


def _ask(kit: Kit, row: Row, held: set[str]) -> Outcome:
    try:
        if row.here and not kit.stack:
            raise NotAsked(row.here)
        if row.needs and row.needs not in held:
            raise NotAsked(f"It needs the answer of {row.needs}.")
        if kit.seconds_left < 0:
            raise NotAsked("The kit's ten minutes are over.")
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


def run(chosen: argparse.Namespace) -> int:
    """Prints the report to stdout: 0 where no row is broken, else 1. Raises `Unusable` where nothing could be asked."""
    endpoint = find(chosen.state, None, chosen.stack)
    try:
        with backend.found(chosen.state, chosen.stack, starts=True) as found:
            kit = Kit(endpoint, found, chosen.stack, chosen.max_dollars, chosen.model, chosen.redeploy)
            return _reported(kit, chosen)
    except (BotoCoreError, ClientError) as error:
        raise Unusable(str(error)) from error
    except StorageUnavailable as failed:
        raise Unusable(failed.detail) from failed


def _reported(kit: Kit, chosen: argparse.Namespace) -> int:
    if chosen.record:
        chosen.record.mkdir(parents=True, exist_ok=True)  # before anything is paid
    console = to_stderr()
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(ROWS))
            outcomes = asked(kit, ROWS, lambda row: progress.update(task, advance=1, description=row.name))
    finally:
        console.print(_removed(kit), style="dim", soft_wrap=True)
    paid = "no real cost" if kit.is_free else f"${kit.spent:.2f} for the model"
    about = {
        "of": f"The stack {kit.stack}" if kit.stack else "The service on this machine",
        "version": __version__,
        "cost": f"{paid}, {time.time() - kit.began:.0f} s.",
        "dollars": round(kit.spent, 4),
    }
    as_json = report.as_json(outcomes, about)
    if chosen.record:
        (chosen.record / "check.json").write_text(json.dumps(as_json, ensure_ascii=False, indent=1) + "\n")
    print(document(as_json, sys.stdout) if chosen.json else report.as_markdown(outcomes, about))
    console.print(f"{report.summary(outcomes)}; {about['cost']}", soft_wrap=True)
    return 1 if any(one.outcome == BROKEN for one in outcomes) else 0


def _removed(kit: Kit) -> str:
    """Removes what the kit left; a sentence on it."""
    try:
        return f"{kit.remove():,} objects of the kit's own are removed."
    except StorageUnavailable as error:
        said = whole(kit.clean(error.detail), sys.stderr)
        return f"What the kit left could not be removed ({said}). It expires after 30 days; its sessions stay."
