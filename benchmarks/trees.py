"""Trees like those that sessions hold, the same in every run, and changes like those that a turn makes.

Files are distributed like an installed npm project: most have one or two kilobytes, a few have megabytes, twenty lie
in a directory. Nine bytes of ten are text that deflates about three-fold, the rest does not deflate. Only the standard
library is used, since the stand-in for Claude Code makes the changes.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

POOL_BYTES = 4_000_000
SPREAD = 1.85
"""Standard deviation of a file size's logarithm."""
LARGEST = 2_000_000
BINARY = 0.1
"""The share of bytes that does not deflate."""
IN_A_DIRECTORY = 20


class Kind(NamedTuple):
    """A tree to be generated."""

    name: str
    bytes: int
    files: int


TINY = Kind("tiny", 200_000, 40)
SIZES = (
    Kind("1 MB", 1_000_000, 90),
    Kind("10 MB", 10_000_000, 900),
    Kind("110 MB", 110_000_000, 10_000),
    Kind("570 MB", 570_000_000, 58_000),
    Kind("1 GB", 1_040_000_000, 106_000),
)


class Sources:
    """An endless supply of text that looks like source code to a compressor."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        words = [self._word() for _ in range(4000)]
        weights = [1 / (rank + 1) ** 1.25 for rank in range(len(words))]
        drawn = self._dice.choices(words, weights, k=POOL_BYTES // 6)
        ends = self._dice.choices(
            (" ", ", ", "(", ") ", ".", ";\n", " {\n  ", "\n}\n"), (9, 3, 2, 2, 3, 2, 1, 1), k=len(drawn)
        )
        self._pool = "".join(word + end for word, end in zip(drawn, ends, strict=True)).encode()

    def _word(self) -> str:
        return "".join(self._dice.choices("etaoinsrhldcumfpgwybvk_", k=self._dice.randint(2, 9)))

    def text(self, size: int) -> bytes:
        """Pieces of a kilobyte or so from anywhere in the pool: no two files share more."""
        pieces: list[bytes] = []
        left = size
        while left > 0:
            start, length = self._dice.randrange(len(self._pool) - 4096), self._dice.randint(200, 4000)
            pieces.append(self._pool[start : start + min(left, length)])
            left -= len(pieces[-1])
        return b"".join(pieces)

    def binary(self, size: int) -> bytes:
        """What does not deflate."""
        return self._dice.randbytes(size)


def make(root: Path, kind: Kind) -> None:
    """The tree of this kind as the new directory `root`: a gigabyte takes some ten seconds."""
    dice, sources = random.Random(kind.files), Sources(kind.files)
    drawn = [min(dice.lognormvariate(0, SPREAD), 300.0) for _ in range(kind.files)]
    scale = kind.bytes / sum(drawn)
    for number, weight in enumerate(drawn):
        size = min(LARGEST, round(weight * scale))
        folder = (
            root / "node_modules" / f"package-{number // IN_A_DIRECTORY // 4}" / f"lib{number // IN_A_DIRECTORY % 4}"
        )
        binary = dice.random() < BINARY
        path = folder / f"module-{number}.{'node' if binary else 'js'}"
        if number % IN_A_DIRECTORY == 0:
            folder.mkdir(parents=True)
            (folder / "main").symlink_to(path.name)
        path.write_bytes(sources.binary(size) if binary else sources.text(size))
        path.chmod(0o755 if number % 50 == 0 else 0o644)


def change(root: Path, share: float, seed: int) -> int:
    """Change that share of the files, one at the least; how many were.

    Of ten, eight are edited in their middle, one is removed and one is new; the first edited file gets another mode.
    """
    dice, sources = random.Random(seed), Sources(seed)
    paths = sorted(_files(root))
    chosen = dice.sample(paths, max(1, round(len(paths) * share)))
    for number, path in enumerate(chosen):
        if number % 10 == 8:
            path.unlink()
        elif number % 10 == 9:
            path.with_name(f"new-{seed}-{path.name}").write_bytes(sources.text(path.stat().st_size))
        else:
            _edit(path, dice, sources)
    if len(chosen) > 1:
        chosen[0].chmod(0o700)
    return len(chosen)


def _edit(path: Path, dice: random.Random, sources: Sources) -> None:
    content = path.read_bytes()
    at = dice.randrange(len(content) + 1)
    path.write_bytes(content[:at] + sources.text(dice.randint(20, 400)) + content[at + 50 :])


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                yield path
