"""Hops in shards over rows of a user's own table: the key may have several columns of any of Postgres's own types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from graph_migrator import GraphType, HopContext, Rows, run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.guard import install_guard
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, graph_row, rows

ROWS = 90
KEY = ("day", "customer", "number")
MAKE = """
CREATE SCHEMA sales;
CREATE TYPE sales.kind AS ENUM ('old', 'new');
CREATE TABLE sales.orders (tenant uuid NOT NULL, day date NOT NULL, customer text NOT NULL, number integer NOT NULL,
    kind sales.kind NOT NULL, total integer NOT NULL, PRIMARY KEY (tenant, day, customer, number)) {partitions};
CREATE TABLE sales.invoices (tenant uuid NOT NULL, number integer NOT NULL, PRIMARY KEY (tenant, number));
"""
FILL = """
INSERT INTO sales.orders SELECT g.id, date '2026-01-01' + n / 10,
    CASE n % 3 WHEN 0 THEN 'O''Hara, "x"' ELSE 'b ' || n END,
    n * 7, 'old', n FROM graph_migrator.graphs g, generate_series(0, {rows}) n;
INSERT INTO sales.invoices SELECT id, 1 FROM graph_migrator.graphs
"""

visited: list[tuple[Any, ...]] = []
attacks: dict[str, str] = {}
refused: dict[str, str | None] = {}


def _type(name: str, key: tuple[str, ...] = KEY) -> GraphType:
    kind = GraphType(name)

    @kind.hop(1, 2, over=Rows("sales.orders", key=key, graph_id="tenant"), batch_size=10, shards=3)
    def invoice(ctx: HopContext, orders: list[dict[str, Any]]) -> None:
        visited.extend(tuple(order[column] for column in key) for order in orders)
        for order in orders:
            order["total"] += 1000
        if min(order["total"] for order in orders) == 1040:
            for what, statement in attacks.items():
                refused[what] = _code(ctx, statement)

    @invoice.reverse
    def back(ctx: HopContext, orders: list[dict[str, Any]]) -> None:
        for order in orders:
            order["total"] -= 1000

    registry.register(kind)
    return kind


def _code(ctx: HopContext, statement: str) -> str | None:
    """The SQLSTATE that it meets; None where it succeeds. It is undone in any case."""
    savepoint = ctx.connection.begin_nested()
    try:
        ctx.execute(statement)
    except DBAPIError as error:
        return getattr(error.orig, "pgcode", None)
    finally:
        savepoint.rollback()
    return None


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for each in (visited, attacks, refused):
        each.clear()  # type: ignore[attr-defined]


def make(engine: Engine, kind: str, partitions: str = "") -> None:
    """Two graphs of 90 orders each, in guarded tables."""
    for slug in ("g", "other"):
        add_graph(engine, slug, kind)
    with engine.begin() as connection:
        connection.execute(text(MAKE.format(partitions=partitions)))
        if partitions:
            for at, name in (("'2026-01-04'", "early"), (None, "late")):
                bounds = f"FROM (MINVALUE) TO ({at})" if at else "FROM ('2026-01-04') TO (MAXVALUE)"
                connection.execute(
                    text(f"CREATE TABLE sales.{name} PARTITION OF sales.orders FOR VALUES {bounds}")
                )
        connection.execute(text(FILL.format(rows=ROWS - 1)))
        install_guard(connection, "sales.orders", "tenant")
        install_guard(connection, "sales.invoices", "tenant")


def orders(engine: Engine) -> list[Any]:
    return rows(
        engine,
        f"SELECT tenant, day, customer, number, kind, total FROM sales.orders ORDER BY tenant, {', '.join(KEY)}",
    )


def attempts(engine: Engine) -> list[Any]:
    return rows(engine, "SELECT to_version, shard, status, done FROM hop_attempts ORDER BY id")


@pytest.mark.parametrize("partitions", ["", "PARTITION BY RANGE (day)"])
def test_every_row_once_and_back_to_the_same_rows(
    engine: Engine, executors: Executors, partitions: str
) -> None:
    _type("selling")
    make(engine, "selling", partitions)
    before = orders(engine)
    run_graph_migration(executors, "g")
    assert len(visited) == len(set(visited)) == ROWS
    assert sum(total >= 1000 for *_, total in orders(engine)) == ROWS
    assert attempts(engine) == [
        *((2, number, "succeeded", 30) for number in (1, 2, 3)),
        (2, None, "succeeded", 90),
    ]
    run_graph_migration(executors, "g", 1)
    assert orders(engine) == before


OURS = "tenant = :graph_id AND"


def test_a_shard_writes_rows_of_its_range_and_nothing_else(engine: Engine, executors: Executors) -> None:
    _type("attacked")
    make(engine, "attacked")
    # The batch of orders 40 to 49 is the second one of the second shard: orders 30 to 59.
    attacks.update(
        {
            "its own": f"UPDATE sales.orders SET kind = 'new' WHERE {OURS} total BETWEEN 30 AND 59",
            "a new one of its own": "INSERT INTO sales.orders VALUES (:graph_id, '2026-01-05', 'x', 0, 'new', 1)",
            "nothing": "UPDATE sales.invoices SET number = 2 WHERE tenant = :graph_id AND number = 9",
            "the next shard's": f"UPDATE sales.orders SET kind = 'new' WHERE {OURS} total = 60",
            "the one before": f"DELETE FROM sales.orders WHERE {OURS} total = 1023",
            "of both": f"UPDATE sales.orders SET kind = 'new' WHERE {OURS} total BETWEEN 59 AND 60",
            "leaves the range": f"UPDATE sales.orders SET day = '2026-02-01' WHERE {OURS} total = 59",
            "enters it": f"UPDATE sales.orders SET day = '2026-01-05' WHERE {OURS} total = 60",
            "a new one outside": "INSERT INTO sales.orders VALUES (:graph_id, '2026-03-01', 'x', 0, 'new', 1)",
            "another graph's": "UPDATE sales.orders SET kind = 'new' WHERE tenant <> :graph_id",
            "to another graph": "UPDATE sales.orders SET tenant = (SELECT id FROM graphs WHERE slug = 'other'), "
            f"number = -1 WHERE {OURS} total = 59",
            "another table": "UPDATE sales.invoices SET number = 2 WHERE tenant = :graph_id",
            "nodes": "INSERT INTO nodes VALUES (:graph_id, 'n', 'Node')",
        }
    )
    run_graph_migration(executors, "g")
    assert refused == {what: None if place < 3 else "23000" for place, what in enumerate(attacks)}
    assert {kind for *_, kind, _ in orders(engine)} == {"old"}
    assert len(orders(engine)) == 2 * ROWS


def test_a_key_that_the_guard_cannot_compare_is_not_cut(engine: Engine, executors: Executors) -> None:
    _type("domains", ("code",))
    make(engine, "domains")
    with engine.begin() as connection:
        connection.execute(
            text("CREATE DOMAIN sales.code AS text; ALTER TABLE sales.orders ADD code sales.code")
        )
        connection.execute(
            text("SET LOCAL session_replication_role = replica; UPDATE sales.orders SET code = total")
        )
    run_graph_migration(executors, "g")
    assert graph_row(engine, "g").version == 2
    assert attempts(engine) == [(2, None, "succeeded", 90)]
