"""`claude-workflow verify`: whether all that was written of money holds, each part of it against the others."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from claude_workflow.cli import tables
from claude_workflow.cli.accounts import counted, day, exact
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.bill import Bill, Line, lined_up
from claude_workflow.cli.books import Books, Session, opened
from claude_workflow.cli.endpoint import typed
from claude_workflow.cli.printing import document, line, to_stderr
from claude_workflow.cli.record import Requests
from claude_workflow.cli.runs import DAY
from claude_workflow.cli.tables import Columns
from lambdas.bucket.ledger import SPENT
from lambdas.bucket.objects import Bucket
from lambdas.pricing import Prices
from lambdas.strict import Json

MICRO = 1e-6
"""US dollars by which what is written to the millionth may differ: the ledger, and a session's metadata."""

EXACT = 1e-8
"""US dollars by which sums of the same figures may differ, in another order."""

SIDES = ("receipts", "provider", "difference")
AGAINST: Columns = {("day (UTC)",): 10, ("model",): 24, **{(side,): 11 for side in SIDES}, ("",): None}
"""US dollars by receipts, by the provider, and what that is more."""


@dataclass(frozen=True)
class Fault:
    """One thing that does not hold."""

    run_id: str
    what: str


def faults(books: Books) -> list[Fault]:
    """All that does not hold, run by run."""
    checks = (_damaged, _gone, _prices, _answers, _failures, _sessions, _booked, _unbooked, _twice, _after_limits)
    found = (fault for check in checks for fault in check(books))
    return sorted(found, key=lambda fault: fault.run_id)


def remarks(books: Books) -> list[str]:
    """What is worth knowing, and is no fault."""
    said = []
    for of, attempt, receipt in books.receipts():
        if receipt.differs and receipt.claude_code_usd is not None:
            theirs, ours = exact(receipt.claude_code_usd), exact(receipt.usd)
            said.append(f"{of.run.run_id}: Claude Code itself says {theirs} of {attempt.name}, its receipt {ours}")
    for of in books.accounts.values():
        late = [attempt for attempt in of.attempts if attempt not in of.counted and attempt.usd]
        for attempt in late:
            what = f"{attempt.name} was at work beside the one that is answered"
            said.append(f"{of.run.run_id}: {what}; what it cost, {exact(attempt.usd or 0.0)}, is in no answer")
    bare = [attempt for _, attempt in books.attempts() if not attempt.receipt and not attempt.damage]
    known = [attempt.said for attempt in bare if attempt.said is not None]
    if known:
        said.append(
            f"Without a receipt: {counted(len(known), 'attempt')}, {exact(sum(known))} by the runs' records alone"
        )
    if lost := len(bare) - len(known):
        said.append(f"Without a receipt or a word: {counted(lost, 'attempt')}, whose cost nobody knows")
    removed = [entry for entry in books.booked if entry.kind == SPENT and entry.run_id not in books.accounts]
    if spent := sum(entry.micros for entry in removed) / 1e6:
        said.append(f"Removed with their sessions, or expired: {counted(len(removed), 'attempt')}, {exact(spent)}")
    if running := sum(of.run.running for of in books.accounts.values()):
        said.append(f"Still going on, and not added up: {counted(running, 'run')}")
    return said


def _damaged(books: Books) -> Iterator[Fault]:
    for of, attempt in books.attempts():
        if attempt.damage:
            yield Fault(of.run.run_id, f"the receipt of {attempt.name} does not add up: {line(attempt.damage, 300)}")


def _gone(books: Books) -> Iterator[Fault]:
    """A receipt that was there: the answer names it, or the ledger has what it said."""
    booked = {(entry.run_id, entry.attempt) for entry in books.booked}
    for of, attempt in books.attempts():
        named = (of.run.answer or {}).get("receipt_at") == f"{attempt.prefix}receipt.json"
        said = attempt.said if named or (of.run.run_id, attempt.name) in booked else None
        if said and not attempt.receipt and not attempt.damage:
            yield Fault(of.run.run_id, f"the receipt of {attempt.name} is gone, which made {exact(said)}")


