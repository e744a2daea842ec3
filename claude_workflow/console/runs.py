"""Which runs a page shows, and what they come to.

The index has runs by the hour, and within one by their names: so an hour's keys are listed, with when each was marked,
and the records only of those that are shown. Where a filter wants to know what only a record says, no more than
`LOOKED` of them are read for a page, and the next one goes on behind them.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Self

from claude_workflow.cli.record import READERS, each, look
from claude_workflow.cli.runs import Row
from lambdas.bucket.listing import DONE, OUTCOMES, UNFINISHED, Marked, hour_of, hours, newest_of_session, of_hour
from lambdas.bucket.objects import Bucket
from lambdas.request import SESSION_ID

SHOWN = 50
"""Runs on a page."""
LOOKED = 500
"""Records that are read for a page at the most."""
LISTED = 5000
"""Keys of an hour and an outcome, or of a session, that are listed at the most."""
SUMMED = 5000
"""Runs that are added up at the most."""
KEPT = 20_000
"""Lines of runs that are kept in memory; each takes some 1 KB."""
FRESH = 60.0
"""Seconds for which an hour that is over stands as it was listed."""

SPANS = {"1h": 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0, "30d": 30 * 86_400.0}
ENDINGS = ("running", "done", "failed", "cancelled", "lost")


@dataclass(frozen=True)
class Wanted:
    """Which runs are meant, as the page's address has it; None: all."""

    outcome: str | None = None
    caller: str | None = None
    session: str | None = None
    code: str | None = None
    since: str | None = None
    """One of `SPANS`."""
    copy_of: str | None = None
    """A session: the first runs of its copies are meant."""

    @classmethod
    def of(cls, query: dict[str, str]) -> Self:
        """Out of a query, as far as it says what can be meant."""
        given = {name: query[name].strip() for name in cls.__dataclass_fields__ if query.get(name, "").strip()}
        if given.get("outcome") not in ENDINGS:
            given.pop("outcome", None)
        if given.get("since") not in SPANS:
            given.pop("since", None)
        for name in ("session", "copy_of"):
            if not SESSION_ID.fullmatch(given.get(name, "")):
                given.pop(name, None)
        return cls(**given)

    @property
    def query(self) -> dict[str, str | None]:
        """As an address has it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def listed(self) -> tuple[str, ...]:
        """Where the index has them."""
        if self.code:
            return UNFINISHED
        standing = {"done": DONE, "failed": UNFINISHED, "running": ("claimed",), "lost": ("claimed",)}
        return standing.get(self.outcome or "", OUTCOMES)

    def means(self, row: Row, begin: float) -> bool:
        """Whether the run is one of them; `begin` in epoch seconds."""
        wanted = (
            (self.outcome, row.outcome),
            (self.caller, row.owner),
            (self.code, row.code),
            (self.copy_of, row.copy_of),
        )
        return row.requested_at >= begin and all(want is None or want == is_ for want, is_ in wanted)

    def begin(self, now: float) -> float:
        """Epoch seconds before which none of them was asked for."""
        return now - SPANS[self.since] if self.since else 0.0


@dataclass(frozen=True)
class Page:
    """Some runs, the newest first."""

    rows: list[Row]
    looked: int
    """How many records were read for them."""
    older: str | None
    """Where the next page begins; None where there are none."""
    whole: bool
    """Whether each hour of them was listed to its end: else its newest runs may not be among them."""


class _Listed(NamedTuple):
    """An hour's runs, as they were listed."""

    until: float
    """When they are listed anew."""
    found: list[Marked]
    whole: bool


