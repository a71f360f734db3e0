"""What can be wrong with a deployment's database, each finding with its remedy. `doctor` shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from graph_migrator.core.errors import SchemaOutdated
from graph_migrator.core.graph_types.definition import GraphType
from graph_migrator.core.graph_types.selectors import Rows
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.inspection.waiting_calls import LONG_WAIT, waiting_calls
from graph_migrator.core.settings import settings
from graph_migrator.core.store import schema
from graph_migrator.core.store.guard import list_guards

MOST_SKEW: Final = 5.0
"""Seconds by which two clocks may differ before people misread times; no decision depends on clocks here."""
OLDEST_SERVER: Final = 14
"""The oldest major version of PostgreSQL; its tests have run on 15 to 18."""
LONG_IDLE: Final = 60
OVERDUE: Final = 60
_MOST_CALLS: Final = 100


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(BaseModel):
    """The result of one check."""

    model_config = ConfigDict(frozen=True)

    check: str = Field(description="For scripts; listed in docs/cli.md.")
    level: Level
    found: str
    remedy: str | None = None


def examine(engine: Engine, types: dict[str, GraphType]) -> Iterator[Finding]:
    """Every check of a database that answers.

    Args:
        engine: The database.
        types: The graph types that this process knows.
    """
    yield pooling(lambda: engine.raw_connection())
    with engine.connect() as connection:
        yield server(connection)
        yield clock(connection)
        yield check_interval(connection)
        outdated = schema_revision(connection)
        yield outdated
        if outdated.level is not Level.OK:
            return
        yield from guards(connection, types)
        yield from sessions(connection)
        yield from graphs(connection)
        yield from calls(connection)
        yield from workers(connection)
        yield from types_in_use(connection, types)
        yield from reachable(connection, types)


def server(connection: Connection) -> Finding:
    """Whether the server is new enough for our schema."""
    row = connection.execute(
        text("SELECT current_setting('server_version_num')::integer, current_setting('server_version')")
    ).one()
    return server_version(row[0], row[1])


def server_version(number: int, shown: str) -> Finding:
    """Whether a server with this `server_version_num` is new enough."""
    if number < OLDEST_SERVER * 10_000:
        found = (
            f"PostgreSQL {shown} is too old: locks and triggers that the write guard relies on are not there"
        )
        return _wrong("server", found, f"Upgrade to PostgreSQL {OLDEST_SERVER} or newer.")
    return _ok("server", f"PostgreSQL {shown}")


def schema_revision(connection: Connection) -> Finding:
    """Whether the tables are those of this release."""
    try:
        schema.require_current(connection)
    except SchemaOutdated as error:
        found = f"our tables are at {error.found or 'nothing'}, this release needs {error.expected}"
        return _wrong("schema", found, "Run `graph-migrator db upgrade`.")
    return _ok("schema", f"at revision {schema.head_revision()}")


def clock(connection: Connection) -> Finding:
    """How far the database's clock is from this machine's."""
    before = datetime.now(UTC)
    there = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    after = datetime.now(UTC)
    skew = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
    if skew > MOST_SKEW:
        return _warning("clock", f"the database's clock is {skew:.0f} s off from here", "Run NTP on both.")
    return _ok("clock", f"within {max(skew, 0.001):.3f} s of the database's")


def check_interval(connection: Connection) -> Finding:
    """Whether Postgres notices within a statement that its client is dead."""
    value = connection.execute(
        text("SELECT setting::integer FROM pg_settings WHERE name = 'client_connection_check_interval'")
    ).scalar()
    if not value:
        found = "not supported: a killed worker's lock stays until its statement ends"
        return _warning("client_connection_check_interval", found, "Run Postgres 14 or newer on Linux.")
    return _ok("client_connection_check_interval", f"{value} ms")


def pooling(connect: Callable[[], Any]) -> Finding:
    """Whether two transactions of one connection can come to two backends.

    A transaction-pooling proxy gives the server connection back at each commit. Another connection takes
    it, holds it in a transaction, and the first one lands elsewhere.
    """
    first, second = connect(), connect()
    try:
        pid = _backend(first)
        first.commit()
        _backend(second)  # its transaction stays open
        again = _backend(first)
        first.commit()
    finally:
        second.close()
        first.close()
    if pid != again:
        found = f"two transactions of one connection came to two backends ({pid}, {again})"
        remedy = (
            "DATABASE_URL leads through a transaction-pooling proxy. Session locks need a direct connection, "
            "or pool_mode=session."
        )
        return _wrong("pooling", found, remedy)
    return _ok("pooling", "one connection is one backend")


def guards(connection: Connection, types: dict[str, GraphType]) -> Iterator[Finding]:
    """Whether the write guard is whole on every table that has it, or that a hop processes."""
    found = list_guards(connection)
    for each in found:
        if each.complete:
            continue
        gaps = [
            *(f"no guard on {name}" for name in each.unguarded),
            *(f"{name} is off" for name in each.disabled),
        ]
        own = each.table.startswith("graph_migrator.")
        remedy = (
            f"Somebody dropped or disabled our triggers: `graph-migrator repair guard {each.table}` restores them."
            if own
            else f"`graph-migrator guard install {each.table} --column {each.column}`"
        )
        yield _wrong("guard", f"{each.table}: {'; '.join(gaps)}", remedy)
    whole = [each.table for each in found if each.complete]
    if whole:
        yield _ok("guard", f"in place on {', '.join(whole)}")
    covered = {each.table for each in found}
    for kind in types.values():
        for table, column in sorted(_processed(kind)):
            name = connection.execute(
                text(
                    "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c "
                    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:table)"
                ),
                {"table": table},
            ).scalar()
            if name is not None and name not in covered:
                shown = f"{name}, which hops of {kind.name!r} process, has no guard: writers are not kept off"
                yield _warning("guard", shown, f"`graph-migrator guard install {name} --column {column}`")


def _processed(kind: GraphType) -> set[tuple[str, str]]:
    overs = (way.over for hop in kind.hops for way in hop.directions.values())
    return {(over.table, over.graph_id) for over in overs if isinstance(over, Rows)}


_IDLE_HOLDERS = text("""
SELECT g.slug, l.pid, coalesce(nullif(a.application_name, ''), 'no application_name') AS application,
       extract(epoch FROM clock_timestamp() - a.state_change)::integer AS idle,
       h.hop_name, h.worker, h.pid AS worker_pid
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
JOIN graph_migrator.graphs g ON l.classid::bigint = (graph_migrator.lock_key(g.id) >> 32) & 4294967295
    AND l.objid::bigint = graph_migrator.lock_key(g.id) & 4294967295
