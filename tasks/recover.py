"""Recovery inside every worker: a thread of its main process that sweeps about twice a second, one worker at a time."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any
from uuid import uuid4

from celery.signals import worker_ready, worker_shutting_down

from graph_migrator.core.execution import failpoints, recovery
from graph_migrator.core.inspection import metrics
from graph_migrator.core.rollouts.controller import move_rollouts_on, start_by_policy
from graph_migrator.core.rollouts.readings import read_if_due
from graph_migrator.core.rollouts.workers import RENEW_SECONDS, WorkerState, announce, retire
from graph_migrator.core.settings import settings
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks import telemetry
from graph_migrator.tasks.answers import answer_callers
from graph_migrator.tasks.calls import forget_calls
from graph_migrator.tasks.celery import app
from graph_migrator.tasks.fleet import own_state
from graph_migrator.tasks.migrate import send, send_shard
from graph_migrator.tasks.queue_room import QueueRoom
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


_AFTER_A_DISPATCH = 0.2
"""Of a pause, after a sweep that sent members of a rollout: small graphs end soon, and their places stand empty."""
_LEASE = 3
"""For how many pauses the lease is taken: so long nobody sweeps after the holder was killed, at most."""


def sweep_once(*, holder: str | None = None, room: QueueRoom | None = None) -> dict[str, int]:
    """Sweep, send what is to be sent, and answer callers that were left waiting.

    Args:
        holder: This worker, which sweeps again and again; None for a single sweep, which needs no lease.
        room: Its look at the queue.

    Returns:
        Counts by what was done; empty while another process sweeps. `dispatched` of what was sent is of rollouts.
    """
    room = room or QueueRoom()
    lease = _LEASE * settings().sweep_seconds
    with recovery.sweeping(executors(), holder=holder, lease_seconds=lease) as executor:
        if executor is None:
            return {}
        done = recovery.sweep(executor, most=room.left())
        room.sent(done.redelivered)
        start_by_policy(executor)
        read_if_due(executor, room.queued)
        members = move_rollouts_on(executor)
        calls = recovery.unanswered_calls(executor)
    # All is committed and no lock is held any more, the sweep's own neither: where the broker or the results are
    # out of reach for this worker alone, it waits for them here, and another one sweeps.
    for dispatch in done.to_send:
        with telemetry.recovering(dispatch):
            send(dispatch)
    for message, pause in done.shards_to_send:
        send_shard(message, countdown=pause or None)
    send_members(members)
    failpoints.hit("turn_sent")
    answered = answer_callers(executors(), calls)
    return {
        "sent": len(done.to_send) + len(done.shards_to_send) + len(members),
        "dispatched": len(members),
        "lost": done.lost,
        "redelivered": done.redelivered,
        "settled": done.settled,
        "failed_by_recovery": done.failed_by_recovery,
        "answered": answered,
    }


def count_history() -> None:
    """Add what has finished to the totals that monitoring reads, and forget calls that are over."""
    with engine().begin() as connection:
        metrics.advance(connection)
    forget_calls(executors())


def _announce(worker: WorkerState) -> None:
    with executors().borrow() as executor:
        announce(executor, worker)


def _retire(worker: WorkerState) -> None:
    try:
        with executors().borrow() as executor:
            retire(executor, worker)
    except Exception as error:  # noqa: BLE001 - its row is seen to be old soon
        _log.debug(
            "the row of this worker was not removed: %s: %s", type(error).__name__, safe_message(error)
        )


def _sweep_until_stopped(worker: WorkerState) -> None:
    try:
        _sweep(worker)
    finally:
        _retire(worker)


def _sweep(worker: WorkerState) -> None:
    counted = time.monotonic()
    announced = float("-inf")
    holder, room = f"{uuid4()}", QueueRoom()
    pause = settings().sweep_seconds
    while not _stop.wait(pause):
        try:
            if time.monotonic() - announced >= RENEW_SECONDS:
                _announce(worker)
                announced = time.monotonic()
            swept = sweep_once(holder=holder, room=room)
            pause = settings().sweep_seconds * _times(swept)
            if swept and time.monotonic() - counted > _COUNT_SECONDS:
                counted = time.monotonic()
                count_history()
        except Exception as error:  # noqa: BLE001 - whatever is away will be back; recovery must be here then
            _log.warning("sweep did not finish: %s: %s", type(error).__name__, safe_message(error))
            _stop.wait(min(5.0, 4 * settings().sweep_seconds))


def _times(swept: dict[str, int]) -> float:
    """How many times the usual pause comes after this sweep."""
    if not swept:  # who has no lease asks more rarely, and not all at the same moment
        return random.uniform(1, _LEASE)  # noqa: S311 - no secret
    return _AFTER_A_DISPATCH if swept["dispatched"] else 1.0


@worker_ready.connect
def _start(sender: Any = None, **_: object) -> None:
    _stop.clear()
    pool = getattr(sender, "pool", None)
    worker = own_state(
        str(getattr(sender, "hostname", "?")),
        type(pool).__module__.rpartition(".")[2] if pool is not None else "?",
        int(getattr(pool, "num_processes", 0) or 0),
    )
    threading.Thread(target=_sweep_until_stopped, args=(worker,), name="recovery", daemon=True).start()


@worker_shutting_down.connect
def _end(**_: object) -> None:
    _stop.set()
