"""What a hop's author undoes is undone, by whatever way; what cannot be undone is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from graph_migrator import HopContext
from graph_migrator.core.errors import InvalidRequest
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.store import protocol
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.driver import ExecutorConnection
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, rows

CHANGE = "UPDATE nodes SET label = 'Changed'"
LABELS = "SELECT DISTINCT label FROM nodes"


def _by_driver(ctx: HopContext) -> None:
    raw: Any = ctx.connection.connection.dbapi_connection
    with raw.cursor() as cursor:
        cursor.execute(CHANGE)


WAYS: dict[str, Callable[[HopContext], Any]] = {
    "execute": lambda ctx: ctx.execute(CHANGE),
    "session": lambda ctx: ctx.session.execute(text(CHANGE)),
    "connection": lambda ctx: ctx.connection.execute(text(CHANGE)),
    "driver": _by_driver,
}


def _savepoint(ctx: HopContext, change: Callable[[HopContext], Any]) -> None:
    with suppress(ValueError), ctx.savepoint():
        change(ctx)
        raise ValueError("on second thoughts")


def _begin_nested(ctx: HopContext, change: Callable[[HopContext], Any]) -> None:
    nested = ctx.session.begin_nested()
    change(ctx)
    nested.rollback()


def _connection(ctx: HopContext, change: Callable[[HopContext], Any]) -> None:
    nested = ctx.connection.begin_nested()
    change(ctx)
    nested.rollback()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("undo", [_savepoint, _begin_nested, _connection])
def test_what_is_rolled_back_to_a_savepoint_is_undone(
    engine: Engine, script: Script, undo: Callable[..., None], way: str
) -> None:
    add_graph(engine, "g", "plain")
    script.on["one"] = lambda ctx: undo(ctx, WAYS[way])
    assert run_graph_migration(engine, "g", 2).version == 2
    assert rows(engine, LABELS) == [("Node",)]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_savepoint_holds_is_kept_also_where_it_was_never_released(
    engine: Engine, script: Script, way: str
) -> None:
    add_graph(engine, "a", "plain")
    add_graph(engine, "b", "plain")

    def released(ctx: HopContext) -> None:
        with ctx.savepoint():
            WAYS[way](ctx)

    script.on["one"] = released
    run_graph_migration(engine, "a", 2)
    assert rows(engine, LABELS) == [("Changed",)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET label = 'Node' WHERE graph_id IN (SELECT id FROM graphs)"))

    def open_still(ctx: HopContext) -> None:
        ctx.session.begin_nested()
        WAYS[way](ctx)

    script.on["one"] = open_still
    assert run_graph_migration(engine, "b", 2).version == 2
    assert rows(engine, LABELS) == [("Changed",)]


def test_rows_of_an_undone_savepoint_are_not_counted(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain", nodes=3)
    script.on["one"] = lambda ctx: _savepoint(ctx, WAYS["execute"])
    assert run_graph_migration(engine, "g", 2).hops[0].rows_changed == 3  # its mark on each node


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("caught", [False, True], ids=["raised", "caught by the hop"])
def test_a_session_refuses_to_end_the_hops_transaction(
    engine: Engine, executors: Executors, script: Script, end: str, caught: bool
) -> None:
    add_graph(engine, "g", "plain")

    def try_to_end(ctx: HopContext) -> None:
        ctx.execute(CHANGE)
        with suppress(RuntimeError if caught else ()):
            getattr(ctx.session, end)()

    script.on["one"] = try_to_end
    with pytest.raises(RuntimeError, match=r"neither commit nor roll back.*ctx\.savepoint"):
        run_graph_migration(executors, "g", 2)
    assert rows(engine, LABELS) == [("Node",)]
    assert rows(engine, "SELECT version FROM graphs") == [(1,)]


def _raw(ctx: HopContext) -> Any:
    return ctx.connection.connection.dbapi_connection


def _with_block(ctx: HopContext) -> None:
    with _raw(ctx), _raw(ctx).cursor() as cursor:
        cursor.execute("SELECT 1")


def _own_begin(ctx: HopContext) -> None:
    _raw(ctx).autocommit = False
    _by_driver(ctx)


def _own_session(ctx: HopContext) -> None:
    session = Session(ctx.connection)
    session.execute(text("SELECT 1"))
    session.rollback()


ENDS: dict[str, Callable[[HopContext], Any]] = {
    "the driver's commit": lambda ctx: _raw(ctx).commit(),
    "the driver's rollback": lambda ctx: _raw(ctx).rollback(),
    "the driver's reset": lambda ctx: _raw(ctx).reset(),
    "the driver's with": _with_block,
    "the driver's own BEGIN": _own_begin,
    "another isolation": lambda ctx: _raw(ctx).set_isolation_level(3),
    "connection.commit": lambda ctx: ctx.connection.commit(),
    "connection.rollback": lambda ctx: ctx.connection.rollback(),
    "its transaction's rollback": lambda ctx: ctx.connection.get_transaction().rollback(),  # type: ignore[union-attr]
    "another session's rollback": _own_session,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("caught", [False, True], ids=["raised", "caught by the hop"])
def test_what_would_end_the_transaction_is_refused_by_whatever_way(
    engine: Engine, executors: Executors, script: Script, end: str, caught: bool
) -> None:
    """In autocommit mode psycopg2's own `commit` and `rollback` would silently do nothing."""
    add_graph(engine, "g", "plain")
    add_graph(engine, "next", "plain")

    def try_to_end(ctx: HopContext) -> None:
        ctx.execute(CHANGE)
        with suppress(RuntimeError if caught else ()):
            ENDS[end](ctx)

    script.on["one"] = try_to_end
    with pytest.raises(RuntimeError, match=r"neither commit nor roll back"):
        run_graph_migration(executors, "g", 2)
    assert rows(engine, LABELS) == [("Node",)]
    assert rows(engine, "SELECT version FROM graphs WHERE slug = 'g'") == [(1,)]

    # The session is as good as new.
    script.on["one"] = lambda ctx: _savepoint(
        ctx, lambda _: ctx.execute(f"{CHANGE} WHERE graph_id = :graph_id")
    )
    assert run_graph_migration(executors, "next", 2).version == 2
    assert rows(engine, LABELS) == [("Node",)]


