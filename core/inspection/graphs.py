"""Graphs as rows: one of them, a page of them, how many there are, and whether a call may take one."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, RowMapping, text

from graph_migrator.core.errors import GraphPartiallyMigrated, MigrationInFlight, UnknownGraph
from graph_migrator.core.inspection.metrics import current_counts
from graph_migrator.core.statuses import MigrationStatus, ReadOnlyReason

_READ_ONLY = """
CASE WHEN m.status = 'failed' THEN 'error' WHEN g.migration_id IS NOT NULL THEN 'migrating'
     WHEN g.owner_read_only THEN 'owner' END
"""


class GraphSummary(BaseModel):
    """One graph in a list."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    slug: str
    graph_type: str
    version: int
    read_only: ReadOnlyReason | None = Field(description="Why writers are refused; None where they are not.")
    partially_migrated: bool = Field(description="Force-released inside a batched hop.")
    migration_id: UUID | None = Field(description="The migration that owns the graph.")
    status: MigrationStatus | None = Field(description="Of that migration.")
    to_version: int | None = Field(description="Where that migration goes.")
    changed_at: datetime | None = Field(description="When the version last changed.")
    undoable_to: int | None = Field(
        None,
        description="To which version going back restores old values that were kept; None where it cannot.",
    )
    hop: str | None = Field(None, description="Where its migration failed: the hop.")
    error: str | None = Field(None, description="Where its migration failed: the error's type and message.")


