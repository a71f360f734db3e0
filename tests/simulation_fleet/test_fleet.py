"""F1 to F8 hold after every step of simulated rollouts; each hole of an earlier draft has a test with its name."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import pytest

from graph_migrator.core.rollouts.decisions import Hold, MemberFacts, PackFacts, RolloutFacts
from graph_migrator.core.rollouts.health import Level
from graph_migrator.core.rollouts.statuses import HoldReason, MemberStatus, PackStatus, RolloutStatus
from graph_migrator.core.rollouts.turn import InHand, Sending
from graph_migrator.core.statuses import MigrationStatus
from tests.simulation_fleet.model import TARGET, ModelRows, PackRow, Violated, in_flight, request
from tests.simulation_fleet.world import PackExecutor, World, explore, tables

FIRST = UUID(int=10)


@pytest.mark.parametrize("block", range(8))
def test_the_invariants_hold_after_every_step(block: int) -> None:
    happened = set()
    for seed in range(block * 15, block * 15 + 15):
        happened |= set(explore(seed).happened)
    assert {
        "Hold",
        "DispatchMembers",
        "OpenStage",
        "CloseStage",
        "End",
        "Resume",
        "KeepWaiting",
        "goes on",
    } == happened


# ── drafts that broke: the simulation finds each of them ────────────────────────────────────────────


class TakesNoOutcomeOfRequests(ModelRows):
    """Looked at migrations only: a no-op or a refusal has none, so its member was in flight for ever."""

    def member_facts(self, graph: UUID, member: object) -> MemberFacts:
        found = super().member_facts(graph, member)  # type: ignore[arg-type]
        return MemberFacts(found.slug, found.status, TARGET, True) if found.outcome else found


class NeverResends(ModelRows):
    """Believed that a message which was committed to be sent was sent: the controller dies in between."""

    def in_hand(self, most: int) -> Iterable[InHand]:
        return [InHand(m.graph_id, m.facts, m.paused) for m in super().in_hand(most)]


class CountsAfterDispatch(ModelRows):
    """Took the free places from a count of the turn's beginning, and filled them in each step of the turn."""

    counted: int | None = None

    def facts(self) -> RolloutFacts:
        found = super().facts()
        self.counted = found.in_flight if self.counted is None else self.counted
        return RolloutFacts(**{**vars(found), "in_flight": self.counted})


class IgnoresTheFleetsHold(ModelRows):
    """Read the rollout's own status only."""

    def facts(self) -> RolloutFacts:
        return RolloutFacts(**{**vars(super().facts()), "fleet_held": False})


class IgnoresAStopSignal(ModelRows):
    """Let load lower the pace only: a pace of one still dispatches."""

    def stop_signal(self) -> None:
        return None


class IgnoresThePace(ModelRows):
    """Dispatched up to the rollout's own limit."""

    def facts(self) -> RolloutFacts:
        return RolloutFacts(**{**vars(super().facts()), "max_in_flight": self.t.max_in_flight})


class OpensWithoutBake(ModelRows):
    """Counted the bake from the opening of a stage, not from its end."""

    def facts(self) -> RolloutFacts:
        return RolloutFacts(**{**vars(super().facts()), "baked": True})


class CountsByReading(ModelRows):
    """Left the counters to whoever writes members, and forgot one of them."""

    def settle(self, settled: dict) -> None:  # type: ignore[override,type-arg]
        for graph, how in settled.items():
            self.t.members[graph].status = how.status
            self.t.members[graph].note = how.note or how.status


class PacksTakeNoPlace(ModelRows):
    """Counted graphs and not packs: a pack without a graph left to settle took no place, its successor did."""

    def facts(self) -> RolloutFacts:
        found = super().facts()
        chains = found.in_flight - sum(r.status in {"sent", "running"} for r in self.t.packs.values())
        return RolloutFacts(**{**vars(found), "in_flight": chains})


class ReturnsWhatWasBegun(ModelRows):
    """Returned all of a dead pack's graphs, the one that it had in hand too."""

    def was_begun(self, graph: UUID) -> bool:
        return False


class NeverClosesADeadPack(ModelRows):
    """Believed the status of a pack's row, which its executor writes: a dead one writes nothing."""

    def pack_facts(self, row: PackRow) -> PackFacts:
        return PackFacts(**{**vars(super().pack_facts(row)), "executed": row.status is PackStatus.RUNNING})


