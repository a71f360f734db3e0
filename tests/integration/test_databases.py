"""The tests' own databases: no test sees what another has left, rows or anything else."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
import pytest

from graph_migrator.core.embedded import Postgres
from tests.databases import OURS, Databases


@pytest.fixture
def fresh(postgres: Postgres, template_database: str) -> Databases:
    return Databases(postgres, template_database)


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


FILL = (
    f"SET search_path = {OURS}",
    "INSERT INTO graphs (id, slug, graph_type, version) VALUES (gen_random_uuid(), 'g', 't', 1)",
    "INSERT INTO nodes (graph_id, id, label) SELECT id, 'n', 'N' FROM graphs",
    "INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, deadline, finished_at)"
    " SELECT gen_random_uuid(), id, 't', 1, 2, 'succeeded', '[]', now(), now() FROM graphs",
    "INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt,"
    " dispatch) SELECT id, graph_id, 1, 2, 'h', 'f', 1, 1 FROM migrations",
    "UPDATE metrics_state SET counted_up_to = 7",
    "ANALYZE",
)


ESTIMATES = (
    "SELECT relname, reltuples FROM pg_class "
    f"WHERE relnamespace = '{OURS}'::regnamespace AND relkind = 'r' ORDER BY 1"
)


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    tables = run(
        url, f"SELECT relname FROM pg_class WHERE relnamespace = '{OURS}'::regnamespace AND relkind = 'r'"
    )
    return {table: run(url, f"TABLE {OURS}.{table}") for (table,) in tables}


@pytest.mark.parametrize("fill", [FILL[:-1], FILL], ids=["deleted", "truncated"])
def test_rows_numbers_and_statistics_are_gone_and_the_database_is_the_same(
    fresh: Databases, fill: tuple[str, ...]
) -> None:
    with fresh.borrow() as url:
        rows, estimates = contents(url), run(url, ESTIMATES)
    with fresh.borrow() as url:
        run(url, *fill)
        assert contents(url) != rows
        assert (run(url, ESTIMATES) != estimates) == ("ANALYZE" in fill)
    with fresh.borrow() as url:
        assert (contents(url), run(url, ESTIMATES)) == (rows, estimates)
        run(url, *fill)
        assert run(url, f"SELECT id FROM {OURS}.hop_attempts") == [(1,)]
    assert fresh.copies == 1


def test_the_guard_is_whole_after_emptying(fresh: Databases) -> None:
    with fresh.borrow() as url:
        run(url, *FILL)
    with fresh.borrow() as url:
        run(url, *FILL)
        for table in ("graphs", "nodes", "hop_attempts", "migrations"):
            with pytest.raises(psycopg2.Error, match="never"):
                run(url, f"TRUNCATE {OURS}.{table} CASCADE")
    assert fresh.copies == 1


@pytest.mark.parametrize(
    "change",
    [
        f"ALTER TABLE {OURS}.nodes DISABLE TRIGGER graph_migrator_guard_update",
        f"ALTER TABLE {OURS}.hop_attempts ADD CONSTRAINT no_leaks CHECK (hop_name <> 'leak')",
        f"ALTER TABLE {OURS}.hop_attempts ALTER COLUMN hop_name DROP NOT NULL",
        f"DROP INDEX {OURS}.nodes_by_label",
        f"ALTER FUNCTION {OURS}.refuse_truncate() COST 7",
        f"GRANT SELECT ON {OURS}.nodes TO PUBLIC",
        f"GRANT USAGE ON SCHEMA {OURS} TO PUBLIC",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END $$",
    ],
)
def test_a_database_whose_schema_or_settings_were_changed_is_not_used_again(
    fresh: Databases, change: str
) -> None:
    with fresh.borrow() as first:
        run(first, change)
    with fresh.borrow() as second:
        assert second != first
    assert fresh.copies == 2


OBJECTS = "SELECT oid FROM pg_class UNION SELECT oid FROM pg_proc UNION SELECT oid FROM pg_namespace"


def test_what_a_test_has_added_to_the_schema_is_dropped(fresh: Databases) -> None:
    with fresh.borrow() as url:
        before = set(run(url, OBJECTS))
        run(
            url,
            "CREATE SCHEMA app",
            f"CREATE TABLE app.beside (id int PRIMARY KEY, node uuid REFERENCES {OURS}.graphs) PARTITION BY LIST (id)",
            "CREATE TABLE public.part PARTITION OF app.beside FOR VALUES IN (1)",
            "CREATE VIEW public.seen AS SELECT * FROM app.beside",
            f"CREATE FUNCTION {OURS}.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            f"CREATE TRIGGER note BEFORE INSERT ON {OURS}.nodes FOR EACH ROW EXECUTE FUNCTION {OURS}.note()",
            *FILL,
        )
    with fresh.borrow() as again:
        assert again == url
        assert set(run(url, OBJECTS)) == before
    assert fresh.copies == 1


def test_sessions_that_a_test_has_left_are_ended_and_what_they_held_is_free(fresh: Databases) -> None:
    with fresh.borrow() as url:
        left = psycopg2.connect(url)
        with left.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {OURS}.graphs; CREATE TEMPORARY TABLE mine (n int)")
        prepared = psycopg2.connect(url)
        with prepared.cursor() as cursor:
            cursor.execute(f"UPDATE {OURS}.metrics_state SET counted_up_to = 1; PREPARE TRANSACTION 'left'")
    with pytest.raises(psycopg2.OperationalError), left.cursor() as cursor:
        cursor.execute("SELECT 1")
    left.close()
    prepared.close()
    with fresh.borrow() as again:
        assert again == url
        assert run(again, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
        assert run(again, f"SELECT counted_up_to FROM {OURS}.metrics_state") == [(0,)]
