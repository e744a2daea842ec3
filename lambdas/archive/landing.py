"""An archive that is restored in two parts: what somebody begins with, and all the rest while they have begun.

**What is shown** is made in its place at once: the folder `claude`, whole, and of `workspace` the files that are named.
The rest **lands** out of everybody's reach, in a folder of its own, by `unpack`, which checks all of the archive as
ever; and is moved into place when all of it is there. What was shown of the workspace is then replaced by what landed.

**Who has begun may do what it likes meanwhile**: it is an agent's program, and what it reads was written by strangers.
So in the place nothing is made, opened to be written or followed: entries are renamed into folders that are held open,
each found from the one above and never through a link. What stands in the way is moved out of it, and what was put
beside stays. What git obeys comes last: of the workspace `.git`, of that its hooks and its configuration.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from lambdas.archive.directory import Archive, Directory
from lambdas.archive.format import Limits
from lambdas.archive.tree import Fingerprint, fingerprint
from lambdas.archive.unpack import Unpacking

CLAUDE, WORKSPACE = "claude", "workspace"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = 0o700
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_LAST = ("HEAD", "hooks", "commondir", "config", ".git")
"""In this order, in whatever folder they are: a HEAD may make a repository of it, `commondir` has git obey hooks and
configuration of another folder."""


class Landing:
    """One restore into `place/claude` and `place/workspace`, which are there and empty. `aside` is an empty folder of
    the same file system, which nobody else enters.

    Every method raises SessionDamaged and OSError as `unpack` does.
    """

    def __init__(self, archive: Archive, place: Path, aside: Path, limits: Limits, owner: int | None = None) -> None:
        self._directory = Directory.of(archive, limits)
        self._unpacking = Unpacking(archive, self._directory, limits, owner)
        self._place = place
        self._aside = aside
        self._shown = {WORKSPACE}
        """The folders of the workspace that are in their place."""
        self._numbers = count()
        self._known = dict[str, Fingerprint]()

    def claude(self) -> dict[str, Fingerprint]:
        """The folder `claude`. Returns the fingerprints of what is in it, by its path in the archive."""
        return self._unpacking.make(self._place, frozenset(self._directory.inside(CLAUDE)))

    def has(self, path: str) -> bool:
        """Whether there is anything of that path, in the archive."""
        return self._directory.number(path) is not None

    def shows(self, path: str) -> bool:
        """Whether that path, in the archive, can be shown."""
        return bool(self._chain(path))

    def show(self, paths: Iterable[str]) -> None:
        """What of these can be shown, by their paths in the archive: regular files and folders, with all folders that
        they are in. Once, and after `claude`."""
        chosen = frozenset(number for path in paths for number in self._chain(path))
        self._shown |= {member.path for number in chosen if (member := self._directory.member(number)).is_folder}
        self._unpacking.make(self._place, chosen)

    def _chain(self, path: str) -> list[int]:
        """The numbers of a path's record and of those of the folders that it is in; none where it cannot be shown."""
        found = list[int]()
        while path:
            number = self._directory.number(path)
            if number is None:
                return []
            member = self._directory.member(number)
            if not (member.is_folder or (member.is_file and not found)):
                return []
            found.append(number)
            path = path.rpartition("/")[0]
        return found

    def land(
        self, settled: Callable[[Mapping[str, Fingerprint]], None], go_on: Callable[[], None] = lambda: None
    ) -> dict[str, Fingerprint]:
        """The rest. Returns the fingerprints of all that landed, by its path in the archive. `settled` returns when
        whatever is written next differs from those that it is given; `go_on` is asked all the time, and may raise."""
        (self._aside / WORKSPACE).mkdir(_OPEN)
        self._known = self._unpacking.make(self._aside, without=CLAUDE, go_on=go_on)
        settled(self._known)
        if WORKSPACE in self._known:
            with _opened(os.fspath(self._place / WORKSPACE)) as place:
                self._merge(WORKSPACE, place)
        settled(self._known)
        return self._known

    def _merge(self, folder: str, place: int) -> None:
        """Move what landed in a folder that was shown into that folder's place, which is open."""
        landed = f"{self._aside}/{folder}"
        facts = os.stat(landed)  # noqa: PTH116 - as all here, by paths that are text
        os.chmod(landed, _OPEN)  # noqa: PTH101 - its owner may move nothing in or out otherwise
        os.fchmod(place, _OPEN)
        for name in sorted(os.listdir(landed), key=_rank):  # noqa: PTH208 - by text, as all here
            path = f"{folder}/{name}"
            if path not in self._shown or not self._merged(path, name, place):
                self._move(path, name, place)
        os.fchmod(place, stat.S_IMODE(facts.st_mode))
        os.utime(place, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
        self._known[folder] = fingerprint(os.fstat(place))

    def _merged(self, path: str, name: str, place: int) -> bool:
        """False where the folder that was shown is none any more."""
        try:
            below = os.open(name, _FOLDER, dir_fd=place)
        except OSError:
            return False
        try:
            self._merge(path, below)
        finally:
            os.close(below)
        return True

    def _move(self, path: str, name: str, place: int) -> None:
        landed = f"{self._aside}/{path}"
        mode = os.lstat(landed).st_mode
        if not stat.S_ISDIR(mode):
            self._rename(landed, name, place)
            self._known[path] = fingerprint(os.stat(name, dir_fd=place, follow_symlinks=False))
            return
        os.chmod(landed, _OPEN)  # noqa: PTH101 - its owner may not move it otherwise
        with _opened(landed) as moved:
            self._rename(landed, name, place)
            os.fchmod(moved, stat.S_IMODE(mode))
            self._known[path] = fingerprint(os.fstat(moved))

    def _rename(self, landed: str, name: str, place: int) -> None:
        try:
            os.rename(landed, name, dst_dir_fd=place)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            os.rename(name, f"{self._aside}/{next(self._numbers)}", src_dir_fd=place)
            os.rename(landed, name, dst_dir_fd=place)


def _rank(name: str) -> int:
    """Where it comes in its folder: what git obeys when all else is there."""
    return _LAST.index(name) if name in _LAST else -1


@contextmanager
def _opened(path: str) -> Iterator[int]:
    handle = os.open(path, _FOLDER)
    try:
        yield handle
    finally:
        os.close(handle)
