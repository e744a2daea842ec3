"""A turn's commit inside S3: the next version is the tree that a run left, and whatever it staged, it does no harm."""

import io
import os
import random
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas.archive.directory import NOTHING, Directory
from lambdas.archive.format import RATIO, Ending, Limits, Member, central_record, whiteout
from lambdas.archive.merge import Merged, Placed
from lambdas.archive.overlay import Overlay
from lambdas.archive.pack import pack
from lambdas.archive.tree import Change, Fingerprint, await_clock_tick
from lambdas.archive.unpack import unpack
from lambdas.bucket import versions
from lambdas.bucket.commit import Commit, Rules, compact
from lambdas.bucket.objects import Bucket
from lambdas.bucket.parts import Source
from lambdas.bucket.relocate import GAP, PART, length, relocate
from lambdas.contract import Base
from lambdas.errors import AgentCrashed, SessionDamaged, SessionMoved, SessionTooLarge, WorkflowError
from tests.support.archives import DIR, FILE, LINK, ROOTS, forged, item, lying, session, staged
from tests.support.buckets import a_bucket
from tests.support.commits import (
    LIMITS,
    MIB,
    RULES,
    a_claim,
    archive_of,
    commit_of,
    files_of,
    gone,
    metadata,
    stage,
)
from tests.support.opened import Opened
from tests.support.played_workflow import Killed, commit
from tests.support.snapshots import snapshot
from tests.support.trees import BEFORE, assert_same, assert_tools_open, grow, names, open_up, roots_of, scratch, trees

CALLS = (
    "get_object",
    "put_object",
    "create_multipart_upload",
    "upload_part",
    "upload_part_copy",
    "complete_multipart_upload",
    "abort_multipart_upload",
)


def dead_bytes(archive: bytes) -> int:
    index = Directory.of(Opened(archive))
    return index.at - sum(member.end - member.offset for member in index.members())


def uploads(bucket: Bucket) -> list[Any]:
    return list(bucket.s3.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))


def parts(bucket: Bucket) -> list[Any]:
    """What is paid for of uploads that were not completed; one whose beginning was never heard of has none."""
    listed = [
        bucket.s3.list_parts(Bucket=bucket.name, Key=each["Key"], UploadId=each["UploadId"]) for each in uploads(bucket)
    ]
    return [part for each in listed for part in each.get("Parts", [])]


def versions_of(bucket: Bucket) -> list[Any]:
    return list(bucket.s3.list_object_versions(Bucket=bucket.name, Prefix="session-").get("Versions", []))


class Turns:
    """A session in the bucket, and its tree on this machine, turn by turn."""

    def __init__(self, bucket: Bucket, tree: Path, rules: Rules = RULES) -> None:
        self.bucket = bucket
        self.tree = tree
        self.rules = rules
        self.base: Base | None = None
        self.known: dict[str, Fingerprint] = {}
        self.sent = 0

    def commit(self) -> bytes:
        """One turn: what changed is staged and committed. The session then is the tree; its archive."""
        out = io.BytesIO()
        pack(roots_of(self.tree), out, LIMITS, since=self.known)
        self.sent = len(out.getvalue())
        self.base = commit_of(self.bucket, self.base, out.getvalue(), self.rules)
        self.known = snapshot(roots_of(self.tree))
        await_clock_tick(self.known, self.tree)
        archive = archive_of(self.bucket)
        into = Path(tempfile.mkdtemp(dir=self.tree))
        made = unpack(Opened(archive), into, LIMITS)
        assert made == snapshot(roots_of(into))
        assert_same(self.tree, into)
        open_up(into)
        shutil.rmtree(into)
        told = self.bucket.s3.head_object(Bucket=self.bucket.name, Key="session-1.zip")["Metadata"]
        assert int(told["file-count"]) == sum(not stat.S_ISDIR(each.mode) for each in made.values())
        assert uploads(self.bucket) == []
        return archive


# --- whatever changes ---

Act = tuple[str, int, Any]
acts: st.SearchStrategy[Act] = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 99), st.binary(max_size=300)),
    st.tuples(st.just("remove"), st.integers(0, 99), st.none()),
    st.tuples(st.just("move"), st.integers(0, 99), names),
    st.tuples(st.just("mode"), st.integers(0, 99), st.sampled_from([0o755, 0o700, 0o777])),
    st.tuples(st.just("link"), st.integers(0, 99), names),
    st.tuples(st.just("plant"), st.integers(0, 99), st.tuples(names, trees)),
)


