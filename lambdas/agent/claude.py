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
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport, _LineFramer

from lambdas import strict
from lambdas.agent import frames
from lambdas.agent.checkpoint import Checkpoints
from lambdas.agent.ending import Ending, Leg, Outside
from lambdas.agent.environment import environment, refuse_credentials
from lambdas.agent.outcome import STDERR_BYTES, Left, Outcome, Unfinished, Verdict
from lambdas.agent.processes import Processes
from lambdas.agent.progress import Progress
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.scratch import Scratch
from lambdas.agent.transcript import ENDERS, Transcript, only_uuid
from lambdas.agent.witness import Witness
from lambdas.contract import dollars
from lambdas.errors import Internal, SessionDamaged, WorkflowError
from lambdas.strict import Json

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"

MESSAGE_BYTES = 64 * 1024 * 1024
"""Longest message of the CLI; at the SDK's default of 1 MiB a large image would end the run."""

INTERRUPT_SECONDS = 2.0
"""How long the CLI may take to stop at the deadline; it takes 0.02."""

EXIT_SECONDS = 3.0
"""How long the CLI may take to write its transcript and end; it takes 0.1."""

SETTLED_SECONDS = {"gate": 10.0, "limit": 1.0}
"""How long the end of a leg waits for the transcript; it takes 0.2. At the gate there is time."""

OUTLIVING = (
    *("Monitor", "Workflow"),  # work in the background, and wake the model for it
    *("CronCreate", "CronDelete", "CronList", "ScheduleWakeup"),  # ask the model later, when nobody is there
    *("ListAgents", "SendMessage"),  # speak to subagents, in the background, and to other sessions of this machine
    "TaskStop",  # ends what the others began
)
"""Tools of CLI 2.1.332 that make sense only in a process that stays. A run ends with its answer: what they begin would
die with it, and come before the next prompt as the news of its death."""

CONTINUE = (
    "[This turn was cut off by the service, not by the user: it goes on in another process. Conversation and workspace "
    "are as they were then, and nothing runs in the background any more. Continue from where you left off; do not "
    "repeat what is done.]"
)
"""The prompt that goes on with a turn that was cut off."""

QUIET_SECONDS = 1.0
"""How long the end waits for calls whose agent is gone to be reckoned up; it takes milliseconds."""


@dataclass(frozen=True)
class Turn:
    """What the agent is asked. Texts up to 64 KiB but for the prompt; tools by their bare names."""

    prompt: str
    claude_session: str
    """Claude's own id of the session, a UUID."""
    resume: bool
    """Whether that session exists: its transcript must then be in the scratch directory."""
    cut: bool = False
    """Whether an earlier attempt began this very turn, and was answered: then the prompt is `CONTINUE`."""
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


@overload
async def converse(turn: Turn, scratch: Scratch, proxy: Proxy, outside: Outside, deadline: float) -> Outcome: ...
@overload
async def converse(
    turn: Turn, scratch: Scratch, proxy: Proxy, outside: Outside, deadline: float, leg: Leg | None
) -> Outcome | Unfinished: ...
async def converse(
    turn: Turn, scratch: Scratch, proxy: Proxy, outside: Outside, deadline: float, leg: Leg | None = None
) -> Outcome | Unfinished:
    """Run one turn, or a `leg` of one. At `deadline` (epoch seconds), or when it is cancelled, it is interrupted and
    ends as completed; for all that ends it, see `lambdas.agent.ending`.

    Returns a few seconds after the deadline, or the leg's limit, at the latest, whatever the CLI does; every process
    that the run started is dead then. Raises ModelUnauthorized, ModelRejected, ModelRateLimited, ModelOverloaded (also
    if nothing had come from the model by then), RunCancelled (likewise), AgentCrashed, OutputUnusable, and
    SessionDamaged if the transcript to resume is missing; Internal if a process does not die. What an earlier attempt
    had answers of does not fail for want of any, though. Checkpoints go `outside`, one last also where the run failed
    after money was spent.
    """
    began = time.monotonic()
    transcript = Transcript(scratch, turn.claude_session)
    before = transcript.size
    if turn.resume and not before:
        raise SessionDamaged(detail="the session has no transcript")
    agent = _Agent(turn, scratch, proxy, outside, Ending(deadline, leg, proxy.gate, outside, scratch.root))
    with agent.progress, agent.receipts:
        by = await agent.run()
        proxy.meter.quiet(QUIET_SECONDS)
    left = agent.left(by, round((time.monotonic() - began) * 1000))
    verdict = Verdict(proxy, transcript, turn.output_schema, turn.cut, left)
    try:
        verdict.reword(before)
        return verdict.outcome()
    except WorkflowError:
        if proxy.answers:
            agent.checkpoints.last()
            agent.progress.last()
        raise


