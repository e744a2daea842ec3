"""The agent's network, in each sandbox: what hostile code reaches from in there, and who reaches what listens in there.

`network_world.py` is the handler, as root and as a user; without a sandbox it is as on Lambda. The whole of a run, with
the real CLI, is `test_hostile.py`'s.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdas.agent import launch, network
from lambdas.agent.launch import ABI_TCP, ABI_TRUNCATE, landlock_abi
from lambdas.agent.network import Handoff
from lambdas.egress import Egress
from lambdas.run_claude import _settled
from lambdas.settings import NETWORKS
from tests.support import ordinary_user
from tests.support.ordinary_user import PACKAGES, ROOT, USER
from tests.support.outside import SECRET
from tests.support.running import settings_of

OF_ROOT = ("landlock own", "landlock shared", "landlock open")
OF_A_USER = (
    *("bubblewrap own", "readonly own", "landlock own", "none own"),
    *("landlock shared", "none shared", "none open"),
)
OWN = [f"{name} as root" for name in OF_ROOT if "own" in name] + [f"{n} as a user" for n in OF_A_USER if "own" in n]
SHARED = ["landlock shared as root", "landlock shared as a user", "none shared as a user"]
SERVING = {"own servers", "any port", "shared addresses"}
ALLOWED = {"its proxy", "tunnels", *SERVING}
"""What the agent may get in a network of its own."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("python3", path="/usr/bin") or landlock_abi() < ABI_TRUNCATE,
    reason="the attempts are a program for Linux that the agent's own python3 runs, behind Landlock",
)

Came = dict[str, Any]


@pytest.fixture(scope="module")
def worlds() -> Callable[[str], Came]:
    """What came of the attempts in a world, by its name; tried with the others of its user when it is first wanted."""
    found: dict[str, Came] = {}

    def of(name: str) -> Came:
        what, _, who = name.partition(" as ")
        if who not in found:
            found[who] = _tried(who == "root")
        if what.endswith("own") and not found[who]["available"]:
            pytest.skip("This machine gives its users no network of their own.")
        return dict(found[who][what])

    return of


def _tried(root: bool) -> Came:
    if root and os.geteuid() != 0:
        pytest.skip("Only root can give the agent a user id of its own.")
    user = None if root or os.geteuid() != 0 else USER
    without = () if shutil.which("bwrap") else ("bubblewrap own",)
    names = [name for name in (OF_ROOT if root else OF_A_USER) if name not in without]
    python = sys.executable if root else ordinary_user.python()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        if user:
            os.chown(folder, user, user)
        done = subprocess.run(
            [python, "-m", "tests.support.network_world", f"{folder}/agents", *names],
            cwd=ROOT,
            env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}"},
            capture_output=True, text=True, user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    came: Came = json.loads(done.stdout)
    return came


def got(came: Came) -> dict[str, list[str]]:
    return {name: outcomes["got"] for name, outcomes in came["table"].items() if outcomes["got"]}


@pytest.mark.parametrize("name", OWN)
def test_nothing_is_reached_from_a_network_of_its_own(name: str, worlds: Callable[[str], Came]) -> None:
    """By TCP, UDP, names, ICMP, IPv6, raw sockets, netlink, abstract and other Unix sockets, another's network, the
    place where the listener was handed over, or a proxy of its own. On Lambda Unix sockets with names can be spoken to:
    all of them are the function's."""
    reached = got(worlds(name))
    if name.startswith("none"):
        assert [each for each in reached.pop("unix") if SECRET.decode() in each] == [f"got {SECRET!r}"]  # by its name
    assert set(reached) == ALLOWED


@pytest.mark.parametrize("name", [*OWN, *SHARED])
def test_by_its_proxy_the_one_host_that_is_allowed_is_reached(name: str, worlds: Callable[[str], Came]) -> None:
    """However else a host is spelled, whatever its name resolves to, at whatever port, and whomever TLS is for; and why
    not is in the run's record."""
    came = worlds(name)
    assert got(came)["tunnels"] == [f"got {SECRET!r}"]
    assert came["table"]["tunnels"]["tried"] > 20
    for why in ("not in this deployment's setting egress", "by its name", "no other", "which is not on the internet"):
        assert any(why in each for each in came["refused"]), why


@pytest.mark.parametrize("name", OWN)
def test_the_agents_own_servers_work_in_there(name: str, worlds: Callable[[str], Came]) -> None:
    """On any port, of IPv4 and IPv6, with the option that servers set; and so does its proxy."""
    came = worlds(name)
    assert got(came)["own servers"] == ["got b'its own'"] * came["table"]["own servers"]["tried"]
    assert got(came)["its proxy"] == ["got b'HTTP/1.1 403'"]


@pytest.mark.parametrize("name", OWN)
def test_what_listens_in_there_is_not_reached_from_outside(name: str, worlds: Callable[[str], Came]) -> None:
    """And takes no port from anybody there, `::1` included: who has it goes on to answer."""
    came = worlds(name)
    assert came["servers"] == 4
    assert came["answers"] == [SECRET.decode(), SECRET.decode(), "", ""]


@pytest.mark.skipif(landlock_abi() < ABI_TCP, reason="Landlock knows ports from Linux 6.7 on.")
@pytest.mark.parametrize("name", SHARED)
def test_in_a_shared_network_the_proxy_alone_is_reached(name: str, worlds: Callable[[str], Came]) -> None:
    """By TCP; and there is no UDP. Interfaces can be seen."""
    harmless = {"routes"} | ({"unix", *SERVING} if name.startswith("none") else set())
    assert got(worlds(name)).keys() - harmless == {"its proxy", "tunnels"}


