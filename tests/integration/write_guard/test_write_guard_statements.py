"""Writers that try every statement to change a graph that they may not change."""

from __future__ import annotations

import io
from collections.abc import Callable
from uuid import UUID

import psycopg2
import pytest

from tests.integration.hand_driven import (
    REFUSED,
    REPEAT,
    UPDATE,
    Client,
    HandDriven,
    add_graph,
    at_every_isolation,
    in_background,
    sqlstate_of,
    wait_until,
    waits,
)


@pytest.fixture
def hops() -> int:
    return 2


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
