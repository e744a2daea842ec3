"""A session over HTTP, at the function: what its caller sees of it, and nobody else does."""

import json
import random
import time
import urllib.request
from typing import Any
from urllib.parse import quote

import pytest

from lambdas.bucket import versions
from lambdas.bucket.objects import Bucket
from lambdas.read_session import THROUGH_BYTES, ReadSession
from lambdas.streaming import Streamed
from lambdas.strict import Json
from tests.support.archives import DIR, LINK, ROOTS, Item, item, lying, staged
from tests.support.played_workflow import Execution, Workflow
from tests.support.reading import door, of_session

ODD = ("a b", "a%20b", "100%", "\u00e9", "e\u0301", "q?#&+;=", "..x", "folder/in")
"""Names, of which each is read in one way."""


def asked(bucket: Bucket, session: str, below: str = "", **more: Any) -> Streamed:
    return ReadSession(door(bucket), bucket, time.time).answer(of_session(session, below, **more))


def told(answer: Streamed) -> Json:
    """Its JSON."""
    assert answer.headers["Content-Type"] == "application/json"
    found: Json = json.loads(b"".join(answer.pieces))
    return found


def turn(workflow: Workflow, *items: Item, session: str | None = None) -> str:
    """A turn of `default`'s that leaves these; the session."""
    number = len(workflow.conversations)
    body = {"prompt": "x"} | ({"session_id": session} if session else {})
    asking = Execution(f"e-{number}", f"k-{number}", body, "default")
    return str(workflow.execute(asking, archive=staged(*ROOTS, *items))["session_id"])


def test_a_session_and_its_versions_are_told_of(workflow: Workflow) -> None:
    """As it is now, and as it was; what it holds is in the list, by any version."""
    session = turn(workflow, item("workspace/a", b"1"))
    turn(workflow, item("workspace/a", b"22"), item("workspace/link", b"a", LINK | 0o777), session=session)
    now = told(asked(workflow.store, session))
    assert (now["success"], now["session_id"], now["turns"], now["cost_usd"]) == (True, session, 2, 0.5)
    assert (now["file_count"], now["versions_total"]) == (2, 2)
    newest, first = now["versions"]
    assert newest == {"version": now["version"], "committed": now["committed"], "size": now["size"]}
    before = told(asked(workflow.store, session, queryStringParameters={"version": first["version"]}))
    assert (before["turns"], before["size"], before["created"]) == (1, first["size"], now["created"])
    listed = told(asked(workflow.store, session, "/files"))
    assert (listed["version"], listed["files_total"]) == (now["version"], 2)
    assert listed["files"] == [
        {"path": "a", "kind": "file", "size": 2, "modified": "1970-01-01T00:00:01Z"},
        {"path": "link", "kind": "link", "size": 1, "modified": "1970-01-01T00:00:01Z"},
    ]
    old = {"queryStringParameters": {"version": first["version"]}}
    assert told(asked(workflow.store, session, "/files", **old))["files_total"] == 1
    assert b"".join(asked(workflow.store, session, "/files/a", **old).pieces) == b"1"
    assert b"".join(asked(workflow.store, session, "/files/a").pieces) == b"22"


def test_a_file_comes_as_it_is_and_harms_nobody(workflow: Workflow) -> None:
    """Byte for byte, whatever it holds: as something to be saved, which no browser shows or runs."""
    page = b"<script>alert(1)</script>\0\xff"
    session = turn(workflow, item("workspace/x y.html", page), item("workspace/empty"))
    answer = asked(workflow.store, session, "/files/x%20y.html")
    assert (answer.status, b"".join(answer.pieces)) == (200, page)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert answer.headers["Content-Disposition"] == "attachment; filename=\"x_y.html\"; filename*=UTF-8''x%20y.html"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert answer.headers["Cache-Control"] == "no-store"
    assert b"".join(asked(workflow.store, session, "/files/empty").pieces) == b""


def test_a_path_is_read_in_one_way(workflow: Workflow) -> None:
    """Decoded once, byte for byte: no name is another's, and none leads anywhere else."""
    folder = item("workspace/folder", mode=DIR | 0o755)
    files = [item(f"workspace/{name}", name.encode()) for name in ODD]
    session = turn(workflow, folder, *files, item("workspace/\udcff", b"no text"), item("workspace/\\xff", b"text"))
    for name in ODD:
        assert b"".join(asked(workflow.store, session, f"/files/{quote(name)}").pieces) == name.encode()
    assert b"".join(asked(workflow.store, session, "/files/folder%2Fin").pieces) == b"folder/in"
    shown = {each.get("quoted"): each["path"] for each in told(asked(workflow.store, session, "/files"))["files"]}
    assert shown["%FF"] == "\\xff"
    assert b"".join(asked(workflow.store, session, "/files/%FF").pieces) == b"no text"
    assert b"".join(asked(workflow.store, session, "/files/%5Cxff").pieces) == b"text"
    missing = ("a%2520b%20", "../x", "%2e%2e/x", "folder", "folder/", "folder%00in", "/a%20b", "..%2Fclaude", "a+b")
    for path in missing:
        assert told(asked(workflow.store, session, f"/files/{path}"))["code"] == "FileNotFound"
    for path in ("100%", "a%2", "a%zz", "\u00e9"):
        answer = asked(workflow.store, session, f"/files/{path}")
        assert (answer.status, told(answer)["code"]) == (400, "InvalidRequest")


