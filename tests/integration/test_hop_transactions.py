"""What a hop may do to its session and transaction, and what is refused or put right behind it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from psycopg2.extras import NamedTupleCursor, RealDictCursor
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.errors import CheckFailed
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.execution.recovery import sweep, sweeping
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, attempts, graph_row, migration_of, rows

pytestmark = pytest.mark.usefixtures("script")


@pytest.mark.parametrize(
    "end",
    [
        lambda ctx: ctx.connection.commit(),
        lambda ctx: ctx.connection.rollback(),
        lambda ctx: (ctx.session.execute(text("SELECT 1")), ctx.session.rollback()),
        lambda ctx: ctx.connection.get_transaction().commit(),
        lambda ctx: ctx.execute("COMMIT"),
        lambda ctx: ctx.connection.exec_driver_sql("COMMIT"),
        lambda ctx: ctx.connection.exec_driver_sql("COMMIT; BEGIN"),
        lambda ctx: (driver(ctx).commit(), driver(ctx).cursor().execute("SELECT 1")),
        lambda ctx: (driver(ctx).rollback(), driver(ctx).cursor().execute("SELECT 1")),
    ],
    ids=[
        "connection.commit",
        "connection.rollback",
        "session.rollback",
        "transaction.commit",
        "COMMIT",
        "raw COMMIT",
        "raw COMMIT and BEGIN",
        "the driver's commit, and on",
        "the driver's rollback, and on",
    ],
)
def test_a_hop_that_ends_its_own_transaction_is_refused(
    engine: Engine, executors: Executors, script: Script, end: Any
) -> None:
    add_graph(engine, "early", "careful")
    script.on["guarded"] = end
    add_graph(engine, "late", "careful")
    with pytest.raises(Exception, match="transaction"):
        run_graph_migration(executors, "early", 2)
    script.on = {"check": lambda ctx: end(ctx) and None}  # the very last of the author's code
    with pytest.raises(Exception, match="transaction"):
        run_graph_migration(executors, "late", 2)
    assert attempts(engine, "late") == [("guarded", "failed")], "committed at once"

    # The session is as good as new: what the next hop does is one transaction, too.
    add_graph(engine, "next", "careful")
    seen: list[Any] = []
    script.on = {
        "guarded": lambda ctx: ctx.execute("UPDATE nodes SET label = 'Half' WHERE graph_id = :graph_id"),
        "check": lambda _: seen.extend(rows(engine, "SELECT 1 FROM nodes WHERE label = 'Half'")) or "no",
    }
    with pytest.raises(CheckFailed):
        run_graph_migration(executors, "next", 2)
    assert (seen, rows(engine, "SELECT 1 FROM nodes WHERE label = 'Half'")) == ([], [])

    for slug in ("early", "late"):
        assert (graph_row(engine, slug).version, migration_of(engine, slug).status) == (1, "failed")
        assert attempts(engine, slug) == [("guarded", "failed")]


@pytest.mark.parametrize("statement", ["SET work_mem = '9MB'", "set session work_mem TO '9MB'", "RESET ALL"])
def test_what_a_hop_would_leave_in_its_session_for_other_graphs_is_refused(
    engine: Engine, executors: Executors, script: Script, statement: str
) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda ctx: ctx.execute(statement)
    with pytest.raises(ValueError, match="SET LOCAL"):
        run_graph_migration(executors, "g", 2)
    script.on["one"] = lambda ctx: ctx.execute("SET LOCAL work_mem = '9MB'")
    script.on["two"] = lambda ctx: shown.append(ctx.execute("SHOW work_mem").scalar())
    shown: list[Any] = []
    assert run_graph_migration(executors, "g", 2).version == 2
    assert run_graph_migration(executors, "g", 3).version == 3
    assert shown == ["4MB"]


@pytest.mark.parametrize("batch", [1, 3], ids=["between", "the last one"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_batch_that_ends_its_own_transaction_is_refused(
    engine: Engine, script: Script, batch: int, end: str
) -> None:
    """In words of SQL that pass the driver unseen; whatever goes through SQLAlchemy is refused before."""
    add_graph(engine, "g", "batched", nodes=25)

    def end_it(ctx: HopContext) -> None:
        if len(script.batches) == batch:
            ctx.connection.exec_driver_sql(end)

    script.on["visit"] = end_it
    with pytest.raises(Exception, match="ended its own transaction"):
        run_graph_migration(engine, "g", 3)
    assert (graph_row(engine, "g").version, migration_of(engine, "g").status) == (1, "failed")
    assert attempts(engine, "g") == [("visit", "failed")]
    assert rows(engine, "SELECT coalesce(sum(done), 0) FROM checkpoints") == [(10 * (batch - 1),)]


def driver(ctx: HopContext) -> Any:
    """The driver's own connection, which knows nothing of hops."""
    return ctx.connection.connection.dbapi_connection