def act(root: Path, what: str, which: int, how: Any) -> None:
    """One change somewhere in a tree; where it cannot be done, none."""
    paths = [root, *sorted(root.rglob("*"), key=os.fsencode)]
    path = paths[which % len(paths)]
    folder = path if path.is_dir() and not path.is_symlink() else path.parent
    with suppress(OSError):
        if what == "write":
            path.write_bytes(how)
        elif what == "mode" and not path.is_symlink():
            path.chmod(how)
        elif what == "move" and path != root:
            path.rename(folder.parent / os.fsdecode(how))
        elif what == "plant":
            grow(folder, {how[0]: how[1]})
        elif what in ("remove", "link") and path != root:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if what == "link":
                path.symlink_to(os.fsdecode(how))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees, st.lists(st.lists(acts, min_size=1, max_size=5), min_size=1, max_size=6))
def test_any_turn_is_committed_as_the_tree_that_it_left(s3: Any, tree: Any, turns: list[list[Act]]) -> None:
    """After each of many turns, the archive is the tree, and four tools open it."""
    with scratch() as base:
        grow(base / "workspace", tree)
        session = Turns(a_bucket(s3), base)
        session.commit()
        for changes in turns:
            for change in changes:
                act(base / "workspace", *change)
            (base / "session.zip").write_bytes(session.commit())
            assert_tools_open(base / "session.zip")
            (base / "session.zip").unlink()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees, st.lists(acts, max_size=6), st.lists(acts, max_size=6), st.booleans())
def test_a_turn_goes_on_from_a_checkpoint(s3: Any, tree: Any, before: list[Act], after: list[Act], new: bool) -> None:
    """What is restored is the tree of that instant, and what is staged then is all of the turn's changes."""
    with scratch() as base, scratch() as again:
        grow(base / "workspace", {} if new else tree)
        session = Turns(a_bucket(s3), base)
        version = b"" if new else session.commit()
        for change in before:
            act(base / "workspace", *change)
        checkpoint = io.BytesIO()
        pack(roots_of(base), checkpoint, LIMITS, since=session.known)
        resumed = Overlay(Opened(version) if version else None, Opened(checkpoint), LIMITS)
        made = unpack(resumed, again, LIMITS)
        assert_same(base, again)
        session.tree, session.known = again, resumed.known(made)
        await_clock_tick(session.known, again)
        for change in after:
            act(again / "workspace", *change)
        session.commit()


def test_a_session_of_before_there_were_fractions_is_gone_on_with(bucket: Bucket) -> None:
    """What did not change keeps its record, beside what has a time between two seconds now."""
    with scratch() as base:
        session = Turns(bucket, base)
        session.base = commit_of(bucket, None, BEFORE)
        session.known = unpack(Opened(archive_of(bucket)), base, LIMITS)
        await_clock_tick(session.known, base)
        (base / "workspace/Makefile").write_text("a: a.c b.c\n")
        os.utime(base / "workspace/Makefile", ns=(1, 1_800_000_000_000_000_007))
        index = Directory.of(Opened(session.commit()))
        assert [member.mtime % 1_000_000_000 for member in index.members()] == [0, 0, 7, 0, 0]


def test_a_hostile_checkpoint_is_refused() -> None:
    """It is a stranger's, as what is staged is."""
    for archive, _ in HOSTILE.values():
        with pytest.raises(SessionDamaged):
            Overlay(Opened(LAST), Opened(archive), LIMITS)


def test_what_a_resumed_run_changed_is_told_of_the_whole_turn(bucket: Bucket) -> None:
    """A file of the checkpoint is added, one that it replaced modified, one that it removed removed."""
    with scratch() as base, scratch() as again:
        for name in ("kept", "changed", "removed"):
            (base / "workspace" / name).write_text(name)
        (base / "workspace/folder").mkdir()
        session = Turns(bucket, base)
        version = session.commit()
        (base / "workspace/changed").write_text("other")
        (base / "workspace/removed").unlink()
        (base / "workspace/folder").rmdir()
        (base / "workspace/added").write_text("new")
        checkpoint = io.BytesIO()
        pack(roots_of(base), checkpoint, LIMITS, since=session.known)
        resumed = Overlay(Opened(version), Opened(checkpoint), LIMITS)
        known = resumed.known(unpack(resumed, again, LIMITS))
        told = pack(roots_of(again), io.BytesIO(), LIMITS, since=known).changes
        assert told == [
            Change("workspace/added", "added", 3),
            Change("workspace/changed", "modified", 5),
            Change("workspace/removed", "removed", 0),
        ]


