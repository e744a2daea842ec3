"""The console in a real browser: the whole way of a run, hostile texts, other origins, and a page without scripts."""

import json
import re
from collections.abc import Iterator
from queue import Queue

import pytest
import urllib3

from tests.support import foreign_programs
from tests.support.chromium import Chromium, Tab, chromium
from tests.support.commands import ROOT, Serve
from tests.support.console_visitor import Visitor
from tests.support.http_servers import Answering, listening

AXE = ROOT / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for all."""
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture(scope="module")
def link(serve: Serve) -> str:
    """What `serve` has printed."""
    found = re.search(r"^Console: (http://127\.0\.0\.1:\d+/\?secret=\S+)$", serve.printed(), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture
def tab(browser: Chromium, link: str) -> Tab:
    """A page that was opened by the link."""
    opened = browser.tab()
    opened.go(link)
    opened.until("document.querySelector('h1')?.textContent === 'Runs' && document.readyState === 'complete'")
    return opened


def ask(tab: Tab, prompt: str) -> None:
    """Writes into the box, and sends it: its run's page is there."""
    tab.run(f"document.querySelector('#prompt').value = {json.dumps(prompt)}")
    tab.click(".ask button")
    tab.until("document.querySelector('#outcome') !== null && document.readyState === 'complete'")


def until_outcome(tab: Tab, outcome: str) -> None:
    """Watches the page of a run, which changes by itself."""
    tab.until(f"document.querySelector('#outcome')?.textContent.startsWith({json.dumps(outcome)}) ?? false")
    tab.until("document.querySelector('.htmx-added, .htmx-settling, .htmx-swapping') === null")


def clean(tab: Tab, origin: str) -> None:
    """Nothing ran or was asked for that is not the console's own."""
    assert (tab.complaints, tab.dialogs) == ([], [])
    assert [url for url in tab.requests if not url.startswith((origin, "data:image/", "about:blank", "data:,"))] == []


def serious(tab: Tab) -> list[str]:
    """What axe-core finds on a page that is serious, or worse, with all that it folds, in light and in dark."""
    if not AXE.exists():
        foreign_programs.missing("npm's axe-core is missing: make .venv/axe")
    tab.run(AXE.read_text() + "; document.querySelectorAll('details').forEach((each) => each.open = true)")
    found: list[str] = []
    for scheme in ("light", "dark"):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        violations = tab.run("axe.run({resultTypes: ['violations']}).then(({violations}) => violations)")
        found += [
            f"{scheme}: {each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
            for each in violations
            if each["impact"] in ("serious", "critical")
        ]
    return found


def test_a_run_is_asked_watched_understood_and_replayed(tab: Tab, link: str) -> None:
    """From the printed link: a first turn; a second, seen while it goes on, that fails; why; its replay, which is
    answered without doing again what was done; a file of the version before."""
    ask(tab, "write notes.txt: as it was first")
    until_outcome(tab, "done")
    assert serious(tab) == []
    tab.click("#session")
    tab.until("document.querySelector('.turns') !== null")
    ask(tab, "run sleep 2 && echo slept > slept.txt\nstatus 401 times 3\nwrite notes.txt: as it was later")
    tab.until("document.querySelector('#outcome.running') !== null && document.body.innerText.includes('sleep 2')")
    until_outcome(tab, "failed")
    assert "ModelUnauthorized" in tab.text
    assert "A replay would go on with the conversation where its checkpoint stands" in tab.text
    tab.click("#again")
    until_outcome(tab, "done")
    assert "Replayed (again)." in tab.text
    tab.click("#changes summary")
    tab.until("document.querySelector('.diff .plus') !== null")
    assert {"-as it was first", "+as it was later"} <= set(tab.text.split("\n"))
    tab.click("#session")
    tab.until("document.querySelectorAll('.files-of').length === 2 && document.readyState === 'complete'")
    assert serious(tab) == []
    tab.run("document.querySelectorAll('.files-of')[1].click()")
    tab.until("document.querySelector('h2#tree')?.textContent.includes('chosen') && document.readyState === 'complete'")
    tab.click("ul.files a")
    tab.until("document.querySelector('pre.file')?.textContent.trim() === 'as it was first'")
    tab.go(tab.run("document.querySelector('.brand').href") + "sums")
    assert serious(tab) == []
    clean(tab, link.partition("/?")[0])


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)> javascript:alert(4)"
MAKES = r"""import os
bad = '<script>alert(1)<\/script>'
svg = '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(5)"><script>alert(6)</script></svg>'
files = {'<img src=x onerror=alert(7)>.svg': svg, 'a.html': bad, '"onmouseover=alert(8) x=".txt': bad,
         'javascript:alert(9)': bad, 'esc\x1b]0;x\x07\u202egnp.exe': '\x1b]52;c;x\x07' + bad}
for name, text in files.items(): open(name, 'w').write(text)
open('not-a.png', 'w').write(svg)
open(b'not-utf8-\xff<b>', 'w').write(bad)
os.symlink('javascript:alert(10)', 'link')
open('big.txt', 'w').write('x' * 50_000_000)
"""


