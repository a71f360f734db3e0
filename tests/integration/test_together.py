"""Graphs that share the transactions of their hops: none of them notices, and what one does wrong costs it alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.execution.model import Applied, Failed
from graph_migrator.core.execution.together import LONGEST_SECONDS
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.session import Executors
from tests.integration.scripted import Script, leave_mark, trails
from tests.integration.test_sessions import LEFT
from tests.integration.together import assert_sound, have_parted, move, on
from tests.rows import add_graph, attempts, graph_row, rows

THREE = [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")]
SLUGS = ("a", "b", "c")


@pytest.fixture
def three(engine: Engine, script: Script) -> Script:
    """Three graphs of `plain`, and a type for the graph that uses the session next."""
    _next = GraphType("next")
    _next.hop(1, 2)(_write)
    registry.register(_next)
    for slug in SLUGS:
        add_graph(engine, slug, "plain", nodes=2)
    return script


def _write(ctx: HopContext) -> None:
    ctx.execute("UPDATE nodes SET label = 'Next' WHERE graph_id = :graph_id")


def driver(ctx: HopContext) -> Any:
    """The driver's own connection."""
    return ctx.connection.connection.dbapi_connection


def sql(statement: str) -> Callable[[HopContext], Any]:
    """Passes SQLAlchemy as it is."""
    return lambda ctx: ctx.connection.exec_driver_sql(statement)


def ask(statement: str) -> Callable[[HopContext], Any]:
    return lambda ctx: ctx.connection.exec_driver_sql(statement).scalar()


def assert_each_alone(engine: Engine, executors: Executors, outcomes: dict[str, Any], *failed: str) -> None:
    """Every graph is where it would be if it had been alone: every effect once."""
    for slug in SLUGS:
        ended, version = (Failed, 1) if slug in failed else (Applied, 4)
        assert isinstance(outcomes[slug], ended), (slug, outcomes[slug])
        assert graph_row(engine, slug).version == version
        done = [each for each in attempts(engine, slug) if each[1] == "succeeded"]
        assert done == ([] if slug in failed else THREE)
        assert trails(engine, slug) == {"" if slug in failed else "one two three"}
    assert_sound(engine, executors)


# ── what a hop leaves ───────────────────────────────────────────────────────────────────────────────


def test_hops_share_their_transactions_and_each_has_its_rows(
    engine: Engine, executors: Executors, three: Script
) -> None:
    outcomes = move(executors, engine, SLUGS, 4)
    assert not have_parted(engine)
    assert_each_alone(engine, executors, outcomes)
    shared = rows(
        engine, "SELECT count(DISTINCT xmin::text), count(*) FROM hop_attempts WHERE hop_name <> '_write'"
    )
    assert shared == [(3, 9)]
    assert three.invoked == [hop for hop in ("one", "two", "three") for _ in SLUGS]


BOUND = f"{LONGEST_SECONDS:g}s"
LEAVES: dict[str, tuple[Callable[[HopContext], Any], Callable[[HopContext], Any], Any]] = {
    "SET LOCAL search_path": (
        sql("SET LOCAL search_path = graph_migrator, pg_catalog"),
        ask("SHOW search_path"),
        "graph_migrator,public",
    ),
    "SET LOCAL timezone": (sql("SET LOCAL timezone = 'Asia/Tokyo'"), ask("SHOW timezone"), "UTC"),
    "SET LOCAL of its own": (
        sql("SET LOCAL app.tenant = 'a'"),
        ask("SELECT coalesce(current_setting('app.tenant', true), '')"),
        "",
    ),
    "SET LOCAL statement_timeout": (
        sql("SET LOCAL statement_timeout = '77s'"),
        ask("SHOW statement_timeout"),
        BOUND,
    ),
    "set_config": (*LEFT["set_config"][:2], BOUND),
    "a cursor of the transaction": (
        sql("DECLARE left_over CURSOR FOR SELECT 1"),
        ask("SELECT count(*) FROM pg_cursors WHERE name = 'left_over'"),
        0,
    ),
    "a named cursor of the driver": (
        lambda ctx: driver(ctx).cursor("left_over").execute("SELECT 1"),
        ask("SELECT count(*) FROM pg_cursors WHERE name = 'left_over'"),
        0,
    ),
    "a temporary table that goes with the commit": (
        sql("CREATE TEMP TABLE mapping ON COMMIT DROP AS SELECT 1 AS a"),
        ask("SELECT to_regclass('pg_temp.mapping')"),
        None,
    ),
    "a temporary view": (sql("CREATE TEMP VIEW v AS SELECT 1"), ask("SELECT to_regclass('pg_temp.v')"), None),
    "currval": (
        sql("CREATE TEMP SEQUENCE s; SELECT nextval('s')"),
        ask("SELECT to_regclass('pg_temp.s')"),
        None,
    ),
    "a notice": (sql("DO $$ BEGIN RAISE NOTICE 'a'; END $$"), lambda ctx: list(driver(ctx).notices), []),
}


