"""The hop that a migration is at, as one row whatever number of attempts it has."""

from __future__ import annotations

from typing import Final

RUNNING_HOP: Final = """
LEFT JOIN LATERAL (
    SELECT max(r.hop_name) AS hop_name, sum(r.rows_per_second) AS rows_per_second,
           coalesce(max(s.done), max(r.done)) AS done, coalesce(max(s.total), max(r.total)) AS total
    FROM graph_migrator.hop_attempts r
    LEFT JOIN LATERAL graph_migrator.shards_together(r.migration_id, r.to_version) s ON r.shard IS NOT NULL
    WHERE r.migration_id = m.id AND r.status = 'running') a ON true
"""
"""For a query of migrations `m`: the running attempt `a`, or the shards of the running hop together."""
