"""The present of one graph: its migration, what runs, who holds its lock, and what waits."""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine

from graph_migrator.core.inspection.graphs import GraphSummary, find_graph, rows_of
from graph_migrator.core.inspection.history import Attempt, attempts_of
from graph_migrator.core.inspection.quantities import count
from graph_migrator.core.inspection.waiting_calls import WaitingCall, waiting_calls
from graph_migrator.core.reports import MigrationReport
from graph_migrator.core.statuses import AttemptStatus, loss_phrase
from graph_migrator.core.store.lock_sessions import lock_holders


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
    row = rows_of(
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
    attempts = attempts_of(source, [report.migration_id]) if report and report.migration_id else []
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
    found = rows_of(source, _REBUILD, {"graph": graph.id, "claim": graph.migration_id})
    return RebuildState.model_validate(dict(found[0])) if found else None


_SHARDS = """
SELECT s.number, s.done, s.total, s.is_done, a.id AS attempt_id, a.worker, a.pid, a.rows_per_second
FROM graph_migrator.shards s LEFT JOIN graph_migrator.hop_attempts a
    ON a.migration_id = s.migration_id AND a.to_version = s.to_version AND a.shard = s.number AND a.status = 'running'
WHERE s.migration_id = :migration ORDER BY s.to_version, s.number
"""


def _shards(source: Engine | Connection, migration: UUID) -> list[ShardState]:
    return [
        ShardState.model_validate(dict(row)) for row in rows_of(source, _SHARDS, {"migration": migration})
    ]
