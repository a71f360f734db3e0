"""What to do, decided from what is found in Postgres. Pure: values in, a decision out.

`decide_begin` answers a call of `migrate_graph`, `decide_hop` a delivered `run_hop` message, `decide_recovery` a
migration that a recovery sweep looks at. `core.execution` carries the decisions out.

An attempt counts as lost when its row says `running` and nobody holds its graph's lock (of a shard: the shard's lock):
the lock goes with the session of whoever executes it. `decide_hop` and `decide_recovery` are asked with that lock held,
so a running row that they see is a lost one.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.decision_inputs import BeginState, HopState, RecoveryState
from graph_migrator.core.planning import versions_left
from graph_migrator.core.statuses import SETTLED, MigrationStatus

# ── a call of migrate_graph ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class KnownRequest:
    """This very call was carried out before: answer it again, do nothing again."""


@dataclass(frozen=True)
class NoSuchGraph:
    """Nothing has this id or slug."""


@dataclass(frozen=True)
class IsInFlight:
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
    KnownRequest | NoSuchGraph | IsInFlight | IsPartiallyMigrated | AlreadyThere | ResumeFailed | Begin
)


def decide_begin(state: BeginState, target: int, *, finish_partially_migrated: bool = False) -> BeginDecision:
    """Answer a call of `migrate_graph`.

    Args:
        state: What was found, under the graph's lock unless a live migration owns it.
        target: The version asked for.
        finish_partially_migrated: An operator means to finish a hop that was force-released half-way.
    """
    if state.request_known:
        return KnownRequest()
    if state.graph_id is None:
        return NoSuchGraph()
    if state.partially_migrated is not None and not finish_partially_migrated:
        return IsPartiallyMigrated()
    if state.claim is None:
        return AlreadyThere() if state.version == target and state.partially_migrated is None else Begin()
    if state.status != MigrationStatus.FAILED:
        return IsInFlight()
    if state.to_version == target:
        return ResumeFailed()
    if state.checkpoint is not None:
        return IsPartiallyMigrated()
    # Another target: the new migration replaces the failed one. At its target already, that one is only released.
    return Begin(releases=state.claim)


# ── a delivered run_hop message ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HopMessage:
    """A wake-up: run this hop of this migration, if this dispatch is still the one."""

    migration_id: UUID
    from_version: int
    to_version: int
    dispatch: int
    shard: int | None = None
    """Run this shard of the hop."""


@dataclass(frozen=True)
class Limits:
    """How often a hop may go wrong before its migration fails."""

    crashes: int = 3
    interruptions: int = 20
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
    """Deliver this message again in `seconds`, jittered."""

    seconds: float
    why: str


@dataclass(frozen=True)
class PassOn:
    """The hop is applied; let the chain go on to the next one. Of a shard: it is done."""


@dataclass(frozen=True)
class StopAtBoundary:
    """A pause or cancel was asked for and this is a boundary."""


@dataclass(frozen=True)
class Losses:
    """How often a hop's executor was lost since the hop's last progress.

    Attributes:
        crashes: Its process died and the worker lived on: the hop itself is suspected.
        interruptions: Its worker or its session went, as far as is known: a deploy, a machine, the database.
        how: How the processes died; None where none did.
    """

    crashes: int
    interruptions: int
    how: str | None = None


@dataclass(frozen=True)
class LossLimitReached:
    """The hop's executor was lost too often."""

    losses: Losses
    running_id: int | None
    by_crashes: bool


@dataclass(frozen=True)
class Postpone:
    """The hop's executor was lost again: mark attempt `lost_id`, and let recovery redeliver in `seconds`."""

    lost_id: int
    seconds: float


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
    Answer
    | Ignored
    | Later
    | PassOn
    | StopAtBoundary
    | LossLimitReached
    | Requeue
    | CodeDiffers
    | Postpone
    | Run
)


