"""This process's connections to Postgres."""

from __future__ import annotations

from functools import cache

from celery.signals import worker_process_init, worker_process_shutdown
from sqlalchemy import Engine

from core.settings import settings
from core.store.engine import make_engine
from core.store.executor import Executors


@cache
def engine() -> Engine:
    """An engine without a pool: it holds no connection that a forked child could share."""
    return make_engine(settings().database_url)


@cache
def executors() -> Executors:
    """The sessions that run hops in this process."""
    return Executors(engine())


@worker_process_init.connect
def _start_afresh(**_: object) -> None:
    # The parent's sockets are the parent's: two processes on one session read each other's results. And its
    # engine may be locked by the recovery thread, which connects just now and which a child does not have.
    executors.cache_clear()
    engine.cache_clear()


@worker_process_shutdown.connect
def _say_goodbye(**_: object) -> None:
    executors().close()
