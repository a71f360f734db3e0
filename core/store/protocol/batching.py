"""The calls that bound and record a hop's work between its start and its end; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class OpenBatch(Call[str], function="open_batch"):
    """Open a batch's transaction with both fences. Returns the migration's status."""

    attempt: int
    migration: UUID
    graph: UUID


@dataclass(frozen=True, kw_only=True)
class SaveBatch(Call[float | None], function="save_batch"):
    """Write the checkpoint, in the transaction of the batch's data. Returns the recent rate, in rows per second."""

    attempt: int
    migration: UUID
    to: int
    cursor: Any
    done: int
    rows: int
    deadline_seconds: float


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
class HealthLevel(Call[str], function="health_level"):
    """The worst of the health signals as they were last read: good, slow or stop; see versions/0005_rollouts.sql."""
