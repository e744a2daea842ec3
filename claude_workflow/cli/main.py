"""`claude-workflow`: the service on this machine, and questions to it or to a deployed one."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TextIO

from claude_workflow import __version__
from claude_workflow.cli import check, operating, sessions
from claude_workflow.cli.endpoint import KEY_VARIABLE, Endpoint, Unusable, default_state, find
from claude_workflow.cli.operating import Commands
from claude_workflow.cli.printing import carry_all, open_all, whole

PIPE_CLOSED = 141
"""What a shell says of a program that a closed pipe has ended."""

DESCRIPTION = "Claude Code as an HTTP API: the workflow on this machine, and questions to it or to a deployed stack."


def parser() -> argparse.ArgumentParser:
    """Every command with its options, for `--help` and for the documentation's tests."""
    top = argparse.ArgumentParser(prog="claude-workflow", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"claude-workflow {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_serve(commands)
    _add_ask(commands)

    watch = commands.add_parser("watch", help="see a run until it ends, and print its answer", description=WATCH)
    watch.add_argument("--json", action="store_true", help="print a line of JSON a message, and the answer last")
    cancel = commands.add_parser("cancel", help="end a run; what it did is saved", description=CANCEL)
    for command, act in ((watch, _watch), (cancel, _cancel)):
        command.add_argument("run_id", type=operating.run_id, metavar="RUN_ID")
        _add_where(command)
        command.set_defaults(run=act)

    operating.add_commands(commands)
    sessions.add_commands(commands)

    checked = commands.add_parser("check", help="ask a stack what only a stack can show", description=check.CHECK)
    checked.add_argument("--stack", metavar="NAME", help="this deployed stack, with your AWS credentials")
    check.add_options(checked)
    operating.add_state(checked)
    checked.set_defaults(run=check.run)

    demo = commands.add_parser(
        "demo", help="two questions of one session, with a service if none runs", description=DEMO
    )
    operating.add_state(demo)
    demo.set_defaults(run=_demo)
    return top


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="run the service on this machine until Ctrl-C", description=SERVE)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    serve.add_argument("--unsandboxed", action="store_true", help="let what the model runs do whatever you can")
    serve.add_argument("--quiet", action="store_true", help="print no line for each request")
    serve.add_argument(
        "--leave-runs",
        action="store_true",
        help="leave long runs that were at work when the service ended to `replay`, instead of going on with them",
    )
    operating.add_state(serve)
    serve.set_defaults(run=_serve)


def _add_ask(commands: Commands) -> None:
    ask = commands.add_parser("ask", help="ask a question and print the answer", description=ASK)
    ask.add_argument("prompt", nargs="?", help="what to ask; - reads it from standard input")
    ask.add_argument("--session", metavar="ID", help="go on with this session")
    ask.add_argument("--key", metavar="KEY", help="the Idempotency-Key of an earlier ask whose answer is still wanted")
    ask.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    ask.add_argument(
        "--timeout",
        type=operating.seconds,
        metavar="SECONDS",
        help="end the run by then (default: the deployment's limit)",
    )
    answer = ask.add_mutually_exclusive_group()
    answer.add_argument("--approve", metavar="DIGEST", help="let the call be made that waits in the session")
    answer.add_argument("--deny", metavar="DIGEST", help="let it not be made")
    ask.add_argument("--reason", metavar="TEXT", help="why it is denied, for Claude")
    ask.add_argument("--background", action="store_true", help="print the run's id, and leave it to itself")
    _add_where(ask)
    ask.set_defaults(run=_ask)


def _add_where(command: argparse.ArgumentParser) -> None:
    """The options that say which service is meant."""
    where = command.add_mutually_exclusive_group()
    where.add_argument("--stack", metavar="NAME", help="of this deployed stack, with your AWS credentials")
    where.add_argument("--url", help=f"of the service at this URL, with the key in {KEY_VARIABLE}")
    operating.add_state(command)


SERVE = """Runs the whole workflow on this machine: the template that goes to AWS on a local engine, without AWS or
Docker. With ANTHROPIC_API_KEY (and ANTHROPIC_BASE_URL, if set) that model answers, otherwise a scripted stand-in."""

