"""The S3 requests of one turn, each with its reason."""

import re
from collections.abc import Iterable
from urllib.parse import unquote

from benchmarks.limiter import Exchange
from benchmarks.report import Check, Section, table

REASONS = (
    (r"GET .*/runs/[^/]+/request\.json\?X-Amz.*", "RunClaude reads the prompt, through its grant"),
    (r"GET .*/runs/[^/]+/cancel\?X-Amz.*", "has the run's caller ended it?"),
    (r"GET .*/runs/[^/]+/request\.json", "is this run a repeat of an earlier one?"),
    (r"PUT .*/runs/[^/]+/request\.json", "the run is written down before anything else happens"),
    (r"GET .*/runs/[^/]+/response\.json", "was it answered before?"),
    (r"PUT .*/runs/[^/]+/response\.json", "the answer, written once"),
    (r"PUT .*/locks/.*", "the session's lease is taken"),
    (r"GET .*/locks/.*", "is the lease still this execution's?"),
    (r"DELETE .*/locks/.*", "the lease is given back"),
    (r"PUT .*/runs/[^/]+/base\.json", "the version that the run works on is pinned"),
    (r"PUT .*/index/sessions/.*", "the index: the runs of this session"),
    (r"PUT .*/index/hours/.*/claimed/.*", "the index: the run has begun"),
    (r"PUT .*/index/hours/.*/done/.*", "the index: the run is done"),
    (r"DELETE .*/index/hours/.*", "the index: it is no longer just begun"),
    (r"PUT .*/started.*", "no attempt asks the model twice"),
    (r"PUT .*/receipt\.json.*", "every call of the model and its cost, should the function be killed"),
    (r"PUT .*/ledger/.*~reserved~.*", "what the run may spend is reserved, before the sum is looked at"),
    (
        r"GET .*[?&]prefix=ledger.*",
        "the ledger: what the day has left, or what the run has reserved",
    ),
    (r"PUT .*/ledger/.*~spent~.*", "what the run has spent"),
    (r"DELETE .*/ledger/.*", "what it had reserved is given back"),
    (r"PUT .*/changes\.zip.*", "what the run changed is staged"),
    (r"PUT .*/messages\.json.*", "the agent's messages are staged"),
    (r"PUT .*/result\.json.*", "what the run came to is staged"),
    (r"GET .*/result\.json.*", "PersistSession reads what was staged"),
    (r"GET .*/messages\.json.*", "the messages, for the answer"),
    (r"GET .*/receipt\.json.*", "PersistSession adds up what was spent"),
    (r"(GET|HEAD) .*/changes\.zip.*", "PersistSession reads what was staged of the session's content"),
    (r"HEAD .*/session-[^/]+\.zip.*", "the session's newest version: whose is it, and which?"),
    (r"GET .*/session-[^/]+\.zip.*", "the session's content, or its directory"),
    (r"POST .*\.zip\?uploads.*", "the next version begins"),
    (r"PUT .*\.zip\?.*uploadId.*", "a part of the next version, sent or copied inside S3"),
    (r"POST .*\.zip\?.*uploadId.*", "the one conditional write that commits the turn"),
    (r"PUT .*/session-[^/]+\.zip.*", "the one conditional write that commits the turn, rewritten whole"),
    (r"DELETE .*\.zip\?.*uploadId.*", "an upload that did not come to its end is removed"),
)
"""What each request is for, by method and target; the first that fits."""


def reason(exchange: Exchange) -> str | None:
    """Why the request is made; None where nobody has said."""
    asked = f"{exchange.method} {exchange.target}"
    return next((why for pattern, why in REASONS if re.fullmatch(pattern, asked)), None)


def section(name: str, exchanges: Iterable[Exchange]) -> Section:
    """The requests of one turn in their order."""
    ordered = sorted(exchanges, key=lambda one: one.start)
    begun = ordered[0].start
    rows = [
        (
            number,
            f"{one.start - begun:.3f}",
            f"{(one.end - one.start) * 1000:.0f}",
            f"{one.method} {_shape(one.target)}",
            one.up or "",
            one.down or "",
            reason(one) or "**nobody has said why**",
        )
        for number, one in enumerate(ordered, 1)
    ]
    heads = ("", "at, s", "took, ms", "request", "bytes sent", "bytes received", "reason")
    unexplained = sum(reason(one) is None for one in ordered)
    check = Check(
        "Every S3 request of a turn has its reason", f"{len(ordered)} requests, {unexplained} without", not unexplained
    )
    title = f"The S3 requests of a turn ({name}, 1 % changed)"
    text = "From the first on. Between what RunClaude reads and what it stages, the stand-in changed the workspace."
    return Section(title, [text, table(heads, rows)], checks=[check])


def _shape(target: str) -> str:
    """A target without its ids and signature."""
    path, _, query = target.partition("?")
    if listed := re.search(r"(?:^|&)prefix=([^&]*)", query):
        return f"`{re.sub(r'[0-9].*', '…', unquote(listed[1]))}`, a listing"
    path = re.sub(r"^ledger/[^~]+~[^~]+~[^~]+~([a-z]+)~.*", r"ledger/{day}/…~\1", path.split("/", 2)[2])
    path = re.sub(r"(run|session)-[0-9a-f-]{32,36}", r"{\1}", path)
    path = re.sub(r"/\d{13}-[0-9a-f]{8}/", "/{attempt}/", re.sub(r"/\d{4}-\d\d-\d\dT\d\d/", "/{hour}/", path))
    kept = [part.split("=")[0] for part in query.split("&") if part and not part.startswith("X-Amz-")]
    return f"`{path}{'?' if kept else ''}{'&'.join(kept)}`"
