"""The graph types that are measured."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from graph_migrator import GraphType, HopContext, Node, Nodes

SMALL = "UPDATE nodes SET properties = properties || '{\"seen\": %d}' WHERE graph_id = :graph_id"
"""What a small hop does: ten nodes of one graph."""

small = GraphType("bench-small")


@small.hop(1, 2)
def first(ctx: HopContext) -> None:
    ctx.execute(SMALL % 1)


@small.hop(2, 3)
def second(ctx: HopContext) -> None:
    ctx.execute(SMALL % 2)


@small.hop(3, 4)
def third(ctx: HopContext) -> None:
    ctx.execute(SMALL % 3)


# A key renamed and one derived, in three ways.
RENAME = """
UPDATE nodes SET properties = (properties - 'name') || jsonb_build_object(
    'full_name', properties -> 'name', 'initial', left(properties ->> 'name', 1))
WHERE graph_id = :graph_id"""
BATCH = 10_000

by_sql = GraphType("bench-sql")
by_sql.sql_hop(
    1, 2, name="rename", forward=RENAME + " AND id BETWEEN :first AND :last", over=Nodes(), batch_size=BATCH
)

by_python = GraphType("bench-python")


def rename(ctx: HopContext, nodes: list[Node]) -> None:
    for node in nodes:
        properties = node.properties
        name = properties.pop("name")
        properties["full_name"] = name
        properties["initial"] = name[:1]


by_python.hop(1, 2, over=Nodes(), batch_size=BATCH)(rename)


class Person(BaseModel):
    """What a node holds at v2."""

    model_config = ConfigDict(extra="forbid")
    full_name: str
    initial: str
    email: str
    born: int
    tags: list[str]
    score: float
    about: str


validated = GraphType("bench-validated", nodes={2: {"Person": Person}})


validated.hop(1, 2, over=Nodes(), batch_size=BATCH)(rename)


TYPES = [small, by_sql, by_python, validated]
