"""The guard on users' own tables, their partitions and children."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.errors import InvalidRequest, UnknownGraph
from graph_migrator.core.store.guard import install_guard, list_guards, remove_guard
from graph_migrator.core.store.writers import translate_guard_error
from tests.integration.hand_driven import REFUSED, Client, HandDriven, sqlstate_of


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
