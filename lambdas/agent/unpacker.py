"""Puts what came with a request into the workspace: a program that runs behind the wall, as the agent.

It reads an archive of ordinary tools from its input: a tar, gzipped or not, a zip, or a git bundle; whose words it
takes as a stranger's. What a session can carry is made, as the archive has it: files, folders, links wherever they
point (as every session keeps them); hard links as copies, set-id bits dropped. What it cannot is refused by name, and
so is whatever lies outside of the workspace. All is counted as it is written, and stops at what the session has room
for: a file's size, a count of members, or a ratio that the archive states is believed by nobody.

No link is followed, whoever made it: each folder is opened from the one above. So nothing is written outside even where
there is no wall, and the wall stands even where this file errs. What it prints at last is one line of JSON.

It knows nothing of the project's other modules, and imports all that it needs before the wall is up, since the files of
this Python may lie beyond it.
"""

import codecs
import errno
import gzip
import json
import os
import resource
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict

PIECE = 256 * 1024
WORD_CHARS, WORD_BYTES = 1000, 16 * 1024
"""Of what it says; a character takes up to 12 bytes."""
LINK_BYTES = 4095
HEADER_BYTES = 1024 * 1024
"""Of a tar's header that says more of the one behind it: names, times."""
REST_BYTES = 64 * 1024
"""What is read behind a tar's end, so that its gzip is read to its checksum."""
MEMORY_BYTES = 512 * 1024 * 1024
"""What this program, or a git that it starts, may take: a zip's directory, or an object of git's, may be a bomb."""
GIT = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.attributesFile=/dev/null"),
    *("-c", "fetch.unpackLimit=1", "-c", "pack.threads=1", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    *("-c", "advice.detachedHead=false", "-c", "protocol.allow=never", "-c", "protocol.file.allow=always"),
)
GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
}
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FULL = (errno.ENOSPC, errno.EDQUOT)

codecs.lookup("cp437")  # which zipfile looks up when it meets a name


class Terms(TypedDict):
    """What is asked."""

    into: str
    """The folder in the workspace; empty: the workspace itself."""
    room: list[int]
    """How many bytes of content and how many files, links and folders may come."""
    path_bytes: int
    """The longest path in the workspace."""
    workspace: str
    spool: str
    """A file of its own, for an archive that cannot be read from its beginning to its end."""


class Refused(Exception):
    """In words, what cannot be taken, and why."""


