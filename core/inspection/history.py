"""Reading: the state of graphs and the story of their migrations, as pydantic models.

The command line, its JSON and any later HTTP surface read through this module.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from itertools import takewhile
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field
from sqlalchemy import Connection, Engine, RowMapping, text

from graph_migrator.core.errors import GraphPartiallyMigrated, MigrationInFlight, UnknownGraph
from graph_migrator.core.inspection.metrics import current_counts
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.inspection.waiting_calls import WaitingCall, waiting_calls
from graph_migrator.core.recorded_errors import own_error
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import AttemptStatus, MigrationStatus, ReadOnlyReason, loss_phrase
from graph_migrator.core.store.lock_sessions import lock_holders
from graph_migrator.core.time_left import seconds_left

_READ_ONLY = """
CASE WHEN m.status = 'failed' THEN 'error' WHEN g.migration_id IS NOT NULL THEN 'migrating'
     WHEN g.owner_read_only THEN 'owner' END
"""


class GraphSummary(BaseModel):
    """One graph in a list."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    slug: str
    graph_type: str
    version: int
    read_only: ReadOnlyReason | None = Field(description="Why writers are refused; None where they are not.")
    partially_migrated: bool = Field(description="Force-released inside a batched hop.")
    migration_id: UUID | None = Field(description="The migration that owns the graph.")
    status: MigrationStatus | None = Field(description="Of that migration.")
    to_version: int | None = Field(description="Where that migration goes.")
    changed_at: datetime | None = Field(description="When the version last changed.")
    undoable_to: int | None = Field(
        None,
        description="To which version going back restores old values that were kept; None where it cannot.",
    )
    hop: str | None = Field(None, description="Where its migration failed: the hop.")
    error: str | None = Field(None, description="Where its migration failed: the error's type and message.")


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


class ShardState(BaseModel):
    """One shard of the hop that a migration is at."""

    model_config = ConfigDict(frozen=True)

    number: int
    done: int
    total: int = Field(description="Rows that it had when the hop was cut.")
    is_done: bool
    attempt_id: int | None = Field(description="Of its running attempt; None where nobody works on it.")
    worker: str | None
    pid: int | None
    rows_per_second: float | None


class RebuildState(BaseModel):
    """What a rebuild hop has staged beside the graph, or what was kept of the graph's latest swap."""

    model_config = ConfigDict(frozen=True)

    from_version: int
    to_version: int
    status: str = Field(description="`staging`, `staged` (all rows; the swap is left) or `kept`.")
    done: int = Field(description="Rows processed.")
    rows: int = Field(description="Rows changed.")
    undo_until: datetime | None = Field(description="Of kept rows: when they are removed.")

    def phrase(self, undoable_to: int | None) -> str:
        """A sentence for people; `undoable_to` is the graph's."""
        if self.undo_until is None:
            staged = f"{count(self.rows, 'row')} staged beside the graph"
            return f"{staged}, which is whole at v{self.from_version} until they are swapped in."
        until = f"until {self.undo_until:%Y-%m-%d %H:%M:%S %Z}"
        if undoable_to is not None and undoable_to <= self.from_version:
            return f"Going back to v{self.from_version} is one commit {until}."
        kept = f"The old values of v{self.from_version} are kept {until}, but the graph was changed since"
        return f"{kept}: going back runs the hop's reverse."


