"""One turn of Claude Code through the Agent SDK. The only module that imports the SDK (which takes most of a second).

The SDK is pinned: its transport is subclassed, to keep the CLI's messages as they were printed.

**What a run costs.** `total_cost_usd` counts on over a session. The CLI (2.1.330) reads the earlier total from the
last `cost-state` record of the transcript, and writes a new one when it ends in peace; after a killed run it begins
from the record before. So the same record is read here, before the run, and subtracted. `--max-budget-usd` is
compared with this run's own spending. Since the agent could rewrite its transcript, the figure is the CLI's word,
not a bill; it is never negative. At every tool result the CLI is asked for its total (`get_usage`), which is handed
on at once (`Spending`): so the figure is nearly right also where the CLI, or this function, is killed.

**Prompts** are sent verbatim (`client_composed`): otherwise `@/etc/passwd` in a prompt is read and attached, and
`/help` is answered by the CLI without the model. The environment and the tool listing are sent all the same.

**A turn that was cut off** goes on by `CONTINUE` as its prompt. The CLI shows the model a call whose result was lost as
such ("its outcome is unknown"). Its own switch for this (`CLAUDE_CODE_RESUME_INTERRUPTED_TURN`) drops such a call
from the conversation, and waits for a prompt for ever where it finds nothing to go on with.

**What is left of an earlier turn.** The CLI's process ends with its turn, and what ran beside it dies. At the next turn
the CLI tells the model of a task that it finds unfinished, in a turn of its own before the prompt's, with a result of
its own: so the prompt has a uuid, and the result that names it is the run's. `OUTLIVING` has the tools that begin such
tasks, which no run has. Once the result is there, the proxy lets no further call through.

**Tools.** Under `bypassPermissions` a rule allows nothing more and takes nothing away; only `--tools` (bare names)
makes the other tools disappear, for subagents too. `Bash(git *)` is therefore no restriction that could be kept.
"""

import asyncio
import json
import math
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from lambdas.agent import frames
from lambdas.agent.checkpoint import Checkpoints, Saver
from lambdas.agent.credentials import Proxy
from lambdas.agent.sandbox import Processes, Scratch, crowded, environment, refuse_credentials
from lambdas.agent.spending import Spending
from lambdas.errors import (
    MODEL_STATUSES,
    AgentCrashed,
    ModelOverloaded,
    ModelRateLimited,
    ModelUnauthorized,
    SessionDamaged,
    WorkflowError,
)

Json = dict[str, Any]

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"

MESSAGE_BYTES = 64 * 1024 * 1024
"""Longest message of the CLI; at the SDK's default of 1 MiB a large image would end the run."""

STDERR_BYTES = 4096
"""How much of the end of the CLI's stderr is kept."""

INTERRUPT_SECONDS = 2.0
"""How long the CLI may take to stop at the deadline; it takes 0.02."""

EXIT_SECONDS = 3.0
"""How long the CLI may take to write its transcript and end; it takes 0.1."""

TAIL_FILES, FILE_SECONDS = 20_000, 50e-6
"""For how many files there is always time after the deadline, and what each more takes to be looked at and removed: the
deadline comes earlier by that. 20 µs were measured, and twice as much on a busy machine."""

COUNT_SECONDS = 1.0
"""How often files are counted, where that does not take a quarter of the time."""

OUTLIVING = (
    *("Monitor", "Workflow"),  # work in the background, and wake the model for it
    *("CronCreate", "CronDelete", "CronList", "ScheduleWakeup"),  # ask the model later, when nobody is there
    *("ListAgents", "SendMessage"),  # speak to subagents, in the background, and to other sessions of this machine
    "TaskStop",  # ends what the others began
)
"""Tools of CLI 2.1.330 that make sense only in a process that stays. A run ends with its answer: what they begin would
die with it, and come before the next prompt as the news of its death."""

CONTINUE = (
    "[This turn was cut off by a failure of the service, not by the user. Conversation and workspace are as they were "
    "after its last completed step, and nothing runs in the background any more. Continue from where you left off; "
    "do not repeat what is done.]"
)
"""The prompt that goes on with a turn that was cut off."""

SPENT = "spent"
"""The id under which the CLI is asked what it has spent; the SDK passes over answers that it did not ask for."""


