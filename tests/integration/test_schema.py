"""What Postgres itself holds: the schema is what the code believes, and it refuses what must not be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from uuid import UUID, uuid4

import psycopg2
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from graph_migrator.core.audit.verify import verify_chains
from graph_migrator.core.embedded import Postgres
from graph_migrator.core.errors import SchemaOutdated
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus, edge_pairs
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import (
    _config,
    current_revision,
    head_revision,
    require_current,
    upgrade,
)
from graph_migrator.core.store.tables import metadata
from tests.integration.test_archive import settled
from tests.rows import add_graph, rows

ROOT = Path(__file__).resolve().parents[2]


# ── upgrades ────────────────────────────────────────────────────────────────────────────────────────


def test_the_orm_schema_equals_the_migrated_schema(database_url: str) -> None:
    # Not our own engine: with its search_path Alembic takes our schema for the default one.
    driver = make_url(database_url).set(drivername="postgresql+psycopg2")
    plain = create_engine(driver, poolclass=NullPool)
    with plain.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == metadata.schema,
                "version_table_schema": metadata.schema,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        found = compare_metadata(context, metadata)
    # Comments on columns have one home, the SQL.
    changes = [change for each in found for change in (each if isinstance(each, list) else [each])]
    assert [change for change in changes if change[0] != "modify_comment"] == []


def test_an_upgrade_can_be_repeated_and_says_what_it_did(empty_database_url: str) -> None:
    assert upgrade(empty_database_url) == (None, head_revision())
    assert upgrade(empty_database_url) == (head_revision(), head_revision())


def test_upgrades_of_several_threads_at_once_do_not_meet(empty_database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: upgrade(empty_database_url), range(6)))
    assert sorted(done, key=str) == sorted([(None, head_revision())] + [(head_revision(),) * 2] * 5, key=str)


def test_upgrades_of_several_processes_at_once_do_not_meet(empty_database_url: str) -> None:
    code = "import sys; from graph_migrator.core.store.schema import upgrade; upgrade(sys.argv[1])"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_database_url], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    assert ended == [("", 0)] * 3
    engine = make_engine(empty_database_url)
    with engine.connect() as connection:
        assert current_revision(connection) == head_revision()


def test_missing_and_foreign_revisions_are_refused_with_what_to_do(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with engine.connect() as connection, pytest.raises(SchemaOutdated, match=r"missing.*db upgrade"):
        require_current(connection)
    upgrade(engine)
    with engine.begin() as connection:
        require_current(connection)
        connection.execute(text("UPDATE graph_migrator.alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaOutdated, match="9999"):
            require_current(connection)


def test_an_upgrade_leaves_graphs_and_audit_rows_as_they_are(engine: Engine) -> None:
    add_graph(engine, "g", "any")
    before = rows(engine, "SELECT * FROM graphs")
    upgrade(engine)
    assert rows(engine, "SELECT * FROM graphs") == before


def test_an_upgrade_links_what_finished_before_there_was_a_chain(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA graph_migrator"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
    graph = add_graph(engine, "g", "k")
    settled(engine, graph, days=2)
    settled(engine, graph, days=1)
    upgrade(engine)
    assert rows(engine, "SELECT link FROM hop_attempts ORDER BY id") == [(1,), (2,), (3,), (4,)]
    assert (verify_chains(engine).attempts, verify_chains(engine).count) == (4, 0)
    with pytest.raises(DBAPIError, match="never changed once finished"), engine.begin() as connection:
        connection.execute(text("UPDATE hop_attempts SET link = NULL WHERE link = 1"))
    settled(engine, graph, days=0)
    assert verify_chains(engine).count == 0


# ── what Postgres refuses ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept_empty(postgres: Postgres, template_database: str) -> Iterator[Engine]:
    """One database for all tests that roll back what they do."""
    administration = psycopg2.connect(postgres.url)
    administration.autocommit = True
    with administration.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE kept_empty TEMPLATE {template_database} STRATEGY file_copy")
        yield make_engine(postgres.url_of("kept_empty"))
        cursor.execute("DROP DATABASE kept_empty WITH (FORCE)")
    administration.close()


@pytest.fixture
def connection(kept_empty: Engine) -> Iterator[Connection]:
    with kept_empty.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


def migration(connection: Connection, status: str = "queued", *, graph: UUID | None = None) -> UUID:
    """A migration's row, put there directly, as no path of the code would."""
    id_ = uuid4()
    connection.execute(
        text(
            "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, "
            "deadline, error_type, finished_at) "
            "VALUES (:id, :graph, 't', 1, 3, :status, '[]', now(), :error, :finished)"
        ),
        {
            "id": id_,
            "graph": graph or uuid4(),
            "status": status,
            "error": "ValueError" if status == "failed" else None,
            "finished": "2026-01-01T00:00:00Z" if MigrationStatus(status).is_settled else None,
        },
    )
    return id_


