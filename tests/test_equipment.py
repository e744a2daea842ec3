"""What a deployment gives its agent: `agent/` read and checked, and at work in the real CLI."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_workflow.local.model import ScriptedModel
from lambdas.agent import mcp
from lambdas.agent.claude import Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.equipment import Equipment, Remote, Stdio, Unusable
from lambdas.agent.outcome import Outcome
from lambdas.agent.proxy import Proxy
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import anthropic
from lambdas.errors import ToolServerUnavailable
from lambdas.strict import Json
from stacks.deployment import AGENT
from tests.support.equipped import BEARER, OURS, THEIRS, Tracker, folder, hostile, tracking, write
from tests.support.kept_checkpoints import Kept


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with tracking() as served:
        yield served


@pytest.fixture
def equipment(tmp_path: Path, tracker: Tracker) -> Equipment:
    return Equipment.read(folder(tmp_path / "agent", tracker.url))


def run(turn: Turn, scratch: Scratch, url: str, bearer: str = BEARER) -> Outcome:
    """Run a turn against the model at `url`, as RunClaude does."""
    lent = mcp.upstreams(turn.equipment, turn.allowed, lambda _: Secret(lambda: bearer))
    with Proxy([anthropic(Secret(lambda: "sk-the-real-key"), url), *lent], tunnels=Tunnels()) as proxy:
        return asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))


def first(prompt: str, equipment: Equipment, **wishes: Any) -> Turn:
    return Turn(prompt, str(uuid.uuid4()), resume=False, equipment=equipment, **wishes)


EVERYTHING = """tool mcp__tracker__list {}
tool mcp__clock__now {}
tool Task {"subagent_type": "deployment:reviewer", "description": "d", "prompt": "say Reviewed."}
read sub/file.txt
run env; cat "$CLAUDE_CONFIG_DIR"/../private/*
tool Skill {"skill": "deployment:%s"}"""
"""The skill, or the command, last: its text is the next prompt."""


def test_all_of_it_is_at_work_in_every_turn_and_nothing_of_the_workspaces(
    equipment: Equipment, tracker: Tracker, model: ScriptedModel, scratch: Scratch
) -> None:
    """Skill, subagent, command, hook, instructions, a remote and a stdio server, in a new session and a resumed one. In
    workspace, configuration and home lies what would replace each, and the transcript is rewritten in between; the
    remote server's secret is nowhere."""
    turn = first(EVERYTHING % "greeting", equipment)
    for word, later in (("skill", False), ("command", True)):
        for place in (scratch.workspace, scratch.claude, scratch.home, scratch.home / ".claude"):
            hostile(place)
        model.requests.clear()
        outcome = run(replace(turn, resume=later), scratch, model.url)
        told, asked = outcome.told.decode(), [each.raw.decode() for each in model.requests]
        assert {s["name"]: s["status"] for s in outcome.messages[0]["mcp_servers"]} == dict.fromkeys(
            ("tracker", "clock"), "connected"
        )
        for text in ("tracker list", "clock now"):
            assert f"{OURS} {text}" in told
        by_agent = [text for text, each in zip(asked, model.requests, strict=True) if "agent-id" in str(each.headers)]
        assert [f"{OURS} agent's prompt" in text for text in by_agent] == [True]
        assert f"{OURS} {word}'s text" in asked[-1]
        assert all(f"{OURS} instructions" in json.dumps(each.body["system"]) for each in model.requests)
        assert (scratch.workspace / f"{OURS}-hooked").exists()
        assert THEIRS not in "".join(asked) + told.replace(f"{THEIRS}-hooked", "")
        assert not list(scratch.root.rglob(f"{THEIRS}-*"))
        assert "run-" in told  # the agent has looked where its token is
        assert BEARER not in told + "".join(asked)
        (transcript,) = scratch.claude.glob("projects/*/*.jsonl")
        transcript.write_text(transcript.read_text().replace(f"{OURS} instructions", f"{OURS}"))
        turn = replace(turn, prompt=EVERYTHING % "brief")
    assert (tracker.calls, tracker.bearers) == (["list", "list"], {f"Bearer {BEARER}"})


