"""The files of a session's version, read out of its archive by ranges."""

import random
from typing import Any

import pytest

from lambdas.archive.tree import shown
from lambdas.bucket.contents import Contents, File
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.errors import FileNotFound, SessionDamaged, SessionNotFound
from tests.support.archives import DIR, LINK, ROOTS, Item, item, lying, staged
from tests.support.commits import MIB, commit_of

NAMES = ("a b", "a%20b", "100%", "\u00e9", "e\u0301", "\udcff", "a\\xff", "q?#&+", "-rf", "folder/in/..hidden")
"""Of which nobody may be taken for another."""


class Counted:
    """An S3 client that knows how many bytes were asked for."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._s3, name)

    def get_object(self, **asked: Any) -> Any:
        start, _, end = asked["Range"].removeprefix("bytes=").partition("-")
        self.bytes += int(end) - int(start) + 1 if start else int(end)
        return self._s3.get_object(**asked)


def committed(bucket: Bucket, *items: Item) -> Base:
    return commit_of(bucket, None, staged(*ROOTS, *items))


def content(bucket: Bucket, base: Base, path: str) -> bytes:
    return b"".join(Contents.of(bucket, base).open(path))


def test_every_file_is_found_by_its_own_name_alone(bucket: Bucket) -> None:
    """However like another's it is; what is Claude's is none of the workspace's files."""
    folders = (item("workspace/folder", mode=DIR | 0o755), item("workspace/folder/in", mode=DIR | 0o700))
    transcript = (item("claude/projects", mode=DIR | 0o755), item("claude/projects/t.jsonl", b"{}"))
    link = item("workspace/link", b"../elsewhere", LINK | 0o777)
    files = [item(f"workspace/{name}", shown(name).encode()) for name in NAMES]
    found = Contents.of(bucket, committed(bucket, *folders, *transcript, link, *files))
    listed = {each.path: each for each in found.files}
    assert {path for path, each in listed.items() if each.kind == "file"} == {*NAMES}
    assert listed["link"] == File("link", "link", 12, 1_000_000_000, 0o777)
    assert listed["folder/in"][:3] == ("folder/in", "folder", 0)
    for name in NAMES:
        assert b"".join(found.open(name)) == shown(name).encode()
        assert found.file(name) == listed[name]
    assert b"".join(found.open("link")) == b"../elsewhere"
    wrong = ("", ".", "..", "/", "folder", "folder/", "folder\0in", "folder/in\0..hidden", "./a b", "folder/../a b")
    for path in (*wrong, "../workspace/a b", "../claude/projects/t.jsonl", "A B", "a b/", "/a b"):
        with pytest.raises(FileNotFound):
            found.open(path)


def test_of_a_large_archive_one_files_bytes_are_asked_for(bucket: Bucket) -> None:
    """And the directory's; of an older version too, as it was."""
    noise = random.Random(1).randbytes(2 * MIB)
    large = [item(f"workspace/{name}", noise) for name in "ab"]
    old = committed(bucket, *large, item("workspace/small", b"old"))
    new = commit_of(bucket, old, staged(*ROOTS, item("workspace/small", b"new")))
    counted = Counted(bucket.s3)
    asking = Bucket(counted, bucket.name)
    assert (content(asking, old, "small"), content(asking, new, "small")) == (b"old", b"new")
    assert counted.bytes < 2000
    assert content(asking, new, "b") == noise
    assert 2 * MIB < counted.bytes < 2 * MIB + 5000


@pytest.mark.parametrize("lies", [{"crc": 1}, {"size": 5}, {"size": 7}])
def test_what_is_not_as_it_was_kept_is_an_error(bucket: Bucket, lies: dict[str, int]) -> None:
    """A stranger's records may lie about a file; not a byte more than they say is given."""
    base = committed(bucket, lying(item("workspace/a", b"as was"), **lies))
    with pytest.raises(SessionDamaged, match="wrong size or CRC"):
        content(bucket, base, "a")


def test_a_version_that_is_gone_is_not_found(bucket: Bucket) -> None:
    """Nor another one read in its place."""
    base = committed(bucket, item("workspace/a", b"1"))
    commit_of(bucket, base, staged(*ROOTS, item("workspace/a", b"2")))
    bucket.s3.delete_object(Bucket=bucket.name, Key="session-1.zip", VersionId=base.version_id)
    with pytest.raises(SessionNotFound):
        Contents.of(bucket, base)
