"""Becomes the CLI: a process that gives up what the agent shall not have, and then executes it.

A script of some lines calls `main` in a Python without site packages. It stands between every run and its first
request: some 15 ms, so it imports what is there anyway (typing, json and pathlib would double that).

**Landlock** (Linux ≥ 6.2 here, for before that it lets files be emptied) takes files, and from 6.7 on TCP ports, away
from a process and all that it starts, without privilege or installation. It takes no Unix sockets, though, and behind
those of a user's own daemons (D-Bus, tmux, Docker) stands a shell outside; nor does it know TCP by its other names
(MPTCP, fast open), or a server that listens without a port of its choice. So a **seccomp** filter leaves TCP and UDP,
lets nobody listen, and takes io_uring, which would go round the filter. It also takes what the kernel would keep for a
user beyond the run: keys, System V objects, message queues.

Nor does Landlock know chmod and utime, which are open to who has the user's own id. Where a user may have a **mount
namespace**, all the file system but the run's own directories is read-only in it.

Where a process may have a **network namespace**, the agent's has nothing but loopback, where it may do what it likes:
the proxy is all that is there beside it. It listens on a socket that is opened in there, and handed out to it
(`network`). Elsewhere Landlock and the filter leave the proxy's port, and no UDP.

Numbers are from Linux' uapi headers: landlock.h, seccomp.h, bpf_common.h, audit.h, unistd.h, sched.h, mount.h,
capability.h, sockios.h, if.h.
"""

import _socket  # what `socket` would add to it costs 10 ms
import ctypes
import errno
import os
import resource
import stat
import struct
import sys

TYPE_CHECKING = False  # a type checker takes it for typing's, whose import would cost 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from lambdas.agent.sandbox import Orders


PR_SET_NO_NEW_PRIVS = 38
PR_GET_SECCOMP, PR_SET_SECCOMP = 21, 22
SECCOMP_MODE_FILTER = 2

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION = 1
PATH_BENEATH, NET_PORT = 1, 2
ABI_TRUNCATE, ABI_TCP, ABI_IOCTL, ABI_SCOPE = 3, 4, 5, 6
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
CHANGE = (1 << 15) - 1
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1, 2
ABSTRACT_SOCKETS_AND_SIGNALS = 3

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
CAPABILITY_VERSION = 0x20080522
MOUNT_ATTR_RDONLY = 1

SIOCSIFFLAGS = 0x8914
IFF_UP, IFF_RUNNING = 1, 1 << 6
BACKLOG = 64
"""How many connections wait for the proxy to take them."""
HANDOFF = "handoff"
"""The name of the Unix socket where the proxy takes its listener."""
TAKEN = b"."
"""What it answers when it has it, and nobody else can hand it one there any more."""

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "listen": (50, 201),
    "setsockopt": (54, 208),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}
"""Numbers of system calls, on x86_64 and aarch64."""
OUTLIVING = [name for name in CALLS if name.startswith(("shm", "sem", "msg", "mq_")) or "key" in name]
"""Calls that make or use what the kernel keeps when the run's processes are gone."""
ON_OTHERS = {"prlimit64": (0,), "setpriority": (0, 1), "ioprio_set": (0,)} | {
    name: (0,) for name in CALLS if name.startswith("sched")
}
"""Calls that set limits and priorities of any process of the same user, and so the handler's for as long as it lives;
with the arguments that have to be 0, which means the caller itself."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET = 1, 2, 3, 5
SOCK_FLAGS = 0o2004000
"""SOCK_CLOEXEC and SOCK_NONBLOCK, which go with any type."""
IPPROTO_TCP, IPPROTO_UDP, NETLINK_ROUTE = 6, 17, 0
Protocols = dict[int, tuple[int, ...]]
"""By the types of sockets."""
TCP: Protocols = {SOCK_STREAM: (0, IPPROTO_TCP)}
UDP: Protocols = {SOCK_DGRAM: (0, IPPROTO_UDP)}
ROUTE: Protocols = {SOCK_RAW: (NETLINK_ROUTE,), SOCK_DGRAM: (NETLINK_ROUTE,)}
"""getaddrinfo(3) asks for the machine's addresses by netlink."""
UNIX: Protocols = dict.fromkeys((SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET), (0,))
CONNECTED = (SOCK_STREAM, SOCK_SEQPACKET)
"""Pairs of Unix sockets that lead to each other alone. From one for datagrams they can be sent anywhere."""
SOL_SOCKET, SO_REUSEADDR, SO_REUSEPORT = 1, 2, 15
MSG_FASTOPEN = 0x20000000
X32 = 0x40000000


