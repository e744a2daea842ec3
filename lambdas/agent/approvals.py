"""Calls that wait for a person: what `ask_before` names is not made before somebody has approved that very call.

Claude Code asks here before each tool call (a PreToolUse hook, of HTTP, behind the run's token). Such a call of the
conversation's is *deferred*: the run ends as completed, with the call as its `pending`. The session's next run goes on
with it, and Claude Code asks again (CLI 2.1.332); then it is made or refused as that request says. In between lies a
transcript that the agent can write, so an approval is for a digest: of the call's own id, its tool and its input.

**It fails closed.** With these hooks no call is made that was not allowed here (`dontAsk`), an unreachable hook
included. What cannot be deferred without being lost is refused, and the model is told how to ask: one of several calls
in an answer, and one of a subagent's. An approved call is made once: its mark in the bucket is written, under a
condition, before it is allowed, and whoever finds it there does not know what became of the call, and does not repeat
it.

**It guards against mistakes.** Code that the model runs can do by itself whatever the run may do. Where a call needs
the proxy, as a push does and those of a remote MCP server do, it is refused there too, unless it is the approved one.
"""

import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lambdas import strict
from lambdas.agent.witness import Witness
from lambdas.strict import Json

PATH = "/before-each-call"
"""Where Claude Code asks, on the proxy."""

ASK_BYTES = 16 * 1024 * 1024

WHOLE_SECONDS = 10.0
"""How long a call waits for the rest of the answer that it is a part of: Claude Code may begin with it before."""

PUSHES = "git push"
"""What a command of Bash that pushes says; of `ask_before`, what is asked before one."""
PUSH = ("Bash", {"command": PUSHES})

NOT_APPROVED = "The user has not approved this call, so it was not made."
UNKNOWN = (
    "This call was approved, but an attempt that was cut off may have made it already, so it is not made again. Its "
    "outcome is unknown: look whether it was made."
)
ALONE = (
    "This call needs the user's approval, which can be asked for one call at a time: it was not made. Make it again as "
    "the only tool call of your answer."
)
OF_A_SUBAGENT = (
    "This call needs the user's approval, which a subagent cannot ask for: it was not made. Tell the main conversation "
    "to make it."
)


@dataclass(frozen=True)
class Verdict:
    """What the run's caller says of the call that waits."""

    digest: str
    approved: bool
    reason: str = ""
    """Why not, for the model."""


@dataclass
class Approvals:
    """Those of one run. Thread-safe."""

    asked: Sequence[str]
    """What is asked before: names of tools, with `*`; anything else is words of a command of Bash."""
    verdict: Verdict | None = None
    take: Callable[[], bool] = lambda: False
    """Marks the approved call as made; False where it was marked before."""
    pending: Json | None = None
    """The call that this run waits for: `tool`, `input`, `digest`."""
    judged: threading.Event = field(default_factory=threading.Event)
    """Set once Claude Code has asked for a call of an earlier run's, with which it goes on before anything else."""
    _granted: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def needed(self, tool: str, given: Json) -> bool:
        """Whether a call is to be asked for."""
        return any(_means(pattern, tool, given) for pattern in self.asked)

    def decide(self, body: bytes, witness: Witness) -> Json:
        """What Claude Code is told, who asks with this body. Raises `ValueError` for what it would not ask."""
        call = strict.read(body)
        try:
            tool, given, name = str(call["tool_name"]), dict(call["tool_input"]), str(call["tool_use_id"])
        except (TypeError, KeyError, ValueError):
            raise ValueError("no call of a tool") from None
        decision, reason = self._decide(tool, given, name, witness, of_agent=bool(call.get("agent_id")))
        said = {"hookEventName": "PreToolUse", "permissionDecision": decision, "permissionDecisionReason": reason}
        return {"hookSpecificOutput": said}

    def _decide(self, tool: str, given: Json, name: str, witness: Witness, *, of_agent: bool) -> tuple[str, str]:
        if not witness.called(name):  # of an earlier run, or nobody's
            return self._judge(tool, given, name)
        if not self.needed(tool, given):
            return "allow", ""
        if of_agent:
            return "deny", OF_A_SUBAGENT
        return self._defer(tool, given, name) if _alone(name, witness) else ("deny", ALONE)

    def _judge(self, tool: str, given: Json, name: str) -> tuple[str, str]:
        verdict = self.verdict
        self.judged.set()
        if verdict is None or verdict.digest != digest(name, tool, given):
            return "deny", NOT_APPROVED
        if not verdict.approved:
            return "deny", f"{NOT_APPROVED} {verdict.reason}".strip()
        if not self.take():
            return "deny", UNKNOWN
        with self._lock:
            self._granted.append(_words(tool, given))
        return "allow", "The user has approved this call."

    def _defer(self, tool: str, given: Json, name: str) -> tuple[str, str]:
        self.pending = {"tool": tool, "input": given, "digest": digest(name, tool, given)}
        return "defer", "The user is asked first."

    def spend(self, tool: str, given: Json) -> bool:
        """Whether a call that the proxy would pass on may be made: if it is to be asked for, the approved one, once."""
        if not self.needed(tool, given):
            return True
        with self._lock:
            if (words := _words(tool, given)) not in self._granted:
                return False
            self._granted.remove(words)
            return True

    def spend_push(self) -> bool:
        """The same of a push of git's, in which the proxy sees no command: one for each approved call that pushes."""
        if not self.needed(*PUSH):
            return True
        with self._lock:
            pushes = [words for words in self._granted if _means(PUSHES, *json.loads(words))]
            if pushes:
                self._granted.remove(pushes[0])
            return bool(pushes)


def digest(name: str, tool: str, given: Json) -> str:
    """Of a call: its id, its tool and its input."""
    return hashlib.sha256(json.dumps([name, tool, given], sort_keys=True).encode()).hexdigest()


def _words(tool: str, given: Json) -> str:
    return json.dumps([tool, given], sort_keys=True)


def _means(pattern: str, tool: str, given: Json) -> bool:
    if re.fullmatch(r"[A-Za-z][\w*-]*", pattern) and (pattern.startswith("mcp__") or pattern[0].isupper()):
        return fnmatch.fnmatchcase(tool, pattern)
    command = given.get("command")
    if tool != "Bash" or not isinstance(command, str):
        return False
    words = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in pattern.split()]
    parts = re.split(r"[;&|\n]", command.replace("\\\n", ""))  # the shell puts lines together first
    return any(_has_in_order(part, words) for part in parts)


def _has_in_order(part: str, words: Sequence[re.Pattern[str]]) -> bool:
    """Word by word, each behind the one before: in a time that grows as the text does, which is the model's. One
    expression for all of them would try every beginning with every end, and hold up the whole process meanwhile."""
    at = 0
    for word in words:
        found = word.search(part, at)
        if found is None:
            return False
        at = found.end()
    return True


def _alone(name: str, witness: Witness) -> bool:
    """Whether it is the only call of its answer, which is waited for."""
    until = time.monotonic() + WHOLE_SECONDS
    while (calls := witness.calls_beside(name)) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return calls == 1
