"""What a push would change, read before it is passed on, and the answer to one that may not be.

A push begins with commands, each an old and a new object and the name that is to be set from one to the other (git's
gitprotocol-pack), before the pack with the objects. **They are read as the host reads them, or not let through**: what
could be taken in two ways, or changes something else than a branch or a tag, is refused. Whether an update goes forward
or throws commits away cannot be told from them, nor from a pack, which need not hold what the name stood at: so a name
that is protected is not updated at all.

A refusal is said in git's own words, which is how the agent gets to see it.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

from lambdas.agent.messages import Unreadable, refuse_encoded
from lambdas.agent.upstream import BODY_BYTES, Reply, Sent

PROBE = b"0000"
"""What git sends before a push that it sends in chunks, to see whether it is let in."""

LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
OBJECT = rb"(?:[0-9a-f]{40}|[0-9a-f]{64})"
COMMAND = re.compile(OBJECT + rb" " + OBJECT + rb" (?P<ref>(?!.*(?:\.\.|//))[^\x00-\x20\x7f]+)")
SHALLOW = re.compile(rb"shallow [0-9a-f]{40,64}")
COMMANDS = 1000
"""How many names one push may set."""

REPORTS = {"report-status", "report-status-v2"}
"""Either says that its sender takes a report of each name."""

BRANCHES, TAGS = "refs/heads/", "refs/tags/"
LINE_BYTES = 1000
"""How much of an answer goes into one packet, which may have 65,516 bytes."""

UNAPPROVED = "the user is asked before each push, and has not approved this one; make it by a call of `git push`"
TOO_LARGE = f"a push may have {BODY_BYTES >> 20} MiB; push in smaller steps, and keep large files out of the repository"


def wrong(request: Sent, protected: Sequence[str], approved: Callable[[], bool] = lambda: True) -> Reply | str | None:
    """Why a push is not to be passed on: in git's own words, if its sender understands them. `protected` are branches,
    in which `*` is any text; `approved` is asked last, of what nothing else is wrong with."""
    try:
        refuse_encoded(request.named)
        refs, capabilities = commands(request.body)
    except Unreadable as problem:
        return f"not a push that can be read: {problem}"
    why = TOO_LARGE if request.cut else _why_not(refs, capabilities, protected)
    if refs and not why and not approved():
        why = UNAPPROVED
    return _report(refs, capabilities, why) if why and capabilities & REPORTS else why


def commands(body: bytes) -> tuple[list[str], frozenset[str]]:
    """The names that a push sets, and what its sender can do. Raises `Unreadable`."""
    if body == PROBE:
        return [], frozenset()
    refs: list[str] = []
    capabilities: frozenset[str] | None = None
    for line in _lines(body):
        command, nul, said = line.partition(b"\0")
        if SHALLOW.fullmatch(line):
            continue
        if nul and capabilities is not None:
            raise Unreadable("it says twice what it can do")
        if nul or capabilities is None:
            capabilities = frozenset(said.decode("latin-1").split())
        found = COMMAND.fullmatch(command)
        if not found or len(refs) == COMMANDS:
            raise Unreadable(f"a command is none, or there are more than {COMMANDS}")
        refs.append(found["ref"].decode("latin-1"))
    if capabilities is None:
        raise Unreadable("there is no command")
    return refs, capabilities


def _lines(body: bytes) -> Iterator[bytes]:
    """The packets before the first flush, without the newline at their end."""
    at = 0
    while (length := body[at : at + 4]) != b"0000":
        size = int(length, 16) if LENGTH.fullmatch(length) else 0
        if size < 5 or at + size > len(body):
            raise Unreadable("a packet is none")
        yield body[at + 4 : at + size].removesuffix(b"\n")
        at += size


def _why_not(refs: Sequence[str], capabilities: frozenset[str], protected: Sequence[str]) -> str | None:
    if "push-options" in capabilities:
        return "options of a push (-o) can do more than push, and are not passed on"
    for ref in refs:
        if not ref.startswith((BRANCHES, TAGS)):
            return f"{ref}: only branches and tags can be pushed"
        branch = ref.removeprefix(BRANCHES)
        # Some hosts keep names on a file system to which Main is main.
        if branch != ref and any(fnmatch.fnmatchcase(branch.lower(), name.lower()) for name in protected):
            return f"{branch} is protected in this deployment; push another branch"
    return None


def _report(refs: Sequence[str], capabilities: frozenset[str], why: str) -> Reply:
    """What git's server says of a push, every name of which is refused."""
    lines = [b"unpack ok\n", *(f"ng {ref} {why}\n".encode("latin-1", "replace") for ref in refs)]
    report = b"".join(map(_packet, lines)) + b"0000"
    if "side-band-64k" in capabilities:
        pieces = (report[at : at + LINE_BYTES] for at in range(0, len(report), LINE_BYTES))
        report = b"".join(_packet(b"\x01" + piece) for piece in pieces) + b"0000"
    return Reply(HTTPStatus.OK, "application/x-git-receive-pack-result", report, why)


def _packet(content: bytes) -> bytes:
    return b"%04x%b" % (len(content) + 4, content)
