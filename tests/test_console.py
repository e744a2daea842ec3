"""The console's pages over a bucket of the past: who gets in, what strangers' texts become, what is shown."""

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zipfile import ZipFile

import pytest
import urllib3

from claude_workflow.cli.backend import Backend
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.cli.record import Requests, look
from claude_workflow.cli.runs import Row
from claude_workflow.console import changes, graph, plot, server
from claude_workflow.console.app import Behind, application
from claude_workflow.console.conversation import DROPPED, LAST, Conversations
from claude_workflow.console.guard import COOKIE, HEADERS, MOST, Keys
from claude_workflow.console.runs import FRESH, LISTED, SHOWN, Runs, Wanted
from claude_workflow.local.engine import REGION, Engine
from claude_workflow.local.gateway import STRANGERS
from claude_workflow.local.guard import BUCKET, ROOT_KEY
from lambdas.bucket import listing, record, versions
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.contract import Claim
from lambdas.errors import RunCancelled
from lambdas.request import run_id
from stacks.definition import DEFINITION
from tests.support.commands import COMMAND, ENVIRONMENT
from tests.support.console_visitor import SECONDS, Visitor
from tests.support.crowded_bucket import Shelf, crowd
from tests.support.http_servers import Answering, listening
from tests.support.past_runs import Past
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def link(history: Past) -> Iterator[str]:
    """That of a console."""
    backend = Backend(history.store.name, history.state_machine_arn, history.engine)
    with server.serving(Behind(backend, None, "the past"), silent_seconds=600) as served:
        yield served


@pytest.fixture(scope="module")
def visitor(link: str) -> Visitor:
    """Who has opened it."""
    return Visitor(link)


@pytest.fixture(scope="module")
def failed(history: Past) -> str:
    """A run that could be replayed."""
    return history.play("failed", prompt="a secret prompt")


@pytest.fixture(scope="module")
def token(failed: str, visitor: Visitor) -> str:
    """That of its forms."""
    return visitor.get(f"/runs/{failed}").inputs["token"]


# Who gets in


