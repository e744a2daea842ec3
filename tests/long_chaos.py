"""Kills at random while one long run goes on: its steps, its legs, and what has to be true at the end.

`PYTHONPATH=. python -m tests.long_chaos --minutes 40 --leg 60 --kills 10 --seed 1` prints each kill and the verdict;
`tests/test_long_chaos.py` has a short run. The run's steps are calls of Bash that each write a line of its own; they
take as long together as is asked for. Meanwhile the CLI, its function, the engine and the service are killed
(SIGKILL); the service is started again on the same state, and goes on with the run by itself. Whoever waits for the run
asks for it by its id, and posts it again, as a client would, only where it failed.

A step that the CLI's death befalls in its middle nobody does again but the model, which is told that its outcome is
unknown: as a model would, the stand-in makes the call again, and the call looks whether its line is there.
"""

import argparse
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from claude_workflow.cli import backend
from claude_workflow.local import deploy
from claude_workflow.local.model import UNKNOWN
from lambdas.bucket import ledger, record
from lambdas.bucket.objects import Bucket
from lambdas.strict import Json
from tests.chaos import GONE_SECONDS, Chaos, _kinds
from tests.support.commands import processes
from tests.support.short_legs import shorten
from tests.support.waiting import eventually

KINDS = ("CLI", "run", "engine", "service")
STEP_SECONDS = 5.0
LIMIT_SECONDS = 60
"""How long behind its gate a leg's limit is."""
LATE_SECONDS = 600
"""How much longer than its steps the run may take, for its kills and starts."""
MEMORY_MB = 400
"""What RunClaude's process may have at the most, however long the run: a small session's takes some 150."""


@dataclass
class Waited:
    """What came of the run, for its client."""

    answer: Json
    posts: int


class LongRun:
    """One run of so many steps."""

    def __init__(self, chaos: Chaos, steps: int, step: float) -> None:
        self.chaos = chaos
        self.key = f"chaos-{uuid.uuid4().hex}"
        self.steps = steps
        names = [f"step-{number}" for number in range(steps)]
        does = "\n".join(f"sure sleep {step:g}; grep -qsx {name} log || echo {name} >> log" for name in names)
        self.body = {"prompt": f"({self.key})\n{does}\nsay Done."}
        self.run_id = ""
        self.memory: list[int] = []

    def post(self) -> tuple[int, Json]:
        """Status and answer; 0 where there was none."""
        return self._ask("POST", "", prefer="respond-async", **{"idempotency-key": self.key})

    def _ask(self, method: str, path: str, **headers: str) -> tuple[int, Json]:
        serve = self.chaos.serve
        try:
            headers |= {"content-type": "application/json", "x-api-key": serve.key}
            body = json.dumps(self.body).encode() if method == "POST" else None
            answer = self.chaos.http.request(method, serve.url + path, body=body, headers=headers)
            return answer.status, answer.json()
        except Exception:  # whatever a service that is just starting again answers
            return 0, {}

    def wait(self, seconds: float) -> Waited:
        """Until it is done, asked for by its id; where it failed it is posted again."""
        posts, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.run_id:
                posts += 1
                status, answer = self.post()
                assert status in (0, 200, 202, 409) or status >= 500, answer
                self.run_id = answer.get("run_id") or ""
                time.sleep(1)
                continue
            status, answer = self._ask("GET", f"/runs/{self.run_id}")
            if status == 200 and "result" in answer:
                return Waited(answer, posts)
            if status >= 400 and answer.get("code") not in ("Throttled", None):
                self.chaos.say(f"  failed: {answer.get('code')}: {answer.get('error')}")
                self.run_id = ""
            self._measure()
            time.sleep(1)
        raise AssertionError(f"it comes to no end: {self._ask('GET', f'/runs/{self.run_id}')}")

    def _measure(self) -> None:
        """The memory of RunClaude's function, in MiB."""
        for pid in _kinds(self.chaos.serve.process.pid).get("run", []):
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, ValueError):
                continue
            self.memory.append(pages * resource.getpagesize() >> 20)

    def verdict(self, waited: Waited, kills: int) -> Iterator[str]:
        """What is not as it has to be."""
        answer, chaos = waited.answer, self.chaos
        if answer["stop_reason"] != "end_turn" or not answer["result"].startswith("[stand-in, no real model] Done."):
            yield f"another end: {answer['stop_reason']}, {str(answer['result'])[:200]}"
        with backend.found(chaos.state, None, starts=False) as found:
            bucket = Bucket(found.client("s3"), found.bucket)
            session = bucket.s3.get_object(Bucket=bucket.name, Key=f"{answer['session_id']}.zip")["Body"].read()
            logged = zipfile.ZipFile(io.BytesIO(session)).read("workspace/log").decode().split()
            receipts = record.receipts(bucket, self.run_id)
            locks = [one["Key"] for one in bucket.listed("locks/")]
            entries = ledger.entries(bucket, time.strftime("%Y-%m-%d", time.gmtime()), time.time())
        asked = [r for r in list(chaos.model.requests) if f"({self.key})" in "\n".join(r.conversation.prompts)]
        if logged != [f"step-{number}" for number in range(self.steps)]:
            more = [one for one, n in Counter(logged).items() if n > 1]
            yield f"{len(logged)} steps, more than once {more}: {logged}"
        again = len(asked) - (self.steps + 1)
        if not 0 <= again <= 2 * kills:
            yield f"{len(asked)} calls of the model for {self.steps} steps and an answer, with {kills} kills"
        lines = sum(len(receipt.calls) for receipt in receipts.values() if receipt)
        if not len(asked) - kills <= lines <= len(asked):
            yield f"{lines} calls on the receipts, of {len(asked)}"
        if held := [key for key in locks if answer["session_id"] in key]:
            yield f"leases: {held}"
        if reserved := [entry for entry in entries if entry.kind == ledger.RESERVED and entry.run_id == self.run_id]:
            yield f"reserved: {reserved}"
        if self.memory and max(self.memory) > MEMORY_MB:
            yield f"{max(self.memory)} MiB of memory"
        if not eventually(lambda: not chaos._scratch(), GONE_SECONDS):
            yield f"scratch: {chaos._scratch()}"
        chaos.say(
            f"{len(logged)} of {self.steps} steps, {_cut(asked[-1].raw)} of them cut; "
            f"{len(receipts)} attempts, {len(asked)} calls of the model ({again} of them again), {lines} on receipts, "
            f"{answer['num_turns']} turns and {len(answer['messages'])} messages told, {waited.posts} posts, "
            f"{max(self.memory, default=0)} MiB at the most"
        )
        chaos.serve.end()
        for place in (chaos.state, chaos.temporary):
            if not eventually(lambda place=place: not processes(place), GONE_SECONDS):  # type: ignore[misc]
                yield f"orphans: {processes(place)}"


