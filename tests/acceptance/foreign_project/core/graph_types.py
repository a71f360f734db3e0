"""The foreign project's graph types."""

from graph_migrator import GraphType, HopContext

people = GraphType("people")


@people.hop(1, 2)
def name_the_edges(ctx: HopContext) -> None:
    ctx.execute("UPDATE edges SET type = 'ACQUAINTED_WITH' WHERE graph_id = :graph_id")
