"""Following a run to its end, however long that takes and however often the connection breaks."""

import json
import time
from collections.abc import Callable, Iterator, Sequence

import urllib3

from claude_workflow.cli import client, events
from claude_workflow.cli.client import Document, Unanswered, Unreachable
from claude_workflow.cli.endpoint import Endpoint, Unusable
from claude_workflow.cli.events import Event

SILENCE = 60
"""Seconds without a byte after which a stream is dead: a service sends a comment every 15."""
PAUSES = (0.5, 1, 2, 4, 8, 15, 30)
"""Seconds before a stream is opened again, since the last byte: a minute in all, in which a service can start anew."""
FIRST_LOOK, LONGEST_BETWEEN_LOOKS = 10, 300
"""Seconds after which the service is asked what the run has cost, at first and at last; in between, whenever the run
has lasted as long again. Each look counts against the quota of a caller's requests: an hour takes some 16."""

Looker = Callable[[Document], None]
"""Takes what is found."""


class Lost(Exception):
    """Nobody is at work on the run any more, and it has neither an answer nor a failure."""


class Run:
    """A run of the caller's, as its service tells it."""

    def __init__(self, endpoint: Endpoint, run_id: str, pauses: Sequence[float] = PAUSES) -> None:
        self.endpoint = endpoint
        self.run_id = run_id
        self._pauses = pauses
        self._url = client.of_run(endpoint, run_id)
        self._seen: str | None = None
        """The number of the last message that was shown: a stream goes on behind it."""

    def status(self) -> Document:
        """Its answer or failure, or how it stands with it. Raises `Unusable`, also where there is no such run."""
        return self._known(client.send(self.endpoint, "GET", self._url))

    def cancel(self) -> Document:
        """Asks for its end, and returns how it stands with it. Raises `Unusable`."""
        return self._known(client.send(self.endpoint, "DELETE", self._url))

    def end(self, show: Looker, look: Looker | None = None) -> Document:
        """Its answer or its failure. Each message is shown once, and, where somebody wants to `look`, from time to time
        how it stands with the run.

        It can be called again where it was interrupted, and goes on from there. Raises `Lost`, and `Unusable` where the
        service stays away for all of the pauses, or is none.
        """
        pauses = iter(self._pauses)
        glances = self._glances(look) if look else None
        while True:
            broke: Unusable = Unanswered(f"{self.endpoint.url} ends the run's messages before the run has ended.")
            try:
                for event in self._events():
                    pauses = iter(self._pauses)
                    if event and (ended := self._take(event, show)):
                        return ended
                    if glances:
                        next(glances)
            except (Unreachable, Unanswered) as error:
                broke = error
            pause = next(pauses, None)
            if pause is None:
                raise broke
            time.sleep(pause)

    def _take(self, event: Event, show: Looker) -> Document | None:
        """Shows a message; returns the answer. Raises `Lost`."""
        if event.name == "lost":
            raise Lost
        if event.name not in ("message", "answer"):
            return None  # of a later service
        try:
            found = json.loads(event.data)
        except (ValueError, RecursionError):
            found = None
        if event.name == "answer":
            if client.is_answer(found):
                return dict(found)
            raise Unusable(f"{self.endpoint.url} ended the run with what is no answer of this API.")
        if isinstance(found, dict):
            show(found)
        self._seen = event.id or self._seen
        return None

    def _events(self) -> Iterator[Event | None]:
        """What one stream has, from the last message on. Raises `Unreachable`, `Unanswered` or `Unusable`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._seen} if self._seen else {})
        opened = client.send(
            self.endpoint, "GET", f"{self._url}/events", headers=headers, silence=SILENCE, streamed=True
        )
        try:
            kind = opened.headers.get("content-type", "").partition(";")[0]
            if opened.status == 200 and kind == "text/event-stream":
                yield from events.read(iter(lambda: opened.read1(65536), b""))
            elif opened.status == 429 or opened.status >= 500:
                raise Unanswered(f"{self.endpoint.url} answers {opened.status} when it is asked for a run's messages.")
            else:
                self._known(opened)
                raise Unusable(f"{self.endpoint.url} answered {opened.status}, but not with a run's messages.")
        except urllib3.exceptions.HTTPError as error:
            raise client.unanswered(self.endpoint, error) from error
        finally:
            opened.close()

    def _glances(self, look: Looker) -> Iterator[None]:
        """Looks where it is time for it, each time it is asked for the next."""
        began = time.monotonic()
        due = began + FIRST_LOOK
        while True:
            yield
            if (now := time.monotonic()) >= due:
                due = now + min(now - began, LONGEST_BETWEEN_LOOKS)
                try:
                    look(self.status())
                except (Unreachable, Unanswered):
                    continue  # it is no more than a figure on the screen

    def _known(self, response: urllib3.BaseHTTPResponse) -> Document:
        """What is said of the run. Raises `Unusable` where there is none, and where that could not be asked."""
        found = client.document(self.endpoint, response)
        code = found.get("code")
        if code == "RunNotFound":
            raise Unusable(f"There is no run {self.run_id} of yours.")
        if code and found.get("run_id") != self.run_id:  # a failure of the run's has its id
            raise Unusable(f"{code}: {found['error']}")
        return found