def test_a_large_session_over_many_turns(s3: Any) -> None:
    """Copied in parts, cut and compacted: the archive is the tree each time, and its dead bytes stay in bounds."""
    draw = random.Random(5)
    with scratch() as base:
        session = Turns(a_bucket(s3), base, replace(RULES, dead_share=0.3))
        for number in range(30):
            (base / f"workspace/{number}").write_bytes(draw.randbytes(draw.choice([1000, 200_000, 1_500_000])))
        session.commit()
        for turn in range(8):
            for number in draw.sample(range(30), draw.choice([1, 3, 12])):
                path = base / f"workspace/{number}"
                path.unlink(missing_ok=True)
                if draw.random() < 0.9:
                    path.write_bytes(draw.randbytes(draw.choice([1000, 200_000, 1_500_000, 6_000_000])))
            (base / "claude/log").write_bytes(draw.randbytes(20_000 * turn))
            archive = session.commit()
            assert dead_bytes(archive) <= 0.3 * len(archive)
        (base / "session.zip").write_bytes(archive)
        assert_tools_open(base / "session.zip")


def test_ten_thousand_files_are_gone(bucket: Bucket) -> None:
    """Wherever they lay: one by one, and as a directory that stands for all in it."""
    many = [item(f"workspace/d/{number:06}") for number in range(6000)]
    beside = [item(f"workspace/f{number:06}") for number in range(4000)]
    base = commit_of(bucket, None, staged(*ROOTS, item("workspace/d", mode=DIR | 0o755), *many, *beside))
    gone = [(whiteout(member.path), b"") for member, _ in beside]
    commit_of(bucket, base, staged((whiteout("workspace/d"), b""), *gone, item("workspace/x", b"x")))
    assert files_of(archive_of(bucket)) == {"x": b"x"}


def test_a_fork_is_copied_from_another_sessions_version(bucket: Bucket) -> None:
    """The pinned one, even where that session has gone on; the origin stays as it is."""
    noise = random.Random(1).randbytes(12 * MIB)
    base = commit_of(bucket, None, staged(*ROOTS, item("workspace/noise", noise), item("workspace/n", b"1")))
    commit_of(bucket, base, staged(item("workspace/n", b"2")))
    commit_of(bucket, base, staged(item("workspace/n", b"3")), session="session-2")
    assert files_of(archive_of(bucket)) == {"noise": noise, "n": b"2"}
    assert files_of(archive_of(bucket, "session-2")) == {"noise": noise, "n": b"3"}


def test_a_turn_sends_what_it_changed(bucket: Bucket) -> None:
    """Of a session of 12 MiB, a small turn reads and writes some KiB."""
    noise = random.Random(1).randbytes(12 * MIB)
    base = commit_of(bucket, None, staged(*ROOTS, item("workspace/noise", noise)))
    told = Told(bucket.s3, bucket.name)
    commit_of(Bucket(told, bucket.name), base, staged(item("workspace/n", b"2")))
    assert files_of(archive_of(bucket)) == {"noise": noise, "n": b"2"}
    assert told.uploaded < 2000
    assert told.calls.count("upload_part_copy") == 1


@cache
def large() -> tuple[bytes, dict[str, bytes]]:
    """An archive and its files."""
    draw = random.Random(7)
    files = {"a": draw.randbytes(20 * MIB), "b": draw.randbytes(30 * MIB)}
    return session(**files), files


def a_large_one(bucket: Bucket) -> tuple[Base, dict[str, bytes]]:
    """A session of which parts are copied before it is known what a turn changed."""
    archive, files = large()
    return commit_of(bucket, None, archive), files


