"""Calls that wait for a person, in the real CLI, which asks the proxy before each."""

import asyncio
import io
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from claude_workflow.cli import answers
from claude_workflow.cli.ask import Question
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.local.model import ScriptedModel
from lambdas.agent import approvals, mcp
from lambdas.agent.approvals import Approvals, Verdict, digest
from lambdas.agent.claude import Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.equipment import Equipment
from lambdas.agent.outcome import Outcome
from lambdas.agent.proxy import Proxy
from lambdas.agent.scratch import Scratch
from lambdas.agent.upstream import anthropic
from lambdas.agent.witness import Witness
from lambdas.contract import LegEnded, RunResult
from lambdas.errors import AgentCrashed, InvalidRequest
from lambdas.run_claude import RunClaude
from lambdas.strict import Json
from tests.support.equipped import BEARER, Tracker, folder, tracking
from tests.support.kept_checkpoints import Kept
from tests.support.played_workflow import Execution, Workflow
from tests.support.running import run_claude_of, settings_of

ASKED = ("mcp__tracker__create*", "git push")
CREATE = 'tool mcp__tracker__create {"title": "x"}'


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with tracking() as served:
        yield served


class Deployment:
    """One session of a deployment that asks before some calls; its mark, as S3 would keep it."""

    def __init__(self, place: Path, tracker: Tracker, model: ScriptedModel, scratch: Scratch) -> None:
        self.equipment = replace(Equipment.read(folder(place / "agent", tracker.url)), plugin=False)
        self.tracker, self.model, self.scratch = tracker, model, scratch
        self.turn = Turn("", str(uuid.uuid4()), resume=False, disallowed_tools=("mcp__clock",))
        self.made = 0

    def take(self) -> bool:
        self.made += 1
        return True

    def ask(self, prompt: str | None, verdict: Verdict | None = None, **other: Any) -> Outcome:
        """The session's next turn."""
        turn = replace(self.turn, prompt=prompt, equipment=self.equipment, **other)
        asks = Approvals(ASKED, verdict, self.take)
        lent = mcp.upstreams(turn.equipment, turn.allowed, lambda _: Secret(lambda: BEARER), asks)
        with Proxy([anthropic(Secret(lambda: "key"), self.model.url), *lent], approvals=asks) as proxy:
            outcome = asyncio.run(converse(turn, self.scratch, proxy, Kept(self.scratch), time.time() + 60))
        self.turn = replace(self.turn, resume=True)
        return outcome

    def waits(self, prompt: str) -> Any:
        """What waits after a turn that ended with it."""
        outcome = self.ask(prompt)
        assert (outcome.stop_reason, outcome.result) == ("approval", None)
        return outcome.pending

    @property
    def transcript(self) -> Path:
        (found,) = self.scratch.claude.glob("projects/*/*.jsonl")
        return found


@pytest.fixture
def deployed(tmp_path: Path, tracker: Tracker, model: ScriptedModel, scratch: Scratch) -> Deployment:
    return Deployment(tmp_path, tracker, model, scratch)


def test_an_approved_call_is_made(deployed: Deployment) -> None:
    """It waits with its tool and input, and is made when its digest is approved; then the run goes on."""
    pending = deployed.waits(f"run echo before\n{CREATE}\nsay Done.")
    assert (pending["tool"], pending["input"], deployed.tracker.calls) == ("mcp__tracker__create", {"title": "x"}, [])
    outcome = deployed.ask(None, Verdict(pending["digest"], approved=True))
    assert (outcome.stop_reason, outcome.pending, deployed.tracker.calls) == ("end_turn", None, ["create"])
    assert "DEPLOYED tracker create" in str(outcome.result)
    assert (deployed.made, len(deployed.model.requests)) == (1, 3)


def test_a_denied_call_is_not_made(deployed: Deployment) -> None:
    """The model reads why, and goes on; then with what the caller says besides. A command of Bash is asked for by its
    words."""
    pending = deployed.waits("run git -C . push origin x; touch made\nsay Done.")
    assert pending["tool"] == "Bash"
    outcome = deployed.ask("say And then this.", Verdict(pending["digest"], approved=False, reason="Not on a Friday."))
    assert f"{approvals.NOT_APPROVED} Not on a Friday." in outcome.told.decode()
    assert "And then this." in str(outcome.result)
    assert (deployed.made, list(deployed.scratch.workspace.iterdir())) == (0, [])


