"""The tables as SQLAlchemy sees them. A test proves that they equal what the schema migrations make."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

metadata = MetaData(schema="graph_migrator")

_Json = dict[str, Any]
_NOW = text("now()")
_CLOCK = text("clock_timestamp()")


class _Base(DeclarativeBase):
    metadata = metadata
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        datetime: DateTime(timezone=True),
        str: Text(),
        float: Double(),
        dict[str, Any]: JSONB(),
        list[Any]: JSONB(),
    }


class Graph(_Base):
    """A versioned graph. `migration_id` is the claim: the migration that owns it."""

    __tablename__ = "graphs"
    __table_args__ = (
        Index(
            "graphs_one_claim_per_migration",
            "migration_id",
            unique=True,
            postgresql_where=text("migration_id IS NOT NULL"),
        ),
        Index("graphs_to_stamp", "id", postgresql_where=text("changed_at IS NULL")),
        Index("graphs_by_version", "graph_type", "version", "slug"),
        Index("graphs_by_type", "graph_type", "slug"),
        Index("graphs_of_owners", "slug", postgresql_where=text("owner_read_only")),
        Index("graphs_partially_migrated", "slug", postgresql_where=text("partially_migrated IS NOT NULL")),
        UniqueConstraint("slug", name="graphs_slug_key"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    slug: Mapped[str]
    graph_type: Mapped[str]
    version: Mapped[int]
    owner_read_only: Mapped[bool] = mapped_column(server_default=text("false"))
    migration_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("graph_migrator.migrations.id", name="graphs_claim_is_a_migration", use_alter=True)
    )
    partially_migrated: Mapped[_Json | None]
    undo_id: Mapped[int | None] = mapped_column(BigInteger)
    config: Mapped[_Json] = mapped_column(server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    changed_at: Mapped[datetime | None] = mapped_column(server_default=_NOW)


class NodeRow(_Base):
    """One node of one graph."""

    __tablename__ = "nodes"
    __table_args__ = (Index("nodes_by_label", "graph_id", "label", "id"),)

    graph_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.graphs.id", ondelete="CASCADE", name="nodes_graph_id_fkey"),
        primary_key=True,
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str]
    properties: Mapped[_Json] = mapped_column(server_default=text("'{}'::jsonb"))


class EdgeRow(_Base):
    """One edge of one graph; its ends are nodes of the same graph."""

    __tablename__ = "edges"
    __table_args__ = (
        *(
            ForeignKeyConstraint(
                ["graph_id", end],
                ["graph_migrator.nodes.graph_id", "graph_migrator.nodes.id"],
                name=f"edges_{end}_is_a_node",
                deferrable=True,
                initially="DEFERRED",
            )
            for end in ("source", "target")
        ),
        Index("edges_by_type", "graph_id", "type", "id"),
        Index("edges_by_source", "graph_id", "source"),
        Index("edges_by_target", "graph_id", "target"),
    )

    graph_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.graphs.id", ondelete="CASCADE", name="edges_graph_id_fkey"),
        primary_key=True,
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]
    target: Mapped[str]
    type: Mapped[str]
    properties: Mapped[_Json] = mapped_column(server_default=text("'{}'::jsonb"))


class Migration(_Base):
    """One run of a plan on one graph. `graph_id` has no foreign key: audit rows outlive their graph."""

    __tablename__ = "migrations"
    __table_args__ = (
        Index(
            "migrations_one_live_per_graph",
            "graph_id",
            unique=True,
            postgresql_where=text("status IN ('queued', 'running', 'pausing', 'paused', 'cancelling')"),
        ),
        Index("migrations_by_graph", "graph_id", "created_at"),
        Index(
            "migrations_by_status",
            "status",
            "graph_id",
            postgresql_where=text(
                "status IN ('queued', 'running', 'pausing', 'paused', 'cancelling', 'failed')"
            ),
        ),
        Index(
            "migrations_for_recovery",
            "deadline",
            postgresql_where=text("status IN ('queued', 'running', 'pausing', 'cancelling')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    graph_id: Mapped[UUID]
    graph_type: Mapped[str]
    from_version: Mapped[int]
    to_version: Mapped[int]
    status: Mapped[str]
    dispatch: Mapped[int] = mapped_column(server_default=text("1"))
    task_id: Mapped[str | None]
    plan: Mapped[list[Any]]
    requested_by: Mapped[str | None]
    reason: Mapped[str | None]
    error_type: Mapped[str | None]
    error_message: Mapped[str | None]
    error_args: Mapped[list[Any] | None]
    deadline: Mapped[datetime]
    redeliveries: Mapped[int] = mapped_column(server_default=text("0"))
    code_mismatches: Mapped[int] = mapped_column(server_default=text("0"))
    code_mismatch_since: Mapped[datetime | None]
    retries_reset_after_id: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class HopAttempt(_Base):
    """One start of one hop: the audit row. It never changes once it is finished."""

    __tablename__ = "hop_attempts"
    __table_args__ = (
        UniqueConstraint(
            "migration_id",
            "to_version",
            "shard",
            "attempt",
            name="hop_attempts_number",
            postgresql_nulls_not_distinct=True,
        ),
        Index(
            "hop_attempts_one_running",
            "migration_id",
            "shard",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("status = 'running'"),
        ),
        Index(
            "hop_attempts_one_success",
            "migration_id",
            "to_version",
            "shard",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("status IN ('succeeded', 'skipped')"),
        ),
        Index("hop_attempts_by_graph", "graph_id", "id"),
        Index("hop_attempts_lost", "worker", "pid", postgresql_where=text("status = 'lost'")),
        Index(
            "hop_attempts_chain",
            "graph_id",
            "link",
            unique=True,
            postgresql_where=text("link IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    migration_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.migrations.id", name="hop_attempts_migration_id_fkey")
    )
    graph_id: Mapped[UUID]
    from_version: Mapped[int]
    to_version: Mapped[int]
    hop_name: Mapped[str]
    fingerprint: Mapped[str]
    shard: Mapped[int | None]
    attempt: Mapped[int]
    dispatch: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=text("'running'"))
    worker: Mapped[str | None]
    pid: Mapped[int | None]
    task_id: Mapped[str | None]
    rows_changed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total: Mapped[int | None] = mapped_column(BigInteger)
    batches: Mapped[int] = mapped_column(server_default=text("0"))
    rows_per_second: Mapped[float | None]
    progress_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    transient: Mapped[bool] = mapped_column(server_default=text("false"))
    error_type: Mapped[str | None]
    error_message: Mapped[str | None]
    error_rows: Mapped[str | None]
    error_line: Mapped[str | None]
    traceback: Mapped[str | None]
    undid: Mapped[UUID | None]
    started_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    finished_at: Mapped[datetime | None]
    link: Mapped[int | None]
    previous: Mapped[bytes | None]
    hash: Mapped[bytes | None]
    digest_before: Mapped[str | None]
    digest_after: Mapped[str | None]


class Loss(_Base):
    """How an attempt's executor was lost, recorded by who saw it."""

    __tablename__ = "losses"

    attempt_id: Mapped[int] = mapped_column(
        BigInteger,
        ForeignKey("graph_migrator.hop_attempts.id", name="losses_attempt_id_fkey", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    because: Mapped[str]
    how: Mapped[str]
    reported_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))


