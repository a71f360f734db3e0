"""How fast a hop is and how long it will take: the one figure that status, watch, history, Flower and events show.

Postgres keeps the rate with the attempt (`graph_migrator.paced` in core/store/schema/versions/0004_recovery.sql): rows
of this attempt alone, the last half minute counting most. Rows of earlier attempts took time that nobody measured here.
"""

from __future__ import annotations


def seconds_left(done: int, total: int | None, rows_per_second: float | None) -> float | None:
    """An estimate for the rest of a hop.

    Args:
        done: Rows processed so far, by all attempts.
        total: Rows there are to process; None where the hop does not say.
        rows_per_second: Of this attempt, recently; None before its first progress.

    Returns:
        Seconds; None where there is nothing to estimate from.
    """
    if not total or not rows_per_second:
        return None
    return max(0.0, (total - done) / rows_per_second)
