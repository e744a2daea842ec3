"""What was measured of restoring and persisting, as tables, plots and checks of what was promised."""

from collections.abc import Callable, Iterable
from statistics import median

from benchmarks import backups
from benchmarks.bench import MBIT
from benchmarks.report import Check, Section, figure, plot, table
from benchmarks.sizes import FEW, ONE_PERCENT, SHARES, Cost, Results, ours

MB = 1e6
LEAST = {"110 MB": 15, "570 MB": 18}
"""How many times less time and bytes than the naive way were promised for a 1 % change."""

FROM_BYTES = 100 * MB
"""Smaller sessions are shown no growth of: their archives may be rewritten whole."""

OURS, OURS_FEW = ours(ONE_PERCENT), ours(FEW)
HEADS = (
    "session",
    "side",
    "s",
    "archive alone, s",
    "CPU s",
    "peak MB",
    "MB sent",
    "MB received",
    "requests",
)


def sections(measured: list[Results], failed: list[Check]) -> list[Section]:
    """Persist, restore, and how they grow."""
    persist = _persist(measured)
    persist.checks += failed
    return [persist, _restore(measured), _growth(measured)]


def _rows(measured: Iterable[Results], done: str) -> list[tuple[object, ...]]:
    return [
        (
            results.kind.name,
            side,
            cost.seconds,
            cost.archive,
            cost.cpu,
            cost.peak / MB if cost.peak else "",
            cost.sent / MB,
            cost.received / MB if cost.received else "",
            round(cost.requests) if cost.requests else "",
        )
        for results in measured
        for did, side in results.sides
        if did == done and (side in (OURS, OURS_FEW) or not side.startswith("ours"))
        for cost in [results.of(done, side)]
    ]


def _persist(measured: list[Results]) -> Section:
    text = (
        "Ours is from the end of the agent until PersistSession has answered: RunClaude notices what changed and "
        "stages it, PersistSession commits it. The archive alone is without the time in which only requests for the "
        "run's record were under way, of which the other ways keep none. Its peak memory is PersistSession's. The "
        "naive way is `zipfile` at level 6 over everything and one upload. The backup tools take a second snapshot of "
        "the same tree with the same change; `borg` and `casync` write to a local directory, which is in their favour, "
        "`tar.zst` is all of it, archived and uploaded. A walk is `lstat` of every file, the least that noticing "
        "changes takes."
    )
    absent = backups.missing()
    if absent:
        text += f" **Not measured, since these Debian packages are missing: {', '.join(absent)}.**"
    section = Section("Persist", [text, table(HEADS, _rows(measured, "persist"))])
    for results in measured:
        section.checks += _persist_checks(results)
    sides = [OURS, OURS_FEW, "naive"]
    lines = {side: _line(measured, "persist", side, lambda cost: cost.seconds) for side in sides}
    walk = {"walk (lstat)": _line(measured, "limit", "walk", lambda cost: cost.seconds)}
    section.plots["persist"] = plot("Persist", "MB in the session", "seconds", lines | walk)
    sent = {side: _line(measured, "persist", side, lambda cost: cost.sent / MB) for side in sides}
    section.plots["persist-bytes"] = plot("Persist", "MB in the session", "MB sent", sent)
    return section


def _persist_checks(results: Results) -> list[Check]:
    name, found = results.kind.name, []
    if least := LEAST.get(name):
        promise = f"Persist of a 1 % change at {name}: ≥ {least}× less"
        found += _naive_checks(results, "persist", promise, least, "the requests of the run's record")
        sent = results.ratio("persist", "naive", lambda cost: cost.sent)
        found.append(Check.at_least(f"{promise} bytes sent", sent, least))
        for side in (tool for done, tool in results.sides if done == "persist" and tool in backups.NAMES):
            ratio = results.ratio("persist", side, lambda cost: cost.seconds)
            found.append(Check.at_least(f"Persist of a 1 % change at {name}: less time than {side}", ratio, 1))
    if name == "1 GB":
        peak = results.peak("PersistSession") / MB
        found.append(Check.at_most("Peak memory of PersistSession at 1 GB ≤ 150 MB", peak, 150, " MB"))
        peak = results.peak("RunClaude") / MB
        found.append(Check.at_most("Peak memory of RunClaude's handler at 1 GB ≤ 250 MB", peak, 250, " MB"))
    return found


def _naive_checks(results: Results, done: str, promise: str, least: float, more: str) -> list[Check]:
    """Archive against archive, and beside it the archive against all that a turn of ours does for it."""
    archives = results.ratio(done, "naive", lambda cost: cost.archive)
    whole = results.ratio(done, "naive", lambda cost: cost.seconds)
    return [
        Check.at_least(f"{promise} time", archives, least),
        Check(f"— the same, {more} included on our side", f"{figure(whole)}×", None),
    ]