class Tree:
    """What is made in the workspace."""

    def __init__(self, terms: Terms) -> None:
        self.bytes, self.members = terms["room"]
        """For how much more there is room."""
        self._path_bytes = terms["path_bytes"]
        self._root = os.open(terms["workspace"], FOLDER)
        self._base = _parts(os.fsencode(terms["into"]))
        self._at: tuple[list[bytes], int] | None = None
        self._folders = dict[bytes, tuple[int, int]]()
        """Modes and times of folders, for when all is in them."""

    def inside(self, path: bytes) -> list[bytes]:
        """The parts of a path, in the workspace. Raises `Refused` for one that leads out, or cannot be carried."""
        if path.startswith(b"/"):
            raise Refused("its path is absolute")
        parts = [*self._base, *_parts(path)]
        if b".." in parts:
            raise Refused("its path leads out of the workspace")
        if b"\0" in path:
            raise Refused("its path holds a NUL character")
        if len(b"/".join(parts)) > self._path_bytes or max(map(len, parts), default=0) > 255:
            raise Refused("its path is too long")
        return parts

    def folder(self, path: bytes, mode: int = 0o755, mtime: int | None = None) -> None:
        """A folder, with those above it."""
        parts = self.inside(path)
        self._open(parts)
        if path and parts and mtime is not None:
            self._folders[b"/".join(parts)] = (mode & 0o777, mtime)

    def file(self, path: bytes, size: int, content: Iterator[bytes], mode: int, mtime: int) -> None:
        """A file, in the place of another, or of a link. Its content is to have this `size`."""
        above, name = self._place(path)
        if size > self.bytes + self._held(above, name):
            raise Refused(f"more than the {self.bytes:,} bytes for which the session has room")
        self._clear(above, name)
        self.count(0)
        made, left = os.open(name, NEW, 0o600, dir_fd=above), size
        try:
            for piece in content:
                left -= len(piece)
                if left < 0:
                    break
                self._weigh(len(piece))
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(made, rest) :]
            if left:
                raise Refused("it has another size than the archive says")
            os.fchmod(made, mode & 0o777)
            os.utime(made, ns=(mtime, mtime))
        finally:
            os.close(made)

    def link(self, path: bytes, target: bytes, mtime: int) -> None:
        """A symbolic link, wherever it points."""
        if not 0 < len(target) <= LINK_BYTES or b"\0" in target:
            raise Refused("it is a link to what is no path")
        above, name = self._place(path)
        self._clear(above, name)
        self.count(len(target))
        os.symlink(target, name, dir_fd=above)
        os.utime(name, ns=(mtime, mtime), dir_fd=above, follow_symlinks=False)

    def again(self, path: bytes, of: bytes, mtime: int) -> None:
        """A copy of a file, or link, that is there: a hard link."""
        above, name = self._place(of)
        try:
            facts = os.stat(name, dir_fd=above, follow_symlinks=False)
            if stat.S_ISLNK(facts.st_mode):
                self.link(path, os.readlink(name, dir_fd=above), mtime)
                return
            if not stat.S_ISREG(facts.st_mode):
                raise Refused("it is a hard link to what is no file")
            opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        except FileNotFoundError:
            raise Refused("it is a hard link to what is not there") from None
        with os.fdopen(opened, "rb", buffering=0) as source:
            self.file(path, facts.st_size, _pieces(source), facts.st_mode, mtime)

    def close(self) -> None:
        """Close what is open."""
        for opened in (self._root, *([self._at[1]] if self._at else [])):
            os.close(opened)

    def finish(self) -> None:
        """The folders' modes and times: the deepest first."""
        for path in sorted(self._folders, reverse=True):
            mode, mtime = self._folders[path]
            opened = os.dup(self._open(path.split(b"/")))
            os.utime(opened, ns=(mtime, mtime))
            os.fchmod(opened, mode)
            os.close(opened)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """The folder, open, and the name of what is to be in it."""
        parts = self.inside(path)
        if len(parts) == len(self._base):
            raise Refused("it has no name")
        return self._open(parts[:-1]), parts[-1]

    def _open(self, parts: list[bytes]) -> int:
        """A folder of the workspace, made where it is not there; open until the next one is."""
        if self._at and self._at[0] == parts:
            return self._at[1]
        folder = os.dup(self._root)
        for part in parts:
            try:
                below = self._below(folder, part)
            finally:
                os.close(folder)
            folder = below
        if self._at:
            os.close(self._at[1])
        self._at = (list(parts), folder)
        return folder

    def _below(self, folder: int, name: bytes) -> int:
        try:
            return os.open(name, FOLDER, dir_fd=folder)
        except FileNotFoundError:
            self.count(0)
            os.mkdir(name, 0o755, dir_fd=folder)
            return os.open(name, FOLDER, dir_fd=folder)
        except NotADirectoryError:
            raise Refused("a file or a link is where a folder of its path has to be") from None
        except OSError as error:  # as macOS says of a link
            raise Refused(f"a folder of its path cannot be opened: {error.strerror}") from None

    def _held(self, folder: int, name: bytes) -> int:
        """Bytes of the file or link that is there."""
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        return 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size

    def _clear(self, folder: int, name: bytes) -> None:
        """What is in the place of a file or link gives way, but for a folder."""
        held = self._held(folder, name)
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            raise Refused("a folder is in its place") from None
        self.bytes, self.members = self.bytes + held, self.members + 1

    def count(self, size: int) -> None:
        """One file, link or folder more, of so many bytes. Raises `Refused`."""
        self.members -= 1
        if self.members < 0:
            raise Refused("more files, links and folders than the session has room for")
        self._weigh(size)

    def _weigh(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise Refused("more bytes than the session has room for")


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(PIECE), b"")


@contextmanager
def _refusing(path: bytes | None = None) -> Iterator[None]:
    """Makes a refusal of whatever fails, but for a full disk, which is nobody's fault; of a member by its path.

    What the readers of tars and zips raise for what is none is nowhere written down.
    """
    try:
        yield
    except Refused as refused:
        if path is None:
            raise
        raise Refused(f"{_shown(path)}: {refused}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise Refused(f"{_shown(path) if path is not None else 'it cannot be read'}: {said}") from error


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "backslashreplace")
    return text if len(text) <= 100 else f"{text[:100]}…"


HeaderError: Any = tarfile.HeaderError
ENDS: Any = (tarfile.EOFHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined] # they are there


