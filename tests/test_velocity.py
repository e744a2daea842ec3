"""The API's mapping templates on Apache Velocity itself, whose variant API Gateway runs: what `local.mapping` makes of
them, to the byte.

Velocity, `$util.escapeJavaScript` (of Apache Commons) and the values that JSON becomes are Java's; what `$input.json`
gives is ours, since nobody knows how AWS writes it. The driver is `Velocity.java`.
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.api import read_api
from claude_workflow.local.mapping import Input, render
from lambdas import errors
from lambdas.request import BODY_BYTES
from lambdas.strict import Json
from tests.support import foreign_programs
from tests.support.texts import NASTY

DRIVER = Path(__file__).parent / "support" / "Velocity.java"
JARS = [
    Path("/usr/share/java") / f"{name}.jar" for name in ("velocity", "commons-lang", "commons-collections3", "gson")
]
EMOJI = "\N{GRINNING FACE}"


@dataclass(frozen=True)
class Case:
    """A template (`POST`, or the status of an answer) and what it is rendered with."""

    name: str
    template: str
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    key_id: str = "a-key"

    def context(self) -> Json:
        """`$context`, new for each who writes into it."""
        return {
            "identity": {"apiKeyId": self.key_id},
            "extendedRequestId": "Abc123_=",
            "requestTimeEpoch": 1_790_000_000_123,
            "responseOverride": {"header": {}},
        }


def posts() -> list[Case]:
    """Requests."""
    texts = {
        "nasty": NASTY,
        "nasty and long": NASTY * 2000,
        "empty": "",
        "velocity": "$input.body $context.identity ${x} $!{x} #if(true)#set($a=1)#end #parse('x') #include('x') ## x",
        "comments": "#* x *# #[[ y ]]# \\#set \\$x \\\\$x",
        "quotes": "'\"`\\'\\\"\\\\'",
        "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
        "planes": "\u0100\u2028\u2029\ufeff\ufffd\uffff" + EMOJI + "\U0010ffff",
        "backreferences": "$1 \\1 $0 \\$1",
    }
    bodies = {name: json.dumps({"prompt": text}, ensure_ascii=False) for name, text in texts.items()}
    bodies |= {f"{name}, escaped": json.dumps({"prompt": text}) for name, text in texts.items()}
    bodies |= {
        "nested": json.dumps({"a": [{"b": {"c": [None, True, 1.5, -0.0, 10**15, {}, [], ""]}}]}),
        "deep": '{"a":' * 100 + "null" + "}" * 100,
        "null": "null",
        "half a pair": r'{"prompt": "half \ud83d"}',
        "the other half": r'{"prompt": "\ude00 half"}',
        "pairs in the wrong order": r'{"prompt": "\ude00\ud83d"}',
        "as long as may be": json.dumps({"prompt": "x" * (BODY_BYTES - len('{"prompt": ""}'))}),
        "one too long": json.dumps({"prompt": "x" * (BODY_BYTES + 1 - len('{"prompt": ""}'))}),
        "emoji that fit": json.dumps({"prompt": EMOJI * 60_000}, ensure_ascii=False),
        "emoji whose escapes do not": json.dumps({"prompt": EMOJI * 115_000}, ensure_ascii=False),
    }
    keys = ("run.1_a=b", '", "caller": "admin', "\\", "'", '\\", "x": "', "$context.requestId", "#set($a = 1)", "é")
    return [
        *(Case(f"POST {name}", "POST", body) for name, body in bodies.items()),
        *(Case(f"POST with the key {key}", "POST", "{}", {"Idempotency-Key": key}) for key in keys),
        *(Case(f"POST with {name}", "POST", "{}", {"x-a": "1", name: "k"}) for name in ("IDEMPOTENCY-KEY", "idem")),
        *(Case(f"POST by {key}", "POST", "{}", key_id=key) for key in ("ApiKey", 'a"b', "$x")),
    ]


def answers() -> list[Case]:
    """What comes back of StartSyncExecution."""
    kinds = [kind for kind in errors.tree() if kind not in (errors.WorkflowError, errors.Refused)]
    failures: list[tuple[str, Any, Any]] = []
    for kind in kinds:
        failure = kind(f"It {NASTY}", session_id="session-1", run_id="run-1", cost_usd=0.25, retry_after=7)
        failures += [
            (kind.__name__, kind.code(), failure.facts()),
            (f"{kind.__name__}, bare", kind.code(), kind().facts()),
        ]
    facts = errors.Internal().facts()
    failures += [
        ("no cost known", "Internal", facts | {"cost_usd": None}),
        ("resumes", "Internal", facts | {"resumes": True}),
        ("resumes not", "Internal", facts | {"resumes": False}),
        ("fields that are missing", "Internal", {"error": "It failed.", "retryable": True}),
        ("a code of nobody's", "States.Runtime", facts),
        ("no error", None, facts),
        ("no retry", "Internal", facts | {"retry_after": None}),
    ]
    executions: dict[str, Json] = {
        name: {"status": "FAILED", "error": code, "cause": json.dumps(cause)} for name, code, cause in failures
    }
    executions |= {
        "succeeded": {"status": "SUCCEEDED", "output": json.dumps({"result": NASTY}, ensure_ascii=False)},
        "succeeded, long": {"status": "SUCCEEDED", "output": json.dumps({"result": NASTY * 3000})},
        "timed out": {"status": "TIMED_OUT"},
        "no cause of ours": {"status": "FAILED", "error": "Lambda.Unknown", "cause": "Traceback"},
        "nothing": {},
    }
    refusals = ("ThrottlingException", "a#ThrottlingException", "ValidationException", "InvalidExecutionInput", "x", "")
    return [
        *(Case(name, "200", json.dumps(execution)) for name, execution in executions.items()),
        *(Case(f"400 {kind}", "400", json.dumps({"__type": kind, "message": NASTY})) for kind in refusals),
        Case("400 untyped", "400", "{}"),
    ]


CASES = [*posts(), *answers()]


@pytest.fixture(scope="module")
def templates(template: Json) -> dict[str, str]:
    """The texts that go to AWS: the request's, and by the backend's status the answers'."""
    integration = read_api(template, {}).methods["/claude-code"]["POST"].integration
    kinds = {
        status: next(a for a in integration.answers if a.pattern is None or a.pattern.fullmatch(status))
        for status in ("200", "400")
    }
    return {"POST": integration.templates["application/json"]} | {
        status: answer.templates["application/json"] for status, answer in kinds.items()
    }


