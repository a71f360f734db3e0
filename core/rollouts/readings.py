"""Reading the health signals, storing what they say, and setting the pace of live rollouts by it.

A step of the recovery sweep, so one process does it at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from graph_migrator.core.plural import count
from graph_migrator.core.rollouts.health import (
    EVERY,
    SIGNALS,
    Level,
    Reading,
    SignalState,
    follow,
    limits_of,
    p95,
    worst,
)
from graph_migrator.core.rollouts.pace import next_pace
from graph_migrator.core.rollouts.rows import load_signals, query, record_change
from graph_migrator.core.settings import settings
from graph_migrator.core.store.errors import DRIVER_ERRORS
from graph_migrator.core.store.redaction import safe_message
from graph_migrator.core.store.session import Executor

_FEWEST: Final = 3
_commits: deque[float] = deque(maxlen=20)
"""Milliseconds of this process's latest commits of a reading."""

_DUE = """
SELECT clock_timestamp() AS now,
       NOT EXISTS (SELECT FROM health_signals WHERE measured_at > clock_timestamp() - make_interval(secs => %s))
       AND (EXISTS (SELECT FROM rollouts WHERE status IN ('running', 'held', 'cancelling'))
            OR EXISTS (SELECT FROM hop_attempts WHERE status = 'running')) AS is_due
"""
_NOT_SEEN: Final = "this role may not see it: GRANT pg_monitor"
_SQL: Final = {
    "replica_lag": """
SELECT coalesce(max(extract(epoch FROM replay_lag)), 0)::float8 AS value, bool_or(state IS NULL) AS hidden,
       (array_agg(application_name ORDER BY replay_lag DESC NULLS LAST))[1] AS detail FROM pg_stat_replication
""",
    "replica_behind": """
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) / 1048576, 0)::float8 AS value,
       bool_or(state IS NULL) AS hidden,
       (array_agg(application_name ORDER BY replay_lsn))[1] AS detail FROM pg_stat_replication
""",
    "wal_kept": """
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) / 1048576, 0)::float8 AS value, false AS hidden,
       (array_agg(slot_name ORDER BY restart_lsn))[1] AS detail FROM pg_replication_slots
""",
    "archive_waiting": """
SELECT count(*)::float8 AS value, false AS hidden, NULL AS detail
FROM pg_ls_archive_statusdir() f WHERE f.name LIKE '%.ready'
""",
    "lock_waiters": """
SELECT count(DISTINCT l.pid)::float8 AS value, false AS hidden, NULL AS detail FROM pg_locks l
WHERE NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 second'
  AND l.pid IN (SELECT a.pid FROM pg_stat_activity a WHERE a.datname = current_database())
""",
    "wraparound_vacuum": """
SELECT count(*) FILTER (WHERE a.query LIKE '%(to prevent wraparound)%')::float8 AS value,
       bool_or(a.query = '<insufficient privilege>') AS hidden, max(p.relid::regclass::text) AS detail
FROM pg_stat_progress_vacuum p JOIN pg_stat_activity a ON a.pid = p.pid WHERE p.datname = current_database()
""",
}


def read_if_due(executor: Executor, queued: int | None) -> tuple[SignalState, ...] | None:
    """Read all signals, where that was not done within `EVERY` seconds and something is there to be slowed down.

    Args:
        executor: A session without an open transaction.
        queued: How many messages wait in the queue; None where the broker does not say.

    Returns:
        What they say now; None where no reading was due.
    """
    with executor.cursor() as cursor:
        (found,) = query(cursor, _DUE, EVERY)
    if not found.is_due:
        return None
    with executor.transaction(), executor.cursor() as cursor:
        readings = _read(cursor, queued)
        states = _store(cursor, readings, found.now)
        _set_pace(cursor, worst(states))
        read = time.monotonic()
    _commits.append(1_000 * (time.monotonic() - read))
    return states


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────


def _read(cursor: Any, queued: int | None) -> dict[str, Reading]:
    found = {name: _ask(cursor, statement) for name, statement in _SQL.items() if name != "archive_waiting"}
    (archive,) = query(cursor, "SELECT current_setting('archive_mode') AS mode")
    found["archive_waiting"] = (
        Reading(0, "archive_mode is off") if archive.mode == "off" else _ask(cursor, _SQL["archive_waiting"])
    )
    found["broker_queue"] = Reading(queued, None if queued is not None else "the broker does not say")
    found["commit_p95"] = Reading(
        p95(_commits) if len(_commits) >= _FEWEST else None, f"of the last {count(len(_commits), 'commit')}"
    )
    if settings().health_sql:
        own = settings().health_sql.strip().rstrip(";")
        found["custom"] = _ask(cursor, f"SELECT ({own})::float8 AS value, false AS hidden, NULL AS detail")
    return found


def _ask(cursor: Any, statement: str) -> Reading:
    """One reading, which can neither change anything nor take long; nor does its error end the others."""
    cursor.execute(
        "SAVEPOINT reading; SET LOCAL transaction_read_only = on; SET LOCAL statement_timeout = '2s'"
    )
    try:
        (row,) = query(cursor, statement)
        reading = Reading(None, _NOT_SEEN) if row.hidden else Reading(row.value, row.detail)
    except DRIVER_ERRORS as error:
        reading = Reading(None, safe_message(error)[:200])
    cursor.execute("ROLLBACK TO SAVEPOINT reading; RELEASE SAVEPOINT reading")
    return reading


# ── storing ─────────────────────────────────────────────────────────────────────────────────────────


def _store(cursor: Any, readings: Mapping[str, Reading], now: datetime) -> tuple[SignalState, ...]:
    before = {state.name: state for state in load_signals(cursor)}
    states = tuple(
        follow(before.get(s.name), s.name, readings[s.name], limits_of(s, settings().health_limits), now)
        for s in SIGNALS
        if s.name in readings
    )
    for state in states:
        cursor.execute(
            "INSERT INTO health_signals (name, level, value, slow_limit, stop_limit, since, better_since, detail, "
            "measured_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (name) DO UPDATE SET (level, value, slow_limit, stop_limit, since, better_since, detail, "
            "measured_at) = (excluded.level, excluded.value, excluded.slow_limit, excluded.stop_limit, "
            "excluded.since, excluded.better_since, excluded.detail, excluded.measured_at)",
            (
                state.name, str(state.level), state.value, state.slow, state.stop, state.since, state.better_since,
                state.detail, now,
            ),
        )  # fmt: skip
    cursor.execute("DELETE FROM health_signals WHERE name <> ALL (%s)", ([s.name for s in states],))
    return states


def _set_pace(cursor: Any, bad: SignalState | None) -> None:
    level = bad.level if bad is not None else Level.GOOD
    rollouts = query(
        cursor,
        "SELECT id, pace, max_in_flight FROM rollouts WHERE status IN ('running', 'held', 'cancelling') "
        "AND (strategy->>'health')::boolean FOR UPDATE SKIP LOCKED",
    )
    for each in rollouts:
        before = each.max_in_flight if each.pace is None else each.pace
        pace = next_pace(before, each.max_in_flight, level)
        if pace == before:
            continue
        cursor.execute(
            "UPDATE rollouts SET pace = %s WHERE id = %s",
            (None if pace == each.max_in_flight else pace, each.id),
        )
        if bad is not None:
            record_change(cursor, each.id, "pace", before, pace, None, bad.in_words())
