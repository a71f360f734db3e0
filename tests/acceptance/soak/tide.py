"""A graph type that goes up and down for ever: v1 to v7 and back, every step noted in every node."""

from __future__ import annotations

from graph_migrator import GraphType, HopContext, Node, Nodes

NODES = 12
tide = GraphType("tide")


def _note(ctx: HopContext) -> None:
    for half in ("id < 'n0006'", "id >= 'n0006'"):
        ctx.execute(
            "UPDATE nodes SET properties = jsonb_set(properties, '{steps}', "
            "coalesce(properties->'steps', '[]') || to_jsonb(CAST(:step AS text))) "
            f"WHERE graph_id = :graph_id AND {half}",
            {"step": f"{ctx.hop} v{ctx.from_version}→v{ctx.to_version}"},
        )
        ctx.execute("SELECT pg_sleep(0.04)")  # so that most kills hit a hop


def _note_in(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties.setdefault("steps", []).append(f"{ctx.hop} v{ctx.from_version}→v{ctx.to_version}")
    ctx.execute("SELECT pg_sleep(0.02)")


@tide.hop(1, 2)
def rise(ctx: HopContext) -> None:
    _note(ctx)


@rise.reverse
def rise_back(ctx: HopContext) -> None:
    _note(ctx)


@tide.hop(2, 3, over=Nodes(), batch_size=3)
def flood(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)


@flood.reverse
def flood_back(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)


@tide.hop(3, 4)
def swell(ctx: HopContext) -> None:
    _note(ctx)


@swell.reverse
def swell_back(ctx: HopContext) -> None:
    _note(ctx)


@tide.hop(4, 5)
def crest(ctx: HopContext) -> None:
    _note(ctx)


@crest.reverse
def crest_back(ctx: HopContext) -> None:
    _note(ctx)


@tide.hop(5, 6, over=Nodes(), batch_size=2, shards=3)
def surge(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)


@surge.reverse
def surge_back(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)


@tide.hop(6, 7, over=Nodes(), batch_size=2, rebuild=True, shards=2)
def break_ashore(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)


@break_ashore.reverse
def break_back(ctx: HopContext, nodes: list[Node]) -> None:
    _note_in(ctx, nodes)