class NeverResendsAPack(ModelRows):
    """Sent a pack's message once."""

    def pack_facts(self, row: PackRow) -> PackFacts:
        return PackFacts(**{**vars(super().pack_facts(row)), "resend_due": False})


class LooksOnce(World):
    """A pack looked at the hold when it started, and not before each of its graphs."""

    def may_go_on(self, executor: PackExecutor) -> bool:
        return True


class TakesMoreInHand(World):
    """A pack began the next graphs while those of its last group that had parted were still to be run."""

    def work_on(self, executor: PackExecutor) -> None:
        if executor.parted and self.look(executor):
            self.begin_in_pack(executor)
        else:
            super().work_on(executor)


@pytest.mark.parametrize(
    ("draft", "invariant"),
    [
        (PacksTakeNoPlace, "F1"),
        (ReturnsWhatWasBegun, "F5"),
        (NeverClosesADeadPack, "F5"),
        (NeverResendsAPack, "F5"),
        (IgnoresAStopSignal, "F3"),
        (IgnoresThePace, "F1"),
        (TakesNoOutcomeOfRequests, "F5"),
        (NeverResends, "F5"),
        (CountsAfterDispatch, "F1"),
        (OpensWithoutBake, "F2"),
        (IgnoresTheFleetsHold, "F3"),
        (CountsByReading, "F6"),
    ],
)
def test_a_draft_that_broke_is_found(draft: type[ModelRows], invariant: str) -> None:
    assert _finds(invariant, draft)


def test_unguarded_workers_move_graphs_back_or_with_code_that_nobody_planned() -> None:
    assert _finds("F8", guarded=False)


def test_a_pack_that_looks_once_goes_on_under_a_hold() -> None:
    assert _finds("F3", world=LooksOnce)


def test_a_pack_that_takes_graphs_while_it_has_some_takes_more_in_hand_than_it_may() -> None:
    assert _finds("F1", world=TakesMoreInHand)


def _finds(
    invariant: str, rows: type[ModelRows] = ModelRows, *, world: type[World] = World, guarded: bool = True
) -> bool:
    """Whether a simulated rollout breaks the invariant; the first seed that does so is enough."""
    for seed in range(400):
        try:
            explore(seed, 150, rows, world, guarded=guarded)
        except Violated as violated:
            if violated.invariant == invariant:
                return True
    return False


# ── the holes by name ───────────────────────────────────────────────────────────────────────────────


def begun(stages: tuple[int, ...] = (1, 2), bad: tuple[int, ...] = ()) -> World:
    """A rollout whose canary is in flight and begun."""
    world = World(tables(stages, bad))
    world.turn()
    world.deliver()
    return world


def test_backwards_by_accident_a_graph_beyond_the_target_is_skipped() -> None:
    world = World(tables((1, 2)))
    world.turn()  # dispatched, its message waits
    world.t.graphs[FIRST] = TARGET + 1
    world.deliver()
    world.turn()
    assert world.t.members[FIRST].note == "beyond the target"
    assert world.t.graphs[FIRST] == TARGET + 1


def test_no_migration_to_look_at_a_deleted_graph_settles_its_member() -> None:
    world = World(tables((1, 2)))
    world.turn()
    world.t.graphs[FIRST] = None
    world.deliver()
    world.turn()
    assert (world.t.members[FIRST].status, world.t.members[FIRST].note) == (MemberStatus.SKIPPED, "deleted")


def test_by_hand_a_failed_member_follows_its_retry_without_taking_a_place() -> None:
    world = begun(bad=(0,))
    world.advance(0)
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.FAILED
    world.t.migrations[0].status = MigrationStatus.RUNNING
    world.turn()
    assert (
        world.t.members[FIRST].status is MemberStatus.FAILED
    )  # no unit of the rollout: F1 counts what it sent
    world.t.bad.clear()
    world.advance(0)
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.SUCCEEDED


def test_by_hand_a_released_migration_skips_a_failed_member() -> None:
    world = begun(bad=(0,))
    world.advance(0)
    world.turn()
    world.finish(0, MigrationStatus.RELEASED)
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.SKIPPED
    assert "released" in str(world.t.members[FIRST].note)


def test_by_hand_and_by_rollout_two_retries_of_one_member_are_one() -> None:
    world = begun(bad=(0,))
    world.advance(0)
    world.turn()
    world.retry()
    world.t.migrations[0].status = MigrationStatus.RUNNING  # the operator was quicker
    world.resume()
    world.turn()
    world.deliver()  # refused: a live migration owns the graph, and it is the member's own
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.DISPATCHED
    world.t.bad.clear()
    world.advance(0)
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.SUCCEEDED


