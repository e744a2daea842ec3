"""A real S3 server for the benchmarks: SeaweedFS, from PyPI, on loopback, with a versioned bucket.

It is one program with a master, a volume server, a filer and the S3 gateway, and honours what the workflow leans on:
If-Match and If-None-Match on every write, pinned versions, ranges, UploadPartCopy, signatures of presigned requests.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "sessions"
SERVER = Path(sys.executable).with_name("weed")
"""From benchmarks/requirements.txt."""

KEY = "benchmark"
"""Access key and secret."""
REGION = "us-east-1"
START_SECONDS = 60
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
OFF = ("-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0")


class StorageFailed(RuntimeError):
    """The S3 server did not start."""


@dataclass(frozen=True)
class Storage:
    """A running server."""

    address: str
    """`host:port`."""


def client(url: str) -> Any:
    """A boto3 client for the server, or for a limiter before it; it repeats nothing, and waits as long as it takes."""
    retries = {"total_max_attempts": 1}
    checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(signature_version="s3v4", read_timeout=600, retries=retries, **checksums)
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key=KEY,
        config=config,
    )


@contextmanager
def running(folder: Path) -> Iterator[Storage]:
    """The server with its data in `folder`; killed on the way out. Raises `StorageFailed`."""
    data = folder / "s3"
    data.mkdir(parents=True)
    identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": KEY}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    s3_port, grpc_port, *ports = _free_ports(2 + len(PORTS))
    options = [f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    options += [f"-s3.port={s3_port}", f"-s3.port.grpc={grpc_port}", f"-s3.config={folder / 's3.json'}", *OFF]
    program = [
        str(SERVER),
        f"-logdir={folder}",
        "server",
        f"-dir={data}",
        "-filer",
        "-s3",
    ]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [*program, "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        )
    try:
        _await_bucket(f"http://127.0.0.1:{s3_port}", process)
        yield Storage(f"127.0.0.1:{s3_port}")
    finally:
        process.kill()  # asked to end, it takes a quarter of a minute to say goodbye
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        probes = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _await_bucket(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Makes the bucket and writes an object, which makes the server allocate its volumes."""
    deadline = time.monotonic() + START_SECONDS
    s3 = client(url)
    while True:
        try:
            s3.create_bucket(Bucket=BUCKET)
            s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
            s3.put_object(Bucket=BUCKET, Key="first", Body=b"first")
            return
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou":
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise StorageFailed(f"The S3 server did not start: {error}") from error
            time.sleep(0.1)
