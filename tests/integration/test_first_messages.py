"""Whatever way a hop sends its first statement: the turn of its graph comes before it, and once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg2 import extras
from psycopg2 import sql as composed
from psycopg2.extras import NamedTupleCursor, RealDictCursor
from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.execution.model import Applied
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.session import Executors
from graph_migrator.core.store.tables import NodeRow
from tests.databases import connect
from tests.integration.together import have_parted, move
from tests.rows import add_graph, rows
from tests.wire import Wire, counting

SLUGS = ("a", "b", "c")
LABEL = "UPDATE nodes SET label = 'x' WHERE graph_id = "
KEPT: dict[str, Any] = {}


def driver(ctx: HopContext) -> Any:
    """The driver's own connection."""
    return ctx.connection.connection.dbapi_connection


def _with(use: Callable[[Any, HopContext], Any], *name: str, **options: Any) -> Callable[[HopContext], Any]:
    def do(ctx: HopContext) -> None:
        with driver(ctx).cursor(*name, **options) as cursor:
            use(cursor, ctx)

    return do


def _kept(make: Callable[[Any], Any], use: Callable[[Any], Any]) -> Callable[[HopContext], Any]:
    """What the first graph's hop has made is used by the others'."""

    def do(ctx: HopContext) -> None:
        if ctx.graph.slug == "a":
            KEPT["it"] = make(driver(ctx))
        use(KEPT["it"])

    return do


def _set(name: str, value: Any) -> Callable[[HopContext], Any]:
    return lambda ctx: setattr(driver(ctx), name, value)


def _with_own_factory(ctx: HopContext) -> None:
    driver(ctx).cursor_factory = RealDictCursor
    with driver(ctx).cursor() as cursor:
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchone() == {"one": 1}


def _insert_many(ctx: HopContext) -> None:
    many = [{"graph_id": ctx.graph.id, "id": f"m{i}", "label": "x", "properties": {}} for i in range(30)]
    ctx.connection.execute(NodeRow.__table__.insert().returning(NodeRow.id), many)  # type: ignore[attr-defined]


def _by_orm(ctx: HopContext) -> None:
    ctx.session.add(NodeRow(graph_id=ctx.graph.id, id="o", label="x", properties={}))
    ctx.session.flush()


VALUES = [(1, "a"), (2, "b")]
WAYS: dict[str, Callable[[HopContext], Any]] = {
    "execute": lambda ctx: ctx.execute(f"{LABEL}:graph_id"),
    "text with %": lambda ctx: ctx.connection.execute(text("SELECT 'a' LIKE '%a%', 5 % 3")),
    "raw with % and values": lambda ctx: ctx.connection.exec_driver_sql("SELECT %s LIKE '%%a%%'", ("a",)),
    "ORM": _by_orm,
    "insertmanyvalues": _insert_many,
    "stream_results": lambda ctx: ctx.connection.execute(
        text("SELECT 1"), execution_options={"stream_results": True}
    ).all(),
    "a savepoint": lambda ctx: ctx.connection.begin_nested().commit(),
    "a savepoint of the context": lambda ctx: ctx.savepoint().__enter__(),
    "cursor, str": _with(lambda cursor, _: cursor.execute("SELECT 1")),
    "cursor, bytes": _with(lambda cursor, _: cursor.execute(b"SELECT 1")),
    "cursor, bytes with values": _with(lambda cursor, _: cursor.execute(b"SELECT %s", (1,))),
    "cursor, Composable": _with(
        lambda cursor, _: cursor.execute(composed.SQL("SELECT {}").format(composed.Literal("%")))
    ),
    "cursor, named values": _with(lambda cursor, _: cursor.execute("SELECT %(a)s", {"a": "50%"})),
    "executemany": _with(lambda cursor, _: cursor.executemany("SELECT %s, %s", VALUES)),
    "executemany of none": _with(
        lambda cursor, _: (cursor.executemany("SELECT %s", []), cursor.execute("SELECT 1"))
    ),
    "execute_values": _with(lambda cursor, _: extras.execute_values(cursor, "VALUES %s", VALUES)),
    "execute_batch": _with(lambda cursor, _: extras.execute_batch(cursor, "SELECT %s, %s", VALUES)),
    "callproc": _with(lambda cursor, _: cursor.callproc("abs", (-1,))),
    "copy_expert": _with(lambda cursor, _: cursor.copy_expert("COPY (SELECT 1) TO STDOUT", io.StringIO())),
    "copy_to": _with(lambda cursor, _: cursor.copy_to(io.StringIO(), "sweep_lease")),
    "copy_from": _with(
        lambda cursor, ctx: cursor.copy_from(
            io.StringIO(f"{ctx.graph.id}\tc\tx\n"), "nodes", columns=("graph_id", "id", "label")
        )
    ),
    "a cursor with a name": _with(
        lambda cursor, _: (cursor.execute("SELECT 1"), cursor.fetchall()), "by_name"
    ),
    "a cursor with a name, read by and by": _with(
        lambda cursor, _: (cursor.execute("SELECT generate_series(1, 9)"), list(cursor)), "by_name"
    ),
    "a cursor with a name and HOLD": _with(
        lambda cursor, _: cursor.execute("SELECT 1"), "held", withhold=True
    ),
    "another kind of cursor": _with(
        lambda cursor, _: cursor.execute("SELECT 1"), cursor_factory=NamedTupleCursor
    ),
    "a cursor factory of its own": _with_own_factory,
    "mogrify, and then": _with(lambda cursor, _: cursor.execute(cursor.mogrify("SELECT %s", (1,)))),
    "set_client_encoding": lambda ctx: driver(ctx).set_client_encoding("UTF8"),
    "set_session": lambda ctx: driver(ctx).set_session(deferrable=True),
    "readonly": _set("readonly", False),
    "deferrable": _set("deferrable", True),
    "isolation_level": _set("isolation_level", "READ COMMITTED"),
    "register_composite": lambda ctx: extras.register_composite("graph_migrator.sweep_lease", driver(ctx)),
    "nothing": lambda _: None,
    "a cursor that was kept": _kept(lambda raw: raw.cursor(), lambda cursor: cursor.execute("SELECT 1")),
    "another kind of cursor that was kept": _kept(
        lambda raw: raw.cursor(cursor_factory=RealDictCursor), lambda cursor: cursor.execute("SELECT 1")
    ),
}


