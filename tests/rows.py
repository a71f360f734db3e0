"""Making graphs for tests, and reading what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

TABLES = ("graphs", "nodes", "edges", "migrations", "hop_attempts", "checkpoints", "requests")


def add_graph(
    engine: Engine,
    slug: str,
    graph_type: str,
    version: int = 1,
    *,
    nodes: int | Mapping[str, Mapping[str, Any]] = 3,
    edges: Iterable[tuple[str, str, str]] = (),
    label: str = "Node",
    config: Mapping[str, Any] | None = None,
) -> UUID:
    """Insert a graph.

    `nodes` are so many without properties (``n0000`` …), or properties by id; `edges` are (id, source,
    target).
    """
    graph_id = uuid4()
    properties = {f"n{i:04}": {} for i in range(nodes)} if isinstance(nodes, int) else nodes
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO graphs (id, slug, graph_type, version, config) "
                "VALUES (:id, :slug, :type, :version, :config)"
            ),
            {
                "id": graph_id,
                "slug": slug,
                "type": graph_type,
                "version": version,
                "config": json.dumps(config or {}),
            },
        )
        if properties:
            connection.execute(
                text(
                    "INSERT INTO nodes (graph_id, id, label, properties) "
                    "VALUES (:graph, :id, :label, :properties)"
                ),
                [
                    {"graph": graph_id, "id": id_, "label": label, "properties": json.dumps(values)}
                    for id_, values in properties.items()
                ],
            )
        if edges := list(edges):
            connection.execute(
                text(
                    "INSERT INTO edges (graph_id, id, source, target, type) "
                    "VALUES (:graph, :id, :source, :target, 'KNOWS')"
                ),
                [{"graph": graph_id, "id": id_, "source": s, "target": t} for id_, s, t in edges],
            )
    return graph_id


def rows(engine: Engine, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement), parameters)]


def one(engine: Engine, statement: str, **parameters: Any) -> Any:
    """The only row of a query, with its columns as attributes."""
    with engine.connect() as connection:
        return connection.execute(text(statement), parameters).one()


def graph_row(engine: Engine, slug: str) -> Any:
    """The graph's row."""
    return one(engine, "SELECT * FROM graphs WHERE slug = :slug", slug=slug)


def migration_of(engine: Engine, slug: str) -> Any:
    """The latest migration of a graph."""
    return one(
        engine,
        "SELECT m.* FROM migrations m JOIN graphs g ON g.id = m.graph_id WHERE g.slug = :slug "
        "ORDER BY m.created_at DESC LIMIT 1",
        slug=slug,
    )


def attempts(engine: Engine, slug: str) -> list[tuple[str, str]]:
    """(hop, status) of every attempt on a graph, in order."""
    return [
        (hop, status)
        for hop, status in rows(
            engine,
            "SELECT a.hop_name, a.status FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
            "WHERE g.slug = :slug ORDER BY a.id",
            slug=slug,
        )
    ]


def properties(engine: Engine, slug: str) -> dict[str, dict[str, Any]]:
    """The properties of a graph's nodes, by id."""
    found = rows(
        engine,
        "SELECT n.id, n.properties FROM nodes n JOIN graphs g ON g.id = n.graph_id "
        "WHERE g.slug = :slug ORDER BY n.id",
        slug=slug,
    )
    return dict(found)  # type: ignore[arg-type]


def dump(engine: Engine) -> dict[str, list[str]]:
    """Every row of every table, as one transaction sees them."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return {
            table: [row for (row,) in connection.execute(text(f"SELECT t::text FROM {table} t ORDER BY 1"))]
            for table in TABLES
        }


def advisory_locks(engine: Engine) -> list[tuple[Any, ...]]:
    """Advisory locks that any session holds in this database."""
    return rows(
        engine,
        "SELECT l.pid, l.mode FROM pg_locks l WHERE l.locktype = 'advisory' "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )


def mark_partially_migrated(engine: Engine, slug: str, hop: str = "{}") -> None:
    """Say of a graph that it was released in the middle of a hop. Postgres lets migrations alone do that."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE graph_migrator.graphs DISABLE TRIGGER graph_migrator_guard"))
        connection.execute(
            text(
                "UPDATE graph_migrator.graphs SET partially_migrated = CAST(:hop AS jsonb) WHERE slug = :slug"
            ),
            {"hop": hop, "slug": slug},
        )
        connection.execute(
            text("ALTER TABLE graph_migrator.graphs ENABLE ALWAYS TRIGGER graph_migrator_guard")
        )
