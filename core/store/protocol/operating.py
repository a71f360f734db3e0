"""The calls of operators' verbs; see versions/0004_recovery.sql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.decision_inputs import OperatorState
from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class LoadOperatorState(Call[OperatorState | None], function="load_operator_state"):
    """Read all that a verb is decided on; None where nothing has the id or slug."""

    graph: str
    request: str | None


@dataclass(frozen=True, kw_only=True)
class FollowEdge(Call[int], function="follow_edge"):
    """Follow one edge of the state machine. Returns the dispatch."""

    migration: UUID
    from_: str
    to: str
    again: bool
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class RecordVerb(Call[None], function="record_verb"):
    """Record a verb with its outcome, under the id of the message that carried it."""

    task: str
    verb: str
    graph: UUID
    migration: UUID | None
    outcome: dict[str, Any]
    by: str | None


@dataclass(frozen=True, kw_only=True)
class ReleaseMigration(Call[str | None], function="release_migration"):
    """Release a migration's claim. Returns the status that it had."""

    migration: UUID | None
    graph: UUID
    partially_migrated: dict[str, Any] | None
    terminated_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeclareWhole(Call[None], function="declare_whole"):
    """Forget that a graph is partially migrated."""

    graph: UUID


@dataclass(frozen=True, kw_only=True)
class Baseline(Call[None], function="baseline"):
    """Move a graph's version without a hop, and record it as a migration that ran none."""

    migration: UUID
    graph: UUID
    graph_type: str
    from_: int
    to: int
    worker: str
    by: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class OwnerReadOnly:
    """A graph whose owner's read-only flag has just been set, and what it was before."""

    graph_id: UUID
    slug: str
    was: bool


@dataclass(frozen=True, kw_only=True)
class SetOwnerReadOnly(Call[OwnerReadOnly], function="set_owner_read_only"):
    """Set a graph's read-only flag on its owner's behalf."""

    graph: str
    on: bool