def _prices(books: Books) -> Iterator[Fault]:
    """Receipts by one version of the table have the same prices; by the version that is here, those of the table."""
    here = Prices.of()
    versions: dict[str, Json] = {here.version: dict(here.table["models"])}
    for kept in books.receipts():
        version = line(str(kept.receipt.prices["version"]), 40)
        standing = versions.setdefault(version, {})
        for model, price in kept.receipt.prices["models"].items():
            if standing.setdefault(model, price) != price:
                what = f"asks another price for {line(model, 80)} than the table of {version}"
                yield Fault(kept.run_id, f"the receipt of {kept.attempt.name} {what}")


def _answers(books: Books) -> Iterator[Fault]:
    for of in books.accounts.values():
        if of.run.answer and of.usd is not None and abs(of.run.answer["cost_usd"] - of.usd) > EXACT:
            said = exact(of.run.answer["cost_usd"])
            yield Fault(of.run.run_id, f"the answer says {said}, its receipts {exact(of.usd)}")


def _failures(books: Books) -> Iterator[Fault]:
    """In all, and of each attempt."""
    for of in books.accounts.values():
        failure = of.run.failure
        if failure is None or of.run.running:
            continue
        costs = failure.get("costs", {})
        parts = [(f" of {attempt.name}", costs.get(attempt.prefix), attempt.usd) for attempt in of.attempts]
        for what, said, usd in [*parts, ("", failure.get("cost_usd"), of.usd)]:
            if said is not None and usd is not None and abs(said - usd) > EXACT:
                yield Fault(of.run.run_id, f"the failure says {exact(said)}{what}, its receipts {exact(usd)}")


def _sessions(books: Books) -> Iterator[Fault]:
    for session in books.sessions:
        if session.damage:
            yield Fault(session.last_run, f"the metadata of {session.session_id} are damaged: {session.damage}")
        yield from _turns(session)
        known = [turn.usd for turn in session.turns if turn.usd is not None]
        if session.cost_usd is not None and known and len(known) == len(session.turns):
            made = session.turns[0].before + sum(known)
            if abs(session.cost_usd - made) > MICRO * len(known):
                said = exact(session.cost_usd)
                yield Fault(
                    session.last_run, f"{session.session_id} says {said}, the receipts of its runs {exact(made)}"
                )


def _turns(session: Session) -> Iterator[Fault]:
    for turn in session.turns:
        answer = turn.account.run.answer
        if answer and turn.usd is not None:
            said, made = answer["session_cost_usd"], turn.before + turn.usd
            if abs(said - made) > MICRO:
                what = f"the answer says {exact(said)} of all the session, its base and receipts {exact(made)}"
                yield Fault(turn.account.run.run_id, what)


def _booked(books: Books) -> Iterator[Fault]:
    """What the ledger says was spent, receipts say could have been."""
    receipts = {(kept.run_id, kept.attempt.name): kept for kept in books.receipts()}
    known = {(of.run.run_id, attempt.name) for of, attempt in books.attempts()}
    for entry in books.booked:
        of, said = (entry.run_id, entry.attempt), f"the ledger of {entry.day} says {exact(entry.micros / 1e6)}"
        if entry.kind != SPENT:
            continue
        if kept := receipts.get(of):
            most, running = kept.receipt.most, kept.account.run.running
            if most is not None and not running and abs(entry.micros / 1e6 - most) > MICRO:
                yield Fault(entry.run_id, f"{said} of {entry.attempt}, its receipt {exact(most)}")
        elif entry.run_id in books.accounts and of not in known and entry.micros:
            yield Fault(entry.run_id, f"{said} of {entry.attempt}, of which there is nothing else")


def _unbooked(books: Books) -> Iterator[Fault]:
    """What receipts say was spent, the ledger has, if only as reserved."""
    booked = {(entry.run_id, entry.attempt) for entry in books.booked}
    for kept in books.receipts():
        if kept.receipt.most and not kept.account.run.running and (kept.run_id, kept.attempt.name) not in booked:
            what = f"the ledger of {day(kept.attempt.began)} has nothing of {kept.attempt.name}"
            yield Fault(kept.run_id, f"{what}, its receipt {exact(kept.receipt.most)}")


