"""Engines: how this project connects to Postgres."""

from __future__ import annotations

import os
import socket
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from graph_migrator.core.errors import InvalidRequest

_FORM = "it is not the URL of a Postgres database (postgresql://user:password@host:port/name)"
_SERVER_OPTIONS = {
    # Our tables by their short names, for the SQL that hops write.
    "search_path": "graph_migrator,public",
    # A killed client's statement ends, and its lock falls, in half a second instead of at its end.
    "client_connection_check_interval": "500ms",
    "timezone": "UTC",
}
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "connect_timeout": 5,
}


def make_engine(url: str, *, application_name: str | None = None, **options: Any) -> Engine:
    """An engine whose connections are never pooled.

    A pooled connection keeps a forgotten advisory lock and the executor's token, and the next user
    inherits both. So every connection is new, except the one that `core.store.session` keeps on purpose.

    Args:
        url: The database, ``postgresql://…``. An application's URL may name psycopg 3; libpq's parameters are the
            same, so it is read as psycopg2 too.
        application_name: What `pg_stat_activity` shows; by default the program, host and pid.
        options: Passed on to `sqlalchemy.create_engine`.

    Raises:
        InvalidRequest: It is not the URL of a Postgres database, or it names a driver other than psycopg.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not what SQLAlchemy says of it: that may quote a part of the password.
        raise InvalidRequest("DATABASE_URL", _FORM) from None
    if parsed.get_backend_name() not in {"postgres", "postgresql"}:
        raise InvalidRequest("DATABASE_URL", _FORM)
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername != "postgresql+psycopg2":
        raise InvalidRequest("DATABASE_URL", _other_driver(parsed.drivername.partition("+")[2]))
    name = application_name or f"graph-migrator {socket.gethostname()} {os.getpid()}"
    arguments = {
        "application_name": name[:63],
        "options": " ".join(f"-c {key}={value}" for key, value in _SERVER_OPTIONS.items()),
        **_KEEPALIVES,
    }
    options = {"poolclass": NullPool, "hide_parameters": True, "connect_args": arguments, **options}
    return create_engine(parsed, **options)


def require_psycopg2(source: Engine | Connection, argument: str) -> None:
    """Refuse an engine or connection of another driver by name.

    An executor packs several statements into one message and reads the socket itself, by means of psycopg2.
    `graph_writer` and all that reads work with any driver.

    Args:
        source: What an application passed in.
        argument: The name of that argument.

    Raises:
        InvalidRequest: Its driver is not psycopg2.
    """
    driver = source.dialect.driver
    if driver != "psycopg2":
        raise InvalidRequest(argument, _other_driver(driver))


def _other_driver(driver: str) -> str:
    return (
        f"migrations run on psycopg2, not on {driver}. Make an engine for them with postgresql+psycopg2://…; "
        "the application may keep its own driver"
    )
