"""What the guard holds of the graphs' own rows."""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.integration.hand_driven import REFUSED, Client, HandDriven, add_graph, sqlstate_of


@pytest.mark.parametrize(
    "change",
    [
        "version = 3",
        "graph_type = 'other'",
        "id = gen_random_uuid()",
        "changed_at = now() - interval '1 day'",
        "changed_at = NULL",
        "partially_migrated = '{}'",
        "migration_id = (SELECT id FROM migrations LIMIT 1)",
    ],
)
def test_an_application_cannot_change_what_belongs_to_migrations(
    app: Client, graph: UUID, migration: HandDriven, change: str
) -> None:
    migration.run()
    before = app.one("SELECT g::text FROM graphs g")
    app.commit()
    assert sqlstate_of(app.run, f"UPDATE graphs SET {change} WHERE id = %s", graph) == "23000"
    app.rollback()
    assert app.one("SELECT g::text FROM graphs g") == before


@pytest.mark.parametrize("change", ["slug = 'other'", "config = '{\"a\": 1}'", "created_at = now()"])
def test_a_claimed_graph_is_changed_by_nobody_else(
    app: Client, graph: UUID, migration: HandDriven, change: str
) -> None:
    app.do(f"UPDATE graphs SET {change} WHERE id = %s", graph)
    app.do("UPDATE graphs SET slug = 'people', config = '{}' WHERE id = %s", graph)
    app.do("UPDATE graphs SET created_at = now() - interval '1 day' WHERE id = %s", graph)
    migration.begin()
    assert sqlstate_of(app.run, f"UPDATE graphs SET {change} WHERE id = %s", graph) == REFUSED
    app.rollback()
    app.do("UPDATE graphs SET owner_read_only = true, updated_at = now() WHERE id = %s", graph)


def test_a_graph_is_not_born_claimed_nor_dated_in_the_future(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    insert = (
        "INSERT INTO graphs (id, slug, graph_type, version, {}) VALUES (gen_random_uuid(), 'x', 'k', 1, {})"
    )
    assert sqlstate_of(app.run, insert.format("migration_id", f"'{migration.id}'")) == "23000"
    app.rollback()
    for date in ("now() + interval '1 hour'", "NULL"):
        app.run(insert.format("changed_at", date))
        assert app.one("SELECT changed_at <= now() FROM graphs WHERE slug = 'x'")
        app.rollback()


def test_a_claim_is_only_for_a_migration_of_the_same_graph_and_not_passed_on(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    other = add_graph(app, "other")
    claim = "UPDATE graphs SET migration_id = %s WHERE id = %s"
    app.run("SELECT set_config('graph_migrator.executor', %s, false)", str(migration.id))
    app.commit()
    assert sqlstate_of(app.run, claim, migration.id, other) == "23000"
    app.rollback()
    second = HandDriven(database_url, other).begin()
    assert sqlstate_of(app.run, claim, second.id, graph) == "23000"
    second.close()


def test_an_unclaimed_graph_is_deleted_with_its_rows_and_a_locked_one_is_not(
    app: Client, graph: UUID
) -> None:
    delete = "DELETE FROM graphs WHERE id = %s"
    app.run("INSERT INTO edges VALUES (%s, 'e', 'n1', 'n2', 'KNOWS')", graph)
    app.do("UPDATE graphs SET owner_read_only = true WHERE id = %s", graph)
    assert sqlstate_of(app.run, delete, graph) == REFUSED
    app.rollback()
    app.do("UPDATE graphs SET owner_read_only = false WHERE id = %s", graph)
    app.do(delete, graph)
    assert app.one("SELECT (SELECT count(*) FROM nodes) + (SELECT count(*) FROM edges)") == 0
