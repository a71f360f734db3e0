"""The story of a graph: its migrations with their attempts, repairs and refusals, and where older ones are.

The command line, its JSON and the console read through this module, `graphs` and `graph_state`.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field
from sqlalchemy import Connection, Engine

from graph_migrator.core.inspection.graphs import find_graph, rows_of
from graph_migrator.core.recorded_errors import own_error
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import AttemptStatus
from graph_migrator.core.time_left import seconds_left


class Attempt(BaseModel):
    """One start of one hop."""

    model_config = ConfigDict(frozen=True)

    id: int
    migration_id: UUID
    hop_name: str
    from_version: int
    to_version: int
    shard: int | None = Field(
        None, description="The shard that it processed; None for an attempt of the whole hop."
    )
    attempt: int
    dispatch: int
    status: AttemptStatus
    worker: str | None
    pid: int | None
    task_id: str | None
    rows_changed: int
    done: int
    total: int | None
    error_type: str | None
    error_message: str | None
    error_rows: str | None = Field(
        None, description="The row or batch that the error is about, by ids alone."
    )
    error_line: str | None = Field(None, description="The last line of the hop's own code that it passed.")
    undid: UUID | None = Field(
        None, description="The migration whose rebuild hop it took back, by the old values that were kept."
    )
    lost_because: str | None = Field(
        None,
        description="Of a lost attempt: `process` (its process died, its worker lived on), `session`, `operator`; "
        "None where its whole worker went.",
    )
    lost_how: str | None = Field(None, description="The signal or exit code; the operator.")
    started_at: datetime
    finished_at: datetime | None
    seconds: float = Field(description="How long it took, or has taken so far.")
    rows_per_second: float | None = Field(
        None, description="Rows processed by this attempt, over its last seconds."
    )

    @computed_field  # type: ignore[prop-decorator] # mypy does not know computed properties
    @property
    def seconds_left(self) -> float | None:
        """An estimate for a hop that reports its progress; None where it does not."""
        if self.status is not AttemptStatus.RUNNING:
            return None
        return seconds_left(self.done, self.total, self.rows_per_second)


class Repair(BaseModel):
    """A correction of a graph's data while its migration stood failed or paused; see `graph_repair`."""

    model_config = ConfigDict(frozen=True)

    migration_id: UUID
    repaired_at: datetime
    requested_by: str | None
    reason: str | None
    rows: dict[str, int] = Field(description="Rows that were written, by table.")


class MigrationStory(BaseModel):
    """One migration with all its attempts and repairs, oldest first."""

    model_config = ConfigDict(frozen=True)

    report: MigrationReport
    attempts: tuple[Attempt, ...]
    repairs: tuple[Repair, ...] = ()


