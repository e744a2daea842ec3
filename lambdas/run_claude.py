"""RunClaude: unpack the session and what came with the request, let Claude Code work on it, stage what came of it.

This function runs strangers' code, so it has no right on the bucket: it reads and writes through the task's grants.
What it stages is a result only when all of it is there; what dies before leaves the session as it was, and a checkpoint
from which a replay goes on. So does a leg of a long run, for the next one.
"""

import asyncio
import gc
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from lambdas import strict
from lambdas.agent import behind, mcp, network
from lambdas.agent.approvals import Approvals, Verdict
from lambdas.agent.bedrock import bedrock
from lambdas.agent.brought import BRINGS, WORKSPACE, Brought
from lambdas.agent.checkpoint import Leashed
from lambdas.agent.claude import CLI, CONTINUE, Turn, converse
from lambdas.agent.credential import Secret
from lambdas.agent.ending import Leg
from lambdas.agent.environment import lent, refuse_careless
from lambdas.agent.equipment import NOTHING, Equipment
from lambdas.agent.git import briefing
from lambdas.agent.git import upstreams as of_git
from lambdas.agent.materials import Materials, put_in
from lambdas.agent.outcome import Outcome, Told, Unfinished
from lambdas.agent.processes import seal
from lambdas.agent.proxy import Proxy
from lambdas.agent.reach import Reach
from lambdas.agent.registries import upstreams as of_packages
from lambdas.agent.repository import Repository
from lambdas.agent.restored import Known, Restored
from lambdas.agent.sandbox import Sandbox
from lambdas.agent.scratch import Scratch, swept
from lambdas.agent.transcript import Transcript
from lambdas.agent.transfer import HASTY, PATIENT, Patience, RemoteArchive, Transfer
from lambdas.agent.tunnel import Tunnels
from lambdas.agent.upstream import Upstream, anthropic, supabase
from lambdas.archive.format import RATIO, Limits
from lambdas.archive.landing import Landing
from lambdas.archive.overlay import Overlay
from lambdas.archive.pack import Packed, pack, packing_seconds
from lambdas.archive.tree import Change, Fingerprint, Keep, Look, amount, await_clock_tick, shown
from lambdas.archive.unpack import unpack
from lambdas.contract import WARM_UP, Grant, LegEnded, Result, RunResult, Task
from lambdas.errors import (
    AgentCrashed,
    DiskFull,
    Internal,
    ModelOverloaded,
    ModelUnauthorized,
    NotAsked,
    RunTimedOut,
    StorageUnavailable,
    WorkflowError,
)
from lambdas.materials import tar
from lambdas.output_schema import usable
from lambdas.receipt import Receipt
from lambdas.settings import PROVISIONED, STARTED, AgentSettings
from lambdas.strict import Json

PIECE = 1024 * 1024
"""Bytes of Claude Code that are read at once, to have them read."""

FILES_NAMED = 1000
"""How many changed files result.json names; `files_total` counts them all."""

REMOVING_SECONDS = 1.0
"""How long before the function's own time limit staging is given up: that limit would end it without a word."""

OBJECTS = 250_000
"""How many are made before garbage is looked for among them: a large session's files are not looked through."""

KEPT_OF_CLAUDE = ("tool-results", "subagents")
"""What a transcript refers to, beside it; the rest of Claude's configuration directory is remade at every start."""


def handler(event: Json, context: Any) -> Json:
    """The Lambda entry point: `Task` → `RunResult` or `LegEnded`, or `WARM_UP` → nothing."""
    if event == WARM_UP:
        return warm()
    task, cold = Task.load(event), not state.cache_info().currsize
    try:
        end = time.time() + context.get_remaining_time_in_millis() / 1000
        ready = state()
        return ready.run(task, end, time.time() - task.handed_at if cold else 0.0).dump()
    finally:
        gc.collect()  # the SDK's objects hold each other, and with them what is known of the session's files