class GraphState(BaseModel):
    """Everything that Postgres knows about one graph's present."""

    model_config = ConfigDict(frozen=True)

    graph: GraphSummary
    nodes: int | None = Field(description="None where they were not counted.")
    edges: int | None
    migration: MigrationReport | None = Field(description="The one that owns the graph, else the latest.")
    running: Attempt | None = Field(
        description="The attempt that has a running row. Of a hop in shards the latest one, with the rows and the rate "
        "of all shards together."
    )
    shards: tuple[ShardState, ...] = Field(
        (), description="Of the hop that it is at, where that is in shards."
    )
    lost_in_a_row: int = Field(
        0, description="How often its hop lost its executor since the last attempt that ended."
    )
    last_loss: str | None = Field(None, description="How that happened the last time, in words.")
    checkpoint_done: int | None = Field(description="Rows done of a batched hop that stands half-way.")
    rebuild: RebuildState | None = Field(
        None, description="What a rebuild hop has staged, or what was kept of the latest one."
    )
    deadline_in: float | None = Field(
        description="Seconds until recovery redelivers the message, where nothing runs."
    )
    requeued: int = Field(
        description="How often its next hop met a worker whose code is not the planned one."
    )
    requeued_seconds: float | None = Field(None, description="For how long.")
    lock_holders: tuple[str, ...] = Field(description="Who holds the graph's lock at this moment, in words.")
    waiting_calls: tuple[WaitingCall, ...] = Field(
        (), description="Calls that no worker has carried out yet."
    )


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
    rows = _rows(
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


def list_graphs(
    source: Engine | Connection,
    *,
    graph_type: str | None = None,
    version: int | None = None,
    behind: dict[str, int] | None = None,
    oldest: dict[str, int] | None = None,
    unreachable: dict[str, tuple[int, int]] | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[GraphSummary]:
    """Graphs, a page at a time, whatever their number.

    Each list reads along an index. So graphs in a state of their migration come in the order of their id, all others
    in the order of their slug.

    Args:
        source: The database.
        graph_type: Only graphs of this type.
        version: Only graphs at this version; needs `graph_type`.
        behind: Only graphs below the newest version of their type, which is given here by type.
        oldest: With `behind`: the oldest version that each type knows. Graphs below it are unreachable, not behind.
        unreachable: Only graphs whose version is outside of what their type knows: by type, its oldest and newest
            version. Graphs of other types are not among them.
        state: Only graphs whose migration has this status; `idle`, `owner` or `partially-migrated` for those without.
        after: The slug of the last graph of the page before.
        limit: How many at most.

    Raises:
        UnknownGraph: `state` is that of a migration, and `after` is no graph (any more).
    """
    parameters: dict[str, Any] = {"type": graph_type, "after": after, "limit": limit, "state": state}
    conditions = []
    order = "g.slug"
    page = "g.slug > :after"
    match state:
        case None:
            pass
        case "idle":
            conditions.append(
                "g.migration_id IS NULL AND NOT g.owner_read_only AND g.partially_migrated IS NULL"
            )
        case "owner":
            conditions.append("g.migration_id IS NULL AND g.owner_read_only")
        case "partially-migrated":
            conditions.append("g.partially_migrated IS NOT NULL")
        case _:
            conditions.append("m.status = :state")
            order, page = "m.graph_id", "m.graph_id > :after_id"
            if after is not None:
                parameters["after_id"] = find_graph(source, after).id
    if unreachable is not None:
        parameters["known"] = json.dumps(unreachable)
        conditions.append(UNREACHABLE)
    if graph_type is not None:
        conditions.append("g.graph_type = :type")
    if version is not None:
        parameters["version"] = version
        conditions.append("g.version = :version")
    tables = _TABLES
    if state is not None or (behind is None and unreachable is None and version is None):
        conditions += [page] if after is not None else []
    else:
        if behind is not None:
            versions = _behind(behind, oldest or {})
        elif unreachable is not None:
            versions = _outside(source, unreachable)
        else:
            versions = [(graph_type or "", version or 0)]
        pages = _pages(versions, parameters)
        tables = f"FROM (SELECT * FROM ({pages}) pages ORDER BY slug LIMIT :limit) g {_OWNER}"  # noqa: S608 - own text
    if behind is not None and state is not None:
        conditions.append(
            "g.version < coalesce((CAST(:behind AS jsonb) ->> g.graph_type)::integer, 0) "
            "AND g.version >= coalesce((CAST(:oldest AS jsonb) ->> g.graph_type)::integer, 1)"
        )
    parameters |= {"behind": json.dumps(behind), "oldest": json.dumps(oldest or {})}
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    statement = f"{_COLUMNS} {tables} {where} ORDER BY {order} LIMIT :limit"
    return [GraphSummary.model_validate(dict(row)) for row in _rows(source, statement, parameters)]


UNREACHABLE = """
CAST(:known AS jsonb) ? g.graph_type AND g.version NOT BETWEEN
    (CAST(:known AS jsonb) -> g.graph_type ->> 0)::integer AND (CAST(:known AS jsonb) -> g.graph_type ->> 1)::integer
"""
"""Of graphs `g`: those whose version their type does not know; `known` has the oldest and newest version by type."""


def _behind(newest: dict[str, int], oldest: dict[str, int]) -> list[tuple[str, int]]:
    """The versions that are behind, by type."""
    return [
        (kind, version) for kind, limit in newest.items() for version in range(oldest.get(kind, 1), limit)
    ]


_VERSIONS = """
WITH RECURSIVE found AS (
    (SELECT version FROM graph_migrator.graphs WHERE graph_type = :type ORDER BY version LIMIT 1)
    UNION ALL
    SELECT (SELECT g.version FROM graph_migrator.graphs g WHERE g.graph_type = :type AND g.version > f.version
            ORDER BY g.version LIMIT 1) FROM found f WHERE f.version IS NOT NULL
) SELECT version FROM found WHERE version IS NOT NULL
"""
"""The versions that graphs of a type have: one step of the index for each, not one row for each graph."""


def _outside(source: Engine | Connection, known: dict[str, tuple[int, int]]) -> list[tuple[str, int]]:
    """The versions of graphs that their type does not know, by type."""
    return [
        (kind, row["version"])
        for kind, (oldest, newest) in known.items()
        for row in _rows(source, _VERSIONS, {"type": kind})
        if not oldest <= row["version"] <= newest
    ]


def _pages(versions: list[tuple[str, int]], parameters: dict[str, Any]) -> str:
    """The first page of each version. The index by type, version and slug has it in order."""
    pages: list[str] = []
    for n, (kind, version) in enumerate(versions):
        parameters |= {f"type_{n}": kind, f"version_{n}": version}
        pages.append(
            f"(SELECT * FROM graph_migrator.graphs WHERE graph_type = :type_{n} AND version = :version_{n} "  # noqa: S608 - own text
            f"{'' if parameters['after'] is None else 'AND slug > :after'} ORDER BY slug LIMIT :limit)"
        )
    return " UNION ALL ".join(pages) or "SELECT * FROM graph_migrator.graphs WHERE false"


_COLUMNS = f"""
SELECT g.id, g.slug, g.graph_type, g.version, {_READ_ONLY} AS read_only,
       g.partially_migrated IS NOT NULL AS partially_migrated,
       g.migration_id, m.status, m.to_version, g.changed_at,
       CASE WHEN g.undo_id IS NOT NULL
            THEN nullif(graph_migrator.undoable_down_to(g.id), g.version) END AS undoable_to,
       CASE WHEN m.status = 'failed' THEN (SELECT a.hop_name FROM graph_migrator.hop_attempts a
           WHERE a.graph_id = g.id AND a.migration_id = m.id ORDER BY a.id DESC LIMIT 1) END AS hop,
       CASE WHEN m.status = 'failed' THEN concat_ws(': ', m.error_type, m.error_message) END AS error
"""  # noqa: S608 - own text
_OWNER = "LEFT JOIN graph_migrator.migrations m ON m.id = g.migration_id"
_TABLES = f"FROM graph_migrator.graphs g {_OWNER}"
_SUMMARY = f"{_COLUMNS} {_TABLES} "

_WHICH = "WHERE g.id = (SELECT graph_migrator.graph_id_of(:graph))"


def find_graph(source: Engine | Connection, graph: str) -> GraphSummary:
    """One graph by id or slug.

    Raises:
        UnknownGraph: Nothing has it.
    """
    found = _rows(source, _SUMMARY + _WHICH, {"graph": graph})
    if not found:
        raise UnknownGraph(graph)
    return GraphSummary.model_validate(dict(found[0]))


def graph_state(source: Engine | Connection, graph: str, *, count_rows: bool = True) -> GraphState:
    """One graph's present.

    Args:
        source: The database.
        graph: Id or slug.
        count_rows: Count nodes and edges, which reads all of them.

    Raises:
        UnknownGraph: Nothing has this id or slug.
    """
    if isinstance(source, Engine):  # one snapshot: version and migration are of the same moment
        with source.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            return graph_state(connection, graph, count_rows=count_rows)
    summary = find_graph(source, graph)
    row = _rows(
        source,
        """
        SELECT (SELECT count(*) FROM graph_migrator.nodes WHERE :count AND graph_id = :id) AS nodes,
               (SELECT count(*) FROM graph_migrator.edges WHERE :count AND graph_id = :id) AS edges,
               graph_migrator.migration_report(m.id) AS report,
               (SELECT done FROM graph_migrator.checkpoints c WHERE c.migration_id = m.id LIMIT 1) AS checkpoint_done,
               CASE WHEN m.status IN ('queued', 'running')
                    THEN extract(epoch FROM m.deadline - clock_timestamp())::float END AS deadline_in,
               CASE WHEN m.status IN ('queued', 'running') THEN m.code_mismatches ELSE 0 END AS requeued,
               CASE WHEN m.status IN ('queued', 'running')
                    THEN extract(epoch FROM clock_timestamp() - m.code_mismatch_since)::float END AS requeued_seconds
        FROM (SELECT 1) one LEFT JOIN LATERAL (
            SELECT * FROM graph_migrator.migrations m WHERE m.graph_id = :id
            ORDER BY (m.id = CAST(:claim AS uuid)) DESC NULLS LAST, m.created_at DESC LIMIT 1) m ON true
        """,
        {"id": summary.id, "claim": summary.migration_id, "count": count_rows},
    )[0]
    report = MigrationReport.model_validate(row["report"]) if row["report"] else None
    attempts = _attempts(source, [report.migration_id]) if report and report.migration_id else []
    shards = _shards(source, report.migration_id) if report and report.migration_id else []
    running = _running(attempts, shards)
    attempts = [each for each in attempts if each.status is not AttemptStatus.RUNNING]
    lost = list(takewhile(lambda a: a.status is AttemptStatus.LOST, reversed(attempts)))
    return GraphState(
        graph=summary,
        nodes=row["nodes"] if count_rows else None,
        edges=row["edges"] if count_rows else None,
        migration=report,
        running=running,
        shards=tuple(shards),
        lost_in_a_row=len(lost),
        last_loss=loss_phrase(lost[0].lost_because, lost[0].lost_how) if lost else None,
        checkpoint_done=row["checkpoint_done"],
        rebuild=_rebuild(source, summary),
        deadline_in=row["deadline_in"],
        requeued=row["requeued"] or 0,
        requeued_seconds=row["requeued_seconds"],
        lock_holders=tuple(lock_holders(source, summary.id)),
        waiting_calls=tuple(waiting_calls(source, summary.id)),
    )


def _running(attempts: list[Attempt], shards: list[ShardState]) -> Attempt | None:
    at_work = [each for each in attempts if each.status is AttemptStatus.RUNNING]
    if not at_work or at_work[-1].shard is None:
        return at_work[-1] if at_work else None
    rate = sum(each.rows_per_second or 0.0 for each in shards if each.worker is not None)
    together = {
        "done": sum(each.done for each in shards),
        "total": sum(each.total for each in shards),
        "rows_per_second": rate or None,
    }
    return at_work[-1].model_copy(update=together)


_REBUILD = """
SELECT r.from_version, r.to_version, r.status, r.done, r.rows, r.undo_until FROM graph_migrator.rebuilds r
WHERE r.graph_id = :graph AND (r.migration_id = :claim AND r.status IN ('staging', 'staged')
    OR r.status = 'kept' AND r.id = (SELECT g.undo_id FROM graph_migrator.graphs g WHERE g.id = :graph))
ORDER BY r.id DESC LIMIT 1
"""


def _rebuild(source: Engine | Connection, graph: GraphSummary) -> RebuildState | None:
    found = _rows(source, _REBUILD, {"graph": graph.id, "claim": graph.migration_id})
    return RebuildState.model_validate(dict(found[0])) if found else None


_SHARDS = """
SELECT s.number, s.done, s.total, s.is_done, a.id AS attempt_id, a.worker, a.pid, a.rows_per_second
FROM graph_migrator.shards s LEFT JOIN graph_migrator.hop_attempts a
    ON a.migration_id = s.migration_id AND a.to_version = s.to_version AND a.shard = s.number AND a.status = 'running'
WHERE s.migration_id = :migration ORDER BY s.to_version, s.number
"""


def _shards(source: Engine | Connection, migration: UUID) -> list[ShardState]:
    return [ShardState.model_validate(dict(row)) for row in _rows(source, _SHARDS, {"migration": migration})]


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
    rows = _rows(
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
    attempts = _attempts(source, [row["id"] for row in rows])
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
    rows = _rows(
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
    rows = _rows(
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


def partial_hop(source: Engine | Connection, graph_id: UUID) -> dict[str, Any]:
    """The batched hop in whose middle a graph was released: hop, from_version, to_version, done."""
    statement = "SELECT partially_migrated AS hop FROM graph_migrator.graphs WHERE id = :id"
    found: dict[str, Any] = _rows(source, statement, {"id": graph_id})[0]["hop"]
    return found


def require_free(source: Engine | Connection, found: GraphSummary) -> None:
    """Refuse a `migrate_graph` call that a worker would refuse in the graph's present state.

    Raises:
        MigrationInFlight: Another migration owns the graph.
        GraphPartiallyMigrated: It was released in the middle of a hop.
    """
    if found.status is not None and found.status.is_live:
        raise MigrationInFlight(found.slug, str(found.migration_id), found.status, found.to_version or 0)
    if found.partially_migrated:
        half = partial_hop(source, found.id)
        raise GraphPartiallyMigrated(
            found.slug,
            half["hop"],
            half["from_version"],
            half["to_version"],
            half["done"],
            force_released=True,
        )


def traceback_of(source: Engine | Connection, attempt_id: int) -> str | None:
    """The traceback of a failed attempt, for the operator."""
    found = _rows(
        source, "SELECT traceback FROM graph_migrator.hop_attempts WHERE id = :id", {"id": attempt_id}
    )
    return found[0]["traceback"] if found else None


def counts(source: Engine | Connection) -> dict[str, int]:
    """How many migrations have each status, and how many graphs there are (`graphs`).

    Where a count takes long, that of the last minutes, as monitoring shows it.
    """
    if isinstance(source, Engine):
        with source.connect() as connection:
            return counts(connection)
    found = current_counts(source)
    totals = Counter({"graphs": sum(number for _, _, number, _ in found["graphs"])})
    for _, status, number in found["migrations"]:
        totals[status] += number
    return dict(totals)


def attempts_after(source: Engine | Connection, migration: UUID, after: int) -> list[Attempt]:
    """The attempts of a migration that were started after the one with this id, oldest first."""
    return _attempts(source, [migration], after=after)


# A traceback may be long, and nobody reads one through these models.
_NOT_OF_THE_ROW = {"seconds", "lost_because", "lost_how"}
_ATTEMPT_COLUMNS = ", ".join(f"a.{name}" for name in Attempt.model_fields if name not in _NOT_OF_THE_ROW)


def _attempts(source: Engine | Connection, migrations: list[UUID], *, after: int = 0) -> list[Attempt]:
    rows = _rows(
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


def _rows(source: Engine | Connection, statement: str, parameters: dict[str, Any]) -> list[RowMapping]:
    if isinstance(source, Engine):
        with source.connect() as connection:
            return _rows(connection, statement, parameters)
    return list(source.execute(text(statement), parameters).mappings())
