"""What comes with a request: taken as ordinary tools wrote it, or refused by name, and nothing written outside."""

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from lambdas.agent import unpacker
from lambdas.agent.brought import Brought
from lambdas.agent.materials import Materials, put_in
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch
from lambdas.archive.format import Limits
from lambdas.archive.pack import pack
from lambdas.contract import Grant, RunResult
from lambdas.errors import MaterialsRefused, NotAsked
from lambdas.materials import PATH_BYTES
from lambdas.strict import Json
from tests.support.bundles import bomb, bundle_of
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.hostile_archives import corpus
from tests.support.http_servers import listening
from tests.support.running import run_claude_of, settings_of
from tests.support.waiting import eventually

ROOM = 10_000_000, 1000
"""Bytes, and files, links and folders."""
FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK
Entry = tuple[str, bytes, dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """A workspace, with what is not to be touched beside it."""

    base: Path

    @property
    def workspace(self) -> Path:
        return self.base / "workspace"

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    def refusal(self, archive: bytes, into: str = "", room: tuple[int, int] = ROOM) -> str | None:
        """Unpacks it without a wall; what it is refused for, or None."""
        spool = self.base / "spool"
        terms = unpacker.Terms(
            into=into, room=[*room], path_bytes=PATH_BYTES, workspace=str(self.workspace), spool=str(spool)
        )
        try:
            unpacker.unpack(io.BytesIO(archive), terms)
        except unpacker.Refused as refused:
            return str(refused)
        finally:
            spool.unlink(missing_ok=True)
        return None

    def untouched(self) -> bool:
        """Whether there is nothing but the workspace, nor what the corpus would write through its links."""
        beside = {path.name for path in self.base.iterdir()} == {"workspace", "outside"}
        return beside and not any(self.outside.iterdir()) and not (Path("/tmp/x").exists() or Path("/tmp/d").exists())


def a_place(base: Path) -> Place:
    for name in ("workspace", "outside"):
        (base / name).mkdir(parents=True)
    return Place(base)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return a_place(tmp_path / "base")


def a_tar(*entries: Entry, mode: str = "w") -> bytes:
    """Of names, contents, and what else a header says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload] # it takes any such text
        for name, content, facts in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for field, value in facts.items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def hard_link(name: str, to: str) -> Entry:
    return name, b"", {"type": tarfile.LNKTYPE, "linkname": to}


def link(name: str, to: str) -> Entry:
    return name, b"", {"type": tarfile.SYMTYPE, "linkname": to}


def sparse(size: int) -> bytes:
    """1.5 KB of tar, of one file that is a hole of this size."""
    size_of_map, name = b"1\n0\n0\n".ljust(512, b"\0"), "./GNUSparseFile.0/hole"
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole"}
    headers["GNU.sparse.realsize"] = str(size)
    return a_tar((name, size_of_map, {"pax_headers": headers}))


# --- what ordinary tools write ---


def grown(place: Path) -> None:
    """What a project has."""
    (place / "src/empty").mkdir(parents=True)
    (place / "src/ümlaut.py").write_text("print(1)\n")
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    (place / "large").write_bytes(os.urandom(700_000))
    (place / "to-nowhere").symlink_to("../gone")
    (place / "python").symlink_to("/usr/bin/python3")
    os.utime(place / "run.sh", (1_600_000_000, 1_600_000_000))


WAYS = {
    "tar": "tar -cf ../packed .",
    "tar.gz": "tar -czf ../packed -- *",
    "zip": "zip -qry ../packed.zip . && mv ../packed.zip ../packed",
    "git archive": "git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm 1 && "
    "git archive --format=tar.gz -o ../packed HEAD && rm -rf .git",
    "bundle": "git init -q -b trunk . && git add -A && git -c user.name=a -c user.email=a@b commit -qm 1 && "
    "git tag v1 && git branch other && git bundle create -q ../packed --all && mv .git ../git",
}


@pytest.mark.parametrize("way", WAYS)
def test_what_ordinary_tools_pack_is_there_as_it_was(place: Place, tmp_path: Path, way: str) -> None:
    """Contents, modes and links, wherever they lead; times, and empty folders, where the format has them."""
    (original := tmp_path / "original").mkdir()
    grown(original)
    packed = subprocess.run(WAYS[way], shell=True, cwd=original, capture_output=True, text=True)
    if packed.returncode == 127:
        pytest.skip(packed.stderr)
    assert packed.returncode == 0, packed.stderr
    assert place.refusal((tmp_path / "packed").read_bytes(), into="a/project") is None
    there = place.workspace / "a/project"
    for path in original.rglob("*"):
        made = there / path.relative_to(original)
        if path.is_symlink():
            assert made.readlink() == path.readlink()
        elif path.is_file():
            assert made.read_bytes() == path.read_bytes()
            assert made.stat().st_mode & 0o755 == path.stat().st_mode & 0o755  # git lets its group write, too
        else:
            assert made.is_dir() or "git" in way or way == "bundle"
    if way in ("tar", "tar.gz", "zip"):
        assert (there / "run.sh").stat().st_mtime == 1_600_000_000
    assert place.untouched()


def test_a_bundle_is_a_repository(place: Place, tmp_path: Path) -> None:
    """Its branches and tags are there, its newest commit is checked out, and no remote leads to what is gone."""
    (original := tmp_path / "original").mkdir()
    grown(original)
    subprocess.run(WAYS["bundle"], shell=True, cwd=original, check=True)
    assert place.refusal((tmp_path / "packed").read_bytes()) is None

    def told(*arguments: str) -> str:
        command = ["git", "-c", "safe.directory=*", *arguments]
        return subprocess.run(command, cwd=place.workspace, check=True, capture_output=True, text=True).stdout.strip()

    assert told("status", "--porcelain") == told("remote") == ""
    assert told("for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/other",
        "refs/heads/trunk",
        "refs/tags/v1",
    ]
    assert told("branch", "--show-current") in ("trunk", "other")


def test_a_hard_link_is_a_copy_and_a_later_entry_counts(place: Place) -> None:
    """As GNU tar writes and reads them."""
    archive = a_tar(("a", b"old", {}), ("a", b"new", {}), hard_link("b", "a"), link("l", "a"), hard_link("m", "l"))
    assert place.refusal(archive) is None
    assert [(place.workspace / name).read_bytes() for name in "ab"] == [b"new", b"new"]
    assert (place.workspace / "b").stat().st_nlink == 1
    assert (place.workspace / "m").readlink() == Path("a")


def test_more_comes_to_what_is_there(place: Place) -> None:
    """Files give way, and links without being followed; folders stay, and what they held is room again."""
    (place.workspace / "kept").mkdir()
    (place.workspace / "kept/old").write_bytes(b"o" * 400)
    (place.workspace / "link").symlink_to(place.outside / "x")
    archive = a_tar(("kept/old", b"n" * 500, {}), ("link", b"file", {}))
    assert place.refusal(archive, room=(104, 0)) is None
    assert (place.workspace / "kept/old").read_bytes() == b"n" * 500
    assert (place.workspace / "link").read_bytes() == b"file"
    assert not (place.workspace / "link").is_symlink()
    assert place.refusal(a_tar(("kept/old", b"n" * 501, {})), room=(0, 5)) is not None
    assert place.refusal(a_tar(("kept", b"", {}))) == "kept: a folder is in its place"
    assert place.untouched()


# --- what hostile ones do ---

LEADS_OUT = {
    "absolute path": "its path is absolute",
    "parent path": "leads out of the workspace",
    "long part": "too long",
    "long path": "too long",
    "too many bytes of names": "too long",
}
IN_BOTH = {
    "below a link": "where a folder of its path has to be",
    "below a link to a link": "where a folder of its path has to be",
    "link and directory of one name": "a folder is in its place",
    "below a file": "where a folder of its path has to be",
    "FIFO": "FIFO",
    "device": "device",
    "whiteout": "device",
    "empty link": "link to what is no path",
    "long link": "link to what is no path",
    "empty name": "no name",
}
REFUSED: dict[str, dict[str, str]] = {
    "tar": LEADS_OUT | IN_BOTH | {"cut record": "no tar"},
    "zip": LEADS_OUT
    | IN_BOTH
    | {
        "below a link that comes later": "where a folder of its path has to be",
        "NUL in a name": "NUL character",
        "NUL in a link": "link to what is no path",
        "socket": "socket",
        "cut record": "cannot be read",
        "empty file with content": "CRC",
        "encrypted": "encrypted",
        "strong encryption": "encrypted",
        "bzip2": "compression method 12",
        "stored": "CRC",
        "ZIP64 without its field": "workspace/x",
        "wrong CRC": "CRC",
        "link with a wrong CRC": "CRC",
        "bigger than it says": "workspace/x",
        "smaller than it says": "another size",
        "compressed data cut": "workspace/x",
        "no DEFLATE at all": "invalid block",
        "another local name": "differ",
        "the same bytes twice": "workspace/y",
        "into the directory": "workspace/x",
        "beyond the end": "workspace/x",
        "too many bytes, it says": "10,000,000 bytes",
        "another offset": "workspace/x",
        "another size": "cannot be read",
        "ZIP64 that is not needed": "cannot be read",
        "bytes before": "no tar",
        "its beginning only": "cannot be read",
        "nothing": "no tar",
        "no zip": "no tar",
    },
    "bundle": {
        "parent path": "leads out of the workspace",
        "dot path": "invalid path",
        "empty part": "did not send all",
        "absolute path": "did not send all",
        "empty name": "did not send all",
        "NUL in a name": "did not send all",
        "long part": "too long",
        "too many bytes of names": "too long",
        "long link": "File name too long",
        "empty link": "symlink",
    },
}
"""Of the corpus, what each format can say that is refused, with a part of the reason; the rest is taken."""


@pytest.mark.parametrize("form", REFUSED)
def test_the_hostile_corpus_writes_nothing_outside(tmp_path: Path, form: str) -> None:
    """Without any wall around it; each is taken or refused by name."""
    found: dict[str, str] = {}
    for number, (case, archive) in enumerate(corpus(form).items()):
        place = a_place(tmp_path / str(number))
        if (refusal := place.refusal(archive)) is not None:
            found[case] = refusal
        assert place.untouched(), case
    expected = REFUSED[form]
    assert {case: expected.get(case, "") in refusal for case, refusal in found.items()} == dict.fromkeys(expected, True)


HUGE = tarfile.TarInfo("x")
HUGE.type, HUGE.size = tarfile.XHDTYPE, 2 << 30
HOSTILE: dict[str, tuple[bytes, str]] = {
    "hard link out": (a_tar(hard_link("h", "../outside")), "h: its path leads out of the workspace"),
    "hard link to what is absolute": (a_tar(hard_link("h", "/etc/passwd")), "h: its path is absolute"),
    "hard link through a link": (
        a_tar(link("l", "/etc"), hard_link("h", "l/passwd")),
        "h: a file or a link is where a folder of its path has to be",
    ),
    "hard link to nothing": (a_tar(hard_link("h", "gone")), "h: it is a hard link to what is not there"),
    "hard link to a folder": (
        a_tar(("d", b"", {"type": tarfile.DIRTYPE}), hard_link("h", "d")),
        "h: it is a hard link to what is no file",
    ),
    "unknown kind": (a_tar(("v", b"", {"type": b"V"})), "v: it is of a kind that no session keeps"),
    "a header that is none": (
        a_tar(("a", b"", {}))[:512] + b"\1" * 512 + a_tar(("b", b"", {})),
        "a header of it cannot be read (invalid header)",
    ),
    "cut in a file": (a_tar(("a", b"a" * 5000, {}))[:2000], "a: unexpected end of data"),
    "cut gzip": (a_tar(("a", os.urandom(5000), {}), mode="w:gz")[:3000], "end-of-stream"),
    "gzip with a wrong checksum": (a_tar(("a", b"a", {}), mode="w:gz")[:-8] + bytes(8), "CRC check failed"),
    "a header of 2 GiB": (HUGE.tobuf(tarfile.GNU_FORMAT) + bytes(4096), "a header of it has 2,147,483,648 bytes"),
    "a hole of 100 GB": (sparse(100 << 30), "hole: more than the 10,000,000 bytes for which the session has room"),
    "a name of 3,001 bytes": (a_tar(("n/" * 1500 + "n", b"", {})), "its path is too long"),
    "too many files": (
        a_tar(*((f"{number}", b"", {}) for number in range(1001)), mode="w:gz"),
        "1000: more files, links and folders than the session has room for",
    ),
    "a bundle of 100 GB": (bomb(6, 10, 100_000), "more bytes than the session has room for"),
    "a bundle of many bytes": (bomb(2, 10, 100_001), "more bytes than the session has room for"),
    "a bundle of many names": (bomb(6, 10, 0), "more files, links and folders than the session has room for"),
    "a bundle that is none": (b"# v2 git bundle\nrubbish\n", "git cannot take the bundle: "),
    "a bundle without a branch": (bundle_of({b"a": (FILE, b"a")}, refs=(b"refs/notes/x",)), "no branch"),
    "a bundle whose branch is an option": (
        bundle_of({b"a": (FILE, b"a")}, refs=(b"refs/heads/--orphan",)),
        "no name that git takes",
    ),
    "a bundle with a .git": (bundle_of({b".git/hooks/post-checkout": (FILE | 0o111, b"#!/bin/sh")}), "invalid path"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_taken_is_refused_by_name(place: Place, case: str) -> None:
    """In a kilobyte or so each, and in no time."""
    archive, reason = HOSTILE[case]
    assert len(archive) < 15_000
    assert reason in (place.refusal(archive) or "")
    assert place.untouched()


def test_nothing_goes_through_the_links_of_a_session(place: Place) -> None:
    """An earlier turn left links that lead out: neither a file nor the folder of an upload is written through them."""
    (place.workspace / "out").symlink_to(place.outside)
    refused = "a file or a link is where a folder of its path has to be"
    assert place.refusal(a_tar(("out/x", b"x", {}))) == f"out/x: {refused}"
    assert place.refusal(a_tar(("x", b"x", {})), into="out/deep") == f"x: {refused}"
    assert refused in (place.refusal(bundle_of({b"a": (FILE, b"a")}), into="out") or "")
    assert place.untouched()


def test_a_bundle_comes_into_an_empty_folder_only(place: Place) -> None:
    """Else two histories would lie in one."""
    (place.workspace / "there").write_text("x")
    bundle = bundle_of({b"a": (FILE, b"a")})
    assert "empty folder only" in (place.refusal(bundle) or "")
    assert place.refusal(bundle, into="beside") is None
    assert (place.workspace / "beside/a").read_text() == "a"


def test_a_bundle_of_a_commit_without_a_branch(place: Place) -> None:
    """As `git bundle create x HEAD` of a detached head makes it."""
    assert place.refusal(bundle_of({b"a": (FILE, b"a")}, refs=(b"HEAD",))) is None
    assert (place.workspace / "a").read_text() == "a"


# --- behind the wall ---


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    session = str(uuid.uuid4())
    with tempfile.TemporaryDirectory() as base:  # which an agent with a user of its own can go through
        Path(base).chmod(0o711)
        with Scratch(Path(base) / "agents" / session, Sandbox.of("landlock", session, ROOM[0])) as made:
            yield made


def unpacked(scratch: Scratch, archive: bytes, into: str = "", *, seconds: float = 60) -> None:
    pieces = (archive[at : at + 1000] for at in range(0, len(archive), 1000))
    put_in(Materials("workspace", pieces, into), scratch, ROOM, time.time() + seconds)


def test_what_is_made_is_the_agents(scratch: Scratch) -> None:
    """By its own user, behind its wall; and nothing else is left of it."""
    unpacked(scratch, a_tar(("d/a", b"a", {}), link("l", "/etc"), mode="w:gz"), "in/to")
    made = {
        path.relative_to(scratch.workspace).as_posix(): path.lstat().st_uid for path in scratch.workspace.rglob("*")
    }
    own = scratch.sandbox.uid if scratch.sandbox.uid is not None else os.getuid()
    assert made == dict.fromkeys(["in", "in/to", "in/to/d", "in/to/d/a", "in/to/l"], own)
    assert list(scratch.tmp.iterdir()) == []


def test_a_bundle_runs_nothing(scratch: Scratch) -> None:
    """Neither what its tree would have git run, nor what the agent's home says."""
    hook = scratch.tmp / "hook"
    hook.write_text("#!/bin/sh\ntouch $0.ran\n")
    hook.chmod(0o755)
    hooks = scratch.home / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").symlink_to(hook)
    config = f'[core]\nhooksPath={hooks}\nfsmonitor={hook}\n[filter "evil"]\nsmudge={hook}\nrequired=true\n'
    (scratch.home / ".gitconfig").write_text(config)
    modules = b'[submodule "s"]\npath=s\nurl=ext::' + str(hook).encode()
    files = {b".gitattributes": (FILE, b"* filter=evil"), b".gitmodules": (FILE, modules), b"a": (FILE, b"a")}
    unpacked(scratch, bundle_of(files))
    assert (scratch.workspace / "a").read_text() == "a"
    assert {path.name for path in scratch.tmp.iterdir()} == {"hook"}


def children(before: Collection[int] = ()) -> list[int]:
    """The processes that this thread started, but for those that had been there before: what other tests need."""
    listed = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return [pid for pid in map(int, listed) if pid not in before]


def test_the_program_has_no_rights_and_a_limit_of_memory(tmp_path: Path) -> None:
    """Whoever starts it, without a sandbox too: no capability, none to be had by executing, and no more than that."""
    wanted = (
        ("limits", f"Max data size             {unpacker.MEMORY_BYTES:<20} {unpacker.MEMORY_BYTES:<20}"),
        ("status", "CapEff:\t0000000000000000"),
        ("status", "CapPrm:\t0000000000000000"),
        ("status", "NoNewPrivs:\t1"),
    )

    before = children()

    def pieces() -> Iterator[bytes]:
        yield b""
        (child,) = children(before)
        assert eventually(lambda: all(text in Path(f"/proc/{child}/{file}").read_text() for file, text in wanted))
        yield a_tar(("a", b"a", {}))

    with Scratch(tmp_path / "agents" / str(uuid.uuid4())) as scratch:
        put_in(Materials("workspace", pieces()), scratch, ROOM, time.time() + 60)
        assert (scratch.workspace / "a").read_bytes() == b"a"


@pytest.mark.parametrize("hangs", [True, False])
def test_the_deadline_ends_it(scratch: Scratch, hangs: bool) -> None:
    """Whether what is to come never ends, or the program does nothing any more."""

    before = children()

    def endless() -> Iterator[bytes]:
        yield sparse(1)[:1024]
        for child in children(before) if hangs else ():
            os.kill(child, signal.SIGSTOP)
        while not hangs:
            time.sleep(0.05)
            yield b"\0" * 512

    with pytest.raises(NotAsked):
        put_in(Materials("workspace", endless()), scratch, ROOM, time.time() + 0.5)


# --- RunClaude ---


@dataclass
class Asked:
    """RunClaude, with a bucket behind grants."""

    bucket: GrantedBucket
    place: Path
    model: ScriptedModel

    def run(self, body: Json, upload: bytes | None = None) -> RunResult:
        self.bucket.objects["/request"] = json.dumps({"body": body}).encode()
        task = a_task(self.bucket, "1", str(uuid.uuid4()))
        if upload is not None:
            self.bucket.objects["/upload"] = upload
            task = replace(task, grants=replace(task.grants, upload=Grant(f"{self.bucket.url}/upload", {})))
        result = run_claude_of(settings_of(self.model.url, self.place)).run(task)
        assert isinstance(result, RunResult)
        return result


@pytest.fixture
def asked(tmp_path: Path, model: ScriptedModel) -> Iterator[Asked]:
    bucket = GrantedBucket()
    with listening(BucketHandler, bucket=bucket) as bucket.url:
        yield Asked(bucket, tmp_path, model)


def test_what_a_request_brings_is_there_before_the_first_turn(asked: Asked) -> None:
    """An upload in its folder, and files, which come after it. What of them the run left alone is none that it
    changed; what it changed of them is not as it came."""
    files = [{"path": "up/b.txt", "content": "Bread"}, {"path": "c", "content_base64": "AAH/"}]
    body = {
        "prompt": "run cat up/*.txt; wc -c c; rm c; echo >> up/a.txt; touch d",
        "workspace": {"upload": "u", "path": "up"},
        "files": files,
    }
    asked.run(body, a_tar(("a.txt", b"Apples", {}), ("b.txt", b"Beer", {})))
    staged = json.loads(asked.bucket.objects["/1/result"])
    assert "ApplesBread" in staged["result"]
    assert "3 c" in staged["result"]
    assert [(each["path"], each["change"]) for each in staged["files"]] == [
        *(("c", "removed"), ("d", "added"), ("up/a.txt", "modified")),
    ]


def test_what_is_gone_of_what_was_brought_is_gone_wherever_a_link_leads(place: Place) -> None:
    """The agent may have put one in a folder's place, to where it sees nothing itself: nothing is looked for there.
    What no session keeps is gone, too."""
    for folder in (place.workspace / "d", place.outside):
        folder.mkdir(exist_ok=True)
        (folder / "there").write_bytes(b"x")
    for name in ("d/not-there", "same", "fifo", "folder"):
        (place.workspace / name).write_bytes(b"x")
    brought = Brought(place.workspace)
    shutil.rmtree(place.workspace / "d")
    (place.workspace / "d").symlink_to(place.outside)
    for name, make in (("fifo", os.mkfifo), ("folder", os.mkdir)):
        (place.workspace / name).unlink()
        make(place.workspace / name)
    packed = pack({"workspace": place.workspace}, io.BytesIO(), Limits(100, 1 << 20, 1000), look=brought.look)
    assert [(each.path.removeprefix("workspace/"), each.change) for each in brought.changed(packed.changes)] == [
        *(("d", "added"), ("d/not-there", "removed"), ("d/there", "removed")),
        *(("fifo", "removed"), ("folder", "removed")),
    ]


@pytest.mark.parametrize(
    ("body", "upload", "reason"),
    [
        ({"workspace": {"upload": "u"}}, sparse(100 << 30), "workspace: hole: more than the"),
        ({"workspace": {"upload": "u"}}, bomb(6, 10, 100_000), "workspace: "),
        (
            {"workspace": {"upload": "u"}},
            a_tar(link("l", "/tmp"), ("l/x", b"x", {})),
            "workspace: l/x: a file or a link",
        ),
        ({"files": [{"path": "l", "content": ""}]}, None, "files: l: a folder is in its place"),
    ],
)
def test_what_is_refused_asks_no_model_and_stages_nothing(
    asked: Asked, body: Json, upload: bytes | None, reason: str
) -> None:
    """The session is as it was, and the caller learns the name."""
    if upload is None:
        upload = a_tar(("l", b"", {"type": tarfile.DIRTYPE}))
        body |= {"workspace": {"upload": "u"}}
    with pytest.raises(MaterialsRefused) as refused:
        asked.run({"prompt": "Hello", **body}, upload)
    assert f"cannot be taken: {reason}" in refused.value.said
    assert list(asked.model.requests) == []
    assert set(asked.bucket.puts) <= {"/1/started", "/1/detail"}
    assert not any(path.name != ".lock" for path in (asked.place / "agents").iterdir())