def _cut(request: bytes) -> int:
    """How many calls the model was told of that nobody knows what came of them."""
    return request.count(UNKNOWN.encode())


def killed(state: Path, steps: int, step: float, leg: float, kills: int, seed: int) -> list[str]:
    """What is wrong after a run of so many steps, of so many seconds each, in legs of `leg` seconds."""
    deploy.synthesized(state)
    shorten(state, leg, leg + LIMIT_SECONDS)
    chance, seconds = random.Random(seed), steps * step
    with Chaos(state, seed) as chaos:
        run = LongRun(chaos, steps, step)
        began, ended = time.monotonic(), threading.Event()

        def kill() -> None:
            for number in range(kills):
                ended.wait(max(0.0, began + seconds * (number + chance.random()) / kills - time.monotonic()))
                if ended.is_set():
                    return
                kind = KINDS[number % len(KINDS)]
                if not eventually(lambda kind=kind: _kinds(chaos.serve.process.pid).get(kind), 120):  # type: ignore[misc]
                    continue
                chaos._kill(number + 1, kind, [chance.choice(sorted(_kinds(chaos.serve.process.pid)[kind]))])

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            waited = run.wait(2 * seconds + LATE_SECONDS)
        finally:
            ended.set()
            killer.join()
        chaos.say(f"{seconds:.0f} s of steps in {time.monotonic() - began:.0f} s; {dict(chaos.kills)}")
        return list(run.verdict(waited, chaos.kills.total()))


def main() -> int:
    """Exit code 0 where all is as it has to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--leg", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-state-"))
    try:
        steps = round(chosen.minutes * 60 / STEP_SECONDS)
        wrong = killed(folder, steps, STEP_SECONDS, chosen.leg, chosen.kills, chosen.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(wrong) or "Each step was done once, and nothing is left.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