def attempt(
    connection: Connection, migration_id: UUID, status: str = "running", *, to: int = 2, number: int = 1
) -> int:
    """A hop attempt's row, put there directly."""
    return int(
        connection.execute(
            text(
                "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, "
                "fingerprint, attempt, dispatch, status, error_type, finished_at) "
                "VALUES (:migration, gen_random_uuid(), :to - 1, :to, 'h', 'f', :number, 1, :status, :error, "
                ":finished) RETURNING id"
            ),
            {
                "migration": migration_id,
                "to": to,
                "number": number,
                "status": status,
                "error": "ValueError" if status == "failed" else None,
                "finished": None if status == "running" else "2026-01-01T00:00:00Z",
            },
        ).scalar_one()
    )


def refused(connection: Connection, statement: str, **parameters: object) -> str | None:
    """Why Postgres refuses a statement; None where it does not. Nothing of it is kept."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(text(statement), parameters)
    except IntegrityError as error:
        return str(error.orig)
    finally:
        savepoint.rollback()
    return None


FITTING = """
UPDATE migrations SET status = :new,
    error_type = CASE WHEN :new = 'failed' THEN 'ValueError' END,
    finished_at = CASE WHEN :new IN ('cancelled', 'failed', 'succeeded', 'released') THEN now() END
WHERE id = :id
"""


def test_postgres_permits_the_edges_of_the_table_and_no_other(connection: Connection) -> None:
    permitted = set()
    for old in MigrationStatus:
        id_ = migration(connection, old)
        for new in MigrationStatus:
            if new is not old and refused(connection, FITTING, id=id_, new=str(new)) is None:
                permitted.add((old, new))
    assert permitted == edge_pairs()


def test_postgres_permits_an_attempt_to_leave_running_once_and_no_more(connection: Connection) -> None:
    permitted = set()
    for old, new in product(AttemptStatus, AttemptStatus):
        id_ = attempt(connection, migration(connection, "running"), old)
        why = refused(
            connection,
            "UPDATE hop_attempts SET status = :new, error_type = CASE WHEN :new = 'failed' THEN 'E' END, "
            "finished_at = CASE WHEN :new <> 'running' THEN now() END WHERE id = :id",
            id=id_,
            new=str(new),
        )
        if why is None:
            permitted.add((old, new))
    assert permitted == {(AttemptStatus.RUNNING, new) for new in AttemptStatus}


@pytest.mark.parametrize("status", ["succeeded", "skipped", "failed", "lost", "stopped"])
@pytest.mark.parametrize(
    "change", ["rows_changed = 99", "error_message = 'other'", "hop_name = 'x'", "attempt = 9"]
)
def test_a_finished_attempt_never_changes(connection: Connection, status: str, change: str) -> None:
    id_ = attempt(connection, migration(connection, "running"), status)
    why = refused(connection, f"UPDATE hop_attempts SET {change} WHERE id = :id", id=id_)
    assert "never changed once finished" in (why or "nothing")


@pytest.mark.parametrize("status", ["succeeded", "cancelled", "released"])
@pytest.mark.parametrize("change", ["to_version = 2", "error_message = 'other'", "plan = '[1]'"])
def test_an_ended_migration_never_changes(connection: Connection, status: str, change: str) -> None:
    id_ = migration(connection, status)
    why = refused(connection, f"UPDATE migrations SET {change} WHERE id = :id", id=id_)
    assert "never changed once ended" in (why or "nothing")


@pytest.mark.parametrize("table", ["hop_attempts", "migrations"])
@pytest.mark.parametrize("how", ["DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_audit_rows_are_never_deleted(connection: Connection, table: str, how: str) -> None:
    for status in ("running", "succeeded"):
        attempt(connection, migration(connection, "running"), status)
        attempt(connection, migration(connection, "succeeded"), "succeeded")
    assert "never deleted" in (refused(connection, how.format(table)) or "nothing")


def test_audit_rows_outlive_their_graph(engine: Engine) -> None:
    graph = add_graph(engine, "g", "any")
    with engine.begin() as connection:
        attempt(connection, migration(connection, "succeeded", graph=graph), "succeeded")
        connection.execute(text("DELETE FROM graphs"))
    assert rows(engine, "SELECT status FROM migrations") == [("succeeded",)]
    assert rows(engine, "SELECT status FROM hop_attempts") == [("succeeded",)]
    assert rows(engine, "SELECT * FROM nodes") == []


def test_a_graph_has_one_live_migration(connection: Connection) -> None:
    insert = (
        "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline) "
        "VALUES (gen_random_uuid(), :graph, 't', 1, 2, :status, '[]', now())"
    )
    live = [status for status in MigrationStatus if status.is_live]
    for first, second in product(live, live):
        graph = uuid4()
        migration(connection, first, graph=graph)
        why = refused(connection, insert, graph=graph, status=str(second))
        assert "migrations_one_live_per_graph" in (why or ""), (first, second)
    for ended in (status for status in MigrationStatus if status.is_settled):
        graph = uuid4()
        migration(connection, ended, graph=graph)
        assert refused(connection, insert, graph=graph, status="queued") is None, ended


ATTEMPT = (
    "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, "
    "attempt, dispatch, status, finished_at) VALUES (:migration, gen_random_uuid(), :to - 1, :to, 'h', 'f', "
    ":number, 1, :status, CASE WHEN :status <> 'running' THEN now() END)"
)


def test_a_hop_succeeds_once_in_a_migration(connection: Connection) -> None:
    for first, second in product(["succeeded", "skipped"], repeat=2):
        id_ = migration(connection, "running")
        attempt(connection, id_, first)
        why = refused(connection, ATTEMPT, migration=id_, to=2, number=2, status=second)
        assert "hop_attempts_one_success" in (why or ""), (first, second)
        assert refused(connection, ATTEMPT, migration=id_, to=2, number=2, status="lost") is None
        assert refused(connection, ATTEMPT, migration=id_, to=3, number=1, status=second) is None


def test_a_migration_runs_one_attempt_at_a_time(connection: Connection) -> None:
    id_ = migration(connection, "running")
    attempt(connection, id_)
    for to in (2, 3):
        why = refused(connection, ATTEMPT, migration=id_, to=to, number=2, status="running")
        assert "hop_attempts_one_running" in (why or ""), to


def graph(connection: Connection, slug: str) -> UUID:
    """A graph's row with one node, put there directly."""
    id_ = uuid4()
    connection.execute(
        text("INSERT INTO graphs (id, slug, graph_type, version) VALUES (:id, :slug, 't', 1)"),
        {"id": id_, "slug": slug},
    )
    connection.execute(text("INSERT INTO nodes (graph_id, id, label) VALUES (:id, 'n', 'N')"), {"id": id_})
    return id_


