"""What a worker's processes do as they start and end: check the connection, and leave the parent's sessions alone."""

from __future__ import annotations

import logging

from celery.signals import worker_init, worker_process_init, worker_process_shutdown

from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.graph_types.registry import graph_types
from graph_migrator.core.inspection import doctor
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.tasks.runtime import engine, executors

_log = logging.getLogger("graph_migrator.runtime")


@worker_init.connect
def _refuse_a_pooling_proxy(**_: object) -> None:
    """A worker that is given another backend for each transaction loses its locks silently.

    Raises:
        SystemExit: It is behind a transaction-pooling proxy; it does not start.
    """
    try:
        found = doctor.pooling(lambda: engine().raw_connection())
    except Exception as error:  # noqa: BLE001 - Postgres is away: the worker waits for it, as it does later on
        _log.warning("Postgres does not answer yet: %s", safe_message(error))
        return
    if found.level is doctor.Level.WRONG:
        raise SystemExit(f"graph-migrator: {found.found}. {found.remedy}")


@worker_init.connect
def _load_graph_types(**_: object) -> None:
    """Load them before the pool is forked: a child that replaces another later runs the same code as its parent."""
    try:
        graph_types()
    except GraphMigratorError as error:  # its hops are requeued for other workers; `doctor` shows it
        _log.error("the graph types of this worker cannot be loaded: %s", error)


@worker_process_init.connect
def _start_afresh(**_: object) -> None:
    # The parent's sessions are the parent's; and its engine may be locked by the recovery thread, which connects
    # just now and which a child does not have.
    executors().disown()
    executors.cache_clear()
    engine.cache_clear()


@worker_process_shutdown.connect
def _say_goodbye(**_: object) -> None:
    executors().close()
