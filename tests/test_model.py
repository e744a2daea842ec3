"""The scripted stand-in, driven by the real CLI through the real SDK where that matters, else over HTTP."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from claude_agent_sdk import ClaudeAgentOptions, ProcessError, ResultError, ResultMessage, query

from claude_workflow.local.model import MARK, SYNTAX, ScriptedModel

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "stand-in.md").read_text()
TABLE = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \|", DOCS, re.M)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass
class Claude:
    """The real CLI, with its home and its working directory in `home`."""

    home: Path
    url: str

    def options(self, **options: Any) -> ClaudeAgentOptions:
        workspace = self.home / "workspace"
        workspace.mkdir(exist_ok=True)
        env = {
            "HOME": str(self.home),
            "CLAUDE_CONFIG_DIR": str(self.home / "claude"),
            "CLAUDE_CODE_TMPDIR": str(self.home),
            "IS_SANDBOX": "1",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "not-a-key",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(options.pop("retries", 0)),
        }
        return ClaudeAgentOptions(
            cwd=workspace, env=env, setting_sources=[], permission_mode="bypassPermissions", **options
        )

    async def _ask(self, prompt: str, options: ClaudeAgentOptions) -> ResultMessage:
        result = None
        try:
            async for message in query(prompt=prompt, options=options):
                if isinstance(message, ResultMessage):
                    result = message
        except ResultError:
            assert result, "the SDK raises this after the result message"
        assert result
        return result

    def ask(self, prompt: str, **options: Any) -> ResultMessage:
        """The result of one run. Raises ProcessError if the CLI dies."""
        return asyncio.run(self._ask(prompt, self.options(**options)))


@pytest.fixture
def claude(tmp_path: Path, model: ScriptedModel) -> Claude:
    """The CLI, pointed at this test's stand-in."""
    return Claude(tmp_path, model.url)


def body(*prompts: str, **fields: Any) -> dict[str, Any]:
    """A Messages request with these prompts."""
    messages = [{"role": "user", "content": prompt} for prompt in prompts]
    return {"model": "claude-test", "max_tokens": 100, "messages": messages, **fields}


def post(model: ScriptedModel, request: dict[str, Any], **headers: str) -> httpx.Response:
    """What the stand-in answers to a plain client."""
    return httpx.post(f"{model.url}/v1/messages", json=request, headers=headers or {"x-api-key": "k"})


def first_answer(model: ScriptedModel, prompt: str) -> tuple[str, dict[str, Any]]:
    """The first answer to a prompt in the words of the documentation's table, and its usage."""
    try:
        response = post(model, body(prompt))
    except httpx.RemoteProtocolError:
        return "cut", {}
    if response.status_code != 200:
        assert response.json()["type"] == "error"
        return str(response.status_code), {}
    try:
        message = response.json()
    except ValueError:
        return "garbage", {}
    block = message["content"][0]
    said = block["text"] if block["type"] == "text" else f"{block['name']} {json.dumps(block['input'])}"
    return said, message["usage"]


def test_table_names_every_directive() -> None:
    """The documentation's table has a row for each verb of the syntax."""
    assert sorted(row[0].split()[0] for row in TABLE) == sorted(SYNTAX)


@pytest.mark.parametrize(("syntax", "example", "answer"), TABLE, ids=[row[0].split()[0] for row in TABLE])
def test_table_tells_the_truth(model: ScriptedModel, syntax: str, example: str, answer: str) -> None:
    """Each example of the documentation's table is answered as the table says."""
    assert example.split()[0] == syntax.split()[0]
    said, usage = first_answer(model, example)
    if answer.endswith("output tokens"):
        assert f"{usage['output_tokens']} output tokens" == answer
    elif answer.endswith("KiB"):
        assert abs(len(said) - int(answer.split()[0]) * 1024) < 300
    elif answer == "200":
        assert said.startswith(MARK)
    else:
        assert said == answer


def test_plain_answer_and_prompt_byte_for_byte(claude: Claude, model: ScriptedModel) -> None:
    """A prompt without directives is answered by a marked sentence, and reaches the model as written."""
    prompt = "hello “world” 'single' \"double\" 😀 \\n $foo #set @@ ${x}\n\n\tline two — ünï\r\nend"
    result = claude.ask(prompt)
    assert result.result
    assert result.result.startswith(f"{MARK} Turn 1 ")
    assert [r.conversation.prompts for r in model.requests] == [[prompt]]
    assert json.dumps(prompt, ensure_ascii=False).encode() in model.requests[0].raw
    assert result.usage
    assert result.usage["output_tokens"] > 0


def test_tools_write_then_read_and_resume(claude: Claude, model: ScriptedModel) -> None:
    """The documented example does what it says with real tools; the resumed session knows its beginning."""
    block = re.search(r"```\nprompt: (.+?)\n\nanswer: (.+?)```", DOCS, re.S)
    assert block
    prompt, answer = (re.sub(r"^ {8}", "", text, flags=re.M).strip() for text in block.groups())
    first = claude.ask(prompt)
    assert first.result == answer
    assert (claude.home / "workspace" / "notes.txt").read_text() == "remember the milk"
    assert len(model.requests) == 3
    second = claude.ask("what did I say first?", resume=first.session_id)
    assert second.result
    assert "Turn 2 of a conversation that began with “write notes.txt: remember the milk" in second.result