FORBIDDEN: dict[str, dict[str, str]] = {
    "nobody in particular": {"Cookie": ""},
    "somebody with a cookie of another start": {"Cookie": f"{COOKIE}=x"},
    "somebody with a cookie that is none": {"Cookie": 'x=;;"=,'},
    "a page by another name": {"Host": "evil.example:9"},
    "a page at another port": {"Host": "127.0.0.1:10"},
    "a page of another site": {"Sec-Fetch-Site": "cross-site"},
    "a page of another port": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("who", FORBIDDEN)
def test_nobody_else_reads_anything(failed: str, visitor: Visitor, who: str) -> None:
    """No page, and no file; what is answered says nothing of what there is."""
    for path in ("/", f"/runs/{failed}", f"/runs/{failed}/live", "/sums", "/static/console.css", "/nothing"):
        found = visitor.ask("GET", path, headers=FORBIDDEN[who])
        assert (found.status, failed in str(found.data), "secret prompt" in str(found.data)) == (403, False, False)


def test_the_link_opens_by_its_secret_alone(visitor: Visitor, link: str) -> None:
    """Another one, none, or the right one on another path opens nothing, and gives no cookie."""
    secret = link.partition("=")[2]
    for path in ("/", "/?secret=x", "/?secret=", f"/x/?secret={secret}", f"{visitor.place}/?secret={secret}"):
        found = urllib3.request("GET", visitor.origin + path)
        assert (found.status, found.headers.get("set-cookie")) == (403, None)


@pytest.mark.parametrize(("port", "host"), [(80, "127.0.0.1"), (80, "localhost"), (8000, "localhost:8000")])
def test_the_link_opens_at_any_port(history: Past, port: int, host: str) -> None:
    """HTTP's own too, of which browsers say nothing; another one's link is no link."""
    keys, answers = Keys(), list[int]()
    behind = Behind(Backend(history.store.name, history.state_machine_arn, history.engine), None, "the past")
    app = application(behind, keys, server.named(port))

    async def send(message: Any) -> None:
        answers.append(message.get("status", 0))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asked = {"type": "http", "method": "GET", "path": "/", "query_string": f"secret={keys.secret}".encode()}
    for said in (host, f"{host}1", f"{host}:81"):
        asyncio.run(app(asked | {"headers": [(b"host", said.encode())]}, receive, send))
    assert [status for status in answers if status] == [200, 403, 403]


def test_the_link_gives_a_cookie_that_no_other_port_gets(visitor: Visitor, link: str) -> None:
    """Cookies know no ports: it is for one path, which no other server on this address knows. No script reads it."""
    said = visitor.opening.headers["set-cookie"].lower()
    assert f"; path={visitor.place}/;" in said
    assert "httponly" in said
    assert "samesite=strict" in said
    assert re.fullmatch("/[0-9a-f]{16}", visitor.place)
    assert link.partition("=")[2] not in visitor.opening.data.decode()


def test_every_answer_says_what_a_browser_may_do(visitor: Visitor) -> None:
    """Nothing that a page of strangers' texts holds is run, loaded, framed or sent anywhere."""
    for path, cookie in (
        ("/", visitor.cookie),
        ("/static/console.js", visitor.cookie),
        ("/x", visitor.cookie),
        ("/", ""),
    ):
        answer = visitor.ask("GET", path, headers={"Cookie": cookie})
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert HEADERS["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_strangers_do_not_crowd_out_who_has_the_cookie(visitor: Visitor) -> None:
    """Of connections that have shown none only so many are kept, and the oldest go; the operator's idle one stays."""
    host, port = visitor.origin.removeprefix("http://").split(":")
    operator = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
    asked = (f"{visitor.place}/static/console.css", None, {"Cookie": visitor.cookie})
    operator.request("GET", *asked)
    assert operator.getresponse().read()
    with ExitStack() as held:
        strangers = [held.enter_context(socket.create_connection((host, port), 20)) for _ in range(STRANGERS + 100)]
        for stranger in strangers[1::2]:
            with suppress(ConnectionError):
                stranger.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert all(ended(stranger) for stranger in strangers[:100])
        assert visitor.ask("GET", "/static/console.css").status == 200
        operator.request("GET", *asked)
        assert operator.getresponse().status == 200
    operator.close()


def test_who_shows_no_cookie_has_not_long(history: Past) -> None:
    """Neither who says nothing, nor who says a part of it, nor who was refused and says a part again."""
    begun = b"GET / HTTP/1.1\r\n"
    backend = Backend(history.store.name, history.state_machine_arn, history.engine)
    with server.serving(Behind(backend, None, "the past"), silent_seconds=1) as link, ExitStack() as held:
        host, port = urlsplit(link).netloc.split(":")
        strangers = [held.enter_context(socket.create_connection((host, port), 20)) for _ in range(3)]
        for stranger, said in zip(strangers, (b"", begun, begun + b"Host: x\r\n\r\n" + begun), strict=True):
            stranger.sendall(said)
        assert all(ended(stranger) for stranger in strangers)


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends it, after what it still says."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


UNASKED = {
    "another site": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:10"},
    "nowhere": {"Origin": "null"},
    "a page without the cookie": {"Cookie": ""},
    "a form that is sent as text": {"Content-Type": "text/plain"},
    "a form that is sent in parts": {"Content-Type": "multipart/form-data; boundary=x"},
}


@pytest.mark.parametrize("who", UNASKED)
def test_nobody_else_changes_anything(failed: str, token: str, visitor: Visitor, who: str) -> None:
    """Not with the token either: only a page of the console's own does."""
    assert visitor.post(f"/runs/{failed}/replay", {"verb": "again", "token": token}, **UNASKED[who]) == 403


def test_a_form_without_its_token_changes_nothing(failed: str, token: str, visitor: Visitor) -> None:
    """Nor with another one; and no address does, that is only gone to."""
    for form in ({"verb": "again"}, {"verb": "again", "token": "x"}, {"verb": "again", "token": "\xe4"}):
        assert visitor.post(f"/runs/{failed}/replay", form) == 403
    assert visitor.ask("GET", f"/runs/{failed}/replay", fields={"verb": "again", "token": token}).status == 405
    assert visitor.post(f"/runs/{failed}/replay", {"verb": "x", "token": token}) == 400
    assert visitor.post(f"/runs/{failed}/replay", {"verb": "x" * MOST, "token": token}) == 403
    assert "eplayed" not in visitor.get(f"/runs/{failed}").text


# What strangers' texts become


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"
    "<a href='javascript:alert(4)'>x</a>{{ 7 * 7 }}\x1b]0;title\x07\u202egnp.exe"
)
TAGS = set(
    re.findall(
        r"\w+",
        """html head meta title link script body a header svg circle path span main h1 h2 h3 h4 form label select option
        input button details summary div section table thead tr th tbody td nav bdi p dl dt dd pre ul li g rect text
        textarea figure figcaption b code img""",
    )
)


def conversation(history: Past, run: str, messages: list[Any]) -> None:
    """What the agent of a run has said."""
    keys = [each["Key"] for each in history.store.listed(f"runs/{run}/")]
    attempt = next(key.removesuffix("/started") for key in keys if key.endswith("/started"))
    body = "[\n" + ",\n".join(json.dumps(message) for message in messages) + "\n]\n"
    history.s3.put_object(Bucket=history.bucket, Key=f"{attempt}/messages.json", Body=body.encode())


def said(*blocks: Any, role: str = "assistant", **more: Any) -> dict[str, Any]:
    """A message."""
    return {"type": role, "message": {"role": role, "content": list(blocks)}, **more}


def text(said: str) -> dict[str, Any]:
    """A text in one."""
    return {"type": "text", "text": said}


def answered(tool: str, content: Any, **more: Any) -> dict[str, Any]:
    """What a tool came back with."""
    return {"type": "tool_result", "tool_use_id": tool, "content": content, **more}


def test_what_strangers_wrote_is_text_and_nothing_else(history: Past, visitor: Visitor) -> None:
    """Prompts, callers' names, tools, inputs, results, errors: no tag, no attribute, no address comes of them."""
    run = history.play("failed", prompt=HOSTILE)
    history.store.write(f"runs/{run}/request.json", history.asked(run) | {"owner": HOSTILE})
    failure = (record.failure(history.store, run) or {}) | {"error": HOSTILE, "detail": HOSTILE, "code": HOSTILE}
    history.store.write(f"runs/{run}/failure.json", failure)
    tool = {"type": "tool_use", "id": HOSTILE, "name": HOSTILE, "input": {"command": HOSTILE, HOSTILE: HOSTILE}}
    drawing = {"type": "image", "source": {"type": "base64", "media_type": "image/svg+xml", "data": "PHN2Zz4="}}
    messages = [
        said(text(HOSTILE), {"type": "thinking", "thinking": HOSTILE}, tool),
        said(answered(HOSTILE, HOSTILE, is_error=True), {"type": HOSTILE}, answered("x", [drawing]), role="user"),
        {"type": HOSTILE, "subtype": HOSTILE},
        {"type": "result", "subtype": HOSTILE},
        [HOSTILE],
        said(text("x" * 3_000_000)),
    ]
    conversation(history, run, messages)
    for page in (visitor.get(f"/runs/{run}"), visitor.get("/"), visitor.get("/sums"), visitor.get("/", caller=HOSTILE)):
        assert page.tags <= TAGS
        assert [name for name, _ in page.attributes if name.startswith("on") or name == "style"] == []
        addresses = [value for name in ("href", "src", "action", "hx-get") for value in page.values(name)]
        assert [each for each in addresses if not each.startswith((f"{visitor.place}/", "#content"))] == []
        assert "alert(2)" in page.text + "".join(page.inputs.values())
        assert "7 * 7" in page.text + "".join(page.inputs.values())
        assert not re.search("[\x00\x07\x1b\u202e]", page.text)
        assert len(page.text) < 300_000
    assert "2,980,000 more characters" in visitor.get(f"/runs/{run}").text


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def test_a_conversation_is_read_as_it_was_held(history: Past, visitor: Visitor) -> None:
    """Results stand with their tools, a subagent's steps in its own; a picture is what its bytes are."""
    run = history.play("done")
    task = {"type": "tool_use", "id": "t1", "name": "Task", "input": {"description": "look around"}}
    inner = {"type": "tool_use", "id": "t2", "name": "Bash", "input": {"command": "ls"}}
    shot = {"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": PNG}}
    messages = [
        said({"type": "thinking", "thinking": "Let me think."}, task),
        said(inner, parent_tool_use_id="t1"),
        said(answered("t2", "a.txt"), role="user", parent_tool_use_id="t1"),
        said(answered("t1", [shot, text("seen")]), role="user"),
        said(text("All done.")),
    ]
    conversation(history, run, messages)
    page = visitor.get(f"/runs/{run}")
    order = [page.text.index(each) for each in ("Let me think.", "look around", "a.txt", "seen", "All done.")]
    assert order == sorted(order)
    assert page.values("src")[-1] == f"data:image/png;base64,{PNG}"


