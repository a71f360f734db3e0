"""Which event follows which commit: called by the code that made the commit, after it.

Nothing here changes anything, and nothing here can break a migration: an error on the way to an event is
logged. Where nobody listens, each of these returns at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from uuid import UUID

from graph_migrator.core.decision_inputs import BeginState, OperatorState
from graph_migrator.core.events import types as events
from graph_migrator.core.execution.model import Attempt, Caller, Dispatch, Done, Worker
from graph_migrator.core.recorded_errors import name_of, rows_of
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.store.protocol import LoadReport
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor
from graph_migrator.core.time_left import seconds_left

_log = logging.getLogger("graph_migrator.events")
_P = ParamSpec("_P")


def _where_somebody_listens(
    emit: Callable[Concatenate[Executor, _P], None],
) -> Callable[Concatenate[Executor, _P], None]:
    """At once where nothing is open, else after the commit; never in a transaction of the caller's."""

    @wraps(emit)
    def publish(executor: Executor, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if not events.anybody_listens():
            return

        def emit_now() -> None:
            try:
                emit(executor, *args, **kwargs)
            except Exception:  # noqa: BLE001 - it is an event, and what it reports is committed
                _log.exception("an event was not published: %s", emit.__name__)

        executor.after_commit(emit_now)

    return publish


@_where_somebody_listens
def begun(
    executor: Executor, dispatch: Dispatch, state: BeginState, to: int, caller: Caller, released: UUID | None
) -> None:
    """A migration has taken its graph; it may have released a failed one for that."""
    if released is not None:
        events.emit(events.ended(_report(executor, released)))
    events.emit(
        events.MigrationBegun(
            migration_id=dispatch.migration_id,
            graph_id=state.graph,
            graph=state.slug,
            graph_type=state.graph_type,
            from_version=state.version,
            to_version=to,
            hops=len(dispatch.steps),
            task_id=caller.task_id,
            requested_by=caller.requested_by,
            reason=caller.reason,
        )
    )


@_where_somebody_listens
def started(executor: Executor, attempt: Attempt, worker: Worker, lost_id: int | None) -> None:
    """An attempt has its running row; it may have found that of a dead executor."""
    if lost_id is not None:
        events.emit(events.HopLost(**_graph(attempt), attempt_id=lost_id, found_by="executor"))
    events.emit(
        events.HopStarted(
            **_graph(attempt),
            **_hop(attempt),
            attempt=attempt.number,
            dispatch=attempt.message.dispatch,
            worker=worker.name,
            done=attempt.state.done or 0,
        )
    )


@_where_somebody_listens
def progressed(
    executor: Executor, attempt: Attempt, done: int, total: int, rows: int, rate: float | None
) -> None:
    """A batch is committed."""
    events.emit(
        events.HopProgressed(
            **_graph(attempt),
            **_hop(attempt),
            done=done,
            total=total,
            rows_changed=rows,
            rows_per_second=rate,
            seconds_left=seconds_left(done, total, rate),
        )
    )


@_where_somebody_listens
def succeeded(
    executor: Executor, attempt: Attempt, done: Done | None, report: MigrationReport | None
) -> None:
    """A hop is applied, and with the last one its migration; `done` is None where the answer was lost."""
    events.emit(
        events.HopSucceeded(
            **_graph(attempt),
            **_hop(attempt),
            attempt=attempt.number,
            skipped=done is not None and done.skipped,
            rows_changed=done.rows if done is not None else None,
            seconds=seconds_of(attempt),
        )
    )
    if report is not None:
        events.emit(events.ended(report))


@_where_somebody_listens
def shard_done(executor: Executor, attempt: Attempt, done: Done | None) -> None:
    """A shard's last batch is committed; `done` is None where the answer was lost."""
    events.emit(
        events.ShardDone(
            **_graph(attempt),
            **_hop(attempt),
            attempt=attempt.number,
            rows_changed=done.rows if done is not None else None,
            seconds=seconds_of(attempt),
        )
    )


@_where_somebody_listens
def failed(executor: Executor, attempt: Attempt, error: Exception, retry_in: float | None) -> None:
    """A hop raised. Without another try its migration has failed too."""
    events.emit(
        events.HopFailed(
            **_graph(attempt),
            **_hop(attempt),
            attempt=attempt.number,
            error_type=name_of(error),
            error_message=safe_message(error),
            error_rows=rows_of(error),
            retry_in=retry_in,
            seconds=seconds_of(attempt),
        )
    )
    if retry_in is None:
        events.emit(events.ended(_report(executor, attempt.message.migration_id)))


@_where_somebody_listens
def ended(executor: Executor, migration_id: UUID, *, lost_id: int | None = None, found_by: str = "") -> None:
    """A migration has stopped: paused, cancelled, failed between two hops, or released."""
    report = _report(executor, migration_id)
    if lost_id is not None:
        events.emit(_lost(report, lost_id, found_by))
    events.emit(events.ended(report))


def quiet(attempt: Attempt, seconds: float) -> None:
    """A hop runs no statement; seen by another thread of its process."""
    events.emit(events.HopQuiet(**_graph(attempt), **_hop(attempt), seconds=seconds))


@_where_somebody_listens
def lost(executor: Executor, migration_id: UUID, attempt_id: int, found_by: str) -> None:
    """An attempt's executor is gone, and its hop is to run again after a pause."""
    events.emit(_lost(_report(executor, migration_id), attempt_id, found_by))


@_where_somebody_listens
def recovered(executor: Executor, dispatch: Dispatch, graph_id: UUID, lost_id: int | None) -> None:
    """Recovery is about to send a chain again."""
    whose: dict[str, Any] = {
        "migration_id": dispatch.migration_id,
        "graph_id": graph_id,
        "graph": dispatch.graph,
        "graph_type": dispatch.graph_type,
    }
    if lost_id is not None:
        events.emit(events.HopLost(**whose, attempt_id=lost_id, found_by="recovery"))
    because = "overdue" if lost_id is None else "lost"
    events.emit(events.MigrationRecovered(**whose, because=because, dispatch=dispatch.number))


@_where_somebody_listens
def asked(executor: Executor, state: OperatorState, verb: str, caller: Caller) -> None:
    """An operator wants a migration to stop."""
    by = caller.requested_by
    events.emit(events.MigrationAsked(**_owned(state, state.owner), verb=verb, requested_by=by))


@_where_somebody_listens
def resumed(
    executor: Executor,
    state: BeginState | OperatorState,
    migration_id: UUID,
    verb: str,
    dispatch: int | None,
    caller: Caller,
) -> None:
    """A migration that had stopped goes on."""
    whose = _owned(state, migration_id)
    by = caller.requested_by
    events.emit(events.MigrationResumed(**whose, verb=verb, dispatch=dispatch, requested_by=by))


def _report(executor: Executor, migration_id: UUID) -> MigrationReport:
    return MigrationReport.model_validate(executor.call(LoadReport(migration=migration_id)))


def _lost(report: MigrationReport, attempt_id: int, found_by: str) -> events.HopLost:
    assert report.migration_id is not None  # noqa: S101 - it was read by its id
    return events.HopLost(
        migration_id=report.migration_id,
        graph_id=report.graph_id,
        graph=report.graph,
        graph_type=report.graph_type,
        attempt_id=attempt_id,
        found_by=found_by,
    )


def _graph(attempt: Attempt) -> dict[str, Any]:
    state = attempt.state
    return {
        "migration_id": attempt.message.migration_id,
        "graph_id": state.graph_id,
        "graph": state.slug,
        "graph_type": state.graph_type,
    }


def _hop(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt_id": attempt.id,
        "hop": attempt.hop.name,
        "from_version": attempt.message.from_version,
        "to_version": attempt.message.to_version,
        "shard": attempt.shard,
    }


def _owned(state: BeginState | OperatorState, migration_id: UUID) -> dict[str, Any]:
    return {
        "migration_id": migration_id,
        "graph_id": state.graph_id,
        "graph": state.slug,
        "graph_type": state.graph_type,
    }


def seconds_of(attempt: Attempt) -> float:
    """Since an attempt was opened."""
    return round(time.monotonic() - attempt.began, 4)