def _twice(books: Books) -> Iterator[Fault]:
    places = defaultdict[str, list[tuple[str, str]]](list)
    for kept in books.receipts():
        for number, call in enumerate(kept.receipt.calls, 1):
            if call.request_id:
                places[call.request_id].append((kept.run_id, f"call {number} of {kept.attempt.name}"))
    for request_id, (first, *others) in places.items():
        for run_id, place in others:
            what = f"{place} is counted twice: as {line(request_id, 80)} it is {first[1]} in {first[0]}"
            yield Fault(run_id, what)


def _after_limits(books: Books) -> Iterator[Fault]:
    for kept in books.receipts():
        limit = kept.receipt.limit_at
        for number, call in enumerate(kept.receipt.calls, 1):
            if limit is not None and call.passed_at > limit:
                what = f"was passed on {call.passed_at - limit:.0f} s after {line(str(kept.receipt.limit), 40)} was met"
                yield Fault(kept.run_id, f"call {number} of {kept.attempt.name} {what}")


def run(backend: Backend, since: float | None, now: float, bill: Bill | None, as_json: bool) -> int:
    """Prints what does not hold, or that all does, to stdout. `since`: epoch seconds, None for all that is kept.
    Returns 1 where something does not hold."""
    bucket = Bucket(backend.client("s3"), backend.bucket)
    requests = Requests(bucket.s3)
    books = opened(bucket, since or 0.0, now)
    found, said = faults(books), remarks(books)
    receipts = [receipt for _, _, receipt in books.receipts()]
    # Records expire by whole days; `since` begins in the middle of one.
    first = day(since + DAY) if since else min((day(one.began) for _, one in books.attempts()), default="")
    lines = lined_up(bill, receipts, first) if bill else []
    figures = {
        "runs": len(books.accounts),
        "receipts": len(receipts),
        "calls": sum(len(receipt.calls) for receipt in receipts),
        "usd": round(sum(receipt.usd for receipt in receipts), 10),
    }
    if as_json:
        compared = {"against": [one.dump() for one in lines]} if bill else {}
        told = figures | {"faults": [asdict(fault) for fault in found], "remarks": said} | compared
        print(document(told, sys.stdout))
    else:
        _print(tables.console(), found, lines, backend.options)
        _tell(tables.console(), figures, found, said)
    sys.stdout.flush()
    to_stderr().print(requests.sentence(), style="dim", soft_wrap=True)
    return int(bool(found) or any(one.differs for one in lines))


def _print(out: Console, found: list[Fault], lines: list[Line], options: tuple[str, ...]) -> None:
    for fault in found:
        shown = typed("show", fault.run_id, *options)
        out.print(Text.assemble((fault.run_id, "bold"), (f": {fault.what}", "red"), f": {shown}"), soft_wrap=True)
    if lines:
        out.print(tables.table(AGAINST, map(_cells, lines), head=True, width=out.width, figures=SIDES))


def _cells(line_: Line) -> dict[str, Text]:
    sides = zip(SIDES, (line_.receipts, line_.provider, line_.difference), strict=True)
    differs = {"": Text("differs" if line_.differs else "", "red")}
    names = {"day (UTC)": Text(line_.day), "model": Text(line(line_.model, 80))}
    return names | {name: Text(f"{usd:,.4f}") for name, usd in sides} | differs


def _tell(out: Console, figures: Mapping[str, float], found: list[Fault], said: list[str]) -> None:
    parts = [counted(int(figures[f"{name}s"]), name) for name in ("run", "receipt", "call")]
    of = f"{', '.join(parts)}, {exact(figures['usd'])}"
    told = f"{counted(len(found), 'fault')} in {of}." if found else f"All holds: {of}."
    out.print(told, style="green" if not found else "bold red", soft_wrap=not out.is_terminal)
    for remark in said:
        out.print(f"{remark}.", soft_wrap=not out.is_terminal)
