"""What is wrong now and what moves: the first page of the console, in the order in which an operator acts.

Each list reads along an index and has an end, so that a fleet in trouble costs no more than a healthy one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import UnreachableGraph
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.inspection.running import RUNNING_HOP
from graph_migrator.core.statuses import MigrationStatus

MAX_LISTED: Final = 1_000
"""Graphs of one kind that are looked at; beyond it a number is a lower bound."""
STALLED_SECONDS: Final = 60
"""Past the deadline at which recovery redelivers by so much: no worker is recovering."""


class Trouble(BaseModel):
    """One thing that is wrong, and the one next step."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(
        description="failed, partially-migrated, stalled, paused, unreachable; held, fleet-held, over-limit; "
        "no-worker, broker-unreachable."
    )
    what: str
    since: datetime | None
    graphs: int = Field(description="How many graphs it is about.")
    more: bool = Field(False, description="Whether `graphs` is a lower bound.")
    example: str | None = Field(None, description="The slug of one of them, or the rollout's id.")
    next_step: str
    command: str = Field(description="The command of the next step.")


class Moving(BaseModel):
    """A migration that is under way."""

    model_config = ConfigDict(frozen=True)

    graph: str
    graph_id: UUID
    graph_type: str
    migration_id: UUID
    status: MigrationStatus
    from_version: int
    version: int
    to_version: int
    hop: str | None = Field(description="The hop that runs; None between two hops.")
    done: int | None = Field(description="Rows of it that are done.")
    total: int | None
    rows_per_second: float | None
    since: datetime = Field(description="When the migration was asked for.")


_FAILED = """
WITH failed AS (
    SELECT g.slug, m.graph_type, m.error_type, m.error_message, m.finished_at, m.id
    FROM graph_migrator.migrations m JOIN graph_migrator.graphs g ON g.migration_id = m.id
    WHERE m.status = 'failed' ORDER BY m.graph_id LIMIT :most
), grouped AS (
    SELECT graph_type, error_type, count(*) AS graphs, min(finished_at) AS since, min(slug) AS example,
           (array_agg(error_message ORDER BY slug))[1] AS message, (array_agg(id ORDER BY slug))[1] AS id,
           sum(count(*)) OVER () AS seen
    FROM failed GROUP BY graph_type, error_type
)
SELECT *, (SELECT a.hop_name FROM graph_migrator.hop_attempts a WHERE a.migration_id = grouped.id
           ORDER BY a.id DESC LIMIT 1) AS hop
FROM grouped ORDER BY since
"""
_PARTIAL = """
SELECT slug, updated_at FROM graph_migrator.graphs WHERE partially_migrated IS NOT NULL ORDER BY slug LIMIT :most
"""
_STALLED = """
SELECT g.slug, m.deadline FROM graph_migrator.migrations m JOIN graph_migrator.graphs g ON g.migration_id = m.id
WHERE m.status IN ('queued', 'running', 'pausing', 'cancelling')
  AND m.deadline < statement_timestamp() - make_interval(secs => :overdue)
  AND NOT EXISTS (SELECT FROM graph_migrator.hop_attempts a WHERE a.migration_id = m.id AND a.status = 'running')
ORDER BY m.deadline LIMIT :most
"""
_PAUSED = """
SELECT g.slug, m.started_at FROM graph_migrator.migrations m JOIN graph_migrator.graphs g ON g.migration_id = m.id
WHERE m.status = 'paused' ORDER BY m.graph_id LIMIT :most
"""
# The versions in use, one look into the index for each, whatever the number of graphs. Counted in the index's order, or
# the planner would read the table for the graphs of a rare version.
_VERSIONS = """
WITH RECURSIVE used AS (
    (SELECT graph_type, version FROM graph_migrator.graphs ORDER BY graph_type, version LIMIT 1)
    UNION ALL
    SELECT n.graph_type, n.version FROM used u CROSS JOIN LATERAL (
        SELECT g.graph_type, g.version FROM graph_migrator.graphs g
        WHERE (g.graph_type, g.version) > (u.graph_type, u.version) ORDER BY g.graph_type, g.version LIMIT 1) n
)
SELECT u.graph_type, u.version, (
    SELECT count(*) FROM (SELECT FROM graph_migrator.graphs g
                          WHERE g.graph_type = u.graph_type AND g.version = u.version
                          ORDER BY g.slug LIMIT :most) counted) AS graphs,
    (SELECT g.slug FROM graph_migrator.graphs g
     WHERE g.graph_type = u.graph_type AND g.version = u.version ORDER BY g.slug LIMIT 1) AS example
FROM used u
"""
# Of each status a page, by name so that the index of live ones serves: all that are queued may be many.
_MOVING = f"""
SELECT g.slug AS graph, g.id AS graph_id, g.graph_type, m.id AS migration_id, m.status, m.from_version, g.version,
       m.to_version, a.hop_name AS hop, a.done, a.total, a.rows_per_second, m.created_at AS since
FROM (SELECT * FROM ({
    " UNION ALL ".join(
        f"(SELECT m.*, {place} AS place FROM graph_migrator.migrations m "
        f"WHERE m.status = '{status}' ORDER BY m.graph_id LIMIT :limit)"
        for place, status in enumerate(("running", "pausing", "cancelling", "queued"))
    )
}) each ORDER BY place, graph_id LIMIT :limit) m
JOIN graph_migrator.graphs g ON g.migration_id = m.id
{RUNNING_HOP}
ORDER BY m.place, m.graph_id
"""  # noqa: S608 - own text


