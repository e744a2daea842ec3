"""`claude-workflow sessions show`: one session, as its newest version and what lies beside it tell of it."""

import sys
import time
from dataclasses import asdict

from rich.filesize import decimal

from claude_workflow.cli import tables
from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import dollars
from claude_workflow.cli.endpoint import Unusable, typed
from claude_workflow.cli.printing import document, line
from claude_workflow.cli.sessions.stored import stored
from lambdas.bucket import lease, listing, versions
from lambdas.bucket.objects import Bucket
from lambdas.bucket.versions import session_key


def run(backend: Backend, session_id: str, as_json: bool) -> int:
    """Prints to stdout. Raises `Unusable` where there is no such session."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    found = stored(bucket, session_id)
    if found is None:
        raise Unusable(f"There is no session {session_id}.")
    key = session_key(session_id)
    older = sum(each.key == key for each in versions.below(bucket, key)) - 1
    runs = sum(len(page) for page in listing.of_session(bucket, session_id))
    held = lease.holder(bucket, session_id)
    at_work = held.run_id if held and held.expires_at > time.time() else None
    if as_json:
        print(document(asdict(found) | {"older_versions": older, "runs": runs, "at_work": at_work}, sys.stdout))
        return 0
    out = tables.console()
    out.print(session_id, style="bold")
    if found.damage:
        out.print(f"Damaged: {line(found.damage, 300)}", style="bold red", soft_wrap=True)
    facts = {
        "owner": line(found.owner or "–", 100),
        "created": _moment(found.created),
        "changed": _moment(found.changed),
        "turns": "–"
        if found.turns is None
        else f"{found.turns:,}"
        if found.turns
        else "none yet: files were put there",
        "cost": dollars(found.cost_usd),
        "files": "–" if found.files is None else f"{found.files:,}",
        "size": f"{decimal(found.size)}, and {counted(older, 'older version')}",
        "runs": f"{runs:,} in the last 30 days",
        "at work": line(at_work or "nobody", 100),
    }
    for name, fact in facts.items():
        out.print(f"{name:<9}{fact}", soft_wrap=True)
    for what in (("sessions", "files", session_id), ("runs", "--session", session_id)):
        out.print(f"  {typed(*what, *backend.options)}", style="dim", soft_wrap=True)
    return 0


def _moment(told: str | None) -> str:
    return f"{line(told, 40)[:19].replace('T', ' ')} UTC" if told else "–"