class Refusal(BaseModel):
    """A call that a worker received and refused; nothing was changed."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    verb: str
    target: int | None
    requested_by: str | None
    refused_at: datetime
    error_type: str
    error: str = Field(description="The sentence that the caller got.")


def refusals(source: Engine | Connection, graph_id: UUID, *, limit: int = 5) -> list[Refusal]:
    """The latest calls for a graph that were refused, oldest first."""
    rows = rows_of(
        source,
        """
        SELECT task_id, verb, target, requested_by, created_at AS refused_at, outcome -> 'error' AS error
        FROM graph_migrator.requests
        WHERE graph_id = :id AND migration_id IS NULL AND outcome ? 'error'
        ORDER BY created_at DESC LIMIT :limit
        """,
        {"id": graph_id, "limit": limit},
    )
    found = []
    for row in reversed(rows):
        error = row["error"]
        sentence = str(own_error(error["type"], error["args"]))
        found.append(Refusal.model_validate({**row, "error_type": error["type"], "error": sentence}))
    return found


def history(
    source: Engine | Connection, graph: str, *, before: UUID | None = None, limit: int = 20
) -> list[MigrationStory]:
    """The latest migrations of a graph with their attempts, oldest first. Also of a deleted graph, by id.

    Args:
        source: The database.
        graph: Id or slug.
        before: Only migrations before this one: the first one of the page that was read last.
        limit: How many at most.

    Raises:
        UnknownGraph: Nothing has or had this id or slug.
    """
    rows = rows_of(
        source,
        """
        SELECT m.id, graph_migrator.migration_report(m.id) AS report FROM graph_migrator.migrations m
        WHERE m.graph_id = coalesce(graph_migrator.graph_id_of(:graph), CAST(:deleted AS uuid))
          AND (CAST(:before AS uuid) IS NULL OR (m.created_at, m.id) <
               (SELECT b.created_at, b.id FROM graph_migrator.migrations b WHERE b.id = :before))
        ORDER BY m.created_at DESC, m.id DESC LIMIT :limit
        """,
        {"graph": graph, "limit": limit, "deleted": _as_id(graph), "before": before},
    )
    if not rows and before is None:
        find_graph(source, graph)
    attempts = attempts_of(source, [row["id"] for row in rows])
    repairs = _repairs(source, [row["id"] for row in rows])
    return [
        MigrationStory(
            report=MigrationReport.model_validate(row["report"]),
            attempts=tuple(a for a in attempts if a.migration_id == row["id"]),
            repairs=tuple(r for r in repairs if r.migration_id == row["id"]),
        )
        for row in reversed(rows)
    ]


class ArchivedPart(BaseModel):
    """Migrations of a graph that were moved to files."""

    model_config = ConfigDict(frozen=True)

    location: str = Field(description="The folder of the archive, as it was named when it was written.")
    migrations: int = Field(description="How many of the graph's migrations it holds.")
    before: datetime = Field(description="All of them ended before this.")
    archived_at: datetime


def archived_parts(source: Engine | Connection, graph: str) -> list[ArchivedPart]:
    """Where the older part of a graph's history is, the latest archive first. Also of a deleted graph, by id."""
    rows = rows_of(
        source,
        """
        SELECT a.location, p.migrations, a.before, a.archived_at
        FROM graph_migrator.archived_graphs p JOIN graph_migrator.archives a ON a.id = p.archive_id
        WHERE p.graph_id = coalesce(graph_migrator.graph_id_of(:graph), CAST(:deleted AS uuid))
        ORDER BY a.archived_at DESC
        """,
        {"graph": graph, "deleted": _as_id(graph)},
    )
    return [ArchivedPart.model_validate(dict(row)) for row in rows]


def _repairs(source: Engine | Connection, migrations: list[UUID]) -> list[Repair]:
    rows = rows_of(
        source,
        """
        SELECT migration_id, created_at AS repaired_at, requested_by, outcome ->> 'reason' AS reason,
               coalesce(outcome -> 'rows', '{}') AS rows
        FROM graph_migrator.requests WHERE migration_id = ANY (:migrations) AND verb = 'repair' ORDER BY created_at
        """,
        {"migrations": migrations},
    )
    return [Repair.model_validate(dict(row)) for row in rows]


def _as_id(graph: str) -> UUID | None:
    try:
        return UUID(graph)
    except ValueError:
        return None


def traceback_of(source: Engine | Connection, attempt_id: int) -> str | None:
    """The traceback of a failed attempt, for the operator."""
    found = rows_of(
        source, "SELECT traceback FROM graph_migrator.hop_attempts WHERE id = :id", {"id": attempt_id}
    )
    return found[0]["traceback"] if found else None


def attempts_after(source: Engine | Connection, migration: UUID, after: int) -> list[Attempt]:
    """The attempts of a migration that were started after the one with this id, oldest first."""
    return attempts_of(source, [migration], after=after)


# A traceback may be long, and nobody reads one through these models.
_NOT_OF_THE_ROW = {"seconds", "lost_because", "lost_how"}

_ATTEMPT_COLUMNS = ", ".join(f"a.{name}" for name in Attempt.model_fields if name not in _NOT_OF_THE_ROW)


def attempts_of(source: Engine | Connection, migrations: list[UUID], *, after: int = 0) -> list[Attempt]:
    """The attempts of migrations, oldest first; `after` is the id of the last one that is left out."""
    rows = rows_of(
        source,
        f"""
        SELECT {_ATTEMPT_COLUMNS}, l.because AS lost_because, l.how AS lost_how,
               extract(epoch FROM coalesce(a.finished_at, clock_timestamp()) - a.started_at)::float AS seconds
        FROM graph_migrator.hop_attempts a
        LEFT JOIN graph_migrator.losses l ON l.attempt_id = a.id AND a.status = 'lost'
        WHERE a.migration_id = ANY (:migrations) AND a.id > :after
        ORDER BY a.id
        """,  # noqa: S608 - own names
        {"migrations": migrations, "after": after},
    )
    return [Attempt.model_validate(dict(row)) for row in rows]
