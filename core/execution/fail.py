"""The record of a hop that raised, in a transaction of its own."""

from __future__ import annotations

from graph_migrator.core.decisions import Ignored, Limits, may_try_again
from graph_migrator.core.execution import failpoints
from graph_migrator.core.execution.model import Attempt, AttemptFailed
from graph_migrator.core.execution.waits import backoff
from graph_migrator.core.recorded_errors import (
    LONGEST_MESSAGE,
    LONGEST_TRACEBACK,
    bounded,
    name_of,
    rows_of,
)
from graph_migrator.core.settings import settings
from graph_migrator.core.store import frames
from graph_migrator.core.store.errors import DRIVER_ERRORS, Failure, classify
from graph_migrator.core.store.protocol import FailAttempt, FailShard
from graph_migrator.core.store.redaction import safe_args, safe_message, safe_traceback
from graph_migrator.core.store.session import Executor


class ConnectionLost(Exception):
    """The session died while it held an attempt; what became of the attempt is written in Postgres."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt


def record_failure(
    executor: Executor, attempt: Attempt, error: Exception, limits: Limits
) -> AttemptFailed | Ignored:
    """A hop raised: try again where that helps, else fail its migration.

    Returns:
        What was recorded; `Ignored` where somebody else has settled the attempt.

    Raises:
        ConnectionLost: The executor's session is gone. Nothing is recorded, and nobody knows what was committed.
    """
    kind = classify(error)
    if kind is Failure.LOST_FENCE:
        return _abandon(executor, str(error))
    if (
        kind is Failure.LOST_CONNECTION and executor.is_lost()
    ):  # it may be the hop's connection to another database
        executor.close()
        raise ConnectionLost(attempt) from error
    try:
        transient = kind is Failure.TRANSIENT or isinstance(error, attempt.hop.retry_on or ())
        if transient and may_try_again(attempt.state, limits):
            return retry_later(executor, attempt, error)
        return fail_migration(executor, attempt, error, transient=transient)
    except DRIVER_ERRORS as second:
        if classify(second) is not Failure.LOST_CONNECTION:
            raise
        executor.close()
        raise ConnectionLost(attempt) from second


def retry_later(executor: Executor, attempt: Attempt, error: Exception) -> AttemptFailed | Ignored:
    """Record a transient error; the migration goes on with another attempt after a pause."""
    pause = backoff(attempt.state.tries)
    if not _write(executor, attempt, error, transient=True, final=False, pause=pause):
        return _abandon(executor, "somebody else has settled the attempt")
    return AttemptFailed(error, pause)


def fail_migration(
    executor: Executor, attempt: Attempt, error: Exception, *, transient: bool = False
) -> AttemptFailed | Ignored:
    """Fail the migration with what its hop raised. The claim stays: the graph is read-only."""
    failpoints.hit("fail_before_commit")
    if not _write(executor, attempt, error, transient=transient, final=True, pause=0):
        return _abandon(executor, "somebody else has settled the attempt")
    failpoints.hit("fail_committed")
    return AttemptFailed(error, None)


def _write(
    executor: Executor, attempt: Attempt, error: Exception, *, transient: bool, final: bool, pause: float
) -> bool:
    call = FailAttempt if attempt.shard is None else FailShard
    return executor.call(
        call(
            attempt=attempt.id,
            migration=attempt.message.migration_id,
            graph=attempt.state.graph_id,
            transient=transient,
            final=final,
            type=name_of(error),
            message=bounded(safe_message(error).replace("\x00", ""), LONGEST_MESSAGE),
            args=safe_args(error),
            traceback=bounded(safe_traceback(error).replace("\x00", ""), LONGEST_TRACEBACK),
            deadline_seconds=pause + settings().deadline_seconds,
            rows=rows_of(error),
            line=frames.last_of_author(error.__traceback__),
        )
    )


def _abandon(executor: Executor, why: str) -> Ignored:
    """This session is no longer the executor. Close it; that releases its locks."""
    executor.close()
    return Ignored(why)