class Checkpoint(_Base):
    """How far a batched hop has come: every row up to `cursor` has the new shape."""

    __tablename__ = "checkpoints"

    migration_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.migrations.id", name="checkpoints_migration_id_fkey"), primary_key=True
    )
    to_version: Mapped[int] = mapped_column(primary_key=True)
    cursor: Mapped[list[Any]]
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Shard(_Base):
    """One range of the rows of a hop in shards, and how far it has come. Removed when the hop is committed."""

    __tablename__ = "shards"
    __table_args__ = (
        Index("shards_in_flight", "migration_id", postgresql_where=text("is_sent AND NOT is_done")),
    )

    migration_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.migrations.id", name="shards_migration_id_fkey"), primary_key=True
    )
    to_version: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    table_name: Mapped[str]
    key: Mapped[list[Any]]
    after: Mapped[list[Any] | None]
    upto: Mapped[list[Any] | None]
    cursor: Mapped[list[Any] | None]
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total: Mapped[int] = mapped_column(BigInteger)
    is_sent: Mapped[bool] = mapped_column(server_default=text("false"))
    is_done: Mapped[bool] = mapped_column(server_default=text("false"))
    digest_before: Mapped[str | None]
    rebuild_id: Mapped[int | None] = mapped_column(BigInteger)