def test_what_is_not_allowed_of_a_server_does_not_exist(
    tmp_path: Path, tracker: Tracker, model: ScriptedModel, scratch: Scratch
) -> None:
    """By tool and by server, for subagents too; a server of which nothing is allowed is not started. One that does not
    come up is said so in the first message, and the run goes on."""
    missing: Any = {name: {"command": f"/no/such/{name}"} for name in ("broken", "unwanted")}
    equipment = Equipment.read(folder(tmp_path / "agent", tracker.url, **missing))
    calls = [f"tool mcp__{name} {{}}" for name in ("clock__later", "tracker__create", "clock__now", "tracker__list")]
    prompt = json.dumps("\n".join(calls))
    task = f'tool Task {{"subagent_type": "general-purpose", "description": "d", "prompt": {prompt}}}'
    allowed = ("Read", "Task", "Agent", "mcp__clock", "mcp__tracker__list", "mcp__broken")
    turn = first("\n".join([*calls, task]), equipment, allowed_tools=allowed, disallowed_tools=("mcp__clock__later",))
    outcome = run(turn, scratch, model.url)
    first_message = outcome.messages[0]
    assert [(each["name"], each["status"]) for each in first_message["mcp_servers"]] == [
        *(("tracker", "connected"), ("clock", "connected"), ("broken", "failed"))
    ]
    assert set(first_message["tools"]) == {"Read", "Task", "mcp__clock__now", "mcp__tracker__list"}
    for request in model.requests:
        offered = {tool["name"] for tool in request.body["tools"] if tool["name"].startswith("mcp__")}
        assert offered == {"mcp__clock__now", "mcp__tracker__list"}
    assert len({"agent-id" in str(request.headers) for request in model.requests}) == 2
    assert str(outcome.result).count("No such tool available: mcp__") == 4
    assert tracker.calls == ["list", "list"]


def test_a_server_that_is_required_and_not_there_fails_the_run(
    tmp_path: Path, tracker: Tracker, model: ScriptedModel, scratch: Scratch
) -> None:
    """Before the model is asked, with the reason for the operator: here its secret is not set."""
    equipment = Equipment.read(folder(tmp_path / "agent", tracker.url))
    tracking = Remote("tracker", tracker.url, "TRACKER_TOKEN", required=True)
    turn = first("hello", replace(equipment, servers=(tracking,)))
    with pytest.raises(ToolServerUnavailable) as failed:
        run(turn, scratch, model.url, bearer="")
    assert failed.value.detail.startswith("the MCP server tracker is required and did not come up: failed")
    assert "the deployment's credential is unset" in failed.value.detail
    assert (failed.value.cost_usd, list(model.requests)) == (0.0, [])


def test_a_workspaces_own_instructions_are_heard_where_the_deployment_says_so(
    equipment: Equipment, model: ScriptedModel, scratch: Scratch
) -> None:
    """Its CLAUDE.md, and nothing else of it, beside the deployment's."""
    hostile(scratch.workspace)
    turn = first("run echo hi", replace(equipment, servers=()), workspace_instructions=True)
    outcome = run(turn, scratch, model.url)
    raw = model.requests[0].raw.decode()
    assert f"{THEIRS} instructions" in raw
    assert f"{OURS} instructions" in json.dumps(model.requests[0].body["system"])
    assert f"{THEIRS} skill" not in raw
    assert f"{THEIRS} agent" not in raw
    assert outcome.messages[0]["mcp_servers"] == []
    assert [path.name for path in scratch.workspace.glob("*-hooked")] == [f"{OURS}-hooked"]


def test_an_agent_with_a_user_of_its_own_reads_a_copy(equipment: Equipment, tmp_path: Path) -> None:
    """Which it can read wherever the folder lies, and whatever the umask was, and cannot change."""
    assert equipment.folder
    secretive = equipment.folder / "skills" / "greeting" / "SKILL.md"
    secretive.chmod(0o600)
    with Scratch(tmp_path / "session", Sandbox(uid=os.geteuid())) as scratch:
        shown = equipment.shown(scratch)
        assert shown == scratch.private / "agent"
        copied = shown / "skills" / "greeting" / "SKILL.md"
        assert (copied.read_text(), copied.stat().st_mode & 0o777) == (secretive.read_text(), 0o644)
    with Scratch(tmp_path / "session") as scratch:
        assert equipment.shown(scratch) == equipment.folder


def test_the_projects_own_folder_is_a_plugin_with_a_skill() -> None:
    """As it comes: no server, and so no secret."""
    found = Equipment.read(AGENT)
    assert (found.plugin, found.servers, found.secrets, found.starts_programs) == (True, (), set(), False)


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    """Then there is nothing that a run needs."""
    found = Equipment.read(tmp_path)
    assert (found.plugin, found.instructions, found.servers) == (False, "", ())


