"""What rows ask with: posts under a budget, the record behind them, and what has to be removed afterwards."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar
from urllib.parse import urljoin

import urllib3
from urllib3.util import parse_url

from claude_workflow.cli import history
from claude_workflow.cli.backend import Backend
from claude_workflow.cli.check.account import Account
from claude_workflow.cli.check.row import NotAsked
from claude_workflow.cli.client import CONNECT, LONGEST
from claude_workflow.cli.endpoint import STAND_IN, Endpoint
from claude_workflow.cli.history import Event
from lambdas.bucket import listing, record, versions
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
NONE: Json = {}
HTTP = urllib3.PoolManager(maxsize=64, retries=False, timeout=urllib3.Timeout(connect=CONNECT, read=LONGEST))

Found = TypeVar("Found")


@dataclass
class Kit:
    """A service with what is behind it."""

    endpoint: Endpoint
    backend: Backend
    stack: str | None
    """None on one machine."""
    max_dollars: float
    named: str | None = None
    """The model that runs ask, where the operator names one."""
    redeploy: str | None = None
    """The operator's command."""
    answers: dict[str, Json] = field(default_factory=dict)
    """Raw answers of the rows so far, with their signatures."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    began: float = field(default_factory=time.time)
    costs: dict[str, float] = field(default_factory=dict)
    """US dollars of each run, by its id, as the answers name them."""
    uploads: list[str] = field(default_factory=list)
    """What was offered, to be removed."""
    untold: float = 0.0
    """US dollars of what was answered without a run's id, or a cost."""

    @cached_property
    def client(self) -> Callable[[str], Any]:
        """A boto3 client of a service, the same whenever it is asked for: to make one takes a moment."""
        return cache(self.backend.client)

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket behind the service."""
        return Bucket(self.client("s3"), self.backend.bucket)

    @cached_property
    def account(self) -> Account:
        """What CloudFormation says; rows that need it are not asked on one machine."""
        assert self.stack
        return Account(self.client, self.stack)

    @cached_property
    def model(self) -> str | None:
        """The one that runs ask: what was named, or a small one; None: the deployment's usual one, on Bedrock."""
        bedrock = self.stack and self.account.environment("RunClaude")["MODEL_PROVIDER"] == "bedrock"
        return self.named or (None if bedrock else SMALL)

    @property
    def is_free(self) -> bool:
        """Whether a stand-in answers, and what runs cost nobody pays."""
        return self.endpoint.answering == STAND_IN

    @property
    def spent(self) -> float:
        """US dollars, as the answers name them."""
        return sum(self.costs.values()) + self.untold

    @property
    def seconds_left(self) -> float:
        """Until the kit's time is over."""
        return self.began + SECONDS - time.time()

    # Asking

    def run(self, prompt: str, key: str | None = None, prefer: str = "", **fields: Any) -> Json:
        """The answer to a small run, with its header `Prefer`. Raises `NotAsked` where it could cost more than is
        left."""
        if self.spent + RUN_DOLLARS > self.max_dollars:
            spent = f"${self.spent:.2f} of ${self.max_dollars:.2f}"
            raise NotAsked(f"{spent} are spent: a run more could pass --max-dollars.")
        model = {"model": self.model} if self.model else {}
        limits = {"allowed_tools": TOOLS, "max_turns": 4, "max_budget_usd": RUN_DOLLARS}
        body = model | limits | {"prompt": prompt} | fields
        headers = {"idempotency-key": key or str(uuid.uuid4()), "prefer": prefer}
        return self.send(json.dumps(body, ensure_ascii=False), headers=headers)

    def send(self, body: str, method: str = "POST", path: str = "", headers: Json = NONE, waits: bool = True) -> Json:
        """The answer to one request, flat: its status, headers of `HEADERS`, and the fields of its JSON, where a run's
        own status is its `state`.

        It has `headers` instead of the usual ones; one that is empty is left out. Where it `waits`, a rate that is
        spent is waited for; a day's quota is not.
        """
        usual = {"accept": "application/json", "content-type": "application/json", "x-api-key": self.endpoint.key}
        sent = {name: value for name, value in (usual | headers).items() if value}
        url = urljoin(self.endpoint.url, path)
        while True:
            raw = self._answered(HTTP.request(method, url, body=body.encode() or None, headers=sent))
            wait = int(raw.get("retry_after") or 2)
            if not waits or raw.get("code") != "Throttled" or wait > LONGEST_WAIT or self.seconds_left < wait:
                return raw
            time.sleep(wait)

    def _answered(self, response: urllib3.BaseHTTPResponse) -> Json:
        """Notes what it cost, and whose record has to be removed. What nobody can tell is taken for all it may be."""
        raw = {name.replace("-", "_"): response.headers[name] for name in HEADERS if name in response.headers}
        try:
            answer = json.loads(response.data or b"{}")
        except ValueError:
            answer = {"body": response.data[:1000].decode(errors="replace")}
        cost = answer.get("cost_usd", 0.0)
        if run_id := answer.get("run_id"):
            self.costs[run_id] = max(self.costs.get(run_id, 0.0), cost or 0.0)
        if cost is None:
            self.untold += RUN_DOLLARS
        told = {"state" if name == "status" else name: value for name, value in answer.items() if name not in LONG}
        return raw | told | _printed(answer) | {"status": response.status}

    def fetch(self, url: str, method: str = "GET", body: bytes = b"", headers: Json = NONE) -> Json:
        """The answer to a presigned request: its status, what S3 calls its error, and how its body begins."""
        response = HTTP.request(method, url, body=body if method == "PUT" else None, headers=headers)
        code = response.data.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")
        begins = response.data[:2].decode(errors="replace")
        return {"status": response.status, "error": code or None, "begins": begins, "host": parse_url(url).host}

    # Looking

    @property
    def first(self) -> Json:
        """What the first turn was answered, for rows that need it."""
        return self.answered("first-turn")

    def answered(self, row: str) -> Json:
        """What another row was answered."""
        return self.answers[row]

    def record(self, run_id: str) -> Json:
        """What the bucket has of a run's request. Raises `LookupError` where there is nothing."""
        found = record.request(self.bucket, run_id)
        if found is None:
            raise LookupError(f"The bucket has no record of {run_id}.")
        return found

    @cached_property
    def events(self) -> list[Event]:
        """What the first turn's execution went through, with the signatures in it; waits until its log is whole."""
        execution = self.record(self.first["run_id"])["execution"]
        return self.late(lambda: _ended(history.signed(self.backend, execution, self.began)))

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
        return history.each_text(raw, self._cleaned)

    def _cleaned(self, text: str) -> str:
        text = history.unsigned(text)
        account = self.backend.state_machine_arn.split(":")[4]
        for secret, stands in ((self.endpoint.key, "<the API's key>"), (account, "0" * 12)):
            text = text.replace(secret, stands) if secret else text
        return text

    # Afterwards

    @property
    def scratch(self) -> str:
        """Where rows write into the bucket: among what expires, should the kit be killed."""
        return f"runs/check-{self.id}/"

    def remove(self) -> int:
        """Removes what the kit's runs left in the bucket, every version of it; how many objects that were.

        Raises `StorageUnavailable`, also where S3 leaves something.
        """
        asked = [found for run_id in self.costs if (found := record.request(self.bucket, run_id))]
        prefixes = [self.scratch, *(f"runs/{run_id}/" for run_id in self.costs)]
        prefixes += [f"uploads/{upload}/" for upload in self.uploads]
        for session_id in {one["session_id"] for one in asked}:
            prefixes += [f"{session_id}.zip", f"locks/{session_id}.json"]
            prefixes += [f"{kind}/{session_id}/" for kind in ("index/sessions", "index/refused", "ledger/sessions")]
        gone = [version for prefix in prefixes for version in versions.below(self.bucket, prefix)]
        for hour in {listing.hour_of(one["requested_at"]) for one in asked}:
            everybodys = versions.below(self.bucket, f"index/hours/{hour}/")
            gone += [version for version in everybodys if version.key.rpartition("/")[2] in self.costs]
        for day in {listing.hour_of(one["requested_at"])[:10] for one in asked}:
            everybodys = versions.below(self.bucket, f"ledger/{day}/")
            gone += [version for version in everybodys if version.key.split("~")[1] in self.costs]
        versions.delete(self.bucket, gone)
        return len(gone)


def _ended(events: list[Event]) -> list[Event]:
    """The events, once the last one of the execution is among them."""
    return events if len(events) > 1 and events[-1].type.startswith("Execution") else []


def _printed(answer: Json) -> Json:
    """What the tools of a run printed, since a model may word it anew. One that goes on tells their number only."""
    messages = [] if "status" in answer else answer.get("messages", [])
    contents = [message["message"]["content"] for message in messages if message["type"] == "user"]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    results = [block["content"] for block in blocks if block.get("type") == "tool_result"]
    texts = [one if isinstance(one, str) else "".join(part.get("text", "") for part in one) for one in results]
    return {"tools": "\n".join(texts)} if texts else {}
