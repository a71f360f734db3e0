"""The worked example of hops on a user's own table."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from examples.own_tables import make_shop, shop
from graph_migrator import run_graph_migration
from graph_migrator.core.graph_types import registry
from graph_migrator.core.store.guard import install_guard
from graph_migrator.core.store.session import Executors


@pytest.mark.parametrize("guarded", [False, True])
def test_orders_move_up_and_back_to_the_same_bytes(
    engine: Engine, executors: Executors, guarded: bool
) -> None:
    registry.register(shop)
    graph = make_shop(engine, 2_500)
    if guarded:
        with engine.begin() as connection:
            install_guard(connection, "shop.orders")
    query = text(
        "SELECT customer, number, total::text, detail::text FROM shop.orders ORDER BY customer, number"
    )

    def orders() -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    before = orders()
    report = run_graph_migration(executors, graph)
    assert [hop.rows_changed for hop in report.hops] == [2_500, 2_500]
    customer, number, total, detail = orders()[0]
    assert (customer, number, total) == ("customer 0", 7, "7.70")
    assert detail == '{"quarter": 1, "currency": "EUR"}'
    run_graph_migration(executors, graph, 1)
    assert orders() == before
