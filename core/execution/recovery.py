"""Finds the migrations that a dead process left behind, and dispatches them again.

One worker of the fleet sweeps about twice a second: it has a lease, and a try-lock lets one sweep at a time whatever
becomes of the lease. What a sweep decides about a
migration it decides and writes in one transaction, under the graph's lock; what is to be sent goes out after
the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from graph_migrator.core.decision_inputs import RecoveryState
from graph_migrator.core.decisions import (
    HopMessage,
    LeaveAlone,
    Limits,
    LossLimitReached,
    RecoveryDecision,
    Redeliver,
    Redispatch,
    StopAtBoundary,
    decide_recovery,
)
from graph_migrator.core.events import publish
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.limits import limits_of_settings, lost_too_often
from graph_migrator.core.execution.model import Dispatch
from graph_migrator.core.execution.recorded import load_dispatch, load_report
from graph_migrator.core.recorded_errors import LONGEST_MESSAGE, bounded, json_args, name_of, own_error
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import Failure, classify
from graph_migrator.core.store.protocol import SettledCall
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor, Executors

_log = logging.getLogger("graph_migrator.recovery")

REMOVED_ROWS: Final = 5_000
"""Rows of rebuild hops that a sweep removes at most, once nobody needs them."""


@dataclass
class Sweep:
    """What one sweep did."""

    to_send: list[Dispatch] = field(default_factory=list)
    shards_to_send: list[tuple[HopMessage, float]] = field(default_factory=list)
    """Messages of shards, each after so many seconds."""
    lost: int = 0
    redelivered: int = 0
    settled: int = 0
    failed_by_recovery: int = 0
    stamped: int = 0
    errors: list[Exception] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to do."""
        return not (
            self.to_send
            or self.shards_to_send
            or self.lost
            or self.redelivered
            or self.settled
            or self.failed_by_recovery
        )


@contextmanager
def sweeping(
    executors: Executors, *, holder: str | None = None, lease_seconds: float = 0
) -> Iterator[Executor | None]:
    """A session for one sweep, or None while another process sweeps.

    Args:
        executors: Where to take the session from.
        holder: This process, where it sweeps again and again: one of them has a lease, and the others leave the
            sweeps to it until the lease ends. None for a single sweep, which needs no lease.
        lease_seconds: For how long the lease is taken or prolonged.
    """
    with executors.borrow() as executor:
        if not executor.call(protocol.TrySweep(holder=holder, seconds=lease_seconds)):
            yield None
            return
        yield executor
        executor.call(protocol.EndSweep())


def sweep(executor: Executor, *, limits: Limits | None = None, most: int = 500) -> Sweep:
    """Look at every migration that may need it, and do what it needs.

    Args:
        executor: A session that may sweep; see `sweeping`.
        limits: How often a hop may go wrong; from the settings by default.
        most: How many overdue migrations to redeliver at most.

    Returns:
        What was done; its `to_send` are chains to send now.
    """
    done = Sweep()
    limits = limits or limits_of_settings()
    for migration_id in executor.call_all(protocol.RecoveryCandidates(most_migrations=most)):
        with _apart_from_the_others(f"migration {migration_id}", done):
            recover_one(executor, migration_id, done, limits)
    for attempt_id in executor.call_all(protocol.DeadShards()):
        with _apart_from_the_others(f"the shard of attempt {attempt_id}", done):
            _recover_shard(executor, attempt_id, done, limits)
    done.stamped = executor.call(protocol.StampGraphs())
    executor.call(protocol.SweepRebuilds(most_rows=REMOVED_ROWS))
    return done


@contextmanager
def _apart_from_the_others(what: str, done: Sweep) -> Iterator[None]:
    """Whatever is wrong with one must not keep recovery from those behind it."""
    try:
        yield
    except Exception as error:
        if classify(error) is Failure.LOST_CONNECTION:
            raise
        done.errors.append(error)
        _log.error("%s was not recovered: %s: %s", what, name_of(error), safe_message(error))


def recover_one(executor: Executor, migration_id: UUID, done: Sweep, limits: Limits) -> RecoveryDecision:
    """Decide about one migration and write the decision, in one transaction under its graph's lock."""
    with executor.transaction():
        state = executor.call(protocol.LockAndLoadStalled(migration=migration_id))
        if state is None:  # somebody executes it
            return LeaveAlone()
        decision = decide_recovery(state, limits)
        failpoints.hit("recovery_decided")
        _write(executor, migration_id, state, decision, done)
    failpoints.hit("recovery_committed")
    if isinstance(decision, StopAtBoundary | LossLimitReached):
        publish.ended(executor, migration_id, lost_id=state.running_id, found_by="recovery")
    if isinstance(decision, Redispatch) and decision.pause:  # its deadline redelivers it
        assert state.running_id is not None  # noqa: S101 - that is why
        publish.lost(executor, migration_id, state.running_id, "recovery")
    elif isinstance(decision, Redispatch | Redeliver):
        try:
            dispatch = load_dispatch(executor, migration_id)
        except LookupError:  # it ended meanwhile
            return decision
        done.to_send.append(dispatch)
        lost_id = state.running_id if isinstance(decision, Redispatch) else None
        publish.recovered(executor, dispatch, state.graph_id, lost_id)
        _log.info(
            "%s: sent again as dispatch %d (%s)", dispatch.graph, dispatch.number, type(decision).__name__
        )
    return decision


