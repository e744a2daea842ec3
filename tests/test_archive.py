"""The session's zip: what goes in comes out, every tool opens it, and no archive, however made, does harm."""

import io
import os
import random
import socket
import stat
import subprocess
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas.archive.directory import Directory
from lambdas.archive.format import SECOND, Ending, Limits, Member, central_record, end_record, local_header
from lambdas.archive.pack import Packed, pack, packing_seconds
from lambdas.archive.tree import Change, await_clock_tick
from lambdas.archive.unpack import Contents, unpack
from lambdas.errors import Internal, SessionDamaged, SessionTooLarge, SessionUnreadable, StorageUnavailable
from tests.support.archives import DIR, FILE, LINK, ROOTS, forged, item, lying, staged
from tests.support.hostile_archives import GOOD, HOSTILE, SMALL, TIGHT, X
from tests.support.opened import Opened
from tests.support.ordinary_user import unprivileged
from tests.support.snapshots import snapshot
from tests.support.trees import (
    BEFORE,
    RAW_NAMES,
    Photo,
    assert_same,
    assert_tools_open,
    dig,
    grow,
    open_up,
    photo,
    roots_of,
    scratch,
    tool,
    trees,
)
from tests.support.waiting import eventually

LIMITS = Limits(members=100_000, bytes=1 << 30, ratio=200)


@pytest.fixture
def base() -> Iterator[Path]:
    """Where a test packs from and unpacks to."""
    with scratch() as path:
        yield path


def packed(base: Path, limits: Limits = LIMITS, **more: Any) -> tuple[bytes, Packed]:
    """The archive of the scratch directory, and what `pack` says of it."""
    out = io.BytesIO()
    said = pack(roots_of(base), out, limits, **more)
    assert said.size == len(out.getvalue())
    return out.getvalue(), said


def restored(archive: bytes, base: Path, limits: Limits = LIMITS) -> Path:
    """A new directory that holds what the archive held."""
    into = Path(tempfile.mkdtemp(dir=base))
    unpack(Opened(archive), into, limits)
    return into


def refusal(archive: bytes, limits: Limits = LIMITS) -> str:
    """Why an archive is refused; nothing but the directory that it is unpacked into may have changed."""
    with scratch() as base:
        into = base / "workspace" / "into"
        into.mkdir()
        before = {path: entry for path, entry in photo(base).items() if path != b"/workspace/into"}
        with pytest.raises(SessionDamaged) as caught:
            unpack(Opened(archive), into, limits)
        after = {path: e for path, e in photo(base).items() if not path.startswith(b"/workspace/into")}
        assert after == before
        assert str(base) not in caught.value.said
        return caught.value.detail


