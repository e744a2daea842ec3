"""The engine: `ministack`, started, watched and ended, with its S3 on disk and its policies enforced.

Three things end together, whoever is killed and however:

    service (this process) ── stdin pipe ──> engine (`local.engine`) ── parent id ──> workers (`local.worker`)

The engine ends when its standard input closes, a worker when its parent is gone. Only pipes and process ids are used,
so it is the same on Linux and macOS.
"""

import asyncio
import fcntl
import http.client
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import boto3
import botocore.session
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from claude_workflow.local.guard import READY, ROOT_KEY, SEAL, Guard
from claude_workflow.local.mend import mend

REGION = "us-east-1"
ACCOUNT = "000000000000"

START_SECONDS = 60
STOP_SECONDS = 5
LOCK_SECONDS = 6
"""How long a start waits for the engine of a service that was just killed: it notices within a second or two."""

KEEP_ALIVE_SECONDS = 75
"""How long the engine keeps an idle connection, as ministack's own start has it."""

OPEN_FILES = 10_240
"""What macOS allows a process that may open as many files as it likes."""

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "NO_PROXY")
"""All that the engine and its functions get of the user's environment: no credential, no setting of another tool."""


NOT_THE_USERS = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}
"""Settings of botocore (file, environment variable, default) that keep the user's AWS profile out of local calls."""


ONE_AT_A_TIME = threading.Lock()
"""Clients are made so: a session of boto3's is for one thread."""


class EngineFailed(RuntimeError):
    """The engine could not be started; the text is one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    url: str
    pid: int
    state: Path
    """The directory that holds its S3, its log and its lock."""
    root: str = field(repr=False)
    """Secret of the root's key, drawn at the start: who knows it may do everything, until the engine is sealed."""

    def client(self, service: str, *, read_timeout: float = 60, connections: int = 10) -> Any:
        """A boto3 client of `service`, as the account's root; it repeats nothing by itself."""
        config = Config(
            signature_version="s3v4" if service == "s3" else None,  # the one that the guard verifies, in links too
            read_timeout=read_timeout,
            retries={"total_max_attempts": 1},
            max_pool_connections=connections,
            s3={"addressing_style": "path"},
            proxies={},
            inject_host_prefix=False,
        )
        with ONE_AT_A_TIME:
            return _session().client(
                service,
                region_name=REGION,
                endpoint_url=self.url,
                aws_access_key_id=ROOT_KEY,
                aws_secret_access_key=self.root,
                config=config,
            )

    def seal(self) -> None:
        """From now on, until it ends, the engine does nothing but what a deployed workflow needs (`local.guard`)."""
        request = AWSRequest("POST", self.url + SEAL, data=b"")
        SigV4Auth(Credentials(ROOT_KEY, self.root), "seal", REGION).add_auth(request)
        status = urllib3.request("POST", request.url, headers=dict(request.headers.items()), timeout=60).status
        if status != 204:
            raise EngineFailed(f"The engine could not be sealed ({status}).")


@cache
def _session() -> boto3.session.Session:
    """One for all clients: it reads what a service's description is, which is most of what making one takes, once."""
    return boto3.session.Session(botocore_session=botocore.session.Session(session_vars=NOT_THE_USERS))


@contextmanager
def running(state: Path) -> Iterator[Engine]:
    """The engine on a free loopback port, with its data under `state`; ended, with all it started, on the way out.

    Raises `EngineFailed` if another service uses `state`, or if the engine does not come up.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(state) as lock, _scratch(state) as scratch, (state / "engine.log").open("wb") as log:
        _mend(state)
        engine, process = _start(state, scratch, lock, log)
        try:
            _await_ready(engine, process)
            yield engine
        finally:
            _stop(process)


def _mend(state: Path) -> None:
    try:
        mend(state / "s3")
    except OSError as refused:
        raise EngineFailed(f"{refused.filename} cannot be used: {refused.strerror}.") from refused


@contextmanager
def _only_one(state: Path) -> Iterator[IO[bytes]]:
    """Holds the lock of `state`. The engine inherits it, so a killed service's lock lives as long as its engine."""
    with (state / "lock").open("ab") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineFailed(f"Another service uses {state}. End it, or choose another --state.") from None
                time.sleep(0.1)
        yield lock


@contextmanager
def _scratch(state: Path) -> Iterator[Path]:
    """The engine's own temporary directory, empty at the start: what a killed engine left there goes now."""
    path = state / "scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _start(state: Path, scratch: Path, lock: IO[bytes], log: IO[bytes]) -> tuple[Engine, "subprocess.Popen[bytes]"]:
    root = secrets.token_hex(32)
    with socket.create_server(("127.0.0.1", 0)) as door:  # bound here, or another process could take the port meanwhile
        port = door.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "claude_workflow.local.engine", str(door.fileno()), state.absolute()],
            cwd=Path(__file__).parent.parent.parent,
            env=_environment(port, state, scratch, root),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(lock.fileno(), door.fileno()),
            start_new_session=True,
        )
    return Engine(_url(port), process.pid, state, root), process


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _environment(port: int, state: Path, scratch: Path, root: str) -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        # One address and one account, whose policies are enforced on every call of a function.
        "GATEWAY_PORT": str(port),
        "AWS_ENDPOINT_URL": _url(port),
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": REGION,
        "AUTH": "true",
        "AWS_ACCESS_KEY_ID": ROOT_KEY,  # functions get their role's instead
        "AWS_SECRET_ACCESS_KEY": root,
        # Objects live on disk; all the rest is deployed anew at every start.
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(state / "s3"),
        "PERSIST_STATE": "0",
        # A waiting execution holds a thread while its functions need others to be answered.
        "MINISTACK_WORKER_THREADS": "256",
        "LAMBDA_ACCOUNT_CONCURRENCY": "100",
        "LAMBDA_WARM_TTL_SECONDS": "900",
        # Listeners nobody uses, and a Docker daemon whose containers are none of the engine's business.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": f"unix://{scratch}/no-docker",
        "LOG_LEVEL": "INFO",
    }


def _await_ready(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(engine.url):
        if process.poll() is not None or time.monotonic() > deadline:
            log = engine.state / "engine.log"
            raise EngineFailed(f"The engine did not start; {log} ends with:\n{_tail(log)}")
        time.sleep(0.05)


def _is_ready(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", READY)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """The engine's process: `ministack` behind the guard, ended when the service that started it is gone.

    Its arguments are the file descriptor of the socket to listen on, and the state directory.
    """
    threading.Thread(target=_end_with_service, daemon=True).start()
    from hypercorn.asyncio import serve
    from hypercorn.config import Config as Serving
    from ministack.app import app  # its import reads the environment and takes most of the start

    from claude_workflow.local import disk, seams
    from claude_workflow.local.bus import Events
    from claude_workflow.local.histories import Histories

    disk.install()
    open_files()
    serving = Serving()
    serving.bind = [f"fd://{sys.argv[1]}"]
    serving.keep_alive_timeout = KEEP_ALIVE_SECONDS
    state = Path(sys.argv[2])
    seams.replace(Histories(state).keep)
    kept = Events(app, state)
    asyncio.run(serve(Guard(kept, os.environ["AWS_SECRET_ACCESS_KEY"], seams.secret_of), serving))


def open_files() -> None:
    """Let this process have as many files open as it may: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OPEN_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


def _end_with_service() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS - 1)
    os._exit(1)


if __name__ == "__main__":
    main()
