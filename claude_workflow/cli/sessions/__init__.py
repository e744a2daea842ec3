"""`claude-workflow sessions`: what is kept of sessions, and files into them and out of them, for their operator.

stored.py    a session as its newest version has it
held.py      its lease, taken against runs
progress.py  how far a command is
The others are named after the commands.
"""

import argparse
from typing import TYPE_CHECKING

from claude_workflow.cli.operating import Commands, directory, operates, session_id
from claude_workflow.cli.printing import harmless

if TYPE_CHECKING:
    from claude_workflow.cli.backend import Backend

SESSIONS = """Looks at the sessions of a service and into them, puts files there, takes files out, and removes them.
Works on the state directory of this machine, whether or not a service runs on it; with --stack, on a deployed stack."""

LIST = (
    """Lists all sessions: whose they are, their turns, what they cost, how large they are, when they last changed."""
)

SHOW = """Shows a session: whose it is, since when, its turns, what they cost, how large it is, who is at work on it."""

FILES = """Lists what is in a session's workspace: mode, size, modification time (UTC), path."""

GET = """Takes files out of a session's workspace, with their modes and times, by their paths below DIR, in the place of
what is there. Reads no more of the archive than these files. Follows no link, and makes nothing outside DIR."""

PUT = """Makes a folder a session's workspace, and prints the session's id. A new session begins with it, and its first
turn finds it; of one that is there the conversation stays, and what its workspace had is replaced. What a session
cannot keep (FIFOs, sockets, devices, set-id bits …) is named. A session at work is refused."""

EXPORT = """Writes a session's archive into a file: a plain zip with its workspace and its conversation."""

REMOVE = """Removes sessions with every version, every run and all else that the bucket holds of them, and says what
remains in logs, and until when. A session at work is refused. Exits with 0 if all of it is gone, else with 1."""

PURGE = """Makes what was removed from a session, or changed in it, be gone for good. Writes its archive anew without
it, and deletes its older versions and what its runs staged. Waits for no run: a session at work is refused."""


def add_commands(commands: Commands) -> None:
    """Adds `sessions` with all that it does."""
    sessions = commands.add_parser("sessions", help="look into sessions, fill and empty them", description=SESSIONS)
    does = sessions.add_subparsers(dest="does", required=True, metavar="WHAT")

    listed = does.add_parser("list", help="list them", description=LIST)
    listed.add_argument("--json", action="store_true", help="print a line of JSON a session")
    operates(listed, _list)

    shown = _add(does, "show", "show one", SHOW)
    shown.add_argument("--json", action="store_true", help="print it as JSON")
    operates(shown, _show)

    files = _add(does, "files", "list the files of one", FILES)
    files.add_argument("--json", action="store_true", help="print a line of JSON a file")
    operates(files, _files)

    get = _add(does, "get", "take files of one out", GET)
    get.add_argument("paths", nargs="+", metavar="PATH", help="a file, a link or a folder with all in it; . is all")
    get.add_argument(
        "-o", dest="out", type=directory, default=".", metavar="DIR", help="put them there (default: here)"
    )
    operates(get, _get)

    put = does.add_parser("put", help="make a folder the workspace of one", description=PUT)
    put.add_argument("folder", type=directory, metavar="DIR", help="the folder")
    put.add_argument("--session", type=session_id, metavar="ID", help="of this session (default: a new one)")
    put.add_argument("--caller", type=caller, metavar="NAME", help="whose a new one is (default: default)")
    operates(put, _put)

    export = _add(does, "export", "take the archive of one out", EXPORT)
    export.add_argument("-o", dest="into", type=directory, metavar="FILE", help="into this file (default: ID.zip)")
    operates(export, _export)

    remove = does.add_parser("rm", help="remove them for good", description=REMOVE)
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("session_ids", type=session_id, nargs="*", metavar="ID", default=[], help="the sessions")
    which.add_argument("--caller", type=caller, metavar="NAME", help="all that is this caller's")
    operates(remove, _remove)

    operates(_add(does, "purge", "let what was removed from one be gone for good", PURGE), _purge)


def _add(does: Commands, name: str, what: str, description: str) -> argparse.ArgumentParser:
    """A command that is about one session."""
    command = does.add_parser(name, help=what, description=description)
    command.add_argument("session_id", type=session_id, metavar="ID", help="the session")
    return command


def caller(text: str) -> str:
    """What can be a caller's name: S3's metadata take ASCII, and no blanks around it."""
    if not text or not text.isascii() or not text.isprintable() or text != text.strip():
        raise argparse.ArgumentTypeError(f"{harmless(text)!r} is no caller's name")
    return text


def _list(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import listing

    return listing.run(found, chosen.json)


def _show(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import show

    return show.run(found, chosen.session_id, chosen.json)


def _files(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import files

    return files.run(found, chosen.session_id, chosen.json)


def _get(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import get

    return get.run(found, chosen.session_id, chosen.paths, chosen.out)


def _put(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import put

    return put.run(found, chosen.folder, chosen.session, chosen.caller)


def _export(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import export

    return export.run(found, chosen.session_id, chosen.into)


def _remove(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import remove

    return remove.of_caller(found, chosen.caller) if chosen.caller else remove.sessions(found, chosen.session_ids)


def _purge(found: "Backend", chosen: argparse.Namespace) -> int:
    from claude_workflow.cli.sessions import purge

    return purge.run(found, chosen.session_id)
