"""Rows of the HTTP contract: the status table, turns, long and tricky texts, limits of time and rate, a deploy."""

import json
import subprocess
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from tempfile import TemporaryFile
from typing import Any

from claude_workflow.cli.check.kit import Kit
from claude_workflow.cli.check.row import NotAsked, unlike
from lambdas.bucket import lease
from lambdas.strict import Json

UNKNOWN = json.dumps({"prompt": "Hello.", "session_id": "session-that-never-was"})
"""Goes all the way to RestoreSession, which refuses it: it costs nothing."""
NO_MODEL = "no-such-model"
"""Goes on to the provider, which refuses it: it costs nothing, and leaves the record of what was asked."""


def unknown(kit: Kit, content_type: str = "application/json") -> Json:
    """Asks for a session that never was."""
    return kit.send(UNKNOWN, headers={"content-type": content_type})


def keyed(kit: Kit, key: str) -> Json:
    """Sends an empty prompt with this API key, or with none."""
    if not kit.endpoint.key:
        raise NotAsked("The stack asks for no API key.")
    return kit.send('{"prompt": ""}', headers={"x-api-key": key})


# Turns

SLEEP = "Call Bash once, with the command after the word run. Then answer with the word done.\nrun sleep {seconds}"
SOON, LATER = 8, 20
"""Seconds after which a run is stopped: on one machine, and by a stack whose own clocks take minutes."""


def turn(kit: Kit, prompt: str, key: str = "", *, on: bool = False, **fields: Any) -> Json:
    """A turn of a new session, or `on` with the first one, beside what that one was; a key is the kit's own."""
    session = {"session_id": kit.first["session_id"]} if on else {}
    raw = kit.run(prompt, f"{key}-{kit.id}" if key else None, **session, **fields)
    first = kit.answers.get("first-turn", raw)
    return raw | {"first": {name: first.get(name) for name in ("session_id", "run_id", "result")}}


def as_first(raw: Json) -> str:
    """Another answer than the first one."""
    return unlike(raw, raw["first"])


def elsewhere(raw: Json) -> str:
    """A fork is another session."""
    return "It went on in the session itself" if raw["session_id"] == raw["first"]["session_id"] else ""


def read(kit: Kit, below: str = "", **headers: str) -> Json:
    """Asks for the first run, or for what is below it, with these headers."""
    raw = kit.send("", "GET", f"claude-code/runs/{kit.first['run_id']}{below}", {"content-type": "", **headers})
    return raw | {"first": {name: kit.first.get(name) for name in ("session_id", "run_id", "result")}}


def shown(kit: Kit, below: str = "") -> Json:
    """Asks for the first turn's session, or for what is below it."""
    return kit.send("", "GET", f"claude-code/sessions/{kit.first['session_id']}{below}", {"content-type": ""})


def busy(kit: Kit) -> Json:
    """While one run sleeps: another of its session, and the same one again."""
    session, prompt = kit.first["session_id"], SLEEP.format(seconds=8 if kit.stack else 3)
    sleeping = partial(kit.run, prompt, key=f"busy-{kit.id}", session_id=session)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sleeping)
        while not running.done() and not lease.holder(kit.bucket, session):
            time.sleep(0.2)
        another = kit.run("Hello.", session_id=session, model=NO_MODEL)
        return {"another": another, "the same": sleeping(), "the first": running.result()}


def handed_over(kit: Kit, *, cancels: bool = False) -> Json:
    """A run that is answered 202, and asked for until it is done; where it `cancels`, it is ended in its tool call."""
    prompt, key = SLEEP.format(seconds=60 if cancels else 1), "cancelled" if cancels else "long"
    accepted = kit.run(prompt, f"{key}-{kit.id}", prefer="respond-async")
    path, plain = f"claude-code/runs/{accepted['run_id']}", {"content-type": ""}
    while "state" in (seen := kit.send("", "GET", path, plain)) and kit.seconds_left > 0:
        if cancels and seen["turns"]:
            kit.send("", "DELETE", path, plain)
            cancels = False
        time.sleep(1)
    return {"accepted": accepted, "the run": seen}