def test_three_thousand_messages_open_at_their_end(history: Past, visitor: Visitor) -> None:
    """A hundred on a page; the others by their numbers."""
    run = history.play("done")
    conversation(history, run, [said(text(f"message number {number}.")) for number in range(1, 3001)])
    last, first = visitor.get(f"/runs/{run}").text, visitor.get(f"/runs/{run}", **{"from": 1}).text
    assert ("number 3000." in last, "number 2901." in last, "number 2900." in last) == (True, True, False)
    assert ("number 1." in first, "number 100." in first, "number 101." in first) == (True, True, False)
    one = visitor.ask("GET", f"/runs/{run}/messages/7")
    assert (one.headers["content-type"], one.json()["type"]) == ("text/plain; charset=utf-8", "assistant")


def test_many_small_messages_take_no_more_memory_than_large_ones(
    history: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts for what it takes, and there are so many at the most; the last one says that there are more."""
    run = history.play("done")
    conversation(history, run, [{}] * 900)
    monkeypatch.setattr("claude_workflow.console.conversation.KEPT_BYTES", 20_000)
    found = Conversations(history.store).of(run)
    assert (len(found), 0 < len(found) - found.count(DROPPED) <= 200) == (900, True)
    monkeypatch.setattr("claude_workflow.console.conversation.MOST", 500)
    conversations = Conversations(history.store)
    for found in (conversations.of(run), conversations.of(run)):
        assert (len(found), found[-1], found[-2]) == (500, LAST, b"{}")


# Runs


def test_runs_are_filtered_by_what_the_address_says(history: Past, visitor: Visitor) -> None:
    """The newest first; each filter alone and together, and those that nobody can mean not at all."""
    done = history.play("done", caller="filtered", ago=50)
    failed = history.play("failed", caller="filtered", ago=40)
    lost = history.play("claimed", caller="filtered", ago=5000)
    ended = history.play("failed", caller="filtered", fails=RunCancelled(), ago=20)
    at_work = history.play("claimed", caller="filtered", ago=1)
    assert visitor.runs(caller="filtered") == [at_work, ended, failed, done, lost]
    for outcome, run in {"done": done, "failed": failed, "lost": lost, "cancelled": ended, "running": at_work}.items():
        assert visitor.runs(caller="filtered", outcome=outcome) == [run]
    assert visitor.runs(session=history.session(done)) == [done]
    assert visitor.runs(caller="filtered", code="AgentCrashed") == [failed]
    assert visitor.runs(caller="filtered", since="1h") == [at_work, ended, failed, done]
    assert lost in visitor.runs(outcome="<script>", since="ever", session="../runs", caller="")
    sums = visitor.get("/sums", caller="filtered").text
    assert re.search(r"filtered\s*5\s*2\s*\$0\.7500", sums), sums


def a_row(at: float, owner: str, usd: float, code: str | None = None) -> Row:
    """A run that was asked for at this moment; it failed with the code, if there is one."""
    outcome = "failed" if code else "done"
    return Row(at, f"run-{at}", "session-1", owner, outcome, code, usd, None, None, None, "", None, None, long=False)


def test_bars_are_split_by_caller_and_failures_by_code() -> None:
    """The dearest has the first colour and stands below; of seven callers two share the others'."""
    rows = [a_row(0, f"caller-{each}", float(each)) for each in range(1, 8)]
    rows += [a_row(60, "caller-7", 8.0, "AgentCrashed"), a_row(60, "caller-1", 1.0, "RunTimedOut")]
    runs, failed, cost = plot.charts(rows)
    first = [bar for bar in cost.bars if bar.x == 0]
    assert [(bar.colour, bar.says.partition(", ")[2]) for bar in first] == [
        *((number, f"caller-{8 - number}: ${8 - number}.0000") for number in range(1, 6)),
        (0, "others: $3.0000"),
    ]
    assert (first[0].y + first[0].height, first[-1].y) == (plot.HEIGHT, 0)
    assert [below.y for below in first[:-1]] == pytest.approx([bar.y + bar.height for bar in first[1:]], abs=0.2)
    assert [(bar.colour, bar.height) for bar in failed.bars] == [(1, 45), (2, 45)]
    assert (runs.most, failed.most, cost.most) == ("7", "2", "$28.0000")
    assert [(chart.by, chart.end) for chart in (runs, failed)] == [(by, cost.end) for by in ("caller", "code")]


def test_what_runs_come_to_is_narrowed_by_its_names(history: Past, visitor: Visitor) -> None:
    """Each caller and code is a link to the same sums of it alone, which the filter's form stays at."""
    for caller in ("narrow-1", "narrow-2"):
        history.play("failed", caller=caller)
    page = visitor.get("/sums", code="AgentCrashed")
    assert f"{visitor.place}/sums?caller=narrow-1&code=AgentCrashed" in page.values("href")
    narrow = visitor.get("/sums", caller="narrow-1", code="AgentCrashed")
    assert ("narrow-1" in narrow.text, "narrow-2" in narrow.text) == (True, False)
    assert f"{visitor.place}/sums" in narrow.values("action")


def test_a_table_that_has_not_changed_is_not_sent_again(history: Past, visitor: Visitor) -> None:
    """What is polled says what it has; a new run is news."""
    first = visitor.get("/table", caller="polled")
    (address,) = [value.removeprefix(visitor.place) for value in first.values("hx-get") if "seen=" in value]
    assert visitor.ask("GET", address).status == 204
    run = history.play("done", caller="polled")
    assert run in visitor.ask("GET", address).data.decode()


@pytest.fixture
def crowded(tmp_path: Path, history: Past) -> Iterator[Bucket]:
    """120 runs in three hours."""
    shelf, now, one = Shelf(), time.time(), history.play("failed")
    bucket, asked, failure = Bucket(shelf, "crowd"), history.asked(one), record.failure(history.store, one)
    for number in range(120):
        own = {"run_id": run_id("default", str(number)), "session_id": f"session-{number}", "key": str(number)}
        told = asked | own | {"requested_at": now - 3600 * (number % 3)}
        listing.mark(bucket, Claim.of(told, "execution", now, repeated=False), "failed")
        record.open_run(bucket, own["run_id"], told)
        record.fail(bucket, own["run_id"], (failure or {}) | own)
    with crowd(tmp_path, shelf.objects) as service:
        yield Bucket(Engine(f"http://127.0.0.1:{service.server_port}", 0, tmp_path, "root").client("s3"), "crowd")


def test_pages_go_on_where_the_last_one_ended(crowded: Bucket) -> None:
    """Each run once, the newest hour first; a page reads the records of what it shows, and lists an hour or two."""
    requests, runs = Requests(crowded.s3), Runs(crowded)
    seen, behind, pages = list[str](), None, 0
    while True:
        page = runs.page(Wanted(), behind)
        seen += [row.run_id for row in page.rows]
        if not pages:
            assert requests.counted["GetObject"] == 3 * SHOWN
            assert requests.counted["ListObjectsV2"] <= 1 + 2 * 3
        pages, behind = pages + 1, page.older
        if behind is None:
            break
    assert (len(seen), len(set(seen)), pages) == (120, 120, 3)
    read = requests.counted["GetObject"]
    runs.page(Wanted())
    assert requests.counted["GetObject"] == read


def test_hours_that_are_over_are_listed_once_a_minute(crowded: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is asked for every two seconds."""
    runs, listed, later = Runs(crowded), list[int](), time.time() + FRESH + 1
    for moment in (None, None, later):
        if moment:
            monkeypatch.setattr(time, "time", lambda: later)
        requests = Requests(crowded.s3)
        runs.page(Wanted())
        listed.append(requests.counted["ListObjectsV2"])
    first, again, after_a_minute = listed
    assert again <= 1 + 3 < first == after_a_minute


def test_sums_are_said_to_be_whole_where_they_are(crowded: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where an hour has more runs than are listed, and not where there are more than are added up."""
    in_part = [listing.of_hour(crowded, hour, ("failed",), LISTED)[0] for hour in listing.hours(crowded)]
    runs = Runs(crowded)
    assert runs.all(Wanted())[1]
    with monkeypatch.context() as patch:
        patch.setattr("claude_workflow.console.runs.SUMMED", 100)
        assert not runs.all(Wanted())[1]
    monkeypatch.setattr("claude_workflow.console.runs.of_hour", lambda *_: (in_part.pop(), False))
    rows, whole = Runs(crowded).all(Wanted())
    assert (len(rows), whole) == (120, False)


# One run


def test_a_failed_run_says_why_and_is_replayed(history: Past, visitor: Visitor) -> None:
    """What it died of, what a replay would do, the button, and what came of it."""
    run = history.play("failed", prompt="break", key="replayed-here")
    page = visitor.get(f"/runs/{run}")
    assert "AgentCrashed in RunClaude" in page.text
    assert "core dumped" in page.text
    assert "A replay would start over" in page.text
    assert page.values("value").count("again") == 1
    assert visitor.post(f"/runs/{run}/replay", {"verb": "again", "token": page.inputs["token"]}) == 303
    assert eventually(lambda: "Replayed (again): end_turn. again for default" in visitor.get(f"/runs/{run}").text)


class Asked(Answering):
    """A service that takes what it is asked."""

    keys: list[str]

    def do_POST(self) -> None:
        """A run begins."""
        assert json.loads(self.received())["prompt"]
        self.keys.append(self.headers["Idempotency-Key"])
        begun = {"success": True, "status": "running", "run_id": run_id("a", "b"), "session_id": "session-1"}
        self.answer(202, json.dumps(begun).encode())


def test_who_asks_twice_by_one_form_pays_once(history: Past) -> None:
    """As by two clicks: the key says that it is the same. It is another one for a form drawn anew, and for other words,
    another session, or a copy of it."""
    backend, keys = Backend(history.store.name, history.state_machine_arn, history.engine), list[str]()
    with listening(Asked, keys=keys) as url, server.serving(Behind(backend, Endpoint(url, "key"), "the past")) as link:
        visitor = Visitor(link)
        forms = [visitor.get("/").inputs for _ in range(2)]
        first, second = ({name: form[name] for name in ("token", "drawn")} for form in forms)
        on = {"session": "session-1"}
        for form in (first, first, second, first | on, first | on | {"fork": "yes"}, first | {"prompt": "other"}):
            assert visitor.post("/ask", {"prompt": "do it"} | form) == 303
        assert visitor.post("/ask", {"prompt": "do it", "token": first["token"]}) == 400
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_no_such_run(visitor: Visitor) -> None:
    """Said, for what is no run's id, too."""
    for path in ("/runs/run-0", f"/runs/{run_id('a', 'b')}", "/runs/..%2fbase", "/elsewhere"):
        assert visitor.ask("GET", path).status == 404


def test_the_machine_is_drawn_from_its_definition() -> None:
    """Every state and every edge of it, no two boxes over each other."""
    drawing = graph.drawn([])
    states = json.loads(DEFINITION.read_text())["States"]
    assert {box.name for box in drawing.boxes} == set(states)
    assert len(drawing.lines) == len({edge for name, state in states.items() for edge in graph.edges_of(name, state)})
    for number, one in enumerate(drawing.boxes):
        assert 0 <= one.x <= drawing.width - graph.WIDTH
        for other in drawing.boxes[number + 1 :]:
            assert abs(one.x - other.x) >= graph.WIDTH or abs(one.y - other.y) >= graph.HEIGHT


def test_a_deployed_stack_is_found_by_its_name(history: Past, failed: str) -> None:
    """Runs are listed, and one is told; its states come where a log has them. Who may not read the API's key, which is
    not to be had here, looks all the same. (What else is done with a stack: test_console_stack.)"""
    found = {"BucketName": BUCKET, "StateMachineArn": history.state_machine_arn}
    found |= {"ApiUrl": "http://127.0.0.1:1/none", "ApiKeyId": "key1"}
    outputs = {name: {"Value": value} for name, value in found.items()}
    resource = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "looked-at"}}
    body = json.dumps({"Resources": {"Any": resource}, "Outputs": outputs})
    history.engine.client("cloudformation").create_stack(StackName="LookedAt", TemplateBody=body)
    root = {"AWS_ACCESS_KEY_ID": ROOT_KEY, "AWS_SECRET_ACCESS_KEY": history.engine.root}
    account = ENVIRONMENT | root | {"AWS_ENDPOINT_URL": history.engine.url, "AWS_DEFAULT_REGION": REGION}
    line = [*COMMAND, "console", "--stack", "LookedAt"]
    process = subprocess.Popen(line, env=account, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        visitor = Visitor(process.stdout.readline().split()[1])
        assert failed in visitor.runs()
        page = visitor.get(f"/runs/{failed}")
        assert "AgentCrashed in RunClaude" in page.text
        assert f"{visitor.place}/runs/{failed}/states" in page.values("hx-get")
        assert "Its history" in visitor.get(f"/runs/{failed}/states").text
        going = visitor.get(f"/runs/{history.play('claimed', ago=1)}")  # a log is not asked every two seconds
        assert [each.rpartition("/")[2].partition("?")[0] for each in going.values("hx-get")] == ["live"]
        assert visitor.get("/").inputs.keys() & {"token", "drawn"} == set()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr
        assert "Nothing can be asked here; all else works." in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


# A session


@pytest.fixture(scope="module")
def turns(history: Past) -> list[str]:
    """Three runs of a session, whose second failed; each adds a line to a file."""
    first = history.play("done", ago=30, prompt="first turn")
    session = history.session(first)
    failed = history.play("failed", session, ago=20, prompt="no turn")
    return [first, failed, history.play("done", session, ago=10, prompt="second turn")]


def test_a_session_shows_its_turns_and_the_files_of_each(history: Past, visitor: Visitor, turns: list[str]) -> None:
    """The newest first, what failed beside them; the files of the newest version, or of the one that is asked for."""
    session = history.session(turns[0])
    page = visitor.get(f"/sessions/{session}")
    places = [page.text.index(each) for each in ("second turn", "no turn", "first turn")]
    assert places == sorted(places)
    assert (page.text.count("Files then"), page.text.count("Download (")) == (2, 2)
    kept = [each.version_id for each in versions.below(history.store, f"{session}.zip")]
    (older,) = {*kept} - {newest(history, session)}
    before = visitor.get(f"/sessions/{session}", version=older).text
    assert (turns[0] in before.partition("workspace")[2], turns[2] in before.partition("workspace")[2]) == (True, False)
    lines = visitor.get(f"/sessions/{session}/file", version=older, path="history").text
    assert (turns[0] in lines, turns[2] in lines) == (True, False)
    assert turns[2] in visitor.get(f"/sessions/{session}/file", path="history").text
    archive = visitor.ask("GET", f"/sessions/{session}/archive", fields={"version": older})
    assert turns[0] in ZipFile(BytesIO(archive.data)).read("workspace/history").decode()


def test_a_session_and_its_copies_name_each_other(history: Past, visitor: Visitor) -> None:
    """The copy its origin; the origin leads to the first runs of its copies, among the runs that are kept."""
    run = history.play("done")
    session = history.session(run)
    copied = history.play("done", session, fork=True)
    history.play("done", history.session(copied))
    origin, copy = visitor.get(f"/sessions/{session}"), visitor.get(f"/sessions/{history.session(copied)}")
    assert f"a copy of {session}" in copy.text
    (found,) = {each.removeprefix(visitor.place) for each in origin.values("href") if "copy_of=" in each}
    assert visitor.get(found).values("id").count(copied) == 1
    assert visitor.runs(copy_of=session) == [copied]


def newest(history: Past, session: str) -> str:
    """A session's newest version."""
    return str(history.s3.head_object(Bucket=history.bucket, Key=f"{session}.zip")["VersionId"])


def test_a_run_shows_the_differences_that_it_made(history: Past, visitor: Visitor) -> None:
    """Line by line, of what was there before; what is no text is named."""
    files = [{"path": "history", "change": "modified", "size": 9}, {"path": "../x", "change": "added", "size": 9}]
    first = history.play("done", ago=30)
    run = history.play("done", history.session(first), ago=20, files=files)
    text = visitor.get(f"/runs/{run}/changes").text
    assert f" {first}\n" in text
    assert f"+{run}\n" in text
    assert "Its content is the same." in text


def test_every_turn_has_its_differences(history: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many came before and behind it: its version is one of the first after it was asked for."""
    files = [{"path": "history", "change": "modified"}]
    runs = [history.play("done", ago=4000, files=files)]
    runs += [history.play("done", history.session(runs[0]), ago=ago, files=files) for ago in (3000, 2000, 1000)]
    kept = versions.of(history.store, history.session(runs[0]), "default")
    moments = [datetime.fromtimestamp(time.time() - ago, UTC) for ago in (999, 1999, 2999, 3999)]
    dated = [one._replace(at=at) for one, at in zip(kept, moments, strict=True)]
    monkeypatch.setattr(versions, "of", lambda *_: dated)
    monkeypatch.setattr(changes, "LOOKED", 1)
    for name in runs[1:]:
        run = look(history.store, Entry(name), time.time())
        assert run
        (change,) = changes.of(history.store, run)
        assert f"+{name}" in [line.text for line in change.lines], change.why


def test_differences_have_an_end_to_their_time(history: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a run's together: of a second each a stranger can make many."""
    files = [{"path": "history", "change": "modified"}, {"path": "history", "change": "modified"}]
    first = history.play("done", ago=30)
    run = look(history.store, Entry(history.play("done", history.session(first), ago=20, files=files)), time.time())
    assert run
    monkeypatch.setattr(changes, "unified_diff", lambda *_, **__: burned(0.2))
    assert [each.why for each in changes.of(history.store, run)] == [None, None]
    monkeypatch.setattr(changes, "SECONDS", 0.2)
    compared, left = changes.of(history.store, run)
    assert (compared.why, left.why) == (None, "Those before it have taken all the time that there is to compare here.")


def burned(seconds: float) -> list[str]:
    """A difference that takes so long of the processor."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
    return ["---", "+++", "+line"]


@pytest.mark.parametrize(
    "path", ["/file?path=none", "/raw?path=..%2fclaude", "?folder=none%2f", "/file?version=x&path=a"]
)
def test_no_such_file(history: Past, visitor: Visitor, turns: list[str], path: str) -> None:
    """Said; nothing beside the workspace is one."""
    assert visitor.ask("GET", f"/sessions/{history.session(turns[0])}{path}").status == 404


def test_a_mistake_of_the_consoles_own_is_called_so(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another status than what storage or the service refuse, and without what it was."""
    monkeypatch.setattr("claude_workflow.console.app.Wanted.of", lambda _: 1 / 0)
    answer = visitor.ask("GET", "/")
    assert (answer.status, b"The console itself has made a mistake" in answer.data) == (500, True)
    assert b"division" not in answer.data


def test_no_such_session(visitor: Visitor) -> None:
    """Said, for what is no session's id, too."""
    for path in ("session-none", "run-1", "..%2fruns", "session-none/sure/remove/x", "session-none/sure/else"):
        assert visitor.ask("GET", f"/sessions/{path}").status == 404


def test_a_session_is_purged_and_removed_by_who_is_sure(history: Past, visitor: Visitor) -> None:
    """Asked twice, and done by the second answer alone; what is gone is said, and what stays."""
    first = history.play("done")
    session = history.session(first)
    history.play("done", session)
    for does, left in (("purge", 1), ("remove", 0)):
        page = visitor.get(f"/sessions/{session}/sure/{does}")
        assert "Yes, " + does in page.text
        form = {"token": page.inputs["token"]}
        assert visitor.post(f"/sessions/{session}/sure/{does}", form) == 400
        assert visitor.post(f"/sessions/{session}/sure/{does}", form | {"sure": "yes"}) == 400
        assert visitor.post(f"/sessions/{session}/sure/{does}", form | {"sure": session}) == 200
        kept = [each for each in versions.below(history.store, session) if not each.is_mark]
        assert len(kept) == left
    assert visitor.ask("GET", f"/runs/{first}").status == 404
