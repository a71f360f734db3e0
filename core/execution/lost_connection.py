"""What became of an attempt whose session was lost at an unknown moment."""

from __future__ import annotations

from contextlib import AbstractContextManager

from graph_migrator.core.decisions import Later, Limits, may_try_again
from graph_migrator.core.events import publish
from graph_migrator.core.execution.fail import fail_migration, retry_later
from graph_migrator.core.execution.model import Attempt, AttemptFailed, HopOutcome
from graph_migrator.core.execution.recorded import load_report
from graph_migrator.core.execution.waits import backoff
from graph_migrator.core.statuses import APPLIED
from graph_migrator.core.store.errors import DRIVER_ERRORS, Failure, classify
from graph_migrator.core.store.locks import GraphLock, hold_graph_lock, shard_taken
from graph_migrator.core.store.protocol import (
    BecomeExecutor,
    BecomeShardExecutor,
    ExplainLoss,
    LoadAttemptStatus,
)
from graph_migrator.core.store.session import Executor, Executors


def resolve_lost_commit(executors: Executors, attempt: Attempt, limits: Limits) -> HopOutcome | None:
    """Read from the attempt's row what was committed, and record the loss where nothing was.

    The lock comes first: it waits out a commit that is still in flight.

    Returns:
        When to deliver the message again; None to look at it again now.
    """
    try:
        with (
            executors.borrow() as executor,
            _locked(executor, attempt) as lock,
        ):
            if lock is None:
                return Later(1.0, "the lost session has not ended yet")
            return _resolve(executor, attempt, limits)
    except DRIVER_ERRORS as error:
        if classify(error) is Failure.PERMANENT:
            raise
        return Later(backoff(3), "Postgres does not answer")


def _locked(executor: Executor, attempt: Attempt) -> AbstractContextManager[GraphLock | None]:
    graph_id, message = attempt.state.graph_id, attempt.message
    if message.shard is None:
        return hold_graph_lock(executor, graph_id, seconds=5, stamp=attempt.is_last)
    return shard_taken(executor, graph_id, message.migration_id, message.to_version, message.shard, seconds=5)


def _resolve(executor: Executor, attempt: Attempt, limits: Limits) -> HopOutcome | None:
    status = executor.call(LoadAttemptStatus(attempt=attempt.id))
    if status in APPLIED:
        end = load_report(executor, attempt.message.migration_id) if attempt.is_last else None
        if attempt.shard is None:
            publish.succeeded(executor, attempt, None, end)
        else:
            publish.shard_done(executor, attempt, None)
    if status == "lost":  # recovery was quicker, and could not know how
        executor.call(ExplainLoss(attempt=attempt.id, how="its process lived on"))
    if status != "running":
        return None
    migration = attempt.message.migration_id
    if attempt.shard is None:
        executor.call(BecomeExecutor(migration=migration))
    else:
        executor.call(BecomeShardExecutor(migration=migration, attempt=attempt.id))
    lost = ConnectionError("the connection to Postgres was lost")
    if may_try_again(attempt.state, limits):
        failed = retry_later(executor, attempt, lost)
    else:
        failed = fail_migration(executor, attempt, lost, transient=True)
    if not isinstance(failed, AttemptFailed):
        return failed
    publish.failed(executor, attempt, lost, failed.retry_in)
    return None if failed.retry_in is None else Later(failed.retry_in, str(lost))