def test_an_altered_call_is_not_the_approved_one(deployed: Deployment) -> None:
    """Where the transcript was rewritten meanwhile, what is asked for has another digest."""
    pending = deployed.waits(f"{CREATE}\nsay Done.")
    deployed.transcript.write_text(deployed.transcript.read_text().replace('"title":"x"', '"title":"y"'))
    outcome = deployed.ask(None, Verdict(pending["digest"], approved=True))
    assert approvals.NOT_APPROVED in str(outcome.result)
    assert (deployed.tracker.calls, deployed.made) == ([], 0)


def test_a_call_that_waits_for_a_tool_that_is_gone_is_not_made(deployed: Deployment) -> None:
    """The model is told, and the run goes on."""
    pending = deployed.waits(f"{CREATE}\nsay Done.")
    deployed.equipment = replace(deployed.equipment, servers=())
    outcome = deployed.ask(None, Verdict(pending["digest"], approved=True))
    assert (outcome.stop_reason, deployed.tracker.calls, deployed.made) == ("end_turn", [], 0)


def test_two_at_once_are_asked_for_one_by_one(deployed: Deployment) -> None:
    """Claude Code would lose all but the last: neither waits, neither is made, and the model is told how to ask. So are
    subagents."""
    both = f'{CREATE}\nalso mcp__tracker__create {{"title": "y"}}'
    task = json.dumps({"subagent_type": "general-purpose", "description": "d", "prompt": CREATE})
    outcome = deployed.ask(f"{both}\ntool Task {task}\nsay Done.")
    assert (outcome.stop_reason, outcome.pending, deployed.tracker.calls) == ("end_turn", None, [])
    assert str(outcome.result).count(approvals.ALONE) == 2
    assert approvals.OF_A_SUBAGENT in "".join(request.raw.decode() for request in deployed.model.requests)


def test_what_waits_is_answered_by_the_next_post_and_made_by_one_run(
    workflow: Workflow, model: ScriptedModel, tmp_path: Path
) -> None:
    """From POST to POST, with the real RunClaude: only to the digest that waits there is an answer; a prompt alone is
    none. Where the run that was to make the call is lost, no other makes it."""
    worker = run_claude_of(replace(settings_of(model.url, tmp_path), ask_before=ASKED))

    def work(key: str, by: RunClaude = worker, **body: Any) -> tuple[Execution, RunResult | LegEnded]:
        execution = Execution(key, key, body)
        task = workflow.restore(execution).task
        assert task
        return execution, by.run(task)

    def post(key: str, by: RunClaude = worker, **body: Any) -> Any:
        execution, returned = work(key, by, **body)
        assert execution.restored
        assert isinstance(returned, RunResult)
        return workflow.persist(execution.restored.claim, returned)

    first = post("first", prompt="run git push x; touch made\nsay Done.")
    session, waits = first["session_id"], first["pending"]
    assert (first["stop_reason"], first["files"], waits["tool"]) == ("approval", [], "Bash")
    careless = replace(worker, settings=replace(worker.settings, ask_before=()))  # it asks no more
    other = post("fork", careless, session_id=session, fork=True, prompt="say Something else.")
    assert approvals.NOT_APPROVED in json.dumps(other["messages"])
    assert "Something else." in other["result"]
    for wrong in ({"approve": "0" * 64}, {"deny": {"digest": "0" * 64}}):
        with pytest.raises(InvalidRequest, match="No call with this digest waits"):
            work("wrong", session_id=session, **wrong)
    lost, returned = work("lost", session_id=session, approve=waits["digest"])
    assert (returned.run_id, getattr(returned, "files_total", 0)) == (lost.run, 1)
    workflow.record(lost, AgentCrashed())
    again = post("again", session_id=session, approve=waits["digest"])
    assert (again["stop_reason"], again["files"], "pending" in again) == ("end_turn", [], False)
    assert approvals.UNKNOWN in again["result"]
    with pytest.raises(InvalidRequest, match="No call with this digest waits"):
        work("late", session_id=session, approve=waits["digest"])


class Mute(Approvals):
    """Its answers never come."""

    def decide(self, body: bytes, witness: Witness) -> Json:
        raise ValueError(f"nothing is said of {body!r} by {witness}")


def test_a_hook_that_does_not_answer_allows_nothing(model: ScriptedModel, scratch: Scratch) -> None:
    """Whatever the call is."""
    turn = Turn("run touch made\nsay Done.", str(uuid.uuid4()), resume=False)
    with Proxy([anthropic(Secret(lambda: "key"), model.url)], approvals=Mute(ASKED)) as proxy:
        outcome = asyncio.run(converse(turn, scratch, proxy, Kept(scratch), time.time() + 60))
    assert "has been denied" in str(outcome.result)
    assert list(scratch.workspace.iterdir()) == []