def main(orders: "Orders", instead: "Callable[[str], None] | None" = None) -> None:
    """Replaces this process by the program of the orders. What fails ends it, with the reason on stderr.

    `instead` is what that program would do with its last argument: where the wall is up without another program of the
    system's, it is called here and nothing is executed, so that this Python's files may lie beyond the wall.
    """
    command = [orders["program"], *sys.argv[1:]]
    if os.getpgrp() != os.getpid():
        os.setsid()  # what is in this session and its process groups is the run's, and can be killed at once
    _limit(orders)
    if orders["network"] == "own":
        leave_the_network()
        if orders["handoff"]:
            _listen_for_the_proxy(orders["ports"][-1], orders["handoff"])
    if orders["sandbox"] == "readonly":
        _close_the_rest(orders["write"])
    rules = _rules(orders) if sys.platform == "linux" else None
    if orders["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[orders["uid"]] * 3) if hasattr(os, "setresgid") else os.setgid(orders["uid"])
        os.setresuid(*[orders["uid"]] * 3) if hasattr(os, "setresuid") else os.setuid(orders["uid"])
    if sys.platform == "linux":
        _restrict(rules, orders)
    if instead and orders["sandbox"] not in ("bubblewrap", "seatbelt"):
        if sys.platform == "linux":
            _call("capset", None, struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24))  # an exec would take them
        instead(command[-1])
        return
    if orders["sandbox"] == "bubblewrap":
        command = [_found("bwrap", orders["environment"]["PATH"]), *_bubblewrap(orders), "--", *command]
    if orders["sandbox"] == "seatbelt":
        command = ["/usr/bin/sandbox-exec", "-p", _seatbelt(orders), *command]
    os.execve(command[0], command, orders["environment"])  # with a path: looking for one imports what is closed by now


def leave_the_network() -> None:
    """A network namespace of its own, with loopback and nothing else. Raises OSError where there is none to be had."""
    _unshare(CLONE_NEWNET)
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    up = struct.pack("16sH22x", b"lo", IFF_UP | IFF_RUNNING)
    _call("ioctl", None, any_socket.fileno(), ctypes.c_ulong(SIOCSIFFLAGS), up)
    any_socket.close()


def _listen_for_the_proxy(port: int, handoff: str) -> None:
    """Open a listener, and return when the proxy has it. The SDK leaves this process no descriptor that it could pass
    it by, so it goes by a Unix socket with a name, in the directory `handoff`."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    folder = os.open(handoff, os.O_PATH | os.O_DIRECTORY)  # an address of such a socket has room for 107 bytes
    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    line.connect(f"/proc/self/fd/{folder}/{HANDOFF}")
    line.sendmsg([TAKEN], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", listener.fileno()))])
    if line.recv(1) != TAKEN:
        raise OSError(errno.ECONNREFUSED, "the proxy takes no listener")
    line.close()
    os.close(folder)
    listener.close()


def _unshare(namespaces: int) -> None:
    """Namespaces of its own; for who is not root, in a user namespace in which the user is itself. The rights that come
    with that end with the exec, since the user is not root there."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", None, namespaces)
        return
    _call("unshare", None, CLONE_NEWUSER | namespaces)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        opened = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(opened, text.encode())
        os.close(opened)


def _close_the_rest(write: list[str]) -> None:
    """A mount namespace where all but `write` is read-only. Devices and pipes can be written to all the same."""
    _unshare(CLONE_NEWNS)
    _mount(None, "/", MS_REC | MS_PRIVATE)  # what is mounted later stays outside
    for path in write:
        _mount(path, path, MS_BIND)
    _set_mount("/", MOUNT_ATTR_RDONLY, 0)
    for path in write:
        _set_mount(path, 0, MOUNT_ATTR_RDONLY)
    os.chdir(os.getcwd())  # noqa: PTH109 - into the mount that lies there now, without importing pathlib


def _mount(source: str | None, target: str, flags: int) -> None:
    _call("mount", None, source and os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None)


def _set_mount(path: str, on: int, off: int) -> None:
    """Switches attributes of a mount, and of those below."""
    attributes = struct.pack("=QQQQ", on, off, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    _call("mount_setattr", MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), AT_RECURSIVE, attributes, size)


def _found(program: str, path: str) -> str:
    places = (f"{place}/{program}" for place in path.split(":"))
    return next((found for found in places if os.access(found, os.X_OK)), program)


