"""What every test may ask for. Synthesizing takes seconds, so each set of choices is synthesized once per session."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local import engine
from claude_workflow.local.model import ScriptedModel
from lambdas.agent.scratch import Scratch
from lambdas.bucket.objects import Bucket
from stacks.workflow import synthesize
from tests.support.buckets import a_bucket
from tests.support.commands import Serve
from tests.support.past_runs import Past, past
from tests.support.played_workflow import Workflow

Synthesize = Callable[..., Path]


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Synthesize:
    """Synthesizes with the given context values over cdk.json's, and returns the folder of the cloud assembly."""
    done: dict[str, Path] = {}

    def assembly(**context: Any) -> Path:
        choices = json.dumps(context, sort_keys=True)
        if choices not in done:
            folder = tmp_path_factory.mktemp("cdk.out")
            synthesize(str(folder), context)
            done[choices] = folder
        return done[choices]

    return assembly


@pytest.fixture(scope="session")
def template(synthesized: Synthesize) -> dict[str, Any]:
    """The template of cdk.json as it stands: the very one that goes to AWS."""
    return _read(synthesized())


@pytest.fixture(scope="session")
def unhurried(synthesized: Synthesize) -> dict[str, Any]:
    """The template with 11 seconds more for the agent: what a test waits for has to come in time on a busy machine too.
    With many more, an S3 that is silent for ever would be given up before the state is, which is another answer."""
    return _read(synthesized(integration_timeout=40))


def _read(assembly: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((assembly / "ClaudeAgentWorkflow.template.json").read_text())
    return read


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One `claude-workflow serve`, for all tests that only ask it something."""
    started = Serve.start(tmp_path_factory.mktemp("serve"))
    yield started
    assert started.end() == 0, started.said()


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedModel]:
    """One stand-in for all tests of a file: stopping one takes a moment."""
    with ScriptedModel() as served:
        yield served


@pytest.fixture
def model(server: ScriptedModel) -> ScriptedModel:
    """The stand-in, with no requests on its record."""
    server.requests.clear()
    return server


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """The directory of a run, kept over the turns of a test as restoring a session would."""
    with Scratch(tmp_path / "session-1") as scratch:
        yield scratch


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One S3, for all tests that want nothing of it but a bucket of their own."""
    with engine.running(tmp_path_factory.mktemp("s3")) as running:
        yield running.client("s3")


@pytest.fixture
def bucket(s3: Any) -> Bucket:
    """A new one."""
    return a_bucket(s3)


@pytest.fixture
def workflow(bucket: Bucket) -> Workflow:
    """The handlers, played on a bucket of their own."""
    return Workflow(bucket)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """A bucket with runs of the past, which each test of a file adds to."""
    with past(tmp_path_factory.mktemp("past")) as made:
        yield made
