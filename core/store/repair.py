"""Correcting a graph's data while its migration is failed or paused.

    with graph_repair(session, "people", by="ada", reason="two persons without a name"):
        session.execute(...)

The write guard refuses everybody else: the graph is read-only for `error` or `migrating`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from graph_migrator.core.errors import IllegalTransition, InvalidRequest, UnknownGraph
from graph_migrator.core.statuses import MigrationStatus, Verb
from graph_migrator.core.store.writers import WritableGraph

_OPEN = text("SELECT * FROM graph_migrator.open_repair(:graph, :by, :reason)")
_CLOSE = text("SELECT graph_migrator.close_repair(:request)")


@contextmanager
def graph_repair(
    database: Session | Connection, graph: str, *, by: str, reason: str
) -> Iterator[WritableGraph]:
    """Let the block, and nobody else, write the data of a graph whose migration failed or is paused.

    The graph stays claimed, and its version and type are not changed. Who did it and why, and how many rows of which
    tables were written, is recorded in the same transaction; `history` shows it. `retry`,
    `resume` and `release` wait until the transaction ends. Rows behind the checkpoint of a batched hop have the
    new shape, rows after it the old one.

    Args:
        database: A session or connection whose transaction does the writing. Its role needs the rights of a worker.
        graph: Id or slug.
        by: Who mends it.
        reason: Why.

    Yields:
        The graph's id, slug, type and version.

    Raises:
        InvalidRequest: `by` or `reason` is blank, or the connection is in autocommit mode.
        UnknownGraph: There is no such graph.
        IllegalTransition: Its migration has neither failed nor been paused; write with `graph_writer`.
        sqlalchemy.exc.OperationalError: SQLSTATE 55P03: somebody holds the graph's lock just now.
    """
    for name, value in (("by", by), ("reason", reason)):
        if not value.strip():
            raise InvalidRequest(name, "it is blank; a repair is recorded with who and why")
    connection = database.connection() if isinstance(database, Session) else database
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise InvalidRequest("database", "autocommit is on, so there is no transaction to guard")
    row = connection.execute(_OPEN, {"graph": graph, "by": by, "reason": reason}).one()
    if row.id is None:
        raise UnknownGraph(graph)
    if row.status not in {MigrationStatus.FAILED, MigrationStatus.PAUSED}:
        found = str(row.migration_id) if row.migration_id else None
        allowed: list[str] = [MigrationStatus.FAILED, MigrationStatus.PAUSED]
        raise IllegalTransition(row.slug, Verb.REPAIR, row.status or "not migrating", allowed, found)
    yield WritableGraph(row.id, row.slug, row.graph_type, row.version)
    if isinstance(database, Session):
        database.flush()
    # Not after an error: the transaction is lost then, and the token with it.
    connection.execute(_CLOSE, {"request": row.request})
