"""A fleet in memory: graphs, requests, migrations, a broker, workers, operators. The turn is the real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

from graph_migrator.core.rollouts.breaker import FailedGroup, breaker
from graph_migrator.core.rollouts.decisions import (
    Hold,
    MemberFacts,
    PackFacts,
    PendingGraph,
    RolloutFacts,
    Settled,
    decide_member,
)
from graph_migrator.core.rollouts.health import Level
from graph_migrator.core.rollouts.statuses import (
    MEMBER_EDGES,
    OPEN_PACKS,
    PACK_EDGES,
    ROLLOUT_EDGES,
    HoldReason,
    MemberStatus,
    PackStatus,
    RolloutStatus,
    pairs,
)
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn import InHand, Sending, SendingPack
from graph_migrator.core.statuses import SETTLED, MigrationStatus

ROLLOUT = UUID(int=1)
TARGET = 3
RESEND_AFTER = 5
MOST_LOOKS = 30
BAKE = 3


@dataclass
class Member:
    """A member's row."""

    stage: int
    status: MemberStatus = MemberStatus.PENDING
    number: int = 1
    paused: bool = False
    migration: int | None = None
    pack: UUID | None = None
    sent: int = 0
    settled_at: int = -1
    note: str | None = None
    group: str | None = None


@dataclass
class PackRow:
    """A pack's row; `executor` is the session that holds its lock."""

    size: int
    status: PackStatus = PackStatus.SENT
    sent: int = 0
    executor: int | None = None


@dataclass
class StageRow:
    """A stage's row; `counts` are kept as Postgres keeps them, by changes of members."""

    counts: Counter[MemberStatus]
    opened: int | None = None
    closed: int | None = None
    promoted: bool = False


@dataclass
class Migration:
    """A migration's row."""

    graph: UUID
    status: MigrationStatus
    code: str
    tries: int = 1
    looks: int = 0
    """How often workers with other code have requeued it."""


@dataclass
class Tables:
    """What stands in Postgres. A turn works on a copy, which is dropped where the controller dies."""

    graphs: dict[UUID, int | None]
    bad: set[UUID]
    members: dict[UUID, Member]
    stages: list[StageRow]
    migrations: list[Migration] = field(default_factory=list)
    claims: dict[UUID, int] = field(default_factory=dict)
    requests: dict[UUID, int | dict[str, Any]] = field(default_factory=dict)
    packs: dict[UUID, PackRow] = field(default_factory=dict)
    pack_size: int = 1
    status: RolloutStatus = RolloutStatus.RUNNING
    held: Hold | None = None
    fleet_held: bool = False
    window_open: bool = True
    level: Level = Level.GOOD
    pace: int | None = None
    stage: int = 0
    frozen: str = "old"
    max_in_flight: int = 3
    counted_since: int = 0
    progress: int = 0
    now: int = 0
    dispatches: list[tuple[UUID, int]] = field(default_factory=list)


