"""A session's zip unpacked into the two folders of a run.

**The archive is an attacker's.** What a run leaves was written by a model and its commands, so `unpack`
trusts nothing: the whole is checked before the first byte is written, each member's record before the member
is made, its size and checksum while it is. Restoring refuses, as `SessionDamaged` with the reason in `detail`:
names outside the two roots, absolute, with `.`, `..`, NUL or empty parts, too long or twice; parents that are
not folders of the archive itself; members that overlap or reach into the directory; special files, set-id
bits, encryption, foreign compression; headers that differ from the directory; more members, bytes or ratio
than the limits; anything cut, and anything that does not check.

**Links are kept as they are, wherever they point, and never followed.** An honest workspace has links that
lead out of it (a virtual environment's `bin/python`), or to nothing, and must open again. A link is only a
danger to privileged code that goes through it; so none of ours does. No member may lie below a link; and
unpacking makes all folders, then all files, and links last, each exclusively, in a folder that was
empty: while it writes, there is no link to go through, on file systems that fold names too. Whoever reads
the tree later with more rights than the agent opens with O_NOFOLLOW.

**Fast.** One thread makes files of the bytes as they come (see content.py): it keeps up with the network, and two would
wait for each other. Were all records read before, the network would have nothing to do meanwhile.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lambdas.archive.directory import Archive, Directory
from lambdas.archive.format import ROOTS, Limits, Member, beside, damaged, misshapen
from lambdas.archive.inflate import inflated
from lambdas.archive.prefetch import Prefetch, needed
from lambdas.archive.tree import Fingerprint, fingerprint, shown

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFIT = (errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ)


def unpack(archive: Archive, into: Path, limits: Limits, owner: int | None = None) -> dict[str, Fingerprint]:
    """Restore an archive into the folders `into/workspace` and `into/claude`, empty or not there, nobody else's.

    With `owner`, all of it is that user's. Returns the fingerprints of what is there now, by its path
    in the archive. Raises SessionDamaged, with the reason in `detail`, for whatever is not exactly
    an archive that `pack` could have made under these limits; what is in the two is then only good for throwing away.
    OSError is the disk's own trouble (full, read-only).
    """
    for root in ROOTS:
        (into / root).mkdir(mode=0o700, exist_ok=True)
        if any((into / root).iterdir()):
            raise ValueError(f"{into / root} is not empty")
    return Unpacking(archive, Directory.of(archive, limits), limits, owner).make(into)


@dataclass(frozen=True)
class Unpacking:
    """An archive whose directory is known, to be made as `unpack` says: whole, or in parts."""

    archive: Archive
    directory: Directory
    limits: Limits
    owner: int | None

    def make(
        self,
        into: Path,
        some: frozenset[int] | None = None,
        without: str | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> dict[str, Fingerprint]:
        """Make it below `into`, where the roots are. Or `some` of its members alone, by their numbers, among them the
        folders that they are in: what is wrong elsewhere does not show then. Or all `without` one of the roots, of
        which all is checked but its content. `go_on` is asked before every member, and may raise."""
        passed = self.directory.inside(without) if without else range(0)
        lying = self.directory.lying if some is None else sorted(some, key=self.directory.offsets.__getitem__)
        wanted = [number for number in lying if number not in passed]
        making = _Making(into, self.owner, without)
        with Prefetch(self.archive, needed(self.directory, wanted)) as content:
            try:
                _make(Contents(self.directory, self.limits, some), content, making, go_on)
            except OSError as error:
                if error.errno in _UNFIT:
                    raise damaged(f"this file system can't hold it: {error}") from error
                raise
        return making.made


class Contents:
    """The members of an archive, or `some` of them by their numbers, as they lie; each is checked, in all that can be
    without its content, when it comes.

    Raises SessionDamaged; at once where the whole is over a limit, or a folder is not as it should be.
    """

    def __init__(self, directory: Directory, limits: Limits, some: frozenset[int] | None = None) -> None:
        self._directory = directory
        self._some = some
        self._limits = limits
        self._places = {""}
        self.folders = list[Member]()
        """A folder before what is in it."""
        if excess := limits.exceeded(len(directory), directory.size):
            raise damaged(f"the archive has {excess}")
        if limits.inflated(directory.size, directory.compressed):
            raise damaged(f"archive: it inflates more than {limits.ratio}-fold")
        for number in directory.folders if some is None else sorted(some & set(directory.folders)):
            self.folders.append(self._checked(number))
            self._places.add(self.folders[-1].path)

    def __iter__(self) -> Iterator[tuple[Member, bytes]]:
        """Each with what its local header has to be."""
        directory, end = self._directory, 0
        for number in directory.lying if self._some is None else sorted(self._some, key=directory.offsets.__getitem__):
            member = self._checked(number)
            if member.offset < end or (end := directory.ends[number]) > directory.at:
                raise damaged(f"{shown(member.path)}: its bytes are another member's too, or the directory's")
            yield member, beside(directory.record(number), member)

    def _checked(self, number: int) -> Member:
        member = self._directory.member(number)
        if reason := misshapen(member) or self._misplaced(member):
            raise damaged(f"{shown(member.path)}: {reason}")
        return member

    def _misplaced(self, member: Member) -> str | None:
        """What is wrong with a member in this place; None if nothing is."""
        if member.path.rpartition("/")[0] not in self._places:
            return "what it is in is not a directory of the archive"
        if self._limits.inflated(member.size, member.compressed):
            return f"it inflates more than {self._limits.ratio}-fold"
        return "it is a special file" if member.is_whiteout else None


def _make(contents: Contents, content: Prefetch, making: "_Making", go_on: Callable[[], None]) -> None:
    """Directories, then files in the order in which they lie, then links."""
    folders = list(filter(making.wants, contents.folders))
    for member in folders:
        go_on()
        making.folder(member)
    links = list[tuple[Member, bytes]]()
    for member, header in contents:
        go_on()
        if not making.wants(member):
            continue
        content.seek(member.offset)
        if member.is_file:
            making.file(member, inflated(content, member, header))
        elif target := b"".join(inflated(content, member, header)):
            links.append((member, target))
    for member, target in links:
        making.link(member, target)
    for member in reversed(folders):
        making.finished(member)


class _Making:
    """Makes what is in an archive. After the last change to each, its fingerprint is taken."""

    def __init__(self, into: Path, owner: int | None, without: str | None = None) -> None:
        self.made: dict[str, Fingerprint] = {}
        self._into = os.fspath(into)
        self._owner = owner
        self._without = without

    def wants(self, member: Member) -> bool:
        """Whether it is to be made."""
        return self._without is None or member.path.partition("/")[0] != self._without

    def file(self, member: Member, content: Iterator[bytes]) -> None:
        """Exclusively, so that nothing that is there is opened or followed."""
        mode = _mode(member)
        handle = os.open(f"{self._into}/{member.path}", _NEW, mode)
        try:
            for piece in content:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            if self._owner is not None:
                os.fchown(handle, self._owner, self._owner)
            os.utime(handle, ns=(member.mtime, member.mtime))
            facts = os.fstat(handle)
            if stat.S_IMODE(facts.st_mode) != mode:  # the umask took some of it
                os.fchmod(handle, mode)
                facts = os.fstat(handle)
            self.made[member.path] = fingerprint(facts)
        finally:
            os.close(handle)

    def folder(self, member: Member) -> None:
        """Open for what is to be in it; the roots are there."""
        if member.path not in ROOTS:
            os.mkdir(f"{self._into}/{member.path}", 0o700)  # noqa: PTH102 - a Path costs as much again

    def finished(self, member: Member) -> None:
        """A folder's mode and mtime come after all that is in it."""
        path = f"{self._into}/{member.path}"
        os.chmod(path, _mode(member))  # noqa: PTH101 - a Path costs as much again
        self._finish(member, path)

    def link(self, member: Member, target: bytes) -> None:
        """Its target is text here, and is not looked at."""
        if b"\0" in target:
            raise damaged(f"{shown(member.path)}: it is not a link target")
        path = f"{self._into}/{member.path}"
        os.symlink(os.fsdecode(target), path)  # noqa: PTH211 - a Path costs as much again
        self._finish(member, path)

    def _finish(self, member: Member, path: str) -> None:
        if self._owner is not None:
            os.chown(path, self._owner, self._owner, follow_symlinks=False)
        os.utime(path, ns=(member.mtime, member.mtime), follow_symlinks=False)
        self.made[member.path] = fingerprint(os.lstat(path))


def _mode(member: Member) -> int:
    """The permissions that a member gets. The roots are open to their owner, and what is Claude's can be read by him,
    whatever a run did to it: without its transcript, no run could go on with the session."""
    mode = stat.S_IMODE(member.mode)
    if member.path in ROOTS:
        return mode | stat.S_IRWXU
    if member.path.startswith("claude/"):
        return mode | (stat.S_IRUSR | stat.S_IXUSR if member.is_folder else stat.S_IRUSR)
    return mode
