"""`claude-workflow sessions files`: what is in a session's workspace, a line each."""

import sys
from datetime import UTC, datetime

from rich.filesize import decimal

from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.printing import MARK, document, harmless, to_stderr
from claude_workflow.cli.sessions.held import telling
from lambdas.archive.format import SECOND
from lambdas.archive.tree import shown
from lambdas.bucket import versions
from lambdas.bucket.contents import Contents, File
from lambdas.bucket.objects import Bucket

KINDS = {"file": "-", "link": "l", "folder": "d"}


def contents(bucket: Bucket, session_id: str) -> Contents:
    """Of a session's newest version. Raises `Unusable` where there is no such session."""
    found = versions.newest(bucket, session_id)
    if found is None:
        raise Unusable(f"There is no session {session_id}.")
    return Contents.of(bucket, found[0])


def run(backend: Backend, session_id: str, as_json: bool) -> int:
    """Prints a line a file to stdout, or one of JSON; how much it is to stderr. Raises `Unusable`."""
    bucket, count, size = Bucket(backend.client("s3"), backend.bucket), 0, 0
    with telling(session_id):
        for file in contents(bucket, session_id).files:
            print(document(_described(file), sys.stdout, None) if as_json else _line(file))
            count, size = count + (file.kind != "folder"), size + file.size
    sys.stdout.flush()
    to_stderr().print(f"{counted(count, 'file')}, {decimal(size)}", style="dim", soft_wrap=True)
    return 0


def _described(file: File) -> dict[str, object]:
    modified = {"modified": _moment(file), "mode": f"{file.mode:04o}"}
    return {"path": shown(file.path), "kind": file.kind, "size": file.size} | modified


def _line(file: File) -> str:
    path = shown(file.path)
    if sys.stdout.isatty():
        path = harmless(path).replace("\n", MARK).replace("\t", MARK)
    mode = "".join(letter if file.mode >> 8 - place & 1 else "-" for place, letter in enumerate("rwxrwxrwx"))
    return f"{KINDS[file.kind]}{mode} {file.size:>15,}  {_moment(file)}  {path}{'/' * (file.kind == 'folder')}"


def _moment(file: File) -> str:
    """In seconds, UTC: ISO 8601."""
    return f"{datetime.fromtimestamp(file.modified // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"
