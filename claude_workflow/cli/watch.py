"""`claude-workflow watch` and `claude-workflow cancel`: a run that is under way, wherever it was asked for."""

import sys
import time
from collections.abc import Sequence

from claude_workflow.cli import answers, client
from claude_workflow.cli.client import Document
from claude_workflow.cli.endings import dollars, is_cancelled
from claude_workflow.cli.endpoint import STAND_IN, Endpoint, Unusable, typed
from claude_workflow.cli.follow import Lost, Run
from claude_workflow.cli.printing import document, line, to_stderr
from claude_workflow.cli.view import View

CANCELLED_WITHIN, LOOKS_EVERY = 15, 1
"""Seconds that a cancelled run may take to end: it notices within two, and then what it did is saved."""


def run(endpoint: Endpoint, run_id: str, as_json: bool) -> int:
    """Shows all of a run's messages, then its answer; the exit codes are those of `ask`.

    As JSON, each message is a line, and the answer the last one. Raises `Unusable` for a run that there is not.
    """
    console, followed = to_stderr(), Run(endpoint, run_id)
    with View(console, shown=not as_json, free=endpoint.answering == STAND_IN) as view:
        if view.live:
            view.status(followed.status())
        answer = to_the_end(followed, view, as_json=as_json)
    if as_json:
        _line(answer)
        return answers.code(answer)
    return answers.give(answer, console, endpoint)


def to_the_end(run: Run, view: View, *, again: Sequence[str] | None = None, as_json: bool = False) -> Document:
    """The answer of a run that is shown until then, on the view or as lines of JSON.

    Where it can be asked `again` (what `ask` was given), Ctrl-C asks for its end, and a second one leaves it; else the
    first does. Whatever ends this before the run is told with how to go on. Raises `Unusable`.
    """
    take, look = _line if as_json else view.message, view.status if view.live else None
    watch = typed("watch", run.run_id, *run.endpoint.options)
    try:
        try:
            answer = run.end(take, look)
        except KeyboardInterrupt:
            if again is None:
                raise
            view.console.print("Cancelling the run … (a second Ctrl-C leaves it)")
            run.cancel()
            answer = run.end(take, look)
    except Lost:
        on = typed("ask", *again) if again else typed("replay", run.run_id, *run.endpoint.options)
        # Whoever has a URL alone can only ask again, and this command does not know what was asked.
        how = f" Go on with it: {on}" if again or "--url" not in run.endpoint.options else ""
        raise Unusable(f"The run {run.run_id} is lost: nobody is at work on it any more.{how}") from None
    except (KeyboardInterrupt, Unusable):
        view.console.print(f"The run goes on without this command. Its answer: {watch}", soft_wrap=True)
        raise
    view.end(answer)
    return answer


def _line(message: Document) -> None:
    print(document(message, sys.stdout, None), flush=True)


def cancel(endpoint: Endpoint, run_id: str) -> int:
    """Asks for a run's end, waits for it for a while, and prints how it ended: 0 if it has, 1 if it goes on meanwhile.

    Raises `Unusable` for a run that there is not.
    """
    cancelled, console = Run(endpoint, run_id), to_stderr()
    found, patience = cancelled.cancel(), time.monotonic() + CANCELLED_WITHIN
    with console.status("Cancelling …"):
        while client.is_under_way(found) and found["status"] != "lost" and time.monotonic() < patience:
            time.sleep(LOOKS_EVERY)
            found = cancelled.status()
    print(_ending(found), flush=True)
    watch = typed("watch", run_id, *endpoint.options)
    if client.is_under_way(found):
        console.print(f"It has not ended yet. See it: {watch}", style="dim", soft_wrap=True)
        return answers.FAILED
    console.print(f"{dollars(found.get('cost_usd'))}. All of it: {watch}", style="dim", soft_wrap=True)
    return 0


def _ending(found: Document) -> str:
    """One word of how it stands with a run: `cancelled`, `done`, a failure's code, or what it still is."""
    if client.is_under_way(found):
        return line(found["status"], 40)
    return "cancelled" if is_cancelled(found) else "done" if found["success"] else line(found["code"], 40)
