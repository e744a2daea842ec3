"""Uploads, from the offer to the run that takes one: at the functions, on a real S3."""

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import urllib3

from lambdas.bucket import lease
from lambdas.errors import AgentCrashed, InvalidRequest, ModelOverloaded, UploadNotFound, UploadUsed
from lambdas.offer_upload import OfferUpload
from lambdas.settings import OfferSettings
from lambdas.strict import Json
from tests.support.played_workflow import CALLER, LEASE_SECONDS, Execution, Workflow
from tests.support.reading import KEYS

HTTP = urllib3.PoolManager(retries=False, timeout=60)
MOST = 1000
"""Bytes that a session, and so an upload, may have here."""


def offering(workflow: Workflow, callers: Mapping[str, str]) -> OfferUpload:
    """OfferUpload, for the holders of these API keys."""
    wanted = OfferSettings(workflow.store.name, "api-key", callers, "*", MOST)
    return OfferUpload(wanted, workflow.store, lambda: workflow.now)


def answered(workflow: Workflow, body: object, *, method: str = "POST", key: str = "key-1") -> tuple[int, Json]:
    """What OfferUpload answers to the holder of an API key."""
    offers = offering(workflow, KEYS)
    event = {
        "httpMethod": method,
        "headers": {},
        "body": body if isinstance(body, str | None) else json.dumps(body),
        "requestContext": {"identity": {"apiKeyId": key}},
    }
    answer = offers.answer(event)
    return answer["statusCode"], json.loads(answer["body"])


def uploaded(workflow: Workflow, content: bytes | None = b"an archive", owner: str = CALLER) -> str:
    """An upload of this caller's, which has come, if there is content."""
    offer = offering(workflow, {"key": owner})
    event = {"httpMethod": "POST", "body": '{"size_bytes": 10}', "requestContext": {"identity": {"apiKeyId": "key"}}}
    told: Json = json.loads(offer.answer(event)["body"])
    if content is not None:
        assert HTTP.request("PUT", told["url"], body=content, headers=told["headers"]).status == 200
    return str(told["upload"])


def bringing(upload: str, key: str, session: str | None = None, **more: Any) -> Execution:
    body: Json = {"prompt": "x", "workspace": {"upload": upload}} | ({"session_id": session} if session else {})
    return Execution(str(uuid.uuid4()), key, body, **more)


def test_an_offer_leads_to_one_upload_of_its_size(workflow: Workflow) -> None:
    """Its address signs the size, and that nothing is there yet; whose it is stands beside it."""
    status, told = answered(workflow, {"size_bytes": 10})
    assert (status, told["success"]) == (200, True)
    assert told.keys() == {"success", "upload", "url", "headers", "expires_at"}
    assert told["headers"] == {"Content-Length": "10", "If-None-Match": "*"}
    assert "SignedHeaders=content-length%3Bhost%3Bif-none-match" in told["url"]
    assert (told["expires_at"], workflow.now) == ("2027-01-15T09:00:00Z", 1_800_000_000)
    assert HTTP.request("PUT", told["url"], body=b"0123456789", headers=told["headers"]).status == 200
    assert HTTP.request("PUT", told["url"], body=b"9876543210", headers=told["headers"]).status == 412
    offered = workflow.store.read(f"uploads/{told['upload']}/offer.json")
    assert offered == {"format": 1, "owner": "default", "size": 10, "offered_at": workflow.now}
    assert len({uploaded(workflow, None) for _ in range(3)}) == 3


@pytest.mark.parametrize("body", [None, "", "{", "[]", {}, {"size_bytes": 0}, {"size_bytes": True}, {"size_bytes": 1.5},
                                  {"size_bytes": "9"}, {"size_bytes": 9, "name": "x"}])  # fmt: skip
def test_an_offer_wants_a_size_and_nothing_else(workflow: Workflow, body: object) -> None:
    """In one sentence, and nothing is written."""
    status, refused = answered(workflow, body)
    assert (status, refused["code"], refused["retryable"]) == (400, InvalidRequest.__name__, False)
    assert "size_bytes" in refused["error"]
    assert workflow.objects() == {}


def test_no_more_is_offered_than_a_session_may_have(workflow: Workflow) -> None:
    """The sentence says how much that is."""
    assert answered(workflow, {"size_bytes": MOST})[0] == 200
    status, refused = answered(workflow, {"size_bytes": MOST + 1})
    assert (status, refused["code"]) == (413, "SessionTooLarge")
    assert "1,000 bytes" in refused["error"]