def test_survives_a_restart(tmp_path: Path) -> None:
    """Another stand-in goes on with a conversation: the rule needs nothing but the request."""
    with ScriptedModel() as before:
        first = Claude(tmp_path, before.url).ask("hello")
    with ScriptedModel() as after:
        second = Claude(tmp_path, after.url).ask("run echo $((6*7))", resume=first.session_id)
    assert second.result
    assert second.result.startswith(f"{MARK} Turn 2 of a conversation that began with “hello”.")
    assert second.result.endswith("run echo $((6*7))\n→ 42")


def test_tool_that_is_not_offered(claude: Claude) -> None:
    """A tool outside the request is called all the same, and what the CLI says to that is quoted."""
    result = claude.ask("run touch hacked", tools=["Read"])
    assert result.result
    assert "No such tool available: Bash" in result.result
    assert not (claude.home / "workspace" / "hacked").exists()


def test_error_status_reaches_the_result(claude: Claude, model: ScriptedModel) -> None:
    """An API error arrives in the result message with its status; the session goes on after it."""
    failed = claude.ask("status 529")
    assert (failed.is_error, failed.api_error_status, len(model.requests)) == (True, 529, 1)
    refused = claude.ask("status 429 retry-after 99", resume=failed.session_id, retries=2)
    assert (refused.is_error, refused.api_error_status, len(model.requests)) == (True, 429, 2)
    assert claude.ask("say on we go", resume=failed.session_id).result == f"{MARK} on we go"


def test_fault_a_number_of_times(claude: Claude, model: ScriptedModel) -> None:
    """A fault with `times N` goes away, so that the CLI's own retry succeeds and each step is done once."""
    result = claude.ask("run echo x >> log\nstatus 429 retry-after 0 times 1\nsay done", retries=1)
    assert (result.is_error, len(model.requests)) == (False, 3)
    assert (claude.home / "workspace" / "log").read_text() == "x\n"


def test_crash_kills_the_cli(claude: Claude, model: ScriptedModel) -> None:
    """`crash` ends the CLI's process in mid-run: no result, a process error."""
    with pytest.raises(ProcessError, match="-9"):
        claude.ask("crash")
    assert len(model.requests) == 1


def test_structured_output(claude: Claude) -> None:
    """`json` is handed to the CLI's tool for structured answers."""
    result = claude.ask('json {"n": 3}', output_format={"type": "json_schema", "schema": SCHEMA})
    assert result.structured_output == {"n": 3}


@pytest.mark.parametrize("fault", ["cut", "garbage"])
def test_broken_stream(claude: Claude, fault: str) -> None:
    """A stream that breaks is an error of the run, not an answer."""
    result = claude.ask(fault)
    assert result.is_error
    assert MARK not in str(result.result)


def test_budget(claude: Claude) -> None:
    """Reported tokens count against the budget of the run."""
    result = claude.ask("cost 1000000\nrun true\nsay never", max_budget_usd=0.5)
    assert result.subtype == "error_max_budget_usd"


def test_stream_is_kept_alive_unless_silent(model: ScriptedModel) -> None:
    """A waiting answer pings; a silent one does not."""
    assert "event: ping" in post(model, body("wait 0.1", stream=True)).text
    silent = post(model, body("wait 0.1 silent", stream=True)).text
    assert "event: ping" not in silent
    assert "message_stop" in silent


def test_many_conversations_at_once(model: ScriptedModel) -> None:
    """Sixteen waiting conversations take as long as one, and each gets its own answer."""

    async def all_at_once() -> list[str]:
        async with httpx.AsyncClient(headers={"x-api-key": "k"}, timeout=60) as client:
            requests = [client.post(f"{model.url}/v1/messages", json=body(f"wait 3\nsay {n}")) for n in range(16)]
            return [r.json()["content"][0]["text"] for r in await asyncio.gather(*requests)]

    start = time.monotonic()
    assert asyncio.run(all_at_once()) == [f"{MARK} {n}" for n in range(16)]
    assert time.monotonic() - start < 16 * 3


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (json.dumps(body("hello")), {}, 401, "authentication_error"),
        (json.dumps(body("hello", model="gpt")), {"authorization": "Bearer t"}, 404, "not_found_error"),
        (json.dumps(body()), {"x-api-key": "k"}, 400, "invalid_request_error"),
        (json.dumps(body("json {no}")), {"x-api-key": "k"}, 400, "invalid_request_error"),
        ("[]", {"x-api-key": "k"}, 400, "invalid_request_error"),
        ("{", {"x-api-key": "k"}, 400, "invalid_request_error"),
        (json.dumps(body("status 429")), {"x-api-key": "k"}, 429, "rate_limit_error"),
        (json.dumps(body("status 503")), {"x-api-key": "k"}, 503, "api_error"),
    ],
)
def test_refusals(model: ScriptedModel, content: str, headers: dict[str, str], status: int, kind: str) -> None:
    """What the API refuses is refused with its status and its error object."""
    response = httpx.post(f"{model.url}/v1/messages", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)


def test_other_endpoints(model: ScriptedModel) -> None:
    """Tokens can be counted; anything else is the API's 404."""
    assert httpx.post(f"{model.url}/v1/messages/count_tokens", json=body("hello")).json()["input_tokens"] > 0
    assert httpx.get(f"{model.url}/v1/nothing").json()["error"]["type"] == "not_found_error"


def test_foreground() -> None:
    """`python -m` of the stand-in prints its URL once it answers there, and ends on SIGINT without a word."""
    command = [sys.executable, "-m", "claude_workflow.local.model"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().strip()
        answer = httpx.post(f"{url}/v1/messages", json=body("hello"), headers={"x-api-key": "k"})
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    assert answer.json()["content"][0]["text"].startswith(MARK)
