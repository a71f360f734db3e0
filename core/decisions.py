"""What to do, decided from what is found in Postgres. Pure: values in, a decision out.

`decide_begin` answers a call of `migrate_graph`, `decide_hop` a delivered `run_hop` message (the design's
message table, line by line), `decide_recovery` a migration that a recovery sweep looks at. `core.execution` carries the
decisions out.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.decision_inputs import BeginState, HopState, RecoveryState
from graph_migrator.core.statuses import SETTLED, MigrationStatus

# ── a call of migrate_graph ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class KnownRequest:
    """This very call was carried out before: answer it again, do nothing again."""


@dataclass(frozen=True)
class NoSuchGraph:
    """Nothing has this id or slug."""


@dataclass(frozen=True)
class InFlight:
    """A live migration owns the graph."""


@dataclass(frozen=True)
class IsPartiallyMigrated:
    """The graph was force-released, or its failed migration stopped, half-way through a batched hop."""


@dataclass(frozen=True)
class AlreadyThere:
    """The graph is at the target and owned by nobody."""


@dataclass(frozen=True)
class ResumeFailed:
    """The graph's failed migration has the same target: go on with it."""


@dataclass(frozen=True)
class Begin:
    """Start a new migration, in place of a failed one where `releases` names it."""

    releases: UUID | None = None


BeginDecision = (
    KnownRequest | NoSuchGraph | InFlight | IsPartiallyMigrated | AlreadyThere | ResumeFailed | Begin
)


def decide_begin(facts: BeginState, target: int, *, finish_partially_migrated: bool = False) -> BeginDecision:
    """Answer a call of `migrate_graph`.

    Args:
        facts: What was found, under the graph's lock unless a live migration owns it.
        target: The version asked for.
        finish_partially_migrated: An operator means to finish a hop that was force-released half-way.
    """
    if facts.request_known:
        return KnownRequest()
    if facts.graph_id is None:
        return NoSuchGraph()
    if facts.partially_migrated is not None and not finish_partially_migrated:
        return IsPartiallyMigrated()
    if facts.claim is None:
        return AlreadyThere() if facts.version == target and facts.partially_migrated is None else Begin()
    if facts.status != MigrationStatus.FAILED:
        return InFlight()
    if facts.to_version == target:
        return ResumeFailed()
    if facts.checkpoint is not None:
        return IsPartiallyMigrated()
    # At the target already: release the failed one, and there is nothing left to migrate.
    return Begin(releases=facts.claim)


# ── a delivered run_hop message ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HopMessage:
    """A wake-up: run this hop of this migration, if this dispatch is still the one."""

    migration_id: UUID
    from_version: int
    to_version: int
    dispatch: int


@dataclass(frozen=True)
class Limits:
    """How often a hop may go wrong before its migration fails."""

    lost_attempts: int = 3
    deploy_seconds: float = 900
    transient_tries: int = 8


@dataclass(frozen=True)
class Answer:
    """The migration is settled: answer the caller with its outcome."""


@dataclass(frozen=True)
class Ignored:
    """Do nothing and store no result."""

    why: str
    must_not_occur: bool = False


@dataclass(frozen=True)
class Later:
    """Deliver this message again in so many seconds."""

    seconds: float
    why: str


@dataclass(frozen=True)
class PassOn:
    """The hop is applied; let the chain go on to the next one."""


@dataclass(frozen=True)
class StopAtBoundary:
    """A pause or cancel was asked for and this is a boundary."""


@dataclass(frozen=True)
class CrashLimitReached:
    """The hop lost its worker too often."""

    lost: int
    running_id: int | None


@dataclass(frozen=True)
class Requeue:
    """This worker's code for the hop is not the planned one; in `seconds` another worker may have it."""

    seconds: float


@dataclass(frozen=True)
class CodeDiffers:
    """No worker with the planned code took the message in time."""


@dataclass(frozen=True)
class Run:
    """Run the hop. `lost_id` is an attempt whose executor died, to be marked first."""

    lost_id: int | None


