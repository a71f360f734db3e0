"""What happens to a fleet: turns, deliveries, operators, deploys and deaths, chosen by a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from graph_migrator.core.rollouts.decisions import Hold
from graph_migrator.core.rollouts.health import Level
from graph_migrator.core.rollouts.pace import next_pace
from graph_migrator.core.rollouts.statuses import (
    LIVE,
    HoldReason,
    MemberStatus,
    PackStatus,
    RolloutStatus,
)
from graph_migrator.core.rollouts.turn import MOST_GRAPHS, Sending, SendingPack, take_turn
from graph_migrator.core.statuses import SETTLED, MigrationStatus
from tests.simulation_fleet.model import (
    MOST_LOOKS,
    TARGET,
    Member,
    Migration,
    ModelRows,
    StageRow,
    Tables,
    Violated,
    check,
    copy_of,
    members_of,
    request,
)


def tables(stages: tuple[int, ...] = (2, 4, 6), bad: tuple[int, ...] = ()) -> Tables:
    """A rollout that was just started."""
    members: dict[UUID, Member] = {}
    for number, size in enumerate(stages, 1):
        for _ in range(size):
            members[UUID(int=len(members) + 10)] = Member(number)
    rows = [StageRow(Counter({MemberStatus.PENDING: size})) for size in stages]
    broken = {UUID(int=number + 10) for number in bad}
    return Tables(dict.fromkeys(members, 1), broken, members, rows)


@dataclass
class PackExecutor:
    """A process at a pack: it looks, begins a group of graphs, runs them together, and looks again.

    Those that have parted are run one by one. A zombie goes on although its session, and with it the pack's lock, is
    gone.
    """

    number: int
    pack: UUID
    code: str
    waiting: list[UUID] = field(default_factory=list)
    looked: list[UUID] = field(default_factory=list)
    in_hand: list[int] = field(default_factory=list)
    looked_while_held: bool = False
    parted: bool = False
    zombie: bool = False
    failed: bool = False


class World:
    """One fleet and one seed."""

    def __init__(
        self, t: Tables, seed: int = 0, rows: type[ModelRows] = ModelRows, *, guarded: bool = True
    ) -> None:
        self.t = t
        self.chance = random.Random(seed)
        self.rows = rows
        self.guarded = guarded
        self.broker: list[Sending | SendingPack] = []
        self.executors: list[PackExecutor] = []
        self.processes = 0
        self.codes = ["old", "old"]
        self.happened: Counter[str] = Counter()
        self.most = MOST_GRAPHS
        self.together = 1
        """Graphs that share their transactions, at most."""

    # ── processes ───────────────────────────────────────────────────────────────────────────────────

    def turn(self, death: str | None = None, code: str | None = None) -> None:
        """A turn of the controller; it may die before its commit, or before its messages are out."""
        before = copy_of(self.t) if death == "before commit" else None
        done = take_turn(self.rows(self.t, code or self.codes[0]), self.most)
        if before is not None:
            self.t = before
            return
        for sending in done.to_send:
            if death == "before sending" and self.chance.random() < 0.5:
                break
            self.broker.append(sending)
        self.happened.update(type(d).__name__ for d in done.decisions)
        if done.goes_on and death is None:
            self.happened["goes on"] += 1
            if self.chance.random() < 0.7:  # else something else comes in between
                self.turn(code=code)

    def deliver(self, *, keep: bool = False, code: str = "old") -> None:
        """A worker takes a message; `keep` delivers it once more later."""
        if not self.broker:
            return
        place = self.chance.randrange(len(self.broker))
        sending = self.broker[place] if keep else self.broker.pop(place)
        if isinstance(sending, SendingPack):
            self.take_pack(sending, code)
        else:
            self.begin(sending, code)

    # ── packs ───────────────────────────────────────────────────────────────────────────────────────

    def take_pack(self, sending: SendingPack, code: str) -> None:
        """What `migrate_pack` does with its message: take the lock, then look at the row."""
        row = self.t.packs[sending.pack_id]
        if row.status is not PackStatus.SENT or row.executor is not None:
            return
        if self.t.status is RolloutStatus.CANCELLING:
            self.desk().move_pack(sending.pack_id, PackStatus.LEFT)
            return
        if code != self.t.frozen and self.guarded:
            self.broker.append(sending)
            return
        self.processes += 1
        row.executor = self.processes
        self.desk().move_pack(sending.pack_id, PackStatus.RUNNING)
        waiting = members_of(self.t, sending.pack_id)
        self.executors.append(PackExecutor(self.processes, sending.pack_id, code, waiting))

    def work_on(self, executor: PackExecutor) -> None:
        """One step of a pack's executor."""
        if executor.in_hand:
            self.carry_on(executor)
        elif executor.looked:
            self.begin_in_pack(executor)
        elif not self.look(executor):
            self.leave(executor)

    def look(self, executor: PackExecutor) -> bool:
        """Whether the next graphs may be begun; in one statement."""
        if executor.failed or not executor.waiting or not self.may_go_on(executor):
            return False
        size = self.chance.randint(1, self.together)
        group, executor.waiting = executor.waiting[:size], executor.waiting[size:]
        executor.looked = [graph for graph in group if self.is_in(executor, graph)]
        executor.looked_while_held = self.is_held
        return True

    def is_in(self, executor: PackExecutor, graph: UUID) -> bool:
        member = self.t.members[graph]
        return member.pack == executor.pack and member.status is MemberStatus.DISPATCHED

    @property
    def is_held(self) -> bool:
        return self.t.status is not RolloutStatus.RUNNING or self.t.fleet_held

    def may_go_on(self, executor: PackExecutor) -> bool:
        t = self.t
        return t.packs[executor.pack].status is PackStatus.RUNNING and not self.is_held

    def begin_in_pack(self, executor: PackExecutor) -> None:
        """All of a group in one transaction, those that are as they were when it looked."""
        t, group = self.t, executor.looked
        executor.looked = []
        if executor.looked_while_held:
            raise Violated(
                "F3", f"pack {executor.pack.int} begins a graph that was not in its hand at the hold"
            )
        for graph in group:
            member = t.members[graph]
            sending = ModelRows(t, executor.code).sending(graph)
            known = sending.request_id in t.requests
            self.begin(sending, executor.code)
            found = t.requests.get(sending.request_id)
            if known:
                if member.pack == executor.pack:
                    member.pack = None  # somebody else has it in hand
            elif isinstance(found, int):
                executor.in_hand.append(found)

    def carry_on(self, executor: PackExecutor) -> None:
        """A hop of the graphs in hand, together where it goes well for all; else of the first of them."""
        if len(executor.in_hand) > 1 and not executor.parted:
            if self.chance.random() < 0.8 and all(map(self.goes_well, executor.in_hand)):
                for number in executor.in_hand:
                    self.advance(number)
                executor.in_hand = []
            else:
                executor.parted = True
            return
        number = executor.in_hand.pop(0)
        migration = self.t.migrations[number]
        if executor.failed or self.chance.random() < 0.2 or migration.status is MigrationStatus.PAUSED:
            self.let_go(executor, number)
        else:
            self.advance(number)
            executor.failed |= migration.status is MigrationStatus.FAILED
        executor.parted &= bool(executor.in_hand)

    def goes_well(self, number: int) -> bool:
        """Whether its next hop neither raises nor stops, nor is to wait for other code."""
        migration = self.t.migrations[number]
        return (
            migration.status is MigrationStatus.RUNNING
            and migration.code in self.codes
            and not (migration.graph in self.t.bad and migration.code == "old")
        )

    def let_go(self, executor: PackExecutor, number: int) -> None:
        """From now on it is a chain."""
        member = self.t.members[self.t.migrations[number].graph]
        if member.pack == executor.pack:
            member.pack = None

    def leave(self, executor: PackExecutor) -> None:
        row = self.t.packs[executor.pack]
        if row.status in {PackStatus.SENT, PackStatus.RUNNING}:  # a zombie's pack may be closed
            self.desk().move_pack(executor.pack, PackStatus.LEFT)
        self.lose_lock(executor)
        self.executors.remove(executor)

    def lose_lock(self, executor: PackExecutor) -> None:
        row = self.t.packs[executor.pack]
        if row.executor == executor.number:
            row.executor = None

    def kill(self, executor: PackExecutor) -> None:
        self.lose_lock(executor)
        self.executors.remove(executor)

    def cut_off(self, executor: PackExecutor) -> None:
        """Its session is gone; the process does not know."""
        self.lose_lock(executor)
        executor.zombie = True

    # ── chains ──────────────────────────────────────────────────────────────────────────────────────

    def begin(self, sending: Sending, code: str) -> None:
        """What `migrate_member` does, in one transaction under the graph's lock."""
        t, graph = self.t, sending.graph_id
        if t.status is RolloutStatus.CANCELLING and self.guarded and sending.request_id not in t.requests:
            t.requests[sending.request_id] = {"error": {"type": "graph_migrator.RolloutRefused"}}
            return
        if code != t.frozen and self.guarded:
            self.broker.append(sending)  # requeued for a worker that has the code
            return
        if sending.request_id in t.requests:
            return
        version = t.graphs[graph]
        claim = t.claims.get(graph)
        failed = claim is not None and t.migrations[claim].status is MigrationStatus.FAILED
        if version is None:
            t.requests[sending.request_id] = {"error": {"type": "graph_migrator.UnknownGraph"}}
        elif claim is not None and not failed:
            error = {"type": "graph_migrator.MigrationInFlight", "migration": claim}
            t.requests[sending.request_id] = {"error": error}
        elif version > TARGET and self.guarded:
            t.requests[sending.request_id] = {"error": {"type": "graph_migrator.GraphBeyondTarget"}}
        elif version == TARGET:
            t.requests[sending.request_id] = {"report": {}}
        elif claim is not None:
            t.migrations[claim].status = MigrationStatus.RUNNING
            t.migrations[claim].tries += 1
            t.migrations[claim].code = code
            t.requests[sending.request_id] = claim
        else:
            t.migrations.append(Migration(graph, MigrationStatus.RUNNING, code))
            t.claims[graph] = len(t.migrations) - 1
            t.requests[sending.request_id] = len(t.migrations) - 1
        if code != t.frozen:
            raise Violated("F8", f"{graph} is migrated by code that nobody planned")
        if version is not None and version > TARGET and t.requests[sending.request_id] == t.claims.get(graph):
            raise Violated("F8", f"{graph} is moved back from v{version}")

    def advance(self, number: int) -> None:
        """A migration goes one step: it ends, or waits for a worker that has the code which it was begun with."""
        migration = self.t.migrations[number]
        if migration.status is MigrationStatus.RUNNING:
            migration.looks = 0 if migration.code in self.codes else migration.looks + 1
            if migration.looks > MOST_LOOKS:
                migration.status = MigrationStatus.FAILED
            if migration.looks:
                return
            if migration.graph in self.t.bad and migration.code == "old":
                migration.status = MigrationStatus.FAILED
            else:
                self.finish(number, MigrationStatus.SUCCEEDED)
                self.t.graphs[migration.graph] = TARGET

    def finish(self, number: int, status: MigrationStatus) -> None:
        self.t.migrations[number].status = status
        self.t.claims.pop(self.t.migrations[number].graph, None)

    def run_by_a_pack(self, number: int) -> bool:
        """Whether a pack has it in hand, so that no chain does."""
        return any(number in executor.in_hand for executor in self.executors)

    def check(self) -> None:
        """What must hold at every commit, also of the packs."""
        check(self.t)
        for executor in self.executors:
            if len(executor.in_hand) > self.together:
                raise Violated("F1", f"pack {executor.pack.int} has {len(executor.in_hand)} graphs in hand")

    def read_signals(self, level: Level) -> None:
        """A reading of the health signals."""
        before = self.t.max_in_flight if self.t.pace is None else self.t.pace
        self.t.level, self.t.pace = level, next_pace(before, self.t.max_in_flight, level)

    # ── operators ───────────────────────────────────────────────────────────────────────────────────

    def desk(self) -> ModelRows:
        return self.rows(self.t, self.codes[0])

    def pause(self) -> None:
        if self.t.status is RolloutStatus.RUNNING:
            self.desk().hold(Hold(HoldReason.OPERATOR))

    def resume(self) -> None:
        if self.t.held is not None and self.t.held.reason not in {HoldReason.GATE, HoldReason.HEALTH}:
            self.accept(self.codes[0])
            self.desk().resume()

    def accept(self, code: str) -> None:
        """Freeze other code, also for what is in flight."""
        self.t.frozen = code
        for member in self.t.members.values():
            if member.status is MemberStatus.DISPATCHED and member.migration is not None:
                self.t.migrations[member.migration].code = code
                self.t.migrations[member.migration].looks = 0

    def promote(self) -> None:
        if self.t.held is not None and self.t.held.reason is HoldReason.GATE:
            self.t.stages[self.t.stage - 1].promoted = True
            self.desk().resume()

    def cancel(self) -> None:
        if self.t.status in {RolloutStatus.RUNNING, RolloutStatus.HELD}:
            desk = self.desk()
            desk.follow(RolloutStatus.CANCELLING)
            self.t.held = None
            self.skip([g for g, m in self.t.members.items() if m.status is MemberStatus.PENDING], "cancelled")

    def skip(self, graphs: list[UUID], why: str) -> None:
        for graph in graphs:
            if self.t.members[graph].status in {MemberStatus.PENDING, MemberStatus.FAILED}:
                self.desk().move(graph, MemberStatus.SKIPPED)
                self.t.members[graph].note = why

    def retry(self) -> None:
        if self.t.status not in {
            RolloutStatus.RUNNING,
            RolloutStatus.HELD,
            RolloutStatus.FINISHED_WITH_FAILURES,
        }:
            return
        again = [g for g, m in self.t.members.items() if m.status is MemberStatus.FAILED]
        if again and self.t.status is RolloutStatus.FINISHED_WITH_FAILURES:
            self.desk().follow(RolloutStatus.RUNNING)
        for graph in again:
            self.desk().move(graph, MemberStatus.PENDING)
            self.t.members[graph].number += 1
            self.t.members[graph].note = self.t.members[graph].group = None

    def by_hand(self) -> None:
        """An operator's verb on one member's migration, or a graph that goes its own way."""
        live = [n for n, m in enumerate(self.t.migrations) if m.status not in SETTLED]
        failed = [n for n, m in enumerate(self.t.migrations) if m.status is MigrationStatus.FAILED]
        free = [g for g, v in self.t.graphs.items() if g not in self.t.claims and v is not None]
        verbs: list[Callable[[], None]] = []
        if live:
            number = self.chance.choice(live)
            migration = self.t.migrations[number]
            is_paused = migration.status is MigrationStatus.PAUSED
            other = MigrationStatus.RUNNING if is_paused else MigrationStatus.PAUSED
            verbs.append(lambda: setattr(migration, "status", other))
            verbs.append(lambda: self.finish(number, MigrationStatus.CANCELLED))
        if failed:
            again = self.chance.choice(failed)
            verbs.append(lambda: setattr(self.t.migrations[again], "status", MigrationStatus.RUNNING))
            verbs.append(lambda: self.finish(again, MigrationStatus.RELEASED))
        if free:
            graph = self.chance.choice(free)
            verbs.append(lambda: self.t.graphs.__setitem__(graph, None))
            verbs.append(lambda: self.t.graphs.__setitem__(graph, TARGET + 1))
            verbs.append(lambda: self.t.graphs.__setitem__(graph, TARGET))
        if verbs:
            self.chance.choice(verbs)()

    # ── a run ───────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """Something happens."""
        t, c = self.t, self.chance
        t.now += 1
        dice = c.random()
        if dice < 0.35:
            self.turn(c.choice([None, None, None, "before commit", "before sending"]), c.choice(self.codes))
        elif dice < 0.6:
            self.deliver(keep=c.random() < 0.2, code=c.choice(self.codes))
        elif dice < 0.72 and self.executors:
            executor = c.choice(self.executors)
            if c.random() < 0.06:
                c.choice([self.kill, self.cut_off])(executor)
            else:
                self.work_on(executor)
        elif dice < 0.8 and t.migrations:
            number = c.randrange(len(t.migrations))
            if not self.run_by_a_pack(number):
                self.advance(number)
        elif dice < 0.84 and self.broker and c.random() < 0.3:
            self.broker.clear() if c.random() < 0.3 else self.broker.pop()
        elif dice < 0.9:
            actions = [self.pause, self.resume, self.promote, self.retry, self.by_hand]
            c.choice([*actions, self.resume, self.promote])()
        elif dice < 0.92:
            t.max_in_flight = c.randint(1, 5)
        elif dice < 0.94:
            t.fleet_held = not t.fleet_held
        elif dice < 0.95:
            self.codes = c.choice([["old", "old"], ["old", "new"], ["new", "new"]])
        elif dice < 0.96:
            t.window_open = not t.window_open
        elif dice < 0.98:
            self.read_signals(c.choice([Level.GOOD, Level.GOOD, Level.UNKNOWN, Level.SLOW, Level.STOP]))
        elif dice < 0.981:
            self.cancel()
        elif dice < 0.99:
            self.skip([c.choice(list(t.members))], "taken out by an operator")
        self.check()

    def settle_down(self) -> None:
        """Nothing more goes wrong: whatever waits must come to an end."""
        t = self.t
        t.fleet_held, t.window_open, t.level = False, True, Level.GOOD
        self.codes = [self.codes[0]] * 2
        for _ in range(600):
            t.now += 1
            for migration in t.migrations:
                if migration.status is MigrationStatus.PAUSED:
                    migration.status = MigrationStatus.RUNNING
            for number in range(len(t.migrations)):
                if not self.run_by_a_pack(number):
                    self.advance(number)
            for executor in list(self.executors):
                self.work_on(executor)
            if t.held is not None:
                self.promote()
                self.resume()
            self.turn()
            for _ in range(len(self.broker)):
                self.deliver(code=self.codes[0])
            self.check()
            if t.status not in LIVE:
                break
        else:
            left = Counter(m.status for m in t.members.values())
            raise Violated("F5", f"the rollout does not end: {t.status}, {t.held}, {left}")
        for graph, member in t.members.items():
            if member.status in {MemberStatus.PENDING, MemberStatus.DISPATCHED}:
                raise Violated("F5", f"{graph} was forgotten as {member.status}")
            if member.status is MemberStatus.SUCCEEDED and t.graphs[graph] == 1:
                raise Violated("F5", f"{graph} counts as succeeded and was not moved")


def explore(
    seed: int,
    steps: int = 250,
    rows: type[ModelRows] = ModelRows,
    world: type[World] = World,
    *,
    guarded: bool = True,
) -> World:
    """One run."""
    chance = random.Random(seed)
    bad = tuple(n for n in range(12) if chance.random() < 0.15)
    made = world(tables(bad=bad), seed, rows, guarded=guarded)
    made.t.pack_size = chance.choice([1, 2, 4])
    made.most = chance.choice([1, 2, 3, MOST_GRAPHS])
    made.together = chance.randint(1, 4)
    for _ in range(steps):
        made.step()
    made.settle_down()
    return made


__all__ = ["PackExecutor", "World", "explore", "request", "tables"]
