"""What application code meets when it changes a graph: `graph_writer`, and the triggers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from hand_driven import (
    FENCED,
    ISOLATIONS,
    READ_COMMITTED,
    REFUSED,
    Client,
    HandDriven,
    add_graph,
    in_background,
    sqlstate_of,
    wait_until_waiting,
)
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError, OperationalError
from sqlalchemy.orm import Session

from graph_migrator.core.errors import GraphReadOnly, GraphVersionMismatch, InvalidRequest, UnknownGraph
from graph_migrator.core.store import protocol
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.guard import install_guard, list_guards, remove_guard
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.store.tables import NodeRow
from graph_migrator.core.store.writers import WritableGraph, graph_writer, translate_guard_error

RENAME = "UPDATE nodes SET label = 'w' WHERE graph_id = %s"


@pytest.fixture
def app(database_url: str) -> Iterator[Client]:
    client = Client(database_url)
    yield client
    client.close()


@pytest.fixture
def graph(app: Client) -> UUID:
    return add_graph(app, "people")


@pytest.fixture
def migration(database_url: str, graph: UUID) -> Iterator[HandDriven]:
    migration = HandDriven(database_url, graph)
    yield migration
    migration.close()


# ── graph_writer ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by", ["id", "text of the id", "slug"])
def test_a_writer_is_let_in_and_gets_what_it_writes_to(engine: Engine, graph: UUID, by: str) -> None:
    name = {"id": graph, "text of the id": str(graph).upper(), "slug": "people"}[by]
    with Session(engine) as session, graph_writer(session, name, version=1) as found:
        session.add(NodeRow(graph_id=found.id, id="new", label="Person"))
        session.commit()
    assert found == WritableGraph(graph, "people", "knowledge", 1)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT label FROM nodes WHERE id = 'new'")) == "Person"


def test_a_writer_costs_one_round_trip(engine: Engine, graph: UUID) -> None:
    statements: list[str] = []
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *a: statements.append(a[2]))
        with graph_writer(connection, graph, version=1):
            pass
    assert len(statements) == 1


def test_an_unknown_graph_is_named(engine: Engine) -> None:
    with engine.connect() as connection:
        for name in ("nobody", uuid4()):
            with pytest.raises(UnknownGraph) as caught, graph_writer(connection, name):
                pass
            assert caught.value.graph == str(name)


def test_a_writer_for_another_version_is_refused_with_both_versions(engine: Engine, graph: UUID) -> None:
    with (
        engine.connect() as connection,
        pytest.raises(GraphVersionMismatch) as caught,
        graph_writer(connection, graph, version=3),
    ):
        pass
    assert (caught.value.graph, caught.value.expected, caught.value.found) == ("people", 3, 1)


def test_an_owners_lock_refuses_writers_and_says_since_when(engine: Engine, app: Client, graph: UUID) -> None:
    app.do("UPDATE graphs SET owner_read_only = true WHERE id = %s", graph)
    with (
        engine.connect() as connection,
        pytest.raises(GraphReadOnly) as caught,
        graph_writer(connection, graph),
    ):
        pass
    assert (caught.value.reason, caught.value.migration_id) == ("owner", None)
    assert caught.value.since == app.one(
        "SELECT to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM graphs"
    )


@pytest.mark.parametrize("reason", ["migrating", "error"])
def test_a_claimed_graph_refuses_writers_and_names_its_migration(
    engine: Engine, graph: UUID, migration: HandDriven, reason: str
) -> None:
    migration.begin()
    if reason == "error":
        migration.fail()
    with (
        engine.connect() as connection,
        pytest.raises(GraphReadOnly) as caught,
        graph_writer(connection, graph, version=1),
    ):
        pass
    assert (caught.value.graph, caught.value.reason) == ("people", reason)
    assert caught.value.migration_id == str(migration.id)
    assert caught.value.since is not None


def test_a_writer_is_refused_at_once_while_a_hop_runs(
    engine: Engine, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    migration.open_hop()
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(GraphReadOnly), graph_writer(connection, graph):
            pass


def test_refused_writers_never_stand_in_an_executors_way(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    """Between two hops the lock is free; a writer that touched it there would turn the next executor away."""
    migration.begin()
    stop = False

    def knock() -> int:
        client = Client(database_url)
        refused = 0
        while not stop:
            refused += sqlstate_of(client.run, "SELECT * FROM write_guard('people', NULL)") == REFUSED
            client.rollback()
            refused += sqlstate_of(client.run, RENAME, graph) == REFUSED
            client.rollback()
        client.close()
        return refused

    with in_background(knock) as knocking:
        for _ in range(1_500):
            assert migration.executor.call(
                protocol.LockAndLoadHop(migration=migration.id, to=2, dispatch=1)
            ).locked
            migration.release_lock()
        stop = True
        assert knocking.result() > 50


def test_a_connection_without_transactions_is_refused(engine: Engine, graph: UUID) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(InvalidRequest, match="autocommit"),
        graph_writer(connection, graph),
    ):
        pass


def test_what_a_session_flushes_at_the_end_of_the_block_is_refused_there(
    engine: Engine, app: Client, graph: UUID
) -> None:
    other = add_graph(app, "closed")
    app.do("UPDATE graphs SET owner_read_only = true WHERE id = %s", other)
    with (
        Session(engine) as session,
        pytest.raises(GraphReadOnly, match="closed"),
        graph_writer(session, graph),
    ):
        session.add(NodeRow(graph_id=other, id="new", label="Person"))


def test_other_errors_in_the_block_stay_what_they_are(engine: Engine, graph: UUID) -> None:
    with engine.connect() as connection, pytest.raises(IntegrityError), graph_writer(connection, graph):
        connection.execute(text("INSERT INTO nodes VALUES (:g, 'n1', 'v1')"), {"g": graph})
    with engine.connect() as connection, pytest.raises(KeyError), graph_writer(connection, graph):
        raise KeyError("mine")


def test_a_writer_leaves_nothing_behind_when_its_transaction_ends(
    database_url: str, engine: Engine, graph: UUID, migration: HandDriven
) -> None:
    with engine.connect() as connection:
        with graph_writer(connection, graph, version=1):
            pass
        connection.commit()
        migration.lock_and_load(wait_ms=200)  # would time out on a lock left behind
        assert connection.scalar(text("SELECT current_setting('graph_migrator.versions', true)")) in {
            None,
            "",
        }


def test_a_writer_waits_no_longer_than_its_lock_timeout(
    engine: Engine, graph: UUID, migration: HandDriven
) -> None:
    migration.lock_and_load()
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(OperationalError) as caught, graph_writer(connection, graph):
            pass
    assert caught.value.orig.pgcode == "55P03"  # type: ignore[union-attr]
    assert translate_guard_error(caught.value) is None


# ── begin and open write transactions───────────────────────────────────────────────────────────────────


def test_begin_waits_for_writers_in_flight(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    app.run("SELECT * FROM write_guard('people', 1)")
    observer = Client(database_url)
    with in_background(migration.lock_and_load) as entering:
        wait_until_waiting(observer, migration.pid)
        assert not entering.done()
        app.run(RENAME, graph)
        app.commit()
        facts = entering.result()
    assert facts.locked
    observer.close()


def test_begin_is_refused_by_a_writer_that_does_not_finish_and_changes_nothing(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    app.run(RENAME, graph)
    assert sqlstate_of(migration.lock_and_load, 50) == "55P03"
    (holder,) = lock_holders(migration.executor.connection, "people")
    assert f"pid {app.pid} " in holder
    app.commit()
    assert app.one("SELECT migration_id FROM graphs") is None


def test_begin_takes_a_graph_at_the_version_it_planned_from_only(
    app: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.lock_and_load()
    migration.version, migration.target = 2, 3
    assert sqlstate_of(migration.claim) == FENCED
    assert app.one("SELECT version, migration_id FROM graphs") == (1, None)
    assert app.one("SELECT count(*) FROM migrations") == 0


def test_readers_are_never_blocked(database_url: str, graph: UUID, migration: HandDriven) -> None:
    reader = Client(database_url, "SERIALIZABLE", lock_timeout="1")
    migration.begin()
    migration.open_hop()
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v2' WHERE graph_id = %s", graph)
        assert reader.one("SELECT version, (SELECT min(label) FROM nodes) FROM graphs") == (1, "v1")
    reader.close()


# ── the triggers ────────────────────────────────────────────────────────────────────────────────────

STATEMENTS = [
    "INSERT INTO nodes VALUES (%(g)s, 'new', 'w')",
    "UPDATE nodes SET label = 'w' WHERE graph_id = %(g)s",
    "DELETE FROM nodes WHERE graph_id = %(g)s",
    "INSERT INTO edges VALUES (%(g)s, 'e', 'n1', 'n2', 'KNOWS')",
]


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


# ── the executor ────────────────────────────────────────────────────────────────────────────────────


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
                deadline=30.0,
                checkpoint=True,
            )
        )
        cursor.execute(RENAME, (graph,))
        assert cursor.rowcount == 2


# ── the graphs' own rows ────────────────────────────────────────────────────────────────────────────


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


# ── users' own tables ───────────────────────────────────────────────────────────────────────────────


def test_a_guarded_table_of_ones_own_is_guarded_like_nodes(
    engine: Engine, app: Client, graph: UUID, migration: HandDriven
) -> None:
    app.do('CREATE TABLE public.facts ("of graph" uuid, fact text)')
    with engine.begin() as connection:
        install_guard(connection, "facts", "of graph")
    insert = "INSERT INTO facts VALUES (%s, 'a')"
    app.do(insert, graph)
    migration.begin()
    for statement in (
        insert,
        "UPDATE facts SET fact = 'b' WHERE \"of graph\" = %s",
        'DELETE FROM facts WHERE "of graph" = %s',
    ):
        assert sqlstate_of(app.run, statement, graph) == REFUSED
        app.rollback()
    assert sqlstate_of(app.run, "TRUNCATE facts") == "0A000"
    app.rollback()
    migration.run_hop("UPDATE public.facts SET fact = 'v2' WHERE \"of graph\" = %s")
    assert app.run("SELECT fact FROM facts") == [("v2",)]


@pytest.mark.parametrize("column", ["graph_id", "g"])
def test_rows_of_no_graph_are_free_and_rows_of_an_unknown_graph_are_refused(
    engine: Engine, app: Client, graph: UUID, column: str
) -> None:
    app.do(f"CREATE TABLE public.facts ({column} uuid, fact text)")
    app.do("INSERT INTO facts VALUES (%s, 'from before')", uuid4())
    with engine.begin() as connection:
        install_guard(connection, "facts", column)
    app.do("UPDATE graphs SET owner_read_only = true")
    app.do("INSERT INTO facts VALUES (NULL, 'a'), (NULL, 'b')")
    app.do(f"UPDATE facts SET fact = 'c' WHERE {column} IS NULL")
    assert sqlstate_of(app.run, f"UPDATE facts SET {column} = %s WHERE {column} IS NULL", graph) == REFUSED
    app.rollback()
    for isolation, code in (("READ COMMITTED", "23503"), ("SERIALIZABLE", "40001")):
        app.run(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        assert sqlstate_of(app.run, "INSERT INTO facts VALUES (%s, 'a'), (NULL, 'b')", uuid4()) == code
        app.rollback()
    app.do("DELETE FROM facts")  # also what no graph owns any more
    with engine.connect() as connection, pytest.raises(IntegrityError) as caught:
        connection.exec_driver_sql("INSERT INTO facts VALUES (gen_random_uuid(), 'a')")
    assert isinstance(translate_guard_error(caught.value), UnknownGraph)


PARTITIONED = """
    CREATE SCHEMA app;
    CREATE TABLE app.facts (graph_id uuid, part int, id int) PARTITION BY LIST (part);
    CREATE TABLE app.facts_1 PARTITION OF app.facts FOR VALUES IN (1) PARTITION BY RANGE (id);
    CREATE TABLE app."facts 1a" PARTITION OF app.facts_1 FOR VALUES FROM (0) TO (10);
    CREATE TABLE app.facts_2 PARTITION OF app.facts FOR VALUES IN (2)