def test_what_was_copied_ahead_may_be_gone(bucket: Bucket) -> None:
    """A session's beginning is copied at once; where it does not stay, it is not in the next version."""
    base, files = a_large_one(bucket)
    claim, told = a_claim(base), Told(bucket.s3, bucket.name)
    result = stage(bucket, claim, staged(gone("workspace/b"), item("workspace/n", b"2")))
    commit(Bucket(told, bucket.name), claim, result, metadata(claim), RULES)
    assert told.calls.count("upload_part_copy") == 2 + 1
    archive = archive_of(bucket)
    assert files_of(archive) == {"a": files["a"], "n": b"2"}
    assert len(archive) < 21 * MIB
    assert uploads(bucket) == []


def test_what_was_copied_ahead_is_copied_once(bucket: Bucket) -> None:
    """Where it stays, only the rest is copied when the changes are known."""
    base, files = a_large_one(bucket)
    told = Told(bucket.s3, bucket.name)
    commit_of(Bucket(told, bucket.name), base, staged(item("workspace/n", b"2")))
    assert files_of(archive_of(bucket)) == files | {"n": b"2"}
    assert told.calls.count("upload_part_copy") == 3
    assert told.uploaded < 2000


class Told:
    """An S3 client that keeps which calls were made, and how many bytes were sent."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3 = s3
        self.bucket = bucket
        self.calls: list[str] = []
        self.uploaded = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._s3, name)
        if name not in CALLS:
            return method

        def told(**arguments: Any) -> Any:
            self.calls.append(name)
            self.uploaded += len(arguments.get("Body", b""))
            return method(**arguments)

        return told


# --- whatever is staged ---

LAST = staged(
    *ROOTS,
    item("workspace/a", b"a"),
    item("workspace/d", mode=DIR | 0o755),
    item("workspace/d/x", b"x"),
    item("workspace/l", b"/tmp", LINK | 0o777),
)
Y = item("workspace/y", b"content " * 100)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "twice": (staged(Y, Y), "it is there twice"),
    "file and directory of one name": (staged(Y, item("workspace/y", mode=DIR | 0o755)), "it is there twice"),
    "here and gone": (staged(item("workspace/a", b"b"), gone("workspace/a")), "it is there twice"),
    "out of order": (forged(Y, item("workspace/x", b"x"), ordered=False), "out of order"),
    "below a link": (staged(item("workspace/l/x", b"x")), "not a directory of the archive"),
    "below a file": (staged(item("workspace/a/x", b"x")), "not a directory of the archive"),
    "below nothing": (staged(item("workspace/no/x", b"x")), "not a directory of the archive"),
    "below what is gone": (staged(gone("workspace/d"), item("workspace/d/y", b"y")), "not a directory of the archive"),
    "below what became a link": (
        staged(item("workspace/d", b"/tmp", LINK | 0o777), item("workspace/d/y", b"y")),
        "not a directory of the archive",
    ),
    "gone below what is gone": (staged(gone("workspace/d"), gone("workspace/d/x")), "not a directory of the archive"),
    "gone, and never there": (staged(gone("workspace/no")), "never was there"),
    "gone with content": (staged(gone("workspace/a", size=5)), "yet is there"),
    "gone at a place": (staged(gone("workspace/a", offset=5)), "yet is there"),
    "a root gone": (staged(gone("workspace")), "it is not a directory"),
    "a root a link": (staged(item("workspace", b"/tmp", LINK | 0o777)), "it is not a directory"),
    "another root": (staged(item("etc", mode=DIR | 0o755)), "outside of the session's two"),
    "parent path": (staged(item("workspace/../x", b"x")), "name is not valid"),
    "NUL in a name": (staged(item("workspace/a\0b", b"x")), "name is not valid"),
    "device": (staged(item("workspace/x", mode=stat.S_IFBLK | 0o644)), "special file"),
    "device with rights": (staged(item("workspace/x", mode=stat.S_IFCHR | 0o644)), "special file"),
    "set user id": (staged(item("workspace/x", b"x", FILE | 0o4755)), "user or group id"),
    "bytes of another member": (forged(item("workspace/x", b"x"), Y, at=0), "behind the member before it"),
    "bytes of the session": (forged(Y, at=1 << 20), "behind the member before it"),
    "bytes of no member": (forged(Y, lying(item("workspace/z", b"z"), compressed=1)), "between the last member"),
    "bomb": (staged(lying(Y, size=1 << 40)), "inflates more than"),
    "lying end": (forged(Y, directory=lambda end: end._replace(members=2)), "another number"),
    "lying checksum": (forged(Y, directory=lambda end: end._replace(crc=1)), "not what the end record says"),
    "cut": (staged(Y)[:-1], "it is cut"),
    "one byte": (b"x", "it is cut"),
    "no zip": (b"hello " * 100, "it is cut"),
    "nothing": (b"", "it is cut"),
}


LIES: list[dict[str, Any]] = [
    {"session_files": 3},
    {"session_files": 5},
    {"session_directory": 0},
    {"session_directory": 1 << 40},
]


@pytest.mark.parametrize("lie", LIES)
def test_a_run_that_lies_about_its_session_is_refused(bucket: Bucket, lie: dict[str, Any]) -> None:
    """What it says would be in the version's metadata before anybody could count."""
    base = commit_of(bucket, None, LAST)
    with pytest.raises(AgentCrashed, match="it told of"):
        commit_of(bucket, base, staged(Y), **lie)
    assert archive_of(bucket) == LAST


