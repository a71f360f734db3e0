"""A graph type for rollouts in real workers. Its second hop fails on graphs of one shape until it is mended.

``GRAPH_MIGRATOR_TEST_MENDED`` in a process's environment is the deploy that mends it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from graph_migrator import GraphType, HopContext

tenant = GraphType("tenant")


def _mark(ctx: HopContext) -> None:
    ctx.execute(
        "UPDATE nodes SET properties = jsonb_set(properties, '{trail}', "
        "coalesce(properties->'trail', '[]') || to_jsonb(CAST(:hop AS text))) WHERE graph_id = :graph_id",
        {"hop": ctx.hop},
    )


@tenant.hop(1, 2)
def first(ctx: HopContext) -> None:
    """Leave a mark; wait where the test holds this graph."""
    folder = Path(os.environ["GRAPH_MIGRATOR_TEST_FOLDER"])
    with (folder / "begun").open("a") as begun:
        begun.write(f"{ctx.graph.slug} {os.getpid()}\n")
    while (folder / f"hold-{ctx.graph.slug}").exists():
        time.sleep(0.01)
    _mark(ctx)


if os.environ.get("GRAPH_MIGRATOR_TEST_MENDED"):

    @tenant.hop(2, 3)
    def second(ctx: HopContext) -> None:
        """Leave a mark, whatever the shape."""
        _mark(ctx)

else:

    @tenant.hop(2, 3)
    def second(ctx: HopContext) -> None:
        """Leave a mark, but not on nodes of one label."""
        odd = ctx.execute(
            "SELECT count(*) FROM nodes WHERE graph_id = :graph_id AND label = 'Odd'"
        ).scalar_one()
        if odd:
            raise ValueError(f"{odd} nodes have no name")
        _mark(ctx)
