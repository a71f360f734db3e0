"""Changing a graph's data outside of a migration.

    with graph_writer(session, "people", version=2):
        session.add(...)

The triggers on nodes, edges and guarded tables hold the same line for code that forgets this; what they
raise is made into the same errors by `translate_guard_error`. What both promise: docs/write-guard.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from graph_migrator.core.errors import (
    GraphMigratorError,
    GraphReadOnly,
    GraphVersionMismatch,
    InvalidRequest,
    UnknownGraph,
)
from graph_migrator.core.store.errors import postgres_error

_GUARD = text("SELECT id, slug, graph_type, version FROM graph_migrator.write_guard(:graph, :version)")


@dataclass(frozen=True, slots=True)
class WritableGraph:
    """The graph that a writer was let in to; all of it stays as it is until the transaction ends."""

    id: UUID
    slug: str
    graph_type: str
    version: int


@contextmanager
def graph_writer(
    database: Session | Connection, graph: UUID | str, version: int | None = None
) -> Iterator[WritableGraph]:
    """Let the block change a graph's data, or say why not.

    One round trip. From here to the end of the *transaction*, not only of the block, no migration begins on
    the graph, so commit soon. A migration that wants to begin waits for this transaction; writers that come
    later wait behind that migration. In READ COMMITTED the wait is bounded by the session's `lock_timeout`.
    Nothing outlives the transaction. A session is flushed when the block ends, so that what its rows meet
    is raised here.

    Args:
        database: A session or connection whose transaction does the writing.
        graph: Id or slug.
        version: The version that this code was written for; None to write at any version.

    Yields:
        The graph's id, slug, type and version.

    Raises:
        UnknownGraph: There is no such graph.
        GraphReadOnly: Its owner locked it, a migration is moving it, or a failed migration keeps it.
        GraphVersionMismatch: It is at another version.
        InvalidRequest: The connection is in autocommit mode: there is no transaction to guard.
        sqlalchemy.exc.OperationalError: SQLSTATE 40001, repeat the transaction: it began before the last
            change of version, or a migration is just taking the graph and the isolation level is above
            READ COMMITTED. SQLSTATE 55P03: `lock_timeout` was reached.
    """
    connection = database.connection() if isinstance(database, Session) else database
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise InvalidRequest("database", "autocommit is on, so there is no transaction to guard")
    try:
        row = connection.execute(_GUARD, {"graph": str(graph), "version": version}).one_or_none()
        if row is None:
            raise UnknownGraph(str(graph))
        yield WritableGraph(*row)
        if isinstance(database, Session):
            database.flush()
    except DBAPIError as error:
        refusal = translate_guard_error(error)
        if refusal is None:
            raise
        raise refusal from error


def translate_guard_error(error: BaseException) -> GraphMigratorError | None:
    """Recognise a refusal of the write guard among database errors.

    Args:
        error: What SQLAlchemy or a driver raised (psycopg2, psycopg 3, asyncpg, pg8000), also by a statement
            without `graph_writer`.

    Returns:
        `GraphReadOnly`, `GraphVersionMismatch` or `UnknownGraph`; None where the guard did not refuse. A
        serialization failure (40001) is no refusal: the transaction is to be repeated.
    """
    found = postgres_error(error)
    if found is None or found.sqlstate not in {"55006", "23503"}:
        return None
    match _detail(found.detail):
        case {"reason": "unknown", "graph": str(graph)}:
            return UnknownGraph(graph)
        case {"reason": "version", "graph": str(graph), "expected": int(expected), "found": int(is_at)}:
            return GraphVersionMismatch(graph, expected, is_at)
        case {"reason": "owner" | "migrating" | "error" as reason, "graph": str(graph), **more}:
            return GraphReadOnly(graph, reason, more.get("migration_id"), more.get("since"))
    return None


def _detail(detail: str | None) -> dict[str, Any]:
    """The guard's DETAIL is a JSON object; Postgres' own is prose."""
    try:
        found = json.loads(detail or "")
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
