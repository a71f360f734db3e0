"""What is decided on: one frozen dataclass for each state that the protocol's functions read in one go.

The fields are the OUT columns of the function that each docstring names, in the database's own order; a test compares
them with `pg_proc`. Nothing here knows a database, so decisions are tested with literals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.planning import Step


@dataclass(frozen=True, kw_only=True)
class BeginState:
    """What `graph_migrator.lock_and_load_graph` read: a graph, the migration that owns it, and this very call.

    Where nothing has the id or slug, `graph_id` is None and so is all of the graph. `status` up to `checkpoint`
    describe the migration that owns the graph; None where no migration does.
    """

    graph_id: UUID | None
    slug: str
    graph_type: str
    version: int
    claim: UUID | None = None
    partially_migrated: dict[str, Any] | None = None
    status: str | None = None
    dispatch: int | None = None
    from_version: int | None = None
    to_version: int | None = None
    plan: list[dict[str, Any]] | None = None
    started: bool | None = None
    checkpoint: dict[str, Any] | None = None
    request_known: bool = False
    request_migration: UUID | None = None
    request_outcome: dict[str, Any] | None = None
    locked: bool
    """Whether this session holds the graph's lock now. A graph that a live migration owns is not locked."""
    undoable_to: int | None = None
    """To which version it can go back by old values that were kept, without its hops' code; None where it cannot."""

    @property
    def graph(self) -> UUID:
        """The graph's id, once it is known that there is one."""
        assert self.graph_id is not None  # noqa: S101 - `decide_begin` answers NoSuchGraph before
        return self.graph_id

    @property
    def owner(self) -> UUID:
        """The migration that owns the graph, once it is known that there is one."""
        assert self.claim is not None  # noqa: S101 - `decide_begin` looks at the claim before
        return self.claim

    @property
    def steps(self) -> tuple[Step, ...]:
        """The plan of the migration that owns the graph."""
        return tuple(map(Step.from_json, self.plan or ()))


@dataclass(frozen=True, kw_only=True)
class HopState:
    """What `graph_migrator.lock_and_load_hop` read for a delivered message."""

    graph_id: UUID
    slug: str
    graph_type: str
    config: dict[str, Any] | None
    version: int | None
    """None where the graph has been deleted since; then no migration owns it."""
    claim: UUID | None
    status: str
    dispatch: int
    from_version: int
    to_version: int
    task_id: str | None
    hop: dict[str, Any] | None
    """The planned step that the message names; None where the plan has none."""
    locked: bool
    running_id: int | None = None
    running_to: int | None = None
    running_dispatch: int | None = None
    running_batches: int | None = None
    running_crashed: bool = False
    next_hop_started: bool = False
    interruptions: int = 0
    crashes: int = 0
    how_crashed: str | None = None
    tries: int = 0
    mismatches: int = 0
    mismatch_seconds: float = 0.0
    cursor: Any = None
    done: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_args: list[Any] | None = None
    shards: int = 0
    """How many shards the hop was cut into; 0 where it was not."""
    shard: dict[str, Any] | None = None
    """The row of the shard that the message names; of a hop that was cut, its first one."""
    undo: int | None = None
    """The swap of a rebuild hop that this hop takes back by the old values, which were kept."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HopState:
        """The state that was read as JSON; names that this release does not know are left out."""
        known = {name: values[name] for name in cls.__dataclass_fields__}
        ids = {name: known[name] and UUID(known[name]) for name in ("graph_id", "claim")}
        return cls(**known | ids)

    @property
    def hop_name(self) -> str:
        """The planned hop's name."""
        return str((self.hop or {}).get("name", "?"))

    @property
    def planned_fingerprint(self) -> str:
        """The planned hop's code."""
        return str((self.hop or {}).get("fingerprint", ""))


@dataclass(frozen=True, kw_only=True)
class RecoveryState:
    """What `graph_migrator.lock_and_load_stalled` read, with the graph's lock held for the transaction."""

    graph_id: UUID
    status: str
    overdue: bool
    dispatch: int
    running_id: int | None
    running_batches: int | None
    running_crashed: bool
    hop_name: str | None
    hop_to: int | None
    interruptions: int
    crashes: int
    how_crashed: str | None


@dataclass(frozen=True, kw_only=True)
class DeadShardState(RecoveryState):
    """What `graph_migrator.lock_and_load_dead_shard` read, with the shard's locks held for the transaction."""

    hop_to: int
    migration_id: UUID
    hop_from: int
    shard: int


@dataclass(frozen=True, kw_only=True)
class OperatorState:
    """What `graph_migrator.load_operator_state` read for an operator's verb.

    `status` up to `checkpoint` describe the migration that owns the graph; None where no migration does.
    """

    graph_id: UUID
    slug: str
    graph_type: str
    version: int
    partially_migrated: dict[str, Any] | None
    migration_id: UUID | None
    status: str | None
    dispatch: int | None
    to_version: int | None
    plan: list[dict[str, Any]] | None
    checkpoint: dict[str, Any] | None
    known: bool
    known_outcome: dict[str, Any] | None

    @property
    def owner(self) -> UUID:
        """The migration that owns the graph, once it is known that there is one."""
        assert self.migration_id is not None  # noqa: S101 - its status was looked at before
        return self.migration_id

    @property
    def steps(self) -> tuple[Step, ...]:
        """The plan of the migration that owns the graph."""
        return tuple(map(Step.from_json, self.plan or ()))