HopDecision = (
    Answer | Ignored | Later | PassOn | StopAtBoundary | CrashLimitReached | Requeue | CodeDiffers | Run
)


def decide_hop(facts: HopState, message: HopMessage, fingerprint: str | None, limits: Limits) -> HopDecision:
    """Decide what a delivered `run_hop` does. The numbers are those of the design's table.

    Args:
        facts: What was found, with the graph's lock held where `facts.locked`.
        message: What was delivered.
        fingerprint: This process's code for the hop; None where it has none.
        limits: How often a hop may go wrong.
    """
    status = MigrationStatus(facts.status)
    if status in SETTLED:  # 1: also by a message of an old dispatch
        return Answer()
    if facts.claim != message.migration_id:  # 2
        return Ignored("the graph is owned by another migration")
    if facts.dispatch != message.dispatch:
        return Ignored(f"dispatch {message.dispatch} is stale; the current dispatch is {facts.dispatch}")
    if status is MigrationStatus.PAUSED:
        return Ignored("the migration is paused")
    if not facts.locked:
        if facts.running_id is not None and facts.running_dispatch == message.dispatch:  # 3
            return Ignored("another executor is on it")
        return Later(1.0, "the graph's lock is held")  # 4
    assert facts.version is not None  # noqa: S101 - a claimed graph cannot be deleted
    forward = 1 if facts.to_version > facts.from_version else -1
    if (facts.version - message.to_version) * forward >= 0:
        if facts.next_hop_started:  # 5
            return Ignored("this hop is applied and a later one has begun")
        return PassOn()  # 6
    if facts.version != message.from_version:  # 7
        return Ignored(f"the graph is at v{facts.version}", must_not_occur=True)
    lost = lost_attempts(facts)  # 8
    if status in {
        MigrationStatus.PAUSING,
        MigrationStatus.CANCELLING,
    }:  # 9: the crash limit never overrides it
        return StopAtBoundary()
    if lost >= limits.lost_attempts:  # 10
        return CrashLimitReached(lost, facts.running_id)
    if facts.hop is None or fingerprint != facts.hop["fingerprint"]:  # 11
        waiting = facts.mismatch_seconds < limits.deploy_seconds
        return Requeue(deploy_pause(facts.mismatches)) if waiting else CodeDiffers()
    return Run(facts.running_id)  # 12


def deploy_pause(tries: int) -> float:
    """Seconds until another worker is asked for code that this one lacks: a deploy takes minutes."""
    return min(0.5 * 1.5 ** min(tries, 20), 10.0)


def deploy_waited(tries: int) -> float:
    """Seconds that so many pauses took together, at least."""
    return sum(map(deploy_pause, range(tries)))


def lost_attempts(facts: HopState | RecoveryState) -> int:
    """How often the hop lost its worker since its last progress, an attempt just found dead included.

    A batched attempt that committed a batch has made progress: counting starts again with it.
    """
    if facts.running_id is None:
        return facts.lost
    return 0 if facts.running_batches else facts.lost + 1


# ── a recovery sweep ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Nothing:
    """Somebody executes it, or it has changed meanwhile."""


@dataclass(frozen=True)
class Redispatch:
    """Its executor died: mark the attempt lost and send the rest of the chain under a new number."""


@dataclass(frozen=True)
class Redeliver:
    """It only waits. The same dispatch: a new number would kill the message that still queues."""


RecoveryDecision = Nothing | StopAtBoundary | CrashLimitReached | Redispatch | Redeliver


def decide_recovery(facts: RecoveryState, limits: Limits) -> RecoveryDecision:
    """Decide what recovery does with a migration whose lock it holds."""
    status = MigrationStatus(facts.status)
    if status in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
        return StopAtBoundary()
    if status not in {MigrationStatus.QUEUED, MigrationStatus.RUNNING}:
        return Nothing()
    if facts.running_id is not None:  # rows are opened and finished under the lock, so its executor is dead
        lost = lost_attempts(facts)
        return CrashLimitReached(lost, facts.running_id) if lost >= limits.lost_attempts else Redispatch()
    return Redeliver() if facts.overdue else Nothing()
