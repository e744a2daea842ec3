"""A session that is restored in two parts: what is shown at once, and the rest, which lands out of reach."""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lambdas.archive.format import Limits
from lambdas.archive.landing import Landing
from lambdas.archive.pack import pack
from lambdas.archive.tree import Fingerprint, fingerprint
from lambdas.archive.unpack import unpack
from lambdas.errors import SessionDamaged
from tests.support.archives import DIR, FILE, LINK, ROOTS, item, lying, staged
from tests.support.hostile_archives import HOSTILE, SMALL, TIGHT
from tests.support.opened import Opened
from tests.support.ordinary_user import unprivileged
from tests.support.trees import photo, roots_of, scratch

LIMITS = Limits(members=100_000, bytes=1 << 30, ratio=200)
HEAD = b"ref: refs/heads/main\n"
IN_MOVED_TO = 0x80
"""Of inotify."""
SESSION = staged(
    *ROOTS,
    item("claude/projects", mode=DIR | 0o700),
    item("claude/projects/talk.jsonl", b"{}\n"),
    item("workspace/.git", mode=DIR | 0o755),
    item("workspace/.git/HEAD", HEAD),
    item("workspace/.git/config", b"[core]\n"),
    item("workspace/.git/objects", mode=DIR | 0o555),
    item("workspace/.git/objects/aa", mode=DIR | 0o555),
    item("workspace/.git/objects/aa/bb", b"blob", FILE | 0o444),
    item("workspace/.git/refs", mode=DIR | 0o755),
    item("workspace/link", b"../../outside", LINK | 0o777),
    item("workspace/shut", mode=DIR | 0o500),
    item("workspace/shut/deep", mode=DIR | 0o500),
    item("workspace/shut/deep/file", b"deep", FILE | 0o600),
    item("workspace/src", mode=DIR | 0o555),
    item("workspace/src/edited", b"edited", FILE | 0o755),
    item("workspace/src/other", b"other"),
    item("workspace/src/pkg", mode=DIR | 0o750),
    item("workspace/src/pkg/mod", b"mod"),
    item("workspace/top", b"top"),
)
SHOWN = (
    *("workspace/.git/HEAD", "workspace/.git/objects", "workspace/.git/refs"),
    *("workspace/src/edited", "workspace/link", "workspace/none", "workspace/src/pkg"),
)


