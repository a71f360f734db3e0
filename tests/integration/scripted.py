"""Graph types whose hops do what a test asks for, in this process.

Each hop notes that it was invoked (outside of the database: no rollback takes that back), then does what
`SCRIPT.on` holds for its name, then adds its name to the list ``trail`` of every node it sees, so that a hop
that took effect twice shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

from sqlalchemy import Engine

from graph_migrator import Edge, Edges, GraphType, HopContext, Node, Nodes, Rows
from tests.rows import properties


class Flaky(Exception):
    """Worth another try."""


class Killed(BaseException):
    """The executor's process dies here: nothing in it can catch this."""


@dataclass
class Script:
    """What a test asks of the hops, and what they did."""

    on: dict[str, Callable[[HopContext], Any]] = field(default_factory=dict)
    invoked: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)

    def clear(self) -> None:
        self.on.clear()
        self.invoked.clear()
        self.batches.clear()

    def play(self, ctx: HopContext) -> None:
        self.invoked.append(ctx.hop)
        self.on.get(ctx.hop, lambda _: None)(ctx)

    def ask(self, what: str, ctx: HopContext, otherwise: Any) -> Any:
        answer = self.on.get(what)
        return otherwise if answer is None else answer(ctx)


SCRIPT = Script()


def leave_mark(ctx: HopContext) -> None:
    ctx.execute(
        "UPDATE nodes SET properties = jsonb_set(properties, '{trail}', "
        "coalesce(properties->'trail', '[]') || to_jsonb(CAST(:hop AS text))) WHERE graph_id = :graph_id",
        {"hop": ctx.hop},
    )


def whole(ctx: HopContext) -> None:
    SCRIPT.play(ctx)
    leave_mark(ctx)


plain = GraphType("plain")
"""v1 to v5; the last hop has no reverse."""


@plain.hop(1, 2)
def one(ctx: HopContext) -> None:
    whole(ctx)


@one.reverse
def one_back(ctx: HopContext) -> None:
    whole(ctx)


@plain.hop(2, 3)
def two(ctx: HopContext) -> None:
    whole(ctx)


@two.reverse
def two_back(ctx: HopContext) -> None:
    whole(ctx)


@plain.hop(3, 4)
def three(ctx: HopContext) -> None:
    whole(ctx)


@three.reverse
def three_back(ctx: HopContext) -> None:
    whole(ctx)


@plain.hop(4, 5)
def no_way_back(ctx: HopContext) -> None:
    whole(ctx)


def _when(ctx: HopContext) -> bool:
    return bool(SCRIPT.ask("when", ctx, otherwise=True))


def _check(ctx: HopContext) -> bool | str | None:
    return SCRIPT.ask("check", ctx, otherwise=None)  # type: ignore[no-any-return]


careful = GraphType("careful")
"""v1 to v3: a hop with a precondition, a postcondition, an error worth another try, and a time limit."""


@careful.hop(1, 2, when=_when, check=_check, retry_on=Flaky, timeout=0.3)
def guarded(ctx: HopContext) -> None:
    whole(ctx)


@careful.hop(2, 3)
def plain_end(ctx: HopContext) -> None:
    whole(ctx)


batched = GraphType("batched")
"""v1 to v3: a hop in batches of ten, then one in one transaction."""


