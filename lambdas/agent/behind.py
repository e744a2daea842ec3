"""A session's restore behind the start of Claude Code and the model's first thoughts.

Claude Code (2.1.332) takes half a second until its first request of a turn, and the model takes longer. That request
does not depend on the workspace but for some files: without the others it is byte for byte the same. So what it depends
on is put in place first, and Claude Code is started. The rest is on its way by then, and lands while the model thinks
(`lambdas.archive.landing`): a start takes more than one processor, which they would have to share. The proxy gives none
of the model's answer on before all of it is in place, checked, and settled: nothing that the model wrote runs before.

**What Claude Code looks at.** Whether there is a git repository, by `.git/HEAD`, `.git/objects` and `.git/refs`: if
there is none any more, it tells the model. And the files that the conversation's tools have written: those that it does
not find then, it has the model read again before they are changed. Of those that are git's it finds the three alone,
since its git would obey the others.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from lambdas.agent.brought import BRINGS
from lambdas.agent.equipment import Equipment
from lambdas.agent.restored import Known, Restored
from lambdas.agent.scratch import Scratch
from lambdas.agent.transcript import Transcript
from lambdas.archive.landing import Landing
from lambdas.archive.tree import Fingerprint, await_clock_tick
from lambdas.contract import Task
from lambdas.errors import DiskFull
from lambdas.settings import AgentSettings
from lambdas.strict import Json

GIT = "workspace/.git"
REPOSITORY = (f"{GIT}/HEAD", f"{GIT}/objects", f"{GIT}/refs")
"""By what Claude Code tells a repository."""

GITS = frozenset((".git", "HEAD"))
"""Of these each repository has one in its path: without a `.git`, a folder with a HEAD may be one."""

ANSWERS = frozenset(("approve", "deny"))
"""The fields of a request that answer to a call that waits: it is made before the model is asked."""


def hides(task: Task, body: Json, settings: AgentSettings, equipment: Equipment) -> bool:
    """Whether a restore may go on behind the start: where nothing of the run's looks at the workspace before the model
    has answered, as far as can be told without the transcript."""
    anew = not task.resume or task.cut or task.grants.resumed
    read = settings.workspace_instructions or equipment.starts_programs
    return not (anew or read or body.keys() & (BRINGS | ANSWERS))


@contextmanager
def landing(archive: Landing, scratch: Scratch, claude_session: str, kept: Callable[[str], bool]) -> Iterator[Restored]:
    """Within the block, what Claude Code begins with is in place, and the rest lands, or fails by WorkflowError and
    OSError. After the block nothing is written any more. Of `claude`, what is `kept` is known."""
    settled, transcript = partial(await_clock_tick, where=scratch.private), Transcript(scratch, claude_session)
    first = {path: each for path, each in archive.claude().items() if kept(path)}
    settled(first)
    if transcript.waits or not _tells_repository(archive):
        yield Restored.before(first | archive.land(settled))
        return
    archive.show([*REPOSITORY, *_in_archive(transcript.named(), scratch)])
    restored = Restored()
    thread = threading.Thread(target=_land, args=(archive, first, settled, restored), name="landing")
    thread.start()
    try:
        yield restored
    finally:
        restored.end()
        thread.join()


def _land(
    archive: Landing, first: Known, settled: Callable[[Mapping[str, Fingerprint]], None], restored: Restored
) -> None:
    try:
        known = archive.land(settled, restored.go_on)
    except OSError as error:
        full = DiskFull.means(error)
        restored.set_exception(DiskFull(detail=str(error)) if full else error)
    except Exception as error:  # whatever it is, who waits for the rest is told
        restored.set_exception(error)
    else:
        known.update(first)
        restored.set_result(known)


def _tells_repository(archive: Landing) -> bool:
    """Whether what is shown tells a repository, or none, as all of it would; not where `.git` is a file, or a link."""
    return not archive.has(GIT) or all(map(archive.shows, REPOSITORY))


def _in_archive(files: Iterable[str], scratch: Scratch) -> Iterator[str]:
    """The paths in the archive of files of the workspace, without those of a repository: git would obey them, when
    nothing else is there."""
    prefix = f"{scratch.workspace}/"
    inside = (file.removeprefix(prefix) for file in files if file.startswith(prefix))
    return (f"workspace/{path}" for path in inside if not GITS.intersection(path.split("/")))