def furnish(base: Path) -> None:
    """One of everything that a session can hold."""
    workspace = base / "workspace"
    (workspace / "bin").mkdir()
    (workspace / "bin/run.sh").write_text("#!/bin/sh\necho hello\n")
    (workspace / "bin/run.sh").chmod(0o755)
    (workspace / "secret.txt").write_text("mine")
    (workspace / "secret.txt").chmod(0o400)
    (workspace / "empty.txt").touch()
    (workspace / "nothing/at/all").mkdir(parents=True)
    (workspace / "größe 測試 🎉.txt").write_text("names" * 1000)
    (workspace / "back\\slash\nnewline").write_text("legal here")
    if RAW_NAMES:
        Path(os.fsdecode(os.fsencode(workspace) + b"/latin-\xe9\xff.txt")).write_text("raw")
        (workspace / "raw-link").symlink_to(os.fsdecode(b"latin-\xe9\xff.txt"))
    (workspace / "noise.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    (workspace / "long.txt").write_bytes(b"".join(b"%d\n" % number for number in range(300_000)))
    (workspace / "to-file").symlink_to("bin/run.sh")
    (workspace / "to-directory").symlink_to("nothing")
    (workspace / "dangling").symlink_to("./no//such/../file")
    (workspace / "python").symlink_to("/usr/bin/python3")
    (workspace / "loop").symlink_to("loop")
    os.link(workspace / "secret.txt", workspace / "twin.txt")
    (base / "claude/projects").mkdir()
    (base / "claude/projects/one.jsonl").write_text('{"type":"user"}\n')
    for path, seconds in {
        "old": -86_400 * 400,
        "first": 0,
        "late": 2**31 - 1,
        "dangling": 1234,
        "bin": 99,
    }.items():
        target = workspace / path
        if path in ("old", "first", "late"):
            target.write_text(path)
        os.utime(target, (seconds, seconds), follow_symlinks=False)
    (workspace / "nothing/at").chmod(0o555)
    (workspace / "nothing").chmod(0o500)
    os.utime(workspace, (777, 777))


def test_everything_survives(base: Path) -> None:
    """Modes, times, links, empty directories, names of any bytes come back; hard links as two files."""
    furnish(base)
    archive, said = packed(base)
    into = restored(archive, base)
    assert_same(base, into)
    twins = (into / "workspace/secret.txt", into / "workspace/twin.txt")
    assert {twin.stat().st_nlink for twin in twins} == {1}
    assert {change.change for change in said.changes} == {"added"}
    assert len(said.changes) == sum(not stat.S_ISDIR(mode) for mode, *_ in photo(base / "workspace").values()) + 1
    assert packed(into)[0] == archive


def test_every_tool_opens_it(base: Path) -> None:
    """Info-ZIP, 7-Zip, bsdtar and Python test the archive without complaint, whatever its names are."""
    furnish(base)
    path = base / "session.zip"
    path.write_bytes(packed(base)[0])
    assert_tools_open(path)


def test_info_zip_restores_links_modes_and_times(base: Path) -> None:
    """The promises are the format's, not our reader's: Info-ZIP restores modes, links and times too."""
    furnish(base)
    (base / "session.zip").write_bytes(packed(base)[0])
    subprocess.run(
        [tool("unzip")[0], "-q", base / "session.zip", "-d", base / "by-unzip"],
        check=True,
        env={"LC_ALL": "C.UTF-8"},
    )
    mine, theirs = photo(base / "workspace"), photo(base / "by-unzip/workspace")
    for path in (
        b"/bin/run.sh",
        b"/secret.txt",
        b"/first",
        b"/late",
        b"/nothing/at/all",
        "/größe 測試 🎉.txt".encode(),
    ):
        mode, nanoseconds, data = mine[path]
        assert theirs[path] == (mode, nanoseconds // SECOND * SECOND, data), path
    for path in (b"/to-file", b"/dangling", b"/python"):
        assert theirs[path][2] == mine[path][2], path


def test_what_is_newer_stays_newer(base: Path) -> None:
    """Files, links and directories that were made in one second are in their order again, for `make` and its like."""
    workspace = base / "workspace"
    (workspace / "object").touch()
    (workspace / "source").touch()
    (workspace / "link").symlink_to("source")
    (workspace / "folder").mkdir()
    for fraction, name in enumerate(("object", "source", "link", "folder")):
        times = 1_800_000_000 * SECOND + 250_000_000 + fraction
        os.utime(workspace / name, ns=(times, times), follow_symlinks=False)
    into = restored(packed(base)[0], base)
    assert_same(base, into)
    assert (into / "workspace/source").stat().st_mtime_ns > (into / "workspace/object").stat().st_mtime_ns


def test_a_session_of_before_there_were_fractions_opens(base: Path) -> None:
    """It is byte for byte what is written today of files with whole seconds."""
    into = restored(BEFORE, base)
    assert packed(into)[0] == BEFORE
    assert (into / "workspace/Makefile").stat().st_mtime_ns == 1_800_000_000 * SECOND
    assert (into / "workspace/run").read_text() == "#!/bin/sh\n"


def test_restores_without_privilege(base: Path) -> None:
    """Directories that their owner can't write to and links to nowhere come back for ordinary users."""
    furnish(base)
    archive, _ = packed(base)
    with unprivileged():
        into = restored(archive, base)
    assert_same(base, into)


def test_sockets_fifos_and_set_id_bits_are_left_out(base: Path) -> None:
    """What can't be carried does not hang and is not carried; set-id and sticky bits are dropped."""
    workspace = base / "workspace"
    os.mkfifo(workspace / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workspace / "socket"))
    (workspace / "suid").write_text("x")
    (workspace / "suid").chmod(0o4755)
    (workspace / "shared").mkdir()
    (workspace / "shared").chmod(0o3777)
    into = restored(packed(base)[0], base)
    assert {path: mode for path, (mode, *_) in photo(into / "workspace").items() if path} == {
        b"/suid": FILE | 0o755,
        b"/shared": DIR | 0o777,
    }


SHUT = {"closed": 0, "unlisted": 0o300, "impassable": 0o600, "named": 0o400}


@pytest.fixture
def shut(base: Path) -> Iterator[Path]:
    """A scratch directory of an ordinary user's, with files and directories that he may not read, list or pass."""
    with unprivileged():
        for name in ("workspace", "claude"):
            (base / "home" / name).mkdir(parents=True)
        for name, mode in SHUT.items():
            folder = base / "home/workspace" / name
            (folder / "below").mkdir(parents=True)
            (folder / "below/file").write_text(name)
            (folder / "below/file").chmod(0o200)
            (folder / "large").write_bytes(bytes(5 << 20))
            (folder / "large").chmod(0)
            (folder / "below").chmod(mode)
            folder.chmod(mode)
        yield base / "home"


def test_what_a_run_shut_against_itself_is_kept(shut: Path, base: Path) -> None:
    """Content and modes come back, and come back again."""
    limits = Limits(100, 1 << 30, 1100)
    archive, said = packed(shut, limits)
    modes = {member.path: member.mode for member in said.members}
    for name, mode in SHUT.items():
        assert modes[f"workspace/{name}"] == modes[f"workspace/{name}/below"] == DIR | mode
        assert modes[f"workspace/{name}/large"] == FILE
        assert modes[f"workspace/{name}/below/file"] == FILE | 0o200
    again = restored(archive, base, limits)
    assert packed(again, limits)[0] == archive
    open_up(again)
    (again / "workspace/closed/below/file").chmod(0o600)
    assert (again / "workspace/closed/below/file").read_text() == "closed"


def test_what_was_opened_to_be_packed_is_shut_again(shut: Path) -> None:
    """Wherever a checkpoint is given up: the run goes on, and finds its modes as it left them."""
    limits = Limits(100, 1 << 30, 1100)
    (shut / "workspace").chmod(0o300)
    archive, asked = packed(shut, limits)[0], 0

    def never() -> None:
        nonlocal asked
        asked += 1
        if asked == stop:
            raise Internal

    for stop in range(1, 60):
        asked = 0
        with suppress(Internal):
            pack(roots_of(shut), io.BytesIO(), limits, go_on=never)
        if asked < stop:
            break
    assert 20 < stop < 59
    assert packed(shut, limits)[0] == archive
    assert stat.S_IMODE((shut / "workspace").stat().st_mode) == 0o300


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root makes what another user may not read.")
def test_what_cannot_be_read_fails_by_name(base: Path) -> None:
    """Nothing is lost in silence: another user's file or directory stops the packing and is named."""
    for name in ("closed.txt", "shut"):
        workspace = base / "workspace" / name
        workspace.mkdir()
        (workspace / "closed.txt").touch() if name == "closed.txt" else (workspace / "shut").mkdir()
        (workspace / name).chmod(0)
        with unprivileged(), pytest.raises(SessionUnreadable, match=name):
            pack({"workspace": workspace, "claude": base / "claude"}, io.BytesIO(), LIMITS)


def test_a_transcript_can_be_read_whatever_a_run_did_to_it(base: Path) -> None:
    """Else no run could go on with the session; what the workspace holds is as it was."""
    items = [item(f"{root}/d", mode=DIR) for root in ("claude", "workspace")]
    items += [item(f"{root}/d/x", b"x", FILE) for root in ("claude", "workspace")]
    into = restored(staged(*ROOTS, *items), base)
    assert [stat.S_IMODE((into / "claude" / path).stat().st_mode) for path in ("d", "d/x")] == [0o500, 0o400]
    assert stat.S_IMODE((into / "workspace/d").stat().st_mode) == 0


def test_a_root_that_became_a_link_is_not_followed(base: Path) -> None:
    """A run that puts a link to / in its workspace's place packs nothing of it."""
    (base / "workspace").rmdir()
    (base / "workspace").symlink_to("/")
    with pytest.raises(Internal, match="workspace"):
        packed(base)
    with pytest.raises(Internal, match="workspace"):
        snapshot({"workspace": base / "workspace"})
    (base / "workspace").unlink()
    with pytest.raises(Internal, match="workspace"):
        packed(base)


def test_only_what_is_kept_is_packed(base: Path) -> None:
    """The predicate is asked once for every path, and what it refuses is not even entered."""
    (base / "claude/plugins/deep").mkdir(parents=True)
    (base / "claude/plugins/deep/junk").touch()
    (base / "claude/projects").mkdir()
    (base / "claude/projects/one.jsonl").write_text("{}")
    asked: list[str] = []

    def keep(path: str) -> bool:
        asked.append(path)
        return "plugins" not in path

    _, said = packed(base, keep={"claude": keep})
    assert sorted(asked) == ["claude/plugins", "claude/projects", "claude/projects/one.jsonl"]
    assert [member.path for member in said.members] == [
        "claude",
        "claude/projects",
        "claude/projects/one.jsonl",
        "workspace",
    ]


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(members=5, bytes=1 << 30, ratio=200), "more than 5 files"),
        (Limits(members=100, bytes=1_999_999, ratio=200), "more than 1,999,999 bytes"),
        (Limits(members=100, bytes=1 << 30, ratio=100), "100-fold"),
    ],
)
def test_a_session_that_outgrew_its_limits_fails_by_name(base: Path, limits: Limits, names: str) -> None:
    """Packing refuses, by the limit's name, what unpacking would: counts and sizes before it writes."""
    for number in range(5):
        (base / f"workspace/{number}").write_bytes(bytes(400_000 if number else 2_000_000))
    out = io.BytesIO()
    with pytest.raises(SessionTooLarge, match=names):
        pack({name: base / name for name in ("workspace", "claude")}, out, limits)
    assert not out.getvalue() or "fold" in names
    assert restored(packed(base, Limits(7, 3_600_000, 1100))[0], base, Limits(7, 3_600_000, 1100))