@pytest.fixture(scope="module")
def hostile(serve: Serve) -> dict[str, str]:
    """The answer of a run whose prompt, tools, results and files are as hostile as they can be."""
    tool = json.dumps({"command": shell(MAKES), "description": HOSTILE})
    prompt = f"{HOSTILE}\ntool Bash {tool}\nrun echo '{HOSTILE}'\nsay {HOSTILE}"
    answer: dict[str, str] = json.loads(serve.ask(prompt, "--json").stdout)
    assert answer["success"], answer
    return answer


def shell(program: str) -> str:
    """A shell's line that runs a Python program."""
    return f"python3 -c 'exec(bytes.fromhex(\"{program.encode().hex()}\").decode())'"


def test_nothing_that_strangers_wrote_runs_or_loads(tab: Tab, link: str, hostile: dict[str, str]) -> None:
    """On no page that shows it: the run with all that it folds, its differences, the session, each of its files, and a
    file's address opened by itself."""
    origin, place = link.partition("/?")[0], tab.run("location.pathname.slice(0, -1)")
    tab.go(f"{origin}{place}/runs/{hostile['run_id']}/changes")
    tab.run("document.querySelectorAll('details').forEach((each) => each.setAttribute('open', ''))")
    assert "alert(2)" in tab.text
    tab.go(f"{origin}{place}/sessions/{hostile['session_id']}")
    files: list[str] = tab.run("[...document.querySelectorAll('ul.files a')].map((each) => each.href)")
    assert len(files) == 9
    for file in files:
        tab.go(file)
        assert tab.run("document.querySelector('h1') !== null"), file
        raw = json.dumps(file.replace("/file?", "/raw?") + "&as=picture")
        tab.run(f"document.body.append(Object.assign(new Image(), {{src: {raw}}})); 0")
    tab.go(f"{origin}{place}/")
    assert "javascript:alert(4)" in tab.text
    assert tab.dialogs == []
    assert [each for each in tab.complaints if "404" not in each] == []
    assert [url for url in tab.requests if not url.startswith((origin, "data:image/"))] == []
    visitor = Visitor(link)
    for file in files:
        kept = visitor.ask("GET", file.partition(place)[2].replace("/file?", "/raw?"))
        assert (kept.status, kept.headers["content-type"]) == (200, "application/octet-stream")
        assert kept.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in kept.headers["content-security-policy"]


