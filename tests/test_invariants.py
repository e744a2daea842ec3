"""What holds whatever happens: random interleavings of restore, stage, commit, crash and expiry over a real S3."""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from claude_workflow.cli.books import opened
from claude_workflow.cli.verify import faults
from lambdas.bucket import record
from lambdas.errors import ModelOverloaded, Refused, RunTimedOut, WorkflowError
from lambdas.strict import Json
from tests.support.buckets import a_bucket
from tests.support.played_workflow import LEASE_SECONDS, Execution, Fuse, Killed, Workflow, unlinked

SESSIONS = 2
KEYS = ("a", "b", "c")
"""Of three runs, `a` and `c` want the same session."""

FUSES = st.builds(Fuse, at=st.just(0) | st.integers(1, 9), after=st.booleans())
"""Every second step goes well, or is killed after its last write."""


class Interleavings(RuleBasedStateMachine):
    """Executions of three runs in two sessions, at most one step of one of them at a time."""

    s3: Any = None

    @initialize()
    def begin(self) -> None:
        self.workflow = Workflow(a_bucket(self.s3))
        self.sessions = [self.workflow.new_session(f"session-{n}") for n in range(SESSIONS)]
        self.live: list[Execution] = []
        self.lost: Counter[str] = Counter()
        self.answers: dict[str, Json] = {}
        self.seen: dict[str, list[str]] = {session: [] for session in self.sessions}

    @rule(key=st.sampled_from(KEYS), fuse=FUSES)
    def a_request_comes(self, key: str, fuse: Fuse) -> None:
        self._restore(Execution(str(uuid.uuid4()), key, self._body(key)), fuse)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), fuse=FUSES)
    def restore_is_retried(self, data: st.DataObject, fuse: Fuse) -> None:
        self._restore(self._one(data), fuse)

    def _restore(self, execution: Execution, fuse: Fuse) -> None:
        before, staged = execution.restored, self.workflow.staged(execution.run)
        old = record.pinned(self.workflow.store, execution.run)
        with self._acting(execution):
            restored = self.workflow.restore(execution, fuse)
            if restored.response is not None:
                self._answered(execution, restored.response)
                execution.restored = before
            elif execution not in self.live:
                self.live.append(execution)
        if old and (pin := record.pinned(self.workflow.store, execution.run)):
            assert pin == old or (pin.number > old.number and not staged)

    @precondition(lambda self: any(e.restored and e.restored.task for e in self.live))
    @rule(data=st.data(), fuse=FUSES)
    def claude_runs(self, data: st.DataObject, fuse: Fuse) -> None:
        execution = self._one(data, lambda e: e.restored and e.restored.task)
        asked = self.workflow.conversations[execution.run]
        assert execution.restored
        assert execution.restored.task
        with self._acting(execution):
            execution.returned = self.workflow.run(execution.restored.task, fuse)
        if self.workflow.staged(execution.run) is None:
            self.lost[execution.run] += self.workflow.conversations[execution.run] - asked

    @precondition(lambda self: self.live)
    @rule(data=st.data(), fuse=FUSES)
    def it_is_persisted(self, data: st.DataObject, fuse: Fuse) -> None:
        execution = self._one(data)
        assert execution.restored
        with self._acting(execution):
            self._answered(execution, self.workflow.persist(execution.restored.claim, execution.returned, fuse))
            self.live.remove(execution)

    @precondition(lambda self: any(e.restored and e.restored.task for e in self.live))
    @rule(data=st.data(), fuse=FUSES)
    def another_turn_comes_between(self, data: st.DataObject, fuse: Fuse) -> None:
        """It has worked for longer than its lease lasts, and comes to commit what is no longer the next version."""
        execution = self._one(data, lambda e: e.restored and e.restored.task)
        assert execution.restored
        assert execution.restored.task
        with self._acting(execution):
            execution.returned = self.workflow.run(execution.restored.task)
        for key in KEYS:
            if self._session(key) == execution.restored.claim.session_id and key != execution.key:
                self.a_whole_execution_goes_by(key)
        if data.draw(st.booleans(), label="asked again before"):
            self._restore(Execution(str(uuid.uuid4()), execution.key, execution.body), Fuse())
        if execution in self.live:
            with self._acting(execution):
                self._answered(execution, self.workflow.persist(execution.restored.claim, execution.returned, fuse))
                self.live.remove(execution)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), fuse=FUSES)
    def it_fails(self, data: st.DataObject, fuse: Fuse) -> None:
        execution = self._one(data)
        self.live.remove(execution)
        with self._acting(execution):
            self.workflow.record(execution, RunTimedOut(), fuse)

    @rule(key=st.sampled_from(KEYS))
    def a_whole_execution_goes_by(self, key: str) -> None:
        """While others stand still: as long as it takes for their leases to expire.

        It succeeds, unless what it has staged is of a version that another has gone on from.
        """
        self.leases_expire()
        execution = Execution(str(uuid.uuid4()), key, self._body(key))
        asked, staged = self.workflow.conversations[execution.run], self.workflow.staged(execution.run)
        answer = self.workflow.execute(execution)
        assert staged is None or self.workflow.conversations[execution.run] == asked
        assert answer["success"] or (staged and answer["code"] == "SessionMoved")
        if answer["success"]:
            self._answered(execution, answer)

    @rule(key=st.sampled_from(KEYS))
    def the_provider_refuses(self, key: str) -> None:
        """A whole execution that may come again: the model was not asked."""
        self.leases_expire()
        execution = Execution(str(uuid.uuid4()), key, self._body(key))
        answer = self.workflow.execute(execution, fails=ModelOverloaded())
        if answer["success"]:
            self._answered(execution, answer)

    @rule()
    def leases_expire(self) -> None:
        self.workflow.now += LEASE_SECONDS + 1

    def teardown(self) -> None:
        """Asked again, a run whose turn is in its session answers; no lease stays; and the books balance."""
        for key in KEYS if hasattr(self, "workflow") else ():
            self.workflow.now += LEASE_SECONDS + 1
            execution = Execution(str(uuid.uuid4()), key, self._body(key))
            committed = execution.run in self.workflow.history(self._session(key))
            answer = self.workflow.execute(execution)
            assert answer["success"] or not committed
            lease = self.workflow.lease(self._session(key))
            assert lease is None or lease.expires_at <= self.workflow.now
        if hasattr(self, "workflow"):
            assert faults(opened(self.workflow.store, 0.0, self.workflow.now)) == []

    def _session(self, key: str) -> str:
        return self.sessions[KEYS.index(key) % SESSIONS]

    def _body(self, key: str) -> Json:
        return {"prompt": key, "session_id": self._session(key)}

    def _one(self, data: st.DataObject, which: Any = bool) -> Execution:
        return data.draw(st.sampled_from([e for e in self.live if which(e)]))

    @contextmanager
    def _acting(self, execution: Execution) -> Iterator[None]:
        """One step of an execution, which may be refused, fail or be killed, and touches no lease of another's, unless
        that is at work on what is answered already."""
        before = [self.workflow.lease(session) for session in self.sessions]
        try:
            yield
        except Refused:
            pass
        except WorkflowError:
            if execution in self.live:
                self.live.remove(execution)
            self.workflow.record(execution, RunTimedOut())
        except Killed:
            if execution in self.live:
                self.live.remove(execution)
        for session, held in zip(self.sessions, before, strict=True):
            if not held or held.execution == execution.name or held.run_id in self.answers:
                continue
            if held.expires_at > self.workflow.now:
                assert self.workflow.lease(session) == held

    def _answered(self, execution: Execution, answer: Json) -> None:
        """A done run's answer never changes, and its turn is in the session."""
        known = self.answers.setdefault(execution.run, unlinked(answer))
        assert unlinked(answer) == known
        assert execution.run in self.workflow.history(str(answer["session_id"]))

    @invariant()
    def history_is_linear(self) -> None:
        """Each version is the one before and one run more, and no run is there twice."""
        for session in self.sessions:
            now, before = self.workflow.history(session), self.seen[session]
            assert now[: len(before)] == before
            assert len(now) <= max(1, len(before)) + 1
            assert len(set(now)) == len(now)
            self.seen[session] = now

    @invariant()
    def money_is_spent_once(self) -> None:
        """At most one conversation of a run, and one more for each that was lost before it was staged."""
        for key, asked in (getattr(self, "workflow", None) and self.workflow.conversations.items()) or ():
            assert asked <= 1 + self.lost[key]


def test_the_invariants_hold_in_every_interleaving(s3: Any) -> None:
    """History is linear, answers stay, leases are respected, and nothing is paid for twice."""
    Interleavings.s3 = s3
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=8,
            stateful_step_count=24,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
