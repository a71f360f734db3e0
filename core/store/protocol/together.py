"""The calls of graphs whose hops share their transactions; see versions/0002_protocol.sql and 0005_rollouts.sql."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from graph_migrator.core.store.protocol.call import Call
from graph_migrator.core.store.protocol.migrating import BeginAndOpen


@dataclass(frozen=True, kw_only=True)
class BeginTogether(Call[list[dict[str, Any] | None]], function="begin_together", prepared=True):
    """Begin the migrations of several graphs of a pack, which have one plan, and open the first hop of each.

    Returns, in their order, the columns of an `OpenedFirst`; None for a graph with which `BeginPacked` would begin
    nothing, or `BeginAndOpen` where no rollout is named.
    """

    migrations: tuple[UUID, ...]
    graphs: tuple[UUID, ...]
    requests: tuple[str | None, ...]
    numbers: tuple[int, ...]
    graph_type: str
    from_: int
    to: int
    plan: list[dict[str, Any]]
    by: str | None
    reason: str | None
    deadline_seconds: float
    next_to: int
    hop: str
    fingerprint: str
    worker: str
    pid: int
    task: str | None
    rollout: UUID | None = None
    pack: UUID | None = None
    since: datetime | None = None

    @classmethod
    def of(cls, calls: Sequence[BeginAndOpen], numbers: Sequence[int] = (), **rollout: Any) -> Self:
        """The calls as one. They differ in migration, graph and request alone."""
        own = ("migration", "graph", "request")
        common = {name: value for name, value in vars(calls[0]).items() if name not in own}
        return cls(
            migrations=tuple(each.migration for each in calls),
            graphs=tuple(each.graph for each in calls),
            requests=tuple(each.request for each in calls),
            numbers=tuple(numbers),
            **common,
            **rollout,
        )


@dataclass(frozen=True, kw_only=True)
class TurnTo(Call[None], function="turn_to", prepared=True):
    """Give the open transaction to the next of the migrations that share it; `before` had it, None for the first.

    A statement that takes longer than `ms` is ended.
    """

    before: UUID | None
    migration: UUID
    ms: int


@dataclass(frozen=True, kw_only=True)
class FinishTogether(Call[None], function="finish_together", prepared=True):
    """End a hop of several graphs, and open the next one of each; without `next_to`, end their migrations."""

    attempts: tuple[int, ...]
    migrations: tuple[UUID, ...]
    graphs: tuple[UUID, ...]
    statuses: tuple[str, ...]
    rows: tuple[int, ...]
    from_: int
    to: int
    deadline_seconds: float
    next_to: int | None
    hop: str | None
    fingerprint: str | None
    worker: str
    pid: int
    task: str | None


@dataclass(frozen=True, kw_only=True)
class ResumeTogether(Call[list[int]], function="resume_together", prepared=True):
    """Become the executor of what `FinishTogether` has opened. Returns the attempts, in the order of the migrations."""

    migrations: tuple[UUID, ...]
    graphs: tuple[UUID, ...]


@dataclass(frozen=True, kw_only=True)
class ReleaseTogether(Call[None], function="release_together", prepared=True):
    """Release the locks of graphs whose migrations have ended together, and date their last change."""

    graphs: tuple[UUID, ...]


@dataclass(frozen=True, kw_only=True)
class PartCompany(Call[None], function="part_company"):
    """End the open attempts of graphs whose shared transaction was rolled back: each hop runs again by itself."""

    migrations: tuple[UUID, ...]
    why: str
