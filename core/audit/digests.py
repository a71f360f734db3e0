"""Whether graphs still are what their last hop left, by the content digests that types with `digest=True` record."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, text

from graph_migrator.core.inspection.graphs import find_graph
from graph_migrator.core.store.schema import require_current


class DataDifference(BaseModel):
    """A graph whose nodes and edges are not those that its last hop left."""

    model_config = ConfigDict(frozen=True)

    graph: str
    graph_id: UUID
    attempt_id: int = Field(description="The attempt of the last hop that was applied.")
    version: int = Field(description="What that hop led to.")
    then: str = Field(description="The digest after it: number of rows, and two sums over their hashes.")
    now: str


class DataVerification(BaseModel):
    """What `verify_data` found."""

    model_config = ConfigDict(frozen=True)

    graphs: int = Field(description="Graphs whose data was compared.")
    migrating: int = Field(description="Graphs left out, because a migration owns them.")
    without_digest: int = Field(description="Graphs left out, because their last hop recorded no digest.")
    differences: tuple[DataDifference, ...]


# The last hop of each graph, or of the named ones, a page at a time.
_LAST = """
SELECT g.id, g.slug, g.migration_id IS NOT NULL AS owned, a.id AS attempt_id, a.to_version, a.digest_after
FROM graph_migrator.graphs g LEFT JOIN LATERAL (
    SELECT * FROM graph_migrator.hop_attempts
    WHERE graph_id = g.id AND link IS NOT NULL AND shard IS NULL AND status IN ('succeeded', 'skipped')
    ORDER BY link DESC LIMIT 1) a ON true
WHERE g.id > :after AND (:every OR g.id = ANY (CAST(:graphs AS uuid[]))) ORDER BY g.id LIMIT 500
"""
_STILL = """
SELECT graph_migrator.graph_digest(g.id) FROM graph_migrator.graphs g
WHERE g.id = :graph AND g.migration_id IS NULL AND g.version = :version
"""


def verify_data(engine: Engine, graphs: Sequence[str] = ()) -> DataVerification:
    """Compute the digest of each graph and compare it with the one after its last hop.

    Each graph is read in a transaction of its own: one that a migration takes meanwhile is left out.

    Args:
        engine: The database.
        graphs: Ids or slugs; all graphs where it is empty.

    Raises:
        UnknownGraph: Nothing has one of these ids or slugs.
        SchemaOutdated: The tables are not those of this release.
    """
    with engine.connect() as connection:
        require_current(connection)
    named = [find_graph(engine, graph).id for graph in graphs]
    compared = migrating = without = 0
    differences: list[DataDifference] = []
    after = UUID(int=0)
    while True:
        with engine.connect() as connection:
            page = connection.execute(
                text(_LAST), {"after": after, "every": not graphs, "graphs": named}
            ).all()
        for row in page:
            if row.owned:
                migrating += 1
                continue
            if row.digest_after is None:
                without += 1
                continue
            with engine.connect() as connection:
                now = connection.execute(text(_STILL), {"graph": row.id, "version": row.to_version}).scalar()
            if now is None:
                migrating += 1
                continue
            compared += 1
            if now != row.digest_after:
                differences.append(
                    DataDifference(
                        graph=row.slug,
                        graph_id=row.id,
                        attempt_id=row.attempt_id,
                        version=row.to_version,
                        then=row.digest_after,
                        now=now,
                    )
                )
        if not page:
            break
        after = page[-1].id
    return DataVerification(
        graphs=compared, migrating=migrating, without_digest=without, differences=tuple(differences)
    )
