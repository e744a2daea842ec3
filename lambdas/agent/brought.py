"""What a request brought into the workspace before the first turn: a clone, an upload, files.

All of it is a change of the session's version, but the files of an answer are those that the run changed. So a snapshot
is taken once everything is in place, and what is still as it was then is left out. Of a long run in several legs, whose
later ones restore what was brought with all the rest, it is the first leg alone that can tell.

What there is at the end is seen as the session is packed, which goes through no link: a folder that the run replaced by
one could lead anywhere that the agent itself sees nothing of.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lambdas.archive.tree import Change, fingerprint, walk

WORKSPACE = "workspace/"
"""With what the paths of the agent's files begin in an archive."""

BRINGS = frozenset(("repository", "workspace", "files"))
"""The fields of a request that bring something."""


class Brought:
    """The workspace as it is now, with all that was brought."""

    def __init__(self, workspace: Path) -> None:
        self._then = {
            path: fingerprint(facts)
            for found in walk(workspace, WORKSPACE)
            for path, facts in found
            if not stat.S_ISDIR(facts.st_mode)
        }
        self._same = set[str]()

    def look(self, path: str, facts: os.stat_result) -> None:
        """Sees what there is at the end, by its path in the archive: all of it, before `changed` is asked."""
        if (then := self._then.get(path)) and then == fingerprint(facts):
            self._same.add(path)

    def changed(self, changes: Iterable[Change]) -> list[Change]:
        """Of what is not as in the session's version, what is not as it was brought either."""
        found = {each.path: each for each in changes if each.path not in self._same}
        for path in self._then.keys() - self._same:
            if path in found and found[path].change != "removed":
                found[path] = found[path]._replace(change="modified")
            else:
                found[path] = Change(path, "removed", 0)
        return [found[path] for path in sorted(found)]