@pytest.fixture
def wired(database_url: str) -> Iterator[tuple[Executors, Wire]]:
    with counting(database_url) as (url, wire):
        through = connect(url)
        executors = Executors(through)
        yield executors, wire
        executors.close()
        through.dispose()
        KEPT.clear()


@pytest.mark.parametrize("way", WAYS)
def test_the_turn_of_its_graph_comes_first_and_once(
    engine: Engine, wired: tuple[Executors, Wire], way: str
) -> None:
    executors, wire = wired
    seen: list[tuple[list[str], list[str]]] = []
    kind = GraphType("sending")

    def send(ctx: HopContext) -> None:
        before = wire.take()
        WAYS[way](ctx)
        ctx.execute(f"{LABEL}:graph_id")
        seen.append((turns(before), turns(wire.take())))

    kind.hop(1, 2)(send)
    registry.register(kind)
    for slug in SLUGS:
        add_graph(engine, slug, "sending")
    outcomes = move(executors, engine, SLUGS, 2)
    assert all(isinstance(each, Applied) for each in outcomes.values())
    assert not have_parted(engine)
    assert len(seen) == 3
    for before, during in seen:
        assert ("turn" in before) + ("turn" in during[:1]) == 1, (before, during)
        assert "turn" not in during[1:]
    assert rows(engine, "SELECT count(*) FROM nodes WHERE label = 'Node'") == [(0,)]


def turns(sent: list[str]) -> list[str]:
    """What each message is: one that takes the turn, or another one."""
    return ["turn" if 'EXECUTE "graph_migrator.turn_to"' in each else "other" for each in sent]


def test_a_cursor_that_a_hop_has_kept_reads_nothing_of_the_graph_before(
    engine: Engine, executors: Executors
) -> None:
    kind = GraphType("keeping")
    found: list[Any] = []

    def keep(ctx: HopContext) -> None:
        if ctx.graph.slug == "a":
            KEPT["it"] = driver(ctx).cursor(cursor_factory=RealDictCursor)
            ctx.execute("CREATE TEMP TABLE theirs AS SELECT 1")
        KEPT["it"].execute("SELECT to_regclass('pg_temp.theirs')::text AS it")
        found.append(KEPT["it"].fetchone()["it"])

    kind.hop(1, 2)(keep)
    registry.register(kind)
    for slug in SLUGS:
        add_graph(engine, slug, "keeping")
    outcomes = move(executors, engine, SLUGS, 2)
    KEPT.clear()
    assert all(isinstance(each, Applied) for each in outcomes.values())
    assert found == ["theirs", None, None]
