"""A hop on a table of your own: orders that belong to a graph, in the same database.

    CREATE TABLE shop.orders (
        graph_id uuid NOT NULL, customer text NOT NULL, number bigint NOT NULL,
        placed_on date NOT NULL, total numeric NOT NULL, detail jsonb NOT NULL,
        PRIMARY KEY (graph_id, customer, number)
    )

v1  `detail` holds the total once more, as text with its currency: ``{"total": "12.50 EUR"}``
v2  the currency is a key, and the copy of the total is gone: ``{"currency": "EUR"}``
v3  each order says the quarter it was placed in

`install_guard(connection, "shop.orders")` keeps other writers out while a graph migrates, as it does for
nodes and edges. ``python -m examples.own_tables`` shows it on a private Postgres.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext, Rows, run_graph_migration

ORDERS: Final = Rows("shop.orders", key=("customer", "number"))

CREATE: Final = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    graph_id uuid NOT NULL, customer text NOT NULL, number bigint NOT NULL,
    placed_on date NOT NULL, total numeric NOT NULL, detail jsonb NOT NULL,
    PRIMARY KEY (graph_id, customer, number)
)
"""

shop = GraphType("shop")


@shop.hop(1, 2, over=ORDERS)
def name_the_currency(ctx: HopContext, orders: list[dict[str, Any]]) -> None:
    """The currency becomes a key of its own; the total stands in one place only."""
    for order in orders:
        detail = order["detail"]
        _, _, detail["currency"] = detail.pop("total").partition(" ")


@name_the_currency.reverse
def repeat_the_total(ctx: HopContext, orders: list[dict[str, Any]]) -> None:
    """The way back: the total is written once more, beside its currency."""
    for order in orders:
        detail = order["detail"]
        detail["total"] = f"{order['total']} {detail.pop('currency')}"


# A range of keys in SQL needs a key of one column; `number` alone is one, as it never repeats in a graph.
shop.sql_hop(
    2,
    3,
    name="add_the_quarter",
    over=Rows("shop.orders", key="number"),
    forward="UPDATE shop.orders SET detail = detail || jsonb_build_object('quarter', extract(quarter FROM placed_on)) "
    "WHERE graph_id = :graph_id AND number BETWEEN :first AND :last",
    reverse="UPDATE shop.orders SET detail = detail - 'quarter' "
    "WHERE graph_id = :graph_id AND number BETWEEN :first AND :last",
    doc="Each order says the quarter it was placed in.",
)


def make_shop(engine: Engine, orders: int = 1_000) -> UUID:
    """Make the table, and a graph at v1 with so many orders in it. Returns the graph's id."""
    graph = uuid4()
    with engine.begin() as connection:
        connection.execute(text(CREATE))
        connection.execute(
            text(
                "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version) "
                "VALUES (:g, 'corner-shop', 'shop', 1)"
            ),
            {"g": graph},
        )
        connection.execute(
            text(
                "INSERT INTO shop.orders SELECT :g, 'customer ' || i % 7, i, date '2024-01-01' + i % 365, i * 1.10, "
                "jsonb_build_object('total', i * 1.10 || ' EUR') FROM generate_series(1, :orders) i"
            ),
            {"g": graph, "orders": orders},
        )
    return graph


def main() -> None:
    """Migrate a shop on a private Postgres, up and down again."""
    from graph_migrator.core.embedded import Postgres
    from graph_migrator.core.graph_types.registry import register
    from graph_migrator.core.store.connections import make_engine
    from graph_migrator.core.store.guard import install_guard
    from graph_migrator.core.store.schema import upgrade

    with Postgres(durable=False) as server:
        upgrade(server.url)
        engine = make_engine(server.url)
        register(shop)
        graph = make_shop(engine)
        with engine.begin() as connection:
            install_guard(connection, "shop.orders")
        for target in (3, 1):
            report = run_graph_migration(engine, graph, target)
            with engine.connect() as connection:
                order = connection.execute(
                    text("SELECT total, detail FROM shop.orders WHERE number = 100")
                ).one()
            print(f"v{report.version}: order 100 is {order.total}, {order.detail}")
        engine.dispose()


if __name__ == "__main__":
    main()
