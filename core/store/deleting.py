"""Deleting a graph with its nodes and edges. Its migrations and attempts stay."""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from graph_migrator.core.store.writers import graph_writer


class DeletedGraph(BaseModel):
    """What was deleted."""

    model_config = ConfigDict(frozen=True)

    graph_id: UUID = Field(description="`history` still finds it by this id.")
    slug: str
    nodes: int
    edges: int


_DELETE = {
    "edges": text("DELETE FROM graph_migrator.edges WHERE graph_id = :id"),
    "nodes": text("DELETE FROM graph_migrator.nodes WHERE graph_id = :id"),
    "graphs": text("DELETE FROM graph_migrator.graphs WHERE id = :id"),
}


def delete_graph(connection: Connection, graph: str) -> DeletedGraph:
    """Delete a graph in the connection's transaction, as a writer: nobody deletes one that is being migrated.

    Args:
        connection: In a transaction, which the caller commits.
        graph: Id or slug.

    Raises:
        UnknownGraph: Nothing has this id or slug.
        GraphReadOnly: A migration owns it, or its owner locked it.
    """
    with graph_writer(connection, graph) as found:
        rows = {
            name: connection.execute(statement, {"id": found.id}).rowcount
            for name, statement in _DELETE.items()
        }
    return DeletedGraph(graph_id=found.id, slug=found.slug, nodes=rows["nodes"], edges=rows["edges"])
