"""What the console's pages cost where there is much to show: a hundred thousand runs, a run of three thousand messages.

`PYTHONPATH=. python -m tests.console_load` prints each page with its time, and what it took of the processor in this
process: the console's own work, and that of what stands in for S3 (`tests.support.crowded_bucket`), which runs in it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from claude_workflow.cli.backend import Backend
from claude_workflow.console import server
from claude_workflow.console.app import Behind
from claude_workflow.local.engine import Engine
from lambdas.bucket import listing, record
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim
from lambdas.request import run_id
from lambdas.strict import Json
from tests.support.console_visitor import Visitor
from tests.support.crowded_bucket import BUCKET, Shelf, crowd

RUNS, MESSAGES = 100_000, 3_000
DAYS = 30
ANSWER: Json = {"success": True, "stop_reason": "end_turn", "cost_usd": 0.1, "duration_ms": 900, "result": "Done."}
ASKED: Json = {"format": 1, "caller": "default", "owner": "default", "body": {"prompt": "Look at this thing."}}
LONGEST = run_id("default", "0")
"""The run that has all the messages."""


def fill(shelf: Shelf, now: float) -> None:
    """With runs that are done, evenly over a month."""
    bucket = Bucket(shelf, BUCKET)
    for number in range(RUNS):
        name, session = run_id("default", str(number)), f"session-{number}"
        asked_at = now - DAYS * 86_400 * number / RUNS
        own = {"run_id": name, "session_id": session, "key": str(number), "requested_at": asked_at}
        asked = ASKED | own | {"claude_session": "c", "execution": "arn:aws:states:us-east-1:0:express:M:g:"}
        listing.mark(bucket, Claim.of(asked, "execution", now, repeated=False), "done")
        record.open_run(bucket, name, asked)
        answer = ANSWER | {"session_id": session, "run_id": name, "model_failure": None}
        bucket.write(f"runs/{name}/response.json", answer)
    told = "[\n" + ",\n".join(json.dumps(message(number)) for number in range(MESSAGES)) + "\n]\n"
    shelf.objects[f"runs/{LONGEST}/0000000000001-aaaa/messages.json"] = told.encode()


def message(number: int) -> Json:
    """By turns a text, a call of a tool, and its result."""
    words = "A text of the agent's, as long as they usually are, with some words. " * 8
    if number % 3 == 0:
        return {"type": "assistant", "message": {"content": [{"type": "text", "text": f"{number} {words}"}]}}
    if number % 3 == 1:
        call = {"type": "tool_use", "id": f"t{number}", "name": "Bash", "input": {"command": "ls -la"}}
        return {"type": "assistant", "message": {"content": [call]}}
    result = {"type": "tool_result", "tool_use_id": f"t{number - 1}", "content": words * 3}
    return {"type": "user", "timestamp": "2026-11-27T05:00:00.000Z", "message": {"content": [result]}}


PAGES = {
    "the runs, first": "/",
    "the runs, again": "/",
    "a filter that finds nothing": "/?caller=nobody",
    f"a run of {MESSAGES:,} messages, first": f"/runs/{LONGEST}",
    "the same, again": f"/runs/{LONGEST}",
}


def main() -> int:
    """Exit code 0 if each page was there."""
    shelf, found = Shelf(), Table("page", "s", "s of the processor", "KB")
    fill(shelf, time.time())
    state = Path(tempfile.mkdtemp())
    with crowd(state, shelf.objects) as service:
        engine = Engine(f"http://127.0.0.1:{service.server_port}", 0, state, "root")
        with server.serving(Behind(Backend(BUCKET, "", engine), None, "a crowd")) as link:
            visitor = Visitor(link)
            for what, path in PAGES.items():
                began, worked = time.perf_counter(), time.process_time()
                page = visitor.ask("GET", path)
                took = time.perf_counter() - began, time.process_time() - worked
                assert page.status == 200, page.data
                found.add_row(what, *(f"{seconds:.2f}" for seconds in took), f"{len(page.data) / 1000:,.0f}")
    Console().print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