@dataclass(frozen=True)
class Turn:
    """What the agent is asked. Texts up to 64 KiB but for the prompt; tools by their bare names."""

    prompt: str
    """`CONTINUE` to go on with a turn that was cut off."""
    claude_session: str
    """Claude's own id of the session, a UUID."""
    resume: bool
    """Whether that session exists: its transcript must then be in the scratch directory."""
    model: str | None = None
    append_system_prompt: str | None = None
    max_turns: int | None = None
    max_budget_usd: float | None = None
    """For this run alone."""
    output_schema: Json | None = None
    allowed_tools: tuple[str, ...] | None = None
    """All there are, if given."""
    disallowed_tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A completed run. Its transcript is in the scratch directory and can be resumed."""

    messages: list[Json]
    """The CLI's stream-json objects as printed."""
    result: str | None
    structured_output: Any
    stop_reason: str
    """`end_turn`, `refusal`, `max_tokens` … of the model; `max_turns`, `max_budget`, `deadline`,
    `max_structured_output_retries` of the run."""
    num_turns: int
    cost_usd: float
    """This run's own."""
    usage: Json
    duration_ms: int


async def converse(turn: Turn, scratch: Scratch, proxy: Proxy, saver: Saver, deadline: float) -> Outcome:
    """Run one turn. At `deadline` (epoch seconds) it is interrupted and ends as completed, `stop_reason` "deadline";
    sooner where it has changed so much that saving it, or made so many files that removing them, will take the rest of
    the time.

    Returns a few seconds after the deadline at the latest, whatever the CLI does; every process that the run
    started is dead then. Raises ModelUnauthorized, ModelRejected, ModelRateLimited, ModelOverloaded (also if
    nothing had come from the model by the deadline), AgentCrashed, and SessionDamaged if the transcript to resume
    is missing; Internal if a process does not die. Checkpoints go to `saver`, one last also where the run failed after
    money was spent.
    """
    began = time.monotonic()
    earlier = _spent_before(turn, scratch)
    agent = _Agent(turn, scratch, proxy, saver, earlier, deadline)
    in_time = await agent.run(deadline)
    run = _Run(turn, scratch, proxy, agent, round((time.monotonic() - began) * 1000))
    try:
        return run.outcome(in_time)
    except WorkflowError:
        if proxy.answers:
            agent.checkpoints.last()
        raise