def warm() -> Json:
    """Make ready what the first run would wait for. Lambda loads an image piece by piece, as it is read: of Claude Code
    that takes longest. Nothing else is touched, and nothing is asked for."""
    state()
    with CLI.open("rb") as program:
        while program.read(PIECE):
            pass
    return {}


@cache
def state() -> "RunClaude":
    """RunClaude by the function's environment, sealed, made once in a warm function."""
    settings = _settled(AgentSettings.read(os.environ))
    seal()
    refuse_careless(os.environ)
    # Warnings of these two quote URLs with their signatures, and what the agent printed.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("claude_agent_sdk").setLevel(logging.CRITICAL)
    secrets = botocore.session.get_session().create_client("secretsmanager")
    gc.freeze()  # what was imported stays: to look for garbage in it takes 75 ms, in the middle of a restore
    gc.set_threshold(OBJECTS)
    equipment = Equipment.read(Path(settings.agent_folder))
    read = partial(_secret, secrets, settings.secret_arn)
    named = {*equipment.secrets, *(each.secret for each in settings.repositories)}
    secrets_lent = {name: Secret(partial(read, name)) for name in named}
    return RunClaude(settings, Transfer(), _upstreams(settings, read), equipment, secrets_lent)


@dataclass(frozen=True)
class RunClaude:
    """One warm function, which serves one run at a time."""

    settings: AgentSettings
    transfer: Transfer
    upstreams: list[Upstream]
    equipment: Equipment = NOTHING
    lent: Mapping[str, Secret] = field(default_factory=dict)
    """What hosts of repositories and the equipment's servers are lent, by the fields of the deployment's secret."""

    def run(self, task: Task, end: float = math.inf, start_seconds: float = 0.0) -> RunResult | LegEnded:
        """`start_seconds` went by while this function started: a cold start, or else 0.

        Raises `MaterialsRefused`, `RepositoryRefused`, `RepositoryUnavailable`, one of the model's errors,
        `RunCancelled`, `AgentCrashed`, `SessionTooLarge`, `RunTimedOut` where what came of it is not staged before the
        function ends (at `end`, epoch seconds), or one of `Internal`."""
        tempfile.gettempdir()  # looked for once, and now: on a disk that a run filled there would seem to be none
        pinned = task.grants.session
        session = self.transfer.open(pinned, task.size, task.directory) if pinned else None
        with ThreadPoolExecutor(1) as beside:
            request = beside.submit(self.transfer.read, task.grants.request)
            started = strict.written({"deadline": task.deadline})  # for who looks at the run meanwhile
            if not self.transfer.put(task.grants.started, started, len(started)):
                raise AgentCrashed(detail="this attempt was started before: the model is not asked again")
        try:
            body = json.loads(request.result())["body"]
            return self._run(task, body, session, end)
        except ModelOverloaded as error:
            late = time.time() >= task.deadline
            raise self._without_detail(task, error.after(start_seconds) if late else error) from None
        except WorkflowError as error:
            raise self._without_detail(task, error) from None
        except OSError as error:
            if not DiskFull.means(error):
                raise
            raise self._without_detail(task, DiskFull(detail=str(error))) from None

    def _run(self, task: Task, body: Json, session: RemoteArchive | None, end: float) -> RunResult | LegEnded:
        with (
            swept(self.settings.wiped),
            Scratch(self._root(task), self._sandbox(task)) as scratch,
            self._restored(task, body, session, scratch) as restored,
        ):
            saver, given = Saver(self, task, scratch, restored), None
            if over := _over(task, saver):
                outcome: Outcome | Unfinished = Outcome.unasked(over)
            else:
                turn = self._turn(task, body)
                asks = self._approvals(task, body, scratch)
                with self._proxy(task, turn, asks, restored) as proxy:
                    scratch.furnish(proxy.files)
                    if body.keys() & BRINGS and not task.cut:  # a checkpoint has it already
                        self._clone(task, body, scratch, proxy, saver.cancelled)
                        self._put_in(task, body, scratch)
                        given = Brought(scratch.workspace)
                    outcome = asyncio.run(converse(turn, scratch, proxy, saver, task.deadline, _leg(task)))
            scratch.clear()
            go_on = partial(_in_time, end)
            try:
                before = restored.result()
                if isinstance(outcome, Unfinished):
                    return self._stage_leg(task, scratch, outcome, before, go_on)
                return self._stage(task, scratch, outcome, before, given, go_on)
            except WorkflowError as error:
                raise error.but(cost_usd=outcome.cost_usd) from error
            except OSError as error:
                if not DiskFull.means(error):
                    raise
                raise DiskFull(detail=str(error), cost_usd=outcome.cost_usd) from error

    def _proxy(self, task: Task, turn: Turn, asks: Approvals | None, restored: Restored) -> Proxy:
        """What there is for the agent beyond its own machine."""
        settings = self.settings
        return Proxy(
            self._reached(turn, asks),
            settings.prices,
            paid=task.cut,
            approvals=asks,
            reach=Reach(settings.egress.open, turn.allowed.has("WebSearch"), settings.models, task.claude_session),
            tunnels=Tunnels(settings.egress),
            inside=self._sandbox(task).its_own_network,
            restored=restored,
        )

    def _reached(self, turn: Turn, asks: Approvals | None) -> list[Upstream]:
        """What the agent may use in this run; a push, and a call of a remote server, where it is approved."""
        settings, secret = self.settings, self.lent.__getitem__
        approved = asks.spend_push if asks else lambda: True
        git = of_git(settings.repositories, secret, settings.protected_branches, approved)
        servers = mcp.upstreams(self.equipment, turn.allowed, secret, asks)
        return [*self.upstreams, *git, *servers, *of_packages(settings.registries)]

    def _approvals(self, task: Task, body: Json, scratch: Scratch) -> Approvals | None:
        """What is asked before, and what the caller says of the call that waits; None where nothing is, and none does.
        One may wait from when the deployment still asked."""
        verdict, mark = _verdict(body), task.grants.approved
        if not self.settings.ask_before and not Transcript(scratch, task.claude_session).waits:
            return None
        take = partial(self.transfer.put, mark, b"", 0) if mark else lambda: False
        return Approvals(self.settings.ask_before, verdict, take)

    def _without_detail(self, task: Task, error: WorkflowError) -> WorkflowError:
        """The error without its detail, which is staged: an error's text is in the function's log and its trace, and
        what the agent printed does not belong there."""
        if error.detail:
            detail = error.detail.encode(errors="replace")
            with suppress(StorageUnavailable):  # the operator may miss the detail, the caller not the error
                self.put(task.grants.detail, detail, len(detail))
        return error.but(detail="")

    @contextmanager
    def _restored(self, task: Task, body: Json, session: RemoteArchive | None, scratch: Scratch) -> Iterator[Restored]:
        """What the run goes on from is put in place, before the block or within it. It has what of that is the
        pinned version's, to tell changes by."""
        kept = partial(_kept, task.claude_session)
        if session and behind.hides(task, body, self.settings, self.equipment):
            landed = Landing(session, scratch.root, scratch.landing, self._limits, scratch.sandbox.uid)
            with behind.landing(landed, scratch, task.claude_session, kept) as restored:
                yield restored
            return
        resumed = self._overlay(session, task.grants.resumed) if task.grants.resumed else None
        archive, known = resumed or session, Known()
        if archive:
            made = unpack(archive, scratch.root, self._limits, scratch.sandbox.uid)
            known = {path: each for path, each in made.items() if not path.startswith("claude/") or kept(path)}
            await_clock_tick(known, scratch.private)
        yield Restored.before(resumed.known(known) if resumed else known)

    def _clone(self, task: Task, body: Json, scratch: Scratch, proxy: Proxy, cancelled: Callable[[], bool]) -> None:
        """Make the workspace a clone of the repository that is asked for."""
        if "repository" in body:
            wanted, environment = Repository.of(body["repository"]), lent(scratch, proxy)
            end = min(task.deadline, task.limit or math.inf)
            wanted.clone(scratch, environment, proxy, self._limits, end, cancelled)

    def _put_in(self, task: Task, body: Json, scratch: Scratch) -> None:
        """Put what came with the request into the workspace: an upload, and files over it."""
        if not body.keys() & {"workspace", "files"}:
            return
        there = amount(scratch.workspace, "", {})
        room = self._limits.bytes - there.size, self._limits.members - there.seen
        end = min(task.deadline, task.limit or math.inf)
        if task.grants.upload:
            uploaded = self.transfer.open(task.grants.upload)
            pieces = uploaded.read(0, uploaded.size)
            put_in(Materials("workspace", pieces, body["workspace"].get("path", "")), scratch, room, end)
        if files := body.get("files"):
            put_in(Materials("files", [tar(files)]), scratch, room, end)

    def _turn(self, task: Task, body: Json) -> Turn:
        """What is asked, with what the deployment gives: its agent's equipment, which repositories there are, whose
        commits are."""
        turn, settings = _turn(task, body), self.settings
        told = briefing(settings.repositories, settings.protected_branches), turn.append_system_prompt
        return replace(
            turn,
            append_system_prompt="\n\n".join(filter(None, told)) or None,
            git=tuple((f"user.{name}", value) for name, value in settings.git_identity),
            equipment=self.equipment,
            workspace_instructions=settings.workspace_instructions,
        )

    def _overlay(self, session: RemoteArchive | None, checkpoint: Grant) -> Overlay:
        return Overlay(session, self.transfer.open(checkpoint), self._limits)

    def _stage(
        self,
        task: Task,
        scratch: Scratch,
        outcome: Outcome,
        before: Mapping[str, Fingerprint],
        given: Brought | None,
        go_on: Callable[[], None],
    ) -> RunResult:
        """What came of it, under the attempt: four objects, which only together are a result. What was
        `given` with the request is a change of the run's where it is not as it was."""
        with ThreadPoolExecutor(2) as beside, tempfile.TemporaryFile() as archive:
            told = self._stage_told(beside, task, outcome)
            packed = self.pack(task, scratch, before, archive, go_on, given.look if given else None)
            for each in told:
                each.result()  # where there is a result, its messages and its receipt are the last ones
            result = _result(outcome, packed, given.changed(packed.changes) if given else packed.changes)
            staging = beside.submit(self.put_json, task.grants.result, result.dump())
            self._put_archive(task.grants.changes, archive, packed.size, go_on)
            staging.result()
        return RunResult.of(task.run_id, result)

    def _stage_leg(
        self,
        task: Task,
        scratch: Scratch,
        leg: Unfinished,
        before: Mapping[str, Fingerprint],
        go_on: Callable[[], None],
    ) -> LegEnded:
        """What the next leg goes on from. Never without a checkpoint; at the limit the one before may do."""
        with ThreadPoolExecutor(2) as beside, tempfile.TemporaryFile() as archive:
            told = self._stage_told(beside, task, leg)
            try:
                if leg.by == "lag":
                    raise RunTimedOut(detail="the transcript lags behind")
                packed = self.pack(task, scratch, before, archive, go_on)
                self._put_archive(task.grants.checkpoint, archive, packed.size, go_on)
            except (StorageUnavailable, RunTimedOut) as failure:
                if leg.by == "gate":
                    raise
                if not leg.checkpointed:
                    raise RunTimedOut(detail=failure.detail) from failure
                print(f"no checkpoint at the limit, the one before counts: {failure}", file=sys.stderr)
            for each in told:
                each.result()
        return LegEnded(task.run_id, "gate" if leg.by == "gate" else "limit")

    def _stage_told(self, beside: Executor, task: Task, came: Told) -> list[Future[None]]:
        """The messages and the receipt, whole."""
        return [
            beside.submit(self.put, task.grants.messages, came.told, len(came.told)),
            beside.submit(self.put_json, task.grants.receipt, came.receipt.dump()),
        ]

    def _put_archive(self, grant: Grant, archive: IO[bytes], size: int, go_on: Callable[[], None]) -> None:
        archive.flush()
        with Leashed(archive.fileno(), closefd=False) as leashed:
            leashed.go_on = go_on
            leashed.seek(0)
            self.put(grant, leashed, size)

    def pack(
        self,
        task: Task,
        scratch: Scratch,
        before: Mapping[str, Fingerprint],
        out: BinaryIO,
        go_on: Callable[[], None] = lambda: None,
        look: Look | None = None,
    ) -> Packed:
        """What changed in the session by now; `go_on` is asked all the time, and may raise; `look` sees all of it."""
        return pack(_roots(scratch), out, self._limits, _keep(task), before, go_on, look)

    def put(self, grant: Grant, body: Any, size: int, patience: Patience = PATIENT) -> None:
        """Stage one object."""
        if not self.transfer.put(grant, body, size, patience):
            raise StorageUnavailable(detail="staging: S3 answered 412 to an unconditional PUT")

    def put_json(self, grant: Grant, data: Any) -> None:
        """Stage one object, as JSON."""
        text = strict.written(data)
        self.put(grant, text, len(text))

    def _root(self, task: Task) -> Path:
        return Path(self.settings.scratch) / task.claude_session

    def _sandbox(self, task: Task) -> Sandbox:
        most = self.settings.max_session_bytes + 1  # so that a file that outgrows the session still fails it by name
        settings, session = self.settings, task.claude_session
        alone = bool(settings.wiped)
        return Sandbox.of(settings.sandbox, session, most, alone=alone, network=settings.agent_network)

    @property
    def _limits(self) -> Limits:
        return Limits(self.settings.max_session_files, self.settings.max_session_bytes, RATIO)


