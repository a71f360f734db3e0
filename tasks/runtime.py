"""This process's connections to Postgres."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Engine

from graph_migrator.core.settings import settings
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.session import Executors


@cache
def engine() -> Engine:
    """An engine without a pool: it holds no connection that a forked child could share."""
    return make_engine(settings().database_url)


@cache
def executors() -> Executors:
    """The sessions that run hops in this process."""
    return Executors(engine())
