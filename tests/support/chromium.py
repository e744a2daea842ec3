"""A headless Chromium that a test drives, by the DevTools protocol over a pipe: no port, no library."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.support.commands import ENVIRONMENT
from tests.support.foreign_programs import program

SECONDS = 60
HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
"""It runs as root too, and talks to nobody but the pages' servers."""
FLAGS = [*HEADLESS, "--hide-scrollbars", "--remote-debugging-pipe"]

BECOMES = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
"""A program that becomes the browser, which reads from 3 and writes to 4."""

Message = dict[str, Any]


class Tab:
    """One page of a browser, and all that happened in it."""

    def __init__(self, chromium: "Chromium", session: str) -> None:
        self._chromium = chromium
        self._session = session
        self.requests: list[str] = []
        """The addresses that were asked for."""
        self.complaints: list[str] = []
        """What stands in the console: errors, and what the content security policy kept back."""
        self.dialogs: list[str] = []
        self.allows = True
        """Whether a dialog is answered with yes."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Message:
        """Calls a method of the protocol; its result."""
        return self._chromium.send(method, self._session, **params)

    def take(self, message: Message) -> None:
        """An event of this page."""
        params = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self._chromium.later("Page.handleJavaScriptDialog", self._session, accept=self.allows)

    def run(self, program: str) -> Any:
        """What a JavaScript expression, or a promise, comes to."""
        found = self.send("Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def go(self, url: str) -> None:
        """Opens an address, and waits until its page is there."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def until(self, condition: str, seconds: float = SECONDS) -> None:
        """Waits until a JavaScript expression is true: over pages that come and go, too."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.send("Runtime.evaluate", expression=condition, returnByValue=True)
            if found.get("result", {}).get("value") is True:
                return
            assert time.monotonic() < deadline, f"{condition}: {self.run('document.body.innerText')[:2000]}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Clicks what the selector finds, once it is there."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    @property
    def text(self) -> str:
        """What there is to read."""
        return str(self.run("document.body.innerText"))

    def picture(self, file: Path) -> None:
        """Takes a screenshot."""
        file.write_bytes(b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


class Chromium:
    """A running browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write = write
        self._read = read
        self._guard = threading.Lock()
        self._number = 0
        self._answers: dict[int, Queue[Message]] = {}
        self._tabs: dict[str, Tab] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def tab(self, **context: Any) -> Tab:
        """A new page, in a profile of its own."""
        profile = self.send("Target.createBrowserContext", None)["browserContextId"]
        target = self.send("Target.createTarget", None, url="about:blank", browserContextId=profile, **context)
        session = self.send("Target.attachToTarget", None, targetId=target["targetId"], flatten=True)["sessionId"]
        return self._tabs.setdefault(session, Tab(self, session))

    def send(self, method: str, session: str | None, **params: Any) -> Message:
        """Calls a method; its result."""
        number, queue = self._sent(method, session, params)
        try:
            answer = queue.get(timeout=SECONDS)
        except Empty:
            raise TimeoutError(method) from None
        finally:
            del self._answers[number]
        if "error" in answer and method == "Runtime.evaluate":
            return {}  # its page has just gone
        assert "error" not in answer, (method, answer)
        found: Message = answer["result"]
        return found

    def later(self, method: str, session: str | None, **params: Any) -> None:
        """Calls a method, and does not wait."""
        self._sent(method, session, params)

    def _sent(self, method: str, session: str | None, params: Message) -> tuple[int, "Queue[Message]"]:
        with self._guard:
            self._number += 1
            number, queue = self._number, Queue[Message]()
            self._answers[number] = queue
            said = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
            os.write(self._write, json.dumps(said).encode() + b"\0")
        return number, queue

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(self._read, 1 << 20):
            *messages, rest = (rest + piece).split(b"\0")
            for each in map(json.loads, messages):
                if queue := self._answers.get(each.get("id", 0)):
                    queue.put(each)
                elif tab := self._tabs.get(each.get("sessionId", "")):
                    tab.take(each)


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser with a fresh profile, ended on the way out."""
    line = [program("chromium", "chromium", "chromium-browser", "google-chrome"), *FLAGS, f"--user-data-dir={profile}"]
    (theirs_in, write), (read, theirs_out) = os.pipe(), os.pipe()
    # Far from 3 and 4, none of the two is in the other's way.
    far = [fcntl.fcntl(each, fcntl.F_DUPFD, 50) for each in (theirs_in, theirs_out)]
    with profile.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-SEc", BECOMES, *map(str, far), *line],
            stdout=log,
            stderr=log,
            pass_fds=far,
            env=ENVIRONMENT | {"HOME": str(profile.parent)},
        )
    for each in (theirs_in, theirs_out, *far):
        os.close(each)
    try:
        yield Chromium(write, read)
    finally:
        process.terminate()
        process.wait(60)
        os.close(write)
