"""The calls that bring and record what callers are answered; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class LoadReport(Call[dict[str, Any] | None], function="migration_report"):
    """One migration, as `MigrationReport` reads it; None where there is none."""

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
class SettledCall:
    """A call that has an outcome, and whose caller may have no answer yet."""

    task_id: str
    succeeded: bool
    migration_id: UUID | None
    recorded: dict[str, Any] | None
    """The outcome of a call that began nothing; others have that of their migration."""
    ended: datetime | None
    """When the migration ended; None for what no retry can change."""


@dataclass(frozen=True, kw_only=True)
class UnansweredCalls(Call[SettledCall], function="unanswered_calls"):
    """The settled calls whose callers may have no answer yet, a row for each.

    `grace` is how many seconds the worker that settled a call has to answer the caller itself.
    """

    grace_seconds: float
    most_calls: int


@dataclass(frozen=True, kw_only=True)
class MarkAnswered(Call[None], function="mark_answered"):
    """Remember that these callers have their result: each for the migration that ended at that time, or None."""

    tasks: tuple[str, ...]
    ended: tuple[datetime | None, ...]


@dataclass(frozen=True, kw_only=True)
class AnswersFailed(Call[None], function="answers_failed"):
    """Remember that these callers could not be answered, and why; each is tried again after a pause that doubles.

    `most` is how many seconds after its outcome a caller is tried; 0 for never again.
    """

    tasks: tuple[str, ...]
    reasons: tuple[str, ...]
    most_seconds: float