def decide_hop(state: HopState, message: HopMessage, fingerprint: str | None, limits: Limits) -> HopDecision:
    """Decide what a delivered `run_hop` does. Each line has a test (tests/unit/test_decisions.py).

    Args:
        state: What was found, with the graph's lock held where `state.locked`.
        message: What was delivered.
        fingerprint: This process's code for the hop; None where it has none.
        limits: How often a hop may go wrong.
    """
    status = MigrationStatus(state.status)
    if status in SETTLED:  # also by a message of an old dispatch
        return Answer()
    if state.claim != message.migration_id:
        return Ignored("the graph is owned by another migration")
    if state.dispatch != message.dispatch:
        return Ignored(f"dispatch {message.dispatch} is stale; the current dispatch is {state.dispatch}")
    if status is MigrationStatus.PAUSED:
        return Ignored("the migration is paused")
    if not state.locked:
        if state.running_id is not None and state.running_dispatch == message.dispatch:
            return Ignored("another executor is on it")
        return Later(5.0 if state.shards else 1.0, "the graph's lock is held")
    assert state.version is not None  # noqa: S101 - a claimed graph cannot be deleted
    direction = 1 if state.to_version > state.from_version else -1
    if versions_left(state.version, message.to_version, direction) <= 0:
        if state.next_hop_started:
            return Ignored("this hop is applied and a later one has begun")
        return PassOn()
    if state.version != message.from_version:
        return Ignored(f"the graph is at v{state.version}", must_not_occur=True)
    if message.shard is not None:
        if state.shard is None:
            return Ignored("there is no such shard")
        if state.shard["is_done"]:
            return PassOn()
    losses = count_losses(state)
    if status in {
        MigrationStatus.PAUSING,
        MigrationStatus.CANCELLING,
    }:  # before the limits: an operator's wish goes first
        return StopAtBoundary()
    if (reached := _limit_reached(losses, state.running_id, limits)) is not None:
        return reached
    if state.hop is None or fingerprint != state.hop["fingerprint"]:
        waiting = state.mismatch_seconds < limits.deploy_seconds
        return Requeue(deploy_pause(state.mismatches)) if waiting else CodeDiffers()
    if state.running_id is not None and (pause := loss_pause(losses, limits)):
        return Postpone(state.running_id, pause)
    return Run(state.running_id)


def deploy_pause(tries: int) -> float:
    """Seconds before a message is requeued because this worker lacks its code: a deploy takes minutes."""
    return min(0.5 * 1.5 ** min(tries, 20), 10.0)


def deploy_waited(tries: int) -> float:
    """Seconds that the first `tries` of these pauses took together, about."""
    return sum(map(deploy_pause, range(tries)))


def count_losses(state: HopState | RecoveryState) -> Losses:
    """How often the hop's executor was lost since its last progress, an attempt just found dead included.

    A batched attempt that committed a batch has made progress: counting starts again with it.
    """
    if state.running_id is not None and state.running_batches:
        return Losses(0, 0)
    # A crash that a worker has reported stands in `state.crashes` already.
    just_now = state.running_id is not None and not state.running_crashed
    return Losses(state.crashes, state.interruptions + just_now, state.how_crashed)


def may_try_again(state: HopState, limits: Limits) -> bool:
    """Whether a hop that met a transient error has another try."""
    return state.tries + 1 < limits.transient_tries


def _limit_reached(losses: Losses, running_id: int | None, limits: Limits) -> LossLimitReached | None:
    if losses.crashes >= limits.crashes:
        return LossLimitReached(losses, running_id, by_crashes=True)
    if losses.interruptions >= limits.interruptions:
        return LossLimitReached(losses, running_id, by_crashes=False)
    return None


def loss_pause(losses: Losses, limits: Limits) -> float:
    """Seconds until a hop whose executor was lost runs again.

    0 after the first interruption, then 5 s, doubling, up to 5 minutes: whatever ends workers may need time to pass.
    Where one more crash would reach the limit it is 2 s: the worker whose process died may report that a moment later.
    """
    if losses.interruptions > 1:
        return min(5.0 * 2.0 ** min(losses.interruptions - 2, 20), 300.0)
    may_be_the_last = losses.interruptions and losses.crashes + 1 >= limits.crashes
    return 2.0 if may_be_the_last else 0.0


# ── a recovery sweep ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LeaveAlone:
    """Somebody executes it, or it has changed meanwhile."""


@dataclass(frozen=True)
class Redispatch:
    """Its executor died: mark the attempt lost and send the rest of the chain under a new number, after a pause."""

    pause: float = 0.0


@dataclass(frozen=True)
class Redeliver:
    """It only waits. The same dispatch: a new number would kill the message that still queues."""


RecoveryDecision = LeaveAlone | StopAtBoundary | LossLimitReached | Redispatch | Redeliver


def decide_recovery(state: RecoveryState, limits: Limits) -> RecoveryDecision:
    """Decide what recovery does with a migration whose lock it holds."""
    status = MigrationStatus(state.status)
    if status in {MigrationStatus.PAUSING, MigrationStatus.CANCELLING}:
        return StopAtBoundary()
    if status not in {MigrationStatus.QUEUED, MigrationStatus.RUNNING}:
        return LeaveAlone()
    if state.running_id is not None:  # rows are opened and finished under the lock, so its executor is dead
        losses = count_losses(state)
        reached = _limit_reached(losses, state.running_id, limits)
        return reached or Redispatch(loss_pause(losses, limits))
    return Redeliver() if state.overdue else LeaveAlone()