def test_a_paused_member_takes_no_place_and_keeps_its_stage_open() -> None:
    world = World(tables((2, 2)))
    world.t.max_in_flight = 1
    world.turn()
    world.deliver()
    world.t.migrations[0].status = MigrationStatus.PAUSED
    world.turn()
    assert [m.status for m in world.t.members.values()].count(MemberStatus.DISPATCHED) == 2
    world.deliver()
    world.advance(1)
    world.turn()
    assert world.t.stage == 1
    assert world.t.stages[0].closed is None


def test_old_code_a_worker_without_the_frozen_code_requeues_and_records_nothing() -> None:
    world = World(tables((1, 2)))
    world.turn()
    world.deliver(code="new")
    assert (world.t.requests, len(world.broker)) == ({}, 1)
    world.deliver()
    assert request(FIRST, 1) in world.t.requests


def test_a_deploy_that_mixes_codes_holds_once_and_does_not_flap() -> None:
    world = begun((2, 2))
    world.t.max_in_flight = 1
    for turn in range(20):
        world.turn(code=("new", "old")[turn % 2])
    assert world.happened["Hold"] == 1
    assert world.t.held is not None
    assert world.t.held.reason is HoldReason.CODE_CHANGED


def test_the_last_graphs_in_flight_go_on_with_code_that_is_accepted() -> None:
    """Held for changed code was only what was still to be sent: at the end nothing was, and nobody could accept it."""
    world = World(tables((0, 2)))
    world.t.stages[0].promoted = True
    for _ in range(2):
        world.turn()
        world.t.now += 5
    world.deliver()
    world.deliver()
    world.codes = ["new", "new"]
    world.turn()
    assert world.t.held is None  # as far as is known they are about to end
    world.advance(0)
    world.turn()
    assert world.t.held is not None
    assert world.t.held.reason is HoldReason.CODE_CHANGED
    world.resume()
    world.advance(0)
    world.advance(1)
    world.turn()
    assert world.t.status is RolloutStatus.SUCCEEDED


def test_a_message_that_was_lost_is_sent_again_also_while_cancelling() -> None:
    world = World(tables((1, 2)))
    world.turn(death="before sending")
    world.broker.clear()
    world.cancel()
    world.t.now += 10
    world.turn()
    assert len(world.broker) == 1
    world.deliver()
    world.turn()
    assert world.t.status is RolloutStatus.CANCELLED
    assert world.t.migrations == []


def test_a_cancelled_rollout_ends_although_no_worker_has_its_code_any_more() -> None:
    world = World(tables((1, 2)))
    world.turn()
    world.codes = ["new", "new"]
    world.cancel()
    world.deliver(code="new")
    world.turn()
    assert world.t.status is RolloutStatus.CANCELLED
    assert world.t.members[FIRST].note == "the rollout was cancelled"


def test_a_message_that_came_twice_begins_once() -> None:
    world = World(tables((1, 2)))
    world.turn()
    world.deliver(keep=True)
    world.deliver()
    assert len(world.t.migrations) == 1


def test_a_turn_that_dies_before_its_commit_leaves_everything_as_it_was() -> None:
    world = World(tables((1, 2)))
    world.turn(death="before commit")
    assert (world.t.stage, world.broker) == (0, [])
    world.turn()
    assert [sending.number for sending in world.broker] == [1]


def test_a_retried_member_of_an_earlier_stage_goes_before_those_of_the_open_one() -> None:
    world = begun((1, 3), bad=(0,))
    world.advance(0)
    world.turn()
    world.resume()  # goes on without the canary
    world.turn()
    world.t.now += 10
    world.turn()
    world.promote()
    world.t.bad.clear()
    world.retry()
    world.t.max_in_flight = 1
    world.turn()
    assert world.broker[-1].graph_id == FIRST
    assert world.broker[-1].number == 2


def test_a_hold_lets_what_is_in_flight_end_and_sends_nothing_more() -> None:
    world = begun((2, 2))
    world.desk().hold(Hold(HoldReason.OPERATOR))
    sent = len(world.t.dispatches)
    world.advance(0)
    for _ in range(3):
        world.turn()
    assert len(world.t.dispatches) == sent
    assert MemberStatus.SUCCEEDED in {m.status for m in world.t.members.values()}


# ── packs ───────────────────────────────────────────────────────────────────────────────────────────


