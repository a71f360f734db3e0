"""What monitoring counts, read from the tables in a few grouped queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
class Watermark:
    """Attempts that were counted before and can never change: a process that measures again need not again.

    Attributes:
        up_to: Every attempt up to this id has finished, and is in here.
        hops: Histogram and committed rows, by graph type, hop and status.
    """

    up_to: int = 0
    hops: dict[tuple[str, str, str], tuple[Histogram, int]] = field(default_factory=dict)


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
SELECT coalesce(max(id), 0), coalesce((SELECT max(id) FROM graph_migrator.hop_attempts), 0)
FROM graph_migrator.hop_attempts
WHERE id > :after AND started_at < clock_timestamp() - interval '10 minutes'
  AND id < coalesce((SELECT min(id) FROM graph_migrator.hop_attempts WHERE status = 'running'), 9223372036854775807)
"""

# A gap of more than ten minutes is not recovery's: the migration had failed, and an operator retried it.
_RECOVERY = """
SELECT width_bucket(-s.seconds, CAST(:negated AS double precision[])) AS above, count(*), sum(s.seconds)
FROM graph_migrator.hop_attempts a
CROSS JOIN LATERAL (SELECT min(b.started_at) AS started_at FROM graph_migrator.hop_attempts b
                    WHERE b.migration_id = a.migration_id AND b.id > a.id) n
CROSS JOIN LATERAL (SELECT extract(epoch FROM n.started_at - a.finished_at)::double precision) s (seconds)
WHERE a.status = 'lost' AND s.seconds <= 600 GROUP BY 1
"""

# Waiting is every live migration that could go on and that nobody executes at this moment.
_QUEUE = """
SELECT count(*) FILTER (WHERE r.id IS NOT NULL), count(*) FILTER (WHERE r.id IS NULL),
       coalesce(max(extract(epoch FROM clock_timestamp() - coalesce(l.finished_at, m.created_at)))
                FILTER (WHERE r.id IS NULL), 0)::double precision,
       count(*) FILTER (WHERE r.id IS NULL AND m.deadline < clock_timestamp())
FROM graph_migrator.migrations m
LEFT JOIN graph_migrator.hop_attempts r ON r.migration_id = m.id AND r.status = 'running'
LEFT JOIN LATERAL (SELECT max(a.finished_at) AS finished_at FROM graph_migrator.hop_attempts a
                   WHERE a.migration_id = m.id) l ON true
WHERE m.status IN ('queued', 'running', 'pausing', 'cancelling')
"""


def measure(connection: Connection, settled: Watermark | None = None) -> Measures:
    """Count everything, in one snapshot.

    Args:
        connection: Any.
        settled: What was counted before, for a caller that measures again and again: it is used and
            brought up to date, and only attempts of late are read.
    """
    found = Measures()
    settled = Watermark() if settled is None else settled
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    connection.execute(text("SET LOCAL statement_timeout = '30s'"))
    by_status = "SELECT graph_type, status, count(*) FROM graph_migrator.migrations GROUP BY 1, 2"
    for kind, status, count in connection.execute(text(by_status)):
        found.migrations[kind, status] = count
    _count_hops(connection, found, settled)
    for above, count, seconds in connection.execute(text(_RECOVERY), {"negated": _negated(RECOVERY_BOUNDS)}):
        _add(found.recovery, above, count, seconds)
    found.running_hops, found.waiting, found.queue_age, found.overdue = connection.execute(text(_QUEUE)).one()
    by_version = (
        "SELECT graph_type, version, count(*), count(*) FILTER (WHERE partially_migrated IS NOT NULL) "
        "FROM graph_migrator.graphs GROUP BY 1, 2"
    )
    for kind, version, count, partially_migrated in connection.execute(text(by_version)):
        found.graphs[kind, version] = count
        found.partially_migrated += partially_migrated
    return found


def _count_hops(connection: Connection, found: Measures, settled: Watermark) -> None:
    up_to, newest = connection.execute(text(_UP_TO), {"after": settled.up_to}).one()
    if newest < settled.up_to:  # it is another database, restored from a backup
        settled.up_to, settled.hops = 0, {}
        return _count_hops(connection, found, settled)
    up_to = max(up_to, settled.up_to)
    _read_hops(connection, settled.hops, after=settled.up_to, up_to=up_to)
    settled.up_to = up_to
    hops = {
        key: (Histogram(HOP_BOUNDS, list(known.counts), known.total), rows)
        for key, (known, rows) in settled.hops.items()
    }
    _read_hops(connection, hops, after=up_to, up_to=newest)
    for (kind, hop, status), (histogram, rows) in hops.items():
        found.hop_seconds[kind, hop, status] = histogram
        found.rows[kind, hop] = found.rows.get((kind, hop), 0) + rows
    return None


def _read_hops(
    connection: Connection, into: dict[tuple[str, str, str], tuple[Histogram, int]], *, after: int, up_to: int
) -> None:
    if after >= up_to:
        return
    parameters = {"negated": _negated(HOP_BOUNDS), "after": after, "up_to": up_to}
    for kind, hop, status, above, count, seconds, rows in connection.execute(text(_HOPS), parameters):
        histogram, rows_before = into.get((kind, hop, status), (Histogram(HOP_BOUNDS), 0))
        _add(histogram, above, count, seconds)
        into[kind, hop, status] = histogram, rows_before + int(rows)


def _negated(bounds: Sequence[float]) -> list[float]:
    return [-bound for bound in reversed(bounds)]


def _add(histogram: Histogram, above: int, count: int, seconds: float) -> None:
    histogram.counts[len(histogram.bounds) - above] += count
    histogram.total += float(seconds)
