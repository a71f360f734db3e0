"""Waiting for the end of a migration on Postgres, whatever the broker and the result backend are."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

from sqlalchemy import Engine

from graph_migrator.core.errors import GraphBehind, UnknownGraph, WaitTimedOut
from graph_migrator.core.inspection.listener import Listener
from graph_migrator.core.recorded_errors import own_error
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.settings import settings
from graph_migrator.core.statuses import MigrationStatus
from graph_migrator.core.store.connections import make_engine, require_psycopg2
from graph_migrator.core.store.errors import DRIVER_ERRORS, Failure, classify

_POLL_SECONDS: Final = 2.0
"""How long a notification may be missing: behind a pooling proxy, say, none arrives."""


class SentCall(Protocol):
    """What ``migrate_graph.delay(…)`` returned."""

    @property
    def id(self) -> str:
        """The task id."""


Look = Callable[[MigrationReport | None], None]


def wait_for(
    migration: str | UUID | SentCall | GraphBehind,
    timeout: float | None = None,
    *,
    database: Engine | None = None,
    on_look: Look | None = None,
) -> MigrationReport:
    """Wait until a migration has ended.

    Postgres says when that is, by a notification with a slow poll behind it. So it works with every broker and
    result backend, also ``rpc://`` and none, and goes on when workers die or Postgres restarts.

    Args:
        migration: What `migrate_graph.delay` returned; or the id of a migration or call that Postgres knows; or a
            graph (id or slug), for the migration that owns it, else its latest. A call that was sent just now may not
            have begun: pass what `.delay` returned, not the graph. Or the error of `graph_migrator.current`.
        timeout: Seconds; None to wait for ever. A call that never arrives is waited for likewise.
        database: An engine of psycopg2; by default one for ``DATABASE_URL``.
        on_look: Called at each look, at the latest every two seconds, with the report as it stands; None while the
            call has not arrived.

    Returns:
        The final report. For a graph that was never migrated, one with nothing in it to do.

    Raises:
        WaitTimedOut: It has not ended in time; it goes on.
        UnknownGraph: There is no such graph, migration or call.
        GraphMigratorError: The call was refused, or the migration ended without reaching its target.
        Exception: What a hop raised.
    """
    engine = database or make_engine(settings().database_url)
    require_psycopg2(engine, "database")
    name, is_call = _asked(migration)
    ends_at = None if timeout is None else time.monotonic() + timeout
    with closing(_Session(engine)) as session:
        while True:
            found = session.look(name, is_call=is_call)
            if on_look is not None:
                on_look(found.report)
            if found.ended:
                return found.outcome()
            left = _POLL_SECONDS if ends_at is None else ends_at - time.monotonic()
            if left <= 0:
                raise WaitTimedOut(name, float(timeout or 0), found.state)
            session.wait(min(left, _POLL_SECONDS))


def _asked(migration: str | UUID | SentCall | GraphBehind) -> tuple[str, bool]:
    if isinstance(migration, GraphBehind):
        return migration.call or migration.migration or migration.graph, migration.call is not None
    if isinstance(migration, str | UUID):
        return str(migration), False
    return migration.id, True


@dataclass(frozen=True)
class _Found:
    """What one look has found."""

    report: MigrationReport | None = None
    refusal: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.refusal is not None or (self.report is not None and self.report.status.is_settled)

    @property
    def state(self) -> str:
        if self.report is None:
            return "no worker has begun it"
        return f"migration {self.report.migration_id} is {self.report.status}"

    def outcome(self) -> MigrationReport:
        assert self.refusal or self.report  # noqa: S101 - one of the two has ended it
        error = self.refusal or (self.report.error() if self.report is not None else None)
        if error is not None:
            raise error
        return self.report  # type: ignore[return-value]


_CALL = "SELECT migration_id, outcome FROM graph_migrator.requests WHERE task_id = %s"
_MIGRATION = "SELECT id FROM graph_migrator.migrations WHERE id = %s"
_OF_GRAPH = """
SELECT g.id, g.slug, g.graph_type, g.version, coalesce(g.migration_id, (SELECT m.id FROM graph_migrator.migrations m
    WHERE m.graph_id = g.id ORDER BY m.created_at DESC LIMIT 1))
FROM graph_migrator.graphs g WHERE g.id = graph_migrator.graph_id_of(%s)
"""
_REPORT = "SELECT graph_migrator.migration_report(%s)"


class _Session:
    """Reads the state, and sleeps until it changes."""

    def __init__(self, engine: Engine) -> None:
        self._listener = Listener(engine)
        self._migration: UUID | None = None
        self._last: _Found | None = None
        self.wait = self._listener.wait
        self.close = self._listener.close

    def look(self, name: str, *, is_call: bool) -> _Found:
        """Read the state; the last one again where Postgres has gone away since."""
        try:
            self._last = self._look(name, is_call=is_call)
        except DRIVER_ERRORS as error:
            self.close()
            if self._last is None or classify(error) is Failure.PERMANENT:
                raise
        return self._last

    def _look(self, name: str, *, is_call: bool) -> _Found:
        if self._migration is None:
            found = self._of_call(name)
            if found is None and self._migration is None and not is_call:
                found = self._of_migration(name)
            if found is not None or self._migration is None:
                return found or _Found()
        self._listener.follow([self._migration])
        return _Found(MigrationReport.model_validate(self._one(_REPORT, self._migration)[0]))

    def _of_call(self, name: str) -> _Found | None:
        """Find the migration of a call; what the call ended with, where it began none."""
        call = self._one(_CALL, name)
        if call is None:
            return None
        self._migration, outcome = call
        if outcome is not None and "error" in outcome:
            return _Found(refusal=own_error(outcome["error"]["type"], outcome["error"]["args"]))
        if self._migration is None and outcome is not None and "report" in outcome:
            return _Found(MigrationReport.model_validate(outcome["report"]))
        return None

    def _of_migration(self, name: str) -> _Found | None:
        """Find a migration by its id or its graph."""
        with suppress(ValueError):
            found = self._one(_MIGRATION, UUID(name))
            self._migration = found[0] if found else None
        if self._migration is not None:
            return None
        graph = self._one(_OF_GRAPH, name)
        if graph is None:
            raise UnknownGraph(name)
        graph_id, slug, graph_type, version, self._migration = graph
        if self._migration is not None:
            return None
        never = MigrationReport(
            migration_id=None, graph_id=graph_id, graph=slug, graph_type=graph_type,
            status=MigrationStatus.SUCCEEDED, from_version=version, to_version=version, version=version,
        )  # fmt: skip
        return _Found(never)

    def _one(self, statement: str, value: Any) -> Any:
        with self._listener.connection().cursor() as cursor:
            cursor.execute(statement, (value,))
            return cursor.fetchone()