def test_a_path_too_long_to_restore_is_not_packed(base: Path) -> None:
    """A tree nested deeper than any path reaches is refused by name, not by a recursion or a system error."""
    dig(base / "workspace", 40)
    with pytest.raises(SessionTooLarge, match="path of more than 3,000 bytes"):
        packed(base)
    with pytest.raises(SessionTooLarge):
        snapshot({"workspace": base / "workspace"})


def test_changes_are_seen_without_reading(base: Path) -> None:
    """Added, rewritten, removed, re-moded and re-linked files are found, even if size and mtime stay."""
    workspace = base / "workspace"
    for name in ("same", "rewritten", "removed", "mode", "kind"):
        (workspace / name).write_text(name)
    (workspace / "link").symlink_to("same")
    before = snapshot(roots_of(base))
    assert packed(base, since=before)[1].changes == []
    times = (workspace / "rewritten").stat()
    await_clock_tick(before, base)
    (workspace / "rewritten").write_text("REWRITTEN")
    os.utime(workspace / "rewritten", ns=(times.st_atime_ns, times.st_mtime_ns))
    (workspace / "removed").unlink()
    (workspace / "mode").chmod(0o755)
    (workspace / "kind").unlink()
    (workspace / "kind").symlink_to("same")
    (workspace / "link").unlink()
    (workspace / "link").symlink_to("mode")
    (workspace / "new").mkdir()
    (workspace / "new/file").write_text("12")
    assert packed(base, since=before)[1].changes == [
        Change("workspace/kind", "modified", 4),
        Change("workspace/link", "modified", 4),
        Change("workspace/mode", "modified", 4),
        Change("workspace/new/file", "added", 2),
        Change("workspace/removed", "removed", 0),
        Change("workspace/rewritten", "modified", 9),
    ]


