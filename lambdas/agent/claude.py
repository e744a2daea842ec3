"""One turn of Claude Code through the Agent SDK. The only module that imports the SDK (which takes most of a second).

The SDK is pinned: its transport is subclassed, to keep the CLI's messages as they were printed.

**What is believed.** The agent can write to the CLI's output, and to its transcript. So what a run costs, what the
model said and how it failed is the proxy's word (`proxy.meter`, `proxy.witness`); a message of the CLI's that does not
fit is passed over before the SDK sees it, and so is a line that is no JSON.

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
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport, _LineFramer
from jsonschema import Draft7Validator, validators
from referencing import Registry

from lambdas import strict
from lambdas.agent import frames
from lambdas.agent.checkpoint import Checkpoints, Saver
from lambdas.agent.environment import environment, refuse_credentials
from lambdas.agent.messages import TOO_DEEP
from lambdas.agent.processes import Processes
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.scratch import Scratch, crowded
from lambdas.agent.transcript import Transcript, only_uuid
from lambdas.agent.witness import Witness
from lambdas.contract import dollars
from lambdas.errors import (
    MODEL_STATUSES,
    AgentCrashed,
    DiskFull,
    Internal,
    ModelOverloaded,
    ModelRateLimited,
    ModelUnpriced,
    NotAsked,
    OutputUnusable,
    SchemaRefused,
    SessionDamaged,
    WorkflowError,
)
from lambdas.receipt import Receipt
from lambdas.strict import Json

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
"""Tools of CLI 2.1.332 that make sense only in a process that stays. A run ends with its answer: what they begin would
die with it, and come before the next prompt as the news of its death."""

NO_SCHEMA = "--json-schema is not a valid JSON Schema"
"""What CLI 2.1.332 says on its stderr before it ends, without a message and before any call of the model."""

STOPPED = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "max_budget",
    "error_max_structured_output_retries": "max_structured_output_retries",
}
"""Results of the CLI's for a limit, and the run's `stop_reason`."""

CONTINUE = (
    "[This turn was cut off by a failure of the service, not by the user. Conversation and workspace are as they were "
    "after its last completed step, and nothing runs in the background any more. Continue from where you left off; "
    "do not repeat what is done.]"
)
"""The prompt that goes on with a turn that was cut off."""

QUIET_SECONDS = 1.0
"""How long the end waits for calls whose agent is gone to be reckoned up; it takes milliseconds."""


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
    """As `lambdas.output_schema.usable` gives it."""
    allowed_tools: tuple[str, ...] | None = None
    """All there are, if given."""
    disallowed_tools: tuple[str, ...] = ()
    strict: bool = False
    """Whether a call's worst has to fit into the budget before it is made."""


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
    receipt: Receipt
    """By the meter, with the CLI's own total beside it."""
    usage: Json
    """Of all its calls of the model, subagents' included."""
    duration_ms: int
    model_failure: Json | None
    """`{"status", "times"}` where the model answered nothing but errors when the run ended: the status, None for no
    connection, and how often in a row."""

    @property
    def cost_usd(self) -> float:
        """This run's own, by the meter."""
        return self.receipt.usd


async def converse(turn: Turn, scratch: Scratch, proxy: Proxy, saver: Saver, deadline: float) -> Outcome:
    """Run one turn. At `deadline` (epoch seconds) it is interrupted and ends as completed, `stop_reason` "deadline";
    sooner where it has changed so much that saving it, or made so many files that removing them, will take the rest of
    the time.

    Returns a few seconds after the deadline at the latest, whatever the CLI does; every process that the run
    started is dead then. Raises ModelUnauthorized, ModelRejected, ModelRateLimited, ModelOverloaded (also if
    nothing had come from the model by the deadline), AgentCrashed, OutputUnusable, and SessionDamaged if the transcript
    to resume is missing; Internal if a process does not die. Checkpoints go to `saver`, one last also where the run
    failed after money was spent.
    """
    began = time.monotonic()
    transcript = Transcript(scratch, turn.claude_session)
    before = transcript.size
    if turn.resume and not before:
        raise SessionDamaged(detail="the session has no transcript")
    agent = _Agent(turn, scratch, proxy, saver, deadline)
    with agent.receipts:
        in_time = await agent.run(deadline)
        proxy.meter.quiet(QUIET_SECONDS)
    run = _Run(turn, scratch, proxy, agent, round((time.monotonic() - began) * 1000))
    try:
        if not in_time:
            run.reword(before)
        return run.outcome(in_time)
    except WorkflowError:
        if proxy.answers:
            agent.checkpoints.last()
        raise


