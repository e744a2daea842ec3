"""`make bench`: everything that is claimed of this project's speed, in one run."""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import (
    archives,
    beginnings,
    cost,
    legs,
    many,
    metering,
    network,
    posts,
    report,
    requests,
    sizes,
    starts,
    turns,
)
from benchmarks.bench import LATENCY, MBIT, Bench, elapsed, machine, prepared
from benchmarks.report import Check, Section

DOCS = Path(__file__).resolve().parent.parent / "docs"
REQUESTS_OF = "110 MB"
"""The size whose requests are listed."""


def _archives(bench: Bench) -> list[Section]:
    measured, failed = sizes.measure(bench)
    if not measured:
        return [Section("Archives", ["No size could be measured."], checks=failed)]
    shown = next((one for one in measured if one.kind.name == REQUESTS_OF), measured[0])
    listed = requests.section(shown.kind.name, shown.turns[0].exchanges)
    return [*archives.sections(measured, failed), listed, cost.section(measured, bench.template)]


BENCHMARKS: Mapping[str, Callable[[Bench], list[Section]]] = {
    "posts": posts.measure,
    "beginnings": beginnings.measure,
    "many": many.measure,
    "archives": _archives,
    "meter": metering.measure,
    "network": network.measure,
    "legs": legs.measure,
    "turns": turns.measure,
    "starts": starts.measure,
}


def _ran(name: str, bench: Bench) -> list[Section]:
    """A benchmark that fails is told of, and does not take the others' figures with it."""
    try:
        return BENCHMARKS[name](bench)
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
        return [Section(name, checks=[Check(f"The benchmark {name} runs", why, met=False)])]


def measure(names: list[str], *, quick: bool, say: Callable[[str], None]) -> tuple[str, list[Section]]:
    """The machine, and what the named benchmarks have to say."""
    begun = time.monotonic()
    with prepared(quick=quick, say=lambda text: say(f"{elapsed(begun)}  {text}")) as bench:
        sections = [section for name in names for section in _ran(name, bench)]
        place = bench.folder
    about = (
        f"Measured by `make bench` in {elapsed(begun)} minutes on {machine(place)}. S3 is SeaweedFS on loopback, "
        f"behind a proxy that lets {MBIT} megabits a second through in each direction and holds every request for "
        f"{LATENCY * 1000:.0f} ms; real S3 was not measured. Free memory was written to before, so that no side waits "
        "for a hypervisor that had taken it back. All sides of a comparison take turns in one run; figures are "
        "medians. The agent in the benchmarks of archives and turns is a stand-in that takes no time; elsewhere it is "
        "Claude Code with a scripted model."
    )
    return about, sections


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables. A whole run writes docs/benchmarks.md and its plots; one that is not, writes nothing."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=list(BENCHMARKS), help="one benchmark; writes nothing")
    parser.add_argument("--quick", action="store_true", help="everything tiny and once; writes nothing")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all that was started ends with it
    names = [chosen.only] if chosen.only else list(BENCHMARKS)
    about, sections = measure(names, quick=chosen.quick, say=lambda text: print(text, file=sys.stderr, flush=True))
    print("\n\n".join([about, report.checks(sections), *(section.markdown() for section in sections)]))
    if not chosen.only and not chosen.quick:
        report.write(DOCS, about, sections)
        print(f"\nWritten: {DOCS / 'benchmarks.md'}", file=sys.stderr)
    return int(any(not section.blocks for section in sections))  # one that failed has nothing to say


if __name__ == "__main__":
    sys.exit(main())
