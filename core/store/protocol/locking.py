"""The calls about a graph's lock and the session that holds it; see versions 0002 and 0004 of the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class TakeLock(Call[None], function="take_lock"):
    """Wait for a graph's lock; SQLSTATE 55P03 where that takes too long."""

    graph: UUID
    wait_ms: int


@dataclass(frozen=True, kw_only=True)
class BecomeExecutor(Call[None], function="become_executor"):
    """Name this session the migration's executor."""

    migration: UUID


@dataclass(frozen=True, kw_only=True)
class ReleaseLock(Call[dict[str, Any] | None], function="release_lock", prepared=True):
    """Release the graph's lock, and bring the report of `migration` where one is named."""

    graph: UUID
    stamp: bool
    migration: UUID | None = None


@dataclass(frozen=True, kw_only=True)
class TerminateHolders(Call[int], function="terminate_holders"):
    """End the sessions that hold a graph's lock. Returns how many."""

    graph: UUID
