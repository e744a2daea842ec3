"""Trees of files, made, drawn and compared; and the zip tools of others that open their archives."""

import base64
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from lambdas.archive.format import SECOND
from tests.support.foreign_programs import program

RAW_NAMES = sys.platform == "linux"  # APFS takes UTF-8 names only


TOOLS = {
    "unzip": (("unzip",), "-tqq", "unzip"),
    "7-Zip": (("7z", "7zz"), "t", "p7zip-full"),
    "bsdtar": (("bsdtar",), "-tf", "libarchive-tools"),
}


Photo = dict[bytes, tuple[int, int, bytes]]


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory with `workspace` and `claude`, open to every user, that goes whatever modes are in it."""
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o777)
        for name in ("workspace", "claude"):
            (base / name).mkdir()
        yield base
    finally:
        open_up(base)
        shutil.rmtree(base)


def open_up(directory: Path) -> None:
    """Let everything below be deleted."""
    directory.chmod(0o700)
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            open_up(path)


def photo(root: Path) -> Photo:
    """Mode (not of links), mtime in nanoseconds, and content or target of all that is in a tree."""
    taken: Photo = {}
    pending = [os.fsencode(root)]
    while pending:
        path = pending.pop()
        facts = os.lstat(path)
        mode = stat.S_IFMT(facts.st_mode) | (0 if stat.S_ISLNK(facts.st_mode) else stat.S_IMODE(facts.st_mode))
        data = b""
        if stat.S_ISLNK(facts.st_mode):
            data = os.readlink(path)  # noqa: PTH115 (a Path would tidy the target up)
        elif stat.S_ISREG(facts.st_mode):
            data = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISDIR(facts.st_mode):
            pending += [os.fsencode(below) for below in Path(os.fsdecode(path)).iterdir()]
        taken[path[len(os.fsencode(root)) :]] = (mode, facts.st_mtime_ns, data)
    return taken


def roots_of(base: Path) -> dict[str, Path]:
    """A scratch directory's two, by name."""
    return {name: base / name for name in ("workspace", "claude")}


def assert_same(base: Path, into: Path) -> None:
    """Both directories of a session are equal in names, modes, times, content and targets."""
    for name in ("workspace", "claude"):
        assert photo(into / name) == photo(base / name)


def tool(label: str) -> tuple[str, str]:
    """A zip tool's path and its option to test; where it is missing, the sentence names the package that has it."""
    names, option, package = TOOLS[label]
    return program(package, *names), option


def assert_tools_open(path: Path) -> None:
    """Python, Info-ZIP, 7-Zip and bsdtar find nothing wrong."""
    for label in TOOLS:
        command, option = tool(label)
        done = subprocess.run(
            [command, option, path], capture_output=True, timeout=120, env=os.environ | {"LC_ALL": "C.UTF-8"}
        )
        assert done.returncode == 0, (label, done.stdout[-500:], done.stderr[-500:])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


BEFORE = zlib.decompress(
    base64.b85decode(
        b"c-jl_W@Zs#00AZk{Wu0Bz|O$QkeriPnv$v?8p6uJ$a2XuI{>bl5luB0P<45JQFd`bVlq?%Gm-`l1_q!8v7HA`^MH+JU=Tvl;G3A8nwFW93f9N~"
        b")X2!r@Z*1?l|rIkG8d|?2bPotFay~j%!gt~PG(*<*Z?M=0Y#;GsFusl{msG;b}0h`FN!{(Qm{5gkiA?CU;isB>L+F9=@(}Jt!8A>WyT#q5Fo(t"
        b"))7Qw1{Xp%wg5xu)&tU5gAZl^_5g%|C5`bY24Dmyx=YXl5eEJ*T!LZ{N|2(v20cV!;BDg_6hn~1H^7^f4Wxz@2m=`z803Lik-<60S=ZP|AwNx_"
        b"BqLQJC9^0sxg@`+(n=vY&D=QI(%2FJ7~+F|"
    )
)
"""A session as it was written when modification times were kept to the second."""


names = (
    st.binary(min_size=1, max_size=12).filter(lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b".."))
    if RAW_NAMES
    else st.from_regex(rb"[a-z0-9]{1,12}", fullmatch=True)
)


times = st.one_of(
    st.integers(-(2**31), 2**31 - 1).map(lambda seconds: seconds * SECOND),
    st.integers(-(2**31) * SECOND, 2**31 * SECOND - 1),
)


leaves = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=2000), st.sampled_from([0o644, 0o755, 0o400, 0o666]), times),
    st.tuples(st.just("link"), names, st.just(0), times),
)


trees = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda below: st.dictionaries(names, st.one_of(leaves, below), max_size=4),
    max_leaves=20,
)


def dig(root: Path, levels: int, link: Path | None = None) -> None:
    """Make folders, each in the one before, and in each a link if one is given, by a path longer than any can be."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 100, dir_fd=here)
        if link:
            os.symlink(link, "link", dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def grow(root: Path, tree: dict[bytes, Any]) -> None:
    """Make a drawn tree below an existing directory."""
    for name, node in tree.items():
        path = root / os.fsdecode(name)
        if isinstance(node, dict):
            path.mkdir()
            grow(path, node)
            path.chmod(0o555)
            continue
        kind, data, mode, mtime = node
        if kind == "link":
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)
            path.chmod(mode)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