def test_a_migration_owns_one_graph(connection: Connection) -> None:
    mine, other = graph(connection, "a"), graph(connection, "b")
    id_ = migration(connection, "running", graph=mine)
    connection.execute(text("SELECT set_config('graph_migrator.executor', :id, true)"), {"id": str(id_)})
    claim = "UPDATE graphs SET migration_id = :migration WHERE id = :graph"
    connection.execute(text(claim), {"migration": id_, "graph": mine})
    assert "not one of this graph" in (refused(connection, claim, migration=id_, graph=other) or "")
    connection.execute(text("ALTER TABLE graphs DISABLE TRIGGER USER"))
    why = refused(connection, claim, migration=id_, graph=other)
    assert "graphs_one_claim_per_migration" in (why or "")


@pytest.mark.parametrize(
    ("table", "change", "constraint"),
    [
        ("graphs", "version = 0", "graphs_version_is_positive"),
        ("graphs", "slug = 'no spaces'", "graphs_slug_is_plain"),
        ("graphs", "slug = repeat('a', 101)", "graphs_slug_is_plain"),
        ("graphs", "slug = gen_random_uuid()::text", "graphs_slug_is_plain"),
        (
            "graphs",
            "partially_migrated = '{}', migration_id = (SELECT id FROM migrations)",
            "partially_migrated_is_unclaimed",
        ),
        ("migrations", "status = 'unheard of'", "cannot go from running to unheard of"),
        ("migrations", "to_version = from_version", "migrations_move"),
        ("migrations", "finished_at = now()", "migrations_end_is_dated"),
        ("nodes", "properties = '[]'", "nodes_properties_are_an_object"),
    ],
)
def test_rows_that_make_no_sense_are_refused(
    connection: Connection, table: str, change: str, constraint: str
) -> None:
    graph(connection, "g")
    migration(connection, "running")
    if table == "graphs":  # behind the guard, which refuses these too, stands the constraint
        connection.execute(text("ALTER TABLE graphs DISABLE TRIGGER USER"))
    assert constraint in (refused(connection, f"UPDATE {table} SET {change}") or "nothing")


def test_a_failure_without_an_explanation_is_refused(connection: Connection) -> None:
    id_ = migration(connection, "running")
    why = refused(
        connection, "UPDATE migrations SET status = 'failed', finished_at = now() WHERE id = :id", id=id_
    )
    assert "migrations_failure_is_explained" in (why or "")
    attempt_id = attempt(connection, id_)
    why = refused(
        connection,
        "UPDATE hop_attempts SET status = 'failed', finished_at = now() WHERE id = :id",
        id=attempt_id,
    )
    assert "hop_attempts_failure_is_explained" in (why or "")
