"""Characters of a novel, and who appears with whom: a graph type with four versions.

v1  as NetworkX exports it: every node a `Node`, every edge `RELATED`
v2  edges are `APPEARS_WITH`                         one SQL statement
v3  characters have a name and perhaps a title       Python, batch by batch, held against a model
v4  the best connected are protagonists              only where there are enough characters
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator import GraphType, HopContext, Node, Nodes


class Character(BaseModel):
    """What a node holds from v3 on."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    title: str | None = None
    protagonist: bool = False


knowledge = GraphType("knowledge", nodes={version: {"Node": Character} for version in (3, 4)})

knowledge.sql_hop(
    1,
    2,
    name="name_the_relation",
    forward="UPDATE edges SET type = 'APPEARS_WITH' WHERE graph_id = :graph_id AND type = 'RELATED'",
    reverse="UPDATE edges SET type = 'RELATED' WHERE graph_id = :graph_id AND type = 'APPEARS_WITH'",
    doc="Edges say what they mean: RELATED becomes APPEARS_WITH.",
)

_TITLE = re.compile(r"(Mlle|Mme|Mother|Baron|Count|Countess|Child|Woman|Old)(?=[A-Z0-9])(.+)")


@knowledge.hop(2, 3, over=Nodes("Node"), batch_size=20)
def name_characters(ctx: HopContext, characters: list[Node]) -> None:
    """Split what the node is called into a title and a name."""
    for character in characters:
        titled = _TITLE.fullmatch(character.id)
        title, name = titled.groups() if titled else (None, character.id)
        character.properties["name"] = name
        if title:
            character.properties["title"] = title


@name_characters.reverse
def forget_names(ctx: HopContext, characters: list[Node]) -> None:
    """The node's id still holds both."""
    for character in characters:
        character.properties.pop("name", None)
        character.properties.pop("title", None)


def has_a_crowd(ctx: HopContext) -> bool:
    """Whether there are enough characters for a few of them to stand out."""
    nodes = ctx.execute("SELECT count(*) FROM nodes WHERE graph_id = :graph_id").scalar_one()
    return bool(nodes >= 20)


def has_a_protagonist(ctx: HopContext) -> bool | str:
    """The postcondition of `find_protagonists`."""
    found = ctx.execute(
        "SELECT count(*) FROM nodes WHERE graph_id = :graph_id AND properties ? 'protagonist'"
    ).scalar_one()
    return bool(found) or "nobody stands out"


@knowledge.hop(3, 4, when=has_a_crowd, check=has_a_protagonist)
def find_protagonists(ctx: HopContext) -> None:
    """Whoever appears with at least twenty others is a protagonist."""
    ctx.execute(
        """
        UPDATE nodes SET properties = properties || '{"protagonist": true}'
        FROM (SELECT n.id FROM nodes n JOIN edges e ON e.graph_id = n.graph_id AND n.id IN (e.source, e.target)
              WHERE n.graph_id = :graph_id GROUP BY n.id HAVING count(*) >= 20) AS central
        WHERE nodes.graph_id = :graph_id AND nodes.id = central.id
        """
    )


@find_protagonists.reverse
def forget_protagonists(ctx: HopContext) -> None:
    """Nobody is singled out."""
    ctx.execute("UPDATE nodes SET properties = properties - 'protagonist' WHERE graph_id = :graph_id")
