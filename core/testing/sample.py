"""A graph in a test: made from literals, read back as values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

from graph_migrator.core.execution.in_process import run_graph_migration
from graph_migrator.core.graph_types.data import Edge, Node
from graph_migrator.core.graph_types.definition import GraphType

_NODES = text(
    'SELECT id, label, properties FROM graph_migrator.nodes WHERE graph_id = :graph ORDER BY id COLLATE "C"'
)
_EDGES = text(
    "SELECT id, source, target, type, properties FROM graph_migrator.edges "
    'WHERE graph_id = :graph ORDER BY id COLLATE "C"'
)


@dataclass(frozen=True)
class Contents:
    """The data of a graph, sorted by id."""

    nodes: list[Node]
    edges: list[Edge]


@dataclass
class SampleGraph:
    """A graph that a test made.

    Attributes:
        engine: The database that it is in.
        graph_type: Its type.
        nodes: Its nodes at the beginning.
        edges: Its edges at the beginning.
        first_version: Its version at the beginning.
        id: Its id.
    """

    engine: Engine
    graph_type: GraphType
    first_version: int
    nodes: Sequence[Node] = ()
    edges: Sequence[Edge] = ()
    id: UUID = field(default_factory=uuid4)

    @property
    def slug(self) -> str:
        """Its name."""
        return f"sample-{self.id.hex[:12]}"

    @property
    def version(self) -> int:
        """Its version now."""
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT version FROM graph_migrator.graphs WHERE id = :graph"), {"graph": self.id}
            )
            return int(found.scalar_one())

    def insert(self) -> SampleGraph:
        """Write it to the database."""
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO graph_migrator.graphs (id, slug, graph_type, version) "
                    "VALUES (:id, :slug, :type, :version)"
                ),
                {
                    "id": self.id,
                    "slug": self.slug,
                    "type": self.graph_type.name,
                    "version": self.first_version,
                },
            )
            for node in self.nodes:
                connection.execute(
                    text(
                        "INSERT INTO graph_migrator.nodes VALUES (:graph, :id, :label, CAST(:properties AS jsonb))"
                    ),
                    {
                        "graph": self.id,
                        "id": node.id,
                        "label": node.label,
                        "properties": json.dumps(node.properties),
                    },
                )
            for edge in self.edges:
                connection.execute(
                    text(
                        "INSERT INTO graph_migrator.edges (graph_id, id, source, target, type, properties) "
                        "VALUES (:graph, :id, :source, :target, :type, CAST(:properties AS jsonb))"
                    ),
                    {
                        "graph": self.id, "id": edge.id, "source": edge.source, "target": edge.target,
                        "type": edge.type, "properties": json.dumps(edge.properties),
                    },
                )  # fmt: skip
        return self

    def copy(self) -> SampleGraph:
        """Another graph with what this one began with."""
        return SampleGraph(self.engine, self.graph_type, self.first_version, self.nodes, self.edges).insert()

    def migrate(self, target: int) -> SampleGraph:
        """Move it to a version, in this process.

        Raises:
            Exception: What a hop raised.
        """
        run_graph_migration(self.engine, self.id, target)
        return self

    def contents(self) -> Contents:
        """Its data now."""
        with self.engine.connect() as connection:
            nodes = [Node(*row) for row in connection.execute(_NODES, {"graph": self.id})]
            edges = [Edge(*row) for row in connection.execute(_EDGES, {"graph": self.id})]
        return Contents(nodes, edges)
