"""What a call costs does not grow with the number of graphs: each statement reads a few pages, by an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text

GRAPHS = 20_000
FEW = 60
"""Pages: some levels of a handful of indexes, and the catalogue's. A whole index of the filled tables has more."""

IN_THE_MIDDLE = "graph-12345"


@pytest.fixture(scope="module")
def fleet(postgres, template_database) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    """A database with many graphs, each with a settled migration, and many that wait; statistics are fresh."""
    from graph_migrator.core.store.connections import make_engine
    from tests.conftest import _administer

    _administer(postgres, f"CREATE DATABASE test_fleet TEMPLATE {template_database} STRATEGY file_copy")
    engine = make_engine(postgres.url_of("test_fleet"))
    with engine.begin() as connection:
        connection.execute(
            text("SET LOCAL search_path = graph_migrator; ALTER TABLE graphs DISABLE TRIGGER USER")
        )
        connection.execute(
            text(
                "INSERT INTO graphs (id, slug, graph_type, version) "
                "SELECT gen_random_uuid(), 'graph-' || n, 'knowledge', 2 FROM generate_series(1, :many) n"
            ),
            {"many": GRAPHS},
        )
        connection.execute(
            text(
                "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, "
                "finished_at, error_type) SELECT gen_random_uuid(), id, 'knowledge', 1, 2, 'succeeded', '[]', "
                "now(), now(), NULL FROM graphs"
            )
        )
        connection.execute(
            text(
                "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline) "
                "SELECT gen_random_uuid(), id, 'knowledge', 2, 3, 'queued', '[]', now() + interval '1 hour' FROM graphs"
            )
        )
        connection.execute(
            text(
                "UPDATE graphs g SET migration_id = m.id FROM migrations m "
                "WHERE m.graph_id = g.id AND m.status = 'queued'"
            )
        )
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE graph_migrator.graphs ENABLE TRIGGER USER"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    yield engine
    engine.dispose()
    _administer(postgres, "DROP DATABASE test_fleet WITH (FORCE)")


def pages(connection: Connection, statement: str, **parameters: object) -> int:
    """How many pages a statement reads, found in memory or not, once its plans and the catalogue are warm."""
    for _ in range(2):
        plan = connection.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"), parameters
        ).scalar()
    top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


STATEMENTS = {
    "find by slug": "SELECT graph_migrator.graph_id_of(:graph)",
    "begin": "SELECT * FROM graph_migrator.lock_and_load(:graph, 'no such request', 1000, false)",
    "operator": "SELECT * FROM graph_migrator.load_operator_state(:graph, 'no such request')",
    "lock by owner": "SELECT * FROM graph_migrator.set_owner_read_only(:graph, true)",
    "refusal": "SELECT graph_migrator.record_outcome('a', 'migrate', :graph, 3, '{}', NULL)",
    "sweep": "SELECT * FROM graph_migrator.candidates(500)",
}


@pytest.mark.parametrize("by", ["slug", "id"])
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_a_statement_reads_a_few_pages_whatever_the_number_of_graphs(
    fleet: Engine, statement: str, by: str
) -> None:
    with fleet.connect() as connection:
        found: UUID = connection.execute(
            text("SELECT id FROM graph_migrator.graphs WHERE slug = :slug"), {"slug": IN_THE_MIDDLE}
        ).scalar_one()
        graph = IN_THE_MIDDLE if by == "slug" else str(found).upper()
        assert pages(connection, statement, graph=graph) <= FEW


def test_a_whole_index_would_be_noticed(fleet: Engine) -> None:
    with fleet.connect() as connection:
        everything = "SELECT count(*) FROM graph_migrator.graphs WHERE slug = :graph OR id::text = :graph"
        assert pages(connection, everything, graph=IN_THE_MIDDLE) > FEW
