"""Kills at random: the real service on this machine, clients that insist, and what has to be true at the end.

`PYTHONPATH=. python -m tests.chaos --kills 100 --seed 1` prints each kill and the verdict; `--disk full` and
`--disk refusing` (as root, who may mount one) trouble the engine's disk meanwhile. `tests/test_chaos.py` has a short
run. The seed decides what is asked and killed, but not at which instant of whose work a kill comes.

A client asks for one turn after another, each under a key of its own, and repeats a request until it has an answer
that no repeat can change; of new sessions some are given up at the first failure, and nothing cleans up by using them
again. Meanwhile processes of the service are killed (SIGKILL): functions, their parents, the CLI, the engine, and the
service, which is then started again on the same state; and PersistSession's function just when it has committed. (A
tool's own shell is not: that fails a command, and no turn.) Nothing counts that was not there to be killed.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

from claude_workflow.cli import backend
from claude_workflow.local.model import ScriptedModel
from lambdas.strict import Json
from tests.support.commands import Serve, processes
from tests.support.played_workflow import unlinked
from tests.support.waiting import eventually

CLIENTS, SESSIONS = 4, 2
"""Clients, and the sessions that they share."""

EVERY_SECONDS = 1.5
"""Between two kills, on the average: shorter than a turn takes."""

EVERYTHING: Mapping[str, int] = {"service": 1, "engine": 1, "worker": 2, "function": 1, "run": 3, "CLI": 2, "commit": 2}
"""What is killed, and how often beside each other. A function's worker is its parent. `run` is the function
that has a CLI at work, `commit` PersistSession's as soon as a session's file is another."""

ON_A_BAD_DISK: Mapping[str, int] = {"service": 2, "engine": 4, "worker": 1, "run": 2, "CLI": 1}
"""The same where the disk is in trouble: what the engine has in its memory only is gone with the engine."""

KILLS_A_TURN = 3
"""After how many kills a turn more has to have come to its answer, so that there is something to lose."""

SETTLE_SECONDS = 120
"""How long a key may take to come to its answer when nobody kills any more: a dead holder's lease lasts 33."""

GONE_SECONDS = 30

NEW = 0.25
"""How many of the turns begin a session of their own."""

DISK_MB = 64
KEY = re.compile(r"\(chaos-[0-9a-f]{32}\)")
FINAL = ("SessionMoved",)
"""Codes of answers that no repeat changes, beside a 200: the session has gone on without this turn."""


@dataclass
class Turn:
    """One request, and what is known of it."""

    key: str
    session: str | None
    prompt: str
    asked: float = 0.0
    """When it was first asked, and when it was acknowledged, on one clock."""
    acknowledged: float = 0.0
    answer: Json = field(default_factory=dict)
    paid: int = 0
    """How often the model had been asked for it by then."""
    refused: str = ""
    """The code of an answer that no repeat changes; or that the client has given up."""

    @property
    def body(self) -> Json:
        return {"prompt": self.prompt} | ({"session_id": self.session} if self.session else {})