class Runs:
    """The runs of a bucket, page by page; lines of runs that ended are kept, as long as the index says the same."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._kept: OrderedDict[Marked, Row | None] = OrderedDict()
        self._listed: dict[tuple[str, tuple[str, ...]], _Listed] = {}
        self._guard = threading.Lock()

    def page(self, wanted: Wanted, behind: str | None = None) -> Page:
        """The newest of them, or those behind where another page ended."""
        now, looked, rows, last, whole = time.time(), 0, list[Row](), None, True
        found = self._marked(wanted, now, behind)
        begin = wanted.begin(now)
        while len(rows) < SHOWN and looked < LOOKED:
            some = list(islice(found, SHOWN - len(rows)))
            if not some:
                last = None
                break
            for _, row in self._rows([marked for marked, _ in some], now):
                if row and (not wanted.session or row.session_id == wanted.session) and wanted.means(row, begin):
                    rows.append(row)
            looked += len(some)
            last = _place(some[-1][0])
            whole = whole and all(complete for _, complete in some)
        more = last is not None and next(found, None) is not None
        rows.sort(key=lambda row: row.requested_at, reverse=True)
        return Page(rows, looked, last if more else None, whole)

    def all(self, wanted: Wanted) -> tuple[list[Row], bool]:
        """As many of them as are added up, and whether that is all."""
        now = time.time()
        found = self._marked(wanted, now, None)
        some, begin = list(islice(found, SUMMED)), wanted.begin(now)
        rows = [row for _, row in self._rows([marked for marked, _ in some], now) if row and wanted.means(row, begin)]
        whole = next(found, None) is None and all(complete for _, complete in some)
        return sorted(rows, key=lambda row: row.requested_at), whole

    def _marked(self, wanted: Wanted, now: float, behind: str | None) -> Iterator[tuple[Marked, bool]]:
        """What the index has of them, the newest first, and whether its hour was listed to the end."""
        after = _read(behind)
        if wanted.session:
            found, whole = newest_of_session(self._bucket, wanted.session, LISTED)
            yield from ((one, whole) for one in found if after is None or _order(one) < after[1:])
            return
        first = hour_of(wanted.begin(now))
        for hour in hours(self._bucket):
            if hour < first:
                return
            if after and hour > after[0]:
                continue
            found, whole = self._of_hour(hour, wanted.listed, now)
            below = after[1:] if after and hour == after[0] else None
            yield from ((one, whole) for one in found if below is None or _order(one) < below)

    def _of_hour(self, hour: str, outcomes: tuple[str, ...], now: float) -> tuple[list[Marked], bool]:
        """Its runs, and whether that is all. Of an hour that is over few come, and how one ended its record says."""
        if hour >= hour_of(now):
            return of_hour(self._bucket, hour, outcomes, LISTED)
        with self._guard:
            self._listed = {each: listed for each, listed in self._listed.items() if now < listed.until}
            listed = self._listed.get((hour, outcomes))
        if listed is None:
            listed = _Listed(now + FRESH, *of_hour(self._bucket, hour, outcomes, LISTED))
            with self._guard:
                self._listed[hour, outcomes] = listed
        return listed.found, listed.whole

    def _rows(self, found: list[Marked], now: float) -> Iterator[tuple[Marked, Row | None]]:
        """Their lines, in any order; None for what is none (any more)."""

        def read(marked: Marked) -> tuple[Marked, Row | None]:
            with self._guard:
                if marked in self._kept:
                    self._kept.move_to_end(marked)
                    return marked, self._kept[marked]
            run = look(self._bucket, marked.entry, now)
            row = Row.of(run) if run else None
            if row and row.outcome in ("done", "failed", "cancelled") and marked.entry.outcome in ("done", "failed"):
                with self._guard:
                    self._kept[marked] = row
                    while len(self._kept) > KEPT:
                        self._kept.popitem(last=False)
            return marked, row

        return each(read, found, READERS)


def _order(marked: Marked) -> tuple[float, str]:
    return marked.at, marked.entry.run_id


def _place(marked: Marked) -> str:
    """Where a page ended, for an address."""
    return f"{marked.entry.hour or ''}~{marked.at}~{marked.entry.run_id}"


def _read(place: str | None) -> tuple[str, float, str] | None:
    """The hour, the moment and the run; None for what no page has said."""
    hour, _, rest = (place or "").partition("~")
    at, _, run_id = rest.partition("~")
    try:
        return hour, float(at), run_id
    except ValueError:
        return None


def without(wanted: Wanted, name: str) -> Wanted:
    """The same, of this filter none."""
    return replace(wanted, **{name: None})