def troubles(source: Engine | Connection, types: Mapping[str, GraphType]) -> list[Trouble]:
    """What is wrong with graphs now.

    Args:
        source: The database.
        types: The graph types that this process knows; graphs of others are not judged.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return troubles(connection, types)
    return [*_failed(source), *_graphs(source), *_unreachable(source, types)]


def oldest_first(found: Iterable[Trouble]) -> list[Trouble]:
    """Troubles in the order in which they are shown. What has no date comes last."""
    return sorted(found, key=lambda each: (each.since is None, each.since or 0))


def moving(source: Engine | Connection, *, limit: int = 20) -> list[Moving]:
    """Migrations that are under way, running ones first."""
    if isinstance(source, Engine):
        with source.connect() as connection:
            return moving(connection, limit=limit)
    rows = source.execute(text(_MOVING), {"limit": limit}).mappings()
    return [Moving.model_validate(dict(row)) for row in rows]


class VersionInUse(BaseModel):
    """How many graphs of a type are at a version."""

    model_config = ConfigDict(frozen=True)

    graph_type: str
    version: int
    graphs: int = Field(description=f"Counted up to {MAX_LISTED:,}.")
    example: str = Field(description="The first of them by slug.")

    @property
    def more(self) -> bool:
        """Whether `graphs` is a lower bound."""
        return self.graphs >= MAX_LISTED


def versions_in_use(source: Engine | Connection) -> list[VersionInUse]:
    """The versions that graphs have, by type."""
    if isinstance(source, Engine):
        with source.connect() as connection:
            return versions_in_use(connection)
    rows = source.execute(text(_VERSIONS), {"most": MAX_LISTED}).mappings()
    return [VersionInUse.model_validate(dict(row)) for row in rows]


def _failed(connection: Connection) -> list[Trouble]:
    found = []
    for row in connection.execute(text(_FAILED), {"most": MAX_LISTED}):
        error = (row.error_type or "").removeprefix("graph_migrator.")
        where = f" in hop {row.hop!r}" if row.hop else ""
        found.append(
            Trouble(
                kind="failed",
                what=f"{count(row.graphs, 'graph')} of {row.graph_type!r} failed{where}: {error}: {row.message}",
                since=row.since,
                graphs=row.graphs,
                more=row.seen >= MAX_LISTED,
                example=row.example,
                next_step="See what failed, correct it, and retry.",
                command=f"graph-migrator history {row.example}",
            )
        )
    return found


def _graphs(connection: Connection) -> list[Trouble]:
    kinds = (
        (
            "partially-migrated", _PARTIAL, "released by force in the middle of a hop", "Finish the hop.",
            "graph-migrator retry {graph}",
        ),
        (
            "stalled", _STALLED, "past the deadline at which recovery redelivers", "Start a worker.",
            "celery -A graph_migrator worker -Q migrations",
        ),
        ("paused", _PAUSED, "paused by an operator", "Resume, when you are ready.", "graph-migrator resume {graph}"),
    )  # fmt: skip
    found = []
    for kind, statement, what, next_step, command in kinds:
        rows = connection.execute(text(statement), {"most": MAX_LISTED, "overdue": STALLED_SECONDS}).all()
        if rows:
            found.append(
                Trouble(
                    kind=kind,
                    what=f"{count(len(rows), 'graph')} {what}.",
                    since=min((row[1] for row in rows if row[1] is not None), default=None),
                    graphs=len(rows),
                    more=len(rows) >= MAX_LISTED,
                    example=rows[0].slug,
                    next_step=next_step,
                    command=command.format(graph=rows[0].slug),
                )
            )
    return found


def _unreachable(connection: Connection, types: Mapping[str, GraphType]) -> list[Trouble]:
    found = []
    for each in versions_in_use(connection):
        kind = types.get(each.graph_type)
        if kind is None or kind.oldest <= each.version <= kind.newest:
            continue
        error = UnreachableGraph(each.example, kind.name, each.version, kind.oldest, kind.newest)
        found.append(
            Trouble(
                kind="unreachable",
                what=f"{count(each.graphs, 'graph')} of {kind.name!r} at v{each.version}, which the type does not "
                f"know: it knows v{kind.oldest} to v{kind.newest}.",
                since=None,
                graphs=each.graphs,
                more=each.more,
                example=each.example,
                next_step=error.way_out,
                command=f"graph-migrator graphs --type {kind.name} --unreachable",
            )
        )
    return found
