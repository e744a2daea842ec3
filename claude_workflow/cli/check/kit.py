"""What rows ask with: posts under a budget, the record behind them, and what has to be removed afterwards."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

import urllib3
from urllib3.util import parse_url

from claude_workflow.cli import history
from claude_workflow.cli.ask import CONNECT, LONGEST
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.check.account import Account
from claude_workflow.cli.check.row import NotAsked
from claude_workflow.cli.endpoint import Endpoint
from claude_workflow.cli.history import Event
from lambdas.bucket import record, versions
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json

SECONDS = 600
"""In which all has to be asked."""

RUN_DOLLARS = 0.05
"""The budget of one run: a few calls of a small model."""

SMALL = "haiku"
"""Claude Code's name for the smallest model."""

TOOLS = ["Bash"]
"""Those of every run: few, since each is described to the model, and the same, so that the prompt is cached."""

PATIENCE = 90
"""Seconds to wait for what AWS writes down late: logs and traces."""

LONGEST_WAIT = 10
"""Seconds to wait for a rate."""

HEADERS = ("retry-after", "allow", "content-type", "access-control-allow-origin", "x-amz-apigw-id")
"""Of an answer, those that are kept, as `retry_after` and so on."""

LONG = ("messages", "messages_url", "usage", "files", "structured_output")
"""Of an answer, what no row looks at."""


Found = TypeVar("Found")


