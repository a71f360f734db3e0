"""Writers and executors in unusual sessions: partitions, prepared transactions, equal keys, stolen names."""

from __future__ import annotations

from contextlib import ExitStack
from uuid import UUID, uuid4

import psycopg2
import pytest
from sqlalchemy import Engine

from graph_migrator.core.store import protocol
from graph_migrator.core.store.guard import install_guard
from tests.integration.hand_driven import (
    FENCED,
    INSERT,
    READ_COMMITTED,
    REFUSED,
    REPEAT,
    SERIALIZABLE,
    UPDATE,
    Client,
    HandDriven,
    add_graph,
    at_every_isolation,
    in_background,
    sqlstate_of,
    wait_until_waiting,
)


@pytest.fixture
def hops() -> int:
    return 2


# ── partitions ────────────────────────────────────────────────────────────────────────────────────────


def test_rows_do_not_cross_partitions_into_or_out_of_a_graph(
    engine: Engine, app: Client, database_url: str, graph: UUID, migration: HandDriven
) -> None:
    other = add_graph(app, "other")
    app.do(f"""
        CREATE TABLE public.facts (graph_id uuid, id int) PARTITION BY LIST (graph_id);
        CREATE TABLE public.facts_a PARTITION OF public.facts FOR VALUES IN ('{graph}');
        CREATE TABLE public.facts_b PARTITION OF public.facts FOR VALUES IN ('{other}');
        INSERT INTO public.facts VALUES ('{graph}', 1), ('{other}', 2)
    """)
    with engine.begin() as connection:
        install_guard(connection, "facts")
    stale = Client(database_url)
    stale.begin()
    migration.begin()
    crossings = [(graph, other), (other, graph)]
    for source, target in crossings:
        move = "UPDATE facts SET graph_id = %s WHERE graph_id = %s"
        assert sqlstate_of(app.run, move, target, source) == REFUSED
        app.rollback()
    for _ in range(2):
        migration.run_hop()
    for source, target in crossings:
        stale.run("SAVEPOINT s")
        assert (
            sqlstate_of(stale.run, "UPDATE facts SET graph_id = %s WHERE graph_id = %s", target, source)
            == REPEAT
        )
        stale.run("ROLLBACK TO SAVEPOINT s")
    stale.close()
    assert app.run("SELECT * FROM facts ORDER BY id") == [(graph, 1), (other, 2)]


def test_a_partition_that_is_attached_is_not_a_way_in_through_its_parent(
    engine: Engine, app: Client, graph: UUID, migration: HandDriven
) -> None:
    app.do("CREATE TABLE public.facts (graph_id uuid, id int) PARTITION BY RANGE (id)")
    with engine.begin() as connection:
        install_guard(connection, "facts")
    app.do("CREATE TABLE public.late (graph_id uuid, id int)")
    app.do("INSERT INTO late VALUES (%s, 1)", graph)
    app.do("ALTER TABLE public.facts ATTACH PARTITION public.late FOR VALUES FROM (0) TO (9)")
    migration.begin()
    for statement in (
        "UPDATE facts SET id = 2",
        "DELETE FROM facts",
        f"INSERT INTO facts VALUES ('{graph}', 1)",
    ):
        assert sqlstate_of(app.run, statement) == REFUSED
        app.rollback()


# ── prepared transactions ─────────────────────────────────────────────────────────────────────────────


