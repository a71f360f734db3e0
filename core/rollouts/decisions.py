"""What the controller does next, decided from what it found in Postgres. Pure: values in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graph_migrator.core.planning import versions_left
from graph_migrator.core.rollouts.breaker import Tripped
from graph_migrator.core.rollouts.error_groups import ErrorGroup, error_group
from graph_migrator.core.rollouts.statuses import (
    ENDS_BY_ITSELF,
    HoldReason,
    MemberStatus,
    PackStatus,
    RolloutStatus,
)
from graph_migrator.core.statuses import MigrationStatus

# ── the rollout ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RolloutFacts:
    """What the controller found, with the rollout's row and the hold of the fleet locked.

    Attributes:
        status: Of the rollout.
        held_for: Why it is held; None where it is not.
        fleet_held: All rollouts are held.
        changed_hops: Hops whose code here is not the frozen one.
        window_open: It may dispatch at this time.
        stop_signal: A health signal that says stop, with value and limit; None where none does.
        breaker: Failures that pass a limit.
        stalled_seconds: How long no graph in flight has committed anything; 0 where nothing is in flight.
        stall_limit: How long that may last.
        stage: The open stage; 0 before the first one.
        stages: How many there are.
        stage_closed: The open stage was seen to have ended.
        baked: It has stood for its time since then.
        gate_open: Nothing has to be promoted after it, or it was.
        pending: Members of the open stage and of those before it that wait.
        in_flight: Units sent and not ended: open packs, and members with a chain of their own, without those that an
            operator paused.
        packed: Members that packs hold and that have not settled.
        paused: Members whose migration an operator paused.
        waiting_for_code: Members in flight whose next hop no worker had the planned code for.
        failed: Failed members of all stages.
        max_in_flight: How many may be in flight, under the load of this moment.
        rate_allows: How many may be sent at this moment by the rate; None where none is set.
    """

    status: RolloutStatus
    held_for: HoldReason | None = None
    fleet_held: bool = False
    changed_hops: tuple[str, ...] = ()
    window_open: bool = True
    stop_signal: dict[str, Any] | None = field(default=None, hash=False)
    breaker: Tripped | None = None
    stalled_seconds: float = 0.0
    stall_limit: float = 1_800.0
    stage: int = 0
    stages: int = 1
    stage_closed: bool = False
    baked: bool = False
    gate_open: bool = True
    pending: int = 0
    in_flight: int = 0
    packed: int = 0
    paused: int = 0
    waiting_for_code: int = 0
    failed: int = 0
    max_in_flight: int = 8
    rate_allows: int | None = None


@dataclass(frozen=True)
class Hold:
    """Stop dispatching, for a reason and with its evidence."""

    reason: HoldReason
    evidence: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Resume:
    """The reason of the hold is gone."""


@dataclass(frozen=True)
class OpenStage:
    """Let the members of this stage be dispatched."""

    number: int


@dataclass(frozen=True)
class CloseStage:
    """Every member of the open stage has settled: its bake begins."""

    number: int


@dataclass(frozen=True)
class DispatchMembers:
    """Send this many units: a graph with a chain of its own, or a pack of small ones."""

    count: int


@dataclass(frozen=True)
class End:
    """The rollout is over."""

    status: RolloutStatus


@dataclass(frozen=True)
class KeepWaiting:
    """Wait: for members in flight, a bake, or an operator."""

    why: str


RolloutDecision = Hold | Resume | OpenStage | CloseStage | DispatchMembers | End | KeepWaiting


def decide_rollout(facts: RolloutFacts) -> RolloutDecision:
    """Decide the controller's next step for one rollout. The controller repeats it until it says `KeepWaiting`."""
    in_hand = facts.in_flight + facts.packed + facts.paused
    unsettled = facts.pending + in_hand
    match facts.status:
        case RolloutStatus.CANCELLING:
            return KeepWaiting("graphs are in flight") if in_hand else End(RolloutStatus.CANCELLED)
        case RolloutStatus.HELD:
            return Resume() if _is_over(facts) else KeepWaiting("it is held")
        case RolloutStatus.RUNNING:
            pass
        case _:
            return KeepWaiting("it has ended")
    if facts.breaker is not None:
        tripped = facts.breaker
        evidence = {"why": tripped.why, "error_group": tripped.group, "graphs": list(tripped.graphs)}
        return Hold(HoldReason.BREAKER, evidence)
    if facts.stage and not unsettled:
        ended = _after_the_stage(facts)
        if ended is not None:
            return ended
    hindrance = _hindrance(facts)
    if hindrance is not None:
        return hindrance
    if not facts.stage or not unsettled:
        return OpenStage(facts.stage + 1)
    free = facts.max_in_flight - facts.in_flight
    if facts.rate_allows is not None:
        free = min(free, facts.rate_allows)
    if facts.pending and free > 0:
        return DispatchMembers(min(free, facts.pending))
    if facts.in_flight and facts.stalled_seconds > facts.stall_limit:
        return Hold(HoldReason.STALL, {"seconds": round(facts.stalled_seconds), "limit": facts.stall_limit})
    return KeepWaiting("graphs are in flight" if facts.in_flight else "a paused graph keeps the stage open")


