"""Commits of what was staged by hand, and what the bucket then holds."""

import io
import uuid
import zipfile
from dataclasses import replace
from typing import Any

from lambdas.agent.transfer import Transfer
from lambdas.archive.directory import Directory
from lambdas.archive.format import RATIO, Limits, Member, whiteout
from lambdas.archive.unpack import Contents
from lambdas.bucket import versions
from lambdas.bucket.commit import Rules
from lambdas.bucket.grants import grants
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base, Claim, Result
from tests.support.opened import Opened
from tests.support.played_workflow import commit, result_of

LIMITS = Limits(members=150_000, bytes=1 << 30, ratio=RATIO)


RULES = Rules(LIMITS, 0.5)


MIB = 1024 * 1024


def a_claim(base: Base | None = None, session: str = "session-1") -> Claim:
    run = f"run-{uuid.uuid4()}"
    return Claim(run, session, "alice", "execution", f"runs/{run}/0001-aa/", 0.0, False, str(uuid.uuid4()), base)


def stage(bucket: Bucket, claim: Claim, archive: bytes) -> Result:
    """What RunClaude does: through a grant, without a credential; and what it says of it."""
    assert Transfer().put(grants(bucket, claim, None, 60).changes, archive, len(archive))
    return result_of(bucket, claim)


def metadata(claim: Claim) -> dict[str, str]:
    told = {"created": "then", "owner": claim.owner, "turns": "1", "cost-usd": "0.5", "run": claim.run_id}
    return told | {"claude-session": claim.claude_session, "format": "1"}


def commit_of(
    bucket: Bucket, base: Base | None, archive: bytes, rules: Rules = RULES, session: str = "session-1", **told: Any
) -> Base:
    """Commit what a run staged; the version that comes of it."""
    claim = a_claim(base, session)
    result = stage(bucket, claim, archive)
    commit(bucket, claim, replace(result, **told), metadata(claim), rules)
    done = versions.newest_of(bucket, session, "alice")
    assert done is not None
    return done


def archive_of(bucket: Bucket, session: str = "session-1") -> bytes:
    return bytes(bucket.s3.get_object(Bucket=bucket.name, Key=f"{session}.zip")["Body"].read())


def files_of(archive: bytes) -> dict[str, bytes]:
    """What the workspace's files say, once the archive was checked as restoring checks it."""
    list(Contents(Directory.of(Opened(archive)), LIMITS))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name[10:]: opened.read(name) for name in opened.namelist() if name[:10] == "workspace/" and name[10:]}


def gone(path: str, **lies: Any) -> tuple[Member, bytes]:
    return whiteout(path)._replace(**lies), b""
