"""The calls of recovery, of batches, and of whoever needs a report or the lock; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.states import RecoveryState
from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class Candidates(Call[UUID], function="candidates"):
    """The migrations that may need recovery, a row for each."""

    most: int


@dataclass(frozen=True, kw_only=True)
class LoadRecoveryState(Call[RecoveryState | None], function="load_recovery_state"):
    """Take the graph's lock for this transaction and read what recovery decides on; None where it is held."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class Redispatch(Call[None], function="redispatch"):
    """Mark a dead executor's attempt lost and number the chain anew."""

    migration: UUID
    running: int | None
    deadline: float


@dataclass(frozen=True, kw_only=True)
class Redeliver(Call[None], function="redeliver"):
    """Record that the same dispatch is sent again."""

    migration: UUID
    deadline: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Report(Call[dict[str, Any] | None], function="report"):
    """One migration, as `MigrationReport` reads it; None where there is none."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class RemainingChain:
    """The rest of a live migration's chain."""

    graph: str
    graph_type: str
    number: int
    task_id: str | None
    steps: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Remaining(Call[RemainingChain | None], function="remaining"):
    """The rest of a migration's chain; None where it is not live."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class RecordOutcome(Call[None], function="record_outcome"):
    """Record how a call ended that began nothing."""

    task: str
    verb: str
    graph: str
    target: int | None
    outcome: dict[str, Any]
    by: str | None


@dataclass(frozen=True, kw_only=True)
class CountMismatch(Call[None], function="count_mismatch"):
    """Count a delivery to a worker with other code."""

    migration: UUID
    deadline: float


@dataclass(frozen=True, kw_only=True)
class AttemptStatus(Call[str | None], function="attempt_status"):
    """An attempt's status."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class BecomeExecutor(Call[None], function="become_executor"):
    """Name this session the migration's executor."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class TakeLock(Call[None], function="take_lock"):
    """Wait for a graph's lock; SQLSTATE 55P03 where that takes too long."""

    graph: UUID
    wait_ms: int


@dataclass(frozen=True, kw_only=True)
class LockHolders(Call[list[str] | None], function="lock_holders"):
    """Who holds a graph's lock, in words."""

    graph: str


@dataclass(frozen=True, kw_only=True)
class OpenBatch(Call[str], function="open_batch"):
    """Open a batch's transaction with both fences. Returns the migration's status."""

    attempt: int
    migration: UUID
    graph: UUID


@dataclass(frozen=True, kw_only=True)
class SaveBatch(Call[float | None], function="save_batch"):
    """Write the checkpoint, in the transaction of the batch's data. Returns the rows per second of late."""

    attempt: int
    migration: UUID
    to: int
    cursor: Any
    done: int
    rows: int
    deadline: float


@dataclass(frozen=True, kw_only=True)
class SaveProgress(Call[None], function="save_progress"):
    """Write how far an attempt is, for those who watch."""

    attempt: int
    done: int | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class SetTimeout(Call[None], function="set_timeout"):
    """Bound each statement of the session, or of the caller's transaction; 0 for no bound."""

    ms: int
    callers: bool


@dataclass(frozen=True, kw_only=True)
class StampGraphs(Call[int], function="stamp_graphs"):
    """Date the last change of graphs whose executor died before it could. Returns how many."""


@dataclass(frozen=True, kw_only=True)
class TrySweep(Call[bool], function="try_sweep"):
    """Whether this session may sweep now."""


@dataclass(frozen=True, kw_only=True)
class EndSweep(Call[bool], function="end_sweep"):
    """Let another session sweep."""