class Kit:
    """A service with what is behind it. `stack` is None on one machine."""

    def __init__(
        self,
        endpoint: Endpoint,
        backend: Backend,
        stack: str | None,
        *,
        max_dollars: float,
        model: str | None = None,
        redeploy: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.backend = backend
        self.bucket = backend.bucket
        self.machine = backend.state_machine_arn
        self.stack = stack
        self.redeploy = redeploy
        self.answers: dict[str, Json] = {}
        """Raw answers of the rows so far, with their signatures."""
        self.id = uuid.uuid4().hex[:12]
        self.began = time.time()
        self._max_dollars = max_dollars
        self._named = model
        self._clients: dict[str, Any] = {}
        self._events: dict[str, list[Event]] = {}
        self._costs: dict[str, float] = {}
        self._untold = 0.0
        self._sessions: set[str] = set()
        self._http = urllib3.PoolManager(
            maxsize=64, retries=False, timeout=urllib3.Timeout(connect=CONNECT, read=LONGEST)
        )

    @cached_property
    def model(self) -> str | None:
        """The one that runs ask: what was named, or a small one; None: the deployment's usual one, on Bedrock."""
        bedrock = self.stack and self.account.environment("RunClaude")["MODEL_PROVIDER"] == "bedrock"
        return self._named or (None if bedrock else SMALL)

    def client(self, service: str) -> Any:
        """A boto3 client of a service, the same whenever it is asked for: to make one takes a moment."""
        if service not in self._clients:
            self._clients[service] = self.backend.client(service)
        return self._clients[service]

    @cached_property
    def account(self) -> Account:
        """The stack as it was deployed."""
        assert self.stack  # rows that need it are not asked on one machine
        return Account(self.client, self.stack)

    @cached_property
    def s3(self) -> Any:
        """S3's client."""
        return self.client("s3")

    @property
    def spent(self) -> float:
        """US dollars, as the answers name them."""
        return sum(self._costs.values()) + self._untold

    @property
    def seconds_left(self) -> float:
        """Of those that a check may take."""
        return self.began + SECONDS - time.time()

    # Asking

    def run(self, prompt: str, key: str | None = None, **fields: Any) -> Json:
        """The answer to a small run. A rate that is spent is waited for, a day's quota is not.

        Raises `NotAsked` where it could cost more than is left.
        """
        if self.spent + RUN_DOLLARS > self._max_dollars:
            spent = f"${self.spent:.2f} of ${self._max_dollars:.2f}"
            raise NotAsked(f"{spent} are spent: a run more could pass --max-dollars.")
        body = {"prompt": prompt, "allowed_tools": TOOLS, "max_turns": 4, "max_budget_usd": RUN_DOLLARS} | fields
        if self.model:
            body = {"model": self.model} | body
        sent, headers = json.dumps(body, ensure_ascii=False).encode(), {"idempotency-key": key or str(uuid.uuid4())}
        while True:
            raw = self.send(sent, headers=headers)
            wait = int(raw.get("retry_after") or 2)
            if raw.get("code") != "Throttled" or wait > LONGEST_WAIT or self.seconds_left < wait:
                return raw
            time.sleep(wait)

    def send(
        self,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "",
        headers: dict[str, str] | None = None,
        content_type: str | None = "application/json",
        with_key: bool = True,
    ) -> Json:
        """The answer to one request, flat: its status, headers of `HEADERS`, and the fields of its JSON."""
        sent = {"accept": "application/json"} | (headers or {})
        if content_type:
            sent["content-type"] = content_type
        if with_key and self.endpoint.key:
            sent["x-api-key"] = self.endpoint.key
        url = self.endpoint.url if not path else f"{self.endpoint.url.rpartition('/')[0]}{path}"
        response = self._http.request(method, url, body=body or None, headers=sent)
        raw: Json = {"status": response.status}
        raw |= {name.replace("-", "_"): response.headers[name] for name in HEADERS if name in response.headers}
        try:
            answer = json.loads(response.data or b"{}")
        except ValueError:
            answer = {"body": response.data[:1000].decode(errors="replace")}
        self._note(answer)
        return raw | {name: value for name, value in answer.items() if name not in LONG} | _printed(answer)

    def fetch(self, url: str, method: str = "GET") -> Json:
        """The answer to a presigned request: its status, what S3 calls its error, and how its body begins."""
        response = self._http.request(method, url, body=b"" if method == "PUT" else None)
        code = response.data.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")
        begins = response.data[:2].decode(errors="replace")
        return {"status": response.status, "error": code or None, "begins": begins, "host": parse_url(url).host}

    def _note(self, answer: Json) -> None:
        """What it cost, and whose record has to be removed. What nobody can tell is taken for all that it may be."""
        if run_id := answer.get("run_id"):
            self._costs[run_id] = max(self._costs.get(run_id, 0.0), answer.get("cost_usd") or 0.0)
        if answer.get("cost_usd", 0.0) is None:
            self._untold += RUN_DOLLARS

    # Looking

    def record(self, run_id: str) -> Json:
        """What the bucket has of a run's request. Raises `LookupError` where there is nothing."""
        found = record.request(Bucket(self.s3, self.bucket), run_id)
        if found is None:
            raise LookupError(f"The bucket has no record of {run_id}.")
        return found

    def events(self, run_id: str) -> list[Event]:
        """What the run's execution went through, with the signatures in it; waits until its log is whole."""
        if run_id not in self._events:
            execution = self.record(run_id)["execution"]
            self._events[run_id] = self.late(lambda: _ended(history.signed(self.backend, execution, self.began)))
        return self._events[run_id]

    def late(self, look: Callable[[], Found]) -> Found:
        """What `look` finds, as soon as it finds something; AWS writes much of it down late.

        Raises `TimeoutError` where it finds nothing.
        """
        deadline = time.monotonic() + (PATIENCE if self.stack else 1)
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nothing came of it within {PATIENCE} seconds.")
            time.sleep(2 if self.stack else 0.2)
        return found

    def clean(self, raw: Any) -> Any:
        """The same data without what opens anything: signatures, the API's key, the account's number."""
        if isinstance(raw, str):
            account = self.machine.split(":")[4] if self.machine else ""
            text: str = history.unsigned(raw)
            for secret, stands in ((self.endpoint.key, "<the API's key>"), (account, "0" * 12)):
                text = text.replace(secret, stands) if secret else text
            return text
        if isinstance(raw, list | tuple):
            return [self.clean(one) for one in raw]
        if isinstance(raw, dict):
            return {name: self.clean(one) for name, one in raw.items()}
        return raw

    # Afterwards

    def remove(self) -> int:
        """Removes what the kit's runs left in the bucket, every version of it; how many objects that were.

        Raises botocore's errors, and `Unusable` where S3 leaves something.
        """
        bucket = Bucket(self.s3, self.bucket)
        for run_id in self._costs:
            if begun := record.request(bucket, run_id):  # of a run that failed, nobody else names the session
                self._sessions.add(begun["session_id"])
        gone = [version for prefix in self._left() for version in versions.below(bucket, prefix)]
        hours = {f"index/hours/{hour:%Y-%m-%dT%H}/" for hour in self._hours()}
        listed = (version for hour in sorted(hours) for version in versions.below(bucket, hour))
        gone += [version for version in listed if version.key.rpartition("/")[2] in self._costs]
        versions.delete(bucket, gone)
        return len(gone)

    def _left(self) -> Iterator[str]:
        yield self.scratch
        yield from (f"runs/{run_id}/" for run_id in sorted(self._costs))
        for session_id in sorted(self._sessions):
            yield from (f"{session_id}.zip", f"locks/{session_id}.json", f"index/sessions/{session_id}/")

    def _hours(self) -> Iterator[datetime]:
        hour = datetime.fromtimestamp(self.began, UTC)
        while hour <= datetime.now(UTC) + timedelta(hours=1):
            yield hour
            hour += timedelta(hours=1)

    @property
    def scratch(self) -> str:
        """Where rows write into the bucket: among what expires, should the kit be killed."""
        return f"runs/check-{self.id}/"


def _ended(events: list[Event]) -> list[Event]:
    """The events, once the last one of the execution is among them."""
    return events if len(events) > 1 and events[-1].type.startswith("Execution") else []


def _printed(answer: Json) -> Json:
    """What the tools of a run printed, since a model may word it anew."""
    contents = [message["message"]["content"] for message in answer.get("messages", []) if message["type"] == "user"]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    results = [block["content"] for block in blocks if block.get("type") == "tool_result"]
    texts = [one if isinstance(one, str) else "".join(part.get("text", "") for part in one) for one in results]
    return {"tools": "\n".join(texts)} if texts else {}