class _Agent:
    """The CLI's process from its start to its end."""

    def __init__(self, turn: Turn, scratch: Scratch, proxy: Proxy, outside: Outside, ending: Ending) -> None:
        self._proxy = proxy
        self._prompt, self._asked = turn.prompt, str(uuid.uuid4())
        self._ending = ending
        self._stderr: deque[str] = deque()
        self._processes = Processes(scratch.root, scratch.sandbox)
        options = _options(turn, scratch, proxy, self._keep_stderr)
        transcript = Transcript(scratch, turn.claude_session)
        self.checkpoints = Checkpoints(outside, proxy, self._processes.frozen, transcript.open, ending.last)
        self.progress = Progress(outside.messages)
        self._earlier_usd = transcript.total_usd() if turn.resume else 0.0
        self.receipts = Receipts(proxy.meter, outside.receipt)
        proxy.meter.allow(turn.max_budget_usd, turn.max_turns, self.receipts, turn.strict)
        self._transport = _Tee(options, self.checkpoints, proxy.witness, self.progress)
        self._client = ClaudeSDKClient(options, transport=self._transport)
        self._failure: Exception | None = None
        """What the SDK raised; the CLI died, or said something that is no message."""

    def left(self, by: str | None, duration_ms: int) -> Left:
        """What there is when it is gone."""
        ends = self._transport.ends
        result = next((message for message in reversed(ends) if frames.ends(message, self._asked)), {})
        return Left(
            by=by,
            result=result,
            last_message=ends[-1] if ends else {},
            told=self.progress.text,
            total_usd=self._total_usd(result),
            stderr="\n".join(self._stderr)[-STDERR_BYTES:],
            failure=self._failure,
            checkpointed=self.checkpoints.staged,
            duration_ms=duration_ms,
        )

    def _total_usd(self, result: Json) -> float | None:
        """What Claude Code says that this run cost: a word of the agent's world, to be compared with the meter's. None
        where it says nothing, or nothing that could be."""
        said: Any = result.get("total_cost_usd")
        total = said - self._earlier_usd if dollars(said) else math.nan
        return round(total, 10) if dollars(total) else None

    def _keep_stderr(self, line: str) -> None:
        self._stderr.append(line[-STDERR_BYTES:])
        while len(self._stderr) > 1 and sum(map(len, self._stderr)) - len(self._stderr[0]) > STDERR_BYTES:
            self._stderr.popleft()

    async def run(self) -> str | None:
        """By what the turn ended (see `ending`); None if by itself."""
        with self._processes:
            talk = asyncio.create_task(self._talk())
            try:
                with self.checkpoints:
                    by = await self._ending.awaited(talk)
                    self._proxy.shut()  # what is still at work in the CLI asks the model nothing more
                    if by in SETTLED_SECONDS:
                        by = await self._leave(by, talk)
                if by in ENDERS:
                    await self._interrupt(talk)
            finally:
                await self._end(talk)
        if not talk.cancelled() and isinstance(error := talk.exception(), Exception):
            self._failure = error
        return by

    async def _talk(self) -> None:
        await self._client.connect()
        await self._client.query(_prompt(self._prompt, self._asked))
        # As they come: the SDK's parser raises for a message that it does not know.
        if query := self._client._query:
            async for frame in query.receive_messages():
                if frames.ends(frame, self._asked):
                    return

    async def _leave(self, by: str, talk: asyncio.Task[None]) -> str:
        """End a leg, so that another one can go on; by what, when all is told. At the gate the CLI does nothing but
        wait: a SIGTERM lets it write down its sums. At the limit all that is under way stands still, and is killed."""
        calls = self._proxy.gate.owed if by == "gate" else ()
        settled = await asyncio.to_thread(self.checkpoints.settle, calls, SETTLED_SECONDS[by])
        if by == "gate" and settled:
            self._transport.terminate()
            await asyncio.wait({talk}, timeout=EXIT_SECONDS)
        else:
            with suppress(Internal), self._processes.frozen():  # what does not stand still is killed all the same
                self._processes.kill()
        return by if settled else "lag"

    async def _interrupt(self, talk: asyncio.Task[None]) -> None:
        """Ask the CLI to stop, which it answers with a result. If it is not there yet or does not, it is killed."""
        asking = asyncio.create_task(self._client.interrupt())
        await asyncio.wait({talk}, timeout=INTERRUPT_SECONDS if self.progress else 0)
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

    def __init__(
        self, options: ClaudeAgentOptions, checkpoints: Checkpoints, witness: Witness, progress: Progress
    ) -> None:
        super().__init__(prompt=_no_prompt(), options=options)
        self._checkpoints = checkpoints
        self._witness = witness
        self._progress = progress
        self.ends: list[Json] = []
        """The messages that say how a turn ended."""

    async def connect(self) -> None:
        await super().connect()
        printed: Any = self._stdout_stream
        lines: Any = self._believed(printed)
        self._stdout_stream = lines  # it is only ever iterated over

    def terminate(self) -> None:
        """Ask the CLI to end."""
        if self._process:
            with suppress(ProcessLookupError):
                self._process.terminate()

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
            self._progress.add(message)
            if frames.kind(message) == "result":
                self.ends.append(message)
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
