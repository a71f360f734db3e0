"""A worker whose graph types cannot be loaded leaves its messages to other workers."""

from __future__ import annotations

from collections.abc import Callable

from celery import Task
from celery.utils.log import get_task_logger

from graph_migrator.core.decisions import deploy_pause
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution.waits import jittered
from graph_migrator.core.graph_types.registry import graph_types

_log = get_task_logger("graph_migrator.tasks")

PAUSE = 5.0
"""Seconds at most until a message that came to such a worker is delivered again, perhaps to another one.

The pause is never the same twice: in step with the consumers' polling, the same worker would take it each time.
"""


def require_types(task: Task, on_requeue: Callable[[GraphMigratorError], None] | None = None) -> None:
    """Requeue the message where this worker's types cannot be loaded: that is no answer to any caller.

    Nothing else in this worker is right then. It says so with every message, and `doctor` names it.

    Args:
        task: Whose message it is.
        on_requeue: Called with the error before that.

    Raises:
        celery.exceptions.Retry: The message is delivered again.
    """
    try:
        graph_types()
    except GraphMigratorError as error:
        _log.error("this worker's graph types cannot be loaded; the message is requeued: %s", error)
        if on_requeue is not None:
            on_requeue(error)
        raise task.retry(countdown=jittered(0.6 * PAUSE, 0.67), exc=error) from None


def requeue(task: Task, why: str) -> Exception:
    """Requeue a message of a rollout that this worker has not the planned code for. Nothing is recorded.

    However long it lasts: the controller holds the rollout where no worker has that code.

    Returns:
        What the task is to raise.
    """
    pause = jittered(deploy_pause(task.request.retries))
    _log.warning("%s; again in %.1f s", why, pause)
    retry: Exception = task.retry(countdown=pause, throw=False)
    return retry
