"""What monitoring shows of live rollouts and workers. Each statement follows an index, whatever the fleet's size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graph_migrator.core.rollouts.estimate import Estimate
from graph_migrator.core.rollouts.health import worst
from graph_migrator.core.rollouts.inspection import pace_now, time_left
from graph_migrator.core.rollouts.rows import load_signals, query
from graph_migrator.core.rollouts.statuses import MemberStatus
from graph_migrator.core.rollouts.workers import live_workers


@dataclass(frozen=True)
class RolloutMeasures:
    """One live rollout."""

    graph_type: str
    members: dict[MemberStatus, int]
    pace: int
    """How many may be in flight at this moment."""
    slowed_by: str | None
    """The health signal that slows or stops it."""
    held: str | None
    time_left: Estimate | None


@dataclass(frozen=True)
class FleetMeasures:
    """Live rollouts, one of each type at most, and live workers."""

    rollouts: list[RolloutMeasures] = field(default_factory=list)
    workers: int = 0


def measure_fleet(cursor: Any, queue: str) -> FleetMeasures:
    """Read what monitoring shows.

    Args:
        cursor: A driver's cursor with our schema in its search path.
        queue: Whose workers are counted.
    """
    found = []
    bad = worst(load_signals(cursor))
    for row in query(cursor, _LIVE):
        counts = {status: int(getattr(row, status)) for status in MemberStatus}
        found.append(
            RolloutMeasures(
                graph_type=row.graph_type,
                members=counts,
                pace=pace_now(row),
                slowed_by=bad.name if bad and row.strategy["health"] else None,
                held=row.hold["reason"] if row.hold else None,
                time_left=time_left(cursor, row),
            )
        )
    return FleetMeasures(found, len(live_workers(cursor, queue)))


_LIVE = """
SELECT r.id, r.graph_type, r.hold, r.max_in_flight, r.pace, r.sizes, r.strategy, c.*
FROM rollouts r CROSS JOIN LATERAL (
    SELECT sum(s.pending) AS pending, sum(s.dispatched) AS dispatched, sum(s.succeeded) AS succeeded,
           sum(s.failed) AS failed, sum(s.skipped) AS skipped
    FROM rollout_stages s WHERE s.rollout_id = r.id) c
WHERE r.status IN ('running', 'held', 'cancelling') ORDER BY r.graph_type
"""
