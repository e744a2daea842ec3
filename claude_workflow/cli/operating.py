"""The commands of whoever operates a workflow, with their options: `runs`, `show`, `costs`, `verify`, `replay`; those
of `sessions` are in their own folder."""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from claude_workflow.cli.endpoint import Unusable, default_state
from claude_workflow.cli.printing import harmless

if TYPE_CHECKING:
    from claude_workflow.cli.backend import Backend

RUNS = """Lists runs by the index: when, whose, how it ended, what it cost, and the sums of that. A run is lost where
neither answer nor failure was written and nobody is at work on it any more."""

SHOW = """Shows a run: how it ended and why, what a replay would do, what is staged, and the states it went through with
their times. Presigned URLs are shown without their signatures."""

COSTS = """Adds up what runs cost, failed attempts included, by the receipts of every call of the model. Tokens are what
was sent (input), said (output), written into the provider's cache and read from it. What has no receipt, from before
there were any, counts with what its record says."""

VERIFY = """Reckons every receipt again from usage and prices, and holds all that was written of money against it:
answers, failures, sessions, and the ledger of each day. No request of the provider's may be counted twice, and none
have begun after a limit was met. Exits with 0 if all holds, else with 1."""

REPLAY = """Runs failed runs again, under their own ids and on the session's version they were pinned to. What is stored
is not paid for again. Long ones go on in the long machine, and are waited for. Exits with 0 if all of them succeeded
(with --dry-run: can be replayed), else with 1."""

CONSOLE = """Shows runs and sessions in a browser on this machine: what ran, live; a run's states, conversation, cost
and replay. Listens on loopback alone; the printed link opens it, by a secret that is drawn anew at each start. `serve`
has it, too."""

RUN_ID, SESSION_ID = re.compile(r"run-[A-Za-z0-9-]{1,80}"), re.compile(r"session-[A-Za-z0-9-]{1,80}")
"""The contract's, which takes longer to import."""

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST = 365 * _UNITS["d"]


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Act: TypeAlias = "Callable[[Backend, argparse.Namespace], int]"
"""What a command does; its exit code."""


def add_commands(commands: Commands) -> None:
    """Adds them to the parser's."""
    added = ((_add_runs, _runs), (_add_show, _show), (_add_costs, _costs), (_add_verify, _verify))
    for add, act in (*added, (_add_replay, _replay), (_add_console, _console)):
        operates(add(commands), act)


def operates(command: argparse.ArgumentParser, act: "Act") -> None:
    """Makes it a command that acts on what is behind a service."""
    command.set_defaults(run=run, act=act)
    command.add_argument("--stack", metavar="NAME", help="of this deployed stack, with your AWS credentials")
    add_state(command)


def _add_runs(commands: Commands) -> argparse.ArgumentParser:
    runs = commands.add_parser("runs", help="list runs, with what they cost", description=RUNS)
    ended = runs.add_mutually_exclusive_group()
    ended.add_argument("--failed", action="store_true", help="only those that failed or were lost")
    ended.add_argument(
        "--cut-short",
        action="store_true",
        help="only completed ones that stopped at a limit, or whose model's provider failed meanwhile",
    )
    _add_since(runs, "24h; of a session all")
    runs.add_argument("--session", type=session_id, metavar="ID", help="only those of this session")
    runs.add_argument("--json", action="store_true", help="print a line of JSON a run")
    return runs


def _add_show(commands: Commands) -> argparse.ArgumentParser:
    show = commands.add_parser("show", help="show a run, state by state", description=SHOW)
    show.add_argument("run_id", type=run_id, metavar="RUN_ID")
    much = show.add_mutually_exclusive_group()
    much.add_argument("--verbose", action="store_true", help="with what each state got and gave")
    much.add_argument("--json", action="store_true", help="print all of it as JSON")
    return show


def _add_costs(commands: Commands) -> argparse.ArgumentParser:
    costs = commands.add_parser("costs", help="add up what runs cost", description=COSTS)
    costs.add_argument(
        "--by", choices=["caller", "session", "model", "day"], default="day", help="default: %(default)s"
    )
    _add_since(costs, "24h")
    form = costs.add_mutually_exclusive_group()
    for name, what in (("csv", "as CSV"), ("json", "a line of JSON a row")):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, default="table", help=what)
    return costs


