"""Cold starts: what is told of one, and what a deploy does so that the first run meets none."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from lambdas.agent.claude import CLI
from lambdas.contract import WARM_UP
from lambdas.settings import PROVISIONED, STARTED
from lambdas.strict import Json
from tests.support.commands import ROOT
from tests.support.granted import BucketHandler, GrantedBucket, a_task
from tests.support.http_servers import listening

FUNCTION = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

count = Path("/proc/self/io").open() if sys.platform == "linux" else None  # before the function shuts itself off
from lambdas.errors import WorkflowError
from lambdas.run_claude import handler

def tell(came):
    print(json.dumps({"came": came, "read": int(count.seek(0) or count.read().split()[1]) if count else None}))

tell("loaded")
for line in sys.stdin:
    try:
        came = handler(json.loads(line), SimpleNamespace(get_remaining_time_in_millis=lambda: 20_000))
    except WorkflowError as error:
        came = {"raised": type(error).__name__, **json.loads(str(error))}
    tell(came)
"""
"""RunClaude's process: a line for its start and for each event, with what came of it and how many bytes it has read."""


def function(
    place: Path, *asked: Callable[[GrantedBucket], Json], **variables: str
) -> tuple[list[Json], GrantedBucket]:
    """What comes of these events in a function that was not there before, and what it then has put into the bucket."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "AWS_DEFAULT_REGION": "eu-west-1",
        "MODEL_PROVIDER": "anthropic",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "SECRET_ARN": "the secret",
        "MAX_SESSION_BYTES": "1000000",
        "MAX_SESSION_FILES": "1000",
        "SCRATCH": str(place / "agents"),
        "SANDBOX": "none",
        "AGENT_NETWORK": "shared",
        "AGENT_FOLDER": str(ROOT / "agent"),
        "WORKSPACE_INSTRUCTIONS": "false",
        "ASK_BEFORE": "[]",
        "REPOSITORIES": "[]",
        "PROTECTED_BRANCHES": "[]",
        "EGRESS": "[]",
        "REGISTRIES": "{}",
        "MODELS": "null",
        "GIT_IDENTITY": "{}",
        "PRICES": "{}",
        **variables,
    }
    bucket = GrantedBucket(objects={"/request": json.dumps({"body": {"prompt": "Hello"}}).encode()})
    with listening(BucketHandler, bucket=bucket) as bucket.url:
        events = "".join(json.dumps(each(bucket)) + "\n" for each in asked)
        command = [sys.executable, "-c", FUNCTION]
        done = subprocess.run(command, env=environment, input=events, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], bucket


def late(bucket: GrantedBucket) -> Json:
    """A task whose time was over when the function had it, twelve seconds after it was given out."""
    now = time.time()
    task = a_task(bucket, str(uuid.uuid4()), str(uuid.uuid4()))
    return asdict(task) | {"handed_at": now - 12, "deadline": now - 1}


def test_a_run_that_a_cold_start_has_eaten_says_so(tmp_path: Path) -> None:
    """With how long it took; the second run of the same function was not cold, and says nothing of the kind."""
    (_, first, second), _ = function(tmp_path, late, late)
    cold, warm = first["came"], second["came"]
    assert (cold["raised"], cold["code"], cold["retryable"]) == ("NotAsked", "ModelOverloaded", True)
    assert cold["start_seconds"] >= 12
    assert f"a cold start, which took {cold['start_seconds']} s" in cold["error"]
    assert (warm["raised"], "start_seconds" in warm, "cold" in warm["error"]) == ("NotAsked", False, False)


def test_a_warm_up_makes_ready_and_touches_nothing(tmp_path: Path) -> None:
    """It reads the whole of Claude Code, and leaves nothing, here or in the bucket; the first run is not cold then."""
    (loaded, warmed, run), bucket = function(tmp_path, lambda _: WARM_UP, late)
    assert warmed["came"] == {}
    assert loaded["read"] is None or loaded["read"] < CLI.stat().st_size < warmed["read"]
    assert sorted(path.rpartition("/")[2] for path in bucket.puts) == ["detail", "started"]
    assert (run["came"]["raised"], "start_seconds" in run["came"]) == ("NotAsked", False)


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux counts what a process reads.")
def test_what_lambda_keeps_warm_is_ready_before_its_first_run(tmp_path: Path) -> None:
    """Started ahead of any run, it makes ready by itself."""
    ((loaded,), _) = function(tmp_path, **{STARTED: PROVISIONED})
    assert loaded["read"] > CLI.stat().st_size