EXTENDING = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Entry(tarfile.TarInfo):
    """Python takes a header that it cannot read for the archive's end, and reads one of any size into memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in EXTENDING and entry.size > HEADER_BYTES:
            raise Refused(f"a header of it has {entry.size:,} bytes")
        return entry

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except ENDS:
            raise
        except HeaderError as error:
            raise Refused(f"a header of it cannot be read ({error})") from error


def untar(stream: Any, tree: Tree) -> None:
    """A tar, as it comes from what has a `read`."""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry, encoding="utf-8", errors="surrogateescape") as archive:
        kept: Any = archive
        while (entry := archive.next()) is not None:
            kept.members.clear()  # it would keep them all
            path = _raw(entry.name)
            with _refusing(path):
                _make(archive, entry, path, tree)
    stream.read(REST_BYTES)


def _make(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: bytes, tree: Tree) -> None:
    mtime = _nanoseconds(entry.mtime)
    if entry.isdir():
        tree.folder(path, entry.mode, mtime)
    elif entry.issym():
        tree.link(path, _raw(entry.linkname), mtime)
    elif entry.islnk():
        tree.again(path, _raw(entry.linkname), mtime)
    elif entry.isreg() and (content := archive.extractfile(entry)):
        tree.file(path, entry.size, _pieces(content), entry.mode, mtime)
    else:
        raise Refused(TAR_KINDS.get(entry.type, "it is of a kind that no session keeps"))


TAR_KINDS = {tarfile.FIFOTYPE: "it is a FIFO", tarfile.CHRTYPE: "it is a device", tarfile.BLKTYPE: "it is a device"}


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _nanoseconds(seconds: float) -> int:
    """What 32 bits of seconds can say; of what is no number, 0."""
    return int(max(-(2.0**31), min(seconds, 2.0**31 - 1)) * 1e9) if seconds == seconds else 0


def unzip(spool: str, tree: Tree) -> None:
    """A zip, which has to be there as a whole."""
    with zipfile.ZipFile(spool) as archive:
        for entry in archive.infolist():
            path = _zip_path(entry)
            with _refusing(path):
                _make_of_zip(archive, entry, path, tree)


def _make_of_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: bytes, tree: Tree) -> None:
    mode, mtime = entry.external_attr >> 16, _zip_time(entry)
    kind = stat.S_IFMT(mode)
    if entry.flag_bits & 1:
        raise Refused("it is encrypted")
    if path.endswith(b"/") or stat.S_ISDIR(mode):
        tree.folder(path, mode & 0o777 or 0o755, mtime)
        return
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"its compression method {entry.compress_type} is not taken")
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise Refused("it is a device, a FIFO or a socket")
    with archive.open(entry) as content:
        if stat.S_ISLNK(mode):
            tree.link(path, content.read(LINK_BYTES + 1), mtime)
            content.read(1)  # to its checksum
        else:
            tree.file(path, entry.file_size, _pieces(content), mode & 0o777 or 0o644, mtime)


def _zip_path(entry: zipfile.ZipInfo) -> bytes:
    """Some tools write UTF-8 without saying so, and some of Windows' backslashes."""
    name = entry.orig_filename
    if not entry.flag_bits & 0x800 and not name.isascii():
        try:
            return name.encode("cp437").decode().encode()
        except UnicodeError:
            pass
    return _raw(name.replace("\\", "/") if entry.create_system == 0 else name)


def _zip_time(entry: zipfile.ZipInfo) -> int:
    """The extended timestamp, if there is one; else the one of MS-DOS, as if it were UTC."""
    extra, at = entry.extra, 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 0x5455 and size >= 5 and at + 9 <= len(extra) and extra[at + 4] & 1:
            return int(struct.unpack_from("<i", extra, at + 5)[0]) * 10**9
        at += 4 + size
    return _nanoseconds(timegm((*entry.date_time, 0, 0, 0)))


def unbundle(spool: str, tree: Tree, terms: Terms) -> None:
    """A git bundle: its branches and tags, and what its HEAD names checked out.

    A bundle brings no hooks and no configuration, and none of this machine's counts. What would be checked out is
    counted before it is: the same few objects can be named a million times.
    """
    place = f"{terms['workspace']}/{terms['into']}"
    tree.folder(b"")  # no part of its path is a link, then
    if any(Path(place).iterdir()):
        raise Refused("a bundle is cloned into an empty folder only: name another path")
    head, branch = _head(_git(["bundle", "list-heads", spool], str(Path(spool).parent)))
    _git(["init", "-q", "--template=", "-b", branch or "main", "."], place)
    refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", *([] if branch else ["HEAD"])]
    _git(["fetch", "-q", "--update-head-ok", "--no-write-fetch-head", "--no-recurse-submodules", spool, *refs], place)
    room = tree.bytes, tree.members
    _weigh(f"{place}/.git", tree)
    _foresee(place, head, tree)
    _git(["checkout", "-q", "-f", *([branch] if branch else ["--detach", head]), "--"], place)
    tree.bytes, tree.members = room  # git's attributes can make more of a file than is in the commit
    _weigh(place, tree)