class _Agent:
    """The CLI's process from its start to its end."""

    def __init__(self, turn: Turn, scratch: Scratch, proxy: Proxy, saver: Saver, deadline: float) -> None:
        self._proxy = proxy
        self._prompt, self._asked = turn.prompt, str(uuid.uuid4())
        self._root = scratch.root
        self._stderr: deque[str] = deque()
        self._processes = Processes(scratch.root, scratch.sandbox)
        options = _options(turn, scratch, proxy, self._keep_stderr)
        transcript = Transcript(scratch, turn.claude_session)
        self.checkpoints = Checkpoints(saver, proxy, self._processes.frozen, transcript.open, deadline)
        self._saver = saver
        self._earlier_usd = transcript.total_usd() if turn.resume else 0.0
        self.receipts = Receipts(proxy.meter, saver.receipt)
        proxy.meter.allow(turn.max_budget_usd, turn.max_turns, self.receipts, turn.strict)
        self._transport = _Tee(options, self.checkpoints, proxy.witness)
        self._client = ClaudeSDKClient(options, transport=self._transport)
        self.messages = self._transport.messages
        self.failure: Exception | None = None
        """What the SDK raised; the CLI died, or said something that is no message."""

    @property
    def result(self) -> Json:
        """What the CLI said when it was done with the prompt; empty if it did not."""
        return next((message for message in reversed(self.messages) if frames.ends(message, self._asked)), {})

    def total_usd(self, result: Json) -> float | None:
        """What Claude Code says that this run cost: a word of the agent's world, to be compared with the meter's. None
        where it says nothing, or nothing that could be."""
        said: Any = result.get("total_cost_usd")
        total = said - self._earlier_usd if dollars(said) else math.nan
        return round(total, 10) if dollars(total) else None

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
                with self.checkpoints:
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
    """The SDK's transport, which keeps what passes, and lets pass what is true."""

    def __init__(self, options: ClaudeAgentOptions, checkpoints: Checkpoints, witness: Witness) -> None:
        super().__init__(prompt=_no_prompt(), options=options)
        self._checkpoints = checkpoints
        self._witness = witness
        self.messages: list[Json] = []

    async def connect(self) -> None:
        await super().connect()
        printed: Any = self._stdout_stream
        lines: Any = self._believed(printed)
        self._stdout_stream = lines  # it is only ever iterated over

    async def _believed(self, printed: AsyncIterator[str]) -> AsyncIterator[str]:
        """Of what is printed, the lines that are believed."""
        framer = _LineFramer()
        async for chunk in printed:
            for line in framer.push(chunk):
                if self._take(line):
                    yield line + "\n"
            if framer.pending_len > MESSAGE_BYTES:
                raise CLIConnectionError(f"a message has more than {MESSAGE_BYTES} characters")

    def _take(self, line: str) -> bool:
        """Whether the SDK may see it; a message is kept."""
        try:
            frame = strict.read(line)
        except ValueError:
            return False
        if not isinstance(frame, dict):
            return False
        if frames.is_message(frame):
            message = self._witness.believed(frame)
            if message is None:
                return False
            self._checkpoints.note(message)
            self.messages.append(message)
        return frames.for_the_sdk(frame)


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
    # Else a resumed turn is sent the first one's text again, out of the transcript, which the agent can rewrite.
    extra: dict[str, str | None] = {"system-prompt-snapshot": "off"}
    if turn.append_system_prompt is not None:
        appended = scratch.private / "append-system-prompt"
        appended.write_bytes(turn.append_system_prompt.encode())
        extra["append-system-prompt-file"] = str(appended)
    built = environment(scratch) | proxy.environment
    refuse_credentials(built, proxy.environment)
    return ClaudeAgentOptions(
        cli_path=scratch.launcher(CLI, built, [proxy.port]),
        cwd=scratch.workspace,
        session_id=None if turn.resume else only_uuid(turn.claude_session),
        resume=only_uuid(turn.claude_session) if turn.resume else None,
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


@dataclass(frozen=True)
class _Run:
    """What there is to judge when the CLI is gone."""

    turn: Turn
    scratch: Scratch
    proxy: Proxy
    agent: _Agent
    duration_ms: int

    def reword(self, since: int) -> None:
        """Say in the transcript who ended the turn. Raises `DiskFull`, or `Internal` where it cannot be written."""
        try:
            Transcript(self.scratch, self.turn.claude_session).reword(since)
        except OSError as error:
            raise self._error(DiskFull if DiskFull.means(error) else Internal, {"result": str(error)}) from error

    def outcome(self, in_time: bool) -> Outcome:
        """The completed run, or raises what it failed by."""
        result = self.agent.result
        if not in_time:
            if not self.proxy.answers:
                raise self._error(ModelOverloaded if self.proxy.meter.calls else NotAsked, result)
            return self._completed("deadline", result)
        if not result:
            refused = NO_SCHEMA in self.agent.stderr and not self.proxy.answers
            raise self._error(SchemaRefused if refused else AgentCrashed, result)
        if result["subtype"] == "success" and result["is_error"]:
            if limit := self.proxy.meter.limit:
                return self._completed(limit, result | {"result": None})
            raise self._refused(result)
        unasked = result["subtype"] == "success" and not result["num_turns"]
        if unasked or result["subtype"] == "error_during_execution":
            raise self._error(AgentCrashed, result)
        return self._completed(self._stop_reason(result), result)

    def _stop_reason(self, result: Json) -> str:
        """A run that stopped at a limit names it; otherwise the model says why it stopped."""
        return STOPPED.get(result["subtype"]) or self.proxy.witness.stop_reason

    def _completed(self, stop_reason: str, result: Json) -> Outcome:
        if not Transcript(self.scratch, self.turn.claude_session).size:
            raise self._error(AgentCrashed, result)
        meter, took = self.proxy.meter, result.get("duration_ms")
        return Outcome(
            messages=self.agent.messages,
            result=result.get("result"),
            structured_output=self._output(result),
            stop_reason=stop_reason,
            num_turns=max(0, min(result.get("num_turns", 0), meter.calls + 1)),
            receipt=meter.receipt(self.agent.total_usd(result)),
            usage=meter.usage,
            duration_ms=took if type(took) is int and 0 <= took <= self.duration_ms else self.duration_ms,
            model_failure=self.proxy.witness.failure,
        )

    def _output(self, result: Json) -> Any:
        """What the model gave for the caller's schema, in its last answer. Raises `OutputUnusable`."""
        outputs = self.proxy.witness.outputs
        if self.turn.output_schema is None or result.get("subtype") != "success" or result["is_error"] or not outputs:
            return None
        fitting = [each for each in outputs if each is not TOO_DEEP and fits(each, self.turn.output_schema)]
        if not fitting:
            raise self._error(OutputUnusable, result)
        return fitting[-1]

    def _refused(self, result: Json) -> WorkflowError:
        """The API refused, or was not there, as the proxy saw it."""
        witness = self.proxy.witness
        if not witness.failed:
            return self._error(AgentCrashed, result)
        if self.proxy.meter.unpriced:
            return self._error(ModelUnpriced, result)
        error = MODEL_STATUSES.get(witness.status or 0, ModelOverloaded)
        waits = error is ModelRateLimited or witness.status == 529
        return self._error(error, result, retry_after=self.proxy.retry_after if waits else None)

    def _error(self, kind: type[WorkflowError], result: Json, retry_after: int | None = None) -> WorkflowError:
        errors = result.get("errors")
        listed = map(str, errors) if isinstance(errors, list) else ()
        causes = (str(result.get("result") or ""), *listed, str(self.agent.failure or ""))
        detail = "\n".join(part for part in (*causes, self.agent.stderr) if part)[-STDERR_BYTES:]
        return kind(retry_after=retry_after, cost_usd=self.proxy.meter.spent, detail=detail)


WITHOUT_PATTERNS = validators.extend(  # type: ignore[no-untyped-call]  # its stub has no types
    Draft7Validator, {"pattern": lambda *_: ()}
)
"""JavaScript's regular expressions are not Python's (`\\w` has no é there), so a right answer could seem wrong."""


def fits(output: Any, schema: Json) -> bool:
    """Whether a structured output is what the schema (of draft 7) asks for, as far as can be told here: patterns are
    left to Claude Code, which has checked what it printed itself. Nothing is fetched."""
    try:
        return bool(WITHOUT_PATTERNS(schema, registry=Registry()).is_valid(output))
    except Exception as unknown:  # whatever the schema makes the validator stumble over
        print(f"a schema that cannot be applied here: {type(unknown).__name__}", file=sys.stderr)
        return True