def test_ask_shows_the_call_that_waits() -> None:
    """In a line, with the commands that answer to it."""
    shown, waits = io.StringIO(), {"tool": "Bash", "input": {"command": "git push\x1b[2J"}, "digest": "a" * 64}
    answer: Any = {"success": True, "session_id": "session-1", "result": None, "stop_reason": "approval"}
    answer |= {"pending": waits, "files": [], "duration_ms": 1, "num_turns": 1, "cost_usd": 0.1, "model_failure": None}
    code = answers.give(answer, Console(file=shown, width=1000), Endpoint("http://127.0.0.1/x", "key", "a model"))
    assert (code, "\x1b" in shown.getvalue()) == (3, False)
    assert 'A call waits to be approved: Bash {"command": "git push' in shown.getvalue()
    for verb in ("approve", "deny"):
        assert f"claude-workflow ask --session session-1 --{verb} {'a' * 64}\n" in shown.getvalue()


def test_ask_answers_to_the_call_that_waits() -> None:
    """With or without a prompt; what failed is asked again as it was."""
    denied = Question(None, "session-1", deny="b" * 64, reason="No.")
    assert denied.body == {"session_id": "session-1", "deny": {"digest": "b" * 64, "reason": "No."}}
    again = denied.again("key-1", Endpoint("http://127.0.0.1/x", "key", "a model"))
    assert again == ("--key", "key-1", "--session", "session-1", "--deny", "b" * 64, "--reason", "No.")
    assert Question("And go on.", "session-1", approve="a" * 64).body["approve"] == "a" * 64


def asked(tool: str, given: object, name: str = "toolu_1") -> bytes:
    return json.dumps({"tool_name": tool, "tool_input": given, "tool_use_id": name}).encode()


def decision(asks: Approvals, body: bytes) -> str:
    return str(asks.decide(body, Witness(Proxy([]).meter))["hookSpecificOutput"]["permissionDecision"])


def test_a_mark_that_cannot_be_written_allows_nothing() -> None:
    """Nor does a call that the model did not make, or another than the approved one, whatever it is."""
    given = {"command": "git push"}
    verdict = Verdict(digest("toolu_1", "Bash", given), approved=True)
    assert decision(Approvals(ASKED, verdict, lambda: True), asked("Bash", given)) == "allow"
    assert decision(Approvals(ASKED, verdict, lambda: False), asked("Bash", given)) == "deny"
    assert decision(Approvals(ASKED, verdict, lambda: True), asked("Bash", given, "toolu_2")) == "deny"
    assert decision(Approvals(ASKED, verdict, lambda: True), asked("Bash", {"command": "git push -f"})) == "deny"
    assert decision(Approvals(ASKED), asked("Read", {})) == "deny"
    with pytest.raises(ValueError, match="no call"):
        decision(Approvals(ASKED), b"{}")


@pytest.mark.parametrize(
    ("tool", "given", "needed"),
    [
        ("mcp__tracker__create_issue", {}, True),
        ("mcp__tracker__list", {}, False),
        ("Bash", {"command": "cd x && git  push origin main"}, True),
        ("Bash", {"command": "git -C x push"}, True),
        ("Bash", {"command": "git log; echo push"}, False),
        ("Bash", {"command": "legit pushing"}, False),
        ("Write", {"command": "git push"}, False),
        ("Bash", {"command": 1}, False),
        pytest.param("Bash", {"command": "git " * 1_000_000}, False, id="a long command"),
    ],
)
def test_what_is_asked_before(tool: str, given: dict[str, Any], needed: bool) -> None:
    """Tools by their names, commands by their words, however long: while that is decided, nothing else is done."""
    assert Approvals(ASKED).needed(tool, given) is needed


def test_a_command_may_go_on_in_the_next_line() -> None:
    """Behind a backslash, which the shell takes away with the end of the line; without one it is another command."""
    asks = Approvals(["git push"])
    assert asks.needed("Bash", {"command": "git -C project \\\n  push"})
    assert asks.needed("Bash", {"command": "git pu\\\nsh"})
    assert not asks.needed("Bash", {"command": "git log\npush"})


def test_a_word_may_be_an_option() -> None:
    """Which no letter stands before."""
    asks = Approvals(["git push --force"])
    assert asks.needed("Bash", {"command": "git push origin --force"})
    assert not asks.needed("Bash", {"command": "git push origin; rm --force x"})
    assert not asks.needed("Bash", {"command": "git push --forced"})
