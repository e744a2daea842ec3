"""A folder of some 300 MB becomes a session, is worked on, and comes out again: what it takes, and what is left of it.

`PYTHONPATH=. python -m tests.large_put --megabytes 300` prints the figures of each command, and fails where one takes
more than 150 MB of memory, shows no progress at a terminal, or where the folder does not come out as it went in, but
for what a session cannot keep, each of which has to be named. `tests/test_sessions.py` has a small one.

The folder is a project as one finds them: node_modules, a virtual environment, a repository with a submodule, and all
that a name and a file can be.
"""

import argparse
import hashlib
import os
import pty
import random
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lambdas.archive.format import SECOND
from tests.support.commands import ENVIRONMENT, Serve, plain

MEMORY_MB = 150
MIB = 1 << 20
WORDS = ["const", "return", "module", "exports", "require", "function", "value", "index", "undefined", "license"]

GIT = {
    **{f"GIT_{who}_{what}": "somebody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "protocol.file.allow",
    "GIT_CONFIG_VALUE_0": "always",
}
LATE = 2_600_000_000
"""A second of 2052, which no 32 bits hold."""

NAMED = {
    "FIFOs": ["odd/fifo"],
    "sockets": ["odd/socket"],
    "set-id and sticky bits": ["odd/setuid", "odd/sticky"],
    "hard links": ["odd/hard", "odd/link to it"],
    "between 1901 and 2038": ["odd/late"],
}
"""What has to be named of it, by what is said."""


def grow(root: Path, megabytes: float) -> None:
    """Makes the folder, of about so many megabytes of files."""
    drawn, size = random.Random(1), megabytes * MIB
    root.mkdir()
    _packages(root / "node_modules", 0.4 * size, drawn)
    _environment(root / ".venv", 0.3 * size, drawn)
    _repository(root, 0.3 * size, drawn)
    odd = root / "odd"
    odd.mkdir()
    _names(odd)
    _kinds(odd)


def _packages(root: Path, size: float, drawn: random.Random) -> None:
    """Many small files of words, and links between them."""
    (root / ".bin").mkdir(parents=True)
    text = " ".join(drawn.choices(WORDS, k=20_000)).encode()
    for number in range(max(1, round(size / 60_000))):
        package = root / f"@scope{number % 7}" / f"package-{number}"
        (package / "dist" / "esm").mkdir(parents=True)
        for file in ("package.json", "README.md", "index.js", *(f"dist/esm/{module}.mjs" for module in range(8))):
            (package / file).write_bytes(text[(at := drawn.randrange(100_000)) : at + drawn.randrange(11_000)])
        (root / ".bin" / f"p{number}").symlink_to(f"../@scope{number % 7}/package-{number}/index.js")


def _environment(root: Path, size: float, drawn: random.Random) -> None:
    """A virtual environment with libraries that do not deflate."""
    venv.create(root, symlinks=True)
    packages = next(root.glob("lib/python*/site-packages"))
    for number, share in enumerate((0.6, 0.3, 0.1)):
        (packages / f"lib{number}.so").write_bytes(drawn.randbytes(round(share * size)))


def _repository(root: Path, size: float, drawn: random.Random) -> None:
    """A repository with history and a submodule, each with a pack."""
    origin = root.parent / f"{root.name}-origin"
    for path in (origin, root / "app"):
        path.mkdir()
        _git(path, "init", "--quiet", "--initial-branch", "main")
        (path / "data.bin").write_bytes(drawn.randbytes(round(size / 4)))
        (path / "run.sh").write_text("#!/bin/sh\n")
        (path / "run.sh").chmod(0o755)
        _git(path, "add", ".")
        _git(path, "commit", "--quiet", "--message", "first")
    _git(root / "app", "submodule", "--quiet", "add", origin.as_uri(), "vendor/lib")
    _git(root / "app", "commit", "--quiet", "--message", "a submodule")
    _git(root / "app", "gc", "--quiet")


def _git(path: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", path, *arguments], env=ENVIRONMENT | GIT, check=True)


def _names(odd: Path) -> None:
    names = ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", "Readme", "README", "readme"]
    names += [" ", "two\nlines", "-rf", "a\\b", "x" * 255, os.fsdecode(b"not \xff UTF-8"), "\N{PILE OF POO}", "nul\\0"]
    for number, name in enumerate(names):
        (odd / name).write_text(f"{number}")


def _kinds(odd: Path) -> None:
    os.mkfifo(odd / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(odd)  # a socket's path has room for a hundred bytes
        bound.bind("socket")
        os.chdir(here)
    for name, target in {"dangling": "nowhere", "away": "/etc/hostname", "loop": "loop", "up": "../.."}.items():
        (odd / name).symlink_to(target)
    for name in ("empty", "sticky", "shut", "deep/er/est"):
        (odd / name).mkdir(parents=True)
    for name in ("setuid", "hard", "late", "old", "closed", "shut/inside", "nothing"):
        (odd / name).write_text(name if name != "nothing" else "")
    (odd / "link to it").hardlink_to(odd / "hard")
    with (odd / "sparse").open("wb") as sparse:
        sparse.truncate(2 * MIB)
    modes = {"setuid": 0o4755, "sticky": 0o1777, "closed": 0, "shut": 0o500}
    for name, mode in modes.items():
        (odd / name).chmod(mode)
    os.utime(odd / "late", (LATE, LATE))
    os.utime(odd / "old", ns=(-1_500_000_000, -1_500_000_000))


Print = dict[bytes, tuple[int, int, str]]


def prints(root: Path, *, kept: bool = False) -> Print:
    """Kind and mode, mtime in nanoseconds, and what it says, of all that is in a folder; with `kept`, of what a session
    keeps of it, as it keeps that."""
    found: Print = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (b".", *files, *(each for each in folders if Path(os.fsdecode(folder + b"/" + each)).is_symlink())):
            path = folder if name == b"." else folder + b"/" + name
            facts = os.lstat(path)
            kind, mode, mtime = stat.S_IFMT(facts.st_mode), stat.S_IMODE(facts.st_mode), facts.st_mtime_ns
            if kept and kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                continue
            if kept:
                mode, mtime = mode & 0o777, min(mtime, (2**31 - 1) * SECOND)
            says = ""
            if kind == stat.S_IFLNK:
                mode, says = 0, os.fsdecode(os.readlink(path))  # noqa: PTH115 (a Path would tidy the target up)
            elif kind == stat.S_IFREG:
                says = _hash(path)
            found[path[len(os.fsencode(root)) :]] = (kind | mode, mtime, says)
    return found


def _hash(path: bytes) -> str:
    facts = os.lstat(path)
    if not facts.st_mode & stat.S_IRUSR and os.geteuid():
        os.chmod(path, 0o400)  # noqa: PTH101 - names are bytes
    with open(path, "rb") as file:  # noqa: PTH123 - likewise
        told = hashlib.file_digest(file, "sha256").hexdigest()
    if not facts.st_mode & stat.S_IRUSR and os.geteuid():
        os.chmod(path, stat.S_IMODE(facts.st_mode))  # noqa: PTH101 - likewise
    return told


def assert_same(came: Path, went: Path, *, but: tuple[bytes, ...] = ()) -> None:
    """What came out is what went in, as far as a session keeps it; `but` are paths that a turn changed."""
    found, wanted = prints(came), prints(went, kept=True)
    # The folder itself is made by whoever takes it out.
    paths = {*found, *wanted} - {b"", *but}
    wrong = sorted(path for path in paths if found.get(path) != wanted.get(path))
    assert not wrong, [(path, wanted.get(path), found.get(path)) for path in wrong[:5]]


def assert_named(said: str) -> None:
    """Each thing that is lost is named, with its path."""
    for what, paths in NAMED.items():
        (line,) = (each for each in said.splitlines() if what in each)
        named = line.partition(": ")[2].split(", ")
        assert sorted(named) == sorted(paths), line


MEASURED = """
import os, pathlib, re, sys
from claude_workflow.cli.main import main
code = main()
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
pathlib.Path(os.environ["PEAK"]).write_text(peak[1])
sys.exit(code)
"""


class Took(NamedTuple):
    """What a command came to."""

    printed: str
    said: str
    """At a terminal, all that passed there too."""
    seconds: float
    peak_mb: float


def measured(*arguments: str | Path) -> Took:
    """Runs the command with its standard error at a terminal."""
    leader, follower = pty.openpty()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out:
        peak, began = Path(folder) / "peak", time.monotonic()
        environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "120", "PEAK": str(peak)}
        program = [sys.executable, "-c", MEASURED, *map(str, arguments)]
        process = subprocess.Popen(program, env=environment, stdout=out, stderr=follower)
        os.close(follower)
        sent = b""
        with suppress(OSError):  # what Linux says where nobody has the other end any more
            while piece := os.read(leader, 65536):
                sent += piece
        os.close(leader)
        assert process.wait() == 0, sent.decode(errors="replace")[-2000:]
        seconds = time.monotonic() - began
        out.seek(0)
        printed, said = out.read().decode(), sent.decode().replace("\r\n", "\n")
        return Took(printed.strip(), said, seconds, int(peak.read_text()) / 1024)


TURN = (
    'run cd app && sh run.sh && test -z "$(git status --porcelain)" && git submodule status && '
    "echo all is as it was > ../odd/turn && cat ../odd/turn"
)
CLEAN = "heads/main)\nall is as it was"
"""What it says where the repository is clean, and its submodule at its commit; one file comes."""
TURNED = (
    *(b"/odd/turn", b"/odd"),
    *(b"/app/.git" + path for path in (b"/index", b"", b"/modules/vendor/lib/index", b"/modules/vendor/lib")),
)
"""What the turn changes: git writes down what it looked at."""


def main(megabytes: float) -> None:
    """All of it, against a service of its own."""
    with tempfile.TemporaryDirectory(prefix="large-put-") as place:
        source, out, state = (Path(place) / name for name in ("project", "out", "state"))
        grow(source, megabytes)
        files = sum(not stat.S_ISDIR(each[0]) for each in prints(source, kept=True).values())
        print(f"{files:,} files and links, {_size(source) / MIB:.0f} MiB", flush=True)
        state.mkdir()
        service = Serve.start(state)
        try:
            tried(service, source, out, lambda said: print(said, flush=True))
        finally:
            service.end()
    print("All holds.")


def tried(service: Serve, source: Path, out: Path, say: Callable[[str], object]) -> None:
    """The folder into a session, a turn on it, and out again, each command within its limits."""

    def command(bar: str, *words: str | Path) -> Took:
        took = measured("sessions", *words, "--state", service.state)
        say(f"{words[0]}: {took.seconds:.1f} s, {took.peak_mb:.0f} MB of memory at the most")
        assert re.search(rf"{bar} .*\d+%", took.said), f"no progress: {bar}"
        assert took.peak_mb <= MEMORY_MB, took
        return took

    put = command("Sending", "put", source)
    assert re.search(r"Packing .*\d+%", put.said)
    assert_named(plain(put.said))
    session, began = put.printed, time.monotonic()
    answer = measured("ask", TURN, "--session", session, "--state", service.state).printed
    assert CLEAN in answer, answer
    say(f"a turn on it: {time.monotonic() - began:.1f} s")
    library = next(source.glob(".venv/lib/python*/site-packages/lib0.so")).relative_to(source)
    command("Fetching", "get", session, library, "-o", out / "one")
    assert [path.relative_to(out / "one") for path in (out / "one").rglob("*") if path.is_file()] == [library]
    assert (out / "one" / library).read_bytes() == (source / library).read_bytes()
    command("Fetching", "get", session, ".", "-o", out / "all")
    assert_same(out / "all", source, but=TURNED)
    command("Fetching", "export", session, "-o", out / "session.zip")
    subprocess.run(["unzip", "-tqq", out / "session.zip"], check=True)


def _size(root: Path) -> int:
    return sum(each.lstat().st_size for each in root.rglob("*") if stat.S_ISREG(each.lstat().st_mode))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=300)
    main(parser.parse_args().megabytes)
