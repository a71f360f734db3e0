"""Calls on their way to a worker, recorded so that `status`, `history`, `watch` and `doctor` show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from graph_migrator.core.execution.model import Caller
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executors

_log = logging.getLogger("graph_migrator.tasks")

_KEPT_SECONDS = 7 * 24 * 3_600.0


def record_sent(executors: Executors, call: str, graph: UUID, target: int | None, by: str | None) -> None:
    """Record a call that was sent."""
    with _best_effort(call), executors.borrow() as executor:
        executor.call(protocol.RecordSent(call=call, graph=graph, target=target, by=by))


def record_requeue(
    executors: Executors, caller: Caller, graph: str, target: int | None, why: Exception, *, has_limit: bool
) -> None:
    """Record that this worker could not carry a call out, and has left it to another one.

    Args:
        executors: A session is borrowed.
        caller: The call, and the worker that was asked.
        graph: Id or slug.
        target: The version that was asked for.
        why: Why it could not.
        has_limit: Whether the call is refused after `GRAPH_MIGRATOR_DEPLOY_SECONDS`.
    """
    if caller.task_id is None:
        return
    requeue = protocol.RecordRequeue(
        call=caller.task_id,
        graph=graph,
        target=target,
        by=caller.requested_by,
        worker=caller.worker or "?",
        because=str(why),
        most_seconds=settings().deploy_seconds if has_limit else None,
    )
    with _best_effort(caller.task_id), executors.borrow() as executor:
        executor.call(requeue)


def forget_calls(executors: Executors) -> None:
    """Remove what is recorded of calls that are over, or a week old."""
    with executors.borrow() as executor:
        executor.call(protocol.ForgetCalls(most_seconds=_KEPT_SECONDS))


@contextmanager
def _best_effort(call: str) -> Iterator[None]:
    """The call goes its way, whether it is recorded here or not."""
    try:
        yield
    except DRIVER_ERRORS as error:
        _log.warning("call %s is not shown as waiting: %s", call, safe_message(error))
