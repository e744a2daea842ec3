"""One turn of Claude Code through the Agent SDK.

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
makes the other tools disappear, for subagents too. `Bash(git *)` is therefore no restriction that could be kept. Those
of MCP servers are another matter (`lambdas.agent.mcp`): when the CLI says that it is connected, each server is up or
given up, and only then it gets the prompt.
"""

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lambdas import strict
from lambdas.agent import approvals, frames, mcp
from lambdas.agent.checkpoint import Checkpoints
from lambdas.agent.ending import Ending, Leg, Outside
from lambdas.agent.environment import lent
from lambdas.agent.equipment import NOTHING, Equipment, Server
from lambdas.agent.mcp import Allowed
from lambdas.agent.outcome import STDERR_BYTES, Left, Outcome, Unfinished, Verdict
from lambdas.agent.processes import Processes
from lambdas.agent.progress import Progress
from lambdas.agent.proxy import Proxy
from lambdas.agent.receipts import Receipts
from lambdas.agent.scratch import Scratch
from lambdas.agent.sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    CLIConnectionError,
    SubprocessCLITransport,
    _LineFramer,
    claude_agent_sdk,
)
from lambdas.agent.transcript import ENDERS, Transcript, only_uuid
from lambdas.agent.witness import Witness
from lambdas.contract import dollars
from lambdas.errors import Internal, SessionDamaged, ToolServerUnavailable, WorkflowError
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

WAITING_SECONDS = 3.0
"""How long after its start Claude Code may take to ask for the call that waits; it takes 0.1."""

NOTHING_WAITS = (
    "[The user has answered to the call that waited for it. If it does not wait any more, it was not made. Continue.]"
)
"""The prompt where that call is gone from the conversation, or its tool is."""

QUIET_SECONDS = 1.0
"""How long the end waits for calls whose agent is gone to be reckoned up; it takes milliseconds."""