class Place:
    """Where a session is restored."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.aside = base / "aside"
        self.aside.mkdir(0o777)
        self.aside.chmod(0o777)
        self.workspace = base / "workspace"
        self.settled: list[int] = []

    def shown(self, archive: bytes = SESSION, limits: Limits = LIMITS, paths: Sequence[str] = SHOWN) -> Landing:
        """A landing of which what is wanted is shown."""
        landing = Landing(Opened(archive), self.base, self.aside, limits)
        self.first = landing.claude()
        landing.show(paths)
        return landing

    def settle(self, known: Mapping[str, Fingerprint]) -> None:
        self.settled.append(len(known))


@pytest.fixture
def place() -> Iterator[Place]:
    with scratch() as base:
        yield Place(base)


@pytest.fixture(params=["as this user", "as another"])
def who(request: pytest.FixtureRequest) -> Iterator[None]:
    """Root may move what its owner has shut; others may not."""
    if request.param == "as another" and os.geteuid() == 0:
        with unprivileged():
            yield
    else:
        yield


@pytest.mark.usefixtures("who")
def test_what_landed_is_what_unpack_makes() -> None:
    """Modes, times, links and content; and the fingerprints are those of what is there."""
    with scratch() as base, scratch() as whole:
        place = Place(base)
        landing = place.shown()
        assert (base / "claude/projects/talk.jsonl").exists()
        known = place.first | landing.land(place.settle)
        unpack(Opened(SESSION), whole, LIMITS)
        for name in ("workspace", "claude"):
            assert photo(base / name) == photo(whole / name)
        assert known == {path: fingerprint(os.lstat(base / path)) for path in known}
        with (base / "changes").open("w+b") as out:
            packed = pack(roots_of(base), out, LIMITS, since=known)
            assert (packed.members, packed.changes, packed.session_files) == ([], [], 10)
        assert len(place.settled) == 2


def test_what_is_shown_is_what_was_asked_for(place: Place) -> None:
    """Regular files and folders with the folders that they are in, and nothing else of the workspace."""
    place.shown()
    there = sorted(str(path.relative_to(place.base)) for path in place.workspace.rglob("*"))
    git = [f"workspace/.git{name}" for name in ("", "/HEAD", "/objects", "/refs")]
    assert there == [*git, "workspace/src", "workspace/src/edited", "workspace/src/pkg"]
    assert (place.workspace / ".git/HEAD").read_bytes() == HEAD


def test_who_has_begun_tricks_nobody(place: Place) -> None:
    """What a program of the agent's puts where something is about to land is moved out of its way: links are not
    followed, what they lead to is neither made, changed nor opened to others, and what was put beside stays."""
    outside = place.base / "outside"
    (outside / "objects").mkdir(parents=True)
    (outside / "victim").write_text("theirs")
    before = photo(outside)
    landing, workspace = place.shown(), place.workspace
    (workspace / "src").chmod(0o700)  # its own, to change
    (workspace / "src/edited").unlink()
    (workspace / "src/edited").symlink_to(outside / "victim")
    (workspace / ".git").rename(workspace / "moved")
    (workspace / ".git").symlink_to(outside)
    (workspace / "src/pkg").rmdir()
    (workspace / "src/pkg").symlink_to(outside)
    (workspace / "shut").symlink_to(outside)
    (workspace / "top").mkdir()
    (workspace / "top/filled").write_text("in the way")
    (workspace / "link").mkdir()
    (workspace / "beside").write_text("mine")
    known = landing.land(place.settle)
    assert photo(outside) == before
    with scratch() as whole:
        unpack(Opened(SESSION), whole, LIMITS)
        made, wanted = photo(workspace), photo(whole / "workspace")
        assert {path: made.get(path) for path in wanted} == wanted
    assert (workspace / "beside").read_text() == "mine"
    assert "workspace/beside" not in known
    assert all(known[path] == fingerprint(os.lstat(place.base / path)) for path in known)


def test_what_git_obeys_comes_last(place: Place) -> None:
    """Claude Code runs git as it starts: what a workspace's configuration has it do, happens when all else is there.
    The folders' own order is any, so there are some that are called as what comes last elsewhere."""
    git = ("HEAD", "commondir", "config", "hooks", "index", "objects", "refs", "zz")
    folders = {"hooks", "objects", "refs"}
    names = ("config", "HEAD", "a", "hooks", "z")
    archive = staged(
        *ROOTS,
        item("workspace/.git", mode=DIR | 0o755),
        *(item(f"workspace/.git/{name}", mode=(DIR if name in folders else FILE) | 0o755) for name in git),
        *(item(f"workspace/{name}", mode=DIR | 0o755) for name in sorted(names)),
    )
    landing = place.shown(archive, paths=[f"workspace/.git/{name}" for name in ("HEAD", "objects", "refs")])
    with moved(place.workspace, place.workspace / ".git") as seen:
        landing.land(place.settle)
    there = [str(path.relative_to(place.workspace)) for path in seen]
    assert {*there[:2]} == {"a", "z"}
    assert there[2:5] == ["HEAD", "hooks", "config"]
    assert {*there[5:7]} == {".git/index", ".git/zz"}
    assert there[7:] == [f".git/{name}" for name in ("HEAD", "hooks", "commondir", "config")]


@contextmanager
def moved(*folders: Path) -> Iterator[list[Path]]:
    """What is moved into these folders meanwhile, in its order, as the system tells it."""
    libc, of, seen = ctypes.CDLL(None), dict[int, Path](), list[Path]()
    handle = libc.inotify_init()
    try:
        of.update({libc.inotify_add_watch(handle, os.fsencode(each), IN_MOVED_TO): each for each in folders})
        yield seen
        told = os.read(handle, 1 << 16)
        while told:
            watch, _, _, length = struct.unpack_from("iIII", told)
            seen.append(of[watch] / os.fsdecode(told[16 : 16 + length].rstrip(b"\0")))
            told = told[16 + length :]
    finally:
        os.close(handle)


@pytest.mark.parametrize("case", HOSTILE)
def test_the_hostile_corpus_is_refused_in_two_parts_too(case: str, place: Place) -> None:
    """Whichever part meets it; nothing is made outside, and nothing of the workspace but what was shown is in place."""
    archive, reason = HOSTILE[case]
    with pytest.raises(SessionDamaged) as refused:
        place.shown(archive, SMALL if case in TIGHT else LIMITS, ["workspace/x"]).land(place.settle)
    assert reason in refused.value.detail
    assert {path.name for path in place.workspace.iterdir()} <= {"x"}


def test_what_was_spoiled_shows_when_it_lands(place: Place) -> None:
    """Not before: what is shown is checked, and so is all the rest, but later."""
    content = b"content " * 100
    landing = place.shown(staged(*ROOTS, item("workspace/.git", content), lying(item("workspace/z", content), crc=1)))
    with pytest.raises(SessionDamaged, match="workspace/z: wrong size or CRC"):
        landing.land(place.settle)


def test_a_restore_can_be_given_up(place: Place) -> None:
    """Before the next member; nothing more is in place then."""
    asked = list[None]()

    def go_on() -> None:
        asked.append(None)
        if len(asked) > 10:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        place.shown().land(place.settle, go_on)
    assert not (place.workspace / "top").exists()