def packed(size: int = 4, bad: tuple[int, ...] = ()) -> tuple[World, PackExecutor]:
    """A rollout without canaries whose only pack has just been taken by a worker."""
    world = World(tables((0, size), bad))
    world.t.stages[0].promoted = True
    world.t.pack_size, world.t.max_in_flight = size, 1
    world.turn()
    world.t.now += 5
    world.turn()
    world.deliver()
    return world, world.executors[0]


def statuses(world: World) -> list[MemberStatus]:
    return [member.status for member in world.t.members.values()]


def finish_one(world: World, executor: PackExecutor) -> None:
    """Look, begin, and run the hops of one graph; never leave the pack."""
    world.work_on(executor)
    world.work_on(executor)
    (number,) = executor.in_hand
    world.advance(number)
    executor.failed = world.t.migrations[number].status is MigrationStatus.FAILED
    executor.in_hand = []


def begun_together(bad: tuple[int, ...] = ()) -> tuple[World, PackExecutor]:
    """A pack of four graphs that has begun three of them together."""
    world, executor = packed(4, bad)
    executor.looked, executor.waiting = executor.waiting[:3], executor.waiting[3:]
    world.work_on(executor)
    world.together = len(executor.in_hand)
    assert in_flight(world.t) == 1
    return world, executor


def test_graphs_that_begin_together_are_one_unit_and_end_in_one_hop() -> None:
    world, executor = begun_together()
    for number in executor.in_hand:
        assert world.goes_well(number)
        world.advance(number)
    executor.in_hand = []
    world.turn()
    assert statuses(world) == [MemberStatus.SUCCEEDED] * 3 + [MemberStatus.DISPATCHED]


def test_a_hold_lets_a_pack_finish_all_that_it_has_in_hand_and_begin_nothing() -> None:
    world, executor = begun_together()
    world.desk().hold(Hold(HoldReason.OPERATOR))
    while world.executors:
        world.work_on(executor)
        world.check()
    for number in world.t.claims.copy().values():  # those that have left it
        world.advance(number)
    world.turn()
    assert statuses(world) == [MemberStatus.SUCCEEDED] * 3 + [MemberStatus.PENDING]


def test_a_pack_that_dies_leaves_all_that_it_had_in_hand_as_chains() -> None:
    world, executor = begun_together()
    world.kill(executor)
    world.desk().hold(Hold(HoldReason.OPERATOR))
    world.turn()
    assert statuses(world) == [MemberStatus.DISPATCHED] * 3 + [MemberStatus.PENDING]
    assert [member.pack for member in world.t.members.values()] == [None] * 4
    assert in_flight(world.t) == 3  # more than allowed, until they end


def test_a_failure_among_those_that_began_together_ends_the_pack_and_the_others_are_chains() -> None:
    world, executor = begun_together(bad=(0,))
    executor.parted = True
    world.chance.seed(2)
    world.work_on(executor)
    assert executor.failed
    while world.executors:
        world.work_on(executor)
    world.turn()
    assert statuses(world) == [
        MemberStatus.FAILED,
        MemberStatus.DISPATCHED,
        MemberStatus.DISPATCHED,
        MemberStatus.PENDING,
    ]


def test_a_pack_is_one_unit_whatever_it_holds() -> None:
    world, _ = packed(4)
    assert in_flight(world.t) == 1
    assert statuses(world) == [MemberStatus.DISPATCHED] * 4


def test_a_hold_ends_a_pack_before_its_next_graph_and_the_rest_waits_again() -> None:
    world, executor = packed(4)
    finish_one(world, executor)
    world.desk().hold(Hold(HoldReason.OPERATOR))
    world.work_on(executor)
    assert world.executors == []
    world.turn()
    assert statuses(world) == [MemberStatus.SUCCEEDED] + [MemberStatus.PENDING] * 3
    assert len(world.t.migrations) == 1


def test_looking_and_beginning_are_two_moments_one_graph_may_be_begun_after_a_hold() -> None:
    world, executor = packed(4)
    world.work_on(executor)  # has looked
    world.desk().hold(Hold(HoldReason.OPERATOR))
    world.work_on(executor)
    world.advance(0)
    executor.in_hand = []
    world.work_on(executor)
    world.turn()
    assert statuses(world) == [MemberStatus.SUCCEEDED] + [MemberStatus.PENDING] * 3


