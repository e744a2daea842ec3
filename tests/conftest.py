"""What every test may ask for. What takes long to make is made once, for all workers of xdist together."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local import deploy, engine
from claude_workflow.local.model import ScriptedModel
from lambdas.agent.scratch import Scratch
from lambdas.bucket.objects import Bucket
from tests.support.buckets import a_bucket
from tests.support.commands import Serve
from tests.support.past_runs import Past, past
from tests.support.played_workflow import Workflow

Template = dict[str, Any]
Templates = Callable[..., Template]
Synthesize = Callable[..., Path]
Crowding = Callable[[], AbstractContextManager[None]]
InMemory = Callable[[str], Path]

MEMORY = Path("/dev/shm")
IN_MEMORY = "claude-workflow-tests-"
"""With what the names of directories there begin, before the process that made each."""
ROOM = 2 << 30
"""Bytes, of which tests take a tenth."""

LONGEST = [
    "cli",
    "faults",
    "long_faults",
    "service",
    "claude",
    "mistakes",
    "replay",
    "console_browser",
    "hostile",
    "engine",
    "runs",
    "long_service",
    "long_chaos",
    "commit",
    "sessions",
    "checkpoint",
    "verify",
    "archive",
    "legs",
    "console",
    "console_stack",
    "chaos",
    "benchmarks",
    "watching",
    "concurrency",
    "check",
    "invariants",
    "stack",
]
"""Files of tests that take long, in the order in which they are begun, before the others: at the end, when the other
workers are done, nobody is left with much. It wants xdist's `--no-loadscope-reorder`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory of all workers."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@contextmanager
def _alone(common: Path) -> Iterator[None]:
    """One worker at a time: what one makes, the others find."""
    with (common / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def crowding(common: Path) -> Crowding:
    """For what uses up the processes of the user who runs the tests: no worker is in a test meanwhile. Root's agents
    have users of their own."""

    @contextmanager
    def crowded() -> Iterator[None]:
        with (common / "door").open("w") as door, (common / "crowd").open("w") as crowd:
            fcntl.flock(door, fcntl.LOCK_EX)  # or there would always be somebody
            fcntl.flock(crowd, fcntl.LOCK_EX)
            yield

    return crowded if os.getuid() else nullcontext


@pytest.fixture(autouse=True)
def _uncrowded(common: Path) -> Iterator[None]:
    if os.getuid() == 0:
        yield
        return
    with (common / "crowd").open("w") as crowd:
        with (common / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_SH)
            fcntl.flock(crowd, fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def synthesized(common: Path) -> Synthesize:
    """Synthesizes with the given context values over cdk.json's, and returns the folder of the cloud assembly."""

    def assembly(**context: Any) -> Path:
        choices = json.dumps(context, sort_keys=True).encode()
        folder = common / f"cdk.out-{hashlib.sha256(choices).hexdigest()}"
        with _alone(common):
            if not (folder / "manifest.json").exists():
                from stacks.workflow import synthesize  # in one worker: it starts a process of Node's

                synthesize(str(folder), context)
        return folder

    return assembly


@pytest.fixture(scope="session")
def templates(synthesized: Synthesize) -> Templates:
    """The same, of which only the template is wanted."""

    def template(**context: Any) -> Template:
        (path,) = synthesized(**context).glob("*.template.json")
        read: Template = json.loads(path.read_text())
        return read

    return template


@pytest.fixture(scope="session")
def prepared(common: Path) -> Path:
    """The file of a service's state that takes seconds to make: the template of cdk.json, the very one of AWS."""
    with _alone(common):
        deploy.synthesized(common)
    (path,) = common.glob("template-*.json")
    return path


@pytest.fixture(scope="session")
def template(prepared: Path) -> Template:
    """The template of cdk.json as it stands: the very one that goes to AWS."""
    read: Template = json.loads(prepared.read_text())
    return read


@pytest.fixture(scope="session")
def unhurried(templates: Templates) -> Template:
    """The template with 11 seconds more for the agent: what a test waits for has to come in time on a busy machine too.
    With many more, an S3 that is silent for ever would be given up before the state is, which is another answer."""
    return templates(integration_timeout=40)


@pytest.fixture(scope="session")
def in_memory() -> Iterator[InMemory]:
    """Makes directories for engines, in memory where the machine has files there: an engine has all that it writes
    flushed before it answers, and a hundred of its answers make a run."""
    room = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    for left in MEMORY.glob(f"{IN_MEMORY}*"):  # by tests that were killed: memory is dear
        if not Path("/proc", left.name.split("-")[3]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{IN_MEMORY}{os.getpid()}-", dir=MEMORY if room else None) as folder:
        yield lambda name: Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))


@pytest.fixture
def state(in_memory: InMemory, prepared: Path) -> Path:
    """A directory for a service of a test's own, which it finds the template in."""
    made = in_memory("state")
    shutil.copy(prepared, made)
    return made


@pytest.fixture(scope="session")
def serve(in_memory: InMemory, prepared: Path) -> Iterator[Serve]:
    """One `claude-workflow serve`, for all tests that only ask it something."""
    state = in_memory("serve")
    shutil.copy(prepared, state)
    started = Serve.start(state)
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
def s3(in_memory: InMemory) -> Iterator[Any]:
    """One S3, for all tests that want nothing of it but a bucket of their own."""
    with engine.running(in_memory("s3")) as running:
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
def history(in_memory: InMemory) -> Iterator[Past]:
    """A bucket with runs of the past, which each test of a file adds to."""
    with past(in_memory("past")) as made:
        yield made
