"""Calls on their way to a worker, recorded so that `status`, `history`, `watch` and `doctor` show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graph_migrator.core.execution.model import Caller
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection.graphs import GraphSummary
from graph_migrator.core.settings import settings
from graph_migrator.core.store import protocol
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executors

_log = logging.getLogger("graph_migrator.tasks")

_KEPT_SECONDS = 7 * 24 * 3_600.0


def send_call(
    executors: Executors,
    found: GraphSummary,
    target: int | None,
    requested_by: str | None,
    reason: str | None,
    *,
    task_id: str | None = None,
) -> Any:
    """Send a `migrate_graph` call, and record that it waits for a worker.

    Args:
        executors: A session is borrowed.
        found: The graph.
        target: None for the newest version that is known here, so that no worker with other code chooses one.
        requested_by: Who asks.
        reason: Why.
        task_id: The call's id; a new one by default.

    Returns:
        Its `MigrationResult`.
    """
    from graph_migrator.tasks.migrate import migrate_graph

    kind = graph_types().get(found.graph_type)
    if target is None and kind is not None:
        target = kind.newest
    result = migrate_graph.apply_async((str(found.id), target, requested_by, reason), task_id=task_id)
    with _best_effort(result.id), executors.borrow() as executor:
        executor.call(protocol.RecordSent(call=result.id, graph=found.id, target=target, by=requested_by))
    return result


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
