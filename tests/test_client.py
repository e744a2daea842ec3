"""Whom the functions ask for the bucket, and whom their grants and links lead to."""

from dataclasses import asdict
from urllib.parse import urlsplit

import pytest

from lambdas import answer
from lambdas.bucket.client import s3_client
from lambdas.bucket.grants import grants
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base, Claim

BASE = Base("session-1", "v1", '"etag"', "2026-01-01T00:00:00+00:00", 1, 0.5, "uuid", 1000, 100)
CLAIM = Claim("run-1", "session-1", "alice", "execution-1", "runs/run-1/0001-aa/", 0.0, True, "uuid", BASE)
REGIONS = {
    "us-east-1": "sessions.s3.us-east-1.amazonaws.com",
    "eu-central-1": "sessions.s3.eu-central-1.amazonaws.com",
    "me-central-1": "sessions.s3.me-central-1.amazonaws.com",
    "ap-southeast-5": "sessions.s3.ap-southeast-5.amazonaws.com",
    "cn-north-1": "sessions.s3.cn-north-1.amazonaws.com.cn",
}
"""An old one, of which the global host is; one with a redirect for new buckets; two that it does not serve; another
partition."""


def hosts() -> set[str]:
    """Where every grant and every link of an answer leads."""
    bucket = Bucket(s3_client(), "sessions")
    also = {"uploaded": "uploads/upload-1/content", "approves_of": "run-0"}
    granted = asdict(grants(bucket, CLAIM, "runs/run-1/0000-aa/", 60, **also))
    assert all(granted.values())
    stored = {"s3_url": "s3://sessions/session-1.zip", "session_id": "session-1", "messages_at": "runs/run-1/x.json"}
    links = {name: url for name, url in answer.with_links(stored, bucket).items() if name.endswith("_url")}
    assert links.keys() == {"s3_url", "session_url", "messages_url"}
    urls = [*(grant["url"] for grant in granted.values()), links["session_url"], links["messages_url"]]
    return {urlsplit(url).netloc for url in urls}


@pytest.fixture(autouse=True)
def role(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, name)


@pytest.mark.parametrize("region", REGIONS)
def test_grants_and_links_lead_to_the_buckets_region(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    """The global host redirects for a day after a bucket was made, which breaks signatures, and does not serve newer
    regions at all."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    assert hosts() == {REGIONS[region]}


def test_a_machines_own_engine_is_asked_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address has no subdomains."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
    assert hosts() == {"127.0.0.1:4566"}
