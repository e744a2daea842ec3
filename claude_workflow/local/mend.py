"""Takes back a write that the engine's end cut in half, and takes the rights on its own directory back.

The engine (`local.disk`) writes an object X in these steps, of which the last is the one that counts:

1. the bytes as X.tmp, and what describes them (size, version, metadata) as X.meta.json.tmp;
2. the bytes that they replace get a second name, X.old.tmp;
3. X.tmp becomes X;
4. X.meta.json.tmp becomes X.meta.json.

So where X.meta.json.tmp is there without X.tmp, new bytes lie under an old description: the old ones come back, or if
there were none, the new ones go. Nobody was told of them.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

META = ".meta.json"
TMP = ".tmp"
OLD = ".old.tmp"
HELD = ".held.tmp"
"""Of a version that is being deleted, until no description names it."""
VERSIONS = ".versions"


def mend(s3: Path) -> list[Path]:
    """Makes the engine's S3 directory whole, before the engine starts. Returns the objects it touched.

    Raises OSError if some of it cannot be read.
    """
    if not s3.exists():
        return []
    take_rights(s3)
    files = []
    for path in s3.rglob("*"):
        if path.is_file() and VERSIONS not in path.relative_to(s3).parts:
            files.append(path)
        elif path.is_file() and path.name.endswith(TMP):
            path.unlink()
    touched = sorted({_object(path) for path in files if path.name.endswith(TMP)})
    for path in touched:
        take_back(path)
    undescribed = [path for path in files if not path.name.endswith((META, TMP)) and not beside(path, META).exists()]
    for path in undescribed:
        path.unlink(missing_ok=True)
    return sorted({*touched, *undescribed})


def _object(path: Path) -> Path:
    """The object that a file of an unfinished write belongs to."""
    name = path.name
    for ending in (META + TMP, META + ".alone" + TMP, OLD, TMP):
        if name.endswith(ending):
            return path.with_name(name.removesuffix(ending))
    return path


def is_torn(path: Path) -> bool:
    """Whether an object has new bytes under an old description."""
    return beside(path, META + TMP).exists() and not beside(path, TMP).exists()


def take_back(path: Path) -> None:
    """Undoes the unfinished write of an object. However often this is cut off itself, it can be done again."""
    old = beside(path, OLD)
    if is_torn(path):
        if old.exists():
            restored = beside(path, ".back" + TMP)
            link(old, restored)
            restored.replace(path)
        else:
            path.unlink(missing_ok=True)
    for ending in (META + TMP, TMP, OLD, META + ".alone" + TMP, ".back" + TMP):
        beside(path, ending).unlink(missing_ok=True)


def take_rights(s3: Path) -> None:
    """Gives the owner of the engine's S3 directory the right to read and write all of it, and the state that it is in.

    Raises OSError if it is somebody else's.
    """
    for directory in (s3.parent, s3):
        _allow(directory, directory.stat(), 0o700)
    for directory in _directories(s3):
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    _allow(Path(entry.path), entry.stat(follow_symlinks=False), 0o600)


def _directories(top: Path) -> Iterator[Path]:
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        _allow(directory, directory.stat(), 0o700)
        yield directory
        with os.scandir(directory) as entries:
            waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _allow(path: Path, facts: os.stat_result, rights: int) -> None:
    if facts.st_mode & rights != rights:
        path.chmod(stat.S_IMODE(facts.st_mode) | rights)


def link(path: Path, name: Path) -> None:
    """Another name for what lies there, which is never written to, but replaced. On some disks it takes a copy."""
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(path)
    except OSError as refused:
        if refused.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        fresh = beside(name, TMP)
        shutil.copyfile(path, fresh)
        fresh.replace(name)


def beside(path: Path, ending: str) -> Path:
    """A file beside an object."""
    return path.with_name(path.name + ending)