def test_a_dead_pack_returns_what_it_did_not_begin_and_the_rest_is_a_chain() -> None:
    world, executor = packed(4)
    world.work_on(executor)
    world.work_on(executor)
    world.kill(executor)
    world.t.status, world.t.held = RolloutStatus.HELD, Hold(HoldReason.OPERATOR)
    world.turn()
    assert statuses(world) == [MemberStatus.DISPATCHED] + [MemberStatus.PENDING] * 3
    assert world.t.members[FIRST].pack is None
    assert in_flight(world.t) == 1


def test_a_zombie_pack_and_the_next_one_begin_a_graph_once() -> None:
    world, zombie = packed(2)
    world.work_on(zombie)  # has looked
    world.cut_off(zombie)
    world.turn()  # closes it, and sends the next pack
    world.deliver()
    world.work_on(zombie)  # begins what is in the next pack by now
    (_, heir) = world.executors
    world.work_on(heir)
    world.work_on(heir)  # known: somebody else has it in hand
    assert len(world.t.migrations) == 1
    assert world.t.members[FIRST].pack is None
    world.advance(0)
    world.turn()
    assert world.t.members[FIRST].status is MemberStatus.SUCCEEDED


def test_a_leaver_is_a_unit_of_its_own_and_the_next_dispatch_makes_up_for_it() -> None:
    world, executor = packed(2)
    world.work_on(executor)
    world.work_on(executor)
    world.t.members[FIRST].pack = None
    executor.in_hand = []
    assert in_flight(world.t) == 2  # one more than allowed, until it ends
    world.turn()
    assert len(world.t.packs) == 1


def test_a_packs_message_that_came_twice_is_taken_once() -> None:
    world, executor = packed(2)
    world.take_pack(world.desk().sending_pack(executor.pack), "old")
    assert world.executors == [executor]


def test_a_pack_ends_with_its_first_failure_so_that_the_breaker_looks_before_the_next_graph() -> None:
    size, places = 40, 3
    world = World(tables((0, size), bad=tuple(range(size))))
    world.t.stages[0].promoted = True
    world.t.pack_size, world.t.max_in_flight = 10, places
    for _ in range(200):
        world.t.now += 1
        world.turn()
        while world.broker:
            world.deliver()
        while world.executors:
            for executor in list(world.executors):
                world.work_on(executor)
    assert world.t.held is not None
    assert world.t.held.reason is HoldReason.BREAKER
    assert statuses(world).count(MemberStatus.FAILED) <= ModelRows.strategy.max_failures - 1 + places


def test_old_code_a_worker_without_the_frozen_code_does_not_take_a_pack() -> None:
    world = World(tables((0, 3)))
    world.t.stages[0].promoted = True
    world.t.pack_size, world.t.max_in_flight = 3, 1
    for _ in range(2):
        world.turn()
        world.t.now += 5
    world.deliver(code="new")
    assert (world.executors, len(world.broker), world.t.requests) == ([], 1, {})


def test_a_cancelled_rollout_closes_packs_that_nobody_has_taken() -> None:
    world = World(tables((0, 3)))
    world.t.stages[0].promoted = True
    world.t.pack_size, world.t.max_in_flight = 3, 1
    for _ in range(2):
        world.turn()
        world.t.now += 5
    world.broker.clear()
    world.cancel()
    world.turn()
    assert statuses(world) == [MemberStatus.SKIPPED] * 3
    assert world.t.status is RolloutStatus.CANCELLED


def test_a_stop_signal_holds_with_its_evidence_and_the_hold_ends_by_itself() -> None:
    world = begun((2, 2))
    world.read_signals(Level.STOP)
    world.t.max_in_flight = 5
    world.turn()
    assert world.t.held is not None
    assert world.t.held.reason is HoldReason.HEALTH
    assert world.t.held.evidence == {"signal": "load", "value": 2, "limit": 1}
    world.read_signals(Level.GOOD)
    world.turn()
    assert world.t.held is None


def test_a_gate_is_not_opened_by_a_signal_that_is_good_again() -> None:
    world = begun((1, 2))
    world.advance(0)
    for _ in range(3):
        world.t.now += 5
        world.turn()
    world.read_signals(Level.STOP)
    world.turn()
    world.read_signals(Level.GOOD)
    world.turn()
    assert world.t.held is not None
    assert world.t.held.reason is HoldReason.GATE


def test_sendings_name_their_try() -> None:
    assert isinstance(ModelRows(tables(), "old").sending(FIRST), Sending)
    assert request(FIRST, 1) != request(FIRST, 2)
