"""The triggers behind `graph_writer`: whatever forgot to ask is refused, and the executor is not."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, NotSupportedError

from graph_migrator.core.errors import GraphReadOnly
from graph_migrator.core.store import protocol
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.writers import translate_guard_error
from tests.integration.hand_driven import (
    FENCED,
    ISOLATIONS,
    READ_COMMITTED,
    REFUSED,
    RENAME,
    Client,
    HandDriven,
    sqlstate_of,
)

STATEMENTS = [
    "INSERT INTO nodes VALUES (%(g)s, 'new', 'w')",
    "UPDATE nodes SET label = 'w' WHERE graph_id = %(g)s",
    "DELETE FROM nodes WHERE graph_id = %(g)s",
    "INSERT INTO edges VALUES (%(g)s, 'e', 'n1', 'n2', 'KNOWS')",
]


# ── the triggers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_code_that_forgot_to_ask_is_refused_with_the_same_error(
    database_url: str, graph: UUID, migration: HandDriven, statement: str, isolation: str
) -> None:
    migration.begin()
    engine = make_engine(database_url, isolation_level=isolation)
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.exec_driver_sql(statement, {"g": graph})
    message = caught.value.orig.diag.message_primary  # type: ignore[union-attr]
    for part in ("people", "migrating", str(migration.id)):
        assert part in message
    error = translate_guard_error(caught.value)
    assert isinstance(error, GraphReadOnly)
    assert (error.graph, error.reason, error.migration_id) == ("people", "migrating", str(migration.id))
    engine.dispose()


@pytest.mark.parametrize("table", ["nodes", "edges", "graphs"])
def test_truncate_is_refused(engine: Engine, graph: UUID, table: str) -> None:
    with engine.connect() as connection, pytest.raises(NotSupportedError) as caught:
        connection.exec_driver_sql(f"TRUNCATE graph_migrator.{table} CASCADE")
    assert f"{table} holds rows of graphs" in str(caught.value)
    assert translate_guard_error(caught.value) is None


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ('{"knowledge": 1}', None),
        ('{"knowledge": 2}', REFUSED),
        ('{"other": 2}', None),
        ("{}", None),
        ("", None),
        ("nonsense", "22P02"),
    ],
)
def test_a_session_may_declare_the_versions_it_writes(
    app: Client, graph: UUID, declared: str, expected: str | None
) -> None:
    app.run("SELECT set_config('graph_migrator.versions', %s, true)", declared)
    assert sqlstate_of(app.run, RENAME, graph) == expected
    app.rollback()
    assert sqlstate_of(app.run, RENAME, graph) is None  # the declaration ended with its transaction


def test_versions_may_be_declared_in_the_connections_options(database_url: str, graph: UUID) -> None:
    client = Client(database_url, READ_COMMITTED, **{"graph_migrator.versions": '{"knowledge":2}'})
    assert sqlstate_of(client.run, RENAME, graph) == REFUSED
    client.close()


def test_a_declared_version_does_not_bind_the_executor(graph: UUID, migration: HandDriven) -> None:
    migration.begin()
    migration.open_hop()
    with migration.data() as run:
        run("SET LOCAL graph_migrator.versions = '{\"knowledge\": 7}'")
        assert run(RENAME, graph) == 2


def test_the_guard_needs_no_rights_on_the_graphs_and_no_search_path(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    role = f"app_{uuid4().hex[:12]}"
    app.do(f"""
        CREATE ROLE {role}; GRANT USAGE ON SCHEMA graph_migrator TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON nodes TO {role}; GRANT TEMPORARY ON DATABASE {_database(app)} TO {role}
    """)
    client = Client(database_url)
    client.run(f"SET ROLE {role}")
    client.run("SET search_path = pg_temp, public")
    # Tables of the same names that come first, where the functions would look without a path of their own.
    client.run("CREATE TEMPORARY TABLE graphs AS SELECT 1 AS id")
    client.run("CREATE FUNCTION pg_temp.lock_key(uuid) RETURNS bigint LANGUAGE sql AS 'SELECT 1'")
    client.commit()
    client.do("UPDATE graph_migrator.nodes SET label = 'w' WHERE graph_id = %s", graph)
    client.rollback()
    migration.begin()
    assert (
        sqlstate_of(client.run, "UPDATE graph_migrator.nodes SET label = 'x' WHERE graph_id = %s", graph)
        == REFUSED
    )
    client.rollback()
    assert sqlstate_of(client.run, "SELECT * FROM graph_migrator.write_guard('people', 1)") == REFUSED
    client.close()
    app.do(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_session_that_plays_a_replica_is_guarded_too(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    app.run("SET session_replication_role = replica")
    assert sqlstate_of(app.run, RENAME, graph) == REFUSED
    app.rollback()
    app.run("SET session_replication_role = replica")
    assert sqlstate_of(app.run, "UPDATE graphs SET version = 9 WHERE id = %s", graph) == REFUSED


def test_a_statement_over_a_thousand_graphs_passes_and_one_more_is_refused(app: Client) -> None:
    app.do("""
        INSERT INTO graphs (id, slug, graph_type, version)
            SELECT gen_random_uuid(), 'g' || i, 'knowledge', 1 FROM generate_series(1, 1001) i
    """)
    fill = "INSERT INTO nodes SELECT id, 'n', 'v1' FROM graphs WHERE slug <> 'g1001'"
    app.do(fill)
    app.do("INSERT INTO nodes SELECT id, 'n', 'v1' FROM graphs WHERE slug = 'g1001'")
    assert sqlstate_of(app.run, "UPDATE nodes SET label = 'w'") == "54000"
    app.rollback()
    app.do("UPDATE nodes SET label = 'w' WHERE graph_id <> (SELECT id FROM graphs WHERE slug = 'g7')")
    assert sqlstate_of(app.run, "DELETE FROM nodes") == "54000"


# ── the executor ──────────────────────────────────────────────────────────────────────────────────────


def test_the_executor_writes_its_graph(graph: UUID, app: Client, migration: HandDriven) -> None:
    migration.run()
    assert app.run("SELECT DISTINCT label FROM nodes") == [("v2",)]
    assert app.one("SELECT version, migration_id FROM graphs") == (2, None)


def test_an_owners_lock_set_during_a_migration_does_not_stop_it(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    app.do("UPDATE graphs SET owner_read_only = true WHERE id = %s", graph)
    migration.run_hop()
    assert app.one("SELECT version FROM graphs") == 2


def test_the_migrations_name_without_the_lock_is_no_executor(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    migration.open_hop()
    app.run("SELECT set_config('graph_migrator.executor', %s, false)", str(migration.id))
    app.commit()
    assert sqlstate_of(app.run, RENAME, graph) == FENCED
    app.rollback()
    assert sqlstate_of(app.run, "UPDATE graphs SET version = 9 WHERE id = %s", graph) == FENCED


def test_the_lock_without_the_migrations_name_is_no_executor(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    app.run("SELECT pg_advisory_lock(lock_key(%s))", graph)
    app.commit()
    for statement in (RENAME, "UPDATE graphs SET version = 9 WHERE id = %s"):
        assert sqlstate_of(app.run, statement, graph) == REFUSED
        app.rollback()


def test_rows_written_after_a_change_of_version_in_the_same_transaction_pass(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    """The caller of execute_migration goes on in its own transaction, which began before that change."""
    migration.begin()
    migration.open_hop()
    with migration.executor.transaction(), migration.executor.cursor() as cursor:
        cursor.execute(RENAME, (graph,))
        migration.executor.call(
            protocol.FinishHop(
                attempt=migration._attempt,
                migration=migration.id,
                graph=graph,
                from_=1,
                to=2,
                status="succeeded",
                rows=0,
                done=None,
                last=True,
                callers=True,
                deadline_seconds=30.0,
                checkpoint=True,
            )
        )
        cursor.execute(RENAME, (graph,))
        assert cursor.rowcount == 2


def _database(client: Client) -> str:
    return str(client.raw.info.dbname)
