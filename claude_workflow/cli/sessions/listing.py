"""`claude-workflow sessions list`: all sessions, whose they are, and what they hold."""

import sys
from dataclasses import asdict

from rich.filesize import decimal
from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endings import dollars
from claude_workflow.cli.printing import document, line, to_stderr
from claude_workflow.cli.record import Requests
from claude_workflow.cli.sessions.stored import Stored, every
from claude_workflow.cli.tables import Columns
from lambdas.bucket.objects import Bucket

LINE: Columns = {
    ("changed (UTC)",): 16,
    ("session",): 44,
    ("turns",): 7,
    ("files",): 9,
    ("size",): 9,
    ("cost",): 9,
    ("owner",): None,
}
BLOCK: Columns = {("changed (UTC)", "cost"): 16, ("session", "owner"): 44, ("size", "files", "turns"): None}
LINE_COLUMNS = 120
FIGURES = ("turns", "files", "size")


def run(backend: Backend, as_json: bool) -> int:
    """Prints the table, or a line of JSON a session, to stdout as it is read; what it took to stderr."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    out, count, size = tables.console(), 0, 0
    columns = LINE if out.width >= LINE_COLUMNS else BLOCK
    for page in every(bucket):
        if as_json:
            for one in page:
                print(document(asdict(one), sys.stdout, None))
        elif page:
            rows = map(_cells, page)
            out.print(tables.table(columns, rows, head=not count, width=out.width, figures=FIGURES))
        count, size = count + len(page), size + sum(one.size for one in page)
    if not as_json:
        out.print(f"\n{counted(count, 'session')}, {decimal(size)}" if count else "No sessions.")
    sys.stdout.flush()
    to_stderr().print(requests.sentence(), style="dim", soft_wrap=True)
    return 0


def _cells(one: Stored) -> dict[str, Text]:
    """What stands under each head."""
    return {
        "changed (UTC)": Text(one.changed[:16].replace("T", " ")),
        "session": Text(line(one.session_id, 100)),
        "turns": Text("damaged", "red") if one.turns is None else Text(f"{one.turns:,}"),
        "files": Text("–" if one.files is None else f"{one.files:,}"),
        "size": Text(decimal(one.size)),
        "cost": Text(dollars(one.cost_usd)),
        "owner": Text(line(one.owner or "–", 60)),
    }