def _head(told: bytes) -> tuple[str, str | None]:
    """What is to be checked out, and the branch that it is, by the refs of a bundle."""
    refs = {name: commit for commit, _, name in (line.partition(" ") for line in told.decode().splitlines())}
    main = [name for name in ("refs/heads/main", "refs/heads/master") if name in refs]
    branches = [*main, *(name for name in refs if name.startswith("refs/heads/"))]
    if "HEAD" not in refs and not branches:
        raise Refused("the bundle has no branch")
    head = refs["HEAD"] if "HEAD" in refs else refs[branches[0]]
    branch = next((name.removeprefix("refs/heads/") for name in branches if refs[name] == head), None)
    if branch and branch.startswith("-"):
        raise Refused("the bundle's branch has no name that git takes")
    return head, branch


def _weigh(folder: str, tree: Tree) -> None:
    """Count what is there. Raises `Refused`."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            facts = os.lstat(f"{place}/{name}")
            tree.count(0 if stat.S_ISDIR(facts.st_mode) else facts.st_size)


def _foresee(place: str, head: str, tree: Tree) -> None:
    """Count what would be checked out. Raises `Refused`."""
    command = ["git", *GIT, "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", head]
    with subprocess.Popen(command, cwd=place, env=_environment(), stdout=subprocess.PIPE) as listing:
        assert listing.stdout
        try:
            for entry in _entries(listing.stdout):
                facts, _, path = entry.partition(b"\t")
                with _refusing(path):
                    tree.inside(path)
                    size = facts.split()[3]
                    tree.count(int(size) if size.isdigit() else 0)
            if listing.wait():
                raise Refused("git cannot read the bundle's newest commit")
        finally:
            listing.kill()


def _entries(listing: IO[bytes]) -> Iterator[bytes]:
    """What `-z` separates."""
    rest = b""
    while piece := listing.read(PIECE):
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole
        if len(rest) > PIECE:
            raise Refused("a path of it is too long")


def _git(arguments: list[str], cwd: str) -> bytes:
    """What git prints. Raises `Refused` with what it complains of."""
    try:
        done = subprocess.run(["git", *GIT, *arguments], cwd=cwd, env=_environment(), capture_output=True)
    except FileNotFoundError:
        raise Refused("there is no git here to read a bundle with") from None
    if done.returncode:
        said = done.stderr[-2000:].decode("utf-8", "replace").strip().splitlines() or [str(done.returncode)]
        reason = said[-1].removeprefix("fatal: ").removeprefix("error: ")
        for path in filter(os.path.isabs, arguments):
            reason = reason.replace(path, "it")
        raise Refused(f"git cannot take the bundle: {reason}")
    return done.stdout


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return kept | GIT_ENVIRONMENT


class _Again:
    """A stream of which the beginning has been read."""

    def __init__(self, start: bytes, stream: IO[bytes]) -> None:
        self._start = start
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Some of it; nothing at its end."""
        if not self._start:
            return self._stream.read(size)
        piece, self._start = (self._start[:size], self._start[size:]) if size >= 0 else (self._start, b"")
        return piece


def unpack(stream: IO[bytes], terms: Terms) -> None:
    """Whatever it is. Raises `Refused`, and `OSError` where the disk is full."""
    start = stream.read(512)
    whole: Any = _Again(start, stream)
    with _refusing():
        tree = Tree(terms)
        try:
            if start.startswith((b"PK\3\4", b"PK\5\6")):
                unzip(_spooled(whole, terms["spool"]), tree)
            elif start.startswith((b"# v2 git bundle\n", b"# v3 git bundle\n")):
                unbundle(_spooled(whole, terms["spool"]), tree, terms)
            elif start.startswith(b"\x1f\x8b"):
                untar(gzip.GzipFile(fileobj=whole, mode="rb"), tree)
            elif start[257:262] == b"ustar":
                untar(whole, tree)
            else:
                raise Refused("it is no tar, tar.gz, zip or git bundle")
            tree.finish()
        finally:
            tree.close()


def _spooled(stream: IO[bytes], spool: str) -> str:
    with Path(spool).open("xb") as file:
        for piece in _pieces(stream):
            file.write(piece)
    return spool


def main(text: str) -> None:
    """Unpacks by the `Terms` in this text what comes on stdin, and says on stdout what came of it."""
    terms: Terms = json.loads(text)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    word: dict[str, str | None] = {"refused": None}
    try:
        unpack(sys.stdin.buffer, terms)
    except Refused as refused:
        word = {"refused": str(refused)[:WORD_CHARS]}
    except OSError as full:
        word = {"full": str(full)[:WORD_CHARS]}
    finally:
        Path(terms["spool"]).unlink(missing_ok=True)
    print(json.dumps(word), flush=True)


if __name__ == "__main__":
    main(sys.argv[-1])
