"""`claude-workflow sessions export`: a session's archive, as it is, into a file."""

import tempfile
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.printing import to_stderr
from claude_workflow.cli.sessions import progress
from claude_workflow.cli.sessions.held import telling
from lambdas.archive.format import END_BYTES
from lambdas.bucket import versions
from lambdas.bucket.objects import Bucket
from lambdas.bucket.parts import Source
from lambdas.bucket.versions import session_key

RANGE = 8 << 20
"""Bytes that are asked for at a time, and are all of it that is in memory."""


def run(backend: Backend, session_id: str, into: Path | None) -> int:
    """Prints the file's path to stdout. Raises `Unusable` where there is no such session."""
    bucket, path = Bucket(backend.client("s3"), backend.bucket), into or Path(f"{session_id}.zip")
    with telling(session_id):
        found = versions.newest(bucket, session_id)
        if found is None:
            raise Unusable(f"There is no session {session_id}.")
        base = found[0]
        source = Source(bucket, session_key(session_id), END_BYTES, (base.version_id, base.etag))
        # Whole or not at all: a cut archive is none.
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                _copy(source, base.size, file)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink()
                raise
    print(path, flush=True)
    to_stderr().print(f"{decimal(base.size)}. It may hold what was removed since: see sessions purge.", style="dim")
    return 0


def _copy(source: Source, size: int, file: IO[bytes]) -> None:
    with progress.of_bytes("Fetching", size) as told:
        for start in range(0, size, RANGE):
            for piece in progress.passing(source.read(start, min(start + RANGE, size)), told):
                file.write(piece)
