"""Makes the pictures of the console in docs/images: the list of runs, a run, a session, in light and in dark.

    python -m tests.screenshots

A service is asked some questions, which the stand-in answers, and a browser looks at its console.
"""

import json
import re
import tempfile
import time
from pathlib import Path

from tests.support.chromium import Tab, chromium
from tests.support.commands import ROOT, Serve

IMAGES = ROOT / "docs" / "images"
WIDTH = 1280
HEIGHTS = {"list": 1060, "run": 1500, "session": 900}

BEGUN = r"def total(prices):\n    return sum(prices)\n"
TEST = (
    r"import unittest\nfrom total import total\n\n\nclass Total(unittest.TestCase):\n    def test_two(self):\n"
    r"        self.assertEqual(total([2, 3]), 5)\n"
)
CHANGED = (
    r"def total(prices):\n    if not prices:\n        raise ValueError(\"there is nothing to add up\")\n"
    r"    return sum(prices)\n"
)
FIRST = f"""Write total.py, with a test of it, and see that it passes.
run printf '{BEGUN}' > total.py
run printf '{TEST}' > test_total.py
run python3 -m unittest -q
say Done: total.py adds up the prices, and its test passes."""
SECOND = f"""A total of nothing has to be refused. Change total.py, and try it.
read total.py
run printf '{CHANGED}' > total.py
run python3 -m unittest -q
run sleep 1
say total.py refuses an empty list now; the test still passes."""
OTHERS = (
    "Which of our three invoices is overdue?\nwait 1\nsay The second one, by four days.",
    "Translate README.md into French.\nstatus 529 times 8",
    "Draw the dependencies of this project as a picture.\nrun sleep 2\nsay deps.svg has it.",
    "Summarise yesterday's incidents in five sentences.\nstatus 401 times 3",
    "Look for secrets that were committed by mistake.\nrun grep -r KEY . || true\nsay There are none.",
)


def pictures(tab: Tab, run: str, session: str) -> None:
    """Of each page, in both schemes."""
    place = tab.run("location.href")
    for name, path in (("list", "sums"), ("run", f"runs/{run}"), ("session", f"sessions/{session}")):
        for scheme in ("light", "dark"):
            tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=WIDTH,
                height=HEIGHTS[name],
                deviceScaleFactor=1,
                mobile=False,
            )
            tab.go(place + path)
            time.sleep(0.5)
            tab.picture(IMAGES / f"console-{name}-{scheme}.png")


def main() -> None:
    """The command."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as browser:
        state = Path(folder) / "claude-workflow"  # where a service keeps its state as it comes
        state.mkdir()
        serve = Serve.start(state, XDG_STATE_HOME=folder)
        try:
            session = json.loads(serve.ask(FIRST, "--json").stdout)["session_id"]
            serve.ask("Make it faster.\nstatus 401 times 3", "--session", session)
            for prompt in OTHERS:
                serve.ask(prompt)
            run = json.loads(serve.ask(SECOND, "--session", session, "--json").stdout)["run_id"]
            serve.ask("Watch the build, and say when it is green.\nrun sleep 60", "--background")
            link = re.search(r"Console: (\S+)", serve.printed())
            assert link
            tab = browser.tab()
            tab.go(link[1])
            tab.until("document.querySelector('h1')?.textContent === 'Runs' && document.readyState === 'complete'")
            pictures(tab, run, session)
        finally:
            serve.end()


if __name__ == "__main__":
    main()
