"""What application code meets when it changes a graph: `graph_writer`, and the triggers behind it."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from graph_migrator.core.errors import GraphReadOnly, GraphVersionMismatch, InvalidRequest, UnknownGraph
from graph_migrator.core.store import protocol
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.store.tables import NodeRow
from graph_migrator.core.store.writers import WritableGraph, graph_writer, translate_guard_error
from tests.integration.hand_driven import (
    FENCED,
    REFUSED,
    RENAME,
    Client,
    HandDriven,
    add_graph,
    in_background,
    sqlstate_of,
    wait_until_waiting,
)

# ── graph_writer ──────────────────────────────────────────────────────────────────────────────────────


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


# ── begin and open write transactions ─────────────────────────────────────────────────────────────────


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