@dataclass(frozen=True)
class Turn:
    """What the agent is asked. Texts up to 64 KiB but for the prompt; tools by their bare names."""

    prompt: str | None
    """None: nothing but to go on with the call that waits."""
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
    git: tuple[tuple[str, str], ...] = ()
    """How git is configured in this deployment, beside what leads to repositories: names and values."""
    equipment: Equipment = NOTHING
    """What the deployment gives; the proxy has its remote servers."""
    workspace_instructions: bool = False
    """Whether the workspace's own CLAUDE.md is heard."""

    @property
    def allowed(self) -> Allowed:
        """Which tools there are."""
        return Allowed(self.allowed_tools, self.disallowed_tools)

    @property
    def servers(self) -> list[Server]:
        """The deployment's MCP servers that it has."""
        return mcp.servers(self.equipment, self.allowed)


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
    if nothing had come from the model by then), RunCancelled (likewise), ToolServerUnavailable, AgentCrashed,
    OutputUnusable, and SessionDamaged if the transcript to resume is missing; Internal if a process does not die. What
    an earlier attempt had answers of does not fail for want of any, though. Checkpoints go `outside`, one last also
    where the run failed after money was spent.
    """
    began = time.monotonic()
    transcript = Transcript(scratch, turn.claude_session)
    before = transcript.size
    if turn.resume and not before:
        raise SessionDamaged(detail="the session has no transcript")
    ending = Ending(deadline, leg, proxy.gate, outside, scratch.root, proxy.restored)
    agent = _Agent(turn, scratch, proxy, outside, ending)
    with agent.progress, agent.receipts:
        by = await agent.run()
        proxy.meter.quiet(QUIET_SECONDS)
    left = agent.left(by, round((time.monotonic() - began) * 1000))
    verdict = Verdict(proxy, transcript, turn.output_schema, turn.cut, left)
    try:
        verdict.reword(before)
        return verdict.outcome()
    except WorkflowError:
        if proxy.answers and proxy.restored.in_place:
            agent.checkpoints.last()
            agent.progress.last()
        raise


class _Agent:
    """The CLI's process from its start to its end."""

    def __init__(self, turn: Turn, scratch: Scratch, proxy: Proxy, outside: Outside, ending: Ending) -> None:
        self._proxy = proxy
        self._turn, self._asked = turn, str(uuid.uuid4())
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
        await self._equip()
        said = await self._say()
        # As they come: the SDK's parser raises for a message that it does not know.
        if query := self._client._query:
            async for frame in query.receive_messages():
                if frames.ends(frame, self._asked) and (
                    frames.names(frame, self._asked) or not (said and self._goes_on)
                ):
                    return

    @property
    def _goes_on(self) -> bool:
        """Whether it began with a call that had waited: that may have a turn, and a result, of its own."""
        return self._proxy.approvals is not None and self._proxy.approvals.judged.is_set()

    async def _say(self) -> bool:
        """Give it the prompt; where there is none, and no call waits either, one that says so, or it would do nothing.
        Returns whether there was one."""
        prompt, waits = self._turn.prompt, self._proxy.approvals
        if prompt is None and waits and await asyncio.to_thread(waits.judged.wait, WAITING_SECONDS):
            return False
        await self._client.query(_prompt(prompt or NOTHING_WAITS, self._asked))
        return True

    async def _equip(self) -> None:
        """See that the MCP servers are there, and that nothing of theirs is which is not allowed. Raises
        `ToolServerUnavailable`."""
        servers, query = self._turn.servers, self._client._query
        if not servers or query is None:
            return
        status = await self._client.get_mcp_status()
        if missing := mcp.down(servers, status):
            raise ToolServerUnavailable(detail="\n".join(missing)[:STDERR_BYTES])
        if denied := mcp.denied(servers, status, self._turn.allowed):
            settings = {"permissions": {"deny": denied}}
            await query._send_control_request({"subtype": "apply_flag_settings", "settings": settings})

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
    schema = {"type": "json_schema", "schema": turn.output_schema} if turn.output_schema is not None else None
    # Else a resumed turn is sent the first one's text again, out of the transcript, which the agent can rewrite.
    extra: dict[str, str | None] = {"system-prompt-snapshot": "off"}
    instructions = turn.equipment.instructions or None
    extra |= _appended(scratch, "append-system-prompt-file", instructions, turn.append_system_prompt)
    extra |= _appended(scratch, "append-subagent-system-prompt-file", instructions)
    folder = turn.equipment.shown(scratch)
    built = lent(scratch, proxy, turn.git)
    if turn.workspace_instructions:
        built["CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD"] = "1"
    return ClaudeAgentOptions(
        cli_path=scratch.launcher(CLI, built, proxy, read=[folder] if folder else []),
        cwd=scratch.workspace,
        session_id=None if turn.resume else only_uuid(turn.claude_session),
        resume=only_uuid(turn.claude_session) if turn.resume else None,
        model=turn.model,
        system_prompt={"type": "preset", "preset": "claude_code"},
        extra_args=extra,
        max_turns=turn.max_turns,
        max_budget_usd=turn.max_budget_usd,
        output_format=schema,
        tools=turn.allowed.builtin,
        disallowed_tools=[*OUTLIVING, *turn.disallowed_tools],
        # With hooks that ask, what they do not allow is denied, and so is all if they cannot be reached.
        permission_mode="dontAsk" if proxy.approvals else "bypassPermissions",
        setting_sources=[],  # settings and hooks in the workspace are the agent's own writing
        plugins=[{"type": "local", "path": str(folder)}] if turn.equipment.plugin else [],
        add_dirs=[scratch.workspace] if turn.workspace_instructions else [],
        mcp_servers=_mcp_config(turn, scratch, proxy, folder),
        strict_mcp_config=True,
        settings=str(_settings(scratch, proxy)),
        verbatim_prompts=True,
        max_buffer_size=MESSAGE_BYTES,
        stderr=stderr,
    )


def _settings(scratch: Scratch, proxy: Proxy) -> Path:
    """A file, which may have the run's token in it."""
    settings: Json = {"skipWebFetchPreflight": True}  # else WebFetch asks api.anthropic.com
    if proxy.approvals:
        asks = {"type": "http", "url": f"{proxy.url}{approvals.PATH}", "headers": {"x-api-key": proxy.token}}
        settings["hooks"] = {"PreToolUse": [{"matcher": "*", "hooks": [asks]}]}
    file = scratch.private / "settings.json"
    file.write_bytes(strict.written(settings))
    return file


def _appended(scratch: Scratch, option: str, *texts: str | None) -> dict[str, str | None]:
    """The option by which these texts are added to a system prompt; none where there is no text. By a file, since an
    argument can be seen by other users of the machine."""
    given = [text for text in texts if text is not None]
    if not given:
        return {}
    file = scratch.private / option
    file.write_bytes("\n\n".join(given).encode())
    return {option: str(file)}


def _mcp_config(turn: Turn, scratch: Scratch, proxy: Proxy, folder: Path | None) -> dict[str, Any] | Path:
    """By a file too, which has the run's token in it."""
    if not turn.servers:
        return {}
    file = scratch.private / "mcp.json"
    file.write_bytes(strict.written(mcp.config(turn.servers, proxy, folder)))
    return file