-- The exclusive lock of a graph with a running attempt is held by that attempt's executor, a shared one by a shard's.
LEFT JOIN LATERAL (
    SELECT * FROM graph_migrator.hop_attempts h
    WHERE h.migration_id = g.migration_id AND h.status = 'running' AND (l.mode = 'ExclusiveLock') = (h.shard IS NULL)
    ORDER BY h.id DESC LIMIT 1) h ON true
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND a.datname = current_database()
  AND a.state LIKE 'idle%'
  AND clock_timestamp() - a.state_change > make_interval(secs => CASE WHEN h.id IS NULL THEN :idle ELSE :quiet END)
ORDER BY g.slug, l.pid LIMIT 20
""")
_PREPARED = text("""
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::integer AS age FROM pg_prepared_xacts
WHERE database = current_database() AND clock_timestamp() - prepared > make_interval(secs => :age)
ORDER BY prepared LIMIT 20
""")


def sessions(
    connection: Connection, *, idle: int = LONG_IDLE, quiet_hop: float | None = None
) -> Iterator[Finding]:
    """Sessions and prepared transactions that may keep a graph from being migrated.

    A hop that runs Python between two statements is idle in its transaction and healthy. Its executor is never
    to be ended because of that; one that is quiet for very long is named.

    Args:
        connection: The database.
        idle: Seconds after which an idle session that holds a lock is wrong.
        quiet_hop: Seconds after which a running hop without a statement is named; from the settings by default.
    """
    quiet = True
    limits = {"idle": idle, "quiet": settings().quiet_seconds if quiet_hop is None else quiet_hop}
    for row in connection.execute(_IDLE_HOLDERS, limits):
        quiet = False
        if row.hop_name is not None:
            found = (
                f"{row.slug}: hop {row.hop_name!r} on {row.worker} (pid {row.worker_pid}) has run no statement "
                f"for {row.idle} s"
            )
            remedy = (
                f"It may be computing, or in an endless loop: look at that process (py-spy dump --pid "
                f"{row.worker_pid}). If it never ends: `graph-migrator release {row.slug} --force --terminate`, and "
                "give the hop a timeout=."
            )
            yield _warning("sessions", found, remedy)
            continue
        found = f"{row.slug}: pid {row.pid} ({row.application}) has held its lock, idle, for {row.idle} s"
        yield _wrong("sessions", found, f"End it: SELECT pg_terminate_backend({row.pid}).")
    for row in connection.execute(_PREPARED, {"age": idle}):
        quiet = False
        found = f"prepared transaction {row.gid!r} is {row.age} s old; what it locked stays locked"
        yield _warning("sessions", found, "COMMIT PREPARED or ROLLBACK PREPARED it.")
    if quiet:
        yield _ok("sessions", "no idle session and no old prepared transaction holds a lock")


MOST = 10_000
"""Counts end here: beyond it the number changes nothing, and counting a million graphs would take long."""

# Overdue migrations are wrong where nobody sweeps. Else they wait in a full queue, and sending them again only makes
# it longer. Each part follows an index.
_STUCK = text("""
SELECT (SELECT count(*) FROM (
            SELECT FROM graph_migrator.migrations m
            WHERE l.ends_at < clock_timestamp() - make_interval(secs => :overdue)
              AND m.status IN ('queued', 'running', 'pausing', 'cancelling')
              AND m.deadline < statement_timestamp() - make_interval(secs => :overdue)
              AND NOT EXISTS (SELECT FROM graph_migrator.hop_attempts a
                              WHERE a.migration_id = m.id AND a.status = 'running') LIMIT :most) o) AS overdue,
       (SELECT count(*) FROM (
            SELECT FROM graph_migrator.migrations m WHERE m.status = 'failed' LIMIT :most) f) AS failed,
       (SELECT count(*) FROM (
            SELECT FROM graph_migrator.graphs g WHERE g.partially_migrated IS NOT NULL LIMIT :most) p
       ) AS partially_migrated,
       (SELECT g.slug FROM graph_migrator.migrations m JOIN graph_migrator.graphs g ON g.id = m.graph_id
        WHERE m.status = 'failed' LIMIT 1) AS example
