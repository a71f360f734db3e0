"""The calls of recovery; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.decision_inputs import RecoveryState
from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class RecoveryCandidates(Call[UUID], function="recovery_candidates"):
    """The migrations that may need recovery, a row for each."""

    most_migrations: int


@dataclass(frozen=True, kw_only=True)
class LockAndLoadStalled(Call[RecoveryState | None], function="lock_and_load_stalled"):
    """Take the graph's lock for this transaction and read what recovery decides on; None where it is held."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class RecordRedispatch(Call[None], function="record_redispatch"):
    """Mark a dead executor's attempt lost and number the chain anew."""

    migration: UUID
    running: int | None
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class RecordRedelivery(Call[None], function="record_redelivery"):
    """Record that the same dispatch is sent again."""

    migration: UUID
    deadline_seconds: float
    most_seconds: float


@dataclass(frozen=True, kw_only=True)
class RemainingChain:
    """The rest of a live migration's chain."""

    graph: str
    graph_type: str
    number: int
    task_id: str | None
    steps: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class LoadRemainingChain(Call[RemainingChain | None], function="remaining_chain"):
    """The rest of a migration's chain; None where it is not live."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class ReportDeath(Call[int | None], function="report_death"):
    """Record how a process of a living worker died. Returns the attempt that it was at; None where it was at none."""

    worker: str
    pid: int
    how: str
    alive_seconds: float


@dataclass(frozen=True, kw_only=True)
class ExplainLoss(Call[None], function="explain_loss"):
    """Record that a lost attempt's session was ended, by the process that had it."""

    attempt: int
    how: str


@dataclass(frozen=True, kw_only=True)
class StampGraphs(Call[int], function="stamp_graphs"):
    """Date the last change of graphs whose executor died before it could. Returns how many."""


@dataclass(frozen=True, kw_only=True)
class TrySweep(Call[bool], function="try_sweep"):
    """Whether this session may sweep now; with a holder only while that has the lease, for `seconds`."""

    holder: str | None = None
    seconds: float = 0


@dataclass(frozen=True, kw_only=True)
class EndSweep(Call[bool], function="end_sweep"):
    """Let another session sweep."""
