"""Functions that stand in for the workflow's own, to walk the definition on the engine: each does as its input says.

What a state gets holds a script by state names: `{"RunClaude": {"raises": "AgentCrashed"}}`. Each writes down what it
was called with, in the folder that the script names.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

from lambdas import errors
from lambdas.strict import Json


def restore_session(event: Json, _context: object) -> Json:
    script = event["envelope"]["body"]
    filler = _act("RestoreSession", script, event).get("filler")
    long = event["execution"].startswith(event["long_machine"].replace(":stateMachine:", ":execution:"))
    if long and "refuses" in script:
        raise _error(script["refuses"], json.dumps(script))
    claim = {"script": script, "session_id": "session-1", "run_id": "run-1", "staging": "leg/", "long": long}
    look = {
        "script": script,
        "session_id": "session-1",
        "run_id": "run-1",
        "until": time.time() + script.get("wait", 0),
    }
    return {
        "next": "run" if long else script.get("next", "run"),
        "claim": claim,
        "task": {"script": script, "task": True},
        "response": {"answered": "before"},
        "name": f"{Path(script['folder']).name}-long",
        "look": look,
    } | ({"filler": filler} if filler else {})


def run_claude(event: Json, _context: object) -> Json:
    """A leg ends, or fails, as often as the script says."""
    script = event["script"]
    told = _act("RunClaude", script, event)
    number = len(list((Path(script["folder"]) / "RunClaude").iterdir()))
    return {"leg": "gate"} if number <= script.get("legs", 0) else told


def read_run(event: Json, _context: object) -> Json:
    script = event["look"]["script"]
    _act("ReadRun", script, event)
    said = script["says"]
    return {"next": said, "response": {"answered": "by another"}, "failure": {"code": "AgentCrashed", "error": "x"}}


def persist_session(event: Json, _context: object) -> Json:
    return _act("PersistSession", event["claim"]["script"], event)


def record_failure(event: Json, _context: object) -> Json:
    script = event["claim"]["script"] if event["claim"] else _told(event)
    _act("RecordFailure", script, event)
    return {"code": "Internal", "error": "recorded", "raised": event["error"]["Error"], "claimed": bool(event["claim"])}


def _told(event: Json) -> Json:
    """The script, out of what RestoreSession raised; where Step Functions raised it, what the key tells of it."""
    try:
        raised = json.loads(event["error"]["Cause"])
    except ValueError:
        return {"folder": event["key"]}
    script: Json = json.loads(json.loads(raised["errorMessage"])["error"])
    return script


def _act(state: str, script: Json, event: Json) -> Json:
    calls = Path(script["folder"]) / state
    calls.mkdir(exist_ok=True)
    (calls / uuid.uuid4().hex).write_text(json.dumps(event))
    orders = script.get(state, {})
    due = len(list(calls.iterdir())) <= orders.get("times", 99)
    if "waits" in orders and due:
        time.sleep(orders["waits"])
    if "raises" in orders and due:
        raise _error(orders["raises"], json.dumps(script))
    if "exits" in orders:
        os._exit(orders["exits"])
    if "hangs" in orders:
        _hang(Path(script["folder"]))
    if "fills" in orders:
        return {"of": state, "filler": "x" * int(orders["fills"])}
    if "calls" in orders:
        return {"calls": {name: _attempt(name) for name in orders["calls"]}}
    return {"environment": dict(os.environ), "of": state}


def _error(name: str, sentence: str) -> Exception:
    """One of the workflow's own errors, or one of a service's, such as `Lambda.TooManyRequestsException`."""
    kinds = {kind.__name__: kind for kind in errors.tree()}
    if name in kinds:
        return kinds[name](sentence, session_id="session-1")
    service_error: type[Exception] = type(name, (Exception,), {})
    return service_error(json.dumps({"error": sentence}))


def _hang(folder: Path) -> None:
    """Leaves children behind: one in its own session, one whose parent is gone."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    own_session = subprocess.Popen(sleep, start_new_session=True)
    orphan = "from subprocess import *; import sys; print(Popen(sys.argv[1:], stdout=DEVNULL, stderr=DEVNULL).pid)"
    orphaned = subprocess.run([sys.executable, "-c", orphan, *sleep], capture_output=True, text=True, check=True)
    (folder / "pids").write_text(f"{own_session.pid} {orphaned.stdout}")
    time.sleep(600)


def _attempt(name: str) -> str:
    """The outcome of an AWS call such as `s3 put_object {"Key": "runs/x"}`."""
    service, action, arguments = name.split(" ", 2)
    try:
        getattr(boto3.client(service), action)(**json.loads(arguments))
    except ClientError as refused:
        return str(refused.response["Error"]["Code"])
    return "allowed"