def _add_verify(commands: Commands) -> argparse.ArgumentParser:
    verify = commands.add_parser("verify", help="prove what runs cost", description=VERIFY)
    _add_since(verify, "all that is kept")
    verify.add_argument(
        "--against",
        type=directory,
        metavar="FILE",
        help="a CSV from the cost or the usage page of the provider's Console, to be lined up by day and model",
    )
    verify.add_argument("--json", action="store_true", help="print it as JSON")
    return verify


def _add_replay(commands: Commands) -> argparse.ArgumentParser:
    replay = commands.add_parser("replay", help="run failed runs again", description=REPLAY)
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("run_ids", type=run_id, nargs="*", metavar="RUN_ID", default=[], help="the runs to replay")
    which.add_argument("--failed", action="store_true", help="all that failed or were lost")
    _add_since(replay, "24h")
    replay.add_argument("--dry-run", action="store_true", help="only say what would be done")
    replay.add_argument("--background", action="store_true", help="wait for no long run to end")
    verb = replay.add_mutually_exclusive_group()
    verb.add_argument("--fork", action="store_true", help="as a new session, on the version they were pinned to")
    verb.add_argument("--rebase", action="store_true", help="as new runs, on the session's newest version; this pays")
    return replay


def _add_console(commands: Commands) -> argparse.ArgumentParser:
    console = commands.add_parser("console", help="look at runs in a browser", description=CONSOLE)
    console.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    return console


def add_state(command: argparse.ArgumentParser) -> None:
    """The option that every command has which concerns the service of this machine."""
    command.add_argument(
        "--state",
        type=directory,
        default=_usual(),
        metavar="DIR",
        help="where sessions are kept (default: %(default)s)",
    )


def directory(text: str) -> Path:
    """A path from wherever the command stands; an empty one is a variable that is not set, and no place."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text).absolute()


def _usual() -> Path | None:
    """None where there is no home directory: then it has to be said, if it is needed."""
    try:
        return default_state().absolute()
    except Unusable:
        return None


def run_id(text: str) -> str:
    """What can be a run's id, and no other key of the bucket."""
    if not RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{harmless(text)} is not a run's id")
    return text


def session_id(text: str) -> str:
    """What can be a session's id."""
    if not SESSION_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{harmless(text)} is not a session's id")
    return text


def seconds(text: str) -> float:
    """A number of seconds above 0, whole where it is one."""
    try:
        found = float(text)
    except ValueError:
        found = 0
    if not 0 < found < _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return int(found) if found.is_integer() else found


def _add_since(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--since", type=span, metavar="SPAN", help=f"30m, 2h or 7d ago until now (default: {default})")


def span(text: str) -> float:
    """Seconds in `30m`, `2h` or `7d`."""
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span of time: say 30m, 2h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is too long: 365d at the most")
    return seconds


def run(chosen: argparse.Namespace) -> int:
    """The command's exit code. Raises `Unusable` where AWS, or the engine, refuses to be asked."""
    from botocore.exceptions import BotoCoreError, ClientError  # a third of a second that other commands do not need

    from claude_workflow.cli import backend
    from lambdas.errors import StorageUnavailable

    starts = chosen.act is _replay and not chosen.dry_run
    try:
        with backend.found(chosen.state, chosen.stack, starts=starts) as found:
            code: int = chosen.act(found, chosen)
            return code
    except (BotoCoreError, ClientError, TimeoutError) as error:
        raise Unusable(str(error)) from error
    except StorageUnavailable as failed:
        raise Unusable(failed.detail) from failed


def _runs(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import runs

    now = time.time()
    default = now if chosen.session else runs.DAY  # of a session, all
    begin = now - (default if chosen.since is None else chosen.since)
    wanted = runs.Wanted(begin, chosen.session, chosen.failed, chosen.cut_short)
    return runs.run(found, wanted, now, chosen.json)


def _show(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import show

    return show.run(found, chosen.run_id, chosen.json, chosen.verbose)


def _costs(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import costs, runs

    now = time.time()
    return costs.run(found, now - (runs.DAY if chosen.since is None else chosen.since), now, chosen.by, chosen.form)


def _verify(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import bill, verify

    now = time.time()
    since = None if chosen.since is None else now - chosen.since
    return verify.run(found, since, now, bill.read(chosen.against) if chosen.against else None, chosen.json)


def _replay(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import replay

    verb = "fork" if chosen.fork else "rebase" if chosen.rebase else "again"
    return replay.run(found, chosen.run_ids, chosen.since, verb, dry=chosen.dry_run, waits=not chosen.background)


def _console(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import console

    return console.run(found, chosen.state, chosen.stack, chosen.port)