def _restore(measured: list[Results]) -> Section:
    text = (
        "Ours is from RunClaude's event until the process of the (scripted) agent has begun, the SDK's start of it and "
        "its wall included, and all is in place; the archive alone is until that, by the change time of the directory "
        "that is touched last, which may be told 4 ms too early. The agent's start goes on beside it. Its peak memory "
        "is that of RunClaude's handler, persist included. The naive way is one download and `zipfile.extractall`. The "
        "limits: a raw copy (`cp -a`) of the same files, the inflating of all members by zlib without writing "
        "anything, and the download at the limiter's bandwidth."
    )
    section = Section("Restore", [text, table(HEADS, _rows(measured, "restore")), _limit_table(measured)])
    for results in measured:
        if results.kind.name in LEAST:
            promise = f"Restore at {results.kind.name}: ≥ 1.9× less"
            section.checks += _naive_checks(results, "restore", promise, 1.9, "the start of the agent's process")
    lines = {side: _line(measured, "restore", side, lambda cost: cost.seconds) for side in (OURS, "naive")}
    limits = {
        f"limit: {side}": _line(measured, "limit", side, lambda cost: cost.seconds) for side in ("copy", "inflate")
    }
    section.plots["restore"] = plot("Restore", "MB in the session", "seconds", lines | limits)
    return section


def _limit_table(measured: list[Results]) -> str:
    rows = []
    for results in measured:
        ours = results.of("restore", OURS)
        copy, inflate, walk = (results.of("limit", side).seconds for side in ("copy", "inflate", "walk"))
        download = ours.received * 8 / (MBIT * 1e6)
        rows.append((results.kind.name, download, inflate, copy, figure(ours.seconds / copy) + "×", walk))
    heads = ("session", "download at the limit, s", "inflate, s", "raw copy, s", "ours to raw copy", "walk, s")
    return table(heads, rows)


def _line(measured: list[Results], done: str, side: str, what: Callable[[Cost], float]) -> list[tuple[float, float]]:
    return [(one.kind.bytes / MB, what(one.of(done, side))) for one in measured if (done, side) in one.sides]


def _growth(measured: list[Results]) -> Section:
    slopes: dict[str, Callable[[Results], float]] = {
        "`lstat` of everything, ms (the least)": lambda one: one.of("limit", "walk").seconds * 1000,
        "persist of a 0.01 % change, ms": lambda one: one.of("persist", OURS_FEW).seconds * 1000,
        "persist of a 0.01 % change, CPU ms": lambda one: one.of("persist", OURS_FEW).cpu * 1000,
        "persist of a 0.01 % change, MB sent": lambda one: one.of("persist", OURS_FEW).sent / MB,
        "persist of a 0.01 % change, MB received": lambda one: one.of("persist", OURS_FEW).received / MB,
        "the archive's central directory, MB": lambda one: one.directory_bytes / MB,
        "removing the scratch directory, ms": lambda one: median(turn.wipe_seconds for turn in one.turns) * 1000,
    }
    shown = [one for one in measured if one.kind.bytes >= FROM_BYTES] or measured
    rows = [[name, *(_per_10k(shown[0], one, of) for one in shown)] for name, of in slopes.items()]
    heads = ("per 10,000 files", *(f"{one.kind.name}, {one.kind.files:,} files" for one in shown))
    text = (
        "What a turn that changes next to nothing takes, per 10,000 files: in the first column in all, in the others "
        "what it takes more than there, for each 10,000 files more."
    )
    section = Section("What grows with the number of files, and with the change", [text, table(heads, rows)])
    for results in measured:
        shares = [share for share in SHARES if ("persist", ours(share)) in results.sides]
        if len(shares) > 2:
            _add_by_change(section, results, shares)
    return section


def _add_by_change(section: Section, results: Results, shares: list[float]) -> None:
    costs = [results.of("persist", ours(share)) for share in shares]
    rows = [(f"{share * 100:g} %", cost.seconds, cost.sent / MB) for share, cost in zip(shares, costs, strict=True)]
    section.blocks += [f"By the share of {results.kind.name} that changed:", table(("changed", "s", "MB sent"), rows)]
    seconds = [(share * 100, cost.seconds) for share, cost in zip(shares, costs, strict=True)]
    again = [(share * 100, results.of("persist", "naive").seconds) for share in shares]
    lines = {"ours": seconds, "naive": again}
    section.plots["change"] = plot(f"Persist of {results.kind.name}", "% of the files changed", "seconds", lines)


def _per_10k(smallest: Results, one: Results, of: Callable[[Results], float]) -> float:
    more, files = of(one) - of(smallest), one.kind.files - smallest.kind.files
    return (more / files if files else of(one) / one.kind.files) * 10_000
