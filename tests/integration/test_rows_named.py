"""The row that an error is about is named on every surface, however it was found; its data on none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from graph_migrator import Edges, GraphType, HopContext, Node, Nodes
from graph_migrator.core.embedded import Redis
from graph_migrator.core.events import types as events
from graph_migrator.core.graph_types import registry
from tests.acceptance.cluster import Cluster
from tests.integration.console import call
from tests.integration.test_batches import make_graph

SECRET = "hunter2"


class Numbered(BaseModel):
    """What a node of version 2 must look like."""

    n: int
    password: str


def code(kind: GraphType) -> str:
    """A batched hop whose code raises."""

    def ask(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            if row.id == "n000123":
                row.properties["email"]

    kind.hop(1, 2, over=Nodes(), batch_size=50)(ask)
    return "n000123"


def value(kind: GraphType) -> str:
    """A batched hop that writes what Postgres does not take."""

    def spoil(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            row.properties["x"] = "\x00" if row.id == "n000123" else "y"

    kind.hop(1, 2, over=Nodes(), batch_size=50)(spoil)
    return "n000123"


def statement(kind: GraphType) -> str:
    """A batched SQL hop."""
    kind.sql_hop(
        1,
        2,
        name="halve",
        forward="UPDATE edges SET properties = jsonb_build_object('x', 1 / (id <> 'e000077')::int) "
        "WHERE graph_id = :graph_id AND id BETWEEN :first AND :last",
        over=Edges(),
        batch_size=40,
    )
    return "e000077"


def batched_model(kind: GraphType) -> str:
    """A batched hop after which a row does not fit its model."""
    kind.nodes[2] = {"Person": Numbered, "Place": Numbered}

    def spoil(ctx: HopContext, rows: list[Node]) -> None:
        for row in rows:
            if row.id == "n000123":
                row.properties["n"] = "many"

    kind.hop(1, 2, over=Nodes(), batch_size=50)(spoil)
    return "n000123"


def plain_model(kind: GraphType) -> str:
    """A plain hop after which a row does not fit its model."""
    kind.nodes[2] = {"Person": Numbered, "Place": Numbered}

    def spoil(ctx: HopContext) -> None:
        ctx.execute(
            'UPDATE nodes SET properties = properties || \'{"n": "many"}\' '
            "WHERE graph_id = :graph_id AND id = 'n000123'"
        )

    kind.hop(1, 2)(spoil)
    return "n000123"


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    """Services without a worker; this process is connected to them."""
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


@pytest.mark.parametrize("how", [code, value, statement, batched_model, plain_model])
def test_the_row_is_named_on_every_surface(here: Cluster, how: Callable[[GraphType], str]) -> None:
    kind = GraphType("t")
    row = how(kind)
    registry.register(kind)
    graph = str(make_graph(here.engine, "t", 200, f'{{"password": "{SECRET}"}}'))
    seen: list[Any] = []
    unsubscribe = events.subscribe(seen.append)
    try:
        outcome = call("migrate", graph, "--inline")
    finally:
        unsubscribe()
    surfaces = {
        "migrate": outcome.err,
        "hop_failed": str([each for each in seen if isinstance(each, events.HopFailed)]),
        "migration_finished": str([each for each in seen if isinstance(each, events.MigrationFinished)]),
        **{
            f"{command} {form}": call(command, graph, *form).out
            for command in ("history", "status", "watch")
            for form in ((), ("--json",))
        },
    }
    assert outcome.exit_code == 1
    assert [name for name, shown in surfaces.items() if row not in shown] == []
    assert [name for name, shown in surfaces.items() if SECRET in shown or "many" in shown] == []