@pytest.mark.parametrize("what", LEFT | LEAVES)
def test_what_a_hop_leaves_is_not_there_for_the_next_graph(
    engine: Engine, executors: Executors, three: Script, what: str
) -> None:
    leave, look, expected = (LEFT | LEAVES)[what]
    found: list[Any] = []
    three.on["one"] = on(
        a=leave, b=lambda ctx: found.append(look(ctx)), c=lambda ctx: found.append(look(ctx))
    )
    outcomes = move(executors, engine, SLUGS, 4)
    if (
        what != "advisory lock"
    ):  # the session has it until the commit, and no graph of the group can be refused it
        assert set(map(str, found)) == {str(expected)}
    assert_each_alone(engine, executors, outcomes)


def test_rows_of_a_temporary_table_never_get_into_another_graph(
    engine: Engine, executors: Executors, three: Script
) -> None:
    def copy(ctx: HopContext) -> None:
        ctx.execute("CREATE TEMP TABLE IF NOT EXISTS mine (slug text)")
        ctx.execute("INSERT INTO mine VALUES (:slug)", {"slug": ctx.graph.slug})
        ctx.execute(
            "UPDATE nodes SET label = (SELECT string_agg(slug, ' ') FROM mine) WHERE graph_id = :graph_id"
        )

    three.on["one"] = copy
    assert_each_alone(engine, executors, move(executors, engine, SLUGS, 4))
    assert not have_parted(engine)
    assert rows(
        engine, "SELECT DISTINCT g.slug, n.label FROM nodes n JOIN graphs g ON g.id = n.graph_id "
        "WHERE g.slug IN ('a', 'b', 'c') ORDER BY 1",
    ) == [("a", "a"), ("b", "b"), ("c", "c")]  # fmt: skip


# ── what cannot be undone between two hops ──────────────────────────────────────────────────────────


def _left_nested(ctx: HopContext) -> None:
    ctx.connection.begin_nested()