def _is_over(facts: RolloutFacts) -> bool:
    """Whether a hold ends by itself now. One of another reason does not, whatever else has become good."""
    if facts.held_for not in ENDS_BY_ITSELF:
        return False
    match facts.held_for:
        case HoldReason.FLEET:
            return not facts.fleet_held
        case HoldReason.HEALTH:
            return facts.stop_signal is None
        case _:
            return facts.window_open


def _after_the_stage(facts: RolloutFacts) -> RolloutDecision | None:
    """Every member of the open stage has settled. None: the next stage may open."""
    if not facts.stage_closed:
        return CloseStage(facts.stage)
    if facts.stage == facts.stages:
        ended = RolloutStatus.FINISHED_WITH_FAILURES if facts.failed else RolloutStatus.SUCCEEDED
        return End(ended)
    if not facts.baked:
        return KeepWaiting("the stage bakes")
    if not facts.gate_open:
        return Hold(HoldReason.GATE, {"stage": facts.stage})
    return None


def _hindrance(facts: RolloutFacts) -> Hold | None:
    """What keeps a rollout from dispatching although graphs are left, or graphs in flight from going on."""
    if not facts.pending and facts.stage == facts.stages:
        # Those in flight may end with the code that they were begun with. Where one cannot, an operator decides.
        return _code_changed(facts) if facts.waiting_for_code else None
    if facts.fleet_held:
        return Hold(HoldReason.FLEET)
    if (changed := _code_changed(facts)) is not None:
        return changed
    if not facts.window_open:
        return Hold(HoldReason.WINDOW)
    if facts.stop_signal is not None:
        return Hold(HoldReason.HEALTH, facts.stop_signal)
    return None


def _code_changed(facts: RolloutFacts) -> Hold | None:
    return Hold(HoldReason.CODE_CHANGED, {"hops": list(facts.changed_hops)}) if facts.changed_hops else None


# ── a member ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class MemberFacts:
    """A member that was dispatched or has failed, its request and its migration.

    Attributes:
        slug: The graph's slug, or its id where the graph is gone.
        status: Of the member.
        to_version: Where the rollout goes.
        request_known: The message of this try has reached a worker.
        outcome: How a request ended that began nothing: a report or an error.
        migration: The status of its migration; None where it has none.
        error_type: Of the failed migration.
        error_message: Likewise.
        hop: The hop whose attempt failed.
        traceback: Of that attempt.
        ended_by: Who cancelled or released the migration, where that is known.
    """

    slug: str
    status: MemberStatus
    to_version: int
    request_known: bool = False
    outcome: dict[str, Any] | None = None
    migration: MigrationStatus | None = None
    error_type: str | None = None
    error_message: str | None = None
    hop: str | None = None
    traceback: str | None = None
    ended_by: str | None = None


@dataclass(frozen=True)
class Settled:
    """How a member ended."""

    status: MemberStatus
    note: str | None = None
    group: ErrorGroup | None = None
    crashed: bool = False


@dataclass(frozen=True)
class MemberInFlight:
    """Its migration goes on, or stands still because an operator paused it."""

    paused: bool


@dataclass(frozen=True)
class Unsent:
    """No worker has begun it: its message waits, or was lost."""


MemberDecision = Settled | MemberInFlight | Unsent

_SKIPPED = {
    "graph_migrator.UnknownGraph": "deleted",
    "graph_migrator.GraphBeyondTarget": "beyond the target",
    "graph_migrator.MigrationInFlight": "owned by another migration",
    "graph_migrator.GraphPartiallyMigrated": "partially migrated",
    "graph_migrator.UnreachableGraph": "unreachable: its type does not know its version",
    "graph_migrator.UnknownTarget": "unreachable: its type does not know its version",
    "graph_migrator.IrreversibleHop": "no reverse",
    "graph_migrator.RolloutRefused": "the rollout was cancelled",
}
"""Refusals that a retry of the rollout would meet again: the graph needs its own care."""