def test_a_large_file_is_a_link(workflow: Workflow) -> None:
    """To a copy that is made once, by its name, and that a browser saves; and so is the archive, in its version."""
    noise = random.Random(1).randbytes(THROUGH_BYTES + 1)
    session = turn(workflow, item("workspace/é.bin", noise), item("workspace/just", noise[1:]))
    assert b"".join(asked(workflow.store, session, "/files/just").pieces) == noise[1:]
    answer = asked(workflow.store, session, "/files/%C3%A9.bin")
    said = told(answer)
    assert (answer.status, answer.headers["Location"], said["size"]) == (303, said["url"], len(noise))
    with urllib.request.urlopen(said["url"]) as got:
        assert (got.read(), got.headers["Content-Type"]) == (noise, "application/octet-stream")
        assert got.headers["Content-Disposition"] == "attachment; filename=\"_.bin\"; filename*=UTF-8''%C3%A9.bin"
    again = asked(workflow.store, session, "/files/%C3%A9.bin", headers={"Accept": "application/json"})
    assert (again.status, told(again)["size"]) == (200, len(noise))
    assert len([*versions.below(workflow.store, f"extracts/{session}/")]) == 1
    archive = told(asked(workflow.store, session, "/archive"))
    turn(workflow, item("workspace/more", b"1"), session=session)
    with urllib.request.urlopen(archive["url"]) as got:
        assert len(got.read()) == archive["size"]


def test_of_anothers_session_nothing_is_told(workflow: Workflow) -> None:
    """As of one that is not there, one that was deleted, or what is no id: not by an older version either."""
    session = turn(workflow, item("workspace/a", b"1"))
    version = told(asked(workflow.store, session))["version"]
    deleted = turn(workflow, item("workspace/a", b"1"))
    its = told(asked(workflow.store, deleted))["version"]
    workflow.store.delete(f"{deleted}.zip")
    for below in ("", "/files", "/files/a", "/archive"):
        for name, more in (
            (session, {"key": "key-3"}),
            (session, {"key": "key-3", "queryStringParameters": {"version": version}}),
            (session, {"queryStringParameters": {"version": its}}),
            (session, {"queryStringParameters": {"version": "../x"}}),
            (session, {"queryStringParameters": {"version": ""}}),
            (deleted, {"queryStringParameters": {"version": its}}),
            ("session-none", {}),
            ("x.zip%3f", {}),
        ):
            answer = asked(workflow.store, name, below, **more)
            assert (answer.status, told(answer)["code"]) == (404, "SessionNotFound")


def test_a_version_is_its_own_owners(workflow: Workflow) -> None:
    """Whoever has the session now: an operator may have put it into another's hands."""
    session = turn(workflow, item("workspace/a", b"1"))
    before = workflow.s3.get_object(Bucket=workflow.bucket, Key=f"{session}.zip")
    version = {"queryStringParameters": {"version": before["VersionId"]}}
    anothers = before["Metadata"] | {"owner": "another"}
    body = before["Body"].read()
    workflow.s3.put_object(Bucket=workflow.bucket, Key=f"{session}.zip", Body=body, Metadata=anothers)
    assert told(asked(workflow.store, session, key="key-3"))["versions_total"] == 2
    for one in ({"key": "key-3"} | version, version, {}):
        assert told(asked(workflow.store, session, **one))["code"] == "SessionNotFound"


def test_what_is_damaged_is_an_error_before_a_byte(workflow: Workflow) -> None:
    """No half of a file looks like one."""
    session = turn(workflow, lying(item("workspace/a", b"as was"), crc=1))
    answer = asked(workflow.store, session, "/files/a")
    assert (answer.status, told(answer)["code"]) == (500, "Internal")


@pytest.mark.parametrize(("below", "allow"), [("", "GET, DELETE"), ("/files", "GET"), ("/files/a", "GET")])
def test_any_other_method_is_refused(bucket: Bucket, below: str, allow: str) -> None:
    """By what the path takes."""
    answer = asked(bucket, "session-1", below, method="PUT")
    assert (answer.status, answer.headers["Allow"]) == (405, f"{allow}, OPTIONS")
    assert told(answer)["code"] == "MethodNotAllowed"
