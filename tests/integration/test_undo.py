"""What a hop's author undoes is undone, by whatever way; what cannot be undone is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.execution.in_process import run_graph_migration
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