@pytest.mark.parametrize("scrollable", [None, True])
def test_a_cursor_of_the_server_ends_with_the_transaction_and_locks_rows(
    engine: Engine, executors: Executors, script: Script, scrollable: bool | None
) -> None:
    add_graph(engine, "g", "plain", nodes=50)
    read: list[Any] = []

    def stream(ctx: HopContext) -> None:
        with _raw(ctx).cursor('a "name" of 100%', scrollable=scrollable) as cursor:
            lock = "" if scrollable else " FOR UPDATE"
            cursor.execute(f"SELECT id FROM nodes WHERE id LIKE %s AND id <> '%%' ORDER BY id{lock}", ("n%",))
            read.extend(row[0] for row in cursor.fetchmany(2))
            read.append(len(cursor.fetchall()))
            if scrollable:
                cursor.scroll(0, mode="absolute")
                read.append(cursor.fetchone()[0])
        held = _raw(ctx).cursor("held", withhold=True)
        held.execute("SELECT 1")
        left_open = _raw(ctx).cursor("left open")
        left_open.execute("SELECT 1")

    script.on["one"] = stream
    script.on["two"] = lambda ctx: read.append(
        ctx.execute("SELECT count(*) FROM pg_cursors WHERE name <> ''").scalar()
    )
    assert run_graph_migration(executors, "g", 3).version == 3
    assert read == ["n0000", "n0001", 48, *(["n0000"] if scrollable else []), 0]


def test_an_engine_with_connections_in_its_pool_serves_and_keeps_them(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    pooled = create_engine(engine.url, pool_size=1, max_overflow=0, connect_args={"application_name": "mine"})
    with pooled.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    script.on["one"] = lambda ctx: names.append(ctx.execute("SHOW application_name").scalar())
    names: list[Any] = []
    assert run_graph_migration(pooled, "g", 2).version == 2
    with pooled.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar() == pid
        assert not hasattr(connection.connection.dbapi_connection, "lend")
        connection.rollback()
    pooled.dispose()
    assert names == ["mine"]


def test_an_engine_is_not_taken_for_one_that_had_its_id_before(database_url: str) -> None:
    dialects = []  # they outlive their engines, where somebody holds them
    for _ in range(40):
        engine = make_engine(database_url)
        dialects.append(engine.dialect)
        with Executors(engine).borrow() as executor:
            assert executor.call(protocol.HealthLevel()) == "good"
        engine.dispose()
        del engine
        gc.collect()


def test_an_engine_that_makes_foreign_connections_is_refused_by_name(engine: Engine, script: Script) -> None:
    add_graph(engine, "g", "plain")
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    foreign = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(url))
    with pytest.raises(InvalidRequest, match=r"creator=.*connection_factory="):
        run_graph_migration(foreign, "g", 2)
    own = create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(url, connection_factory=ExecutorConnection),
    )
    assert run_graph_migration(own, "g", 2).version == 2
    foreign.dispose()
    own.dispose()
