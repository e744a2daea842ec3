"""The API from a page of another origin, in a real browser: what CORS lets the page read."""

import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import urllib3

from lambdas.request import run_id
from tests.support.chromium import HEADLESS
from tests.support.commands import ENVIRONMENT, ROOT, Serve
from tests.support.foreign_programs import program
from tests.support.http_servers import Answering, listening

PAGE_SECONDS = 240
FLAGS = [*HEADLESS, "--remote-debugging-port=0"]
"""Without a port, a headless browser ends once the page is loaded."""

PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
const [url, key] = @URL_AND_KEY@;
const usual = {"content-type": "application/json", "x-api-key": key};
async function post(body, headers = usual, method = "POST") {
  const response = await fetch(url, {method, headers, body: typeof body === "string" ? body : JSON.stringify(body)});
  return {status: response.status, retryAfter: response.headers.get("retry-after"), answer: await response.json()};
}
async function visit() {
  const seen = {};
  seen.first = await post({prompt: "write notes.txt: from a page"}, {...usual, "Idempotency-Key": crypto.randomUUID()});
  const session_id = seen.first.answer.session_id;
  seen.second = await post({prompt: "read notes.txt", session_id});
  const zip = await fetch(seen.second.answer.session_url);
  seen.zip = {status: zip.status, begins: new TextDecoder("latin1").decode((await zip.arrayBuffer()).slice(0, 4))};
  seen.invalid = await post({});
  seen.forbidden = await post({prompt: "x"}, {...usual, "x-api-key": "wrong"});
  seen.unknown = await post({prompt: "x", session_id: "session-unknown"});
  seen.media = await post("x", {"x-api-key": key, "content-type": "text/plain"});
  seen.large = await post({prompt: "x".repeat(250000)});
  seen.refused = await post({prompt: "status 400"});
  seen.overloaded = await post({prompt: "status 529"});
  for (let n = 0; n < 5 && !seen.busy; n++) {
    const both = await Promise.all([1, 2].map(() => post({prompt: "wait 5", session_id})));
    seen.busy = both.find(({status}) => status === 409);
  }
  for (let n = 0; n < 20 && !seen.throttled; n++) {
    const rush = await Promise.all(Array.from({length: 20}, () => post([])));
    seen.throttled = rush.find(({status}) => status === 429);
  }
  await new Promise((resolve) => setTimeout(resolve, seen.throttled.retryAfter * 1000));
  seen.again = await post([]);
  seen.put = await fetch(url, {method: "PUT", headers: usual, body: "{}"}).then(() => "let through", () => "kept back");
  return seen;
}
let seen;
try { seen = await visit(); } catch (error) { seen = {error: `${error}`}; }
await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
</script>"""

Seen = dict[str, Any]


@contextmanager
def page(text: str) -> Iterator[tuple[str, "Queue[Seen]"]]:
    """Serves the page on an origin of its own; the queue gets what the page sends back."""
    reports: Queue[Seen] = Queue()

    class Page(Answering):
        def do_GET(self) -> None:
            asked = self.path.partition("?")[0] == "/"
            self.answer(200, text.encode() if asked else b"", {"content-type": "text/html"})

        def do_POST(self) -> None:
            reports.put(json.loads(self.received()))
            self.answer(200)

    with listening(Page) as url:
        yield f"{url}/", reports


@contextmanager
def browser(url: str, profile: Path) -> Iterator[Path]:
    """A browser with this page open and a fresh profile; its log."""
    chromium = program("chromium", "chromium", "chromium-browser", "google-chrome")
    log = profile.with_suffix(".log")
    line = [chromium, *FLAGS, f"--user-data-dir={profile}", url]
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output, env=ENVIRONMENT | {"HOME": str(profile.parent)})
    try:
        yield log
    finally:
        process.terminate()
        process.wait(60)


def report(reports: "Queue[Seen]", log: Path) -> Seen:
    """What the page sends back."""
    try:
        found = reports.get(timeout=PAGE_SECONDS)
    except Empty:
        pytest.fail(f"The page did not report; the browser said:\n{log.read_text(errors='replace')[-2000:]}")
    assert "error" not in found, found
    return found


@pytest.fixture(scope="module")
def seen(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What a page of another origin gets to see."""
    text = PAGE.replace("@URL_AND_KEY@", json.dumps([serve.url, serve.key]))
    with page(text) as (url, reports), browser(url, tmp_path_factory.mktemp("browser") / "profile") as log:
        return report(reports, log)