@at_every_isolation
def test_a_prepared_writer_holds_begin_up_until_it_is_decided(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    name = f"half way {graph}"
    writer.run(INSERT, graph)
    writer.run(f"PREPARE TRANSACTION '{name}'")
    writer.raw.close()  # the session ends, the transaction does not
    app.raw.autocommit = True
    try:
        assert sqlstate_of(migration.lock_and_load, 50) == "55P03"
        with in_background(migration.lock_and_load) as entering:
            wait_until_waiting(app, migration.pid)
            app.run(f"COMMIT PREPARED '{name}'")
            assert entering.result().locked
    finally:
        for (left,) in app.run("SELECT gid FROM pg_prepared_xacts WHERE gid = %s", name):
            app.run(f"ROLLBACK PREPARED '{left}'")
    migration.claim()
    migration.release_lock()
    for _ in range(2):
        migration.run_hop()
    assert app.run("SELECT DISTINCT label FROM nodes") == [("v3",)]


def test_an_executor_cannot_hand_its_writes_to_a_prepared_transaction(
    graph: UUID, migration: HandDriven
) -> None:
    """They would commit when the lock is long gone."""
    migration.begin()
    migration.open_hop()
    with migration.executor.transaction():
        migration.execute(UPDATE, graph)
        code = sqlstate_of(migration.execute, "PREPARE TRANSACTION 'later'")
    assert code == "0A000"  # the lock is held by session and transaction


@pytest.fixture
def colliding(app: Client, graph: UUID) -> UUID:
    """A second graph whose lock is the same one."""
    other = add_graph(app, "other")
    app.do(
        "CREATE OR REPLACE FUNCTION lock_key(p_graph uuid) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 42"
    )
    return other


# ── two graphs with the same key ──────────────────────────────────────────────────────────────────────


def test_an_executor_that_holds_another_graphs_key_cannot_write_that_graph(
    database_url: str, app: Client, graph: UUID, colliding: UUID, migration: HandDriven
) -> None:
    second = HandDriven(database_url, colliding).begin()
    migration.begin()
    migration.open_hop()
    for statement in (
        UPDATE,
        "UPDATE graphs SET version = 9 WHERE id = %s",
        "DELETE FROM graphs WHERE id = %s",
    ):
        assert sqlstate_of(migration.execute, statement, colliding) == REFUSED
    second.close()


def test_graphs_with_the_same_key_migrate_one_after_the_other(
    database_url: str, app: Client, graph: UUID, colliding: UUID, migration: HandDriven
) -> None:
    second = HandDriven(database_url, colliding)
    migration.begin()
    second.begin()
    migration.open_hop()
    assert not second.executor.call(protocol.LockAndLoadHop(migration=second.id, to=2, dispatch=1)).locked
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v2' WHERE graph_id = %s", graph)
    migration.release_lock()
    second.run_hop()
    migration.run_hop()
    assert app.run("SELECT slug, version FROM graphs ORDER BY slug") == [("other", 2), ("people", 3)]
    second.close()


def test_a_writer_of_a_free_graph_waits_for_the_executor_of_one_with_the_same_key(
    database_url: str, app: Client, graph: UUID, colliding: UUID, migration: HandDriven
) -> None:
    migration.begin()
    migration.open_hop()
    strict = Client(database_url, SERIALIZABLE, lock_timeout="100")
    assert sqlstate_of(strict.run, UPDATE, colliding) == REPEAT
    strict.close()
    writer = Client(database_url)
    with in_background(sqlstate_of, writer.run, UPDATE, colliding) as writing:
        wait_until_waiting(app, writer.pid)
        with migration.data():
            pass
        migration.release_lock()
        assert writing.result() is None
    writer.commit()
    writer.close()


THEFTS = {
    "clears the claim": "UPDATE graphs SET migration_id = NULL WHERE id = %s",
    "clears every claim": "UPDATE graphs SET migration_id = NULL, updated_at = now()",
    "changes the version": "UPDATE graphs SET version = version + 1 WHERE id = %s",
    "deletes the graph": "DELETE FROM graphs WHERE id = %s",
    "deletes the graph in a CTE": "WITH d AS (DELETE FROM graphs WHERE id = %s RETURNING 1) SELECT * FROM d",
    "merges the claim away": "MERGE INTO graphs g USING (VALUES (%s::uuid)) v (id) ON g.id = v.id "
    "WHEN MATCHED THEN UPDATE SET migration_id = NULL",
    "merges the graph away": "MERGE INTO graphs g USING (VALUES (%s::uuid)) v (id) ON g.id = v.id "
    "WHEN MATCHED THEN DELETE",
    "upserts over the graph": "INSERT INTO graphs (id, slug, graph_type, version) VALUES (%s, 'x', 'k', 1) "
    "ON CONFLICT (id) DO UPDATE SET migration_id = NULL",
}


# ── applications that help themselves ─────────────────────────────────────────────────────────────────


@at_every_isolation
def test_an_application_cannot_take_a_graph_from_its_migration(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    def codes() -> dict[str, str | None]:
        found = {}
        for name, theft in THEFTS.items():
            found[name] = sqlstate_of(writer.run, theft, *([graph] if "%s" in theft else []))
            writer.rollback()
        return found

    migration.begin()
    assert codes() == dict.fromkeys(THEFTS, REFUSED)
    migration.open_hop()
    assert codes() == dict.fromkeys(THEFTS, REFUSED)
    with migration.data():
        pass
    migration.release_lock()
    migration.run_hop()
    assert app.one("SELECT version, migration_id FROM graphs") == (3, None)


@at_every_isolation
@pytest.mark.parametrize("theft", ["deletes the graph", "clears the claim"])
def test_an_application_that_waits_for_the_row_meets_the_claim_too(
    app: Client, writer: Client, graph: UUID, migration: HandDriven, isolation: str, theft: str
) -> None:
    """The claim is not yet committed when the application's statement begins."""
    writer.begin()
    migration.lock_and_load()
    with ExitStack() as stack:
        with migration.executor.transaction():
            migration.claim()
            stealing = stack.enter_context(in_background(sqlstate_of, writer.run, THEFTS[theft], graph))
            wait_until_waiting(app, writer.pid, "transactionid")
        # In READ COMMITTED the statement goes on with the row as it is now.
        assert stealing.result() == (REFUSED if isolation == READ_COMMITTED else REPEAT)


def test_the_executor_itself_cannot_delete_its_graph(graph: UUID, migration: HandDriven) -> None:
    migration.begin()
    migration.open_hop()
    assert sqlstate_of(migration.execute, "DELETE FROM graphs WHERE id = %s", graph) == REFUSED


def test_a_lost_executor_still_bears_the_name_and_writes_nothing(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    """Its lock was taken from it and another goes on: the name in its session is no longer worth anything."""
    migration.begin()
    migration.open_hop()
    with migration.executor.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(lock_key(%s))", (graph,))
    app.run("SELECT pg_advisory_lock(lock_key(%s))", graph)
    for statement in (UPDATE, THEFTS["clears the claim"]):
        assert sqlstate_of(migration.execute, statement, graph) == FENCED
    with pytest.raises(psycopg2.Error) as caught, migration.data():
        pass
    assert caught.value.pgcode == FENCED


def test_the_name_of_a_finished_migration_opens_nothing(
    database_url: str, app: Client, graph: UUID, migration: HandDriven
) -> None:
    app.run("SELECT set_config('graph_migrator.executor', %s, false)", str(migration.id))
    app.commit()
    app.begin()
    migration.run()
    assert sqlstate_of(app.run, INSERT, graph) == REPEAT
    app.rollback()
    second = HandDriven(database_url, graph).begin()
    assert sqlstate_of(app.run, INSERT, graph) == REFUSED
    app.rollback()
    app.run("SELECT set_config('graph_migrator.executor', %s, false)", str(uuid4()))
    assert sqlstate_of(app.run, INSERT, graph) == REFUSED
    second.close()
