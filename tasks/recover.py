"""Recovery inside every worker: a thread of its main process that sweeps about twice a second."""

from __future__ import annotations

import logging
import threading
import time

from celery.signals import worker_ready, worker_shutting_down

from graph_migrator.core.execution import recovery
from graph_migrator.core.inspection import metrics
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.answers import answer_callers
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.migrate import send
from graph_migrator.tasks.rollouts import send_members
from graph_migrator.tasks.runtime import engine, executors

_log = logging.getLogger("graph_migrator.recovery")
_stop = threading.Event()

_COUNT_SECONDS = 10.0
"""How often a sweep also adds finished attempts to the totals."""


@app.task(name="tasks.recover_migrations")
def recover_migrations() -> dict[str, int]:
    """One recovery sweep, as every worker makes it by itself: counts of what was done."""
    return sweep_once()


def sweep_once() -> dict[str, int]:
    """Sweep, send what is to be sent, and answer callers that were left waiting.

    Returns:
        Counts by what was done; empty while another process sweeps.
    """
    with recovery.sweeping(executors()) as executor:
        if executor is None:
            return {}
        done = recovery.sweep(executor)
        members = move_rollouts_on(executor)
        calls = recovery.unanswered(executor)
    # All is committed and no lock is held any more, the sweep's own neither: where the broker or the results are
    # out of reach for this worker alone, it waits for them here, and another one sweeps.
    for dispatch in done.to_send:
        send(dispatch)
    send_members(members)
    answered = answer_callers(executors(), calls)
    return {
        "sent": len(done.to_send) + len(members),
        "lost": done.lost,
        "redelivered": done.redelivered,
        "settled": done.settled,
        "failed_by_recovery": done.failed_by_recovery,
        "answered": answered,
    }


def count_history() -> None:
    """Add what has finished to the totals that monitoring reads."""
    with engine().begin() as connection:
        metrics.advance(connection)


def _sweep_until_stopped() -> None:
    counted = time.monotonic()
    while not _stop.wait(settings().sweep_seconds):
        try:
            if sweep_once() and time.monotonic() - counted > _COUNT_SECONDS:
                counted = time.monotonic()
                count_history()
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