FROM graph_migrator.sweep_lease l
""")

# One step of the index for each type, not one row for each graph.
_TYPES = text("""
WITH RECURSIVE used AS (
    (SELECT graph_type FROM graph_migrator.graphs ORDER BY graph_type LIMIT 1)
    UNION ALL
    SELECT (SELECT g.graph_type FROM graph_migrator.graphs g WHERE g.graph_type > u.graph_type
            ORDER BY g.graph_type LIMIT 1) FROM used u WHERE u.graph_type IS NOT NULL
) SELECT graph_type FROM used WHERE graph_type IS NOT NULL ORDER BY 1
""")

_UNREACHABLE = text("""
SELECT count(*) FROM (
    SELECT g.id FROM jsonb_each(CAST(:known AS jsonb)) k (name, versions) CROSS JOIN LATERAL (
        SELECT id FROM graph_migrator.graphs WHERE graph_type = k.name AND version < (k.versions ->> 0)::integer
        UNION ALL
        SELECT id FROM graph_migrator.graphs WHERE graph_type = k.name AND version > (k.versions ->> 1)::integer
    ) g LIMIT :most) found
""")


def graphs(connection: Connection, *, overdue: int = OVERDUE) -> Iterator[Finding]:
    """Graphs that do not move and will not by themselves."""
    row = connection.execute(_STUCK, {"overdue": overdue, "most": MOST}).one()
    if row.overdue:
        found = f"{_at_most(row.overdue, 'migration')} past the deadline at which recovery redelivers"
        yield _wrong(
            "graphs", found, "No worker is recovering. Start one; `graph-migrator recover` sweeps once."
        )
    if row.failed:
        names = f"{row.example}, …" if row.failed > 1 else row.example
        found = f"{_at_most(row.failed, 'graph')} read-only after a failed migration ({names})"
        yield _warning("graphs", found, "`graph-migrator failures`, then retry or release them.")
    if row.partially_migrated:
        found = f"{_at_most(row.partially_migrated, 'graph')} released by force in the middle of a hop"
        yield _warning(
            "graphs", found, "`graph-migrator graphs --state partially-migrated`, then retry them."
        )
    if not (row.overdue or row.failed or row.partially_migrated):
        yield _ok("graphs", "none is stuck")


_NAMESAKES: Final = text("""
SELECT w.name FROM graph_migrator.workers w
WHERE w.seen_at > clock_timestamp() - interval '20 seconds' AND EXISTS (
    SELECT FROM graph_migrator.workers o WHERE o.name = w.name AND o.instance <> w.instance
        AND o.seen_at > greatest(w.started_at, clock_timestamp() - interval '20 seconds') AND w.seen_at > o.started_at)
