"""Recovery inside every worker: a thread of its main process that sweeps about twice a second."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from core import recovery
from core.reports import MigrationReport
from core.settings import settings
from core.store.disclosure import safe_message
from core.store.executor import Executor
from tasks.celery import app
from tasks.migrate import send
from tasks.runtime import engine
from tasks.telling import show_failure

_log = logging.getLogger("graph_migrator.recovery")
_stop = threading.Event()


@app.task(name="tasks.recover_migrations")
def recover_migrations() -> dict[str, int]:
    """One recovery sweep, as every worker makes it by itself: counts of what was done."""
    return sweep_once()


def sweep_once() -> dict[str, int]:
    """Sweep, send what is to be sent, and answer callers that were left waiting.

    Returns:
        Counts by what was done; empty while another process sweeps.
    """
    with recovery.sweeping(engine()) as executor:
        if executor is None:
            return {}
        done = recovery.sweep(executor)
        outcomes = recovery.unanswered(executor)
    # All is committed and no lock is held any more, the sweep's own neither: where the broker or the results are
    # out of reach for this worker alone, it waits for them here, and another one sweeps.
    for dispatch in done.to_send:
        send(dispatch)
    answered = answer_callers(outcomes)
    return {
        "sent": len(done.to_send),
        "lost": done.lost,
        "rung": done.rung,
        "settled": done.settled,
        "given_up": done.given_up,
        "answered": answered,
    }


def answer_callers(outcomes: list[recovery.Outcome]) -> int:
    """Store the results that settled requests lack, so that every `.get()` resolves.

    Returns:
        How many were missing.
    """
    if not outcomes:
        return 0
    stored = 0
    for outcome in outcomes:
        state = "FAILURE" if isinstance(outcome.result, Exception) else "SUCCESS"
        if app.backend.get_state(outcome.task_id) != state:
            _store(outcome.task_id, outcome.result)
            if isinstance(outcome.result, Exception):
                show_failure(outcome.task_id, outcome.result)
            stored += 1
    executor = Executor.connect(engine())
    try:
        recovery.mark_answered(executor, outcomes)
    finally:
        executor.close()
    return stored


def _store(task_id: str, result: MigrationReport | dict[str, Any] | Exception) -> None:
    if isinstance(result, Exception):
        app.backend.mark_as_failure(task_id, result)
    else:
        value = result.model_dump(mode="json") if isinstance(result, MigrationReport) else result
        app.backend.mark_as_done(task_id, value)


def _sweep_until_stopped() -> None:
    while not _stop.wait(settings().sweep_seconds):
        try:
            sweep_once()
        except Exception as error:  # noqa: BLE001 - whatever is away will be back; recovery must be here then
            _log.warning("sweep did not finish: %s: %s", type(error).__name__, safe_message(error))
            _stop.wait(min(5.0, 4 * settings().sweep_seconds))


@worker_ready.connect
def _start(**_: object) -> None:
    _stop.clear()
    threading.Thread(target=_sweep_until_stopped, name="recovery", daemon=True).start()


@worker_shutting_down.connect
def _end(**_: object) -> None:
    _stop.set()