class Chaos:
    """The service, the model that outlives it, and the clients' record. A context manager."""

    def __init__(self, state: Path, seed: int, *, say: Callable[[str], None] = print) -> None:
        self.state, self.seed, self.say = state, seed, say
        self.turns: list[Turn] = []
        self.kills: Counter[str] = Counter()
        self._quiet = threading.Event()
        self.http = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)

    def __enter__(self) -> "Chaos":
        # The agent's user has to pass through to its scratch directory, which pytest's own would not let it.
        self.temporary = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.temporary.chmod(0o711)
        self.shelf = self.temporary / ("claude-agent" if os.geteuid() == 0 else f"claude-agent-{os.geteuid()}")
        self._model = ScriptedModel()
        self.model = self._model.__enter__()
        self.serve = self._started()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._quiet.set()
        self.serve.end()
        self._model.__exit__(*failure)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _started(self) -> Serve:
        environment = {"ANTHROPIC_API_KEY": "sk-scripted", "ANTHROPIC_BASE_URL": self.model.url}
        environment |= {"TMPDIR": str(self.temporary)}
        for attempt in range(20):
            with suppress(AssertionError):  # the engine of the one that was killed is not gone yet, or its disk is full
                return Serve.start(self.state, **environment)
            self.say(f"  start {attempt + 1} failed: {(self.state / 'stderr').read_text().strip()[-200:]}")
            time.sleep(1)
        raise AssertionError((self.state / "stderr").read_text())

    def run(self, kills: int, weights: Mapping[str, int] = EVERYTHING, calm: Callable[[], None] = lambda: None) -> None:
        """Clients at work until so many kills are done; `calm` is called then; and each turn comes to its end."""
        chance = random.Random(self.seed)
        with ThreadPoolExecutor(CLIENTS) as pool:
            sessions = [self._insist(None, chance).answer["session_id"] for _ in range(SESSIONS)]
            clients = [pool.submit(self._client, random.Random(f"{self.seed} {n}"), sessions) for n in range(CLIENTS)]
            try:
                for number in range(kills):
                    if number % KILLS_A_TURN == 0:
                        done = self._done()
                        eventually(lambda done=done: self._done() > done, SETTLE_SECONDS)  # type: ignore[misc]
                    time.sleep(chance.uniform(0, 2 * EVERY_SECONDS))
                    self._kill(number + 1, *self._chosen(chance, weights))
            finally:
                calm()
                self._quiet.set()
                if failed := [client for client in clients if client.done() and client.exception()]:
                    failed[0].result()  # nobody would ask any more
            for client in clients:
                client.result()
        self._abandon()

    def _abandon(self) -> None:
        """At the end a new session's run loses its worker, and nobody asks again: only the service can clean that."""
        key = f"chaos-{uuid.uuid4().hex}"
        turn = Turn(key, None, f"({key})\nrun sleep 1000", refused="given up")
        self.turns.append(turn)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.post, turn)
            assert eventually(lambda: _kinds(self.serve.process.pid).get("run"), SETTLE_SECONDS), asked.result()
            assert eventually(lambda: self.calls()[key], SETTLE_SECONDS)
            runs, parents = _kinds(self.serve.process.pid)["run"], _parents()
            for worker in {parents[function] for function in runs}:  # once killed, its children are init's
                os.kill(worker, signal.SIGKILL)
            assert asked.result()[0] >= 500

    def _client(self, chance: random.Random, sessions: list[str]) -> None:
        own = list(sessions)
        while not self._quiet.is_set():
            turn = self._insist(None if chance.random() < NEW else chance.choice(own), chance, may_give_up=True)
            if turn.answer and turn.session is None:
                own.append(turn.answer["session_id"])

    def _insist(self, session: str | None, chance: random.Random, *, may_give_up: bool = False) -> Turn:
        """A turn, asked for until it is done or cannot be."""
        key = f"chaos-{uuid.UUID(int=chance.getrandbits(128)).hex}"
        pause = f"run sleep {chance.uniform(0, 0.5):.2f}\n" if chance.random() < 0.5 else ""
        turn = Turn(key, session, f"({key})\n{pause}run echo {key} >> log\nsay Done.", time.monotonic())
        self.turns.append(turn)
        gives_up, until = session is None and may_give_up and chance.random() < 0.7, None
        while not turn.answer and not turn.refused:
            if self._quiet.is_set():
                until = until or time.monotonic() + SETTLE_SECONDS
                assert time.monotonic() < until, f"{key} comes to no end"
            status, answer = self.post(turn)
            if status == 200:
                turn.paid, turn.acknowledged, turn.answer = self.calls()[key], time.monotonic(), answer
            elif answer.get("code") in FINAL:
                turn.refused = answer["code"]
            else:
                assert status in (0, 409, 429) or status >= 500, (key, status, answer)
                if gives_up and status >= 500:
                    turn.refused = "given up"
                time.sleep(chance.uniform(0.2, 1))
        return turn

    def post(self, turn: Turn) -> tuple[int, Json]:
        """Status and answer; 0 where there was none."""
        headers = {"content-type": "application/json", "idempotency-key": turn.key}
        try:
            headers["x-api-key"] = self.serve.key
            sent = json.dumps(turn.body).encode()
            answer = self.http.request("POST", self.serve.url, body=sent, headers=headers)
            return answer.status, answer.json()
        except (urllib3.exceptions.HTTPError, ValueError, AssertionError, IndexError):  # it is just starting again
            return 0, {}

    def calls(self) -> Counter[str]:
        """How often the model was asked, by the key of the turn that it was asked for: the last in the conversation."""
        counted: Counter[str] = Counter()
        for request in list(self.model.requests):
            if keys := KEY.findall("\n".join(request.conversation.prompts)):
                counted[keys[-1].strip("()")] += 1
        return counted

    def _chosen(self, chance: random.Random, weights: Mapping[str, int]) -> tuple[str, list[int]]:
        """What is killed next, and its processes. What is not there just now (a CLI) is waited for."""
        kinds = list(weights)
        (kind,) = chance.choices(kinds, [weights[each] for each in kinds])
        until = time.monotonic() + SETTLE_SECONDS
        while not (found := _kinds(self.serve.process.pid).get(kind, [])):
            assert time.monotonic() < until, f"there is no {kind} to kill"
        return (kind, found) if kind == "commit" else (kind, [chance.choice(sorted(found))])

    def _kill(self, number: int, kind: str, pids: list[int]) -> None:
        if kind == "commit":  # there are several of these functions, and one of them has just committed
            before = self._versions()
            eventually(lambda: self._versions() != before, SETTLE_SECONDS)
        for pid in pids:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        self.kills[kind] += 1
        self.say(f"{number}: {kind} {pids}; {self._done()} turns done")
        if kind in ("service", "engine"):
            self.serve.process.wait(60)
            self.serve = self._started()

    def _versions(self) -> set[tuple[str, int]]:
        """The sessions' files in the engine's S3, and when each became what it is."""
        found = set()
        for path in (self.state / "s3").glob("*/*/session-*.zip"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def _done(self) -> int:
        return sum(bool(turn.answer) for turn in list(self.turns))

    def verdict(self) -> list[str]:
        """What is not as it has to be."""
        done = [turn for turn in self.turns if turn.answer]
        wrong = [f"no end: {turn.key}" for turn in self.turns if not turn.answer and not turn.refused]
        if not eventually(lambda: not self._scratch(), GONE_SECONDS):  # the sessions' next turns would clear theirs
            wrong.append(f"scratch: {self._scratch()}")
        by_session: dict[str, list[Turn]] = {}
        for turn in done:
            by_session.setdefault(turn.answer["session_id"], []).append(turn)
        with ThreadPoolExecutor(CLIENTS) as pool:
            wrong += [line for each in pool.map(self._repeated, done) for line in each]
        paid = self.calls()
        wrong += [f"paid after its 200: {t.key}: {t.paid}, {paid[t.key]}" for t in done if paid[t.key] != t.paid]
        with ThreadPoolExecutor(CLIENTS) as pool:
            wrong += [line for each in pool.map(self._history, *zip(*by_session.items(), strict=True)) for line in each]
        with backend.found(self.state, None, starts=False) as found:
            leases = found.client("s3").list_objects_v2(Bucket=found.bucket, Prefix="locks/").get("Contents", [])
        held = {f"locks/{session}.json" for session in by_session}  # one of a session that was given up expires
        wrong += [f"a lease: {each['Key']}" for each in leases if each["Key"] in held]
        self.serve.end()
        for place in (self.state, self.temporary):
            if not eventually(lambda place=place: not processes(place), GONE_SECONDS):  # type: ignore[misc]
                wrong.append(f"orphans: {processes(place)}")
        return wrong

    def _repeated(self, turn: Turn) -> list[str]:
        """What is wrong with the answer that its key gives again."""
        status, answer = self.post(turn)
        while status == 429:
            time.sleep(1)
            status, answer = self.post(turn)
        same = (status, unlinked(answer)) == (200, unlinked(turn.answer))
        return [] if same else [f"another answer: {turn.key}: {status} {answer.get('code')}"]

    def _history(self, session: str, turns: list[Turn]) -> list[str]:
        return list(self._wrong(session, turns))

    def _wrong(self, session: str, turns: list[Turn]) -> Iterator[str]:
        """What is wrong with a session: its file and its conversation hold each turn once, in order, and no other."""
        last = self._insist(session, random.Random(session))
        with backend.found(self.state, None, starts=False) as found:
            s3, key = found.client("s3"), f"{session}.zip"
            body = s3.get_object(Bucket=found.bucket, Key=key)["Body"].read()
            versions = s3.list_object_versions(Bucket=found.bucket, Prefix=key).get("Versions", [])
            heads = [s3.head_object(Bucket=found.bucket, Key=key, VersionId=each["VersionId"]) for each in versions]
        committed = Counter(head["Metadata"]["run"] for head in heads)
        if len(committed) != len(turns) + 1 or committed.total() != len(committed):
            yield f"{session}: {len(turns) + 1} turns, and the versions {dict(committed)}"
        logged = zipfile.ZipFile(io.BytesIO(body)).read("workspace/log").decode().split()
        asked = [request.conversation.prompts for request in list(self.model.requests)]
        said = next(prompts for prompts in reversed(asked) if f"({last.key})" in "\n".join(prompts))
        told = [key.strip("()") for key in KEY.findall("\n".join(said))]
        asked_for = {turn.key for turn in [*turns, last]}
        # A turn whose command was killed, or came to its deadline first, says that it changed no file.
        written = {turn.key for turn in [*turns, last] if any(file["path"] == "log" for file in turn.answer["files"])}
        for what, keys, expected in (("file", logged, written), ("conversation", told, asked_for)):
            if Counter(keys) != Counter(expected):
                lost, more = expected - set(keys), Counter(keys) - Counter(expected)
                ends = {turn.key: turn.answer["stop_reason"] for turn in turns if turn.key in lost}
                yield f"the {what} of {session}: lost {lost} ({ends}), more {dict(more)}"
            place = {key: number for number, key in enumerate(keys)}
            for one in turns:
                for other in turns:
                    if one.acknowledged < other.asked and place.get(one.key, -1) > place.get(other.key, 1 << 30):
                        yield f"the {what} of {session}: {one.key} after {other.key}"

    def _scratch(self) -> list[str]:
        return [path.name for path in self.shelf.iterdir() if not path.name.startswith("program-")]


def _listed() -> Iterator[tuple[int, int, str]]:
    """Every process: its id, its parent's, its command line."""
    listing = subprocess.run(["ps", "-axwwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        number, parent, *arguments = line.split(None, 2)
        yield int(number), int(parent), " ".join(arguments)


def _parents() -> dict[int, int]:
    return {number: parent for number, parent, _ in _listed()}


def _kinds(service: int) -> dict[str, list[int]]:
    """The service's living processes by what they are; `run` is RunClaude's function that has a CLI at work."""
    listed = list(_listed())
    parents = {number: parent for number, parent, _ in listed}
    names = {number: name for number, _, name in listed}
    kinds: dict[str, list[int]] = {"service": [service]}
    for pid in names:
        above = list(_above(pid, parents))
        if service not in above:
            continue
        for kind, mark in MARKS.items():
            if re.search(mark, names[pid]):
                kinds.setdefault(kind, []).append(pid)
                if kind == "CLI":
                    kinds.setdefault("run", []).extend(p for p in above if re.search(MARKS["function"], names[p]))
    return kinds


def _above(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


MARKS = {
    "engine": r"claude_workflow\.local\.engine",
    "worker": r"claude_workflow\.local\.worker",
    "function": r"claude_workflow\.local\.runtime",
    "CLI": r"--input-format",
    "commit": r"claude_workflow\.local\.runtime lambdas\.persist_session",
}
"""What the command line of a process says that it is."""


@contextmanager
def troubled(state: Path, trouble: str, chance: random.Random) -> Iterator[Callable[[], None]]:
    """The engine's objects are on a small disk of their own, which is now and then full, or takes no write, until what
    it yields is called."""
    disk, objects, ended = state / "disk", state / "s3", threading.Event()
    for place in (disk, objects):
        place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk], check=True)
    try:
        (disk / "s3").mkdir()
        subprocess.run(["mount", "--bind", disk / "s3", objects], check=True)
        thread = threading.Thread(target=_trouble, args=(disk, trouble, chance, ended))
        thread.start()

        def calm() -> None:
            ended.set()
            thread.join()

        try:
            yield calm
        finally:
            calm()
            subprocess.run(["umount", "--lazy", objects], check=True)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _trouble(disk: Path, trouble: str, chance: random.Random, ended: threading.Event) -> None:
    while not ended.wait(chance.uniform(2, 8)):
        if trouble == "full":
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(1 << 20)):
                    pass
            ended.wait(chance.uniform(1, 4))
            (disk / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True, check=False)  # busy: next time
            ended.wait(chance.uniform(1, 4))
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def main() -> int:
    """Exit code 0 where all is as it has to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--disk", choices=("full", "refusing"))
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends this, service and disk are cleared away
    print(f"seed {chosen.seed}")
    with tempfile.TemporaryDirectory(prefix="chaos-state-") as folder:
        state = Path(folder)
        troubles = (
            troubled(state, chosen.disk, random.Random(chosen.seed)) if chosen.disk else nullcontext(lambda: None)
        )
        with troubles as calm, Chaos(state, chosen.seed) as chaos:
            chaos.run(chosen.kills, ON_A_BAD_DISK if chosen.disk else EVERYTHING, calm)
            wrong = chaos.verdict()
    done = sum(bool(turn.answer) for turn in chaos.turns)
    print(f"{dict(chaos.kills)}; {len(chaos.turns)} turns, {done} done, {chaos.calls().total()} calls of the model")
    print("\n".join(wrong) or "Nothing was lost, nothing paid twice, and nothing is left.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
