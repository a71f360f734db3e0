"""Removing the data of a graph that an import writes anew, in the import's transaction."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import psycopg2
from sqlalchemy import Engine

from graph_migrator.core.errors import InvalidRequest, OpenWriteTransactions, UnknownGraph
from graph_migrator.core.settings import settings
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.store.writers import translate_guard_error

_OPEN: Final = "SELECT id, graph_type FROM graph_migrator.open_replacement(%s, %s, %s, %s, %s)"
_STAMP: Final = "SELECT graph_migrator.stamp_graphs()"
_LOCK_NOT_AVAILABLE: Final = "55P03"


def open_replacement(
    engine: Engine, cursor: Any, slug: str, graph_type: str, version: int, requested_by: str | None
) -> UUID:
    """Take the graph, remove its nodes, edges and attributes, and give it the new version.

    Id, slug and history stay. It is recorded in `requests`, in the same transaction.

    Raises:
        UnknownGraph: There is nothing to replace.
        InvalidRequest: The graph is of another type.
        GraphReadOnly: A migration owns it, live or failed, or its owner locked it.
        OpenWriteTransactions: Writers did not end in time.
    """
    seconds = settings().writer_drain_seconds
    try:
        cursor.execute(
            _OPEN,
            (slug, graph_type, version, requested_by, int(seconds * 1_000)),
        )
        graph_id, found_type = cursor.fetchone()
    except psycopg2.Error as error:
        refusal: Exception | None = translate_guard_error(error)
        if error.pgcode == _LOCK_NOT_AVAILABLE:
            refusal = OpenWriteTransactions(slug, seconds, lock_holders(engine, slug))
        raise (refusal or error) from None
    if graph_id is None:
        raise UnknownGraph(slug)
    if found_type != graph_type:
        raise InvalidRequest("--type", f"{slug} is of type {found_type!r}, and a replacement keeps the type")
    return UUID(str(graph_id))


def let_writers_in(engine: Engine) -> None:
    """After the commit: date the change, so that writers that begin from now on are let in."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_STAMP)
