"""Rows of the HTTP contract: the status table, turns, long and tricky texts, limits of time and rate."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import Ask, Judge, NotAsked, facts
from lambdas.bucket import lease
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json

WORD = "heron"
FIRST = f"The word is {WORD}. Answer with that word alone."
AGAIN = "Which word was it? Answer with that word alone."
SLEEP = "Call Bash once, with the command after the word run. Then answer with the word done.\nrun sleep {seconds}"
NOBODYS = "session-that-never-was"
UNKNOWN = json.dumps({"prompt": "Hello.", "session_id": NOBODYS}).encode()
"""Goes all the way to RestoreSession, which refuses it: it costs nothing."""
NO_MODEL = "no-such-model"
"""Goes on to the provider, which refuses it: it costs nothing, and leaves the record of what was asked."""
EMOJI = "\N{GRINNING FACE}"
TRICKY = (
    "\"quotes\" 'single' \\ back\\slash @@ @NAME@ $foo ${foo} $!foo $util.escapeJavaScript #set($x = 1) ## #* *# "
    "#if(true) %{} {{ }} \t \u2028 \u00fc \u4e2d \N{GRINNING FACE} </script> \\u0041 \\n\n"
)
REQUESTS = 40
"""At once: more than any burst of a stack as it comes."""
SOON, LATER = 3, 20
"""Seconds after which a run is stopped: on one machine, and by a stack whose own clocks take minutes."""


def _sent(body: bytes = b'{"prompt": ""}', **how: Any) -> Ask:
    return lambda kit: kit.send(body, **how)


def _without_key(**headers: str) -> Ask:
    def ask(kit: Kit) -> Json:
        if not kit.endpoint.key:
            raise NotAsked("The stack asks for no API key.")
        return kit.send(b'{"prompt": ""}', with_key=False, headers=headers)

    return ask


# Turns


def _first(kit: Kit) -> Json:
    return kit.run(FIRST, key=f"first-{kit.id}")


def _again(kit: Kit, **fields: Any) -> Json:
    return kit.run(AGAIN, session_id=kit.answers["first-turn"]["session_id"], **fields)


def _forked(kit: Kit) -> Json:
    return _again(kit, fork=True) | {"forked": kit.answers["first-turn"]["session_id"]}


def _repeated(kit: Kit) -> Json:
    first = kit.answers["first-turn"]
    return _first(kit) | {"first": {name: first[name] for name in ("run_id", "result")}}


def _recalls(raw: Json) -> str | None:
    wrong = facts(status=200, stop_reason="end_turn")(raw)
    return wrong or (None if WORD in str(raw["result"]).lower() else f"The answer knows nothing of the word {WORD}")


def _recalls_elsewhere(raw: Json) -> str | None:
    return _recalls(raw) or ("It went on in the session itself" if raw["session_id"] == raw["forked"] else None)


def _busy(kit: Kit) -> Json:
    """While one run sleeps: another of its session, and the same one again."""
    session, key = kit.answers["first-turn"]["session_id"], f"busy-{kit.id}"

    def sleeping() -> Json:
        return kit.run(SLEEP.format(seconds=8 if kit.stack else 3), key=key, session_id=session)

    bucket = Bucket(kit.s3, kit.bucket)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sleeping)
        while not running.done() and not lease.holder(bucket, session):
            time.sleep(0.2)
        another = kit.run(AGAIN, session_id=session, model=NO_MODEL)
        return {"another": another, "the same": sleeping(), "the first": running.result()}


def _too_long(kit: Kit) -> Json:
    """By the stack's own clocks, where these are not minutes."""
    limit = SOON if not kit.stack else LATER if kit.account.integration()["timeoutInMillis"] > 60_000 else None
    fields: Json = {"timeout_seconds": limit} if limit else {}
    return kit.run(SLEEP.format(seconds=110), **fields)


def _is_busy(raw: Json) -> str | None:
    for name, code in {"another": "SessionBusy", "the same": "RunInProgress"}.items():
        wrong = facts(status=409, code=code)(raw[name])
        if wrong or not raw[name].get("retry_after"):
            return f"{name}: {wrong or 'there is no Retry-After'}"
    return facts(status=200)(raw["the first"])


