"""Rows of what is signed: the grants of a run, and the link in its answer."""

import json
import re
import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, NotAsked, facts
from lambdas.bucket.client import s3_client
from lambdas.strict import Json

WAITED = 10
"""Seconds that a grant's end is waited for; of a later one, one of the kit's own is tried, signed the same way."""


def _grants(kit: Kit) -> dict[str, str]:
    """The URLs that the first turn's RestoreSession handed out, whole, by what they are for."""
    for event in kit.events(kit.answers["first-turn"]["run_id"]):
        if event.type.endswith("StateExited") and event.details["name"] == "RestoreSession":
            grants = json.loads(event.details["output"])["task"]["grants"]
            return {name: grant["url"] for name, grant in grants.items() if grant}
    raise NotAsked("The execution's log has no grants: is its level ALL, with data?")


def _hosts(kit: Kit) -> Json:
    region = kit.client("s3").meta.region_name
    urls = _grants(kit) | {"session_url": kit.answers["first-turn"]["session_url"]}
    expected = f"{kit.bucket}.s3.{region}.amazonaws.com{'.cn' * region.startswith('cn-')}"
    return {"expected": expected, "hosts": {name: urlsplit(url).hostname for name, url in urls.items()}}


def _all_regional(raw: Json) -> str | None:
    off = {name: host for name, host in raw["hosts"].items() if host != raw["expected"]}
    return f"Others than {raw['expected']}: {off}" if off or not raw["hosts"] else None


def _others(kit: Kit) -> Json:
    """A grant to read, used to write; and with another key in its place."""
    read = _grants(kit)["request"]
    other = re.sub(r"runs/run-[0-9a-f]+/", f"runs/run-{'0' * 32}/", read)
    return {"to write": kit.fetch(read, "PUT"), "for another run": kit.fetch(other)}


def _all_forbidden(raw: Json) -> str | None:
    wrong = {name: facts(status=403)(raw[name]) for name in ("to write", "for another run")}
    return "; ".join(f"{name}: {why}" for name, why in wrong.items() if why) or None


def _expired(kit: Kit) -> Json:
    grant, whose = _grants(kit)["request"], "the run's"
    if _end(grant) - time.time() > WAITED:
        key = f"{kit.scratch}grant"
        kit.s3.put_object(Bucket=kit.bucket, Key=key, Body=b"x")
        params = {"Bucket": kit.bucket, "Key": key}
        signer = kit.s3 if kit.backend.engine else s3_client()
        grant, whose = signer.generate_presigned_url("get_object", Params=params, ExpiresIn=1), "the kit's own"
    time.sleep(max(0.0, _end(grant) + 1.5 - time.time()))
    return kit.fetch(grant) | {"whose": whose}


def _end(url: str) -> float:
    """Epoch seconds at which a presigned URL ends."""
    query = parse_qs(urlsplit(url).query)
    signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return signed.timestamp() + int(query["X-Amz-Expires"][0])


ASKED: dict[str, Ask] = {
    "session-url": lambda kit: kit.fetch(kit.answers["first-turn"]["session_url"]),
    "grant-host": _hosts,
    "grant-other-use": _others,
    "grant-expired": _expired,
}
JUDGED: dict[str, Judge] = {"grant-host": _all_regional, "grant-other-use": _all_forbidden}
