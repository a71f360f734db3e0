"""Whether a graph is where an application needs it, and what has to be waited for where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from graph_migrator.core.errors import GraphBehind, InvalidRequest, UnknownGraph
from graph_migrator.core.rollouts.rows import request_id
from graph_migrator.core.rollouts.statuses import RolloutStatus


@dataclass(frozen=True)
class Standing:
    """A graph, who owns it, and the rollout in which it waits.

    Attributes:
        graph_id: The graph.
        slug: Its slug.
        version: Its version.
        changed: When the version last changed; part of the id of the call that moves it on.
        migration_id: The migration that owns it.
        migration_status: Of that migration.
        migration_target: Likewise.
        rollout_id: The live rollout in which it waits or is moved.
        rollout_status: Of the rollout.
        rollout_target: Likewise.
        number: Which try of the rollout is next or on its way.
        pending: It waits there.
        half_minute: The time, in half minutes: a call that was refused for a reason that passes is made again.
    """

    graph_id: UUID
    slug: str
    version: int
    changed: str | None = None
    migration_id: UUID | None = None
    migration_status: str | None = None
    migration_target: int | None = None
    rollout_id: UUID | None = None
    rollout_status: str | None = None
    rollout_target: int | None = None
    number: int | None = None
    pending: bool = False
    half_minute: int = 0


@dataclass(frozen=True)
class Current:
    """The graph is at the version, or above it."""


@dataclass(frozen=True)
class Behind:
    """The graph is below the version, and something moves it on or keeps it."""

    error: GraphBehind
    to_front: bool = False


@dataclass(frozen=True)
class Begin:
    """The graph is below the version, and nobody moves it: its migration is to be begun with this request id."""

    call: UUID


def decide_current(graph: Standing, wanted: int) -> Current | Behind | Begin:
    """Decide what a reader of a graph meets."""
    if graph.version >= wanted:
        return Current()

    def behind(why: str, *, call: UUID | None = None, to_front: bool = False) -> Behind:
        migration = None if graph.migration_id is None else str(graph.migration_id)
        error = GraphBehind(
            graph.slug, graph.version, wanted, why, None if call is None else str(call), migration
        )
        return Behind(error, to_front)

    if graph.migration_id is not None:
        if graph.migration_status == "failed":
            return behind(f"its migration {graph.migration_id} failed: `graph-migrator status {graph.slug}`")
        return behind(
            f"migration {graph.migration_id} to v{graph.migration_target} is {graph.migration_status}"
        )
    if graph.rollout_id is not None and graph.number is not None and (graph.rollout_target or 0) >= wanted:
        call = request_id(graph.rollout_id, graph.graph_id, graph.number)
        short = str(graph.rollout_id)[:8]
        if not graph.pending:
            return behind(f"rollout {short} has sent its migration", call=call)
        if graph.rollout_status == RolloutStatus.HELD:
            # What an operator or the breaker holds is not gone round: this graph may be the next one to fail.
            why = f"rollout {short}, in which it waits, is held: `graph-migrator rollout show {short}`"
            return behind(why, call=call, to_front=True)
        return behind(f"it is next in its stage of rollout {short}", call=call, to_front=True)
    moment = f"{graph.version}/{wanted}/{graph.changed}/{graph.half_minute}"
    return Begin(uuid5(graph.graph_id, f"current/{moment}"))


def look(session: Session | Connection, graph: str | UUID, version: int) -> Standing:
    """Read a graph's standing in the caller's transaction.

    Raises:
        UnknownGraph: There is no such graph.
        InvalidRequest: The version is no version number.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidRequest("version", f"a version is a whole number from 1, not {version!r}")
    row = session.execute(text(_STANDING), {"graph": str(graph)}).mappings().one_or_none()
    if row is None:
        raise UnknownGraph(str(graph))
    return Standing(**row)


# Every part follows an index: what is opened must not cost more on a large fleet.
_STANDING = """
SELECT g.id AS graph_id, g.slug, g.version, g.changed_at::text AS changed, g.migration_id,
       m.status AS migration_status, m.to_version AS migration_target, r.id AS rollout_id,
       r.status AS rollout_status, r.to_version AS rollout_target, b.number,
       coalesce(b.status = 'pending', false) AS pending,
       floor(extract(epoch FROM clock_timestamp()) / 30)::bigint AS half_minute
FROM graph_migrator.graphs g
LEFT JOIN graph_migrator.migrations m ON m.id = g.migration_id
LEFT JOIN graph_migrator.rollout_members b ON b.graph_id = g.id AND b.status IN ('pending', 'dispatched')
LEFT JOIN graph_migrator.rollouts r ON r.id = b.rollout_id
WHERE g.id = graph_migrator.graph_id_of(:graph)
"""


def move_to_front(connection: Connection, rollout_id: UUID, graph_id: UUID) -> bool:
    """Let a member be the next one of its stage.

    Args:
        connection: In a transaction of its own; the caller commits.
        rollout_id: The rollout.
        graph_id: A member that waits.

    Returns:
        Whether it is next now; not where the controller holds the rollout at this moment, or it waits no more.
    """
    statement = text("SELECT graph_migrator.move_to_front(:rollout, :graph)")
    return bool(connection.execute(statement, {"rollout": rollout_id, "graph": graph_id}).scalar_one())