def uploaded(kit: Kit) -> Json:
    """An upload with one byte too many, as it was offered, and once more; and a run that is to work on it, which is no
    archive: that costs nothing."""
    content = b"heron"
    offered = kit.send(json.dumps({"size_bytes": len(content)}), path="claude-code/uploads")
    kit.uploads.append(offered["upload"])
    once = {"if-none-match": "*"}
    longer, right, again = (kit.fetch(offered["url"], "PUT", body, once) for body in (content + b"s", content, content))
    refused = kit.run("Hello.", workspace={"upload": offered["upload"]})
    return {"a byte more": longer, "as offered": right, "again": again, "a run": refused}


def too_long(kit: Kit) -> Json:
    """By the stack's own clocks, where these are not minutes."""
    limit = SOON if not kit.stack else LATER if kit.account.integration()["timeoutInMillis"] > 60_000 else None
    fields: Json = {"timeout_seconds": limit} if limit else {}
    return kit.run(SLEEP.format(seconds=110), **fields)


# Texts, for a model that is not there: it costs nothing, and leaves the record of what was asked

TRICKY = (
    "\"quotes\" 'single' \\ back\\slash @@ @NAME@ $foo ${foo} $!foo $util.escapeJavaScript #set($x = 1) ## #* *# "
    "#if(true) %{} {{ }} \t \u2028 \u00fc \u4e2d \N{GRINNING FACE} </script> \\u0041 \\n\n"
)


def recorded(kit: Kit, text: str, times: int) -> Json:
    """Asks a model that is not there, and looks at what of the prompt is recorded."""
    prompt = text * times
    raw = kit.run(prompt, model=NO_MODEL)
    kept = kit.record(raw["run_id"])["body"]["prompt"] if raw["status"] in (200, 422, 502) else ""
    return raw | {"characters": len(prompt), "recorded": len(kept), "as sent": kept == prompt}


def tricky(kit: Kit) -> Json:
    """What templates trip over."""
    return recorded(kit, TRICKY, 100_000 // len(TRICKY))


# The rate, and a deploy


def _counted(answers: list[Json], *usual: str) -> Json:
    """How many answers have which status and code, and which of these are not usual."""
    counts = Counter(f"{answer['status']} {answer.get('code')}" for answer in answers)
    return {"counts": dict(counts), "others": sorted({*counts} - {*usual})}


def burst(kit: Kit, requests: int) -> Json:
    """So many at once: how many got which answer, and one that was throttled."""
    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(lambda _: kit.send(UNKNOWN, waits=False), range(requests)))
    throttled = next((answer for answer in answers if answer["status"] == 429), {})
    return _counted(answers, "404 SessionNotFound", "429 Throttled") | {"throttled": throttled}


def deployed(kit: Kit) -> Json:
    """Runs the operator's command; meanwhile a post a second, one half refused by RestoreSession, the other half by the
    provider, so that three of the functions are called, and nothing is paid."""
    if not kit.redeploy:
        raise NotAsked("It takes a deploy that changes something: --redeploy 'npx cdk deploy -c max_turns=51'.")
    posts: list[Future[Json]] = []
    with TemporaryFile() as output, ThreadPoolExecutor(32) as pool:
        process = subprocess.Popen(kit.redeploy, shell=True, stdout=output, stderr=output)
        while process.poll() is None:
            refused = partial(kit.send, UNKNOWN) if len(posts) % 2 else partial(kit.run, "Hello.", model=NO_MODEL)
            posts.append(pool.submit(refused))
            time.sleep(1)
        output.seek(0)
        said = output.read()[-500:].decode(errors="replace")
        answers = [post.result() for post in posts]
    counted = _counted(answers, "404 SessionNotFound", "422 ModelRejected", "502 ModelUnauthorized")
    return {"exit": process.returncode, "said": said} | counted