def is_skipped(error_type: str) -> bool:
    """Whether a refusal leaves the graph as it is, and is no failure."""
    return error_type in _SKIPPED


_CRASHED = "graph_migrator.HopCrashedRepeatedly"


def decide_member(facts: MemberFacts) -> MemberDecision:
    """Decide what became of a member, from its request and the migration behind it.

    The request decides first: a no-op and a refusal have no migration, and such a member must not wait for one.
    """
    if facts.migration is None:
        if not facts.request_known:
            return Unsent()
        return _of_outcome(facts)
    match facts.migration:
        case MigrationStatus.SUCCEEDED:
            return Settled(MemberStatus.SUCCEEDED)
        case MigrationStatus.FAILED:
            return _failed(facts, facts.error_type or "unknown", facts.error_message)
        case MigrationStatus.CANCELLED | MigrationStatus.RELEASED:
            by = f" by {facts.ended_by}" if facts.ended_by else " by an operator"
            return Settled(MemberStatus.SKIPPED, f"its migration was {facts.migration}{by}")
        case MigrationStatus.PAUSED:
            return MemberInFlight(paused=True)
        case _:
            return MemberInFlight(paused=False)


def _of_outcome(facts: MemberFacts) -> MemberDecision:
    if facts.outcome is None:
        return Unsent()
    error = facts.outcome.get("error")
    if error is None:
        return Settled(MemberStatus.SUCCEEDED, "was at the target already")
    if error["type"] in _SKIPPED:
        return Settled(MemberStatus.SKIPPED, _SKIPPED[error["type"]])
    return _failed(facts, error["type"], facts.error_message)


def _failed(facts: MemberFacts, error_type: str, message: str | None) -> Settled:
    group = error_group(error_type, message, facts.hop, facts.traceback, facts.slug)
    note = f"{error_type.rpartition('.')[2]}: {message}" if message else error_type
    return Settled(MemberStatus.FAILED, note[:1_000], group, error_type == _CRASHED)


# ── a pack ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PackFacts:
    """An open pack, as it was found.

    Attributes:
        status: Of the pack.
        executed: A process holds the pack's lock.
        resend_due: No worker has taken it for so long that its message may be lost.
        cancelling: Its rollout is being cancelled.
    """

    status: PackStatus
    executed: bool = False
    resend_due: bool = False
    cancelling: bool = False


@dataclass(frozen=True)
class ClosePack:
    """Nobody executes it: what it has begun goes on as chains, what it has not begun waits again."""


@dataclass(frozen=True)
class ResendPack:
    """Its message may be lost."""


def decide_pack(facts: PackFacts) -> ClosePack | ResendPack | None:
    """Decide what becomes of an open pack. None: it waits in the queue, or its executor is at work."""
    match facts.status:
        case PackStatus.LEFT:
            return ClosePack()
        case PackStatus.RUNNING:
            # Its executor holds the lock from before it became running until after it has left.
            return None if facts.executed else ClosePack()
        case PackStatus.SENT:
            if facts.cancelling and not facts.executed:
                return ClosePack()
            return ResendPack() if facts.resend_due else None
        case PackStatus.CLOSED:
            return None


@dataclass(frozen=True)
class PendingGraph:
    """A pending member's graph at the moment of its dispatch; `version` is None where it was deleted.

    `packable`: it is small enough to share a task with others.
    """

    version: int | None
    to_version: int
    direction: int
    partially_migrated: bool = False
    known_versions: tuple[int, int] | None = None
    packable: bool = False


def hindered(facts: PendingGraph) -> Settled | None:
    """What settles a member instead of its dispatch; None where it can be sent.

    A rollout moves in its own direction only: `migrate_graph` would move a graph that somebody has moved beyond the
    target meanwhile back to it.
    """
    if facts.version is None:
        return Settled(MemberStatus.SKIPPED, "deleted")
    if facts.version == facts.to_version:
        return Settled(MemberStatus.SUCCEEDED, "was at the target already")
    if versions_left(facts.version, facts.to_version, facts.direction) < 0:
        return Settled(MemberStatus.SKIPPED, "beyond the target")
    if facts.partially_migrated:
        return Settled(MemberStatus.SKIPPED, "partially migrated")
    if facts.known_versions is not None:
        oldest, newest = facts.known_versions
        if not oldest <= facts.version <= newest:
            return Settled(MemberStatus.SKIPPED, "unreachable: its type does not know its version")
    return None
