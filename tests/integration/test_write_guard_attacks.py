"""Writers that try to slip in behind the write guard: at every moment, isolation level and with every statement."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import UUID, uuid4

import psycopg2
import pytest
from hand_driven import (
    FENCED,
    ISOLATIONS,
    READ_COMMITTED,
    REFUSED,
    REPEAT,
    REPEATABLE_READ,
    SERIALIZABLE,
    Client,
    HandDriven,
    add_graph,
    in_background,
    sqlstate_of,
    wait_until,
    wait_until_waiting,
    waits,
)
from sqlalchemy import Engine

from graph_migrator.core.store import protocol
from graph_migrator.core.store.guard import install_guard

INSERT = "INSERT INTO nodes VALUES (%s, 'late', 'v1')"
UPDATE = "UPDATE nodes SET label = 'v1' WHERE graph_id = %s"
ASK = "SELECT * FROM write_guard(%s::text, NULL)"

at_every_isolation = pytest.mark.parametrize("isolation", ISOLATIONS)
with_every_write = pytest.mark.parametrize("write", [INSERT, UPDATE, ASK], ids=["insert", "update", "ask"])


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
    migration = HandDriven(database_url, graph, hops=2)
    yield migration
    migration.close()


@pytest.fixture
def writer(database_url: str, isolation: str) -> Iterator[Client]:
    client = Client(database_url, isolation)
    yield client
    client.close()


class Writers:
    """One session for each way to write, all of one isolation level."""

    def __init__(self, url: str, isolation: str) -> None:
        # None of them is meant to wait.
        self.clients = {write: Client(url, isolation, lock_timeout="500") for write in (INSERT, UPDATE, ASK)}

    def begin(self) -> None:
        for client in self.clients.values():
            client.begin()

    def codes(self, graph: UUID) -> dict[str, str | None]:
        """Each writes, one after the other."""
        found = {}
        for write, client in self.clients.items():
            found[write] = sqlstate_of(client.run, write, graph)
            client.rollback()
        return found


@pytest.fixture
def writers(database_url: str, isolation: str) -> Iterator[Writers]:
    writers = Writers(database_url, isolation)
    yield writers
    for client in writers.clients.values():
        client.close()


# ── moments: when the writer's transaction begins, and when it writes ───────────────────────────────


@at_every_isolation
def test_began_before_the_migration_and_writes_after_it(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    writers.begin()
    migration.run()
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_began_before_the_migration_and_writes_between_its_hops(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    writers.begin()
    migration.begin()
    migration.run_hop()
    code = REFUSED if isolation == READ_COMMITTED else REPEAT
    assert writers.codes(graph) == {INSERT: code, UPDATE: code, ASK: code}


@at_every_isolation
@pytest.mark.parametrize("began", ["before the migration", "during the hop"])
def test_writes_while_a_hop_runs(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str, began: str
) -> None:
    if began == "before the migration":
        writers.begin()
    migration.begin()
    migration.open_hop()
    writers.begin()
    stale = isolation != READ_COMMITTED and began == "before the migration"
    code = REPEAT if stale else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: code, ASK: code}


@at_every_isolation
def test_began_between_the_hops_and_writes_after_the_migration(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    migration.begin()
    migration.run_hop()
    writers.begin()
    migration.run_hop()
    # READ COMMITTED shows a graph that is free again; an old snapshot still shows the claim, and rows that
    # have changed since.
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_during_the_last_hop_and_writes_after_the_migration(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v3' WHERE graph_id = %s", graph)
        writers.begin()
    migration.release_lock(stamp=True)
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_between_the_last_commit_and_its_date(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    """The date is later than the commit, so a few transactions that read only new rows repeat as well."""
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data() as run:
        run("UPDATE nodes SET label = 'v3' WHERE graph_id = %s", graph)
    writers.begin()
    migration.release_lock(stamp=True)
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_began_before_a_hops_commit_and_writes_after_the_migration_was_cancelled(
    writers: Writers, graph: UUID, migration: HandDriven, isolation: str
) -> None:
    """The hop dated its change before the writer began; what the writer has read is of the old shape."""
    migration.begin()
    migration.open_hop()
    with migration.data(before_commit=writers.begin) as run:
        run("UPDATE nodes SET label = 'v2' WHERE graph_id = %s", graph)
    migration.release_lock()
    migration.cancel()
    code = REPEAT if isolation == READ_COMMITTED else REFUSED
    assert writers.codes(graph) == {INSERT: code, UPDATE: REPEAT, ASK: code}


@at_every_isolation
def test_began_after_the_migration(writers: Writers, graph: UUID, migration: HandDriven) -> None:
    migration.run()
    writers.begin()
    assert writers.codes(graph) == {INSERT: None, UPDATE: None, ASK: None}


@at_every_isolation
def test_wrote_before_the_migration_begins_and_again_while_it_waits(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    """Whoever is in may go on; the migration comes after it."""
    writer.run(UPDATE, graph)
    with in_background(migration.lock_and_load) as entering:
        wait_until_waiting(app, migration.pid)
        writer.run(INSERT, graph)
        assert not entering.done()
        writer.commit()
        assert entering.result().locked
    migration.claim()
    migration.release_lock()
    for _ in range(2):
        migration.run_hop()
    assert app.run("SELECT DISTINCT label FROM nodes") == [("v3",)]


@at_every_isolation
def test_began_with_a_write_that_was_rolled_back_to_a_savepoint(
    writer: Client, graph: UUID, migration: HandDriven
) -> None:
    """The lock falls with the savepoint; then the transaction is no longer in."""
    writer.begin()
    writer.run("SAVEPOINT s")
    writer.run(UPDATE, graph)
    writer.run("ROLLBACK TO SAVEPOINT s")
    migration.run()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT


@with_every_write
def test_in_read_committed_a_writer_waits_for_begin_and_is_refused_then(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    writer = Client(database_url)
    migration.lock_and_load()
    with in_background(sqlstate_of, writer.run, write, graph) as writing:
        wait_until_waiting(app, writer.pid)
        migration.claim()
        migration.release_lock()
        assert writing.result() == REFUSED
    writer.close()


@with_every_write
def test_invariant_3_begin_gives_its_lock_back_with_the_commit_of_its_claim_and_not_before(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    # Fence: the lock for the transaction, beside the session's, in begin_migration.
    writer = Client(database_url)
    migration.lock_and_load()
    with ExitStack() as stack:
        with migration.executor.transaction():
            migration.claim(leave=True)
            writing = stack.enter_context(in_background(sqlstate_of, writer.run, write, graph))
            wait_until_waiting(app, writer.pid)
        assert writing.result() == REFUSED
    writer.close()


@with_every_write
def test_in_read_committed_a_writer_that_waits_at_the_last_commit_repeats(
    app: Client, database_url: str, graph: UUID, migration: HandDriven, write: str
) -> None:
    writer = Client(database_url)
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data():
        pass
    with in_background(sqlstate_of, writer.run, write, graph) as writing:
        wait_until_waiting(app, writer.pid)
        migration.release_lock(stamp=True)
        assert writing.result() == REPEAT
    writer.close()


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_above_read_committed_a_writer_gives_way_at_once(
    writers: Writers, graph: UUID, migration: HandDriven
) -> None:
    """It may hold rows that the executor needs: waiting would be a deadlock."""
    migration.lock_and_load()
    writers.begin()
    assert writers.codes(graph) == {INSERT: REPEAT, UPDATE: REPEAT, ASK: REPEAT}


@at_every_isolation
def test_an_executor_that_died_before_it_dated_the_change_lets_nobody_in(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    with migration.data():
        pass
    migration.close()
    app.run("SELECT pg_advisory_xact_lock(lock_key(%s))", graph)  # its session has ended
    app.commit()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT
    writer.rollback()
    writer.begin()
    assert app.one("SELECT stamp_graphs()") == 1
    app.commit()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT  # it began before the date
    writer.rollback()
    assert sqlstate_of(writer.run, INSERT, graph) is None


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_an_executor_with_an_old_snapshot_does_not_write_into_what_came_after(
    writer: Client, graph: UUID, migration: HandDriven
) -> None:
    migration.begin()
    writer.run("SELECT set_config('graph_migrator.executor', %s, false)", str(migration.id))
    writer.begin()
    for _ in range(2):
        migration.run_hop()
    assert sqlstate_of(writer.run, INSERT, graph) == REPEAT


@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_a_graph_that_an_old_snapshot_does_not_know_is_not_written(
    engine: Engine, app: Client, database_url: str, writer: Client
) -> None:
    app.do("CREATE TABLE public.facts (graph_id uuid)")
    with engine.begin() as connection:
        install_guard(connection, "facts")
    writer.begin()
    young = add_graph(app, "young")
    migration = HandDriven(database_url, young).begin()
    assert sqlstate_of(writer.run, "INSERT INTO facts VALUES (%s)", young) == REPEAT
    writer.rollback()
    writer.begin()
    other = add_graph(app, "other")
    assert sqlstate_of(writer.run, INSERT, other) == "23503"  # the foreign key is asked first
    migration.close()


# ── statements ──────────────────────────────────────────────────────────────────────────────────────


def _copy(client: Client, graph: UUID, other: UUID) -> None:
    with client.raw.cursor() as cursor:
        cursor.copy_expert("COPY nodes (graph_id, id, label) FROM STDIN", io.StringIO(f"{graph}\tlate\tv1\n"))


def _cursor(client: Client, graph: UUID, other: UUID) -> None:
    client.run("DECLARE c CURSOR FOR SELECT * FROM nodes WHERE graph_id = %s FOR UPDATE", graph)
    client.run("FETCH c")
    client.run("DELETE FROM nodes WHERE CURRENT OF c")


def _at_commit(client: Client, graph: UUID, other: UUID) -> None:
    client.run("INSERT INTO notes VALUES (%s)", graph)
    client.commit()


def _swallowed(client: Client, graph: UUID, other: UUID) -> None:
    """An application that catches everything: nothing of its write stays."""
    client.run(
        "CREATE FUNCTION pg_temp.quiet(g uuid) RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE nodes SET label = 'v0' WHERE graph_id = g; RETURN NULL; "
        "EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$"
    )
    code = client.one("SELECT pg_temp.quiet(%s)", graph)
    client.commit()
    raise _coded(code)


def _coded(code: str | None) -> Exception:
    error = psycopg2.Error()
    error.__setstate__({"pgcode": code})
    return error


def _run(statement: str) -> Callable[[Client, UUID, UUID], None]:
    def run(client: Client, graph: UUID, other: UUID) -> None:
        with client.raw.cursor() as cursor:
            cursor.execute(statement, {"g": graph, "o": other})

    return run


STATEMENTS: dict[str, Callable[[Client, UUID, UUID], None]] = {
    "insert": _run("INSERT INTO nodes VALUES (%(g)s, 'late', 'v1')"),
    "insert of an edge": _run("INSERT INTO edges VALUES (%(g)s, 'e', 'n1', 'n2', 'KNOWS')"),
    "insert select": _run(
        "INSERT INTO nodes SELECT %(g)s, 'm' || id, 'v1' FROM nodes WHERE graph_id = %(o)s"
    ),
    "update": _run("UPDATE nodes SET label = 'v0' WHERE graph_id = %(g)s"),
    "update from": _run("UPDATE nodes n SET label = 'v0' FROM graphs g WHERE n.graph_id = g.id"),
    "update to the same values": _run("UPDATE nodes SET label = label WHERE graph_id = %(g)s"),
    "delete": _run("DELETE FROM nodes WHERE graph_id = %(g)s"),
    "copy": _copy,
    "on conflict do update, inserting": _run(
        "INSERT INTO nodes VALUES (%(g)s, 'late', 'v1') ON CONFLICT (graph_id, id) DO UPDATE SET label = 'v0'"
    ),
    "on conflict do update, updating": _run(
        "INSERT INTO nodes VALUES (%(g)s, 'n1', 'v1') ON CONFLICT (graph_id, id) DO UPDATE SET label = 'v0'"
    ),
    "on conflict do nothing": _run(
        "INSERT INTO nodes VALUES (%(g)s, 'n1', 'v1'), (%(g)s, 'late', 'v1') ON CONFLICT DO NOTHING"
    ),
    "merge, inserting": _run(
        "MERGE INTO nodes n USING (VALUES (%(g)s::uuid, 'late')) v (g, id) ON n.graph_id = v.g AND n.id = v.id "
        "WHEN NOT MATCHED THEN INSERT VALUES (v.g, v.id, 'v1')"
    ),
    "merge, updating": _run(
        "MERGE INTO nodes n USING (VALUES (%(g)s::uuid, 'n1')) v (g, id) ON n.graph_id = v.g AND n.id = v.id "
        "WHEN MATCHED THEN UPDATE SET label = 'v0'"
    ),
    "merge, deleting": _run(
        "MERGE INTO nodes n USING (VALUES (%(g)s::uuid, 'n1')) v (g, id) ON n.graph_id = v.g AND n.id = v.id "
        "WHEN MATCHED THEN DELETE"
    ),
    "writable CTE": _run(
        "WITH w AS (UPDATE nodes SET label = 'v0' WHERE graph_id = %(g)s RETURNING 1) SELECT count(*) FROM w"
    ),
    "writable CTE that nobody reads": _run("WITH w AS (DELETE FROM nodes WHERE graph_id = %(g)s) SELECT 1"),
    "two writable CTEs, one of them on another graph": _run(
        "WITH a AS (UPDATE nodes SET label = 'v0' WHERE graph_id = %(o)s RETURNING 1), "
        "b AS (INSERT INTO nodes VALUES (%(g)s, 'late', 'v1') RETURNING 1) SELECT 1 FROM a, b"
    ),
    "update over many graphs": _run("UPDATE nodes SET label = 'v0'"),
    "delete over many graphs": _run("DELETE FROM nodes"),
    "insert into two graphs": _run("INSERT INTO nodes VALUES (%(o)s, 'late', 'v1'), (%(g)s, 'late', 'v1')"),
    "rows moved out of the graph": _run(
        "UPDATE nodes SET graph_id = %(o)s, id = 'moved' || id WHERE graph_id = %(g)s"
    ),
    "rows moved into the graph": _run(
        "UPDATE nodes SET graph_id = %(g)s, id = 'moved' || id WHERE graph_id = %(o)s"
    ),
    "a cursor": _cursor,
    "through a view": _run("UPDATE seen SET label = 'v0' WHERE graph_id = %(g)s"),
    "inside a DO block": _run("DO $$ BEGIN UPDATE nodes SET label = 'v0'; END $$"),
    "a prepared statement": _run("PREPARE p AS UPDATE nodes SET label = 'v0'; EXECUTE p"),
    "a trigger on another table": _run("INSERT INTO notes_at_once VALUES (%(g)s)"),
    "a deferred trigger, at commit": _at_commit,
    "deferred constraints": _run(
        "SET CONSTRAINTS ALL DEFERRED; INSERT INTO edges VALUES (%(g)s, 'e', 'n1', 'nobody', 'KNOWS')"
    ),
    "an error that is caught": _swallowed,
}

WAYS_IN = """
    CREATE VIEW seen AS SELECT * FROM nodes;
    CREATE TABLE notes (g uuid); CREATE TABLE notes_at_once (g uuid);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO nodes VALUES (NEW.g, 'late', 'v1'); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER t AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER t AFTER INSERT ON notes_at_once FOR EACH ROW EXECUTE FUNCTION note()