def list_graphs(
    source: Engine | Connection,
    *,
    graph_type: str | None = None,
    version: int | None = None,
    behind: dict[str, int] | None = None,
    oldest: dict[str, int] | None = None,
    unreachable: dict[str, tuple[int, int]] | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[GraphSummary]:
    """Graphs, a page at a time, whatever their number.

    Each list reads along an index. So graphs in a state of their migration come in the order of their id, all others
    in the order of their slug.

    Args:
        source: The database.
        graph_type: Only graphs of this type.
        version: Only graphs at this version; needs `graph_type`.
        behind: Only graphs below the newest version of their type, which is given here by type.
        oldest: With `behind`: the oldest version that each type knows. Graphs below it are unreachable, not behind.
        unreachable: Only graphs whose version is outside of what their type knows: by type, its oldest and newest
            version. Graphs of other types are not among them.
        state: Only graphs whose migration has this status; `idle`, `owner` or `partially-migrated` for those without.
        after: The slug of the last graph of the page before.
        limit: How many at most.

    Raises:
        UnknownGraph: `state` is that of a migration, and `after` is no graph (any more).
    """
    parameters: dict[str, Any] = {"type": graph_type, "after": after, "limit": limit, "state": state}
    conditions = []
    order = "g.slug"
    page = "g.slug > :after"
    match state:
        case None:
            pass
        case "idle":
            conditions.append(
                "g.migration_id IS NULL AND NOT g.owner_read_only AND g.partially_migrated IS NULL"
            )
        case "owner":
            conditions.append("g.migration_id IS NULL AND g.owner_read_only")
        case "partially-migrated":
            conditions.append("g.partially_migrated IS NOT NULL")
        case _:
            conditions.append("m.status = :state")
            order, page = "m.graph_id", "m.graph_id > :after_id"
            if after is not None:
                parameters["after_id"] = find_graph(source, after).id
    if unreachable is not None:
        parameters["known"] = json.dumps(unreachable)
        conditions.append(UNREACHABLE)
    if graph_type is not None:
        conditions.append("g.graph_type = :type")
    if version is not None:
        parameters["version"] = version
        conditions.append("g.version = :version")
    tables = _TABLES
    if state is not None or (behind is None and unreachable is None and version is None):
        conditions += [page] if after is not None else []
    else:
        if behind is not None:
            versions = _behind(behind, oldest or {})
        elif unreachable is not None:
            versions = _outside(source, unreachable)
        else:
            versions = [(graph_type or "", version or 0)]
        pages = _pages(versions, parameters)
        tables = f"FROM (SELECT * FROM ({pages}) pages ORDER BY slug LIMIT :limit) g {_OWNER}"  # noqa: S608 - own text
    if behind is not None and state is not None:
        conditions.append(
            "g.version < coalesce((CAST(:behind AS jsonb) ->> g.graph_type)::integer, 0) "
            "AND g.version >= coalesce((CAST(:oldest AS jsonb) ->> g.graph_type)::integer, 1)"
        )
    parameters |= {"behind": json.dumps(behind), "oldest": json.dumps(oldest or {})}
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    statement = f"{_COLUMNS} {tables} {where} ORDER BY {order} LIMIT :limit"
    return [GraphSummary.model_validate(dict(row)) for row in rows_of(source, statement, parameters)]


UNREACHABLE = """
CAST(:known AS jsonb) ? g.graph_type AND g.version NOT BETWEEN
    (CAST(:known AS jsonb) -> g.graph_type ->> 0)::integer AND (CAST(:known AS jsonb) -> g.graph_type ->> 1)::integer
"""
"""Of graphs `g`: those whose version their type does not know; `known` has the oldest and newest version by type."""


def _behind(newest: dict[str, int], oldest: dict[str, int]) -> list[tuple[str, int]]:
    """The versions that are behind, by type."""
    return [
        (kind, version) for kind, limit in newest.items() for version in range(oldest.get(kind, 1), limit)
    ]


_VERSIONS = """
WITH RECURSIVE found AS (
    (SELECT version FROM graph_migrator.graphs WHERE graph_type = :type ORDER BY version LIMIT 1)
    UNION ALL
    SELECT (SELECT g.version FROM graph_migrator.graphs g WHERE g.graph_type = :type AND g.version > f.version
            ORDER BY g.version LIMIT 1) FROM found f WHERE f.version IS NOT NULL
) SELECT version FROM found WHERE version IS NOT NULL
"""
"""The versions that graphs of a type have: one step of the index for each, not one row for each graph."""


def _outside(source: Engine | Connection, known: dict[str, tuple[int, int]]) -> list[tuple[str, int]]:
    """The versions of graphs that their type does not know, by type."""
    return [
        (kind, row["version"])
        for kind, (oldest, newest) in known.items()
        for row in rows_of(source, _VERSIONS, {"type": kind})
        if not oldest <= row["version"] <= newest
    ]


def _pages(versions: list[tuple[str, int]], parameters: dict[str, Any]) -> str:
    """The first page of each version. The index by type, version and slug has it in order."""
    pages: list[str] = []
    for n, (kind, version) in enumerate(versions):
        parameters |= {f"type_{n}": kind, f"version_{n}": version}
        pages.append(
            f"(SELECT * FROM graph_migrator.graphs WHERE graph_type = :type_{n} AND version = :version_{n} "  # noqa: S608 - own text
            f"{'' if parameters['after'] is None else 'AND slug > :after'} ORDER BY slug LIMIT :limit)"
        )
    return " UNION ALL ".join(pages) or "SELECT * FROM graph_migrator.graphs WHERE false"


_COLUMNS = f"""
SELECT g.id, g.slug, g.graph_type, g.version, {_READ_ONLY} AS read_only,
       g.partially_migrated IS NOT NULL AS partially_migrated,
       g.migration_id, m.status, m.to_version, g.changed_at,
       CASE WHEN g.undo_id IS NOT NULL
            THEN nullif(graph_migrator.undoable_down_to(g.id), g.version) END AS undoable_to,
       CASE WHEN m.status = 'failed' THEN (SELECT a.hop_name FROM graph_migrator.hop_attempts a
           WHERE a.graph_id = g.id AND a.migration_id = m.id ORDER BY a.id DESC LIMIT 1) END AS hop,
       CASE WHEN m.status = 'failed' THEN concat_ws(': ', m.error_type, m.error_message) END AS error
"""  # noqa: S608 - own text

_OWNER = "LEFT JOIN graph_migrator.migrations m ON m.id = g.migration_id"

_TABLES = f"FROM graph_migrator.graphs g {_OWNER}"

_SUMMARY = f"{_COLUMNS} {_TABLES} "

_WHICH = "WHERE g.id = (SELECT graph_migrator.graph_id_of(:graph))"


def find_graph(source: Engine | Connection, graph: str) -> GraphSummary:
    """One graph by id or slug.

    Raises:
        UnknownGraph: Nothing has it.
    """
    found = rows_of(source, _SUMMARY + _WHICH, {"graph": graph})
    if not found:
        raise UnknownGraph(graph)
    return GraphSummary.model_validate(dict(found[0]))


def partial_hop(source: Engine | Connection, graph_id: UUID) -> dict[str, Any]:
    """The batched hop in whose middle a graph was released: hop, from_version, to_version, done."""
    statement = "SELECT partially_migrated AS hop FROM graph_migrator.graphs WHERE id = :id"
    found: dict[str, Any] = rows_of(source, statement, {"id": graph_id})[0]["hop"]
    return found


def require_free(source: Engine | Connection, found: GraphSummary) -> None:
    """Refuse a `migrate_graph` call that a worker would refuse in the graph's present state.

    Raises:
        MigrationInFlight: Another migration owns the graph.
        GraphPartiallyMigrated: It was released in the middle of a hop.
    """
    if found.status is not None and found.status.is_live:
        raise MigrationInFlight(found.slug, str(found.migration_id), found.status, found.to_version or 0)
    if found.partially_migrated:
        half = partial_hop(source, found.id)
        raise GraphPartiallyMigrated(
            found.slug,
            half["hop"],
            half["from_version"],
            half["to_version"],
            half["done"],
            force_released=True,
        )


def counts(source: Engine | Connection) -> dict[str, int]:
    """How many migrations have each status, and how many graphs there are (`graphs`).

    Where a count takes long, that of the last minutes, as monitoring shows it.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return counts(connection)
    found = current_counts(source)
    totals = Counter({"graphs": sum(number for _, _, number, _ in found["graphs"])})
    for _, status, number in found["migrations"]:
        totals[status] += number
    return dict(totals)


def rows_of(source: Engine | Connection, statement: str, parameters: dict[str, Any]) -> list[RowMapping]:
    """The rows of a statement, on a connection of its own where an engine is given."""
    if isinstance(source, Engine):
        with source.connect() as connection:
            return rows_of(connection, statement, parameters)
    return list(source.execute(text(statement), parameters).mappings())