ELSEWHERE = """<!doctype html><meta charset="utf-8"><iframe src="@PAGE@"></iframe><img src="@PAGE@">
<form method="post" action="@PAGE@/replay" target="to"><input name="verb" value="again"></form>
<iframe name="to"></iframe>
<script type="module">
const tried = {};
for (const mode of ["cors", "no-cors"]) {
  const found = fetch("@PAGE@", {mode, credentials: "include"});
  tried[mode] = await found.then((answer) => answer.text(), (error) => "refused");
}
const body = new URLSearchParams({verb: "again"});
tried.post = await fetch("@PAGE@/replay", {method: "POST", mode: "no-cors", credentials: "include", body})
  .then((answer) => answer.text(), (error) => "refused");
document.querySelector("form").submit();
await new Promise((resolve) => setTimeout(resolve, 500));
tried.frame = (() => { try { return frames[0].document.body.innerText; } catch { return "refused"; } })();
await fetch("/seen", {method: "POST", body: JSON.stringify(tried)});
</script>"""


def test_a_page_of_another_port_reads_and_changes_nothing(tab: Tab) -> None:
    """In the browser that has the cookie, and though it knows the address: it gets neither cookie nor page, and what it
    sends is not done."""
    ask(tab, "status 401 times 3")
    until_outcome(tab, "failed")
    address: str = tab.run("location.href")
    reports: Queue[dict[str, str]] = Queue()
    cookies: list[str | None] = []

    class Elsewhere(Answering):
        def do_GET(self) -> None:
            cookies.append(self.headers["Cookie"])
            page = ELSEWHERE.replace("@PAGE@", address) if self.path == "/" else ""
            self.answer(200, page.encode(), {"content-type": "text/html"})

        def do_POST(self) -> None:
            reports.put(json.loads(self.received()))
            self.answer(200)

    with listening(Elsewhere) as url:
        tab.go(url)
        tried = reports.get(timeout=60)
    assert {name: "ModelUnauthorized" in said for name, said in tried.items()} == dict.fromkeys(tried, False)
    assert cookies == [None] * len(cookies)
    tab.go(address)
    assert "eplayed" not in tab.text
    assert tab.run("document.querySelector('#outcome').textContent").startswith("failed")


def test_without_scripts_all_but_the_live_part_works(tab: Tab) -> None:
    """Asking, filters, sums, a run with its differences, its session, its files, and the question before it is gone."""
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    ask(tab, "write notes.txt: plain")
    while "done" not in tab.run("document.querySelector('#outcome').textContent"):
        tab.go(tab.run("location.href"))
    for click, shows in (
        ("#changes-are-here a", "+plain"),
        ("#session", "turn 1"),
        (".files-of", "of the chosen version"),
        ("ul.files a", "plain"),
        ("p a", "Purge or remove"),
        ("a.bad", "Nothing brings them back"),
        ("#sure", "Removed"),
        (".brand", "What they come to"),
        ("#sums a", "Failed or lost"),
    ):
        tab.run("document.querySelectorAll('details').forEach((each) => each.setAttribute('open', ''))")
        tab.click(click)
        tab.until(f"document.readyState === 'complete' && document.body.innerText.includes({json.dumps(shows)})")


@pytest.mark.parametrize("width", [400, 2000])
def test_a_page_is_as_wide_as_its_window(tab: Tab, hostile: dict[str, str], width: int) -> None:
    """Also where names, prompts, results and differences are long and hostile: what is wider scrolls by itself."""
    tab.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    place = tab.run("location.href")
    run, session = f"runs/{hostile['run_id']}/changes", f"sessions/{hostile['session_id']}"
    for path in ("sums", run, session, f"{session}/sure/remove"):
        tab.go(place + path)
        tab.run("document.querySelectorAll('details').forEach((each) => each.setAttribute('open', ''))")
        assert (path, tab.run("document.documentElement.scrollWidth") <= width) == (path, True)


def test_the_apis_address_says_where_the_console_is(serve: Serve) -> None:
    """Its port is its callers': nothing of the console is there."""
    answer = urllib3.request("GET", serve.url.replace("/claude-code", "/console"), headers={"Accept": "text/html"})
    assert (answer.status, b"Console:" in answer.data, b"secret=" in answer.data) == (200, True, False)
