"""`claude-workflow sessions get`: files of a session's workspace onto this machine.

What a session holds was written by whoever it let write: nothing of it gets outside the folder that is meant. Each
folder on the way is opened by itself, in the one before, and no link is followed; a file comes under a name of its own,
and takes its place when it is whole.
"""

import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from rich.filesize import decimal

from claude_workflow.cli.accounts import counted
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Unusable
from claude_workflow.cli.printing import harmless, to_stderr
from claude_workflow.cli.sessions import progress
from claude_workflow.cli.sessions.files import contents
from claude_workflow.cli.sessions.held import telling
from lambdas.archive.tree import shown
from lambdas.bucket.contents import Contents, File
from lambdas.bucket.objects import Bucket
from lambdas.errors import FileNotFound

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def run(backend: Backend, session_id: str, paths: Sequence[str], out: Path) -> int:
    """Puts them below `out`, by their paths in the workspace. Raises `Unusable`."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    with telling(session_id):
        held = contents(bucket, session_id)
        wanted = {file.path: file for path in paths for file in _wanted(held, path, session_id)}
        files = [file for file in wanted.values() if file.kind != "folder"]
        size = sum(file.size for file in files)
        with Into.opened(out) as into, progress.of_bytes("Fetching", size) as told:
            for file, content in held.several(file.path for file in files):
                into.make(file, progress.passing(content, told))
            for folder in sorted((one for one in wanted.values() if one.kind == "folder"), reverse=True):
                into.finish(folder)  # what is in it before itself: it may be shut then
    to_stderr().print(f"{counted(len(files), 'file')}, {decimal(size)}, in {out}", soft_wrap=True)
    return 0


def _wanted(held: Contents, path: str, session_id: str) -> Iterator[File]:
    """The one of this path, the folders that it is in and, of a folder, all that is in it."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not names:
        yield from held.files
        return
    try:
        for end in range(1, len(names)):
            yield held.file("/".join(names[:end]))
        yield from held.under("/".join(names))
    except FileNotFound:
        raise Unusable(f"There is no {harmless(path)} in {session_id}.") from None


class _Made(NamedTuple):
    """What tells a file of this machine from others."""

    device: int
    inode: int


class Into:
    """A folder of this machine, to make files below it and nowhere else."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._made = set[_Made]()

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """Made where there is none."""
        path.mkdir(parents=True, exist_ok=True)
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield cls(root)
        finally:
            os.close(root)

    def make(self, file: File, content: Iterator[bytes]) -> None:
        """A file or a link, in the place of what has its name. Raises `Unusable` where the disk takes the name for
        another one of the session's, and where something is in the way."""
        folder, _, name = file.path.rpartition("/")
        with _naming(file), self._folder(folder) as parent:
            passing = f".get-{uuid.uuid4().hex}"
            try:
                if file.kind == "link":
                    _link(parent, passing, file, b"".join(content))
                else:
                    _write(parent, passing, file, content)
                self._take(parent, passing, name, file)
            except BaseException:
                with suppress(OSError):
                    os.unlink(passing, dir_fd=parent)
                raise

    def finish(self, folder: File) -> None:
        """Gives a folder its mode and its time, when all is in it."""
        with _naming(folder), self._folder(folder.path) as handle:
            os.fchmod(handle, folder.mode)
            os.utime(handle, ns=(folder.modified, folder.modified))

    def _take(self, parent: int, passing: str, name: str, file: File) -> None:
        with suppress(FileNotFoundError):
            if _made(os.stat(name, dir_fd=parent, follow_symlinks=False)) in self._made:
                raise Unusable(f"This disk takes {harmless(shown(file.path))} for another file of the session.")
        self._made.add(_made(os.stat(passing, dir_fd=parent, follow_symlinks=False)))
        os.rename(passing, name, src_dir_fd=parent, dst_dir_fd=parent)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A folder's handle; it is made where there is none."""
        handle = os.dup(self._root)
        try:
            for name in path.split("/") if path else ():
                try:
                    below = _entered(name, handle)
                except FileNotFoundError:
                    os.mkdir(name, 0o700, dir_fd=handle)
                    below = _entered(name, handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)


def _entered(name: str, parent: int) -> int:
    """A folder's handle. One that is shut to its owner, as an earlier `get` left it, is opened until it is finished."""
    try:
        handle = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)
        return os.open(name, _FOLDER, dir_fd=parent)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(PermissionError):  # another's: what its owner lets others do may be enough
            os.fchmod(handle, mode | stat.S_IRWXU)
    return handle


def _write(parent: int, name: str, file: File, content: Iterator[bytes]) -> None:
    with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=parent), "wb", buffering=0) as made:
        for piece in content:
            rest = memoryview(piece)
            while rest:
                rest = rest[made.write(rest) :]
        os.fchmod(made.fileno(), file.mode)
        os.utime(made.fileno(), ns=(file.modified, file.modified))


def _link(parent: int, name: str, file: File, target: bytes) -> None:
    """Its target is text here, and is not looked at."""
    os.symlink(target, os.fsencode(name), dir_fd=parent)
    os.utime(name, ns=(file.modified, file.modified), dir_fd=parent, follow_symlinks=False)


def _made(facts: os.stat_result) -> _Made:
    return _Made(facts.st_dev, facts.st_ino)


@contextmanager
def _naming(file: File) -> Iterator[None]:
    """Says of which file the system refuses what it refuses."""
    try:
        yield
    except OSError as error:
        raise Unusable(f"{harmless(shown(file.path))} cannot be put there: {error.strerror}.") from error