@pytest.mark.skipif(landlock_abi() < ABI_TCP, reason="Landlock knows ports from Linux 6.7 on.")
@pytest.mark.parametrize("name", [*SHARED[:2], "landlock open as root"])
def test_nobody_is_served_by_the_agent_where_others_are(name: str, worlds: Callable[[str], Came]) -> None:
    """It listens nowhere, and gets no datagram that was meant for another program."""
    came = worlds(name)
    assert (came["servers"], got(came).keys() & SERVING) == (0, set())


@pytest.mark.skipif(landlock_abi() < ABI_TCP, reason="Landlock knows ports from Linux 6.7 on.")
def test_in_an_open_network_this_machines_services_are_closed(worlds: Callable[[str], Came]) -> None:
    """But for those on the web's ports, and what is asked by UDP."""
    assert got(worlds("landlock open as root")).keys() == {"its proxy", "tunnels", "udp", "routes"}


def test_the_attempts_are_real(worlds: Callable[[str], Came]) -> None:
    """Where nothing is closed, they reach what they are after."""
    reached = got(worlds("none open as a user"))
    assert {"its proxy", "tcp", "udp", "unix", "own proxy", "routes", *SERVING} <= set(reached)
    assert {f"got {SECRET!r}"} == set(reached["tcp"] + reached["udp"] + reached["own proxy"])


def test_on_aws_it_is_tried_and_on_one_machine_told(tmp_path: Path) -> None:
    """A deployment whose egress is open has the machine's in any case."""
    told = settings_of("http://model", tmp_path)
    tried = "own" if network.available() else "shared"
    settled = {each: _settled(replace(told, agent_network=each)).agent_network for each in NETWORKS}
    assert settled == {"tried": tried, "own": "own", "shared": "shared", "open": "open"}
    assert _settled(replace(told, agent_network="own", egress=Egress(open=True))).agent_network == "open"


WITHOUT = """
import subprocess, sys
from pathlib import Path
from claude_workflow.local import sandbox
from lambdas.agent import network
from lambdas.agent.environment import environment
from lambdas.agent.proxy import Proxy
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch
found = [network.available(), sandbox.network("none")]
with Scratch(Path(sys.argv[1]) / "session", Sandbox(network="own")) as scratch, Proxy([], inside=True) as proxy:
    launcher = scratch.launcher(Path("/bin/echo"), environment(scratch), proxy)
    found.append(subprocess.run([launcher, "ran"], capture_output=True, text=True).stdout)
print(found)
"""


def test_where_there_is_none_to_be_had_it_is_shared_and_never_left_out(tmp_path: Path) -> None:
    """As where a kernel or a container forbids it. A program that was to have one is not started without it."""
    said = []
    for limit in ("", "echo 0 > /proc/sys/user/max_net_namespaces; "):
        command = [
            "unshare",
            "-r",
            "sh",
            "-c",
            f'{limit}exec "$0" -c "$1" "$2"',
            sys.executable,
            WITHOUT,
            str(tmp_path),
        ]
        its_own = os.environ | {"TMPDIR": str(tmp_path)}
        done = subprocess.run(command, env=its_own, cwd=ROOT, capture_output=True, text=True)
        if "unshare failed" in done.stderr:
            pytest.skip("No user namespace may be made here.")
        said.append(done.stdout)
    assert said == ["[True, 'own', 'ran\\n']\n", "[False, 'shared', '']\n"]


def test_a_listener_is_taken_once(tmp_path: Path) -> None:
    """Its name is gone, and nobody listens there, before it is acknowledged; however long the directory's name is."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    handoff = Handoff(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as line:
        place = os.open(folder, os.O_PATH)
        line.connect(f"/proc/self/fd/{place}/{launch.HANDOFF}")
        os.close(place)
        socket.send_fds(line, [launch.TAKEN], [listener.fileno()])
        taken = handoff.taken()
        assert taken
        assert taken.getsockname() == listener.getsockname()
        assert line.recv(1) == launch.TAKEN
        taken.close()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become another user.")
def test_another_user_hands_over_nothing() -> None:
    """As whom root's agents run, at the place where root's own program is awaited; who comes next is heard."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as named, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = Path(named)
        folder.chmod(0o755)
        handoff = Handoff(folder)
        (folder / launch.HANDOFF).chmod(0o777)
        program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        program += "socket.send_fds(s, [b'.'], [0]); s.shutdown(1); print(s.recv(1))"
        command = ["/usr/bin/python3", "-c", program, str(folder / launch.HANDOFF)]
        with ThreadPoolExecutor(1) as pool, socket.socket(socket.AF_UNIX) as line:
            taking = pool.submit(handoff.taken)
            done = subprocess.run(command, user=USER, group=USER, extra_groups=[], capture_output=True, text=True)
            line.connect(str(folder / launch.HANDOFF))
            socket.send_fds(line, [launch.TAKEN], [listener.fileno()])
            taken = taking.result(timeout=10)
            assert taken
            assert taken.getsockname() == listener.getsockname()
            taken.close()
    assert "b'.'" not in done.stdout  # it is not told that anything was taken