@dataclass(frozen=True)
class Saver:
    """Checkpoints are what would be staged, under a name of their own."""

    state: RunClaude
    task: Task
    scratch: Scratch
    restored: Restored

    def pack(self, out: BinaryIO, go_on: Callable[[], None]) -> int:
        if not self.restored.done():
            raise Internal(detail="the session is not in place yet")
        return self.state.pack(self.task, self.scratch, self.restored.result(), out, go_on).size

    def upload(self, archive: BinaryIO, size: int) -> None:
        self.state.put(self.task.grants.checkpoint, archive, size)

    def saving_seconds(self) -> float:
        if not self.restored.in_place:
            return 0.0
        return packing_seconds(_roots(self.scratch), _keep(self.task), self.restored.result(), time.monotonic)

    def receipt(self, receipt: Receipt) -> None:
        self.state.put_json(self.task.grants.receipt, receipt.dump())

    def messages(self, text: bytes) -> None:
        self.state.put(self.task.grants.messages, text, len(text), HASTY)

    def cancelled(self) -> bool:
        return self.state.transfer.there(self.task.grants.cancel)


def _over(task: Task, saver: Saver) -> str | None:
    """By what the run has ended between two attempts. Raises `NotAsked` where there was none before, in time."""
    late = time.time() > task.deadline
    if late and not task.cut:
        raise NotAsked(detail="the deadline passed while the session was restored")
    return "deadline" if late else "cancelled" if task.cut and saver.cancelled() else None