def _recover_shard(executor: Executor, attempt_id: int, done: Sweep, limits: Limits) -> None:
    """A dead shard, while others of its hop may live: it alone is sent again, under the same dispatch."""
    with executor.transaction():
        state = executor.call(protocol.LockAndLoadDeadShard(attempt=attempt_id))
        if state is None:
            return
        decision = decide_recovery(state, limits)
        failpoints.hit("recovery_decided")
        if isinstance(decision, LossLimitReached):
            _fail(executor, state.migration_id, state, decision, done)
        else:  # also where the migration is settled, or is about to be: the row must not say that somebody runs it
            executor.call(
                protocol.RecordLostShard(
                    attempt=attempt_id,
                    migration=state.migration_id,
                    deadline_seconds=settings().deadline_seconds
                    + (decision.pause if isinstance(decision, Redispatch) else 0),
                )
            )
            done.lost += 1
    failpoints.hit("recovery_committed")
    if isinstance(decision, LossLimitReached):
        publish.ended(executor, state.migration_id, lost_id=attempt_id, found_by="recovery")
        return
    publish.lost(executor, state.migration_id, attempt_id, "recovery")
    if isinstance(decision, Redispatch):
        message = HopMessage(state.migration_id, state.hop_from, state.hop_to, state.dispatch, state.shard)
        done.shards_to_send.append((message, decision.pause))
        _log.info("migration %s: shard %d was sent again", state.migration_id, state.shard)


def settle_now(executor: Executor, migration_id: UUID) -> None:
    """Do what an operator has just asked for, where nobody executes the migration; nothing else.

    Where it has changed again meanwhile, a sweep looks at it: whoever calls this sends no chains.
    """
    with executor.transaction():
        state = executor.call(protocol.LockAndLoadStalled(migration=migration_id))
        if state is None or state.status not in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
            return
        failpoints.hit("recovery_decided")
        executor.call(protocol.StopMigration(migration=migration_id, attempt_becomes="lost"))
    failpoints.hit("recovery_committed")
    publish.ended(executor, migration_id, lost_id=state.running_id, found_by="recovery")


def _write(
    executor: Executor, migration_id: UUID, state: RecoveryState, decision: RecoveryDecision, done: Sweep
) -> None:
    s = settings()
    match decision:
        case StopAtBoundary():
            executor.call(protocol.StopMigration(migration=migration_id, attempt_becomes="lost"))
            done.settled += 1
        case LossLimitReached():
            _fail(executor, migration_id, state, decision, done)
        case Redispatch(pause):
            deadline = pause or s.deadline_seconds
            executor.call(
                protocol.RecordRedispatch(
                    migration=migration_id, running=state.running_id, deadline_seconds=deadline
                )
            )
            done.lost += 1
        case Redeliver():
            executor.call(
                protocol.RecordRedelivery(
                    migration=migration_id,
                    deadline_seconds=s.deadline_seconds,
                    most_seconds=s.deadline_max_seconds,
                )
            )
            done.redelivered += 1
        case LeaveAlone():
            pass


def _fail(
    executor: Executor, migration_id: UUID, state: RecoveryState, reached: LossLimitReached, done: Sweep
) -> None:
    graph = load_report(executor, migration_id).graph
    error = lost_too_often(graph, state.hop_name or "?", reached)
    executor.call(
        protocol.FailBetweenHops(
            migration=migration_id,
            dispatch=state.dispatch,
            lost=reached.running_id,
            type=name_of(error),
            message=bounded(str(error), LONGEST_MESSAGE),
            args=json_args(error),
        )
    )
    done.failed_by_recovery += 1


Outcome = MigrationReport | dict[str, Any] | Exception


def unanswered_calls(executor: Executor, *, grace: float = 2.0, most: int = 500) -> list[SettledCall]:
    """The settled calls whose callers may have no answer yet.

    Args:
        executor: Any session.
        grace: Seconds that the worker which settled it has, to answer the caller itself.
        most: How many at most.
    """
    return executor.call_all(protocol.UnansweredCalls(grace_seconds=grace, most_calls=most))


def outcome_of(executor: Executor, call: SettledCall) -> Outcome | None:
    """The answer for a caller; None where the migration was resumed since: its end is still to come."""
    if call.recorded is None:
        assert call.migration_id is not None  # noqa: S101 - one of the two settles a call
        report = load_report(executor, call.migration_id)
        return (report.error() or report) if report.finished_at == call.ended else None
    if "error" in call.recorded:
        return own_error(call.recorded["error"]["type"], call.recorded["error"]["args"])
    shown: dict[str, Any] = call.recorded.get("report", call.recorded)  # a verb's report is recorded as it is
    return shown


def mark_answered(executor: Executor, calls: list[SettledCall]) -> None:
    """Remember that these callers have their result."""
    tasks, ended = tuple(call.task_id for call in calls), tuple(call.ended for call in calls)
    executor.call(protocol.MarkAnswered(tasks=tasks, ended=ended))


def answers_failed(executor: Executor, failed: dict[str, str], *, most_seconds: float) -> None:
    """Remember that these callers could not be answered: each is tried again after a pause that doubles.

    Args:
        executor: Any session.
        failed: Why, by task id.
        most_seconds: How long after its outcome a caller is tried; 0 for never again.
    """
    executor.call(
        protocol.AnswersFailed(tasks=tuple(failed), reasons=tuple(failed.values()), most_seconds=most_seconds)
    )