def _temp_with_events(ctx: HopContext) -> None:
    ctx.execute("CREATE TEMP TABLE p (id int PRIMARY KEY)")
    ctx.execute("CREATE TEMP TABLE q (id int REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
    ctx.execute("INSERT INTO q VALUES (1)")
    ctx.execute("INSERT INTO p VALUES (1)")


KEEPS: dict[str, Callable[[HopContext], Any]] = {
    "an open savepoint": sql("SAVEPOINT left_open"),
    "an open savepoint of SQLAlchemy": _left_nested,
    "an open savepoint of the session": lambda ctx: ctx.session.begin_nested(),
    "constraints deferred": sql("SET CONSTRAINTS ALL DEFERRED"),
    "constraints immediate": sql("SET CONSTRAINTS ALL IMMEDIATE"),
    "a temporary table with deferred events": _temp_with_events,
    "all locks released": sql("SELECT pg_advisory_unlock_all()"),
    "its token removed": sql("SELECT set_config('graph_migrator.executor', '', false)"),
    "the list of the group removed": sql("RESET graph_migrator.together"),
    "another cursor factory, and an encoding set twice": lambda ctx: (
        driver(ctx).set_client_encoding("LATIN1"),
        driver(ctx).set_client_encoding("UTF8"),
    ),
}
"""With which a graph alone is moved."""


@pytest.mark.parametrize("who", SLUGS)
@pytest.mark.parametrize("what", KEEPS)
def test_what_stays_until_the_commit_moves_no_graph_wrong(
    engine: Engine, executors: Executors, three: Script, what: str, who: str
) -> None:
    three.on["one"] = on(**{who: lambda ctx: shared(ctx) and KEEPS[what](ctx)})
    assert_each_alone(engine, executors, move(executors, engine, SLUGS, 4))


def shared(ctx: HopContext) -> bool:
    """Whether the hop runs with others: what it then does, it does not do alone."""
    return ctx.attempt == 1


ENDS: dict[str, Callable[[HopContext], Any]] = {
    "COMMIT": sql("COMMIT"),
    "COMMIT and BEGIN": sql("COMMIT; BEGIN"),
    "COMMIT AND CHAIN": sql("COMMIT AND CHAIN"),
    "ROLLBACK": sql("ROLLBACK"),
    "ROLLBACK and BEGIN": sql("ROLLBACK; BEGIN"),
    "COMMIT and BEGIN through a cursor of its own": lambda ctx: driver(ctx).cursor().execute("COMMIT; BEGIN"),
    "COMMIT in a DO block": sql("DO $$ BEGIN COMMIT; END $$"),
    "a transaction that is prepared": sql("PREPARE TRANSACTION 'x'"),
    "the driver's commit": lambda ctx: driver(ctx).commit(),
    "the driver's rollback": lambda ctx: driver(ctx).rollback(),
    "the driver's commit, caught": lambda ctx: _caught(driver(ctx).commit),
    "the driver's rollback, caught": lambda ctx: _caught(driver(ctx).rollback),
    "COMMIT, caught": lambda ctx: _caught(lambda: ctx.connection.exec_driver_sql("COMMIT")),
    "COMMIT and BEGIN, caught": lambda ctx: _caught(lambda: ctx.connection.exec_driver_sql("COMMIT; BEGIN")),
    "a session's commit, caught": lambda ctx: _caught(ctx.session.commit),
    "SQLAlchemy's commit": lambda ctx: ctx.connection.commit(),
    "SQLAlchemy's rollback": lambda ctx: ctx.connection.rollback(),
    "an isolation level of its own": lambda ctx: (
        driver(ctx).set_isolation_level(ISOLATION_LEVEL_REPEATABLE_READ),
        ctx.execute("SELECT 1"),
    ),
    "autocommit off": lambda ctx: (setattr(driver(ctx), "autocommit", False), ctx.execute("SELECT 1")),
    "read only": sql("SET TRANSACTION READ ONLY"),
    "another encoding": lambda ctx: driver(ctx).set_client_encoding("LATIN1"),
    "closed": lambda ctx: driver(ctx).close(),
    "reset": lambda ctx: driver(ctx).reset(),
    "all prepared statements removed": sql("DEALLOCATE ALL"),
    "everything discarded that can be": sql("DISCARD PLANS; DISCARD TEMP; RESET ALL; UNLISTEN *"),
    "a savepoint of another graph's hop": lambda ctx: ctx.connection.exec_driver_sql("ROLLBACK TO theirs"),
}


def _caught(do: Callable[[], Any]) -> None:
    with suppress(Exception):
        do()


@pytest.mark.parametrize(
    ("who", "when"),
    [("b", "before it writes"), *((slug, "after it has written") for slug in SLUGS)],
)
@pytest.mark.parametrize("what", ENDS)
def test_a_hop_that_ends_the_transaction_ends_it_for_nobody_else(
    engine: Engine, executors: Executors, three: Script, what: str, who: str, when: str
) -> None:
    def end(ctx: HopContext) -> None:
        if shared(ctx):
            if when == "after it has written":
                ctx.execute("UPDATE nodes SET label = 'Written' WHERE graph_id = :graph_id")
            ENDS[what](ctx)

    def let(ctx: HopContext) -> None:
        ctx.execute("SAVEPOINT theirs")

    acts: dict[str, Callable[[HopContext], Any]] = dict.fromkeys(SLUGS, let)
    three.on["one"] = on(**acts | {who: end})
    outcomes = move(executors, engine, SLUGS, 4)
    assert_each_alone(engine, executors, outcomes)


# ── neighbours ──────────────────────────────────────────────────────────────────────────────────────

TOKEN = "SELECT set_config('graph_migrator.executor', (SELECT migration_id::text FROM graphs WHERE slug = '{}'), {})"
FORGED: dict[str, list[str]] = {
    "as it is": [],
    "with their token": [TOKEN.format("a", "false")],
    "with their token for the transaction": [TOKEN.format("a", "true")],
}


@pytest.mark.parametrize("back", [False, True], ids=["", "and its own token set again"])
@pytest.mark.parametrize("what", FORGED)
def test_a_hop_cannot_write_a_neighbours_rows(
    engine: Engine, executors: Executors, three: Script, what: str, back: bool
) -> None:
    def write(ctx: HopContext) -> None:
        if not shared(ctx):
            return
        for statement in FORGED[what]:
            ctx.execute(statement)
        ctx.execute(
            "UPDATE nodes SET label = 'Theirs' WHERE graph_id = (SELECT id FROM graphs WHERE slug = 'a')"
        )
        if back:
            ctx.execute(TOKEN.format("b", "false"))

    three.on["one"] = on(b=write)
    outcomes = move(executors, engine, SLUGS, 4)
    assert not rows(engine, "SELECT FROM nodes WHERE label = 'Theirs'")
    assert have_parted(engine)
    assert_each_alone(engine, executors, outcomes)


@pytest.mark.parametrize("who", ["b", "c"])
def test_a_hop_that_goes_back_to_a_neighbours_savepoint_undoes_nothing_of_its_own(
    engine: Engine, executors: Executors, three: Script, who: str
) -> None:
    quiet = GraphType("quiet")

    def mark(ctx: HopContext) -> None:
        if ctx.graph.slug == "d":
            ctx.execute("SAVEPOINT theirs")
            leave_mark(ctx)
        elif ctx.graph.slug == who and shared(ctx):
            ctx.execute("ROLLBACK TO theirs")

    quiet.hop(1, 2)(mark)
    registry.register(quiet)
    slugs = ["d", *sorted({"b", "c"})]
    for slug in slugs:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM graphs WHERE slug = :slug"), {"slug": slug})
        add_graph(engine, slug, "quiet")
    outcomes = move(executors, engine, slugs, 2)
    assert have_parted(engine)
    assert all(isinstance(each, Applied) for each in outcomes.values())
    assert [trails(engine, slug) for slug in slugs] == [{"mark"}, {""}, {""}]
    assert_sound(engine, executors)
