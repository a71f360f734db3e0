"""The way back: a rollout that reverses what another one has done."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from graph_migrator.core.errors import InvalidRequest, RolloutRefused
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.registry import graph_type, graph_types
from graph_migrator.core.rollouts.inspection import RolloutState
from graph_migrator.core.rollouts.operations import Operator, find_rollout
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.rows import query
from graph_migrator.core.rollouts.statuses import LIVE
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executor


def back(
    executor: Executor,
    which: str,
    operator: Operator,
    *,
    to_version: int | None = None,
    strategy: Strategy | None = None,
) -> RolloutRequest:
    """The request for the rollout that moves back what a rollout has moved; `plan` and `start` take it.

    It selects the graphs that succeeded and are still where they were moved to, and that came from one version.

    Args:
        executor: Any session.
        which: The rollout that is to be reversed. It must have ended.
        operator: Who asks.
        to_version: The version to go back to; needed where its graphs came from several.
        strategy: How to proceed; by default as a new rollout does, with canaries again.

    Raises:
        UnknownRollout: There is none, or several fit.
        RolloutRefused: It is live, nothing succeeded, or hops on the way have no reverse: all of them are named.
        InvalidRequest: Its graphs came from several versions, or none of them from this one.
    """
    with executor.cursor() as cursor:
        (row,) = query(cursor, "SELECT * FROM rollouts WHERE id = %s", find_rollout(cursor, which))
        origins = {
            each.from_version: each.graphs
            for each in query(
                cursor,
                "SELECT from_version, count(*) AS graphs FROM rollout_members "
                "WHERE rollout_id = %s AND status = 'succeeded' GROUP BY 1 ORDER BY 1",
                row.id,
            )
        }
    if row.status in LIVE:
        raise RolloutRefused(str(row.id), "back", row.status, "it has to end first; `rollout cancel` ends it")
    if not origins:
        raise RolloutRefused(str(row.id), "back", row.status, "no graph was moved by it")
    target = _target(origins, to_version)
    missing = _without_reverse(graph_type(row.graph_type), row.to_version, target)
    if missing:
        raise RolloutRefused(
            str(row.id), "back", row.status, f"these hops have no reverse: {', '.join(missing)}"
        )
    return RolloutRequest(
        graph_type=row.graph_type,
        to_version=target,
        reverses=row.id,
        strategy=strategy or Strategy(),
        requested_by=operator.name,
        reason=operator.why or f"back from rollout {str(row.id)[:8]}",
    )


class WayBack(BaseModel):
    """A version that the graphs of a rollout came from, and what moving them back there would do."""

    model_config = ConfigDict(frozen=True)

    to_version: int
    graphs: int = Field(
        description="At most so many: those that succeeded, came from this version, and are where they were moved to."
    )
    without_reverse: tuple[str, ...] = Field(
        description="Hops on the way that have no reverse, so it is shut."
    )


def ways_back(state: RolloutState) -> tuple[WayBack, ...]:
    """Where `back` could lead, from counters alone: whatever the number of graphs, none of them is read."""
    rollout = state.rollout
    kind = graph_types().get(rollout.graph_type)
    if kind is None:
        return ()
    return tuple(
        WayBack(
            to_version=version,
            graphs=min(graphs, rollout.counts.succeeded),
            without_reverse=tuple(_without_reverse(kind, rollout.to_version, version)),
        )
        for version, graphs in sorted(state.came_from.items())
    )


def why_not_back(state: RolloutState) -> str | None:
    """Why `back` is refused now; None where it is not."""
    rollout = state.rollout
    if rollout.status in LIVE:
        return "it has to end first"
    if not rollout.counts.succeeded:
        return "no graph was moved by it"
    ways = ways_back(state)
    if not ways:
        return f"its type {rollout.graph_type!r} is not known here"
    if all(way.without_reverse for way in ways):
        missing = dict.fromkeys(hop for way in ways for hop in way.without_reverse)
        return f"these hops have no reverse: {', '.join(missing)}"
    return None


def _target(origins: dict[int, int], to_version: int | None) -> int:
    if to_version is None and len(origins) == 1:
        (only,) = origins
        return only
    if to_version is None or to_version not in origins:
        came = ", ".join(f"{count:,} from v{version}" for version, count in origins.items())
        raise InvalidRequest("to", f"its graphs came from these versions: {came}; name one")
    return to_version


def _without_reverse(kind: GraphType, upper: int, lower: int) -> list[str]:
    """The hops between two versions that cannot be undone, the last first; none where the way leads forward."""
    return [
        f"v{hop.from_version}→v{hop.to_version} {hop.name}"
        for hop in reversed(kind.hops)
        if lower <= hop.from_version < upper and not hop.is_reversible
    ]