def test_hostile_changes_of_a_large_session_leave_nothing_behind(bucket: Bucket) -> None:
    """What was copied before they were looked at is gone."""
    base, _ = a_large_one(bucket)
    with pytest.raises(AgentCrashed):
        commit_of(bucket, base, b"hello " * 100)
    assert (uploads(bucket), len(versions_of(bucket))) == ([], 1)


def test_what_was_begun_as_another_is_not_committed(bucket: Bucket) -> None:
    """S3 has its metadata since the first byte, and cannot be told others."""
    base, _ = a_large_one(bucket)
    claim = a_claim(base)
    result = stage(bucket, claim, staged(Y))
    with ThreadPoolExecutor(2) as pool, Commit(pool, bucket, claim, RULES) as begun:
        begun.begin(result.staged_bytes, metadata(claim) | {"turns": "7"})
        with pytest.raises(AgentCrashed) as caught:
            begun.make(result, metadata(claim))
    assert "not what RunClaude returned" in caught.value.detail
    assert (uploads(bucket), len(versions_of(bucket))) == ([], 1)


def test_changes_stay_what_they_were_when_they_were_looked_at(bucket: Bucket) -> None:
    """A run that puts others in their place while they are committed has no say in them any more."""
    first, other = random.Random(1).randbytes(MIB), random.Random(2).randbytes(MIB)
    bucket.s3.put_object(Bucket=bucket.name, Key="changes.zip", Body=first)
    source = Source(bucket, "changes.zip", 100)
    assert source.size == MIB
    bucket.s3.put_object(Bucket=bucket.name, Key="changes.zip", Body=other)
    assert b"".join(source.read(0, MIB)) == first


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_changes_are_refused(bucket: Bucket, case: str) -> None:
    """Every trick is the agent's failure, with its own reason for the operator; nothing is committed or left behind."""
    archive, reason = HOSTILE[case]
    base = commit_of(bucket, None, LAST)
    with pytest.raises(AgentCrashed) as caught:
        commit_of(bucket, base, archive)
    assert reason in caught.value.detail
    assert reason not in caught.value.said
    assert archive_of(bucket) == LAST
    assert (uploads(bucket), len(versions_of(bucket))) == ([], 1)


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(members=6, bytes=1 << 30, ratio=RATIO), "more than 6 files"),
        (Limits(members=100, bytes=700, ratio=RATIO), "more than 700 bytes"),
    ],
)
def test_a_session_outgrows_its_limits_as_a_whole(bucket: Bucket, limits: Limits, names: str) -> None:
    """What is staged may be within them: what counts is what comes of it."""
    base = commit_of(bucket, None, LAST)
    with pytest.raises(SessionTooLarge, match=names):
        commit_of(bucket, base, staged(Y), Rules(limits, 0.5))
    assert archive_of(bucket) == LAST


def test_changes_that_are_too_many_are_not_read(bucket: Bucket) -> None:
    """More than a whole session gone and another in its place is nothing that a run of ours stages."""
    base = commit_of(bucket, None, LAST)
    many = staged(*(item(f"workspace/{number}") for number in range(50)))
    with pytest.raises(AgentCrashed) as caught:
        commit_of(bucket, base, many, Rules(Limits(20, 1 << 30, RATIO), 0.5))
    assert "more than 40 files" in caught.value.detail
    assert archive_of(bucket) == LAST