def _limit(orders: "Orders") -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_FSIZE, orders["file_bytes"])
    if sys.platform == "linux":
        _lower(
            resource.RLIMIT_NPROC,
            orders["processes"] + _threads(os.getuid() if orders["uid"] is None else orders["uid"]),
        )


def _lower(limit: int, wanted: int) -> None:
    _, hard = resource.getrlimit(limit)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(limit, (most, most))


def _threads(uid: int) -> int:
    """How many the user has now: the kernel's limit counts all of them."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    count += len(list(os.scandir(f"/proc/{entry.name}/task")))
            except OSError:  # it has ended
                pass
    return count


def landlock_abi() -> int:
    """The version of Landlock that the kernel offers; 0: none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)))


def _rules(orders: "Orders") -> int | None:
    """What Landlock is to allow, as an open file; None where it has nothing to say."""
    abi = landlock_abi()
    files = 0
    if orders["sandbox"] in ("landlock", "readonly"):
        if abi < ABI_TRUNCATE:
            raise OSError(errno.EOPNOTSUPP, f"Landlock is of version {abi}, below {ABI_TRUNCATE}")
        files = CHANGE | (IOCTL_DEV if abi >= ABI_IOCTL else 0)
    ports = _closed_ports(orders) if abi >= ABI_TCP else 0
    scoped = ABSTRACT_SOCKETS_AND_SIGNALS if abi >= ABI_SCOPE else 0
    if not (files or ports or scoped):
        return None
    attributes = struct.pack("=QQQ", files, ports, scoped)
    rules = _call("landlock_create_ruleset", CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, access in ((orders["read"], READ), (orders["devices"], OF_FILES), (orders["write"], files)):
        for path in paths if files else ():
            _allow_path(rules, path, access & files)
    for port in orders["ports"] if ports else ():
        _call("landlock_add_rule", ADD_RULE, rules, NET_PORT, struct.pack("=QQ", CONNECT_TCP, port), 0)
    return rules


def _closed_ports(orders: "Orders") -> int:
    """What may be done with the ports of the orders alone. With a network of its own there is nothing else."""
    if orders["network"] == "own":
        return 0
    if orders["sandbox"]:
        return BIND_TCP | CONNECT_TCP
    return CONNECT_TCP if orders["network"] == "shared" else 0


def _allow_path(rules: int, path: str, access: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # /lib64 is not everywhere
        return
    if not stat.S_ISDIR(os.fstat(opened).st_mode):
        access &= OF_FILES
    _call("landlock_add_rule", ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
    os.close(opened)


def _restrict(rules: int | None, orders: "Orders") -> None:
    """From here on for good, for this process and all that it starts."""
    strict = orders["sandbox"] is not None or orders["uid"] is not None
    _call("prctl", None, PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    if rules is not None:
        _call("landlock_restrict_self", RESTRICT_SELF, rules, 0)
        os.close(rules)
    machine = os.uname().machine
    if strict and machine not in AUDIT:
        raise OSError(errno.ENOSYS, f"no filter of system calls is known for {machine}")
    if strict or (machine in AUDIT and _libc().prctl(PR_GET_SECCOMP) >= 0):
        _filter(machine, strict, orders["network"])


def _filter(machine: str, strict: bool, network: str) -> None:
    """Refuses system calls; `strict`: also those that lead to others on the machine."""
    families = _families(strict, network)
    column = list(AUDIT).index(machine)
    number = {name: numbers[column] for name, numbers in CALLS.items()}
    program = _step(LOAD, ARCHITECTURE) + _step(EQUAL, AUDIT[machine], 1, 0) + _refuse(errno.EPERM)
    program += _step(LOAD, CALL) + _step(AT_LEAST, X32, 0, 1) + _refuse(errno.ENOSYS)
    for name in [*OUTLIVING, "io_uring_setup"] if families else OUTLIVING:
        program += _step(EQUAL, number[name], 0, 1) + _refuse(errno.ENOSYS)
    for name, zeros in ON_OTHERS.items():
        program += _only_on_itself(number[name], zeros)
    if families:
        program += _only_for(number["socket"], _argument(0) + _cases(families) + _refuse(errno.EAFNOSUPPORT))
    if strict:
        program += _only_for(number["socketpair"], _types(dict.fromkeys(CONNECTED, (0,))))
    if strict and network != "own":
        program += _only_for(number["listen"], _refuse(errno.EACCES)) + _no_sharing(number["setsockopt"])
    if strict or network == "shared":
        for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            program += _no_fast_open(number[name], flags)
    program += _step(RETURN, ALLOW)
    steps = ctypes.create_string_buffer(program)
    filtering = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    _call("prctl", None, PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), filtering, 0, 0)


LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
CALL, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def _step(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    """One instruction of the filter; jumps count the instructions to pass over."""
    return struct.pack("=HBBI", code, on_true, on_false, value)


def _refuse(error: int) -> bytes:
    return _step(RETURN, REFUSE | error)


def _argument(number: int) -> bytes:
    """Its lower half, which is all of an int."""
    return _step(LOAD, ARGUMENTS + 8 * number)


def _families(strict: bool, network: str) -> list[tuple[int, bytes]]:
    """The families of sockets that there are, each with what to do for its types; none where all are.

    Not all are of a network namespace (vsock is of none), so that does not replace this. Nothing closes ports of UDP's.
    """
    if not strict and network == "open":
        return []
    of_ip = TCP if network == "shared" else TCP | UDP
    families = {AF_INET: of_ip, AF_INET6: of_ip, AF_NETLINK: ROUTE}
    if not strict:
        families[AF_UNIX] = UNIX
    return [(family, _types(types)) for family, types in families.items()]


def _types(types: Protocols) -> bytes:
    found = [(kind, _protocols(protocols)) for kind, protocols in types.items()]
    bare = _argument(1) + _step(AND, ~SOCK_FLAGS & 0xFFFFFFFF)
    return bare + _cases(found) + _refuse(errno.EPROTONOSUPPORT)


def _protocols(protocols: tuple[int, ...]) -> bytes:
    return _argument(2) + _cases([(one, _step(RETURN, ALLOW)) for one in protocols]) + _refuse(errno.EPROTONOSUPPORT)


def _cases(cases: list[tuple[int, bytes]]) -> bytes:
    """What to do for each value of what was loaded; each ends with a return."""
    return b"".join(_step(EQUAL, value, 0, len(steps) // 8) + steps for value, steps in cases)


def _no_sharing(call: int) -> bytes:
    """Of an address with another socket, whose datagrams would come here."""
    shared = _cases([(option, _refuse(errno.EACCES)) for option in (SO_REUSEADDR, SO_REUSEPORT)])
    sockets = _cases([(SOL_SOCKET, _argument(2) + shared + _step(RETURN, ALLOW))])
    return _only_for(call, _argument(1) + sockets + _step(RETURN, ALLOW))


def _no_fast_open(call: int, flags: int) -> bytes:
    test = _argument(flags) + _step(ANY_BIT, MSG_FASTOPEN, 0, 1) + _refuse(errno.EOPNOTSUPP)
    return _only_for(call, test + _step(RETURN, ALLOW))


def _only_on_itself(call: int, zeros: tuple[int, ...]) -> bytes:
    tests = [_argument(which) + _step(EQUAL, 0, 1, 0) + _refuse(errno.EPERM) for which in zeros]
    return _only_for(call, b"".join(tests) + _step(RETURN, ALLOW))


def _only_for(call: int, steps: bytes) -> bytes:
    return _step(EQUAL, call, 0, len(steps) // 8) + steps


def _call(name: str, number: int | None, *arguments: object) -> int:
    """A system call by its number, or where it has none, by the C library's function. Raises OSError, with its name, if
    the kernel refuses."""
    libc = _libc()
    result = libc[name](*arguments) if number is None else libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return int(result)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _bubblewrap(orders: "Orders") -> list[str]:
    """Its arguments: a file system of its own, with its own /tmp and /dev, its own processes and System V objects."""
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]
    for path in orders["read"]:
        if path != "/proc":
            arguments += ["--ro-bind-try", path, path]
    for path in orders["write"]:
        arguments += ["--bind", path, path]
    return [*arguments, "--chdir", orders["environment"]["PWD"]]


def _seatbelt(orders: "Orders") -> str:
    """A profile for macOS' sandbox-exec, where later rules win. It allows what it does not name."""
    rules = ["(version 1)", "(allow default)", "(deny file-write*)", "(deny signal (target others))"]
    rules += [f"(deny file-read* (subpath {_quoted(path)}))" for path in orders["hidden"]]
    rules += [f"(allow file-read* (subpath {_quoted(path)}))" for path in orders["read"] + orders["write"]]
    rules += [f"(allow file-write* (subpath {_quoted(path)}))" for path in orders["write"] + orders["devices"]]
    rules += ['(deny network-outbound (remote ip "localhost:*"))' if orders["network"] == "open" else "(deny network*)"]
    rules += [f'(allow network-outbound (remote ip "localhost:{port}"))' for port in orders["ports"]]
    return "\n".join(rules)


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