ASK = """Posts the prompt, shows what Claude does, and waits for the answer as long as that takes. The answer goes to
standard output; all else goes to standard error. Ctrl-C cancels the run, a second one leaves it to itself. Exits with 0
for an answer, with 1 for a failure, with 2 where there is no service to ask, and with 3 for a run that ended without a
final text."""

WATCH = """Shows what Claude does in a run, from its beginning, and ends with its answer as ask does, with the same exit
codes. Ctrl-C leaves the run to itself."""

CANCEL = """Ends a run that is going on, and prints how it ended. What it did until then is saved, and its session can
be gone on with. Exits with 0 if it has ended, with 1 if that takes longer."""

DEMO = """Asks two questions of one session, the second about what the first did. Starts the service for that, and ends
it, if none runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit code: 0 done, 1 a failure that was answered, 2 something the user has to do first."""
    open_all()
    carry_all()
    try:
        code = _chosen(arguments)
        sys.stdout.flush()
    except Unusable as unusable:
        code = _say(str(unusable))
    except BrokenPipeError:  # as of `| head`, which has what it wants
        code = PIPE_CLOSED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _say(f"The system refuses: {where}{error.strerror or error}.")
    except ImportError as error:
        code = _say(f"This installation is not whole ({error}). Install it anew: make clean run")
    except KeyboardInterrupt:
        code = 130
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    return code


def _say(sentence: str) -> int:
    """2, whether or not anybody can read the sentence."""
    with suppress(OSError):
        print(f"claude-workflow: {whole(sentence, sys.stderr)}", file=sys.stderr)
    return 2


def _flush(stream: TextIO) -> None:
    """Forgets what a stream does not take; else the interpreter tries once more at its end, and fails aloud."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _chosen(arguments: Sequence[str] | None) -> int:
    """Parses and runs. Raises `Unusable` for arguments that no command could use."""
    try:
        chosen = parser().parse_args(arguments)
    except SystemExit as ended:  # after --help, or a mistake that is told by now
        return int(ended.code or 0)
    for text in _texts(chosen):
        if not _is_text(text):
            raise Unusable(f"{text} is not UTF-8 text.")
    if chosen.state is None and not (getattr(chosen, "url", None) or getattr(chosen, "stack", None)):
        chosen.state = default_state()
    code: int = chosen.run(chosen)
    return code


def _texts(chosen: argparse.Namespace) -> Iterator[str]:
    """What was given that is no path."""
    for value in vars(chosen).values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _is_text(given: str) -> bool:
    try:
        given.encode()
    except UnicodeError:
        return False
    return True


# Each command imports what it needs when it runs: asking should not wait for the engine's libraries.


def _serve(chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import serve

    return serve.run(chosen.state, chosen.host, chosen.port, chosen.unsandboxed, chosen.quiet, chosen.leave_runs)


def _ask(chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import ask

    if chosen.prompt is None and not (chosen.approve or chosen.deny):
        raise Unusable("What is to be asked? Give a prompt, or - to read it from standard input.")
    if (chosen.approve or chosen.deny) and not chosen.session:
        raise Unusable("A call waits in a session. Say in which: --session ID")
    if chosen.reason and not chosen.deny:
        raise Unusable("A reason is said with what is denied. Add --deny DIGEST")
    prompt = None if chosen.prompt is None else _prompt(chosen.prompt)
    answer = chosen.approve, chosen.deny, chosen.reason
    question = ask.Question(prompt, chosen.session, chosen.key, chosen.timeout, *answer)
    return ask.run(_endpoint(chosen), question, background=chosen.background, as_json=chosen.json)


def _watch(chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import watch

    return watch.run(_endpoint(chosen), chosen.run_id, chosen.json)


def _cancel(chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import watch

    return watch.cancel(_endpoint(chosen), chosen.run_id)


def _endpoint(chosen: argparse.Namespace) -> Endpoint:
    return find(chosen.state, chosen.url, chosen.stack)


def _demo(chosen: argparse.Namespace) -> int:
    from claude_workflow.cli import demo

    return demo.run(chosen.state)


def _prompt(given: str) -> str:
    """The prompt, from standard input for -. Raises `Unusable` for bytes that are no text."""
    if given != "-":
        return given
    try:
        prompt = sys.stdin.read()
        prompt.encode()
    except UnicodeError:
        raise Unusable("The prompt is not UTF-8 text.") from None
    return prompt


if __name__ == "__main__":
    sys.exit(main())