def _leg(task: Task) -> Leg | None:
    return Leg(task.gate, task.limit) if task.gate is not None and task.limit is not None else None


def _turn(task: Task, body: Json) -> Turn:
    allowance = task.allowance
    return Turn(
        prompt=CONTINUE if task.cut else body.get("prompt"),
        claude_session=task.claude_session,
        resume=task.resume,
        cut=task.cut,
        model=body.get("model"),
        append_system_prompt=body.get("append_system_prompt"),
        max_turns=allowance.max_turns,
        max_budget_usd=allowance.max_budget_usd,
        output_schema=usable(body["output_schema"]) if "output_schema" in body else None,
        allowed_tools=None if allowance.allowed_tools is None else tuple(allowance.allowed_tools),
        disallowed_tools=tuple(allowance.disallowed_tools),
        strict=allowance.strict,
    )


def _verdict(body: Json) -> Verdict | None:
    if "deny" in body:
        return Verdict(body["deny"]["digest"], approved=False, reason=body["deny"].get("reason", ""))
    return Verdict(body["approve"], approved=True) if "approve" in body else None


def _roots(scratch: Scratch) -> dict[str, Path]:
    return {"workspace": scratch.workspace, "claude": scratch.claude}


def _keep(task: Task) -> dict[str, Keep]:
    """Of Claude's directory not all is kept."""
    return {"claude": partial(_kept, task.claude_session)}