def test_a_page_asks_and_goes_on(seen: Seen) -> None:
    """POST with key, JSON and Idempotency-Key, which take a preflight; the second turn reads the first's file."""
    assert (seen["first"]["status"], seen["second"]["status"]) == (200, 200)
    assert "from a page" in seen["second"]["answer"]["result"]


def test_a_page_downloads_the_session(seen: Seen) -> None:
    """The bucket answers the link from the same origin."""
    assert seen["zip"] == {"status": 200, "begins": "PK\x03\x04"}


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("invalid", 400, "InvalidRequest"),
        ("forbidden", 403, "Forbidden"),
        ("unknown", 404, "SessionNotFound"),
        ("large", 413, "RequestTooLarge"),
        ("media", 415, "UnsupportedMediaType"),
        ("refused", 422, "ModelRejected"),
        ("overloaded", 503, "ModelOverloaded"),
    ],
)
def test_a_page_reads_what_went_wrong(seen: Seen, name: str, status: int, code: str) -> None:
    """Errors of the workflow and refusals of the gateway alike: without the CORS header the page would see nothing."""
    assert (seen[name]["status"], seen[name]["answer"]["code"]) == (status, code)


@pytest.mark.parametrize(("name", "status", "code"), [("busy", 409, "SessionBusy"), ("throttled", 429, "Throttled")])
def test_a_page_reads_when_to_come_back(seen: Seen, name: str, status: int, code: str) -> None:
    """Retry-After is a header that pages see only where the answer exposes it; whoever waits for it is let in."""
    assert (seen[name]["status"], seen[name]["answer"]["code"]) == (status, code)
    assert int(seen[name]["retryAfter"]) > 0
    assert seen["again"]["status"] == 400


def test_a_page_cannot_use_other_methods(seen: Seen) -> None:
    """The preflight names POST alone, so the browser does not send anything else."""
    assert seen["put"] == "kept back"


WATCHING = """<!doctype html><meta charset="utf-8"><ol></ol><script type="module">
const [url, key, run] = @URL_KEY_AND_RUN@;
@WATCH@
const asked = new URLSearchParams(location.search), until = asked.get("until"), last = asked.get("last");
const report = (seen) => fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
const shown = [];
function show(message, id) {
  document.querySelector("ol").append(Object.assign(document.createElement("li"), {textContent: message.type}));
  shown.push([Number(id), message.type]);
  if (id === until) { report({shown}); throw new Error("closed"); }
}
watch(run, show, last).then((answer) => report({shown, answer, items: document.querySelectorAll("li").length}))
  .catch((error) => error.message === "closed" || report({error: `${error}`}));
</script>"""


def test_a_page_shows_a_run_is_closed_and_comes_back(serve: Serve, tmp_path: Path) -> None:
    """By what docs/api.md has for it. The browser is gone in the middle of the run, and another one goes on behind the
    number that the first one saw last: no message is missed, none comes twice, and the answer is the POST's."""
    key = str(uuid.uuid4())
    example = re.search(r"^async function watch\(.*?^}$", (ROOT / "docs/api.md").read_text(), re.DOTALL | re.MULTILINE)
    assert example
    said = json.dumps([serve.url, serve.key, run_id("default", key)])
    text = WATCHING.replace("@URL_KEY_AND_RUN@", said).replace("@WATCH@", example[0])
    with ThreadPoolExecutor(1) as pool, page(text) as (url, reports):
        asking = pool.submit(serve.ask, "run sleep 5\nread notes.txt", "--key", key, "--json")
        url_of_run, sent = f"{serve.url}/runs/{run_id('default', key)}", {"x-api-key": serve.key}
        while urllib3.request("GET", url_of_run, headers=sent).status != 200:
            time.sleep(0.5)  # it is not recorded yet; its key has a rate
        with browser(f"{url}?last=0&until=2", tmp_path / "first") as log:
            first = report(reports, log)
        with browser(f"{url}?last=2", tmp_path / "second") as log:
            second = report(reports, log)
        answer = json.loads(asking.result().stdout)
    shown = [*first["shown"], *second["shown"]]
    assert [number for number, _ in shown] == [*range(1, len(shown) + 1)]
    assert [kind for _, kind in shown] == [message["type"] for message in answer["messages"]]
    assert second["items"] == len(second["shown"]) > 0
    assert second["answer"]["result"] == answer["result"]
