"""What monitoring counts.

Finished attempts never change, so they are counted once: `advance` adds them to small tables, a step of every
recovery sweep, and `measure` adds only those that came since. Counts of migrations and graphs are taken anew at each
scrape while that is quick; on a large fleet the sweep takes them now and then, and a scrape reads its last result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

HOP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper bounds of the buckets for a hop's seconds."""

RECOVERY_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
"""Upper bounds of the buckets for the seconds from a loss to the next start."""


@dataclass
class Histogram:
    """How many values lie at or below each bound but above the one before, and their sum."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def cumulated(self) -> list[tuple[str, float]]:
        """As Prometheus wants it: (bound, how many at or below it), ending with ``+Inf``."""
        below, found = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


@dataclass
class Measures:
    """One look at everything that is counted. Only finished attempts are in histograms and sums."""

    migrations: dict[tuple[str, str], int] = field(default_factory=dict)
    """By graph type and status."""
    hop_seconds: dict[tuple[str, str, str], Histogram] = field(default_factory=dict)
    """By graph type, hop and status."""
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    """Rows changed by what was committed, by graph type and hop."""
    recovery: Histogram = field(default_factory=lambda: Histogram(RECOVERY_BOUNDS))
    running_hops: int = 0
    waiting: int = 0
    queue_age: float = 0.0
    overdue: int = 0
    graphs: dict[tuple[str, int], int] = field(default_factory=dict)
    """By graph type and version."""
    partially_migrated: int = 0

    @property
    def lost_attempts(self) -> dict[tuple[str, str], int]:
        """By graph type and hop."""
        return {
            (kind, hop): sum(found.counts)
            for (kind, hop, status), found in self.hop_seconds.items()
            if status == "lost"
        }


# Bounds are upper and inclusive; width_bucket counts thresholds at or below, so both are negated.
_HOPS = """
SELECT m.graph_type, a.hop_name, a.status,
       width_bucket(-s.seconds, CAST(:negated AS double precision[])) AS above, count(*), sum(s.seconds),
       coalesce(sum(a.rows_changed) FILTER (WHERE a.batches > 0 OR a.status IN ('succeeded', 'skipped')), 0)
FROM graph_migrator.hop_attempts a JOIN graph_migrator.migrations m ON m.id = a.migration_id
CROSS JOIN LATERAL (SELECT extract(epoch FROM a.finished_at - a.started_at)::double precision) s (seconds)
WHERE a.finished_at IS NOT NULL AND a.id > :after AND a.id <= :up_to GROUP BY 1, 2, 3, 4
"""

# Up to where all attempts have finished. An id is older than its commit, by a moment: ten minutes are plenty.
_UP_TO = """
SELECT max(id) FROM (
    SELECT id FROM graph_migrator.hop_attempts
    WHERE id > :after AND started_at < clock_timestamp() - interval '10 minutes'
      AND id < coalesce((SELECT min(id) FROM graph_migrator.hop_attempts WHERE status = 'running'), 9223372036854775807)
    ORDER BY id LIMIT :most) settled
"""

# A gap of more than ten minutes is not recovery's: the migration had failed, and an operator retried it.
_RECOVERY = """
SELECT width_bucket(-s.seconds, CAST(:negated AS double precision[])) AS above, count(*), sum(s.seconds)
FROM graph_migrator.hop_attempts a
CROSS JOIN LATERAL (SELECT min(b.started_at) AS started_at FROM graph_migrator.hop_attempts b
                    WHERE b.migration_id = a.migration_id AND b.id > a.id
                      AND b.shard IS NOT DISTINCT FROM a.shard) n
