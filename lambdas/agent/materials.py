"""What came with a request is put into the workspace before the first turn, by a program behind the wall (`unpacker`).

This process hands it the bytes and hears one line of it; it reads nothing of what is in them, and writes no file of
them. That line is a stranger's, as the program has read what strangers made.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from lambdas import strict
from lambdas.agent import unpacker
from lambdas.agent.environment import environment
from lambdas.agent.processes import Processes
from lambdas.agent.scratch import Scratch
from lambdas.errors import DiskFull, Internal, MaterialsRefused, NotAsked
from lambdas.materials import PATH_BYTES

DETAIL_BYTES = 2000
"""How much of what the program complained of is kept for the operator."""


@dataclass(frozen=True)
class Materials:
    """What came in one field of a request."""

    field: str
    pieces: Iterable[bytes]
    """The archive."""
    into: str = ""
    """The folder in the workspace; empty: the workspace itself."""


def put_in(materials: Materials, scratch: Scratch, room: tuple[int, int], deadline: float) -> None:
    """Put them into the workspace, which has room for so many bytes and so many files, links and folders.

    Raises MaterialsRefused, which names what cannot be taken; NotAsked at the `deadline` (epoch seconds); DiskFull;
    what `pieces` raises; and Internal. Whatever it raises, the workspace is good for nothing any more.
    """
    with TemporaryFile() as stderr, Processes(scratch.root, scratch.sandbox) as processes:
        with _started(materials, scratch, room, stderr) as program:
            late = threading.Timer(max(0.0, deadline - time.time()), processes.kill)
            late.start()
            try:
                word = _heard(program, materials.pieces, deadline)
            finally:
                late.cancel()
                processes.kill()
        if time.time() >= deadline:
            raise NotAsked(detail=f"the deadline passed while {materials.field} was unpacked")
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - DETAIL_BYTES))
        _judge(materials.field, word, stderr.read().decode(errors="replace"))


def _started(
    materials: Materials, scratch: Scratch, room: tuple[int, int], stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    """The program, behind the wall."""
    spool = scratch.tmp / "upload"
    terms = unpacker.Terms(
        into=materials.into,
        room=[*room],
        path_bytes=PATH_BYTES,
        workspace=str(scratch.workspace),
        spool=str(spool),
    )
    built, code = environment(scratch), scratch.private / "unpacker.py"
    code.write_bytes(Path(unpacker.__file__).read_bytes())
    code.chmod(0o644)
    python, read = _python(scratch)
    launcher = scratch.launcher(python, built, read=read, instead="unpacker")
    command = [str(launcher), "-I", "-S", str(code), json.dumps(terms)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=scratch.workspace, env=built, stdin=pipe, stdout=pipe, stderr=stderr)


def _python(scratch: Scratch) -> tuple[Path, list[Path]]:
    """This one, with what it has to read; or where the agent's user cannot go to it, the system's. It is executed only
    in bubblewrap, and by macOS' sandbox-exec."""
    own = Path(sys.executable).resolve()
    passable = scratch.sandbox.uid is None or all(parent.stat().st_mode & 0o001 for parent in own.parents)
    return (own, [Path(sys.base_prefix)]) if passable else (Path("/usr/bin/python3"), [])


def _heard(program: subprocess.Popen[bytes], pieces: Iterable[bytes], deadline: float) -> bytes:
    """What the program says when it has been given all, or wants no more, or the time is over."""
    assert program.stdin
    assert program.stdout
    try:
        for piece in pieces:
            program.stdin.write(piece)
            if time.time() >= deadline:
                break
    except BrokenPipeError:
        pass
    finally:
        with suppress(BrokenPipeError):
            program.stdin.close()
    return program.stdout.read(unpacker.WORD_BYTES)


def _judge(field: str, word: bytes, stderr: str) -> None:
    try:
        said = strict.read(word)
    except ValueError:
        said = None
    if not isinstance(said, dict) or len(said) != 1:
        raise Internal(detail=f"{field}: the unpacker ended without a word: {stderr}")
    if "full" in said:
        raise DiskFull(detail=f"{field}: {said['full']}")
    if (refused := said.get("refused")) is not None:
        raise MaterialsRefused.of(f"{field}: {refused}", detail=stderr)
