"""The calls that begin a migration, run its hops and record how they went; see versions/0002_protocol.sql."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from graph_migrator.core.decision_inputs import BeginState, HopState
from graph_migrator.core.store.protocol.call import Call


@dataclass(frozen=True, kw_only=True)
class LockAndLoadGraph(Call[BeginState], function="lock_and_load_graph", prepared=True):
    """Wait for the graph's lock and read what beginning a migration is decided on."""

    graph: str
    request: str | None
    wait_ms: int
    session: bool


@dataclass(frozen=True, kw_only=True)
class BeginMigration(Call[None], function="begin_migration", prepared=True):
    """Write request, migration and claim."""

    migration: UUID
    graph: UUID
    graph_type: str
    from_: int
    to: int
    plan: list[dict[str, Any]]
    release: UUID | None
    request: str | None
    target: int | None
    by: str | None
    reason: str | None
    deadline_seconds: float
    unlock: bool
    status: str = "queued"


@dataclass(frozen=True, kw_only=True)
class OpenedFirst:
    """The first attempt of a migration that has just begun, and its graph as it was found under the lock."""

    attempt_id: int
    slug: str
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BeginAndOpen(Call[OpenedFirst | None], function="begin_and_open", prepared=True):
    """Begin a migration and open its first hop; None, and nothing is written, where the graph is not as it was read."""

    migration: UUID
    graph: UUID
    graph_type: str
    from_: int
    to: int
    plan: list[dict[str, Any]]
    request: str | None
    by: str | None
    reason: str | None
    deadline_seconds: float
    next_to: int
    hop: str
    fingerprint: str
    worker: str
    pid: int
    task: str | None


@dataclass(frozen=True, kw_only=True)
class BeginPacked(BeginAndOpen, function="begin_packed", prepared=True):
    """The same for a graph of a pack; None also where the pack is to begin nothing more."""

    rollout: UUID
    pack: UUID
    number: int
    since: datetime


@dataclass(frozen=True, kw_only=True)
class RetryMigration(Call[int], function="retry_migration"):
    """Run a failed migration again: a new dispatch, today's plan, counters at zero. Returns the dispatch."""

    migration: UUID
    plan: list[dict[str, Any]]
    request: str | None
    verb: str
    target: int | None
    by: str | None
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class LockAndLoadHop(Call[HopState | None], function="lock_and_load_hop", prepared=True):
    """Try the graph's lock and read what a delivered message is decided on; None where there is no such migration."""

    migration: UUID
    to: int
    dispatch: int
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class OpenedAttempt:
    """The row of an attempt that has just been opened, and its number among those of its hop."""

    attempt_id: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class OpenHop(Call[OpenedAttempt | None], function="open_hop", prepared=True):
    """Open a hop attempt and become its executor; None where the migration has changed since it was read."""

    migration: UUID
    graph: UUID
    status: str
    dispatch: int
    lost: int | None
    from_: int
    to: int
    hop: str
    fingerprint: str
    worker: str
    pid: int
    task: str | None
    done: int
    deadline_seconds: float
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class LookedAtHop:
    """What was found for a delivered message, and the attempt that was opened with it in the plain case."""

    facts: dict[str, Any]
    attempt_id: int | None
    attempt: int | None

    @property
    def state(self) -> HopState | None:
        """What the message is decided on; None where there is no such migration."""
        return None if self.facts["graph_id"] is None else HopState.from_json(self.facts)

    @property
    def opened(self) -> OpenedAttempt | None:
        """The attempt; None where none was opened."""
        if self.attempt_id is None or self.attempt is None:
            return None
        return OpenedAttempt(attempt_id=self.attempt_id, attempt=self.attempt)


@dataclass(frozen=True, kw_only=True)
class LockAndOpenHop(Call[LookedAtHop], function="lock_and_open_hop", prepared=True):
    """`LockAndLoadHop`, and `OpenHop` with it in the plain case.

    `steps` is what this process would plan for the hop, by graph type, where it may be opened before all is known.
    """

    migration: UUID
    to: int
    dispatch: int
    steps: dict[str, dict[str, Any]]
    worker: str
    pid: int
    task: str | None
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class FinishHop(Call[None], function="finish_hop", prepared=True):
    """End a hop in the transaction of its data: the fences, the attempt, the version, perhaps the migration."""

    attempt: int
    migration: UUID
    graph: UUID
    from_: int
    to: int
    status: str
    rows: int
    done: int | None
    last: bool
    callers: bool
    deadline_seconds: float
    checkpoint: bool
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class FinishAndOpen(Call[None], function="finish_and_open", prepared=True):
    """End a hop and open the next one in the same transaction, unless an operator asks for something."""

    attempt: int
    migration: UUID
    graph: UUID
    from_: int
    to: int
    status: str
    rows: int
    deadline_seconds: float
    next_to: int
    hop: str
    fingerprint: str
    worker: str
    pid: int
    task: str | None


@dataclass(frozen=True, kw_only=True)
class ResumeExecutor(Call[int | None], function="resume_executor", prepared=True):
    """Become the executor of what `FinishAndOpen` has opened. Returns the attempt; None where there is none."""

    migration: UUID
    graph: UUID


@dataclass(frozen=True, kw_only=True)
class FailAttempt(Call[bool], function="fail_attempt"):
    """Record an attempt that raised. False where somebody else has settled it: then nothing is written."""

    attempt: int
    migration: UUID
    graph: UUID
    transient: bool
    final: bool
    type: str
    message: str
    args: list[Any] | None
    traceback: str
    deadline_seconds: float
    rows: str | None = None
    line: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoadAttemptStatus(Call[str | None], function="load_attempt_status"):
    """An attempt's status."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class FailBetweenHops(Call[bool], function="fail_between_hops"):
    """Fail a migration between two hops. False where it has changed since it was read: then nothing is written."""

    migration: UUID
    dispatch: int
    lost: int | None
    type: str
    message: str
    args: list[Any] | None


@dataclass(frozen=True, kw_only=True)
class CountMismatch(Call[None], function="count_mismatch"):
    """Count a delivery to a worker with other code."""

    migration: UUID
    deadline_seconds: float


@dataclass(frozen=True, kw_only=True)
class StopMigration(Call[str | None], function="stop_migration"):
    """Do what an operator asked for. Returns the new status; None where nothing is asked any more."""

    migration: UUID
    attempt_becomes: str
