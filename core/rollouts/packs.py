"""Moving the graphs of a pack in the process that took its message.

Each graph is begun, and each of its hops commits with an audit row of its own, as in a chain. What a pack saves is the
messages in between, to read again under the graph's lock what this process has just written under it
(core/execution/straight.py), and commits, which several graphs share (core/execution/together.py). What that does not
cover is begun and run as a chain would, by the same primitives. A session of its own holds the pack's lock: when the
process dies, the lock is free, and the controller closes the pack.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from types import SimpleNamespace
from uuid import UUID

from graph_migrator.core import plural
from graph_migrator.core.decisions import Ignored, Later
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.model import (
    Applied,
    Caller,
    Dispatch,
    Failed,
    HopOutcome,
    Sharded,
    Worker,
)
from graph_migrator.core.execution.recorded import load_dispatch
from graph_migrator.core.execution.run_hop import run_hop
from graph_migrator.core.execution.straight import FreeGraph, Straight, run_straight
from graph_migrator.core.execution.together import run_together
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type
from graph_migrator.core.planning import Plan, make_plan, versions_left
from graph_migrator.core.recorded_errors import name_of
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.rollouts.decisions import is_skipped
from graph_migrator.core.rollouts.members import Held, OtherCode, begin_member, caller_of, other_code
from graph_migrator.core.rollouts.packing import group_size
from graph_migrator.core.rollouts.rows import query, request_id
from graph_migrator.core.rollouts.statuses import PackStatus, RolloutStatus
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.protocol import BeginAndOpen, BeginPacked, BeginTogether, MarkAnswered
from graph_migrator.core.store.session import Executor, Executors

_EVERY = 1.0
"""Seconds between two reports of progress."""


@dataclass(frozen=True)
class PackedGraph:
    """A graph of a pack, and which try this is."""

    graph_id: UUID
    graph: str
    number: int
    version: int | None
    """The version of its graph when the pack was taken; None where somebody owned it, or it was not there."""


@dataclass(frozen=True)
class Pack:
    """A pack that this process has taken."""

    id: UUID
    rollout_id: UUID
    kind: GraphType
    to_version: int
    direction: int
    requested_by: str | None
    reason: str | None
    running_since: datetime
    seconds: float
    together: int
    graphs: tuple[PackedGraph, ...]


@dataclass
class PackReport:
    """How far a pack is, or was when it ended. Counts are graphs."""

    size: int
    moved: int = 0
    skipped: int = 0
    failed: int = 0
    left: int = 0
    ended_early: str | None = None
    rollout_id: UUID | None = field(default=None, compare=False)

    @property
    def done(self) -> int:
        """Graphs that have settled in it."""
        return self.moved + self.skipped + self.failed

    def in_words(self) -> str:
        """For Flower and the worker's log."""
        counts = {
            "moved": self.moved,
            "skipped": self.skipped,
            "failed": self.failed,
            "gone on alone": self.left,
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        text = (
            f"{self.done + self.left} of {plural.count(self.size, 'graph')}: {', '.join(parts) or 'none yet'}"
        )
        return f"{text}; ended early: {self.ended_early}" if self.ended_early else text


@dataclass(frozen=True)
class Surroundings:
    """What a pack needs from the process that runs it.

    Attributes:
        send_later: Sends the rest of a migration as a chain, after some seconds.
        show: Shows how far the pack is; called about once a second.
        is_stopping: Whether the process is asked to end.
    """

    send_later: Callable[[Dispatch, float], None]
    show: Callable[[PackReport], None] = lambda report: None
    is_stopping: Callable[[], bool] = lambda: False


def run_pack(
    executors: Executors, pack_id: UUID, worker: Worker, around: Surroundings
) -> PackReport | Ignored | OtherCode:
    """Take a pack and move its graphs.

    It ends before its last graph where the rollout is held, the process is to end, a graph has failed (the breaker
    looks before the next ones), or it takes far longer than it should. What was not begun waits again.

    Args:
        executors: Lends the sessions: one holds the pack's lock, the other does the work.
        pack_id: The pack, as its message names it.
        worker: Who executes, for the audit rows.
        around: See there.

    Returns:
        What became of its graphs; `Ignored` where the pack is another process's, or over; `OtherCode` where this
        process has not the planned code: nothing was changed then.

    Raises:
        Exception: Postgres is out of reach. The controller closes the pack.
    """
    with executors.borrow() as session, _locked(session, pack_id) as is_ours:
        if not is_ours:
            return Ignored("another process has the pack in hand")
        taken = _take(session, pack_id, worker)
        if not isinstance(taken, Pack):
            return taken
        failpoints.hit("pack_taken")
        report = _Run(executors, taken, worker, around).to_the_end()
        failpoints.hit("pack_left")
        _leave_pack(session, pack_id, report.done)
    around.show(report)
    return report


@contextmanager
def _locked(session: Executor, pack_id: UUID) -> Iterator[bool]:
    (found,) = _query(session, "SELECT pg_try_advisory_lock(pack_key(%s)) AS is_ours", pack_id)
    yield found.is_ours
    if found.is_ours:
        _query(session, "SELECT pg_advisory_unlock(pack_key(%s))", pack_id)


def _query(session: Executor, statement: str, *values: object) -> list[SimpleNamespace]:
    with session.cursor() as cursor:
        return query(cursor, statement, *values)


def _take(session: Executor, pack_id: UUID, worker: Worker) -> Pack | Ignored | OtherCode:
    found = _query(
        session,
        "SELECT p.status, p.rollout_id, r.status AS rollout, r.plan, r.graph_type, r.to_version, r.direction, "
        "r.requested_by, r.reason, r.failures_since, (r.strategy->>'pack_seconds')::float8 AS seconds, "
        "coalesce((r.strategy->>'pack_together')::int, 1) AS together "
        "FROM packs p JOIN rollouts r ON r.id = p.rollout_id WHERE p.id = %s",
        pack_id,
    )
    if not found or found[0].status != PackStatus.SENT:
        return Ignored("the pack was taken before")
    (pack,) = found
    if pack.rollout != RolloutStatus.RUNNING:
        _leave_pack(session, pack_id, 0)
        return Ignored(f"its rollout is {pack.rollout}")
    changed = other_code(pack.plan, pack.graph_type)
    if changed is not None:
        return changed
    graphs = _query(
        session,
        "WITH taken AS (UPDATE packs SET status = 'running', worker = %s, started_at = clock_timestamp() "
        "WHERE id = %s AND status = 'sent' RETURNING id) "
        "SELECT m.graph_id, m.graph, m.number, g.version "
        "FROM rollout_members m JOIN taken ON m.pack_id = taken.id LEFT JOIN graphs g ON g.id = m.graph_id "
        "AND g.migration_id IS NULL AND g.partially_migrated IS NULL "
        "WHERE m.status = 'dispatched' ORDER BY m.position",
        worker.name, pack_id,
    )  # fmt: skip
    return Pack(
        pack_id,
        pack.rollout_id,
        graph_type(pack.graph_type),
        pack.to_version,
        pack.direction,
        pack.requested_by,
        pack.reason,
        pack.failures_since,
        pack.seconds,
        pack.together,
        tuple(PackedGraph(each.graph_id, each.graph, each.number, each.version) for each in graphs),
    )


def _leave_pack(session: Executor, pack_id: UUID, done: int) -> None:
    _query(
        session,
        "UPDATE packs SET status = 'left', done = %s, ended_at = clock_timestamp() "
        "WHERE id = %s AND status IN ('sent', 'running') RETURNING id",
        done, pack_id,
    )  # fmt: skip


@dataclass
class _Run:
    """One pack in this process."""

    executors: Executors
    pack: Pack
    worker: Worker
    around: Surroundings
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)
    answered: list[str] = field(default_factory=list)
    plans: dict[int, Plan] = field(default_factory=dict)
    size: int = 1
    """How many graphs are moved together next."""
    apart: bool = False
    """Graphs of this pack could not share a transaction: the rest does not try."""

    def __post_init__(self) -> None:
        self.report = PackReport(len(self.pack.graphs), rollout_id=self.pack.rollout_id)

    def to_the_end(self) -> PackReport:
        waiting = deque(self.pack.graphs)
        while waiting:
            self.report.ended_early = self._reason_to_end() or self._move_next(waiting)
            if self.report.ended_early:
                break
            if time.monotonic() - self.shown > _EVERY:
                self._show()
        self._mark_answered()
        return self.report

    def _reason_to_end(self) -> str | None:
        if self.around.is_stopping():
            return "the worker shuts down"
        if self.report.failed:
            return "a graph failed"
        if time.monotonic() - self.began > 2 * self.pack.seconds:
            return f"it took longer than {2 * self.pack.seconds:g} s"
        return None

    def _move_next(self, waiting: deque[PackedGraph]) -> str | None:
        """Move the next graph, or the next ones together. A reason to end the pack where its rollout does not run."""
        began, moved = time.monotonic(), self.report.moved
        group, plan = self._next_group(waiting)
        why = self._move_together(group, plan) if plan and len(group) > 1 else self._move(group[0])
        if self.apart or self.report.moved - moved < len(group):
            self.size = 1
        else:
            self.size = group_size(len(group), time.monotonic() - began, self.pack.together)
        return why

    def _next_group(self, waiting: deque[PackedGraph]) -> tuple[list[PackedGraph], Plan | None]:
        """The next graphs that may share their transactions, since they have one plan; one where it has none yet."""
        first = waiting.popleft()
        group, plan = [first], self._plan(first)
        while plan and waiting and len(group) < self.size and waiting[0].version == first.version:
            group.append(waiting.popleft())
        return group, plan

    def _move_together(self, group: list[PackedGraph], plan: Plan) -> str | None:
        """Move several graphs. What could not be moved with the others is moved by itself."""
        failpoints.hit("pack_looked")
        try:
            straights = run_together(
                self.executors,
                self.pack.kind,
                [
                    (FreeGraph(each.graph_id, each.graph, plan.from_version), self._caller(each))
                    for each in group
                ],
                plan,
                worker=self.worker,
                begin=lambda calls: self._packed_together(calls, group),
            )
        except Exception as error:
            if classify(error) is Failure.PERMANENT:
                raise
            for each in group:
                self._let_go(each)  # perhaps they were begun; whoever looks next finds out
            return None
        why: str | None = None
        self.apart = any(straight is not None and straight.outcome is None for straight in straights)
        for each, straight in zip(group, straights, strict=True):
            why = why or ("a graph failed" if self.report.failed else None)
            if straight is None:
                why = why or self._move(each)
            elif straight.outcome is None and why:  # it has begun, and this pack does no more
                self._let_go(each)
                self._send_rest(straight.begun, 0)
            else:
                failpoints.hit("pack_begun")
                self._run_hops(each, straight.begun, straight)
        return why

    def _move(self, graph: PackedGraph) -> str | None:
        """Move one graph. A reason to end the pack where its rollout does not run."""
        try:
            straight = self._run_straight(graph)
        except Exception as error:
            if classify(error) is Failure.PERMANENT:
                raise
            self._let_go(graph)  # perhaps it was begun; whoever looks next finds out
            return None
        if straight is not None:
            self._run_hops(graph, straight.begun, straight)
            return None
        begun = self._begin(graph)
        match begun:
            case Held(why):
                return why
            case Dispatch():
                failpoints.hit("pack_begun")
                self._run_hops(graph, begun)
            case Ignored() | Later() | OtherCode():
                self._let_go(graph)
            case MigrationReport():
                self._settled(graph, "moved")
        return None

    def _run_straight(self, graph: PackedGraph) -> Straight | None:
        """Begin and run a graph that is as it was when the pack was taken. None where nothing was begun."""
        plan = self._plan(graph)
        if plan is None:
            return None
        failpoints.hit("pack_looked")
        straight = run_straight(
            self.executors,
            self.pack.kind,
            FreeGraph(graph.graph_id, graph.graph, plan.from_version),
            plan,
            caller=self._caller(graph),
            worker=self.worker,
            begin=lambda call: self._packed(call, graph),
        )
        if straight is not None:
            failpoints.hit("pack_begun")
        return straight

    def _plan(self, graph: PackedGraph) -> Plan | None:
        """What moves a graph that is as it was when the pack was taken. None where that is to be decided anew."""
        version, pack = graph.version, self.pack
        if version is None or versions_left(version, pack.to_version, pack.direction) <= 0:
            return None
        if version not in self.plans:
            try:
                self.plans[version] = make_plan(graph.graph, pack.kind, version, pack.to_version)
            except GraphMigratorError:  # the ordinary way records the refusal
                return None
        return self.plans[version]

    def _caller(self, graph: PackedGraph) -> Caller:
        pack = self.pack
        return caller_of(
            pack.rollout_id, graph.graph_id, graph.number, by=pack.requested_by, reason=pack.reason
        )

    def _packed_together(self, calls: Sequence[BeginAndOpen], group: Sequence[PackedGraph]) -> BeginTogether:
        """The same calls as one, which also looks at the rollout, the pack and the members."""
        return BeginTogether.of(
            calls,
            [each.number for each in group],
            rollout=self.pack.rollout_id,
            pack=self.pack.id,
            since=self.pack.running_since,
        )

    def _packed(self, call: BeginAndOpen, graph: PackedGraph) -> BeginPacked:
        """The same call, which also looks at the rollout, the pack and the member."""
        return BeginPacked(
            rollout=self.pack.rollout_id,
            pack=self.pack.id,
            number=graph.number,
            since=self.pack.running_since,
            **{each.name: getattr(call, each.name) for each in fields(call)},
        )

    def _begin(
        self, graph: PackedGraph
    ) -> Dispatch | MigrationReport | Ignored | Later | OtherCode | Held | None:
        """Begin one graph. None where it was refused, which is recorded."""
        try:
            with self.executors.borrow() as executor:
                return begin_member(
                    executor, self.pack.rollout_id, graph.graph_id, graph.number, pack_id=self.pack.id
                )
        except GraphMigratorError as refusal:
            self._settled(graph, "skipped" if is_skipped(name_of(refusal)) else "failed")
            return None
        except Exception as error:
            if classify(error) is Failure.PERMANENT:
                raise
            return Ignored("Postgres did not begin it now")

    def _run_hops(self, graph: PackedGraph, begun: Dispatch, straight: Straight | None = None) -> None:
        outcome = straight.outcome if straight is not None else None
        if outcome is None:
            outcome = self._run_by_messages(begun, straight.applied if straight is not None else 0)
        match outcome:
            case Applied(report) if report is not None:
                self._settled(graph, "moved")
            case Failed():
                self._settled(graph, "failed")
            case Later(seconds):
                self._let_go(graph)
                self._send_rest(begun, seconds)
            case Sharded():
                self._let_go(graph)
                self._send_rest(begun, 0)
            case _:
                # Somebody else has it in hand, or an operator paused it: recovery stands behind it.
                self._let_go(graph)

    def _run_by_messages(self, begun: Dispatch, applied: int) -> HopOutcome:
        """Each hop from there on as its message asks for."""
        outcome: HopOutcome = Applied()
        for message in begun.messages()[applied:]:
            outcome = run_hop(self.executors, message, worker=self.worker, may_cut=False)
            if not isinstance(outcome, Applied) or outcome.report is not None:
                break
        return outcome

    def _settled(self, graph: PackedGraph, how: str) -> None:
        setattr(self.report, how, getattr(self.report, how) + 1)
        self.answered.append(str(request_id(self.pack.rollout_id, graph.graph_id, graph.number)))

    def _let_go(self, graph: PackedGraph) -> None:
        """From now on the graph is a unit of its own. Where it was not begun, the controller sends its message."""
        with self.executors.borrow() as executor:
            left = _query(
                executor,
                "UPDATE rollout_members SET pack_id = NULL, resend_at = clock_timestamp() "
                "WHERE rollout_id = %s AND graph_id = %s AND pack_id = %s AND status = 'dispatched' "
                "RETURNING graph_id",
                self.pack.rollout_id, graph.graph_id, self.pack.id,
            )  # fmt: skip
        self.report.left += len(left)

    def _send_rest(self, begun: Dispatch, seconds: float) -> None:
        with self.executors.borrow() as executor:
            try:
                rest = load_dispatch(executor, begun.migration_id)
            except LookupError:  # it has ended meanwhile
                return
        self.around.send_later(rest, seconds)

    def _show(self) -> None:
        self.shown = time.monotonic()
        self._mark_answered()
        self.around.show(self.report)

    def _mark_answered(self) -> None:
        """Nobody waits for the answer to a packed graph's request."""
        tasks, self.answered = tuple(self.answered), []
        if tasks:
            with self.executors.borrow() as executor:
                executor.call(MarkAnswered(tasks=tasks, ended=(None,) * len(tasks)))
