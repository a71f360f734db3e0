"""Graph types for the crash matrix: every hop adds its step to a list in every node, so a second run shows."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext, Node, Nodes
from graph_migrator.core.execution import failpoints

NODES = 6
HOPS = ["open_account", "visit_accounts", "close_account"]
FIRST_HALF, SECOND_HALF = "id < 'n0003'", "id >= 'n0003'"


def _enter(ctx: HopContext, half: str) -> None:
    ctx.execute(
        "UPDATE nodes SET properties = jsonb_set(properties, '{entries}', "
        "coalesce(properties->'entries', '[]') || to_jsonb(CAST(:hop AS text))) "
        f"WHERE graph_id = :graph_id AND {half}",
        {"hop": ctx.hop},
    )


def _enter_all(ctx: HopContext) -> None:
    _enter(ctx, FIRST_HALF)
    failpoints.hit("hop_in_data")  # now truly in the middle: half of the nodes are written
    _enter(ctx, SECOND_HALF)


ledger = GraphType("ledger")
"""v1 to v4: one transaction, then batches of two, then one transaction again."""


@ledger.hop(1, 2)
def open_account(ctx: HopContext) -> None:
    """The first entry."""
    _enter_all(ctx)


@ledger.hop(2, 3, over=Nodes(), batch_size=2)
def visit_accounts(ctx: HopContext, nodes: list[Node]) -> None:
    """The second entry, two nodes at a time."""
    for node in nodes:
        node.properties.setdefault("entries", []).append(ctx.hop)


@ledger.hop(3, 4)
def close_account(ctx: HopContext) -> None:
    """The third entry."""
    _enter_all(ctx)


doomed = GraphType("doomed")
"""v1 to v2 with a hop that always fails."""


class BadData(Exception):
    """What the doomed hop raises."""


@doomed.hop(1, 2)
def stumble(ctx: HopContext) -> None:
    """Write, then fail."""
    _enter(ctx, FIRST_HALF)
    raise BadData("a node without a name")


sleeper = GraphType("sleeper")
"""v1 to v2 with a hop whose first attempt stays in one statement for as long as the graph's config says."""


@sleeper.hop(1, 2)
def sleep_over_it(ctx: HopContext) -> None:
    """Write, then sleep in Postgres."""
    _enter_all(ctx)
    if ctx.attempt == 1:
        ctx.execute("SELECT pg_sleep(:seconds)", {"seconds": ctx.graph.config["seconds"]})


vault = GraphType("vault")
"""v1 to v3: a hop in two shards of two batches each, then one in one transaction."""
VAULT_HOPS = ["enter_in_shards", "close_vault"]


@vault.hop(1, 2, over=Nodes(), batch_size=2, shards=2)
def enter_in_shards(ctx: HopContext, nodes: list[Node]) -> None:
    """The first entry, in two processes at a time."""
    for node in nodes:
        node.properties.setdefault("entries", []).append(ctx.hop)


@vault.hop(2, 3)
def close_vault(ctx: HopContext) -> None:
    """The second entry."""
    _enter_all(ctx)


atlas = GraphType("atlas")
"""v1 to v2: a rebuild hop of batches of two. Its way back is by old values alone."""
ATLAS_HOP = "draw_anew"


@atlas.hop(1, 2, over=Nodes(), batch_size=2, rebuild=True)
def draw_anew(ctx: HopContext, nodes: list[Node]) -> None:
    """The only entry; readers see it in all nodes or in none."""
    for node in nodes:
        node.properties.setdefault("entries", []).append(ctx.hop)


tally = GraphType("tally")
"""v1 to v4: three hops of one transaction each, for packs whose graphs share them."""
TALLY_HOPS = ["count_one", "count_two", "count_three"]


@tally.hop(1, 2)
def count_one(ctx: HopContext) -> None:
    """The first entry."""
    _enter_all(ctx)


@tally.hop(2, 3)
def count_two(ctx: HopContext) -> None:
    """The second entry."""
    _enter_all(ctx)


@tally.hop(3, 4)
def count_three(ctx: HopContext) -> None:
    """The third entry."""
    _enter_all(ctx)


ALL = [ledger, doomed, sleeper, vault, atlas, tally]
