"""`current`: what an application calls when it opens a graph."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from graph_migrator.core.errors import GraphBehind
from graph_migrator.core.rollouts.current import Begin, Behind, decide_current, look, move_to_front
from graph_migrator.tasks.migrate import migrate_graph
from graph_migrator.tasks.runtime import engine


def current(session: Session | Connection, graph: str | UUID, version: int) -> None:
    """Make sure that a graph is at a version; what is opened is migrated first.

    Where the graph is behind, its migration is begun; one that waits in a rollout becomes the next of its stage. The
    caller waits with `graph_migrator.wait_for(error)`, or shows the graph as it is. Many callers at once begin one
    migration. A rollout that is held stays held, and the graph waits in it.

    Args:
        session: Reads the graph in the caller's transaction. What is begun is begun outside of it.
        graph: The graph's id or slug.
        version: The lowest version that the caller's code can work with.

    Raises:
        GraphBehind: The graph is below the version; it says what it waits for.
        UnknownGraph: There is no such graph.
        InvalidRequest: The version is no version number.
        kombu.exceptions.OperationalError: The broker is out of reach; nothing was begun.
    """
    standing = look(session, graph, version)
    match decide_current(standing, version):
        case Behind(error, to_front):
            if to_front and standing.rollout_id is not None:
                with engine().begin() as connection:
                    move_to_front(connection, standing.rollout_id, standing.graph_id)
            raise error
        case Begin(call):
            migrate_graph.apply_async(
                (str(standing.graph_id), version), {"reason": "it was opened"}, task_id=str(call)
            )
            why = f"call {call} to move it was sent"
            raise GraphBehind(standing.slug, standing.version, version, why, str(call), None)
        case _:
            return