@batched.hop(1, 2, over=Nodes(), batch_size=10, when=_when, check=_check, retry_on=Flaky)
def visit(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.batches.append([node.id for node in nodes])
    SCRIPT.play(ctx)
    for node in nodes:
        node.properties.setdefault("trail", []).append(ctx.hop)


@visit.reverse
def visit_back(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.play(ctx)
    for node in nodes:
        node.properties["trail"].remove(ctx.hop)


@batched.hop(2, 3)
def arrive(ctx: HopContext) -> None:
    whole(ctx)


in_sql = GraphType("in_sql")
in_sql.sql_hop(
    1,
    2,
    name="count_up",
    forward=(
        "UPDATE nodes SET properties = properties || jsonb_build_object('n', coalesce((properties->>'n')::int, 0) + 1) "
        "WHERE graph_id = :graph_id AND label = 'Counted' AND id BETWEEN :first AND :last"
    ),
    reverse="UPDATE nodes SET properties = properties - 'n' WHERE graph_id = :graph_id AND id BETWEEN :first AND :last",
    over=Nodes("Counted"),
    batch_size=10,
)

with_orders = GraphType("with_orders")
"""A hop that processes the rows of a table of the user's own."""


@with_orders.hop(1, 2, over=Rows("public.orders", key=("year", "number"), where="total > 0"), batch_size=10)
def price(ctx: HopContext, orders: list[dict[str, Any]]) -> None:
    SCRIPT.batches.append([f"{order['year']}/{order['number']}" for order in orders])
    SCRIPT.play(ctx)
    for order in orders:
        order["total"] += 1000
        order["tags"] = [*order["tags"], "priced"]


sharded = GraphType("sharded", digest=True)
"""v1 to v3: nodes in three shards of batches of ten, then edges in two, by SQL."""


@sharded.hop(1, 2, over=Nodes("Node"), batch_size=10, shards=3, check=_check, retry_on=Flaky)
def visit_shard(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.batches.append([node.id for node in nodes])
    SCRIPT.play(ctx)
    for node in nodes:
        node.properties.setdefault("trail", []).append(ctx.hop)


@visit_shard.reverse
def visit_shard_back(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.play(ctx)
    for node in nodes:
        node.properties["trail"].remove(ctx.hop)
        if not node.properties["trail"]:
            del node.properties["trail"]


sharded.sql_hop(
    2,
    3,
    name="rename_edges",
    forward="UPDATE edges SET type = 'MET' WHERE graph_id = :graph_id AND id BETWEEN :first AND :last",
    reverse="UPDATE edges SET type = 'KNOWS' WHERE graph_id = :graph_id AND id BETWEEN :first AND :last",
    over=Edges(),
    batch_size=10,
    shards=2,
)

rebuilt = GraphType("rebuilt", digest=True)
"""v1 to v4: nodes in a rebuild hop of batches of ten, edges in one without a reverse, then one in one transaction."""


@rebuilt.hop(1, 2, over=Nodes("Node"), batch_size=10, rebuild=True, when=_when, check=_check, retry_on=Flaky)
def rebuild_nodes(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.batches.append([node.id for node in nodes])
    SCRIPT.play(ctx)
    for node in nodes:
        node.label = "Rebuilt"
        node.properties.setdefault("trail", []).append(ctx.hop)


@rebuild_nodes.reverse(over=Nodes("Rebuilt"))
def rebuild_nodes_back(ctx: HopContext, nodes: list[Node]) -> None:
    SCRIPT.play(ctx)
    for node in nodes:
        node.label = "Node"
        del node.properties["trail"]


@rebuilt.hop(2, 3, over=Edges(), batch_size=10, rebuild=True, undo_for=timedelta(hours=1))
def turn_edges(ctx: HopContext, edges: list[Edge]) -> None:
    SCRIPT.play(ctx)
    for edge in edges:
        edge.source, edge.target = edge.target, edge.source


@rebuilt.hop(3, 4)
def plain_after(ctx: HopContext) -> None:
    whole(ctx)


@plain_after.reverse
def plain_before(ctx: HopContext) -> None:
    ctx.execute(
        "UPDATE nodes SET properties = jsonb_set(properties, '{trail}', (properties->'trail') - :hop) "
        "WHERE graph_id = :graph_id",
        {"hop": "plain_after"},
    )


TYPES = (plain, careful, batched, in_sql, with_orders, sharded, rebuilt)


def trails(engine: Engine, slug: str) -> set[str]:
    """The marks that hops have left on the nodes of a graph; one string where all nodes bear the same."""
    return {" ".join(values.get("trail", [])) for values in properties(engine, slug).values()}


def fails(error: Exception) -> Callable[[HopContext], NoReturn]:
    """What a hop does that changes data and then raises."""

    def fail(ctx: HopContext) -> NoReturn:
        leave_mark(ctx)
        raise error

    return fail


def fails_now() -> NoReturn:
    raise ValueError("half-way")


def with_sqlstate(code: str) -> Callable[[HopContext], object]:
    return lambda ctx: ctx.execute(f"DO $$ BEGIN RAISE EXCEPTION 'passing' USING ERRCODE = '{code}'; END $$")
