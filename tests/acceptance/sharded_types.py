"""Graph types with hops in shards for tests with real workers; `types_for_tests` says how to steer them."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext, Node, Nodes
from tests.acceptance.types_for_tests import control_folder, obey, trail


def _mark(ctx: HopContext, nodes: list[Node]) -> None:
    obey(ctx)
    for node in nodes:
        node.properties.setdefault("trail", []).append(ctx.hop)


wide = GraphType("wide")
"""v1 to v2: four shards, each of one batch where the graph has forty nodes."""


@wide.hop(1, 2, over=Nodes(), batch_size=10, shards=4)
def widen(ctx: HopContext, nodes: list[Node]) -> None:
    _mark(ctx, nodes)


limited = GraphType("limited")
"""The same with a time limit; ``slow-SLUG`` makes the statements of the shard that has n0010 last for a minute."""


@limited.hop(1, 2, over=Nodes(), batch_size=10, shards=4, timeout=1.0)
def hurry(ctx: HopContext, nodes: list[Node]) -> None:
    _mark(ctx, nodes)
    if nodes[0].id == "n0010" and (control_folder() / f"slow-{ctx.graph.slug}").exists():
        ctx.execute("SELECT pg_sleep(60)")


ALL = [wide, limited, trail]


def _next_release() -> GraphType:
    """The next release of `wide`: its hop is written differently, so its fingerprint differs."""
    released = GraphType("wide")

    @released.hop(1, 2, over=Nodes(), batch_size=10, shards=4)
    def widen(ctx: HopContext, nodes: list[Node]) -> None:
        for node in nodes:
            node.properties.setdefault("trail", []).append(ctx.hop)

    return released


NEXT = [_next_release(), limited, trail]
