"""`execute_migration`: a whole migration in one transaction of the caller's."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator.core.errors import (
    InvalidRequest,
    MigrationInFlight,
    OpenWriteTransactions,
    UnknownGraph,
)
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.dry_run import dry_run
from graph_migrator.core.execution.in_process import execute_migration
from graph_migrator.core.settings import settings
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script, fails_now, trails, with_sqlstate
from tests.rows import add_graph, advisory_locks, attempts, dump, graph_row

pytestmark = pytest.mark.usefixtures("script")


def test_execute_migration_is_kept_where_the_caller_commits(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    with engine.begin() as connection:
        report = execute_migration(connection, "g", 4)
        assert graph_row(engine, "g").version == 1  # nobody else sees it yet
    assert (report.status, report.version, report.last_applied) == ("succeeded", 4, "three")
    assert trails(engine, "g") == {"one two three"}
    assert attempts(engine, "g") == [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")]
    assert graph_row(engine, "g").migration_id is None
    assert advisory_locks(engine) == []


def test_execute_migration_rolled_back_leaves_nothing(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    add_graph(engine, "b", "batched", nodes=25)
    before = dump(engine)
    with engine.connect() as connection:
        transaction = connection.begin()
        assert execute_migration(connection, "g", 4).version == 4
        assert execute_migration(connection, "b").version == 3
        transaction.rollback()
        assert advisory_locks(engine) == []
    assert dump(engine) == before


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_execute_migration_refuses_any_isolation_but_read_committed(engine: Engine, isolation: Any) -> None:
    add_graph(engine, "g", "plain")
    before = dump(engine)
    with (
        engine.connect().execution_options(isolation_level=isolation) as connection,
        pytest.raises(InvalidRequest, match="READ COMMITTED"),
    ):
        execute_migration(connection, "g")
    assert dump(engine) == before


@pytest.mark.parametrize(
    "error",
    [lambda _: fails_now(), with_sqlstate("40001"), with_sqlstate("23505")],
    ids=["python", "40001", "23505"],
)
def test_an_error_in_execute_migration_leaves_the_callers_transaction_usable(
    engine: Engine, script: Script, error: Any
) -> None:
    graph_id = add_graph(engine, "g", "plain")
    script.on["two"] = error
    with engine.begin() as connection:
        connection.execute(text("SET search_path = public"))
        connection.execute(text("CREATE TABLE public.mine AS SELECT 1 AS n"))
        with pytest.raises(Exception, match=r"half-way|passing"):
            execute_migration(connection, "g", 3)
        assert connection.execute(text("SHOW search_path")).scalar_one() == "public"
        assert connection.execute(text("SELECT n FROM mine")).scalar_one() == 1
        script.on.clear()
        assert execute_migration(connection, graph_id, 2).version == 2
    engine.dispose()  # its session keeps the caller's search_path
    assert attempts(engine, "g") == [("one", "succeeded")]
    assert trails(engine, "g") == {"one"}


def test_execute_migration_waits_for_writers_like_begin_and_keeps_the_callers_settings(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_id = add_graph(engine, "g", "plain")
    monkeypatch.setenv("GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS", "0.2")
    settings.cache_clear()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        with engine.begin() as writer:
            writer.execute(text("UPDATE nodes SET label = 'Late'"))
            pid = writer.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with pytest.raises(OpenWriteTransactions, match=f"pid {pid}"):
                execute_migration(connection, "g", 2)
            with pytest.raises(OpenWriteTransactions, match=f"pid {pid}"):
                dry_run(engine, graph_id)
        assert execute_migration(connection, "g", 2).version == 2
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "7s"


def test_execute_migration_refuses_like_begin(engine: Engine, executors: Executors) -> None:
    add_graph(engine, "g", "plain")
    with executors.borrow() as executor:
        begin_migration(executor, "g", 3)
    before = dump(engine)
    with engine.begin() as connection:
        with pytest.raises(MigrationInFlight):
            execute_migration(connection, "g")
        with pytest.raises(UnknownGraph):
            execute_migration(connection, "nobody")
    assert dump(engine) == before