def _in_time(end: float) -> None:
    """Raises `RunTimedOut` when no more is left than the scratch directory takes to be removed."""
    if time.time() > end - REMOVING_SECONDS:
        raise RunTimedOut(detail="what the run changed could not be saved in the time that was left")


def _of_workspace(changes: Sequence[Change]) -> list[Change]:
    """Those of the workspace, by their paths in it."""
    return [each._replace(path=each.path[len(WORKSPACE) :]) for each in changes if each.path.startswith(WORKSPACE)]


def _kept(claude_session: str, path: str) -> bool:
    """Of Claude's directory, the transcript and what it refers to."""
    _, *below = path.split("/")
    wanted = [("projects",), None, (claude_session, f"{claude_session}.jsonl"), KEPT_OF_CLAUDE]
    return all(allowed is None or name in allowed for name, allowed in zip(below, wanted, strict=False))


def _result(outcome: Outcome, packed: Packed, changes: Sequence[Change]) -> Result:
    changed = _of_workspace(changes)
    return Result(
        result=outcome.result,
        structured_output=outcome.structured_output,
        stop_reason=outcome.stop_reason,
        num_turns=outcome.num_turns,
        cost_usd=outcome.cost_usd,
        usage=outcome.usage,
        model_failure=outcome.model_failure,
        pending=outcome.pending,
        duration_ms=outcome.duration_ms,
        files=[{"path": shown(c.path), "change": c.change, "size": c.size} for c in changed[:FILES_NAMED]],
        files_total=len(changed),
        last_message=outcome.last_message,
        session_files=packed.session_files,
        session_directory=packed.session_directory,
        staged_bytes=packed.size,
    )