def test_servers_are_read_as_they_stand(equipment: Equipment, tracker: Tracker) -> None:
    """A remote one with the field of its secret; a stdio one with its command."""
    assert equipment.servers == (
        Remote("tracker", tracker.url, "TRACKER_TOKEN", required=False),
        Stdio("clock", "python3", ("-I", "-S", "${CLAUDE_PLUGIN_ROOT}/clock.py"), {}, required=False),
    )
    assert equipment.secrets == {"TRACKER_TOKEN"}


URL = "https://mcp.example/mcp"


@pytest.mark.parametrize(
    ("file", "text", "starts"),
    [
        ("mcp.json", {"mcpServers": {"far": {"url": URL}}}, False),
        ("mcp.json", {"mcpServers": {"near": {"command": "python3"}}}, True),
        ("hooks/hooks.json", {"hooks": {}}, True),
        (".claude-plugin/plugin.json", {"name": "ours", "hooks": "./elsewhere.json"}, True),
    ],
)
def test_what_is_started_with_claude_code_is_known(file: str, text: Json, starts: bool, tmp_path: Path) -> None:
    """It may look at the workspace before the model has said anything, so that has to be in place."""
    write(tmp_path, ".claude-plugin/plugin.json", json.dumps({"name": "ours"}))
    write(tmp_path, file, json.dumps(text))
    assert Equipment.read(tmp_path).starts_programs == starts


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"url": "http://mcp.example/mcp"}, "needs a url: https"),
        ({"url": "https://user:word@mcp.example/"}, "needs a url"),
        ({"url": f"{URL}?key=1"}, "needs a url"),
        ({"url": "https://[bad/"}, "needs a url"),
        ({"url": "https://mcp.example/a/../b"}, "needs a url"),
        ({"url": "https://mcp.example//b"}, "needs a url"),
        ({"url": "https://mcp.example/a%2fb"}, "needs a url"),
        ({"url": "https:///mcp"}, "needs a url"),
        ({"url": "https://mcp.example/mcp#a"}, "needs a url"),
        ({"type": "http"}, "needs a url"),
        ({"type": "sse", "url": URL}, "the type 'sse'"),
        ({"url": URL, "secret": "sk-live-1234"}, "by the field"),
        ({"url": URL, "secret": "ANTHROPIC_API_KEY"}, "may not be lent ANTHROPIC_API_KEY"),
        ({"url": URL, "headers": {"authorization": "Bearer x"}}, "has 'headers', which is unknown"),
        ({"url": URL, "required": 1}, "neither true nor false"),
        ({"command": "x", "secret": "TOKEN"}, "may hold no secret"),
        ({"command": "x", "env": {"GITHUB_TOKEN": "x"}}, "no secret belongs there"),
        ({"command": "x", "env": {"A": 1}}, "no object of texts"),
        ({"command": "x", "args": "y"}, "no list of texts"),
        ({"command": ""}, "needs a command"),
        ("x", "must be an object"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(entry: object, says: str, tmp_path: Path) -> None:
    """With what would do."""
    write(tmp_path, "mcp.json", json.dumps({"mcpServers": {"tracker": entry}}))
    with pytest.raises(Unusable, match="tracker") as wrong:
        Equipment.read(tmp_path)
    assert says in str(wrong.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mcp.json", "{", "mcp.json is not JSON"),
        ("mcp.json", "[]", "not a JSON object"),
        ("mcp.json", "{}", "nothing more"),
        ("mcp.json", '{"mcpServers": {"My_Server": {}}}', "'My_Server' does not"),
        (".claude-plugin/plugin.json", "{}", "needs a name"),
        ("skills/x/SKILL.md", "x", "skills/ is loaded with"),
        ("CLAUDE.md", "x" * 65537, "more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name: str, text: str, says: str, tmp_path: Path) -> None:
    """Before anything is deployed."""
    write(tmp_path, name, text)
    with pytest.raises(Unusable) as wrong:
        Equipment.read(tmp_path)
    assert says in str(wrong.value)


def test_the_documents_example_can_be_used(tmp_path: Path) -> None:
    """As it stands."""
    example = (AGENT.parent.parent / "docs" / "agent.md").read_text().split("```json\n")[1].split("```")[0]
    write(tmp_path, "mcp.json", example)
    assert [server.name for server in Equipment.read(tmp_path).servers] == ["tracker", "house-style"]