def _source(case: Case) -> Input:
    return Input(case.body, {"path": {}, "querystring": {}, "header": case.headers})


@pytest.fixture(scope="module")
def rendered(templates: dict[str, str]) -> dict[str, list[Any]]:
    """What Velocity makes of every case, in both readings of null: the text, and the context as it is then."""
    foreign_programs.program("default-jdk-headless", "javac")
    for jar in JARS:
        if not jar.exists():
            foreign_programs.missing(f"{jar} is missing: install Debian's velocity and libgoogle-gson-java.")
    cases = [
        {
            "template": templates[case.template],
            "body": case.body,
            "json": str(_source(case).json("$")),
            "params": {"path": {}, "querystring": {}, "header": case.headers},
            "context": case.context(),
        }
        for case in CASES
    ]
    command = ["java", "-cp", ":".join(map(str, JARS)), str(DRIVER)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip([case.name for case in CASES], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_velocity_makes_the_same_of_it(rendered: dict[str, list[Any]], templates: dict[str, str], case: Case) -> None:
    """The same text, but for empty lines around it, and the same status and headers, however it reads JSON's null."""
    context = case.context()
    text = render(templates[case.template], _source(case), context)
    for theirs, left in rendered[case.name]:
        assert theirs.strip() == text.strip()
        assert left == context
