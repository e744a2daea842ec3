"""`claude-workflow ask`: one POST, and the run that it begins, seen until it ends."""

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from claude_workflow.cli import answers, client
from claude_workflow.cli.client import Document, Unanswered
from claude_workflow.cli.endpoint import STAND_IN, Endpoint, typed
from claude_workflow.cli.follow import Run
from claude_workflow.cli.printing import document, line, to_stderr, whole
from claude_workflow.cli.view import View
from claude_workflow.cli.watch import to_the_end

PROMPT_CHARS = 200
"""What of a prompt stands in a line to be pasted."""

IN_THE_BACKGROUND = {"Prefer": "respond-async"}
"""That the run goes on without this request (RFC 7240). A service that does not know it answers when the run ended."""


@dataclass(frozen=True)
class Question:
    """What is asked, and how to ask it again."""

    prompt: str | None
    """None: nothing but the answer to a call that waits."""
    session: str | None = None
    key: str | None = None
    timeout: float | None = None
    """Seconds that the run may take; None: as the deployment has it."""
    approve: str | None = None
    """The digest of the call that waits in the session, to let it be made."""
    deny: str | None = None
    """The same, so that it is not made."""
    reason: str | None = None
    """Why not, for the model."""

    @property
    def body(self) -> Document:
        """Of the POST."""
        reason = {"reason": self.reason} if self.reason else {}
        fields = {
            "prompt": self.prompt,
            "session_id": self.session,
            "timeout_seconds": self.timeout,
            "approve": self.approve,
            "deny": {"digest": self.deny, **reason} if self.deny else None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def again(self, key: str, endpoint: Endpoint) -> tuple[str, ...]:
        """The arguments of an `ask` that means the same run."""
        timeout = f"{self.timeout:g}" if self.timeout else None
        given = {
            "--session": self.session,
            "--timeout": timeout,
            "--approve": self.approve,
            "--deny": self.deny,
            "--reason": self.reason,
        }
        options = (text for name, value in given.items() if value for text in (name, value))
        return "--key", key, *options, *endpoint.options, *self._prompt

    @property
    def _prompt(self) -> tuple[str, ...]:
        """As an argument. A long one, or one of several lines, comes from a file better."""
        if self.prompt is None:
            return ()
        short = len(self.prompt) <= PROMPT_CHARS and self.prompt.isprintable()
        return ("--", self.prompt) if short else ("-",)


def run(endpoint: Endpoint, question: Question, *, background: bool, as_json: bool) -> int:
    """Asks, prints the answer to stdout and all else to stderr.

    0 for a final text, 1 for a failure, 3 for a run that ended without a final text. In the background, the run's id is
    printed instead of the answer.
    """
    console, key = to_stderr(), question.key or str(uuid.uuid4())
    again = question.again(key, endpoint)
    with View(console, shown=console.is_terminal or not as_json, free=endpoint.answering == STAND_IN) as view:
        try:
            answer = post(endpoint, question.body, key, IN_THE_BACKGROUND)
        except (KeyboardInterrupt, Unanswered):
            console.print(f"The run may go on. Its answer, once it is there: {typed('ask', *again)}", soft_wrap=True)
            raise
        begun = client.is_under_way(answer)
        if begun and not background:
            view.say(f"{line(answer['run_id'], 100)} is at work.")
            answer = to_the_end(Run(endpoint, answer["run_id"]), view, again=again)
    if background and (begun or answer["success"]):
        print(document(answer, sys.stdout) if as_json else whole(str(answer.get("run_id")), sys.stdout), flush=True)
        _tell_how_to_come_back(answer, console, endpoint, again)
        return 0
    return answers.give(answer, console, endpoint, again, as_json=as_json)


def _tell_how_to_come_back(found: Document, console: Console, endpoint: Endpoint, again: Sequence[str]) -> None:
    """To a run that goes on, or to one that had ended before anybody could leave it."""
    lines = {"It has ended by now. Its answer": typed("ask", *again)}
    if client.is_under_way(found):
        run = (found["run_id"], *endpoint.options)
        lines = {"See it, and get its answer": typed("watch", *run), "End it": typed("cancel", *run)}
    for what, command in lines.items():
        console.print(f"{what}: {command}", style="dim", soft_wrap=True)


def post(endpoint: Endpoint, body: Document, key: str, prefer: Mapping[str, str] = client.NOTHING) -> Document:
    """The service's answer, whatever its status, or where the run stands. Raises `Unusable` where none came."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key, **prefer}
    return client.document(endpoint, client.send(endpoint, "POST", endpoint.url, headers=headers, body=body))
