"""What `serve` says of runs that were at work when the service ended, and how it goes on with the long ones."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import of_state, typed
from claude_workflow.cli.record import each
from claude_workflow.cli.replay import AT_A_TIME, Replay
from claude_workflow.local import lost
from claude_workflow.local.lost import Lost
from claude_workflow.local.service import Service
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket


@contextmanager
def resumed(running: Service, state: Path, console: Console, *, leave: bool) -> Iterator[None]:
    """Says of each run what becomes of it, and goes on meanwhile with those that are long, unless it is to `leave`
    them. A run that does not go on is said, too."""
    for run in running.lost:
        console.print(said(run, state, leave=leave), soft_wrap=True, markup=False, highlight=False)
        if run.at_work and leave:
            lost.free(_bucket(running), run)
    entries = [Entry(run.run_id) for run in running.lost if goes_on(run, leave=leave)]
    ending = threading.Event()

    def go_on() -> None:
        for outcome in each(_replay(running, state).start, entries, AT_A_TIME):
            if ending.is_set():
                return
            if outcome and not outcome.ok:
                failed = f"{outcome.run_id} does not go on: {outcome.sentence}"
                console.print(failed, soft_wrap=True, markup=False, highlight=False)

    if entries:
        threading.Thread(target=go_on, daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def _replay(running: Service, state: Path) -> Replay:
    deployed = running.deployed
    backend = Backend(deployed.bucket, deployed.state_machine_arn, running.engine, of_state(state))
    return Replay(backend, _bucket(running), backend.client("stepfunctions"), "again", since=0.0)


def _bucket(running: Service) -> Bucket:
    return Bucket(running.engine.client("s3"), running.deployed.bucket)


def goes_on(run: Lost, *, leave: bool) -> bool:
    """Whether `serve` goes on with it: nobody waits for the others' answers any more."""
    return run.at_work and not leave


def said(run: Lost, state: Path, *, leave: bool) -> str:
    """One line."""
    if run.ended:
        return f"{run.run_id} had ended when the service did: its session is free."
    if goes_on(run, leave=leave):
        return f"{run.run_id} was at work when the service ended: goes on."
    command = typed("replay", run.run_id, *of_state(state))
    return f"{run.run_id} was at work when the service ended: asked again with its key, it goes on, or by {command}"
