"""What ours is compared with, each in a process of its own: the naive way, and the physical limits.

`python -m benchmarks.naive WHAT …` prints one JSON line with what it took. The naive way is what one writes first:
`zipfile` at level 6 over everything and one upload, one download and `extractall`. It keeps no modes and no links.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.storage import BUCKET, client
from benchmarks.usage import cpu_seconds, peak

LEVEL = 6
PIECE = 1 << 20


class Took(NamedTuple):
    """What a side took."""

    seconds: float
    cpu: float
    peak: int


def run(what: str, *arguments: str | Path) -> Took:
    """One side, in its own process. Raises `RuntimeError`."""
    command = [sys.executable, "-m", "benchmarks.naive", what, *map(str, arguments)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr[-2000:]}")
    return Took(*json.loads(done.stdout))


def persist(tree: str, s3: Any, key: str) -> None:
    """Zip everything, upload it."""
    with tempfile.TemporaryFile() as archive:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as packed:
            for folder, _, names in os.walk(tree):
                for name in names:
                    path = f"{folder}/{name}"
                    if not stat.S_ISLNK(os.lstat(path).st_mode):  # it follows links, and dies of one that leads nowhere
                        packed.write(path, path[len(tree) + 1 :])
        archive.seek(0)
        s3.put_object(Bucket=BUCKET, Key=key, Body=archive)


def restore(into: str, s3: Any, key: str) -> None:
    """Download it, unzip everything."""
    with tempfile.TemporaryFile() as archive:
        shutil.copyfileobj(s3.get_object(Bucket=BUCKET, Key=key)["Body"], archive, PIECE)
        archive.seek(0)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(into)


def upload(path: str, s3: Any, key: str) -> None:
    """One file, as it is."""
    with Path(path).open("rb") as file:
        s3.put_object(Bucket=BUCKET, Key=key, Body=file)


def copy(tree: str, into: str) -> None:
    """The same files made again from the page cache, by one `cp`: the least that a restore has to do on the disk."""
    subprocess.run(["cp", "-a", tree, into], check=True)


def inflate(archive: str) -> None:
    """Every member of an archive inflated by zlib and thrown away: the least that one thread has to compute."""
    with zipfile.ZipFile(archive) as packed, Path(archive).open("rb") as file:
        for member in packed.infolist():
            file.seek(member.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(name + extra, os.SEEK_CUR)
            data = file.read(member.compress_size)
            if member.compress_type == zipfile.ZIP_DEFLATED:
                zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)


def walk(tree: str) -> None:
    """`lstat` of everything, by one thread: the least that noticing changes has to do."""
    for folder, directories, names in os.walk(tree):
        for name in directories + names:
            os.lstat(f"{folder}/{name}")


SIDES: dict[str, Callable[..., None]] = {
    side.__name__: side for side in (persist, restore, upload, copy, inflate, walk)
}


def main() -> None:
    """The side that is named, with its arguments; a URL becomes a client of S3 there, before the clock starts."""
    arguments = [client(text) if text.startswith("http://") else text for text in sys.argv[2:]]
    cpu, start = cpu_seconds(), time.monotonic()
    SIDES[sys.argv[1]](*arguments)
    print(json.dumps(Took(time.monotonic() - start, cpu_seconds() - cpu, peak())))


if __name__ == "__main__":
    main()
