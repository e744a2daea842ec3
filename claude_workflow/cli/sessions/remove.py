"""`claude-workflow sessions rm`: sessions, or all that is a caller's, out of the bucket for good."""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console

from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.printing import line, to_stderr
from claude_workflow.cli.runs import DAY
from claude_workflow.cli.sessions import progress
from claude_workflow.cli.sessions.held import telling
from lambdas.bucket import ledger, removal
from lambdas.bucket.objects import Bucket
from lambdas.bucket.removal import STAYS, Removed

KEPT_DAYS = 30
"""How long the template keeps logs, and a service on one machine what executions went through."""


def sessions(backend: Backend, session_ids: Sequence[str]) -> int:
    """Removes these; 0 if all of them are gone, 1 if one was not there, or a run is working on it."""
    bucket, console = Bucket(backend.client("s3"), backend.bucket), to_stderr()
    refused = _removed(bucket, console, dict.fromkeys(session_ids, ()), must_be=True)
    console.print(STAYS, style="dim", soft_wrap=True)
    _print_logs(console, backend)
    return int(refused)


def of_caller(backend: Backend, owner: str) -> int:
    """Removes all that is this caller's; 0 if it is, 1 if a run is working on one of its sessions."""
    bucket, console = Bucket(backend.client("s3"), backend.bucket), to_stderr()
    with console.status("Looking through all runs and sessions …"):
        owned = removal.owned(bucket, owner)
    refused = _removed(bucket, console, owned.sessions, must_be=False)
    for upload in sorted(owned.uploads):
        removal.remove_upload(bucket, upload)
    if owned.uploads:
        console.print(f"{counted(len(owned.uploads), 'upload')} gone.")
    if refused:
        console.print("Some of it is left: once nobody is at work on it, remove it again.", style="yellow")
        return 1
    entries = ledger.forget(bucket, owner)
    if not (owned.sessions or owned.uploads or entries):
        raise Unusable(f"There is nothing of {line(owner, 100)}'s.")
    console.print(
        f"Nothing in the bucket is {line(owner, 100)}'s any more. In the ledger of the last 30 days "
        f"{counted(entries, 'attempt')} count for their days' sums alone. What stays: sessions of others that were "
        "forked from these; copies that others made.",
        style="dim",
        soft_wrap=True,
    )
    _print_logs(console, backend)
    return 0


def _removed(bucket: Bucket, console: Console, wanted: Mapping[str, Collection[str]], *, must_be: bool) -> bool:
    """Removes sessions with their runs, and says of each what is gone; whether one of them is not."""
    said, refused = list[str](), False
    with progress.of_steps("Removing") as (to_come, done):
        to_come(len(wanted))
        for session_id, runs in wanted.items():
            try:
                with telling(session_id):
                    removed = removal.remove(bucket, session_id, runs)
                if must_be and removed == Removed(0, 0, 0):
                    raise Unusable(f"There is no session {session_id}.")
                gone = [counted(getattr(removed, f"{what}s"), what) for what in ("version", "run", "object")]
                said.append(f"{session_id} is gone: {gone[0]} and {gone[1]}, in all {gone[2]}.")
            except Unusable as unusable:
                said.append(str(unusable))
                refused = True
            done(1)
    for sentence in said:
        console.print(sentence, soft_wrap=True)
    return refused


def _print_logs(console: Console, backend: Backend) -> None:
    """What the bucket does not hold."""
    until = f"{datetime.fromtimestamp(time.time() + KEPT_DAYS * DAY, UTC):%Y-%m-%d}"
    if backend.stack:
        told = (
            f"In the logs prompts and answers stay until {until} at the latest, unless their retention was changed: "
            f"/aws/vendedlogs/states/{backend.stack} has what each state was given and gave, without the session's "
            "files, but with those that a request brought in its body; the API's access log and the functions' logs "
            "have ids; so have traces, as X-Ray keeps them."
        )
    else:
        told = (
            f"In the state directory prompts and answers stay until {until} at the latest, in histories/, with files "
            "that a request brought in its body; ids in events.jsonl, until you remove it."
        )
    console.print(told, style="dim", soft_wrap=True)
