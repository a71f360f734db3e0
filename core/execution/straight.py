"""A migration that one session carries out from begin to end without giving the graph's lock back in between.

A pack runs its graphs so. Under the lock nobody else changes what a hop's message reads and decides on, but for an
operator's wish. So its state is known beforehand: it is decided on here as ever, and Postgres begins, or opens the
next hop, only where it finds it so. Each hop commits by itself, with its audit row. What comes otherwise is left to
`run_hop`, which looks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any
from uuid import UUID, uuid4

from graph_migrator.core.decision_inputs import BeginState, HopState
from graph_migrator.core.decisions import Begin, Later, Limits, Run, decide_begin, decide_hop
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.fail import ConnectionLost
from graph_migrator.core.execution.limits import limits_of_settings
from graph_migrator.core.execution.lost_connection import resolve_lost_commit
from graph_migrator.core.execution.model import (
    Attempt,
    Caller,
    Dispatch,
    Done,
    Following,
    HopOutcome,
    Worker,
)
from graph_migrator.core.execution.run_hop import apply_or_record, conclude
from graph_migrator.core.execution.waits import backoff
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.planning import Plan, Step
from graph_migrator.core.reports import HopReport, MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.locks import GraphLock
from graph_migrator.core.store.protocol import (
    BeginAndOpen,
    Call,
    FinishAndOpen,
    OpenedFirst,
    ResumeExecutor,
)
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor, Executors


@dataclass(frozen=True)
class FreeGraph:
    """A graph that nobody owned when it was read, without its lock."""

    id: UUID
    slug: str
    version: int


@dataclass(frozen=True)
class Straight:
    """How far a migration came that was begun here.

    Attributes:
        begun: The migration.
        applied: How many of its hops were committed.
        outcome: How the hop after those ended; None where its message is to be looked at as any other. `Later` says
            that the rest of the migration, as Postgres has it, is to be sent as a chain.
    """

    begun: Dispatch
    applied: int
    outcome: HopOutcome | None


BeginCall = Callable[[BeginAndOpen], Call[OpenedFirst | None]]


def run_straight(
    executors: Executors,
    kind: GraphType,
    graph: FreeGraph,
    plan: Plan,
    *,
    caller: Caller,
    worker: Worker,
    limits: Limits | None = None,
    begin: BeginCall = lambda call: call,
) -> Straight | None:
    """Begin the migration of a free graph and run its hops, up to the first one that is batched.

    Args:
        executors: Lends the session; it comes back without any lock.
        kind: The graph's type.
        graph: The graph as it was read.
        plan: From its version to the target, made from this process's code.
        caller: Who asks.
        worker: Who executes, for the audit rows.
        limits: How often a hop may go wrong; from the settings by default.
        begin: Makes the call that begins it from the plain one, where that rests on more facts.

    Returns:
        How far it came; None where nothing was begun: the graph is not as it was read, or its lock is not free.

    Raises:
        Exception: Postgres is out of reach, and nobody knows whether it was begun.
    """
    limits = limits or limits_of_settings()
    run = StraightRun(kind, graph, plan, caller, worker, limits)
    if not run.may_begin():
        return None
    try:
        with executors.borrow() as executor:
            attempt = run.begin(executor, begin)
            if attempt is None:
                return None
            with GraphLock(executor, graph.id) as lock:
                return run.to_the_end(executor, attempt, lock)
    except ConnectionLost as lost:
        # If Postgres itself went down, hops that did not wait for the disk may be gone: the rest is read from there.
        resolved = resolve_lost_commit(executors, lost.attempt, limits)
        return run.came_to(resolved or Later(0, "the connection to Postgres was lost"))
    except Exception as error:
        if run.applied is None or classify(error) is Failure.PERMANENT:
            raise
        return run.came_to(Later(backoff(2), f"Postgres: {safe_message(error)}"))


@dataclass
class StraightRun:
    """One migration in this session."""

    kind: GraphType
    graph: FreeGraph
    plan: Plan
    caller: Caller
    worker: Worker
    limits: Limits
    applied: int | None = None
    """Hops that were committed; None where it was not begun."""

    def __post_init__(self) -> None:
        self.began_at = datetime.now(UTC)
        self.hops = list(takewhile(lambda step: not step.batched, self.plan.steps))
        self.begun = Dispatch(
            uuid4(), self.graph.slug, self.plan.graph_type, 1, self.caller.task_id, self.plan.steps
        )
        self.messages = self.begun.messages()
        self.reports: list[HopReport] = []

    # ── deciding ────────────────────────────────────────────────────────────────────────────────────

    def may_begin(self) -> bool:
        """Whether a graph as it was read is begun, and its first hop run."""
        decided = decide_begin(self._free(), self.plan.to_version)
        return (
            bool(self.hops)
            and decided == Begin()
            and self._may_run(0, self._hop_state(0, self.graph.slug, {}))
        )

    def _may_run(self, number: int, state: HopState) -> bool:
        step = self.plan.steps[number]
        hop = self.kind.directed(step.from_version, step.to_version)
        return decide_hop(state, self.messages[number], hop.fingerprint, self.limits) == Run(None)

    def _free(self) -> BeginState:
        """What begin_and_open requires, as `lock_and_load_graph` would read it."""
        return BeginState(
            graph_id=self.graph.id,
            slug=self.graph.slug,
            graph_type=self.plan.graph_type,
            version=self.graph.version,
            locked=True,
        )

    def _hop_state(self, number: int, slug: str, config: dict[str, Any]) -> HopState:
        """What is so for the hop under the lock that was held since the begin, as `lock_and_load_hop` would read it."""
        step = self.plan.steps[number]
        return HopState(
            graph_id=self.graph.id,
            slug=slug,
            graph_type=self.plan.graph_type,
            config=config,
            version=step.from_version,
            claim=self.begun.migration_id,
            status=MigrationStatus.RUNNING,
            dispatch=1,
            from_version=self.plan.from_version,
            to_version=self.plan.to_version,
            task_id=self.caller.task_id,
            hop=self.plan.as_json[number],
            locked=True,
        )

    # ── doing ───────────────────────────────────────────────────────────────────────────────────────

    def begin(self, executor: Executor, begin: BeginCall) -> Attempt | None:
        """Begin, and open the first hop."""
        failpoints.hit("begin_before_commit")
        called = begin(self.begin_call())
        executor.prepare(type(called), FinishAndOpen, ResumeExecutor)
        opened = executor.call_and_begin(called)
        if opened is None:
            executor.roll_back()
            return None
        failpoints.hit("begin_committed")
        return self.has_begun(executor, opened)

    def begin_call(self) -> BeginAndOpen:
        """What begins it, and opens the first hop."""
        first = self.hops[0]
        return BeginAndOpen(
            migration=self.begun.migration_id,
            graph=self.graph.id,
            graph_type=self.plan.graph_type,
            from_=self.plan.from_version,
            to=self.plan.to_version,
            plan=self.plan.as_json,
            request=self.caller.task_id,
            by=self.caller.requested_by,
            reason=self.caller.reason,
            deadline_seconds=settings().deadline_seconds,
            next_to=first.to_version,
            hop=first.name,
            fingerprint=first.fingerprint,
            worker=self.worker.name,
            pid=self.worker.pid,
            task=self.worker.task_id,
        )

    def has_begun(self, executor: Executor, opened: OpenedFirst) -> Attempt:
        """It was begun: what was opened with it."""
        self.applied = 0
        publish.begun(executor, self.begun, self._free(), self.plan.to_version, self.caller, None)
        return self.attempt(0, opened.attempt_id, self._hop_state(0, opened.slug, opened.config))

    def attempt(self, number: int, attempt_id: int, state: HopState) -> Attempt:
        step, last = self.plan.steps[number], number + 1 == len(self.hops)
        following = None
        if not last:
            coming = self._hop_state(number + 1, state.slug, state.config or {})
            if self._may_run(number + 1, coming):
                following = Following(self.plan.steps[number + 1], self.worker, coming)
        hop = self.kind.directed(step.from_version, step.to_version)
        return Attempt(
            attempt_id, 1, self.messages[number], state, hop, following=following, asks_report=False
        )

    def to_the_end(self, executor: Executor, attempt: Attempt, lock: GraphLock) -> Straight:
        """Run what is open, and what is opened by that."""
        while True:
            failpoints.hit("hop_opened")
            publish.started(executor, attempt, self.worker, None)
            ending = apply_or_record(executor, attempt, lock, self.limits)
            if isinstance(ending, Done):
                self.took(attempt, ending)
                if attempt.is_last:
                    ending = Done(ending.rows, ending.skipped, self.report(attempt))
            outcome = conclude(executor, attempt, ending)
            if not isinstance(ending, Done) or attempt.is_last:
                return self.came_to(outcome)
            if ending.opened is None:
                return self.came_to(None)
            assert attempt.following is not None  # noqa: S101 - it is what was opened
            attempt = self.attempt(self.applied or 0, ending.opened, attempt.following.state)

    def came_to(self, outcome: HopOutcome | None) -> Straight:
        """How far it is now."""
        return Straight(self.begun, self.applied or 0, outcome)

    # ── reporting ───────────────────────────────────────────────────────────────────────────────────

    def took(self, attempt: Attempt, done: Done) -> None:
        step: Step = self.plan.steps[self.applied or 0]
        self.applied = (self.applied or 0) + 1
        self.reports.append(
            HopReport(
                name=step.name,
                from_version=step.from_version,
                to_version=step.to_version,
                status=AttemptStatus.SKIPPED if done.skipped else AttemptStatus.SUCCEEDED,
                attempts=1,
                rows_changed=done.rows,
                seconds=publish.seconds_of(attempt),
            )
        )

    def report(self, attempt: Attempt) -> MigrationReport:
        """What the database's report would say, by this process's clock."""
        return MigrationReport(
            migration_id=self.begun.migration_id,
            graph_id=self.graph.id,
            graph=attempt.state.slug,
            graph_type=self.plan.graph_type,
            status=MigrationStatus.SUCCEEDED,
            from_version=self.plan.from_version,
            to_version=self.plan.to_version,
            version=self.plan.to_version,
            last_applied=attempt.hop.name,
            hops=tuple(self.reports),
            dispatch=1,
            requested_by=self.caller.requested_by,
            reason=self.caller.reason,
            created_at=self.began_at,
            started_at=self.began_at,
            finished_at=datetime.now(UTC),
        )
