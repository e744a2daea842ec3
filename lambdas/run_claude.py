"""RunClaude: unpack the session, let Claude Code work on it, stage what came of it.

This function runs strangers' code, so it has no right on the bucket: it reads and writes through the task's grants.
What it stages last, result.json, makes the rest whole; what dies before leaves the session as it was.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from lambdas.agent.bedrock import bedrock
from lambdas.agent.claude import Outcome, Turn, converse
from lambdas.agent.credentials import Proxy, Secret, Upstream, anthropic, supabase
from lambdas.agent.sandbox import Scratch, seal
from lambdas.contract import Grant, Json, Result, RunResult, Staged, Task
from lambdas.errors import AgentCrashed, ModelUnauthorized, StorageUnavailable
from lambdas.sessions.archive import ROOTS, Packed, pack, unpack
from lambdas.sessions.grants import Grantee
from lambdas.sessions.records import Limits
from lambdas.sessions.tree import Change, changes, shown, snapshot
from lambdas.settings import AgentSettings

RATIO = 1100
"""DEFLATE makes at most 1,032 bytes of one: zeros are honest; more can only be members that share their bytes."""

FILES_NAMED = 1000
"""How many changed files result.json names; `files_total` counts them all."""

KEPT_OF_CLAUDE = ("tool-results", "subagents")
"""What a transcript refers to, beside it; the rest of Claude's configuration directory is remade at every start."""


def handler(event: Json, context: object) -> Json:
    """The Lambda entry point: `Task` → `RunResult`."""
    return worker().run(Task.load(event)).dump()


@cache
def worker() -> "Worker":
    seal()
    settings = AgentSettings.read(os.environ)
    return Worker(settings, Grantee(), _upstreams(settings, boto3.client("secretsmanager")))


@dataclass(frozen=True)
class Worker:
    """One warm function, which serves one run at a time."""

    settings: AgentSettings
    grantee: Grantee
    upstreams: list[Upstream]

    def run(self, task: Task) -> RunResult:
        """Raises one of the model's errors, `AgentCrashed`, `SessionTooLarge` or one of `Internal`."""
        if self.grantee.put(task.grants.started, b"", 0) is None:
            raise AgentCrashed(detail="this attempt was started before: the model is not asked again")
        body = json.loads(self.grantee.read(task.grants.request))["body"]
        with Scratch(Path(self.settings.scratch) / task.claude_session) as scratch:
            self._restore(task, scratch)
            before = snapshot(scratch.workspace)
            with Proxy(self.upstreams) as proxy:
                outcome = asyncio.run(converse(_turn(task, body), scratch, proxy, task.deadline))
            return self._stage(task, scratch, outcome, partial(changes, before))

    def _restore(self, task: Task, scratch: Scratch) -> None:
        if task.grants.session is None:
            return
        restored = scratch.root / "restored"
        restored.mkdir(mode=0o700)
        with tempfile.TemporaryFile() as archive:
            self.grantee.download(task.grants.session, archive)
            unpack(archive, restored, self._limits)
        for root in ROOTS:
            (restored / root).replace(scratch.root / root)

    def _stage(self, task: Task, scratch: Scratch, outcome: Outcome, since: Callable[[Any], list[Change]]) -> RunResult:
        """Everything under the attempt; result.json last, since it says that the rest is whole."""
        with tempfile.TemporaryFile() as archive:
            roots = {"workspace": scratch.workspace, "claude": scratch.claude}
            packed = pack(roots, archive, self._limits, partial(_kept, task.claude_session))
            archive.seek(0)
            session = self._put(task.grants.changes, archive, packed.size)
        messages = json.dumps(outcome.messages, ensure_ascii=False).encode()
        staged_messages = self._put(task.grants.messages, messages, len(messages))
        changed = since(snapshot(scratch.workspace))
        result = _result(outcome, changed, packed, session, staged_messages)
        text = json.dumps(result.dump(), ensure_ascii=False).encode()
        self._put(task.grants.result, text, len(text))
        return RunResult(
            run_id=task.run_id,
            stop_reason=result.stop_reason,
            num_turns=result.num_turns,
            cost_usd=result.cost_usd,
            duration_ms=result.duration_ms,
            files_total=result.files_total,
        )

    def _put(self, grant: Grant, body: Any, size: int) -> Staged:
        staged = self.grantee.put(grant, body, size)
        if staged is None:
            raise StorageUnavailable(detail="staging: S3 answered 412 to an unconditional PUT")
        return staged

    @property
    def _limits(self) -> Limits:
        return Limits(self.settings.max_session_files, self.settings.max_session_bytes, RATIO)


def _turn(task: Task, body: Json) -> Turn:
    allowance = task.allowance
    return Turn(
        prompt=body["prompt"],
        claude_session=task.claude_session,
        resume=task.resume,
        model=body.get("model"),
        append_system_prompt=body.get("append_system_prompt"),
        max_turns=allowance.max_turns,
        max_budget_usd=allowance.max_budget_usd,
        output_schema=body.get("output_schema"),
        allowed_tools=None if allowance.allowed_tools is None else tuple(allowance.allowed_tools),
        disallowed_tools=tuple(allowance.disallowed_tools),
    )


def _kept(claude_session: str, path: str) -> bool:
    """All of the workspace; of Claude's directory the transcript and what it refers to."""
    root, *below = path.split("/")
    if root != "claude":
        return True
    wanted = [("projects",), None, (claude_session, f"{claude_session}.jsonl"), KEPT_OF_CLAUDE]
    return all(allowed is None or name in allowed for name, allowed in zip(below, wanted, strict=False))


def _result(outcome: Outcome, changed: list[Change], packed: Packed, session: Staged, messages: Staged) -> Result:
    last = next((m for m in reversed(outcome.messages) if m["type"] == "result"), {})
    return Result(
        result=outcome.result,
        structured_output=outcome.structured_output,
        stop_reason=outcome.stop_reason,
        num_turns=outcome.num_turns,
        cost_usd=outcome.cost_usd,
        usage=outcome.usage,
        duration_ms=outcome.duration_ms,
        files=[{"path": shown(c.path), "change": c.change, "size": c.size} for c in changed[:FILES_NAMED]],
        files_total=len(changed),
        file_count=packed.files,
        last_message=last,
        changes=session,
        messages=messages,
    )


def _upstreams(settings: AgentSettings, secrets: Any) -> list[Upstream]:
    """What the agent may use in the deployment's name."""
    read = partial(_secret, secrets, settings.secret_arn)
    if settings.bedrock_model:
        found = [bedrock(settings.bedrock_model)]
    else:
        found = [anthropic(Secret(partial(read, "ANTHROPIC_API_KEY")), settings.model_url)]
    if settings.supabase_url:
        found.append(supabase(Secret(partial(read, "SUPABASE_SERVICE_KEY")), settings.supabase_url))
    return found


def _secret(secrets: Any, arn: str, name: str) -> str:
    """One field of the deployment's secret. Raises `ModelUnauthorized` where it is not set."""
    try:
        value = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"]).get(name)
    except (ClientError, BotoCoreError, ValueError) as error:
        raise ModelUnauthorized(detail=f"the secret cannot be read: {error}") from error
    if not isinstance(value, str) or value in ("", "unset"):
        raise ModelUnauthorized(detail=f"the secret has no {name}")
    return value