GROUP BY w.name ORDER BY w.name
""")
"""Not a worker that was killed and started again: its first row was not renewed after the second began."""


def calls(connection: Connection) -> Iterator[Finding]:
    """Calls that no worker has carried out yet, where one waits for code or for long."""
    found = waiting_calls(connection, limit=_MOST_CALLS)
    oldest = next((each for each in found if each.because is not None or each.seconds > LONG_WAIT), None)
    if oldest is not None:
        many = count(len(found), "call") + (" or more" if len(found) == _MOST_CALLS else "")
        yield _warning("calls", f"{many} not begun yet. {oldest.fact}", oldest.way_out or "")


def workers(connection: Connection) -> Iterator[Finding]:
    """Workers that live under one name: each is taken for the other."""
    for row in connection.execute(_NAMESAKES):
        yield _warning(
            "workers",
            f"{row.name} is the name of several workers: what one has lost is looked for in another, and Celery's "
            "remote control reaches any of them",
            "Give each a name of its own: `celery -A graph_migrator worker -n NAME@%h`.",
        )


def types_in_use(connection: Connection, types: dict[str, GraphType]) -> Iterator[Finding]:
    """Graphs whose type this process does not know."""
    used = list(connection.execute(_TYPES).scalars())
    missing = [name for name in used if name not in types]
    if missing:
        found = f"there are graphs of {', '.join(missing)}, which this process does not know"
        yield _warning("types", found, "Name their types in GRAPH_MIGRATOR_TYPES, or install their package.")
    else:
        yield _ok("types", f"known here: {', '.join(types) or 'none'}")


def reachable(connection: Connection, types: dict[str, GraphType]) -> Iterator[Finding]:
    """Graphs at a version that their type does not know here."""
    known = json.dumps({kind.name: (kind.oldest, kind.newest) for kind in types.values()})
    number = connection.execute(_UNREACHABLE, {"known": known, "most": MOST}).scalar_one()
    if number:
        found = f"{_at_most(number, 'graph')} unreachable: at a version that the type does not know here"
        remedy = "`graph-migrator graphs --unreachable`; deploy a release that knows these versions."
        yield _warning("unreachable", found, remedy)


def _at_most(number: int, thing: str) -> str:
    return f"{count(number, thing)} or more" if number >= MOST else count(number, thing)


def _backend(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _ok(check: str, found: str) -> Finding:
    return Finding(check=check, level=Level.OK, found=found)


def _warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, found=found, remedy=remedy)


def _wrong(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.WRONG, found=found, remedy=remedy)
