"""What one hop leaves in its session does not reach the next graph's, whose hops run on the same session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg2.extensions import new_type, register_type
from sqlalchemy import Engine, text

from graph_migrator import HopContext
from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script
from tests.rows import add_graph, rows

KEY = 4711


def _driver(ctx: HopContext) -> Any:
    return ctx.connection.connection.dbapi_connection


def _sql(statement: str) -> Callable[[HopContext], Any]:
    return lambda ctx: ctx.session.execute(text(statement))


def _ask(statement: str) -> Callable[[HopContext], Any]:
    return lambda ctx: ctx.connection.execute(text(statement)).scalar()


def _cast_integers_to_text(ctx: HopContext) -> None:
    register_type(new_type((23,), "TEXTUAL", lambda value, _: value), _driver(ctx))


LEFT: dict[str, tuple[Callable[[HopContext], Any], Callable[[HopContext], Any], Any]] = {
    "temporary table": (
        _sql("CREATE TEMP TABLE mapping AS SELECT 1 AS a"),
        _ask("SELECT to_regclass('pg_temp.mapping')"),
        None,
    ),
    "search_path": (
        _sql("SET search_path = graph_migrator"),
        _ask("SHOW search_path"),
        "graph_migrator,public",
    ),
    "set_config": (
        _sql("SELECT set_config('statement_timeout', '77s', false)"),
        _ask("SHOW statement_timeout"),
        "0",
    ),
    "time zone": (_sql("SET timezone = 'Asia/Tokyo'"), _ask("SHOW timezone"), "UTC"),
    "a setting of one's own": (
        _sql("SELECT set_config('app.tenant', 'a', false)"),
        _ask("SELECT coalesce(current_setting('app.tenant', true), '')"),
        "",
    ),
    "read-only by default": (
        _sql("SET default_transaction_read_only = on"),
        _ask("SHOW default_transaction_read_only"),
        "off",
    ),
    "prepared statement": (
        _sql("PREPARE left_over AS SELECT 1"),
        _ask("SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over'"),
        0,
    ),
    "LISTEN": (_sql("LISTEN left_over"), _ask("SELECT count(*) FROM pg_listening_channels()"), 0),
    "advisory lock": (
        _sql(f"SELECT pg_advisory_lock({KEY})"),
        _ask(f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY}"),
        0,
    ),
    "cursor": (
        _sql("DECLARE left_over CURSOR WITH HOLD FOR SELECT 1"),
        _ask("SELECT count(*) FROM pg_cursors WHERE name = 'left_over'"),
        0,
    ),
    "cursor factory": (
        lambda ctx: setattr(_driver(ctx), "cursor_factory", type(_driver(ctx).cursor())),
        lambda ctx: _driver(ctx).cursor_factory,
        None,
    ),
    "type caster": (_cast_integers_to_text, _ask("SELECT 1"), 1),
}


@pytest.mark.parametrize("fails", [False, True], ids=["committed", "failed"])
@pytest.mark.parametrize("last", [True, False], ids=["last hop", "hop in between"])
@pytest.mark.parametrize("what", LEFT)
def test_nothing_of_a_hop_is_left_for_the_next_graph(
    engine: Engine, executors: Executors, script: Script, what: str, last: bool, fails: bool
) -> None:
    leave, ask, expected = LEFT[what]
    pids, found = [], []

    def first(ctx: HopContext) -> None:
        pids.append(_driver(ctx).info.backend_pid)
        leave(ctx)
        if fails:
            raise ValueError("half-way")

    def second(ctx: HopContext) -> None:
        pids.append(_driver(ctx).info.backend_pid)
        found.append(ask(ctx))

    add_graph(engine, "a", "plain")
    add_graph(engine, "b", "plain")
    script.on["one"] = first
    if not last:
        script.on["two"] = second
    if fails:
        with pytest.raises(ValueError, match="half-way"):
            run_graph_migration(executors, "a", 2)
    else:
        run_graph_migration(executors, "a", 2 if last else 3)
    script.on["one"] = second
    run_graph_migration(executors, "b", 2)
    assert set(found) == {expected}
    assert len(set(pids)) == 1, "the session is used again"


def test_a_role_that_a_hop_took_is_not_the_next_graphs(
    engine: Engine, executors: Executors, script: Script
) -> None:
    found = []
    with engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS left_over"))
        connection.execute(text("CREATE ROLE left_over SUPERUSER"))
    try:
        add_graph(engine, "a", "plain")
        add_graph(engine, "b", "plain")
        script.on["one"] = _sql("SET ROLE left_over")
        run_graph_migration(executors, "a", 2)
        script.on["one"] = lambda ctx: found.append(_ask("SELECT current_user = session_user")(ctx))
        run_graph_migration(executors, "b", 2)
    finally:
        executors.close()
        with engine.begin() as connection:
            connection.execute(text("DROP ROLE left_over"))
    assert found == [True]


def test_an_idle_session_holds_no_lock_of_a_hop(engine: Engine, executors: Executors, script: Script) -> None:
    """Or whoever takes the same lock would wait for a session that nobody uses."""
    add_graph(engine, "a", "plain")
    script.on["one"] = _sql(f"SELECT pg_advisory_lock({KEY})")
    run_graph_migration(executors, "a", 2)
    assert rows(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
