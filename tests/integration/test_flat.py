"""What a call costs does not grow with the number of graphs: each statement reads a few pages, by an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text

from graph_migrator.core.inspection.graphs import list_graphs

GRAPHS = 20_000
FEW = 75
"""Pages: some levels of a handful of indexes, and the catalogue's. A whole index of the filled tables has more."""

IN_THE_MIDDLE = "graph-12345"


@pytest.fixture(scope="module")
def fleet(postgres, template_database) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    """A database with many graphs, each with a settled migration, and many that wait; statistics are fresh."""
    from graph_migrator.core.store.connections import make_engine
    from tests.databases import administer

    administer(postgres, f"CREATE DATABASE test_fleet TEMPLATE {template_database} STRATEGY file_copy")
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
                "UPDATE migrations SET status = 'failed', error_type = 'E', finished_at = now() "
                "WHERE status = 'queued' "
                "AND graph_id IN (SELECT id FROM graphs ORDER BY id LIMIT 30)"
            )
        )
        connection.execute(
            text(
                "UPDATE graphs SET graph_type = 'rare', version = 1 WHERE id IN (SELECT id FROM graphs LIMIT 30)"
            )
        )
        connection.execute(
            text(
                "UPDATE graphs g SET migration_id = m.id FROM migrations m "
                "WHERE m.graph_id = g.id AND m.status IN ('queued', 'failed')"
            )
        )
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE graph_migrator.graphs ENABLE TRIGGER USER"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    yield engine
    engine.dispose()
    administer(postgres, "DROP DATABASE test_fleet WITH (FORCE)")


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
    "begin": "SELECT * FROM graph_migrator.lock_and_load_graph(:graph, 'no such request', 1000, false)",
    "operator": "SELECT * FROM graph_migrator.load_operator_state(:graph, 'no such request')",
    "lock by owner": "SELECT * FROM graph_migrator.set_owner_read_only(:graph, true)",
    "refusal": "SELECT graph_migrator.record_outcome('a', 'migrate', :graph, 3, '{}', NULL)",
    "sweep": "SELECT * FROM graph_migrator.recovery_candidates(500)",
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


LISTS = {
    "first page": {},
    "deep page": {"after": "graph-9"},
    "one type": {"graph_type": "knowledge"},
    "a rare type": {"graph_type": "rare"},
    "behind": {"behind": {"knowledge": 9, "rare": 2}},
    "behind, deep page": {"behind": {"knowledge": 9}, "after": "graph-9"},
    "nothing behind": {"behind": {"knowledge": 2}},
    "a common state": {"state": "queued"},
    "a common state, deep page": {"state": "queued", "after": IN_THE_MIDDLE},
    "a rare state": {"state": "failed"},
    "no such state now": {"state": "paused"},
    "owner": {"state": "owner"},
    "partially migrated": {"state": "partially-migrated"},
}


@pytest.mark.parametrize("filters", LISTS.values(), ids=LISTS.keys())
def test_a_page_of_a_list_reads_a_few_pages(fleet: Engine, filters: dict[str, Any]) -> None:
    statements: list[tuple[str, Any]] = []

    def remember(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    with fleet.connect() as connection:
        event.listen(connection, "before_cursor_execute", remember)
        list_graphs(connection, limit=10, **filters)
        event.remove(connection, "before_cursor_execute", remember)
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            )
            top = plan.scalar_one()[0]["Plan"]
            assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] <= FEW, statement


def test_pages_of_every_list_are_its_graphs_once_each(fleet: Engine) -> None:
    filters: dict[str, Any]
    for filters, expected in (
        ({"graph_type": "rare"}, 30),
        ({"state": "failed"}, 30),
        ({"behind": {"knowledge": 2, "rare": 2}}, 30),
    ):
        found: list[str] = []
        while page := list_graphs(fleet, limit=7, after=found[-1] if found else None, **filters):
            found += [graph.slug for graph in page]
        assert len(found) == len(set(found)) == expected, filters


def test_a_whole_index_would_be_noticed(fleet: Engine) -> None:
    with fleet.connect() as connection:
        everything = "SELECT count(*) FROM graph_migrator.graphs WHERE slug = :graph OR id::text = :graph"
        assert pages(connection, everything, graph=IN_THE_MIDDLE) > FEW