class Rebuild(_Base):
    """What a rebuild hop has staged, or what was kept of its swap."""

    __tablename__ = "rebuilds"
    __table_args__ = (
        Index(
            "rebuilds_one_open",
            "migration_id",
            "to_version",
            unique=True,
            postgresql_where=text("status IN ('staging', 'staged')"),
        ),
        Index("rebuilds_by_graph", "graph_id"),
        Index("rebuilds_to_discard", "undo_until", postgresql_where=text("status = 'kept'")),
        Index("rebuilds_to_remove", "id", postgresql_where=text("status = 'discarded'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    migration_id: Mapped[UUID]
    graph_id: Mapped[UUID]
    from_version: Mapped[int]
    to_version: Mapped[int]
    table_name: Mapped[str]
    fingerprint: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'staging'"))
    cursor: Mapped[list[Any] | None]
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    rows: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    below: Mapped[int | None] = mapped_column(BigInteger)
    swapped_at: Mapped[datetime | None]
    undo_until: Mapped[datetime | None]


class RebuiltRow(_Base):
    """The old and the new values of a row that a rebuild hop has changed; NULL where both are the same."""

    __tablename__ = "rebuilt_rows"

    rebuild_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(primary_key=True)
    old_kind: Mapped[str | None]
    old_source: Mapped[str | None]
    old_target: Mapped[str | None]
    old_properties: Mapped[_Json | None]
    new_kind: Mapped[str | None]
    new_source: Mapped[str | None]
    new_target: Mapped[str | None]
    new_properties: Mapped[_Json | None]


class RebuildChange(_Base):
    """A graph was changed after a swap, which is not taken back then."""

    __tablename__ = "rebuild_changes"
    __table_args__ = (Index("rebuild_changes_by_rebuild", "rebuild_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    rebuild_id: Mapped[int] = mapped_column(BigInteger)


class HopTotal(_Base):
    """Finished attempts of one hop with one outcome, counted by the sweep."""

    __tablename__ = "hop_totals"

    graph_type: Mapped[str] = mapped_column(primary_key=True)
    hop_name: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(primary_key=True)
    buckets: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    seconds: Mapped[float]
    rows_changed: Mapped[int] = mapped_column(BigInteger)


class MetricsState(_Base):
    """How far the attempts are counted, and the last count of migrations and graphs. One row."""

    __tablename__ = "metrics_state"
    __table_args__ = (CheckConstraint("only_row", name="metrics_state_has_one_row"),)

    only_row: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    counted_up_to: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    recovery_buckets: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    recovery_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    counts: Mapped[_Json | None]
    counted_at: Mapped[datetime | None]
    count_took: Mapped[float] = mapped_column(server_default=text("0"))


class SweepLease(_Base):
    """Which process sweeps, and until when the others need not try. One row."""

    __tablename__ = "sweep_lease"
    __table_args__ = (CheckConstraint("only_row", name="sweep_lease_has_one_row"),)

    only_row: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    holder: Mapped[str | None]
    ends_at: Mapped[datetime] = mapped_column(server_default=text("'-infinity'"))


class Archive(_Base):
    """A folder of files that holds audit rows which were removed from the tables."""

    __tablename__ = "archives"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    location: Mapped[str]
    before: Mapped[datetime]
    manifest: Mapped[_Json]
    migrations: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    attempts: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    requests: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    archived_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    archived_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    removing_xid: Mapped[str | None]


class ArchivedGraph(_Base):
    """How many migrations of a graph an archive holds."""

    __tablename__ = "archived_graphs"

    graph_id: Mapped[UUID] = mapped_column(primary_key=True)
    archive_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.archives.id", name="archived_graphs_archive_id_fkey"), primary_key=True
    )
    migrations: Mapped[int] = mapped_column(BigInteger)


class ArchivedLinks(_Base):
    """Neighbouring links of a graph's proof chain that an archive holds."""

    __tablename__ = "archived_links"

    graph_id: Mapped[UUID] = mapped_column(primary_key=True)
    last_link: Mapped[int] = mapped_column(primary_key=True)
    first_link: Mapped[int]
    previous: Mapped[bytes | None]
    hash: Mapped[bytes]
    archive_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.archives.id", name="archived_links_archive_id_fkey")
    )


class Trace(_Base):
    """The OpenTelemetry context in which a migration began."""

    __tablename__ = "traces"

    migration_id: Mapped[UUID] = mapped_column(primary_key=True)
    context: Mapped[_Json]


class Request(_Base):
    """One call of a verb, known by its task id, so that a message delivered twice acts once."""

    __tablename__ = "requests"
    __table_args__ = (
        Index(
            "requests_to_answer",
            text("COALESCE(next_answer_at, settled_at, created_at)"),
            postgresql_where=text("answered_at IS NULL AND (settled_at IS NOT NULL OR outcome IS NOT NULL)"),
        ),
        Index("requests_by_migration", "migration_id"),
        Index("requests_by_time", "created_at", "task_id"),
        Index(
            "requests_refused",
            "graph_id",
            "created_at",
            postgresql_where=text("migration_id IS NULL AND outcome ? 'error'"),
        ),
        Index(
            "requests_of_data",
            "graph_id",
            "created_at",
            postgresql_where=text("verb IN ('repair', 'replace')"),
        ),
    )

    task_id: Mapped[str] = mapped_column(primary_key=True)
    verb: Mapped[str]
    graph_id: Mapped[UUID | None]
    target: Mapped[int | None]
    migration_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("graph_migrator.migrations.id", name="requests_migration_id_fkey")
    )
    outcome: Mapped[_Json | None]
    requested_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    settled_at: Mapped[datetime | None]
    answered_at: Mapped[datetime | None]
    answer_failures: Mapped[int] = mapped_column(server_default=text("0"))
    next_answer_at: Mapped[datetime | None]
    unanswered_because: Mapped[str | None]


class WaitingCall(_Base):
    """A call of `migrate_graph` that no worker has carried out yet, as far as it is known."""

    __tablename__ = "waiting_calls"
    __table_args__ = (Index("waiting_calls_by_graph", "graph_id"),)

    task_id: Mapped[str] = mapped_column(primary_key=True)
    graph_id: Mapped[UUID]
    target: Mapped[int | None]
    requested_by: Mapped[str | None]
    sent_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    refuse_after: Mapped[datetime | None]
    worker: Mapped[str | None]
    because: Mapped[str | None]


class Rollout(_Base):
    """One run of a graph type to one version over many graphs."""

    __tablename__ = "rollouts"
    __table_args__ = (
        Index(
            "rollouts_one_live_per_type",
            "graph_type",
            unique=True,
            postgresql_where=text("status IN ('running', 'held', 'cancelling')"),
        ),
        Index("rollouts_by_start", "started_at"),
        Index("rollouts_automatic", "graph_type", "to_version", "code", postgresql_where=text("automatic")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    graph_type: Mapped[str]
    to_version: Mapped[int]
    direction: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=text("'running'"))
    stage: Mapped[int] = mapped_column(server_default=text("0"))
    strategy: Mapped[_Json]
    max_in_flight: Mapped[int]
    pace: Mapped[int | None]
    hold: Mapped[_Json | None]
    plan: Mapped[list[Any]]
    requested_by: Mapped[str | None]
    reason: Mapped[str | None]
    failures_since: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    progress_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    started_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    finished_at: Mapped[datetime | None]
    automatic: Mapped[bool] = mapped_column(server_default=text("false"))
    code: Mapped[str | None]
    reverses: Mapped[UUID | None] = mapped_column(
        ForeignKey("graph_migrator.rollouts.id", name="rollouts_reverses_fkey")
    )
    dispatch_after: Mapped[datetime | None]
    planned: Mapped[_Json | None]
    sizes: Mapped[_Json | None]


class RolloutStage(_Base):
    """One stage of a rollout, with its members counted by status."""

    __tablename__ = "rollout_stages"

    rollout_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.rollouts.id", name="rollout_stages_rollout_id_fkey"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    pending: Mapped[int] = mapped_column(BigInteger)
    dispatched: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    succeeded: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    skipped: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    promoted_at: Mapped[datetime | None]


class Pack(_Base):
    """Some small graphs of a rollout that one task moves."""

    __tablename__ = "packs"
    __table_args__ = (
        Index("packs_open", "rollout_id", postgresql_where=text("status <> 'closed'")),
        Index("packs_by_end", "rollout_id", "ended_at", postgresql_where=text("done > 0")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    rollout_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.rollouts.id", name="packs_rollout_id_fkey")
    )
    status: Mapped[str] = mapped_column(server_default=text("'sent'"))
    size: Mapped[int]
    done: Mapped[int] = mapped_column(server_default=text("0"))
    first_graph: Mapped[str]
    last_graph: Mapped[str]
    worker: Mapped[str | None]
    sent_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    resends: Mapped[int] = mapped_column(server_default=text("0"))
    resend_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RolloutMember(_Base):
    """A graph of a rollout and how it went. `graph_id` has no foreign key: the row outlives the graph."""

    __tablename__ = "rollout_members"
    __table_args__ = (
        Index(
            "rollout_members_pending",
            "rollout_id",
            "stage",
            "position",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "rollout_members_dispatched",
            "rollout_id",
            "sent_at",
            postgresql_where=text("status = 'dispatched'"),
        ),
        Index("rollout_members_in_order", "rollout_id", "stage", "position"),
        Index(
            "rollout_members_ended",
            "rollout_id",
            "status",
            "stage",
            "position",
            postgresql_where=text("status IN ('succeeded', 'failed', 'skipped')"),
        ),
        Index("rollout_members_left", "graph_id", postgresql_where=text("status IN ('failed', 'skipped')")),
        Index(
            "rollout_members_chains",
            "rollout_id",
            "sent_at",
            postgresql_where=text("status = 'dispatched' AND pack_id IS NULL"),
        ),
        Index(
            "rollout_members_packed",
            "pack_id",
            "position",
            postgresql_where=text("status = 'dispatched' AND pack_id IS NOT NULL"),
        ),
        Index(
            "rollout_members_failed",
            "rollout_id",
            "error_group",
            postgresql_where=text("status = 'failed'"),
        ),
        Index(
            "rollout_members_settled",
            "rollout_id",
            "settled_at",
            postgresql_where=text("status IN ('succeeded', 'failed')"),
        ),
        Index(
            "rollout_members_one_unsettled",
            "graph_id",
            unique=True,
            postgresql_where=text("status IN ('pending', 'dispatched')"),
        ),
    )

    rollout_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.rollouts.id", name="rollout_members_rollout_id_fkey"), primary_key=True
    )
    graph_id: Mapped[UUID] = mapped_column(primary_key=True)
    graph: Mapped[str]
    stage: Mapped[int]
    position: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    number: Mapped[int] = mapped_column(server_default=text("1"))
    request_id: Mapped[UUID | None]
    migration_id: Mapped[UUID | None]
    pack_id: Mapped[UUID | None]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    from_version: Mapped[int]
    row_count: Mapped[int | None] = mapped_column(BigInteger)
    shape: Mapped[str | None]
    error_group: Mapped[str | None]
    error_title: Mapped[str | None]
    crashed: Mapped[bool] = mapped_column(server_default=text("false"))
    note: Mapped[str | None]
    sent_at: Mapped[datetime | None]
    resends: Mapped[int] = mapped_column(server_default=text("0"))
    resend_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]


class RolloutChange(_Base):
    """What an operator or the controller changed, and why. Never changed, never deleted."""

    __tablename__ = "rollout_changes"
    __table_args__ = (
        Index("rollout_changes_by_rollout", "rollout_id", "id"),
        Index("rollout_changes_by_time", "at", "id"),
        Index(
            "rollout_changes_one_per_request",
            "request_id",
            unique=True,
            postgresql_where=text("request_id IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    rollout_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("graph_migrator.rollouts.id", name="rollout_changes_rollout_id_fkey")
    )
    what: Mapped[str]
    before: Mapped[_Json | None]
    after: Mapped[_Json | None]
    who: Mapped[str | None]
    why: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    request_id: Mapped[str | None]


class HealthSignal(_Base):
    """What one health signal said at its latest reading."""

    __tablename__ = "health_signals"

    name: Mapped[str] = mapped_column(primary_key=True)
    level: Mapped[str]
    value: Mapped[float | None]
    slow_limit: Mapped[float | None]
    stop_limit: Mapped[float | None]
    since: Mapped[datetime]
    better_since: Mapped[datetime | None]
    detail: Mapped[str | None]
    measured_at: Mapped[datetime]


class RolloutFleet(_Base):
    """The hold of all rollouts. One row."""

    __tablename__ = "rollout_fleet"
    __table_args__ = (CheckConstraint("only_row", name="rollout_fleet_has_one_row"),)

    only_row: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    held_at: Mapped[datetime | None]
    held_by: Mapped[str | None]
    why: Mapped[str | None]


class ApiToken(_Base):
    """A token for the HTTP API: its digest, never the token."""

    __tablename__ = "api_tokens"
    __table_args__ = (
        Index("api_tokens_by_digest", "digest", unique=True),
        Index("api_tokens_one_of_a_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    digest: Mapped[str]
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None]
    used_at: Mapped[datetime | None]


class ApiSession(_Base):
    """A browser that logged in with a token."""

    __tablename__ = "api_sessions"
    __table_args__ = (Index("api_sessions_by_end", "expires_at"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    token_id: Mapped[UUID] = mapped_column(
        ForeignKey("graph_migrator.api_tokens.id", name="api_sessions_token_id_fkey")
    )
    created_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    expires_at: Mapped[datetime]


class ApiRequest(_Base):
    """A request for a rollout, or for many graphs, and how it was answered."""

    __tablename__ = "api_requests"
    __table_args__ = (Index("api_requests_by_time", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    verb: Mapped[str]
    subject: Mapped[str]
    requested_by: Mapped[str | None]
    outcome: Mapped[_Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class ChangeEvent(_Base):
    """A change of a migration, an attempt or a rollout, kept for an hour for those that follow."""

    __tablename__ = "change_events"

    xid: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, server_default=text("pg_current_xact_id()::text::bigint")
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str]
    graph_id: Mapped[UUID | None]
    migration_id: Mapped[UUID | None]
    rollout_id: Mapped[UUID | None]
    change: Mapped[_Json]
    at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class ChangeFollowers(_Base):
    """Until when somebody follows, and which changes may be missing. One row."""

    __tablename__ = "change_followers"
    __table_args__ = (CheckConstraint("only_row", name="change_followers_has_one_row"),)

    only_row: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    followed_until: Mapped[datetime] = mapped_column(server_default=text("'-infinity'"))
    removed_up_to: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class Worker(_Base):
    """A worker that was seen within a day, renewed by its sweep."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    instance: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    queue: Mapped[str]
    types: Mapped[_Json]
    error: Mapped[str | None]
    pool: Mapped[str]
    processes: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    types_since: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    seen_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class TypePolicy(_Base):
    """What was set as the policy of a graph type; the latest row is in force."""

    __tablename__ = "policies"
    __table_args__ = (
        CheckConstraint("mode IN ('manual', 'automatic')", name="policies_mode_is_known"),
        CheckConstraint("settle_seconds >= 0", name="policies_settle_is_a_time"),
        Index("policies_by_type", "graph_type", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    graph_type: Mapped[str]
    mode: Mapped[str]
    strategy: Mapped[_Json]
    settle_seconds: Mapped[float]
    changed_by: Mapped[str | None]
    why: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class SharedTransaction(_Base):
    """A transaction that the hops of several graphs share, while it is open: no row is ever committed."""

    __tablename__ = "shared_transactions"

    id: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, server_default=text("txid_current()")
    )