# Texts


def _recorded(prompt: str) -> Ask:
    """Asks a model that is not there, and looks at what of the prompt is recorded."""

    def ask(kit: Kit) -> Json:
        raw = kit.run(prompt, model=NO_MODEL)
        kept = kit.record(raw["run_id"])["body"]["prompt"] if raw["status"] in (200, 422, 502) else ""
        return raw | {"characters": len(prompt), "recorded": len(kept), "as sent": kept == prompt}

    return ask


def _as_sent(raw: Json) -> str | None:
    if raw["as sent"]:
        return None
    return f"Of {raw['characters']} characters {raw['recorded']} are recorded, or others (status {raw['status']})"


# The rate


def _burst(kit: Kit) -> Json:
    """Many at once: how many got which answer, and one that was throttled."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda _: kit.send(UNKNOWN), range(REQUESTS)))
    throttled = next((answer for answer in answers if answer["status"] == 429), {})
    return {"counts": counted(answers), "throttled": throttled}


def counted(answers: list[Json]) -> dict[str, int]:
    """How many answers have which status and code."""
    return dict(Counter(f"{answer['status']} {answer.get('code')}" for answer in answers))


def _throttles(raw: Json) -> str | None:
    if others := {*raw["counts"]} - {"404 SessionNotFound", "429 Throttled"}:
        return f"Some were answered otherwise: {sorted(others)}"
    if not raw["throttled"]:
        return f"None of {REQUESTS} at once was throttled"
    return None if raw["throttled"].get("retry_after") else "There is no Retry-After"


def _preflight(raw: Json) -> str | None:
    return facts(status=204)(raw) or (None if raw.get("access_control_allow_origin") else "No origin is allowed")


ASKED: dict[str, Ask] = {
    "no-key": _without_key(),
    "wrong-key": _without_key(**{"x-api-key": "k" * 40}),
    "unknown-path": _sent(path="/nothing"),
    "get": _sent(b"", method="GET", content_type=None),
    "other-method": _sent(b"<x/>", method="PUT", content_type="text/xml", with_key=False),
    "preflight": _sent(b"", method="OPTIONS", content_type=None, with_key=False),
    "no-object": _sent(b"[1]"),
    "broken-json": _sent(b'{"prompt": '),
    "too-large": _sent(b'{"prompt": "' + b"x" * 250_000 + b'"}'),
    "other-content-type": _sent(UNKNOWN, content_type="text/plain"),
    "null-ids": _sent(),
    "unknown-session": _sent(UNKNOWN),
    "charset": _sent(UNKNOWN, content_type="application/json; charset=utf-8"),
    "no-content-type": _sent(UNKNOWN, content_type=None),
    "first-turn": _first,
    "second-turn": _again,
    "fork": _forked,
    "repeated-key": _repeated,
    "mismatch": lambda kit: kit.run(AGAIN, key=f"first-{kit.id}"),
    "busy": _busy,
    "deadline": _too_long,
    "tricky-text": _recorded(TRICKY * (100_000 // len(TRICKY))),
    "no-such-model": lambda kit: kit.answers["tricky-text"],
    "emoji-60000": _recorded(EMOJI * 60_000),
    "emoji-80000": _recorded(EMOJI * 80_000),
    "emoji-115000": _recorded(EMOJI * 115_000),
    "three-bytes": _recorded("\N{EURO SIGN}" * (239 * 1024)),
    "burst": _burst,
}
JUDGED: dict[str, Judge] = {
    "preflight": _preflight,
    "null-ids": facts(status=400, code="InvalidRequest", session_id=None, run_id=None),
    "first-turn": _recalls,
    "second-turn": _recalls,
    "fork": _recalls_elsewhere,
    "repeated-key": lambda raw: facts(status=200, **raw["first"])(raw),
    "busy": _is_busy,
    "tricky-text": _as_sent,
    "emoji-60000": _as_sent,
    "burst": _throttles,
}
