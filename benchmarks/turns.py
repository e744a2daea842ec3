"""Two hundred turns of one session: what a turn takes and what the archive weighs, compaction included."""

from statistics import median
from typing import NamedTuple

from benchmarks import trees, workflow
from benchmarks.bench import MBIT, Bench
from benchmarks.limiter import Limiter
from benchmarks.report import Section, plot, table
from benchmarks.storage import BUCKET, client

TURNS = 200
TREE = trees.Kind("60 MB", 60_000_000, 5_500)
"""So that the archive has 24 MB of live content: more than is rewritten whole anyway."""
SHARE = 0.01
"""Of the files, changed by every turn."""
SHOWN = 20
MB = 1e6


class One(NamedTuple):
    """One turn."""

    restore: float
    persist: float
    archive: int
    """Bytes of the session's newest version."""
    sent: int


def measure(bench: Bench) -> list[Section]:
    """Every turn changes some files, others each time, and adds to the transcript."""
    kind, turns = (trees.TINY, 2) if bench.quick else (TREE, TURNS)
    trees.make(bench.folder / "turns-tree", kind)
    found: list[One] = []
    s3 = client(f"http://{bench.storage.address}")
    with (
        Limiter(bench.storage.address, mbit=MBIT, latency=0) as limiter,
        workflow.running(bench.folder / "turns", limiter, bench.template) as flow,
    ):
        session = flow.turn("fill", source=str(bench.folder / "turns-tree")).session_id
        for number in range(turns):
            if number % SHOWN == 0:
                bench.say(f"Turn {number + 1} of {turns} …")
            turn = flow.turn("change", session, share=SHARE, seed=number)
            size = s3.head_object(Bucket=BUCKET, Key=f"{session}.zip")["ContentLength"]
            found.append(One(turn.restore.seconds, turn.persist.seconds, size, turn.persist.up))
    return [_section(found)]


def _section(found: list[One]) -> Section:
    text = (
        f"One session of {TREE.files:,} files, {TREE.name}. Each turn changes {SHARE:.0%} of them and goes on with the "
        f"transcript. The bandwidth is limited as above, the latency is that of loopback, to save time. The archive "
        f"grows by bytes that are dead, until they pass `max_dead_share` of it and are won back."
    )
    rows = [_row(found, first) for first in range(0, len(found), SHOWN)]
    heads = ("turns", "restore, s", "persist, s", "slowest persist, s", "MB sent", "archive, MB", "largest")
    section = Section("Growth with the number of turns", [text, table(heads, rows)])
    numbered = list(enumerate(found, 1))
    section.plots["turns"] = plot(
        "Turns of one session",
        "turn",
        "seconds",
        {
            "persist": [(float(number), one.persist) for number, one in numbered],
            "restore": [(float(number), one.restore) for number, one in numbered],
        },
        logarithmic=False,
    )
    archive = {"archive": [(float(number), one.archive / MB) for number, one in numbered]}
    section.plots["turns-archive"] = plot("Turns of one session", "turn", "MB", archive, logarithmic=False)
    return section


def _row(found: list[One], first: int) -> tuple[object, ...]:
    some = found[first : first + SHOWN]
    return (
        f"{first + 1}–{first + len(some)}",
        median(one.restore for one in some),
        median(one.persist for one in some),
        max(one.persist for one in some),
        median(one.sent for one in some) / MB,
        median(one.archive for one in some) / MB,
        max(one.archive for one in some) / MB,
    )
