"""A program in a run's sandbox, and what is around it: the program of `test_network.py`, which can be another user's.

For each of its arguments, a sandbox and a network, it prints what came of `outward.py` in there, and what is said at
ports of this machine's while the agent listens wherever it can.
"""

import json
import shutil
import socket
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from lambdas.agent import network
from lambdas.agent.credential import Secret
from lambdas.agent.environment import environment
from lambdas.agent.processes import Processes, seal
from lambdas.agent.proxy import Proxy
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import anthropic
from lambdas.egress import Egress
from tests.support.outside import outside

PYTHON = Path("/usr/bin/python3")
SECONDS = 60


def came(kind: str, which: str, folder: Path) -> dict[str, Any]:
    session = str(uuid.uuid4())
    sandbox = Sandbox.of(kind, session, network=which)
    with (
        Scratch(folder / session, sandbox) as scratch,
        outside(scratch.root) as told,
        _proxy(sandbox, told["tcp"]) as proxy,
        Processes(scratch.root, sandbox),
    ):
        shutil.copy(Path(__file__).parent / "outward.py", scratch.workspace)
        (scratch.workspace / "outside.json").write_text(json.dumps(told))
        for path in scratch.workspace.iterdir():
            path.chmod(0o644)

        def started(*arguments: str) -> subprocess.Popen[str]:
            launcher = scratch.launcher(PYTHON, environment(scratch) | proxy.environment, proxy)
            command, pipe = [str(launcher), "outward.py", "outside.json", *arguments], subprocess.PIPE
            return subprocess.Popen(command, cwd=scratch.workspace, stdin=pipe, stdout=pipe, text=True)

        with started() as outward:
            said, _ = outward.communicate(timeout=SECONDS)
        with started("listen") as listening:
            assert listening.stdout
            servers = int(listening.stdout.readline())
            asked = [(address, port) for port in (told["tcp"], told["free"]) for address in ("127.0.0.1", "::1")]
            answers = [_answer(*each) for each in asked]
            listening.communicate(timeout=SECONDS)
        refused = [row.why for row in proxy.meter.refusals.rows]
        return {"table": json.loads(said), "servers": servers, "answers": answers, "refused": refused}


NAMES = {
    "allowed.example": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "rebinding.example": ["127.0.0.1", "10.0.0.1"],
    "mapped.example": ["::ffff:10.0.0.1"],
}
"""The hosts of the setting `egress`, with what they resolve to. Of their addresses, the first is let through."""


def _proxy(sandbox: Sandbox, port: int) -> Proxy:
    """Which leads to a service of this machine's, as if that were on the internet."""
    tunnels = Tunnels(
        Egress(tuple(NAMES)), resolve=NAMES.__getitem__, may_reach=lambda address: address == "127.0.0.1", port=port
    )
    model = anthropic(Secret(lambda: "key"), "http://127.0.0.1:9")
    return Proxy([model], tunnels=tunnels, inside=sandbox.its_own_network)


def _answer(address: str, port: int) -> str:
    """What is said at a port of this machine's; nothing where nobody listens."""
    with suppress(ConnectionRefusedError), socket.create_connection((address, port), timeout=0.5) as line:
        try:
            return line.recv(100).decode()
        except TimeoutError:
            return "somebody listens"
    return ""


if __name__ == "__main__":
    tried = {"available": network.available()}
    seal()
    folder = Path(sys.argv[1])
    worlds = {f"{kind} {which}": came(kind, which, folder) for kind, which in map(str.split, sys.argv[2:])}
    print(json.dumps(tried | worlds))