def test_how_long_packing_will_take_is_told_while_the_run_goes_on(base: Path) -> None:
    """By what is not as it was, however it is changing; where looking takes longer, that does too."""
    workspace = base / "workspace"
    (workspace / "same").mkdir()
    for number in range(1000):
        (workspace / f"same/{number}").touch()
    before = snapshot(roots_of(base))
    await_clock_tick(before, base)

    def seconds(took: float = 0.0, **keep: Any) -> float:
        return packing_seconds(roots_of(base), keep, before, iter([0.0, took]).__next__)

    assert seconds() == 0.0
    (workspace / "same/1").write_bytes(bytes(30_000_000))
    (workspace / "same/2").chmod(0o755)
    (workspace / "same/3").unlink()
    assert 0.5 < seconds() < 0.51
    for number in range(1000):
        (workspace / str(number)).touch()
    many = seconds()
    assert 0.6 < many < 0.65
    assert seconds(took=0.01) == many
    assert many < seconds(took=0.03) < seconds(took=60.0) == 3 * many
    assert seconds(workspace=lambda path: path != "workspace/same") < 0.2
    (workspace / "loop").symlink_to("/")
    (workspace / "same").rename(base / "away")
    assert seconds() < 0.2
    workspace.rename(base / "elsewhere")
    workspace.symlink_to(base / "away")
    assert seconds() == 0


