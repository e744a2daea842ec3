"""What a caller may ask, and who asks: every field with its rules, the request, and the ids of runs."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lambdas import materials, output_schema, pricing
from lambdas.errors import InvalidRequest, RequestTooLarge
from lambdas.repositories import is_address
from lambdas.settings import Caps, Clocks, Legs
from lambdas.strict import DEPTH, Json, too_deep

BODY_BYTES = 240 * 1024
"""Step Functions carries 256 KiB between states; the envelope around the body and its escapes need the rest."""

ARGUMENT_BYTES = 64 * 1024
"""The CLI takes these texts as arguments, and Linux allows 128 KiB for one (MAX_ARG_STRLEN)."""

VERBS = ("again", "fork", "rebase")
"""How a run is replayed: on its pinned version, into a new session, or on the newest version."""

RUN_ID = re.compile(r"run-[0-9a-f]{32}")
SESSION_ID = re.compile(r"session-[A-Za-z0-9-]{1,80}")
KEY = re.compile(r"[A-Za-z0-9._=+/-]{1,64}")
"""What a client sends as its key: also the request id that a gateway's 504 gave it, which is base64 text."""
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,199}")
TOOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}|mcp__[a-z][a-z0-9-]{0,30}(__[A-Za-z0-9_-]{1,128})?")
"""Bare names only: a rule such as `Bash(git *)` would pre-approve, and could not take the rest of Bash away. Tools of
the deployment's MCP servers are `mcp__SERVER__TOOL`; `mcp__SERVER` is all of a server's."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""Of a call that waits for an approval: see `lambdas.agent.approvals`."""
REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@#=,-]{0,249}")
"""A branch, a tag or a commit; git's own rules are stricter in places, and said by git."""
NO_TOOLS = ("all", "default", "none")
"""Words that mean many tools, or none, to Claude Code (`--tools default`) and its like."""


def _text(value: object, *, most: int | None = None) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not text"
    if "\0" in value:
        return "holds a NUL character"
    return None if most is None or size <= most else f"is longer than {most} bytes"


def _prompt(value: object) -> str | None:
    return _text(value) or (None if str(value).strip() else "must not be empty")


def _argument(value: object) -> str | None:
    return _text(value, most=ARGUMENT_BYTES)


def _matching(pattern: re.Pattern[str]) -> Callable[[object], str | None]:
    return lambda value: (
        None if isinstance(value, str) and pattern.fullmatch(value) else f"must match ^{pattern.pattern}$"
    )