CROSS JOIN LATERAL (SELECT extract(epoch FROM n.started_at - a.finished_at)::double precision) s (seconds)
WHERE a.status = 'lost' AND a.id > :after AND a.id <= :up_to AND s.seconds <= 600 GROUP BY 1
"""

# Waiting is every live migration that could go on and that nobody executes at this moment.
_COUNTS = """
SELECT jsonb_build_object(
    'migrations', (SELECT coalesce(jsonb_agg(jsonb_build_array(graph_type, status, number)), '[]') FROM (
        SELECT graph_type, status, count(*) AS number FROM graph_migrator.migrations GROUP BY 1, 2) by_status),
    'graphs', (SELECT coalesce(jsonb_agg(jsonb_build_array(graph_type, version, number, partial)), '[]') FROM (
        SELECT graph_type, version, count(*) AS number, count(partially_migrated) AS partial
        FROM graph_migrator.graphs GROUP BY 1, 2) by_version),
    'queue', (
        SELECT jsonb_build_array(
            count(*) FILTER (WHERE r.id IS NOT NULL), count(*) FILTER (WHERE r.id IS NULL),
            coalesce(max(extract(epoch FROM clock_timestamp() - coalesce(l.finished_at, m.created_at)))
                     FILTER (WHERE r.id IS NULL), 0)::double precision,
            count(*) FILTER (WHERE r.id IS NULL AND m.deadline < clock_timestamp()))
        FROM graph_migrator.migrations m
        LEFT JOIN LATERAL (SELECT a.id FROM graph_migrator.hop_attempts a
                           WHERE a.migration_id = m.id AND a.status = 'running' LIMIT 1) r ON true
        LEFT JOIN LATERAL (SELECT max(a.finished_at) AS finished_at FROM graph_migrator.hop_attempts a
                           WHERE a.migration_id = m.id) l ON true
        WHERE m.status IN ('queued', 'running', 'pausing', 'cancelling')))