"""
INHERITED = """
    CREATE SCHEMA app;
    CREATE TABLE app.facts (graph_id uuid, part int, id int);
    CREATE TABLE app.facts_1 () INHERITS (app.facts);
    CREATE TABLE app."facts 1a" (more text) INHERITS (app.facts_1);
    CREATE TABLE app.facts_2 () INHERITS (app.facts)
"""
MEMBERS = ["app.facts", "app.facts_1", 'app."facts 1a"', "app.facts_2"]


@pytest.mark.parametrize("tables", [PARTITIONED, INHERITED], ids=["partitions", "children"])
def test_every_partition_and_child_is_guarded(
    engine: Engine, app: Client, graph: UUID, migration: HandDriven, tables: str
) -> None:
    app.do(tables)
    with engine.begin() as connection:
        install_guard(connection, "app.facts")
    for table in MEMBERS:
        app.do(f"INSERT INTO {table} VALUES (%s, %s, 1)", graph, 2 if table.endswith("2") else 1)
    app.do("UPDATE app.facts SET part = part")
    migration.begin()
    for table in MEMBERS:
        part = 2 if table.endswith("2") else 1
        assert sqlstate_of(app.run, f"INSERT INTO {table} VALUES (%s, {part}, 1)", graph) == REFUSED
        app.rollback()
        assert sqlstate_of(app.run, f"UPDATE {table} SET id = 2") == REFUSED
        app.rollback()
        assert sqlstate_of(app.run, f"DELETE FROM {table}") == REFUSED
        app.rollback()
        assert sqlstate_of(app.run, f"TRUNCATE {table}") == "0A000"
        app.rollback()


def _facts(engine: Engine) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    with engine.connect() as connection:
        (found,) = [guard for guard in list_guards(connection) if guard.table.endswith("facts")]
    return found.complete, found.unguarded, found.disabled


@pytest.mark.parametrize("tables", [PARTITIONED, INHERITED], ids=["partitions", "children"])
def test_new_partitions_and_disabled_triggers_are_listed_and_mended(
    engine: Engine, app: Client, tables: str
) -> None:
    app.do(tables)
    for _ in range(2):
        with engine.begin() as connection:
            install_guard(connection, "app.facts")
        assert _facts(engine) == (True, (), ())
    if tables == PARTITIONED:
        app.do("CREATE TABLE app.facts_3 PARTITION OF app.facts FOR VALUES IN (3)")
    else:
        app.do("CREATE TABLE app.facts_3 () INHERITS (app.facts)")
    app.do('ALTER TABLE app."facts 1a" DISABLE TRIGGER graph_migrator_guard_update')
    app.do("ALTER TABLE app.facts_2 ENABLE TRIGGER graph_migrator_guard_delete")
    app.do("DROP TRIGGER graph_migrator_guard_insert ON app.facts_1")
    assert _facts(engine) == (
        False,
        ("app.facts_1", "app.facts_3"),
        ('app."facts 1a": graph_migrator_guard_update', "app.facts_2: graph_migrator_guard_delete"),
    )
    with engine.begin() as connection:
        install_guard(connection, "app.facts")
    assert _facts(engine) == (True, (), ())
    with engine.begin() as connection:
        remove_guard(connection, "app.facts")
        remove_guard(connection, "app.facts")
    assert (
        app.one(
            "SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'app.%%'",
        )
        == 0
    )


def test_our_own_tables_are_listed_also_when_their_guard_is_gone(engine: Engine, app: Client) -> None:
    with engine.connect() as connection:
        assert [(g.table, g.complete) for g in list_guards(connection)] == [
            ("graph_migrator.edges", True),
            ("graph_migrator.graphs", True),
            ("graph_migrator.nodes", True),
        ]
    for table in ("graphs", "nodes"):
        for (name,) in app.run(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE 'graph_migrator%%'",
            table,
        ):
            app.run(f"DROP TRIGGER {name} ON {table}")
    app.do("ALTER TABLE edges DISABLE TRIGGER graph_migrator_guard_truncate")
    with engine.connect() as connection:
        edges, graphs, nodes = list_guards(connection)
    assert edges.disabled == ("graph_migrator.edges: graph_migrator_guard_truncate",)
    assert graphs.unguarded == ("graph_migrator.graphs",)
    assert nodes.unguarded == ("graph_migrator.nodes",)


def test_a_guard_on_one_partition_alone_is_listed_under_its_name(engine: Engine, app: Client) -> None:
    app.do(PARTITIONED)
    with engine.begin() as connection:
        install_guard(connection, "app.facts_2")
        assert "app.facts_2" in {guard.table for guard in list_guards(connection)}


@pytest.mark.parametrize(
    ("table", "column", "field", "reason"),
    [
        ("app.nothing", "graph_id", "table", "there is no table"),
        ("a.b.c.d.e", "graph_id", "table", "not the name of a table"),
        ("app.facts", "nothing", "graph_id_column", "no column 'nothing'"),
        ("app.facts", "id", "graph_id_column", "integer, not uuid"),
        ("app.seen", "graph_id", "table", "not a table"),
        ("graph_migrator.graphs", "id", "table", "one of our own"),
    ],
)
def test_what_cannot_be_guarded_is_refused_in_words(
    engine: Engine, app: Client, table: str, column: str, field: str, reason: str
) -> None:
    app.do(PARTITIONED)
    app.do("CREATE VIEW app.seen AS SELECT * FROM app.facts")
    with engine.connect() as connection, connection.begin():
        with pytest.raises(InvalidRequest, match=reason) as caught:
            install_guard(connection, table, column)
        assert caught.value.field == field
        connection.execute(text("SELECT 1"))  # the caller's transaction goes on


@pytest.mark.parametrize("table", ["graph_migrator.nodes", "edges", "app.nothing"])
def test_a_guard_is_not_taken_off_our_own_tables(engine: Engine, table: str) -> None:
    with engine.connect() as connection, pytest.raises(InvalidRequest):
        remove_guard(connection, table)


def _database(client: Client) -> str:
    return str(client.raw.info.dbname)