def _bool(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _count(value: object) -> str | None:
    return (
        None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1
        else "must be a whole number from 1"
    )


def _positive(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        return "must be a number above 0"
    return None


def _schema(value: object) -> str | None:
    if not isinstance(value, dict):
        return "must be a JSON schema (an object)"
    try:
        output_schema.usable(value)
    except output_schema.Unusable as wrong:
        return str(wrong)
    return _argument(json.dumps(value))


def _tools(value: object) -> str | None:
    if not isinstance(value, list) or len(value) > 200:
        return "must be a list of at most 200 tool names"
    for tool in value:
        if not (isinstance(tool, str) and TOOL.fullmatch(tool)) or tool.lower() in NO_TOOLS:
            return f"must hold bare tool names such as Read; {str(tool)[:80]!r} is not one"
    return None


def _repository(value: object) -> str | None:
    rules: Mapping[str, Callable[[object], str | None]] = {"ref": _matching(REF), "depth": _count}
    if not isinstance(value, dict) or not is_address(value.get("url")):
        return "must be an object with the url of a repository, such as https://github.com/owner/name"
    for name, said in value.items():
        if name != "url" and name not in rules:
            return f"holds {name[:80]!r}; it knows url, ref and depth"
        if name in rules and (wrong := rules[name](said)):
            return f"has a {name} that {wrong}"
    return None


def _denied(value: object) -> str | None:
    if not isinstance(value, dict) or "digest" not in value or value.keys() - {"digest", "reason"}:
        return "must be an object with a digest and perhaps a reason"
    wrong = _matching(DIGEST)(value["digest"]) or _argument(value.get("reason", ""))
    return wrong and f"has a digest or a reason that {wrong}"


def covers(names: Collection[str], tool: str) -> bool:
    """Whether one of these names means the tool: its own, or its MCP server's."""
    return tool in names or (tool.startswith("mcp__") and "__".join(tool.split("__")[:2]) in names)


FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "prompt": _prompt,
    "session_id": _matching(SESSION_ID),
    "approve": _matching(DIGEST),
    "deny": _denied,
    "fork": _bool,
    "model": _matching(MODEL),
    "append_system_prompt": _argument,
    "max_turns": _count,
    "max_budget_usd": _positive,
    "max_session_usd": _positive,
    "max_caller_usd_per_day": _positive,
    "max_usd_per_day": _positive,
    "strict": _bool,
    "output_schema": _schema,
    "files": materials.wrong_files,
    "workspace": materials.wrong_workspace,
    "allowed_tools": _tools,
    "disallowed_tools": _tools,
    "timeout_seconds": _positive,
    "repository": _repository,
}
"""Every field of the body with what is wrong about a value, or None."""


@dataclass(frozen=True)
class Preference:
    """What a client says in the header `Prefer` (RFC 7240) of how it wants its answer. What is unknown, or malformed,
    is passed over, as the RFC has it."""

    long: bool = False
    """`respond-async`: whether it takes a 202, and its run may last longer than a POST."""
    wait: float = 0.0
    """`wait`: seconds that it waits for its answer before that."""

    @classmethod
    def parse(cls, header: object) -> "Preference":
        """Of a header's text, or of none."""
        asked: dict[str, str] = {}
        for each in header.split(",") if isinstance(header, str) else ():
            name, _, value = each.partition(";")[0].partition("=")
            asked.setdefault(name.strip().lower(), value.strip().strip('"'))
        if "respond-async" not in asked:
            return cls()
        wait = asked.get("wait", "")
        return cls(True, float(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else 0.0)


@dataclass(frozen=True)
class Request:
    """A valid request: who asks (from the gateway's context alone), under which key, what."""

    caller: str
    key: str
    requested_at: float
    """Epoch seconds at which the gateway took the request."""
    body: Json
    replay_of: str | None = None
    """The run whose work this one takes over: a replay by `fork` or `rebase`."""
    verb: str | None = None
    """How the run came from that one: `fork` or `rebase`; None for one that came by HTTP."""
    prefers: Preference = Preference()

    @classmethod
    def recall(cls, envelope: Json, record: Json) -> "Request":
        """The request of an earlier run, asked once more by its operator (the API's own envelopes say no `replay`).

        `again` is the run itself, which stays the fork or the rebase that it is. `fork` and `rebase` are runs of their
        own, whose keys derive from it: to repeat them is to ask for the same run. Each is long where that one was.
        Raises `InvalidRequest` for another verb.
        """
        verb, run = envelope["replay"], record["run_id"]
        if verb not in VERBS:
            raise InvalidRequest(f"A run is replayed by {', '.join(VERBS)}; {str(verb)[:80]!r} is not one of them.")
        requested_at = float(envelope["requested_at"]) / 1000
        prefers = Preference(bool(record.get("long")))
        if verb == "again":
            origin = record.get("replay_of")
            return cls(
                record["owner"], record["key"], requested_at, record["body"], origin, recorded_verb(record), prefers
            )
        return cls(record["owner"], _derived(run, verb), requested_at, record["body"], run, verb, prefers)

    @classmethod
    def parse(cls, envelope: Json, caps: Caps, clocks: Clocks, legs: Legs) -> "Request":
        """Raises `InvalidRequest` (its sentence names the field) or `RequestTooLarge`."""
        body = envelope.get("body")
        if envelope.get("oversize"):
            raise RequestTooLarge
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object with a prompt, all of it text that UTF-8 can carry.")
        if deep := next((name for name, value in body.items() if too_deep(value, DEPTH)), None):
            raise InvalidRequest(f"The field {deep[:80]} is nested more than {DEPTH} levels deep.")
        if len(json.dumps(body, ensure_ascii=False)) > BODY_BYTES:
            raise RequestTooLarge
        _check_fields(body)
        prefers = Preference.parse(envelope.get("prefer"))
        _check_caps(body, caps)
        _check_time(body, prefers, clocks, legs)
        if _bytes(body) > BODY_BYTES:
            raise RequestTooLarge
        return cls(
            str(envelope["caller"]), _key(envelope), float(envelope["requested_at"]) / 1000, body, prefers=prefers
        )

    @property
    def run_id(self) -> str:
        """The run that it names."""
        return run_id(self.caller, self.key)

    @property
    def body_hash(self) -> str:
        """Two bodies are the same if their canonical JSON is."""
        canonical = json.dumps(self.body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def session_id(self) -> str | None:
        """The session that it goes on with; None for a new one."""
        return self.body.get("session_id")

    @property
    def upload(self) -> str | None:
        """What it brings for the workspace, if it was uploaded."""
        return (self.body.get("workspace") or {}).get("upload")

    @property
    def judged(self) -> str | None:
        """The digest of the call that it approves or denies; None where it does neither."""
        denied = self.body.get("deny")
        return denied["digest"] if denied else self.body.get("approve")

    @property
    def copies(self) -> bool:
        """Whether the answer goes to a new session that starts as a copy of another."""
        return bool(self.body.get("fork")) or self.verb == "fork"


def run_id(caller: str, key: str) -> str:
    """The name of a run: the same caller with the same key means the same run, another caller never does."""
    return "run-" + hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()[:32]


def asked_run(caller: str, key: str, verb: str | None) -> str:
    """The run that an envelope is about: a replay by `fork` or `rebase` is a run of its own."""
    run = run_id(caller, key)
    return run if verb in (None, "again") else run_id(caller, _derived(run, verb))


def _derived(run: str, verb: str) -> str:
    """A key that no caller can send: `KEY` knows no colon."""
    return f"{run}:{verb}"


def recorded_verb(record: Json) -> str | None:
    """How a run came from the one that it names; records that do not say it yet have it at the end of their key."""
    said: str | None = record.get("verb")
    return said or (record["key"].removeprefix(f"{record['replay_of']}.") if record.get("replay_of") else None)


def _key(envelope: Json) -> str:
    """The key as it came: two that differ are two runs, and the gateway's own id, sent back as a key, is the same."""
    key = str(envelope["key"])
    if envelope.get("key_given") and not KEY.fullmatch(key):
        raise InvalidRequest(f"The header Idempotency-Key must match ^{KEY.pattern}$.")
    return key


def _bytes(body: Json) -> int:
    """Of the body as JSON, which it has to be wherever it goes from here, in whatever field."""
    try:
        return len(json.dumps(body, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise InvalidRequest("The body holds half of a surrogate pair, which is not text.") from None
    except ValueError:
        raise InvalidRequest(
            "The body holds a number that JSON does not have: NaN, or one as large as 1e999."
        ) from None


def _check_fields(body: Json) -> None:
    judges = [name for name in ("approve", "deny") if name in body]
    if "prompt" not in body and not judges:
        raise InvalidRequest("The field prompt is missing.")
    for name, value in body.items():
        if name not in FIELDS:
            raise InvalidRequest(f"The field {name[:80]!r} is unknown. Known: {', '.join(FIELDS)}.")
        if wrong := FIELDS[name](value):
            raise InvalidRequest(f"The field {name} {wrong}.")
    if len(judges) > 1:
        raise InvalidRequest("The fields approve and deny exclude each other.")
    if judges and "session_id" not in body:
        raise InvalidRequest(f"The field {judges[0]} needs the session_id in which a call waits.")
    if body.get("fork") and "session_id" not in body:
        raise InvalidRequest("The field fork needs a session_id to copy from.")


def _check_time(body: Json, prefers: Preference, clocks: Clocks, legs: Legs) -> None:
    most = legs.run if prefers.long else clocks.agent
    if body.get("timeout_seconds", 0) > most:
        more = f"; with the header Prefer: respond-async, {legs.run}" if not prefers.long else ""
        raise InvalidRequest(f"The field timeout_seconds may be at most {most} in this deployment{more}.")


def _check_caps(body: Json, caps: Caps) -> None:
    most = {
        "max_turns": caps.max_turns,
        "max_budget_usd": caps.max_budget_usd,
        "max_session_usd": caps.max_session_usd,
        "max_caller_usd_per_day": caps.max_caller_usd_per_day,
        "max_usd_per_day": caps.max_usd_per_day,
    }
    for name, cap in most.items():
        if name in body and cap is not None and body[name] > cap:
            raise InvalidRequest(f"The field {name} may be at most {cap:g} in this deployment.")
    if "repository" in body and not any(each.has(body["repository"]["url"]) for each in caps.repositories):
        raise InvalidRequest("The field repository names one that is not among this deployment's `repositories`.")
    _check_model(body.get("model", ""), caps.models)
    if caps.allowed_tools is not None:
        for tool in body.get("allowed_tools", []):
            if not covers(caps.allowed_tools, tool):
                raise InvalidRequest(f"The field allowed_tools names {tool}, which this deployment does not allow.")


def _check_model(model: str, models: Sequence[str] | None) -> None:
    """What Claude Code resolves itself, such as `opus`, is one of the deployment's; the agent's proxy sees to that."""
    if models is not None and pricing.MODEL.fullmatch(model) and model not in models:
        raise InvalidRequest(f"The field model names {model}; this deployment has {', '.join(models)}.")


@dataclass(frozen=True)
class Allowance:
    """What this run may use: the request's wishes within the deployment's caps."""

    max_turns: int
    max_budget_usd: float
    """For this run alone, in US dollars."""
    allowed_tools: list[str] | None
    disallowed_tools: list[str]
    strict: bool

    @classmethod
    def of(cls, body: Json, caps: Caps, max_budget_usd: float, turns: int) -> "Allowance":
        """`max_budget_usd` is what is left for this attempt, by whichever limit; `turns` is what the conversation that
        it goes on with has had in this run."""
        allowed = body.get("allowed_tools", caps.allowed_tools)
        return cls(
            max_turns=max(1, body.get("max_turns", caps.max_turns) - turns),
            max_budget_usd=max_budget_usd,
            allowed_tools=None if allowed is None else list(allowed),
            disallowed_tools=list(body.get("disallowed_tools", [])),
            strict=bool(body.get("strict", False)) or caps.strict,
        )