"""


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_statement_changes_a_graph_that_it_may_not_change(
    database_url: str, app: Client, graph: UUID, migration: HandDriven, statement: str
) -> None:
    """First while a migration owns it, then in a transaction that began before that migration ended."""
    other = add_graph(app, "other")
    app.do(WAYS_IN)
    attack = STATEMENTS[statement]
    migration.begin()
    before = _contents(app)
    attacker = Client(database_url)
    assert sqlstate_of(attack, attacker, graph, other) == REFUSED
    attacker.close()
    attacker = Client(database_url)
    attacker.begin()
    assert _contents(app) == before

    for _ in range(2):
        migration.run_hop("UPDATE nodes SET label = 'v3' WHERE graph_id = %s")
    before = _contents(app)
    assert sqlstate_of(attack, attacker, graph, other) == REPEAT
    attacker.close()
    assert _contents(app) == before


def _contents(client: Client) -> list[tuple[object, ...]]:
    client.rollback()
    return client.run(
        "SELECT graph_id, id, label FROM nodes UNION ALL SELECT graph_id, id, type FROM edges ORDER BY 1, 2"
    )


@at_every_isolation
def test_a_refused_statement_and_a_savepoint_leave_the_transaction_usable(
    app: Client, writer: Client, graph: UUID, migration: HandDriven
) -> None:
    other = add_graph(app, "other")
    migration.begin()
    writer.run("SAVEPOINT s")
    assert sqlstate_of(writer.run, UPDATE, graph) == REFUSED
    writer.run("ROLLBACK TO SAVEPOINT s")
    writer.run("UPDATE nodes SET label = 'w' WHERE graph_id = %s", other)
    writer.commit()
    assert app.run("SELECT DISTINCT label FROM nodes WHERE graph_id = %s", other) == [("w",)]
    assert app.run("SELECT DISTINCT label FROM nodes WHERE graph_id = %s", graph) == [("v1",)]


def test_a_write_that_waits_for_the_hops_rows_does_not_slip_in_behind_it(
    app: Client, database_url: str, graph: UUID, migration: HandDriven
) -> None:
    """The writer blocks on a row, not on the guard, and wakes when the last hop has committed."""
    migration.begin()
    migration.run_hop()
    migration.open_hop()
    writer = Client(database_url)
    with in_background(sqlstate_of, writer.run, UPDATE, graph) as writing:
        with migration.data() as run:
            run("UPDATE nodes SET label = 'v3' WHERE graph_id = %s", graph)
            wait_until(lambda: writing.done() or waits(app, writer.pid, "transactionid"))
        migration.release_lock(stamp=True)
        assert writing.result() in {REFUSED, REPEAT}
    writer.close()
    assert app.run("SELECT DISTINCT label FROM nodes") == [("v3",)]


# ── partitions ──────────────────────────────────────────────────────────────────────────────────────


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


# ── prepared transactions ───────────────────────────────────────────────────────────────────────────


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


# ── two graphs with the same key ────────────────────────────────────────────────────────────────────


@pytest.fixture
def colliding(app: Client, graph: UUID) -> UUID:
    """A second graph whose lock is the same one."""
    other = add_graph(app, "other")
    app.do(
        "CREATE OR REPLACE FUNCTION lock_key(p_graph uuid) RETURNS bigint LANGUAGE sql IMMUTABLE RETURN 42"
    )
    return other


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


# ── applications that help themselves ───────────────────────────────────────────────────────────────

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
