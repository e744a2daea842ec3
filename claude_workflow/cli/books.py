"""All that was written of money, read together: runs with their receipts, sessions, and the ledger of each day.

Nothing is written: a reservation that has ended stands until a run looks at it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from claude_workflow.cli.accounts import Account, Attempt, account, accounts, day, total
from claude_workflow.cli.record import READERS, each
from lambdas.bucket import ledger, listing, record, versions
from lambdas.bucket.listing import Entry
from lambdas.bucket.objects import Bucket
from lambdas.contract import Base
from lambdas.errors import SessionDamaged
from lambdas.receipt import Receipt


class Kept(NamedTuple):
    """A receipt that adds up, and whose it is."""

    account: Account
    attempt: Attempt
    receipt: Receipt

    @property
    def run_id(self) -> str:
        """Of its run."""
        return self.account.run.run_id


@dataclass(frozen=True)
class Turn:
    """A committed run of a session."""

    account: Account
    base: Base | None
    """The version on which it worked; of another session, for the first turn of a fork."""

    @property
    def number(self) -> int:
        """How many turns were before it."""
        return self.base.turns if self.base else 0

    @property
    def before(self) -> float:
        """US dollars that the session cost until then."""
        return self.base.cost_usd if self.base else 0.0

    @property
    def usd(self) -> float | None:
        """What it adds to the session; None where nobody knows."""
        forked, answer = self.account.forked, self.account.run.answer
        attempts = [*self.account.counted, *([forked] if forked else [])]
        if answer and not any(attempt.receipt or attempt.damage for attempt in attempts):
            return float(answer["session_cost_usd"]) - self.before  # of version 0.2, where that is the only word
        return total(attempts)


@dataclass(frozen=True)
class Session:
    """A session, and the turns that made it as far as their records are kept, in order."""

    session_id: str
    turns: Sequence[Turn]
    cost_usd: float | None = None
    """What its newest version says; None where that says nothing sound."""
    last_run: str = ""
    """Whose turn that is."""
    damage: str | None = None
    """What is wrong with its metadata."""


@dataclass
class Books:
    """All of it, at one moment."""

    now: float
    """Epoch seconds."""
    accounts: dict[str, Account]
    """By run."""
    booked: list[ledger.Entry] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    def attempts(self) -> Iterator[tuple[Account, Attempt]]:
        """Each with its run."""
        for of in self.accounts.values():
            yield from ((of, attempt) for attempt in of.attempts)

    def receipts(self) -> Iterator[Kept]:
        """Those that add up."""
        for of, attempt in self.attempts():
            if attempt.receipt:
                yield Kept(of, attempt, attempt.receipt)


def opened(bucket: Bucket, begin: float, now: float) -> Books:
    """Of the runs from `begin` to `now` (epoch seconds), and of the days and sessions to which they belong. Raises
    `StorageUnavailable`."""
    books = Books(now, {of.run.run_id: of for of in accounts(bucket, begin, now)})
    keys = (one["Key"] for page in bucket.pages("ledger/", after=f"ledger/{day(begin)}") for one in page)
    days = takewhile(lambda key: not key.startswith("ledger/sessions/"), keys)
    books.booked = [ledger.Entry.read(key) for key in days]
    _add(books, bucket, (entry.run_id for entry in books.booked))
    ids = sorted({of.run.session_id for of in books.accounts.values()})
    found = each(lambda session_id: _session(bucket, books, session_id), ids, READERS)
    books.sessions = [session for session in found if session]
    return books


def _add(books: Books, bucket: Bucket, runs: Iterable[str]) -> None:
    """Also those that were asked for before, and began another attempt since."""
    missing = sorted({*runs} - books.accounts.keys())
    for of in each(lambda run_id: account(bucket, Entry(run_id), books.now), missing, READERS):
        if of:
            books.accounts[of.run.run_id] = of


def _session(bucket: Bucket, books: Books, session_id: str) -> Session | None:
    """None where it is deleted, or was never committed."""
    runs = [entry.run_id for page in listing.of_session(bucket, session_id) for entry in page]
    try:
        newest = versions.newest(bucket, session_id)
    except SessionDamaged as damaged:
        return Session(session_id, (), last_run=runs[-1], damage=damaged.detail)
    if newest is None:
        return None
    base, metadata = newest
    found = (_turn(bucket, books, session_id, run_id) for run_id in runs)
    # What was committed after the newest version had been looked at is not in its sum.
    turns = sorted((turn for turn in found if turn and turn.number < base.turns), key=lambda turn: turn.number)
    return Session(session_id, turns, base.cost_usd, metadata["run"])


def _turn(bucket: Bucket, books: Books, session_id: str, run_id: str) -> Turn | None:
    """None for a run that was not committed."""
    of = books.accounts.get(run_id)
    if of is None or of.run.answer is None:
        of = account(bucket, Entry(run_id), books.now)  # it may be done by now
    pin = record.pinned(bucket, run_id) if of else None
    if of is None or pin is None:
        return None
    if of.run.answer is None:  # and yet it may have died between its commit and its answer
        staged = any(attempt.whole for attempt in of.attempts)
        if not staged or not versions.committed(bucket, run_id, session_id, pin.base):
            return None
    return Turn(of, pin.base)