"""

_TOTALS = "SELECT graph_type, hop_name, status, buckets, seconds, rows_changed FROM graph_migrator.hop_totals"

_SAVE_TOTAL = """
INSERT INTO graph_migrator.hop_totals (graph_type, hop_name, status, buckets, seconds, rows_changed)
VALUES (:graph_type, :hop, :status, :buckets, :seconds, :rows)
ON CONFLICT (graph_type, hop_name, status) DO UPDATE
SET buckets = excluded.buckets, seconds = excluded.seconds, rows_changed = excluded.rows_changed
"""

_QUICK_SECONDS = 0.05
"""While a count of all migrations and graphs takes no longer than this, every scrape takes it."""

_PAUSE = 50
"""A count that takes longer is repeated after this many times its own duration, and after 10 seconds at least."""

_Hops = dict[tuple[str, str, str], tuple[Histogram, int]]


def advance(connection: Connection, *, most: int = 50_000) -> int:
    """Add attempts that can no longer change to the totals, and take the counts anew where they are old.

    Called in a transaction of its own by the process that sweeps; a second one that calls it waits.

    Args:
        connection: In a transaction; the caller commits.
        most: How many attempts to add at most. The rest follows at the next call.

    Returns:
        The id up to which attempts are counted.
    """
    state = connection.execute(
        text(
            "SELECT counted_up_to, recovery_buckets, recovery_seconds, counted_at IS NULL OR clock_timestamp() - "
            "counted_at > make_interval(secs => greatest(10, :pause * count_took)) AS is_old "
            "FROM graph_migrator.metrics_state FOR UPDATE"
        ),
        {"pause": _PAUSE},
    ).one()
    found: int | None = connection.execute(
        text(_UP_TO), {"after": state.counted_up_to, "most": most}
    ).scalar_one()
    up_to = state.counted_up_to if found is None else found
    if up_to > state.counted_up_to:
        hops = _load_totals(connection)
        _add_hops(connection, hops, after=state.counted_up_to, up_to=up_to)
        for (kind, hop, status), (histogram, rows) in hops.items():
            total = {"buckets": histogram.counts, "seconds": histogram.total, "rows": rows}
            connection.execute(text(_SAVE_TOTAL), {"graph_type": kind, "hop": hop, "status": status, **total})
        recovery = Histogram(RECOVERY_BOUNDS, list(state.recovery_buckets), state.recovery_seconds)
        _add_recovery(connection, recovery, after=state.counted_up_to, up_to=up_to)
        connection.execute(
            text(
                "UPDATE graph_migrator.metrics_state SET counted_up_to = :up_to, recovery_buckets = :buckets, "
                "recovery_seconds = :seconds"
            ),
            {"up_to": up_to, "buckets": recovery.counts, "seconds": recovery.total},
        )
    if state.is_old:
        began = time.monotonic()
        counts = connection.execute(text(_COUNTS)).scalar_one()
        connection.execute(
            text(
                "UPDATE graph_migrator.metrics_state SET counts = CAST(:counts AS jsonb), "
                "counted_at = clock_timestamp(), count_took = :took"
            ),
            {"counts": json.dumps(counts), "took": time.monotonic() - began},
        )
    return int(up_to)


def measure(connection: Connection) -> Measures:
    """Everything that monitoring shows, in one snapshot."""
    found = Measures()
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    connection.execute(text("SET LOCAL statement_timeout = '30s'"))
    state = connection.execute(
        text(
            "SELECT counted_up_to, recovery_buckets, recovery_seconds, "
            "(SELECT coalesce(max(id), 0) FROM graph_migrator.hop_attempts) AS newest FROM graph_migrator.metrics_state"
        )
    ).one()
    hops = _load_totals(connection)
    _add_hops(connection, hops, after=state.counted_up_to, up_to=state.newest)
    for (kind, hop, status), (histogram, rows) in hops.items():
        found.hop_seconds[kind, hop, status] = histogram
        found.rows[kind, hop] = found.rows.get((kind, hop), 0) + rows
    found.recovery = Histogram(RECOVERY_BOUNDS, list(state.recovery_buckets), state.recovery_seconds)
    _add_recovery(connection, found.recovery, after=state.counted_up_to, up_to=state.newest)
    counts = current_counts(connection)
    found.migrations = {(kind, status): number for kind, status, number in counts["migrations"]}
    for kind, version, number, partial in counts["graphs"]:
        found.graphs[kind, version] = number
        found.partially_migrated += partial
    found.running_hops, found.waiting, found.queue_age, found.overdue = counts["queue"]
    return found


def current_counts(connection: Connection) -> dict[str, Any]:
    """Counts of migrations, graphs and the queue: taken now where that is quick, else those of the last sweeps."""
    state = connection.execute(
        text("SELECT counts, count_took FROM graph_migrator.metrics_state WHERE count_took > :quick"),
        {"quick": _QUICK_SECONDS},
    ).one_or_none()
    found = state.counts if state is not None and state.counts is not None else None
    counted: dict[str, Any] = found or connection.execute(text(_COUNTS)).scalar_one()
    return counted


def _load_totals(connection: Connection) -> _Hops:
    return {
        (kind, hop, status): (Histogram(HOP_BOUNDS, list(buckets), seconds), rows)
        for kind, hop, status, buckets, seconds, rows in connection.execute(text(_TOTALS))
    }


def _add_hops(connection: Connection, hops: _Hops, *, after: int, up_to: int) -> None:
    parameters = {"negated": _negated(HOP_BOUNDS), "after": after, "up_to": up_to}
    for kind, hop, status, above, count, seconds, rows in connection.execute(text(_HOPS), parameters):
        histogram, rows_before = hops.get((kind, hop, status), (Histogram(HOP_BOUNDS), 0))
        _add(histogram, above, count, seconds)
        hops[kind, hop, status] = histogram, rows_before + int(rows)


def _add_recovery(connection: Connection, recovery: Histogram, *, after: int, up_to: int) -> None:
    parameters = {"negated": _negated(RECOVERY_BOUNDS), "after": after, "up_to": up_to}
    for above, count, seconds in connection.execute(text(_RECOVERY), parameters):
        _add(recovery, above, count, seconds)


def _negated(bounds: Sequence[float]) -> list[float]:
    return [-bound for bound in reversed(bounds)]


def _add(histogram: Histogram, above: int, count: int, seconds: float) -> None:
    histogram.counts[len(histogram.bounds) - above] += count
    histogram.total += float(seconds)