def _settled(settings: AgentSettings) -> AgentSettings:
    """With the network that the agent will have."""
    if settings.egress.open:
        return replace(settings, agent_network="open")
    if settings.agent_network == "tried":
        return replace(settings, agent_network="own" if network.available() else "shared")
    return settings


def _upstreams(settings: AgentSettings, read: Callable[[str], str]) -> list[Upstream]:
    """What the agent may use in the deployment's name; `read` has a field of its secret."""
    if settings.bedrock_model:
        found = [bedrock(settings.bedrock_model)]
    else:
        found = [anthropic(Secret(partial(read, "ANTHROPIC_API_KEY")), settings.model_url, settings.models)]
    if settings.supabase_url:
        found.append(supabase(Secret(partial(read, "SUPABASE_SERVICE_KEY")), settings.supabase_url))
    return found


def _secret(secrets: Any, arn: str, name: str) -> str:
    """One field of the deployment's secret. Raises `ModelUnauthorized` where it is not set."""
    try:
        held = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])
    except (ClientError, BotoCoreError, ValueError) as error:
        raise ModelUnauthorized(detail=f"the secret cannot be read: {error}") from error
    value = held.get(name) if isinstance(held, dict) else None
    if not isinstance(value, str) or value in ("", "unset"):
        raise ModelUnauthorized(detail=f"the secret has no {name}")
    return value


if os.environ.get(STARTED) == PROVISIONED:
    warm()  # ahead of any run, and not a part of one's time