class Violated(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class ModelRows:
    """`core.rollouts.turn.Rows` on the model. Subclasses are the drafts that broke."""

    strategy = Strategy(max_failures=3)

    def __init__(self, tables: Tables, code: str) -> None:
        self.t = tables
        self.code = code

    # ── members ─────────────────────────────────────────────────────────────────────────────────────

    def in_hand(self, most: int) -> Iterable[InHand]:
        sent = [
            InHand(graph, self.member_facts(graph, m), m.paused, self.t.now - m.sent >= RESEND_AFTER)
            for graph, m in self.t.members.items()
            if m.status is MemberStatus.DISPATCHED
        ]
        settled = [each for each in sent if isinstance(decide_member(each.facts), Settled)]
        return settled[:most] if len(settled) >= most else sent + list(self.ended_by_hand())

    def ended_by_hand(self) -> Iterable[InHand]:
        for graph, member in self.t.members.items():
            if member.status is MemberStatus.FAILED and member.migration is not None:
                status = self.t.migrations[member.migration].status
                if status in SETTLED and status is not MigrationStatus.FAILED:
                    yield InHand(graph, MemberFacts(str(graph), member.status, TARGET, True, None, status))

    def member_facts(self, graph: UUID, member: Member) -> MemberFacts:
        found = self.t.requests.get(request(graph, member.number))
        if (
            isinstance(found, dict)
            and found.get("error", {}).get("migration") == member.migration is not None
        ):
            found = member.migration  # refused, because an operator had retried this member's own migration
        if isinstance(found, int):
            member.migration = found
            status = self.t.migrations[found].status
            error = "ValueError" if status is MigrationStatus.FAILED else None
            return MemberFacts(str(graph), member.status, TARGET, True, None, status, error, "no")
        return MemberFacts(str(graph), member.status, TARGET, found is not None, found)

    def settle(self, settled: Mapping[UUID, Settled]) -> None:
        for graph, how in settled.items():
            self.move(graph, how.status)
            member = self.t.members[graph]
            member.note, member.settled_at, member.paused = how.note, self.t.now, False
            member.pack = None
            member.group = how.group.key if how.group else None
        self.t.progress = self.t.now

    def move(self, graph: UUID, status: MemberStatus) -> None:
        member = self.t.members[graph]
        if (member.status, status) not in pairs(MEMBER_EDGES):
            raise Violated("edge", f"{graph}: {member.status} to {status}")
        counts = self.t.stages[member.stage - 1].counts
        counts[member.status] -= 1
        counts[status] += 1
        member.status = status

    def mark_paused(self, paused: Mapping[UUID, bool]) -> None:
        for graph, is_paused in paused.items():
            self.t.members[graph].paused = is_paused

    def resend(self, graphs: Sequence[UUID]) -> list[Sending]:
        for graph in graphs:
            self.t.members[graph].sent = self.t.now
        return [self.sending(graph) for graph in graphs]

    def sending(self, graph: UUID) -> Sending:
        number = self.t.members[graph].number
        return Sending(ROLLOUT, graph, number, request(graph, number), str(graph), TARGET)

    def next_pending(self, count: int) -> Iterable[tuple[UUID, PendingGraph]]:
        waiting = [
            graph
            for graph, member in self.t.members.items()
            if member.status is MemberStatus.PENDING and member.stage <= self.t.stage
        ]
        for graph in sorted(waiting, key=lambda g: (self.t.members[g].stage, g))[:count]:
            yield (
                graph,
                PendingGraph(self.t.graphs[graph], TARGET, 1, packable=self.t.members[graph].stage > 1),
            )

    def dispatch(self, units: Sequence[tuple[UUID, ...]]) -> list[Sending | SendingPack]:
        sent: list[Sending | SendingPack] = []
        for unit in units:
            pack = None
            if len(unit) > 1:
                pack = UUID(int=1_000 + len(self.t.packs))
                self.t.packs[pack] = PackRow(len(unit), sent=self.t.now)
            for graph in unit:
                self.move(graph, MemberStatus.DISPATCHED)
                member = self.t.members[graph]
                member.sent, member.pack = self.t.now, pack
                self.t.dispatches.append((graph, member.number))
                check_dispatch(self.t, graph)
            sent.append(self.sending(unit[0]) if pack is None else self.sending_pack(pack))
        self.t.progress = self.t.now
        return sent

    # ── packs ───────────────────────────────────────────────────────────────────────────────────────

    def pack_size(self) -> int:
        return self.t.pack_size

    def open_packs(self) -> Sequence[tuple[UUID, PackFacts]]:
        return [
            (pack, self.pack_facts(row))
            for pack, row in self.t.packs.items()
            if row.status is not PackStatus.CLOSED
        ]

    def pack_facts(self, row: PackRow) -> PackFacts:
        due = self.t.now - row.sent >= RESEND_AFTER
        cancelling = self.t.status is RolloutStatus.CANCELLING
        return PackFacts(row.status, row.executor is not None, due, cancelling)

    def close_packs(self, packs: Sequence[UUID]) -> Mapping[UUID, Settled]:
        skipped = {}
        for pack in packs:
            self.move_pack(pack, PackStatus.CLOSED)
            for graph in members_of(self.t, pack):
                if self.was_begun(graph):
                    self.t.members[graph].pack = None
                elif self.t.status is RolloutStatus.CANCELLING:
                    skipped[graph] = Settled(MemberStatus.SKIPPED, "the rollout was cancelled")
                else:
                    self.return_to_wait(graph)
        self.settle(skipped)
        return skipped

    def was_begun(self, graph: UUID) -> bool:
        return request(graph, self.t.members[graph].number) in self.t.requests

    def return_to_wait(self, graph: UUID) -> None:
        member = self.t.members[graph]
        if request(graph, member.number) in self.t.requests:
            raise Violated("F5", f"{graph} was begun and waits again")
        self.move(graph, MemberStatus.PENDING)
        member.pack = None
        self.t.dispatches.remove((graph, member.number))

    def move_pack(self, pack: UUID, status: PackStatus) -> None:
        row = self.t.packs[pack]
        if (row.status, status) not in pairs(PACK_EDGES):
            raise Violated("edge", f"pack {pack.int}: {row.status} to {status}")
        row.status = status

    def resend_packs(self, packs: Sequence[UUID]) -> list[SendingPack]:
        for pack in packs:
            self.t.packs[pack].sent = self.t.now
        return [self.sending_pack(pack) for pack in packs]

    def sending_pack(self, pack: UUID) -> SendingPack:
        return SendingPack(ROLLOUT, pack, self.t.packs[pack].size, "", "", TARGET)

    # ── the rollout ─────────────────────────────────────────────────────────────────────────────────

    def facts(self) -> RolloutFacts:
        t = self.t
        reached = [m for m in t.members.values() if m.stage <= t.stage]
        row = t.stages[t.stage - 1] if t.stage else None
        return RolloutFacts(
            status=t.status,
            held_for=t.held.reason if t.held else None,
            fleet_held=t.fleet_held,
            changed_hops=() if self.code == t.frozen else ("hop",),
            window_open=t.window_open,
            stop_signal=self.stop_signal(),
            breaker=self.tripped(),
            stalled_seconds=t.now - t.progress,
            stall_limit=40,
            stage=t.stage,
            stages=len(t.stages),
            stage_closed=row is not None and row.closed is not None,
            baked=row is not None and row.closed is not None and t.now - row.closed >= BAKE,
            gate_open=t.stage != 1 or (row is not None and row.promoted),
            pending=sum(m.status is MemberStatus.PENDING for m in reached),
            in_flight=in_flight(t),
            packed=sum(
                m.status is MemberStatus.DISPATCHED and m.pack is not None for m in t.members.values()
            ),
            paused=sum(m.paused for m in reached),
            waiting_for_code=sum(map(self.waits_for_code, t.members.values())),
            failed=sum(m.status is MemberStatus.FAILED for m in t.members.values()),
            max_in_flight=limit_of(t),
        )

    def waits_for_code(self, member: Member) -> bool:
        if member.status is not MemberStatus.DISPATCHED or member.migration is None:
            return False
        return self.t.migrations[member.migration].looks > 0

    def stop_signal(self) -> dict[str, Any] | None:
        return {"signal": "load", "value": 2, "limit": 1} if self.t.level is Level.STOP else None

    def tripped(self) -> Any:
        fresh = [m for m in self.t.members.values() if m.settled_at >= self.t.counted_since]
        failed = [m for m in fresh if m.status is MemberStatus.FAILED]
        groups = [
            FailedGroup(group, count, sum(m.stage == 1 for m in failed if m.group == group), 0, ("g",))
            for group, count in Counter(m.group or "?" for m in failed).items()
        ]
        return breaker(groups, min(len(fresh), 200), len(failed), self.strategy)

    def follow(self, status: RolloutStatus) -> None:
        if (self.t.status, status) not in pairs(ROLLOUT_EDGES):
            raise Violated("edge", f"the rollout: {self.t.status} to {status}")
        self.t.status = status

    def hold(self, hold: Hold) -> None:
        self.follow(RolloutStatus.HELD)
        self.t.held = hold

    def resume(self) -> None:
        self.follow(RolloutStatus.RUNNING)
        self.t.held = None
        self.t.counted_since = self.t.now + 1
        self.t.progress = self.t.now

    def open_stage(self, number: int) -> None:
        self.t.stage = number
        self.t.stages[number - 1].opened = self.t.now

    def close_stage(self, number: int) -> None:
        self.t.stages[number - 1].closed = self.t.now

    def end(self, status: RolloutStatus) -> None:
        self.follow(status)


def request(graph: UUID, number: int) -> UUID:
    return uuid5(ROLLOUT, f"{graph}/{number}")


def in_flight(t: Tables) -> int:
    """Units: chains, and open packs."""
    chains = sum(
        m.status is MemberStatus.DISPATCHED and m.pack is None and not m.paused for m in t.members.values()
    )
    return chains + sum(row.status in OPEN_PACKS for row in t.packs.values())


def limit_of(t: Tables) -> int:
    """Units in flight at most, under the load of this moment."""
    return t.max_in_flight if t.pace is None else min(t.pace, t.max_in_flight)


def members_of(t: Tables, pack: UUID) -> list[UUID]:
    """What a pack still holds."""
    return [g for g, m in t.members.items() if m.pack == pack and m.status is MemberStatus.DISPATCHED]


def check_dispatch(t: Tables, graph: UUID) -> None:
    """What Postgres looks at when a member is dispatched."""
    member = t.members[graph]
    if in_flight(t) > limit_of(t):
        raise Violated("F1", f"{in_flight(t)} in flight, {limit_of(t)} allowed")
    for number, row in enumerate(t.stages[: member.stage - 1], 1):
        stood = row.closed is not None and t.now - row.closed >= BAKE
        if not stood or (number == 1 and not row.promoted):
            raise Violated("F2", f"a member of stage {member.stage} is sent, stage {number} is not over")
    if t.status is not RolloutStatus.RUNNING or t.fleet_held or t.level is Level.STOP:
        raise Violated("F3", f"dispatched while {t.status}, fleet held: {t.fleet_held}, load: {t.level}")


def check(t: Tables) -> None:
    """What must hold at every commit."""
    for row in t.stages:
        if min(row.counts.values(), default=0) < 0:
            raise Violated("F6", str(row.counts))
    counted: Counter[MemberStatus] = sum((row.counts for row in t.stages), Counter())
    if +counted != Counter(m.status for m in t.members.values()):
        raise Violated("F6", f"{counted} counted")
    if len(t.dispatches) != len(set(t.dispatches)):
        raise Violated("F5", "a try was dispatched twice")
    begun = Counter(found for found in t.requests.values() if isinstance(found, int))
    for number, times in begun.items():
        if times > t.migrations[number].tries:
            raise Violated("F5", f"migration {number} was begun {times} times")
    for graph, member in t.members.items():
        if member.pack is not None and t.packs[member.pack].status is PackStatus.CLOSED:
            raise Violated("F5", f"{graph} is in a pack that is closed")
        explained = member.note or member.group
        if member.status in {MemberStatus.FAILED, MemberStatus.SKIPPED} and not explained:
            raise Violated("F7", f"{graph} is {member.status} without a reason")
    if (t.status is RolloutStatus.HELD) != (t.held is not None):
        raise Violated("F7", f"{t.status} with the hold {t.held}")


def copy_of(tables: Tables) -> Tables:
    return deepcopy(tables)


__all__ = [
    "HoldReason",
    "Member",
    "Migration",
    "ModelRows",
    "PackRow",
    "StageRow",
    "Tables",
    "Violated",
    "check",
    "copy_of",
    "members_of",
]