# --- whenever it dies ---


class Faulty:
    """An S3 client whose `at`-th call fails, or kills its process, before or after it took effect."""

    def __init__(self, s3: Any, at: int, after: bool, killed: bool) -> None:
        self._s3 = s3
        self.at = at
        self.after = after
        self.killed = killed
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._s3, name)
        return (lambda **arguments: self._call(name, method, arguments)) if name in CALLS else method

    def _call(self, name: str, method: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        self.made.append(name)
        number = len(self.made)
        if (number == self.at and not self.after) or (self.killed and number > self.at):
            self._fail(name)
        done = method(**arguments)
        if number == self.at:
            if "Body" in done:
                done["Body"].close()  # nobody gets it
            self._fail(name)
        return done

    def _fail(self, name: str) -> None:
        if self.killed:
            raise Killed
        raise ClientError({"Error": {"Code": "InternalError"}}, name)


@pytest.mark.parametrize(("killed", "after"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_whatever_call_of_a_commit_fails(s3: Any, large: bool, killed: bool, after: bool) -> None:
    """The session is the old version or the new one; a failure leaves no parts; the commit, repeated, is done once. Who
    is killed before a call is killed after the one before it."""
    old = {"n": b"old"} | ({"noise": random.Random(1).randbytes(22 * MIB)} if large else {})
    new = old | {"n": b"new"}
    first = session(**old)
    at, calls = 0, 100
    while at < calls:
        at += 1
        bucket = a_bucket(s3)
        base = commit_of(bucket, None, first)
        claim = a_claim(base)
        done = stage(bucket, claim, staged(item("workspace/n", b"new")))
        faulty = Faulty(s3, at, after, killed)
        try:
            commit(Bucket(faulty, bucket.name), claim, done, metadata(claim), RULES)
        except (WorkflowError, Killed):
            assert killed or parts(bucket) == []
        else:
            calls = len(faulty.made)
        assert files_of(archive_of(bucket)) in (old, new), faulty.made
        commit(bucket, claim, done, metadata(claim), RULES)
        assert files_of(archive_of(bucket)) == new
        assert len(versions_of(bucket)) == 2
    assert calls == (7 if large else 3)


def test_of_two_large_turns_on_one_version_one_is_committed(bucket: Bucket) -> None:
    """The second is told that the session moved, and leaves no parts."""
    noise = random.Random(1).randbytes(9 * MIB)
    base = commit_of(bucket, None, staged(*ROOTS, item("workspace/noise", noise)))
    commit_of(bucket, base, staged(item("workspace/n", b"first")))
    with pytest.raises(SessionMoved):
        commit_of(bucket, base, staged(item("workspace/n", b"second")))
    assert files_of(archive_of(bucket))["n"] == b"first"
    assert uploads(bucket) == []


def test_a_pinned_version_that_is_gone_is_a_session_that_moved(bucket: Bucket) -> None:
    """A purge or the lifecycle removed it: nothing can be put on it any more."""
    base = commit_of(bucket, None, LAST)
    commit_of(bucket, base, staged(Y))
    bucket.s3.delete_object(Bucket=bucket.name, Key="session-1.zip", VersionId=base.version_id)
    with pytest.raises(SessionMoved):
        commit_of(bucket, base, staged(item("workspace/z", b"z")))


# --- dead bytes ---


def test_compacting_leaves_no_byte_of_what_is_gone(bucket: Bucket) -> None:
    """What was replaced is not in the object any more, and what is left is as it was."""
    draw = random.Random(3)
    secret, noise = draw.randbytes(3 * MIB), draw.randbytes(20 * MIB)
    base = commit_of(
        bucket, None, staged(*ROOTS, item("workspace/a", secret), item("workspace/b", noise), item("workspace/c", b"c"))
    )
    base = commit_of(bucket, base, staged(gone("workspace/a"), item("workspace/c", b"new")))
    assert dead_bytes(archive_of(bucket)) > 0
    head = bucket.s3.head_object(Bucket=bucket.name, Key="session-1.zip")
    assert compact(bucket, base, head["Metadata"]) > 0
    archive = archive_of(bucket)
    assert dead_bytes(archive) == 0
    assert files_of(archive) == {"b": noise, "c": b"new"}
    compacted = versions.newest_of(bucket, "session-1", "alice")
    assert compacted
    assert compact(bucket, compacted, head["Metadata"]) == 0
    assert len(versions_of(bucket)) == 3


runs = st.lists(st.tuples(st.integers(0, 12 * MIB), st.integers(1, 12 * MIB)), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(runs, st.integers(0, 9 * MIB), st.sampled_from([0.0, 0.2, 0.5]))
def test_a_relocation_takes_every_live_byte_once(pieces: list[tuple[int, int]], behind: int, share: float) -> None:
    """Parts are large enough for S3, nothing live is lost or there twice, and places do not overlap."""
    live, at = [], 0
    for gap, long in pieces:
        begin = at + gap
        live.append((begin, begin + long))
        at = begin + long
    live = [run for number, run in enumerate(live) if number == 0 or run[0] > live[number - 1][1]]
    chosen = relocate(live, at + behind, share)
    taken = sorted([*chosen.copied, *chosen.moved])
    assert all(length(run) >= PART for run in chosen.copied)
    assert all(first[1] <= second[0] for first, second in pairwise(taken))
    assert all(any(run[0] <= begin and end <= run[1] for run in taken) for begin, end in live)
    dead = sum(map(length, taken)) - sum(map(length, live))
    if not share or at + behind <= PART:
        assert dead == 0
    placed = chosen.placed(sum(map(length, chosen.copied)))
    ends = sorted((each.at, each.at + length(each.span)) for each in placed)
    assert all(first[1] == second[0] for first, second in pairwise(ends))


def test_dead_bytes_are_kept_below_their_share() -> None:
    """However the holes lie, a few commits later at most the share of an archive is dead."""
    live = [(number * 100_000, number * 100_000 + 20_000) for number in range(2000)]
    end = 200_000_000
    for _ in range(8):
        chosen = relocate(live, end, 0.5)
        taken = [*chosen.copied, *chosen.moved]
        assert sum(map(length, chosen.moved)) <= 66 * MIB
        end = sum(map(length, taken))
        live = moved(live, chosen.placed(sum(map(length, chosen.copied))))
    assert end - sum(map(length, live)) <= 0.5 * end
    assert sum(map(length, live)) == 2000 * 20_000


def moved(live: list[tuple[int, int]], placed: list[Placed]) -> list[tuple[int, int]]:
    """Where runs are after a relocation was carried out."""
    found = []
    for begin, end in live:
        run, at = next(each for each in placed if each.span[0] <= begin and end <= each.span[1])
        found.append((begin - run[0] + at, end - run[0] + at))
    return sorted(found)


def test_a_large_gap_costs_nothing() -> None:
    """Where both sides can be copied, what is between them is left out."""
    live = [(0, 6 * MIB), (9 * MIB, 20 * MIB), (20 * MIB + GAP // 2, 30 * MIB)]
    chosen = relocate(live, 30 * MIB, 0.5)
    assert chosen.copied == [(0, 6 * MIB), (9 * MIB, 30 * MIB)]
    assert chosen.moved == []


def test_members_beyond_four_gibibytes_are_moved() -> None:
    """Records of ZIP64 are written anew, with all numbers where they belong."""
    found = [
        Member("claude", DIR | 0o755, 1),
        Member("claude/a", FILE | 0o644, 1, 10, 5, 7, 100),
        Member("claude/b", FILE | 0o644, 1, 6 << 30, 5 << 30, 7, 1000),
        Member("claude/c", FILE | 0o644, 1, 10, 5, 7, 8 << 30),
        Member("workspace", DIR | 0o755, 1, 0, 0, 0, 9 << 30),
    ]
    raw = b"".join(map(central_record, found))
    base = Directory(raw, Ending(5, 10 << 30, len(raw), zlib.crc32(raw)))
    merged = Merged(base, NOTHING, [])
    assert merged.size == (6 << 30) + 20
    *records, _ = merged.directory([Placed((0, 7 << 30), 0), Placed((7 << 30, 10 << 30), 6 << 30)], 0, 9 << 30)
    raw = b"".join(records)
    again = Directory(raw, Ending(5, 9 << 30, len(raw), zlib.crc32(raw)))
    assert [again.member(number).offset for number in range(5)] == [0, 100, 1000, 7 << 30, 8 << 30]
    assert again.ends[2] == found[2].end
