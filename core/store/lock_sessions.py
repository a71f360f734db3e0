"""The sessions around a graph's lock: who holds it, and who waits for it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

_STRINGS: Final = re.compile(r"\$(\w*)\$.*?(?:\$\1\$|$)|'(?:[^']|'')*(?:'|$)", re.DOTALL)
_NUMBERS: Final = re.compile(r"(?<![\w$:.])\d+(?:\.\d+)?\b")

_SESSIONS = text("""
SELECT l.pid, a.application_name AS application, coalesce(a.usename, x.owner)::text AS "user",
       coalesce(a.client_hostname, host(a.client_addr)) AS host, l.granted AS holds,
       l.mode = 'ExclusiveLock' AS exclusive,
       coalesce(a.xact_start, a.query_start, x.prepared, a.backend_start) AS since,
       a.state, a.query AS statement, x.gid AS prepared,
       CASE WHEN a.state LIKE 'idle%' THEN extract(epoch FROM clock_timestamp() - a.state_change)::float END AS idle
FROM (SELECT graph_migrator.lock_key(graph_migrator.graph_id_of(CAST(:graph AS text))) AS key) graph
JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1
  AND l.classid::bigint = (graph.key >> 32) & 4294967295 AND l.objid::bigint = graph.key & 4294967295
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_prepared_xacts x ON l.pid IS NULL AND '-1/' || x.transaction = l.virtualtransaction
ORDER BY l.granted DESC, 7, l.pid
""")


class LockSession(BaseModel):
    """One session, or prepared transaction, that holds a graph's lock or waits for it."""

    model_config = ConfigDict(frozen=True)

    pid: int | None = Field(description="The backend; None for a prepared transaction.")
    application: str | None
    user: str | None
    host: str | None = Field(description="The client's machine, as Postgres sees it.")
    holds: bool = Field(description="False where it waits.")
    exclusive: bool = Field(description="An executor, or a begin; a writer's lock is shared.")
    since: datetime | None = Field(description="When its transaction, else its statement, began.")
    state: str | None
    idle: float | None = Field(None, description="Seconds since its last statement, where it runs none.")
    statement: str | None = Field(description="The statement it runs or ran last, its values left out.")
    prepared: str | None = Field(description="The name of the prepared transaction.")

    def describe(self) -> str:
        """One phrase for an operator."""
        since = f" since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if self.since else ""
        if self.prepared is not None:
            return f"prepared transaction {self.prepared!r} of {self.user}{since}"
        who = self.application or "no application_name"
        whose = "@".join(part for part in (self.user, self.host) if part)
        shown = f"pid {self.pid} ({who}{', ' if whose else ''}{whose}){since}"
        if self.state:
            shown += f", {self.state}"
        if self.statement:
            shown += f": {self.statement}" if self.state == "active" else f", last ran: {self.statement}"
        return shown


def lock_sessions(source: Engine | Connection, graph: UUID | str) -> list[LockSession]:
    """Who holds a graph's lock and who waits for it, holders first; not this session.

    Args:
        source: The database.
        graph: Id or slug.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return lock_sessions(connection, graph)
    rows = source.execute(_SESSIONS, {"graph": str(graph)}).mappings()
    return [LockSession.model_validate(_shown(dict(row))) for row in rows]


def lock_holders(source: Engine | Connection, graph: UUID | str) -> list[str]:
    """Who holds a graph's lock, this session apart: a phrase for each."""
    return [each.describe() for each in lock_sessions(source, graph) if each.holds]


def without_values(statement: str, *, longest: int = 160) -> str:
    """A statement as it may be shown: drivers fill parameters in, so every literal becomes `…`."""
    bare = _NUMBERS.sub("…", _STRINGS.sub("'…'", statement))
    shown = " ".join(bare.split())
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    statement = row["statement"]
    return {**row, "statement": without_values(statement) if statement else None}