def test_only_a_post_is_offered_anything(workflow: Workflow) -> None:
    """And the answer says so."""
    status, refused = answered(workflow, None, method="GET")
    assert (status, refused["code"]) == (405, "MethodNotAllowed")
    assert refused["error"].endswith("use POST.")


def test_a_run_is_granted_what_it_takes(workflow: Workflow) -> None:
    """In a new session, and in a later turn of it; a run that brings nothing is granted nothing."""
    first = workflow.execute(bringing(uploaded(workflow), "one"))
    upload = uploaded(workflow, b"more of it")
    task = workflow.restore(bringing(upload, "two", first["session_id"])).task
    assert task
    assert task.grants.upload
    assert workflow.transfer.read(task.grants.upload) == b"more of it"
    assert workflow.store.read(f"uploads/{upload}/used") == {"format": 1, "run_id": task.run_id}
    plain = workflow.restore(Execution(str(uuid.uuid4()), "three", {"prompt": "x"})).task
    assert plain
    assert plain.grants.upload is None


REFUSED: dict[str, tuple[Callable[[Workflow], str], type[Exception], str]] = {
    "none that is known": (lambda _: f"upload-{'0' * 32}", UploadNotFound, "was not found"),
    "another caller's": (lambda workflow: uploaded(workflow, owner="eve"), UploadNotFound, "was not found"),
    "nothing came yet": (lambda workflow: uploaded(workflow, None), UploadNotFound, "Nothing has come to the upload"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_upload_that_is_not_there_is_not_found(workflow: Workflow, case: str) -> None:
    """Another's is told from none by nothing; nothing is spent, marked or held, and the session is as it was."""
    make, kind, sentence = REFUSED[case]
    session, upload = workflow.new_session("before"), make(workflow)
    before = workflow.objects()
    with pytest.raises(kind, match=sentence) as refused:
        workflow.restore(bringing(upload, "asks", session))
    assert upload in str(refused.value)
    assert workflow.objects().items() & before.items() == before.items()
    assert {key.split("/")[0] for key in workflow.objects().keys() - before.keys()} == {"runs", "index"}  # who asked
    assert lease.holder(workflow.store, session) is None
    if case == "nothing came yet":
        workflow.s3.put_object(Bucket=workflow.bucket, Key=f"uploads/{upload}/content", Body=b"now")
        assert workflow.restore(bringing(upload, "asks", session)).next == "run"


def test_an_upload_is_for_one_run(workflow: Workflow) -> None:
    """Another is refused by that one's name; the same, sent again with its key, still has it."""
    upload = uploaded(workflow)
    failed = workflow.execute(bringing(upload, "mine"), fails=ModelOverloaded())
    with pytest.raises(UploadUsed, match=f"was used by {failed['run_id']}, and is for one run"):
        workflow.restore(bringing(upload, "another"))
    task = workflow.restore(bringing(upload, "mine")).task
    assert task
    assert task.grants.upload


@pytest.mark.parametrize("verb", ["fork", "rebase"])
def test_a_replay_takes_what_its_run_took(workflow: Workflow, verb: str) -> None:
    """And so does a replay of the replay; no other run of the same caller."""
    session, upload = workflow.new_session("before"), uploaded(workflow)
    first = workflow.execute(bringing(upload, "mine", session), fails=ModelOverloaded())
    workflow.now += LEASE_SECONDS + 1
    replay = bringing(upload, "mine", session, envelope={"replay": verb})
    task = workflow.restore(replay).task
    assert task
    assert task.grants.upload
    assert task.run_id != first["run_id"]


def test_a_checkpoint_has_what_was_brought(workflow: Workflow) -> None:
    """A run that goes on from one is granted no upload, so that it cannot be unpacked over what was made of it."""
    upload = uploaded(workflow)
    first = bringing(upload, "mine")
    task = workflow.restore(first).task
    assert task
    with pytest.raises(AgentCrashed):
        workflow.run(task, fails=AgentCrashed(), after="checkpoint")
    workflow.now += LEASE_SECONDS + 1
    again = workflow.restore(bringing(upload, "mine")).task
    assert again
    assert again.cut
    assert again.grants.upload is None
