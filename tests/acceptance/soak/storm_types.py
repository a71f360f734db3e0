"""A graph type for a storm over a rollout: v1 to v4, every step noted in every node.

``GRAPH_MIGRATOR_TEST_RELEASE`` in a process's environment is the release that it has; the second one has other code
for one hop.
"""

from __future__ import annotations

import os

from graph_migrator import GraphType, HopContext, Node, Nodes

storm = GraphType("storm")


def _note(ctx: HopContext) -> None:
    for half in ("id < 'n0001'", "id >= 'n0001'"):
        ctx.execute(
            "UPDATE nodes SET properties = jsonb_set(properties, '{steps}', "
            "coalesce(properties->'steps', '[]') || to_jsonb(CAST(:step AS text))) "
            f"WHERE graph_id = :graph_id AND {half}",
            {"step": f"{ctx.hop} v{ctx.from_version}→v{ctx.to_version}"},
        )
        ctx.execute("SELECT pg_sleep(0.02)")  # so that most kills hit a hop


@storm.hop(1, 2)
def gather(ctx: HopContext) -> None:
    _note(ctx)


if os.environ.get("GRAPH_MIGRATOR_TEST_RELEASE", "1") == "1":

    @storm.hop(2, 3)
    def blow(ctx: HopContext) -> None:
        _note(ctx)

else:

    @storm.hop(2, 3)
    def blow(ctx: HopContext) -> None:
        ctx.execute("SELECT 2")
        _note(ctx)


@storm.hop(3, 4, over=Nodes(), batch_size=2)
def clear(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        node.properties.setdefault("steps", []).append(f"{ctx.hop} v{ctx.from_version}→v{ctx.to_version}")