def test_five_thousand_files_over_two_turns(base: Path) -> None:
    """A 60 MB workspace of 5,000 files with modes and links is identical after two turns."""
    noise, workspace = random.Random(2), base / "workspace"
    for number in range(5000):
        directory = workspace / f"package-{number // 50}"
        directory.mkdir(exist_ok=True)
        path = directory / f"module-{number}.js"
        path.write_bytes(noise.randbytes(4000) * 3)
        path.chmod(0o755 if number % 7 == 0 else 0o644)
        if number % 50 == 0:
            (directory / "index.js").symlink_to(path.name)
    first = restored(packed(base)[0], base)
    assert_same(base, first)
    (first / "workspace/package-0/module-1.js").write_text("changed")
    (first / "workspace/package-1/module-51.js").unlink()
    second = restored(packed(first)[0], base)
    assert_same(first, second)


def test_memory_does_not_grow_with_a_file(base: Path) -> None:
    """Packing and unpacking 100 MB in one file takes a few MiB."""
    with (base / "workspace/large").open("wb") as file:
        file.truncate(100 << 20)
    (base / "into").mkdir()
    limits = Limits(10, 1 << 30, 1100)
    tracemalloc.start()
    with (base / "session.zip").open("w+b") as archive:
        pack({name: base / name for name in ("workspace", "claude")}, archive, limits)
        unpack(Opened(archive), base / "into", limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (base / "into/workspace/large").stat().st_size == 100 << 20
    assert peak < 16 << 20


def test_offsets_beyond_four_gibibytes(base: Path) -> None:
    """Beyond 4 GiB the archive is ZIP64, and still opens everywhere; bytes of no member are passed over."""
    path, members = base / "session.zip", []
    with path.open("w+b") as archive:
        for member, data in (*ROOTS, X):
            if data:
                archive.seek(5 << 30)
            members.append(member._replace(offset=archive.tell()))
            archive.write(local_header(members[-1]) + data)
        records = b"".join(map(central_record, members))
        end = Ending(len(members), archive.tell(), len(records), zlib.crc32(records))
        archive.write(records + end_record(end))
        (base / "into").mkdir()
        assert list(Contents(Directory.of(Opened(archive)), LIMITS)) == [(each, local_header(each)) for each in members]
        unpack(Opened(archive), base / "into", LIMITS)
    assert (base / "into/workspace/x").read_bytes() == b"content " * 100
    assert_tools_open(path)


def test_more_than_65535_members(base: Path) -> None:
    """More members than 16 bits count need ZIP64, and get it."""
    members = [Member("workspace", DIR | 0o755, 0), Member("claude", DIR | 0o755, 0)]
    members += [Member(f"workspace/{number}", FILE | 0o644, number) for number in range(70_000)]
    (base / "session.zip").write_bytes(forged(*((member, b"") for member in members)))
    with (base / "session.zip").open("rb") as archive:
        assert len(list(Contents(Directory.of(Opened(archive)), LIMITS))) == 70_002
    assert_tools_open(base / "session.zip")


def test_members_of_more_than_four_gibibytes() -> None:
    """Sizes and offsets of more than 32 bits are written to the ZIP64 field and read back."""
    large = Member("workspace/large", FILE | 0o600, 1, 6 << 30, 5 << 30, 7, 9 << 30)
    near = Member("workspace/near", FILE | 0o600, SECOND, (1 << 32) - 2, 4, 7, 1)
    far = Member("workspace/far", FILE | 0o600, SECOND, 3, 4, 7, 9 << 30)
    raw = b"".join(map(central_record, (far, large, near)))
    directory = Ending(3, 0, len(raw), zlib.crc32(raw))
    assert list(Directory(raw, directory).members()) == [far, large, near]
    assert len(local_header(large)) == large.data - large.offset == 30 + 15 + 20 + 9 + 8


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_it_does_not_matter_how_the_bytes_come(base: Path, piece: int) -> None:
    """Pieces of any length, members that cross them, and a link's target cut in two give the same tree."""
    (base / "into").mkdir()
    unpack(Opened(PLAIN, piece), base / "into", LIMITS)
    with scratch() as whole:
        (whole / "into").mkdir()
        unpack(Opened(PLAIN), whole / "into", LIMITS)
        assert photo(base / "into/workspace") == photo(whole / "into/workspace")


def test_many_members_over_many_requests(base: Path) -> None:
    """A workspace of more than one request's bytes, a large file among small ones, comes back from its parts."""
    noise = random.Random(4)
    for number in range(40):
        (base / f"workspace/{number:02}").write_bytes(noise.randbytes(11 << 20 if number == 20 else 300_000))
        (base / f"workspace/to-{number}").symlink_to(f"{number:02}")
    assert_same(base, restored(packed(base)[0], base))


def test_large_gaps_are_not_read(base: Path) -> None:
    """Bytes that replaced members left are passed over where they are many, and come along where they are few."""
    few, many = b"few" * 1000, bytes(5 << 20)
    y = (X[0]._replace(path="workspace/y"), X[1])
    z = (X[0]._replace(path="workspace/z"), X[1])
    out, members = bytearray(), []
    for (member, data), gap in ((ROOTS[0], b""), (ROOTS[1], b""), (X, many), (y, few), (z, b"")):
        members.append(member._replace(offset=len(out)))
        out += local_header(members[-1]) + data + gap
    records = b"".join(map(central_record, members))
    end = end_record(Ending(len(members), len(out), len(records), zlib.crc32(records)))

    class Counted(Opened):
        asked = 0

        def read(self, start: int, end: int) -> Iterator[bytes]:
            self.asked += end - start
            return super().read(start, end)

    archive = Counted(bytes(out + records + end))
    (base / "into").mkdir()
    unpack(archive, base / "into", LIMITS)
    assert {(base / f"into/workspace/{name}").read_bytes() for name in "xyz"} == {b"content " * 100}
    assert len(few) < archive.asked < len(few) + 2000


def test_a_file_is_made_as_soon_as_its_bytes_have_come(base: Path) -> None:
    """The rest of what was asked for with them may still be on its way."""
    (base / "into").mkdir()
    made = list[bool]()

    class Slow(Opened):
        def read(self, start: int, end: int) -> Iterator[bytes]:
            for number, piece in enumerate(super().read(start, end)):
                if start == 0 and number == 1:  # the first held all of the small file
                    made.append(eventually((base / "into/workspace/x").is_file))
                yield piece

    noise = random.Random(7).randbytes(300_000)
    unpack(Slow(forged(*ROOTS, X, item("workspace/y", noise))), base / "into", LIMITS)
    assert made == [True]


def test_a_piece_of_nothing_is_not_the_end(base: Path) -> None:
    """A storage may give an empty piece at any time."""

    class Stuttering(Opened):
        def read(self, start: int, end: int) -> Iterator[bytes]:
            for piece in super().read(start, end):
                yield b""
                yield piece

    (base / "into").mkdir()
    unpack(Stuttering(forged(*ROOTS, X)), base / "into", LIMITS)
    assert (base / "into/workspace/x").stat().st_size == X[0].size


def test_what_fails_on_its_way_fails_the_restore(base: Path) -> None:
    """A storage that gives up in the middle of a request is not taken for the end of its bytes."""

    class Failing(Opened):
        def read(self, start: int, end: int) -> Iterator[bytes]:
            yield from islice(super().read(start, end), 2)
            if end - start > 200_000:
                raise StorageUnavailable(detail="gone")

    (base / "into").mkdir()
    noise = random.Random(7).randbytes(300_000)
    with pytest.raises(StorageUnavailable, match="gone"):
        unpack(Failing(forged(*ROOTS, X, item("workspace/y", noise))), base / "into", LIMITS)


@pytest.mark.parametrize("at", [0, 200, 399])
def test_damage_in_the_middle_stops_all_of_it(base: Path, at: int) -> None:
    """One bad member among 48 MB, on whichever connection it comes, refuses the session, and makes no link."""
    content = random.Random(6).randbytes(120_000)
    items = [item(f"workspace/{number}", content) for number in range(400)]
    items[at] = lying(items[at], crc=1)
    link = item("workspace/link", b"/", LINK | 0o777)
    assert "wrong size or CRC" in refusal(forged(*ROOTS, link, *items, X))
    (base / "into").mkdir()
    with pytest.raises(SessionDamaged, match=f"workspace/{at}:"):
        unpack(Opened(forged(*ROOTS, link, *items, X)), base / "into", LIMITS)
    assert not (base / "into/workspace/link").is_symlink()


# --- hostile archives ---


def test_the_forger_can_be_honest(base: Path) -> None:
    """What the hostile cases spoil is an archive that opens."""
    into = restored(GOOD, base)
    assert (into / "workspace/x").read_bytes() == b"content " * 100


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(case: str) -> None:
    """Every trick gets its own reason, and nothing outside of the directory is touched."""
    archive, reason = HOSTILE[case]
    assert reason in refusal(archive, SMALL if case in TIGHT else LIMITS)


def test_a_link_is_made_after_everything_that_could_go_through_it(base: Path) -> None:
    """Where names are folded a link could stand for a directory: while files are made there is none."""
    outside = base / "outside"
    outside.mkdir()
    link = item("workspace/L", os.fsencode(outside), LINK | 0o777)
    archive = forged(*ROOTS, link, item("workspace/l", mode=DIR | 0o755), item("workspace/l/x", b"x"))
    into = base / "into"
    into.mkdir()
    with suppress(SessionDamaged):  # where L and l are one name, the link comes too late
        unpack(Opened(archive), into, LIMITS)
    assert (into / "workspace/l/x").read_text() == "x"
    assert list(outside.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root gives files away.")
def test_what_is_restored_is_its_owners(base: Path) -> None:
    """Files, directories and links; and the fingerprints are those of a snapshot taken afterwards."""
    link = item("workspace/link", b"/etc/passwd", stat.S_IFLNK | 0o777)
    archive = forged(*ROOTS, item("workspace/d", mode=stat.S_IFDIR | 0o755), item("workspace/d/f", b"x"), link)
    made = unpack(Opened(archive), base, LIMITS, owner=12345)
    assert made == snapshot(roots_of(base))
    assert {(base / path).lstat().st_uid for path in made} == {12345}
    assert len(made) == 5


def test_unpacks_only_into_empty_directories(base: Path) -> None:
    """The promise about links needs directories in which none can be yet."""
    (base / "claude/link").symlink_to("/")
    with pytest.raises(ValueError, match="not empty"):
        unpack(Opened(GOOD), base, LIMITS)


# --- properties ---

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(trees, trees)
def test_any_tree_survives(workspace: dict[bytes, Any], claude: dict[bytes, Any]) -> None:
    """Whatever tree a run leaves, the next run gets."""
    with scratch() as base:
        grow(base / "workspace", workspace)
        grow(base / "claude", claude)
        archive, said = packed(base)
        index = Directory.of(Opened(archive))
        assert [member for member, _ in Contents(index, LIMITS)] == said.members
        assert len(archive) - index.at == said.session_directory
        assert_same(base, restored(archive, base))


PLAIN = forged(
    *ROOTS,
    X,
    item("workspace/d", mode=DIR | 0o500),
    item("workspace/d/ü", b"more content " * 30),
    item("workspace/l", b"../x", LINK | 0o777),
    item("claude/empty"),
)


def outcome(archive: bytes) -> Photo | None:
    """What an archive unpacks to, None if it is refused; all else is as it was."""
    with scratch() as base:
        into = base / "workspace"
        before = photo(base / "claude")
        tracemalloc.start()
        try:
            unpack(Opened(archive), into, Limits(50, 1 << 20, 200))
        except SessionDamaged:
            return None
        finally:
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
            tracemalloc.stop()
            assert photo(base / "claude") == before
            assert sorted(path.name for path in base.iterdir()) == ["claude", "workspace"]
            assert {path.name for path in into.iterdir()} <= {"workspace", "claude"}
        return photo(into / "workspace") | photo(into / "claude")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The plain archive with bytes overwritten, cut out, put in, or moved."""
    raw = PLAIN
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(b""), st.just(raw[start:end])))
        kind = draw(st.sampled_from(["overwrite", "replace", "insert"]))
        raw = raw[:start] + piece + raw[{"overwrite": start + len(piece), "replace": end, "insert": start}[kind] :]
    return raw


@settings(QUICK, max_examples=400)
@given(damaged())
def test_damage_is_noticed(archive: bytes) -> None:
    """A damaged archive is refused or unpacks to the very same tree."""
    whole = outcome(PLAIN)
    assert whole
    assert outcome(archive) in (None, whole)


@settings(QUICK, max_examples=300)
@given(st.integers(0, 6), st.integers(0, 60), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_forged_directory_does_no_harm(which: int, at: int, piece: bytes, both: bool) -> None:
    """Whoever changes the directory and its checksum gets nothing written outside."""
    index = Directory.of(Opened(PLAIN))
    members = list(index.members())
    records = [central_record(member) for member in members]
    records[which] = records[which][:at] + piece + records[which][at + len(piece) :]
    body, raw = bytearray(PLAIN[: index.at]), b"".join(records)
    if both and at >= 46:
        name = members[which].offset + 30 + at - 46
        body[name : name + len(piece)] = piece
    outcome(bytes(body) + raw + end_record(Ending(len(members), len(body), len(raw), zlib.crc32(raw))))
