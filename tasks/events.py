"""What a worker does with the core's events: it logs them, and sends over the broker what Flower shows.

Flower shows a row for each task. Besides Celery's own events, it receives from here the progress of batched
hops, and the failure of `migrate_graph` calls. Setting ``GRAPH_MIGRATOR_CELERY_EVENTS=all`` sends every event,
as ``migration-begun`` and so on, for other monitors (``celery -A graph_migrator events --dump``).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import current_task
from celery.app.trace import LOG_SUCCESS
from celery.signals import after_setup_logger, after_setup_task_logger, worker_init

from graph_migrator.core.events import types as events
from graph_migrator.core.events.log import JsonLines, log_event
from graph_migrator.core.inspection.quantities import pace
from graph_migrator.core.plural import count
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import safe_traceback
from graph_migrator.tasks.celery import app

_log = logging.getLogger("graph_migrator.events")
_PROGRESS_SECONDS = 1.0
_CHAINS = frozenset({"tasks.migrate_graph", "tasks.run_hop", "tasks.run_shard"})
_sent_at: dict[int, float] = {}
_own_name: str | None = None


@worker_init.connect
def _listen(sender: Any = None, **_: object) -> None:
    """In the main process, before it forks: its children listen too."""
    global _own_name
    _own_name = getattr(sender, "hostname", None)
    events.subscribe(log_event)
    events.subscribe(_show_progress)
    if settings().celery_events == "all":
        events.subscribe(_send_on)
    if sender is not None and sender.app is app and sender.loglevel > logging.DEBUG:
        _leave_out_what_events_say()


def _leave_out_what_events_say() -> None:
    """Leave out two of Celery's lines, half of those of a small hop and a tenth of a worker's CPU time.

    That a message was received stands in the lines of what it begins; that its task succeeded, in those of a chain.
    """
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    context: Any = record.args
    return record.msg is not LOG_SUCCESS or context["name"] not in _CHAINS


@after_setup_logger.connect
@after_setup_task_logger.connect
def _write_json(logger: logging.Logger, **_: object) -> None:
    if settings().log_format == "json":
        for handler in logger.handlers:
            handler.setFormatter(JsonLines())


def show_failure(task_id: str | None, error: Exception) -> None:
    """Show in Flower that a `migrate_graph` call has failed; no harm where the broker is away."""
    if task_id is not None:
        _send("task-failed", uuid=task_id, exception=repr(error), traceback=safe_traceback(error))


def show_ignored(task_id: str, why: str) -> None:
    """Show in Flower why a message was not for anybody any more; Celery would leave its row as started."""
    _send("task-ignored", uuid=task_id, result=why)


def show_progress(task_id: str, text: str) -> None:
    """Show in Flower how far a task is."""
    _send("task-progress", uuid=task_id, result=text)


def _show_progress(event: events.Event) -> None:
    if not isinstance(event, events.HopProgressed) or not current_task:
        return
    now = time.monotonic()
    if now - _sent_at.get(event.attempt_id, 0) < _PROGRESS_SECONDS:
        return
    _sent_at.clear()  # this process runs one hop at a time
    _sent_at[event.attempt_id] = now
    done = count(event.done, "row")
    if event.total:
        done = f"{event.done:,} of {count(event.total, 'row')} ({event.done / event.total:.0%})"
    speed = pace(event.rows_per_second, event.seconds_left)
    show_progress(current_task.request.id, f"{done}{f', {speed}' if speed else ''}")


def _send_on(event: events.Event) -> None:
    payload = {
        name: value if isinstance(value, str | int | float) else str(value)
        for name, value in event.fields().items()
    }
    _send(event.name.replace("_", "-"), **payload)


def _send(kind: str, **fields: Any) -> None:
    try:
        # With the worker's own name: Flower makes a worker of every name that it receives.
        with app.events.default_dispatcher(hostname=_own_name) as dispatcher:
            dispatcher.send(kind, **fields)
    except Exception as error:  # noqa: BLE001 - whatever the broker's driver raises: nothing depends on it
        _log.warning("%s was not sent: %s", kind, type(error).__name__)