@pytest.mark.parametrize("first", ["SELECT 1", ""], ids=["after another statement", "at once"])
def test_a_hop_may_read_through_cursors_of_the_server(engine: Engine, script: Script, first: str) -> None:
    add_graph(engine, "g", "plain", nodes=50)
    read: list[int] = []

    def stream(ctx: HopContext) -> None:
        if first:
            ctx.execute(first)
        select = text("SELECT id FROM nodes WHERE graph_id = :graph FOR UPDATE")
        found = ctx.connection.execute(select, {"graph": ctx.graph.id}, execution_options={"yield_per": 7})
        read.append(sum(1 for _ in found))
        with driver(ctx).cursor("by_name") as cursor:
            cursor.execute("SELECT id FROM nodes")
            read.append(len(cursor.fetchmany(20)))

    script.on["one"] = stream
    assert run_graph_migration(engine, "g", 2).version == 2
    assert read == [50, 20]


@pytest.mark.parametrize("factory", [RealDictCursor, NamedTupleCursor])
def test_what_a_hop_writes_through_a_cursor_of_any_kind_is_in_its_transaction(
    engine: Engine, script: Script, factory: Any
) -> None:
    add_graph(engine, "g", "plain")

    def write(ctx: HopContext) -> None:
        with driver(ctx).cursor(cursor_factory=factory) as cursor:
            cursor.execute("UPDATE nodes SET label = 'Changed'")
        raise ValueError("afterwards")

    script.on["one"] = write
    with pytest.raises(ValueError, match="afterwards"):
        run_graph_migration(engine, "g", 2)
    assert rows(engine, "SELECT DISTINCT label FROM nodes") == [("Node",)]


def test_plans_that_were_made_while_the_tables_were_empty_use_the_indexes(
    engine: Engine, executors: Executors, script: Script
) -> None:
    """A session keeps its plans. One that reads whole tables would cost more with every migration."""
    tables = "hop_attempts", "migrations", "graphs", "requests", "checkpoints"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE {', '.join(tables)}")
    for number in range(8):  # the generic plan comes with the sixth use
        add_graph(engine, f"g{number}", "plain")
    before = scans(engine, executors, tables)
    for number in range(8):
        run_graph_migration(executors, f"g{number}", 3, caller=Caller(f"call-{number}"))
    with sweeping(executors) as executor:
        assert executor is not None
        sweep(executor)
    assert scans(engine, executors, tables) == before


def scans(engine: Engine, executors: Executors, tables: tuple[str, ...]) -> list[Any]:
    """How often each table was read as a whole."""
    flush = "SELECT pg_stat_force_next_flush()"  # else a session reports in a second
    with executors.borrow() as executor, executor.cursor() as cursor:
        cursor.execute(flush)
    with engine.connect() as connection:  # the one session of this engine: it has added the graphs
        connection.exec_driver_sql(flush)
    return rows(
        engine,
        "SELECT relname, seq_scan FROM pg_stat_user_tables "
        "WHERE schemaname = 'graph_migrator' AND relname = ANY(:tables) ORDER BY relname",
        tables=list(tables),
    )


def test_a_sessions_commit_is_refused_also_where_the_hop_catches_that(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")

    def use_session(ctx: HopContext) -> None:
        ctx.session.execute(text("UPDATE nodes SET label = 'Changed'"))
        with suppress(RuntimeError):
            ctx.session.commit()

    script.on["one"] = use_session
    with pytest.raises(RuntimeError, match="neither commit nor roll back"):
        run_graph_migration(engine, "g", 2)
    assert rows(engine, "SELECT DISTINCT label FROM nodes") == [("Node",)]