class _Agent:
    """The CLI's process from its start to its end."""

    def __init__(
        self, turn: Turn, scratch: Scratch, proxy: Proxy, saver: Saver, earlier: float, deadline: float
    ) -> None:
        self._proxy = proxy
        self._prompt, self._asked = turn.prompt, str(uuid.uuid4())
        self._root = scratch.root
        self._earlier = self._total = earlier
        self._stderr: deque[str] = deque()
        self._processes = Processes(scratch.root, scratch.wall)
        options = _options(turn, scratch, proxy, self._keep_stderr)
        transcript = partial(_transcript, scratch, turn.claude_session)
        self.checkpoints = Checkpoints(saver, proxy, self._processes.frozen, transcript, deadline)
        self._saver = saver
        self._spending = Spending(saver.spent)
        self._transport = _Tee(options, self.checkpoints, self._note_spent)
        self._client = ClaudeSDKClient(options, transport=self._transport)
        self.messages = self._transport.messages
        self.failure: Exception | None = None
        """What the SDK raised; the CLI died, or said something that is no message."""

    @property
    def result(self) -> Json:
        """What the CLI said when it was done with the prompt; empty if it did not."""
        return next((m for m in reversed(self.messages) if frames.ends(m, self._asked) and _is_result(m)), {})

    def cost(self, result: Json) -> float:
        """US dollars of this run; without a result, what the CLI said at the last tool result."""
        total = float(result.get("total_cost_usd") or self._total)
        return max(0.0, round(total - self._earlier, 10)) if math.isfinite(total) else 0.0

    def _note_spent(self, total: float) -> None:
        self._total = total
        self._spending.note(self.cost({}))

    @property
    def stderr(self) -> str:
        """The end of what the CLI wrote there."""
        return "\n".join(self._stderr)[-STDERR_BYTES:]

    def _keep_stderr(self, line: str) -> None:
        self._stderr.append(line[-STDERR_BYTES:])
        while len(self._stderr) > 1 and sum(map(len, self._stderr)) - len(self._stderr[0]) > STDERR_BYTES:
            self._stderr.popleft()

    async def run(self, deadline: float) -> bool:
        """Whether the turn ended before the deadline."""
        with self._processes:
            talk = asyncio.create_task(self._talk())
            crowd = asyncio.create_task(self._crowd(deadline))
            try:
                with self._spending, self.checkpoints:
                    left = max(0.0, deadline - time.time())
                    await asyncio.wait({talk, crowd}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    self._proxy.shut()  # what is still at work in the CLI asks the model nothing more
                in_time = talk.done()
                if not in_time:
                    await self._interrupt(talk)
            finally:
                crowd.cancel()
                await self._end(talk)
        if not talk.cancelled() and isinstance(error := talk.exception(), Exception):
            self.failure = error
        return in_time

    async def _talk(self) -> None:
        await self._client.connect()
        await self._client.query(_prompt(self._prompt, self._asked))
        # As they come: the SDK's parser raises for a message that it does not know.
        if query := self._client._query:
            async for frame in query.receive_messages():
                if frames.ends(frame, self._asked):
                    return

    async def _crowd(self, deadline: float) -> None:
        """Ends when the time that is left is needed to save what the run changed, or to remove its files."""
        took = late = 0.0
        while (left := deadline - late - time.time()) > 0:
            await asyncio.sleep(min(left, max(COUNT_SECONDS, 3 * took)))
            began = time.time()
            if crowded(self._root, TAIL_FILES + int((deadline - began) / FILE_SECONDS)):
                return
            late = self._saver.saving_seconds()
            took = time.time() - began

    async def _interrupt(self, talk: asyncio.Task[None]) -> None:
        """Ask the CLI to stop, which it answers with a result. If it is not there yet or does not, it is killed."""
        asking = asyncio.create_task(self._client.interrupt())
        await asyncio.wait({talk}, timeout=INTERRUPT_SECONDS if self.messages else 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)  # if it failed, the result is missing, too

    async def _end(self, talk: asyncio.Task[None]) -> None:
        """Let the CLI write its transcript and end, or end it."""
        if not talk.done():
            self._processes.kill()
            await asyncio.wait({talk}, timeout=1)
            talk.cancel()
            await asyncio.wait({talk}, timeout=1)
        killer = asyncio.get_running_loop().call_later(EXIT_SECONDS, self._processes.kill)
        try:
            await self._client.disconnect()
        finally:
            killer.cancel()


class _Tee(SubprocessCLITransport):
    """The SDK's transport, which keeps what passes."""

    def __init__(
        self, options: ClaudeAgentOptions, checkpoints: Checkpoints, note_spent: Callable[[float], None]
    ) -> None:
        super().__init__(prompt=_no_prompt(), options=options)
        self._checkpoints = checkpoints
        self._note_spent = note_spent
        self.messages: list[Json] = []

    async def read_messages(self) -> AsyncIterator[Json]:
        async for message in super().read_messages():
            if frames.is_message(message):
                self._checkpoints.note(message)
                self.messages.append(message)
                if frames.kind(message) == "user":
                    await self._ask_what_is_spent()
            elif frames.for_the_sdk(message) and (answer := message.get("response", {})).get("request_id") == SPENT:
                with suppress(KeyError, TypeError, ValueError):  # the shape is experimental, the figure for failures
                    self._note_spent(float(answer["response"]["session"]["total_cost_usd"]))
            if frames.for_the_sdk(message):
                yield message

    async def _ask_what_is_spent(self) -> None:
        request = {"subtype": "get_usage", "skip_behaviors": True, "detached": True}
        asking = {"type": "control_request", "request_id": SPENT, "request": request}
        with suppress(CLIConnectionError):  # it is gone: so says what is read next
            await self.write(json.dumps(asking) + "\n")


async def _prompt(text: str, asked: str) -> AsyncIterator[Json]:
    """The prompt, with a uuid by which the CLI says which result is its."""
    message = {"role": "user", "content": text}
    yield {"type": "user", "message": message, "parent_tool_use_id": None, "uuid": asked}


async def _no_prompt() -> AsyncIterator[Json]:
    """The prompt comes later, by `query`."""
    return
    yield {}


def _options(turn: Turn, scratch: Scratch, proxy: Proxy, stderr: Callable[[str], None]) -> ClaudeAgentOptions:
    tools = None if turn.allowed_tools is None else list(turn.allowed_tools)
    schema = {"type": "json_schema", "schema": turn.output_schema} if turn.output_schema is not None else None
    extra: dict[str, str | None] = {}
    if turn.append_system_prompt is not None:
        appended = scratch.private / "append-system-prompt"
        appended.write_bytes(turn.append_system_prompt.encode())
        extra["append-system-prompt-file"] = str(appended)
    built = environment(scratch) | proxy.environment
    refuse_credentials(built, proxy.environment)
    return ClaudeAgentOptions(
        cli_path=scratch.launcher(CLI, built, [proxy.port]),
        cwd=scratch.workspace,
        session_id=None if turn.resume else _uuid(turn.claude_session),
        resume=_uuid(turn.claude_session) if turn.resume else None,
        model=turn.model,
        system_prompt={"type": "preset", "preset": "claude_code"},
        extra_args=extra,
        max_turns=turn.max_turns,
        max_budget_usd=turn.max_budget_usd,
        output_format=schema,
        tools=tools,
        disallowed_tools=[*OUTLIVING, *turn.disallowed_tools],
        permission_mode="bypassPermissions",
        setting_sources=[],  # settings and hooks in the workspace are the agent's own writing
        strict_mcp_config=True,
        settings=json.dumps({"skipWebFetchPreflight": True}),  # else WebFetch asks api.anthropic.com
        verbatim_prompts=True,
        max_buffer_size=MESSAGE_BYTES,
        stderr=stderr,
    )


def _uuid(text: str) -> str:
    """Only a UUID: `--resume` takes paths and titles, too. Raises ValueError."""
    return str(uuid.UUID(text))


def _transcript(scratch: Scratch, claude_session: str) -> Path | None:
    found = scratch.claude.glob(f"projects/*/{_uuid(claude_session)}.jsonl")
    return next((path for path in found if path.is_file() and path.stat().st_size), None)


def _spent_before(turn: Turn, scratch: Scratch) -> float:
    """The total from which the CLI will count on. Raises SessionDamaged if there is nothing to resume."""
    if not turn.resume:
        return 0.0
    transcript = _transcript(scratch, turn.claude_session)
    if transcript is None:
        raise SessionDamaged(detail="the session has no transcript")
    total = 0.0
    with transcript.open("rb") as lines:
        for line in lines:
            if line.startswith(b'{"type":"cost-state"'):
                with suppress(ValueError, KeyError, TypeError):  # the CLI passes over a broken record, too
                    total = float(json.loads(line)["totalCostUSD"])
    return total


@dataclass(frozen=True)
class _Run:
    """What there is to judge when the CLI is gone."""

    turn: Turn
    scratch: Scratch
    proxy: Proxy
    agent: _Agent
    duration_ms: int

    def outcome(self, in_time: bool) -> Outcome:
        """The completed run, or raises what it failed by."""
        result = self.agent.result
        if not in_time:
            if not self.proxy.answers:
                raise self._error(ModelOverloaded, result, "The deadline passed before the first turn began.")
            return self._completed("deadline", result)
        if not result:
            raise self._error(AgentCrashed, result)
        if result["subtype"] == "success" and result["is_error"]:
            raise self._refused(result)
        unasked = result["subtype"] == "success" and not result["num_turns"]
        if unasked or result["subtype"] == "error_during_execution":
            raise self._error(AgentCrashed, result)
        return self._completed(_stop_reason(result), result)

    def _completed(self, stop_reason: str, result: Json) -> Outcome:
        if _transcript(self.scratch, self.turn.claude_session) is None:
            raise self._error(AgentCrashed, result)
        return Outcome(
            messages=self.agent.messages,
            result=result.get("result"),
            structured_output=result.get("structured_output"),
            stop_reason=stop_reason,
            num_turns=result.get("num_turns", 0),
            cost_usd=self.agent.cost(result),
            usage=result.get("usage", {}),
            duration_ms=result.get("duration_ms", self.duration_ms),
        )

    def _refused(self, result: Json) -> WorkflowError:
        """The API refused, or was not there. The seam for waiting: nothing but `error` depends on the status."""
        status = result.get("api_error_status")
        error = MODEL_STATUSES.get(status or 0, ModelOverloaded)
        if any(message.get("error") == "billing_error" for message in self.agent.messages[-3:]):
            error = ModelUnauthorized
        refusal = self._error(error, result)
        if error is ModelRateLimited or status == 529:
            refusal = self._error(error, result, retry_after=self.proxy.retry_after)
        return refusal

    def _error(
        self, kind: type[WorkflowError], result: Json, sentence: str | None = None, retry_after: int | None = None
    ) -> WorkflowError:
        errors = result.get("errors")
        listed = map(str, errors) if isinstance(errors, list) else ()
        told = (str(result.get("result") or ""), *listed, str(self.agent.failure or ""))
        detail = "\n".join(part for part in (*told, self.agent.stderr) if part)[-STDERR_BYTES:]
        return kind(sentence, retry_after=retry_after, cost_usd=self.agent.cost(result), detail=detail)


def _is_result(message: Json) -> bool:
    """Whether it has what a result of the CLI's has: the agent can write to the CLI's output, too."""
    kinds: dict[str, Any] = {
        "subtype": str,
        "is_error": bool,
        "total_cost_usd": (int, float),
        "num_turns": int,
        "usage": dict,
    }
    return all(isinstance(message.get(name), kind) for name, kind in kinds.items())


def _stop_reason(result: Json) -> str:
    """A run that stopped at a limit names it; otherwise the model says why it stopped."""
    limits = {"error_max_turns": "max_turns", "error_max_budget_usd": "max_budget"}
    if result["subtype"] != "success":
        return limits.get(result["subtype"], str(result["subtype"]).removeprefix("error_"))
    reason = result.get("stop_reason")
    # With an output schema the last thing the model does is to call the tool that takes the output.
    return "end_turn" if reason in (None, "tool_use") else str(reason)
