"""What a request brought into the workspace before the first turn: a clone, an upload, files.

All of it is a change of the session's version, but the files of an answer are those that the run changed. So a snapshot
is taken once everything is in place, and what is still as it was then is left out. Of a long run in several legs, whose
later ones restore what was brought with all the rest, it is the first leg alone that can tell.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from lambdas.archive.tree import Change, Fingerprint, fingerprint, walk

WORKSPACE = "workspace/"
"""With what the paths of the agent's files begin in an archive."""

BRINGS = frozenset(("repository", "workspace", "files"))
"""The fields of a request that bring something."""


def snapshot(workspace: Path) -> dict[str, Fingerprint]:
    """The files and links that are there, by their paths in the archive."""
    return {
        path: fingerprint(facts)
        for found in walk(workspace, WORKSPACE)
        for path, facts in found
        if not stat.S_ISDIR(facts.st_mode)
    }


def changed(changes: Iterable[Change], brought: Mapping[str, Fingerprint], root: Path) -> list[Change]:
    """Of what is not as in the session's version, what is not as it was brought either."""
    found = {each.path: each for each in changes}
    for path, before in brought.items():
        now = _now(root / path)
        if now == before:
            found.pop(path, None)
        elif now is None:
            found[path] = Change(path, "removed", 0)
        elif path in found:
            found[path] = found[path]._replace(change="modified")
    return [found[path] for path in sorted(found)]


def _now(file: Path) -> Fingerprint | None:
    """None where it is gone, or cannot be seen."""
    try:
        return fingerprint(os.lstat(file))
    except OSError:
        return None
