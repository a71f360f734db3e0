"""Who migrates what, and how it went: the values that the steps of a migration hand to one another.

Everything else in `core.execution`, and the events that follow its commits, depend on this module; it depends on none
of them.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

from graph_migrator.core.decision_inputs import HopState
from graph_migrator.core.decisions import HopMessage, Ignored, Later
from graph_migrator.core.graph_types.context import GraphFacts
from graph_migrator.core.graph_types.definition import DirectedHop
from graph_migrator.core.planning import Step
from graph_migrator.core.reports import MigrationReport

HOST = socket.gethostname()


@dataclass(frozen=True)
class Caller:
    """Who asks, and the id of the message that carries it (None for a direct call)."""

    task_id: str | None = None
    requested_by: str | None = None
    reason: str | None = None
    worker: str | None = None
    """Who is asked, for its refusals."""


@dataclass(frozen=True)
class Worker:
    """Who executes; stands in the audit row."""

    name: str = field(default_factory=lambda: f"inline@{HOST}")
    pid: int = field(default_factory=os.getpid)
    task_id: str | None = None


@dataclass(frozen=True)
class Dispatch:
    """The rest of a migration's chain, to be sent or run. The last task bears `task_id`."""

    migration_id: UUID
    graph: str
    graph_type: str
    number: int
    task_id: str | None
    steps: tuple[Step, ...]

    def messages(self) -> list[HopMessage]:
        """One message for each hop that is left, in order."""
        return [
            HopMessage(self.migration_id, step.from_version, step.to_version, self.number)
            for step in self.steps
        ]


@dataclass(frozen=True)
class Following:
    """The hop that a session which keeps the graph's lock opens with the commit of the hop before."""

    step: Step
    worker: Worker
    state: HopState
    """What it was decided on."""


@dataclass(frozen=True)
class Attempt:
    """An open hop attempt: the row that fences everything its executor writes."""

    id: int
    number: int
    message: HopMessage
    state: HopState
    hop: DirectedHop
    began: float = field(default_factory=time.monotonic)
    following: Following | None = None
    asks_report: bool = True
    """Whether the migration's last commit brings its report."""

    @property
    def shard(self) -> int | None:
        """The shard that it processes; None where it is about the whole hop."""
        return self.message.shard

    @property
    def is_closing(self) -> bool:
        """Whether all shards of the hop are done, and it only ends the hop."""
        return self.shard is None and self.state.shards > 0

    @property
    def stages(self) -> bool:
        """Whether what it changes is staged. A hop that stands half-way in the graph goes on as it began."""
        if self.state.shard is not None:
            return self.state.shard["rebuild_id"] is not None
        return self.hop.rebuild and self.state.cursor is None

    @property
    def is_last(self) -> bool:
        """Whether the migration ends with this attempt."""
        return self.shard is None and self.message.to_version == self.state.to_version

    @cached_property
    def graph(self) -> GraphFacts:
        """The graph as the hop sees it."""
        f = self.state
        assert f.version is not None  # noqa: S101 - a claimed graph cannot be deleted
        return GraphFacts(f.graph_id, f.slug, f.graph_type, f.version, f.config or {})


# ── how applying a hop ends ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Done:
    """The hop is committed, and what it has changed."""

    rows: int
    skipped: bool = False
    report: MigrationReport | None = None
    """Of the migration, where it ended with this hop."""
    opened: int | None = None
    """The attempt of the next hop, where this session has opened that too and keeps the lock."""


@dataclass(frozen=True)
class AttemptFailed:
    """The hop raised, and that is recorded. Without another try its migration has failed too."""

    error: Exception
    retry_in: float | None


class Stopped(Exception):
    """A pause or cancel was carried out between two batches; its transaction is committed."""


class EnoughSeen(Exception):
    """A dry run has tried as many batches as it wanted to: `done` of `total` rows."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(done, total)
        self.done, self.total = done, total


# ── what comes of a delivered message ───────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Applied:
    """The hop is applied; `report` is there after the last one."""

    report: MigrationReport | None = None


@dataclass(frozen=True)
class Failed:
    """The migration has ended with this error; it is recorded."""

    error: Exception


@dataclass(frozen=True)
class Sharded:
    """The hop runs in shards, or one of them has ended: messages to send now. The chain stops here.

    Attributes:
        messages: Of shards, each to be sent by itself.
        closing: The chain from this hop on, once all shards are done: its first message closes the hop.
    """

    messages: tuple[HopMessage, ...] = ()
    closing: Dispatch | None = None


HopOutcome = Applied | Ignored | Later | Failed | Sharded
