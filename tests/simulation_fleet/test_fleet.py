"""F1 to F8 hold after every step of simulated rollouts; each hole of an earlier draft has a test with its name."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import pytest

from graph_migrator.core.rollouts.decisions import Hold, MemberFacts, RolloutFacts
from graph_migrator.core.rollouts.statuses import HoldReason, MemberStatus, RolloutStatus
from graph_migrator.core.rollouts.turn import InHand, Sending
from graph_migrator.core.statuses import MigrationStatus
from tests.simulation_fleet.model import TARGET, ModelRows, Violated, request
from tests.simulation_fleet.world import World, explore, tables

FIRST = UUID(int=10)


@pytest.mark.parametrize("block", range(8))
def test_the_invariants_hold_after_every_step(block: int) -> None:
    happened = set()
    for seed in range(block * 15, block * 15 + 15):
        happened |= set(explore(seed).happened)
    assert {"Hold", "DispatchMembers", "OpenStage", "CloseStage", "End", "Resume", "Nothing"} == happened


# ── drafts that broke: the simulation finds each of them ────────────────────────────────────────────


class TakesNoOutcomeOfRequests(ModelRows):
    """Looked at migrations only: a no-op or a refusal has none, so its member was in flight for ever."""

    def member_facts(self, graph: UUID, member: object) -> MemberFacts:
        found = super().member_facts(graph, member)  # type: ignore[arg-type]
        return MemberFacts(found.slug, found.status, TARGET, True) if found.outcome else found


class NeverResends(ModelRows):
    """Believed that a message which was committed to be sent was sent: the controller dies in between."""

    def in_hand(self) -> Iterable[InHand]:
        return [InHand(m.graph_id, m.facts, m.paused) for m in super().in_hand()]


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


@pytest.mark.parametrize(
    ("draft", "invariant"),
    [
        (TakesNoOutcomeOfRequests, "F5"),
        (NeverResends, "F5"),
        (CountsAfterDispatch, "F1"),
        (OpensWithoutBake, "F2"),
        (IgnoresTheFleetsHold, "F3"),
        (CountsByReading, "F6"),
    ],
)
def test_a_draft_that_broke_is_found(draft: type[ModelRows], invariant: str) -> None:
    assert invariant in _broken(draft)


def test_unguarded_workers_move_graphs_back_or_with_code_that_nobody_planned() -> None:
    assert "F8" in _broken(ModelRows, guarded=False)


def _broken(rows: type[ModelRows], *, guarded: bool = True) -> set[str]:
    found = set()
    for seed in range(12):
        try:
            explore(seed, 150, rows, guarded=guarded)
        except Violated as violated:
            found.add(violated.invariant)
    return found


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


def test_sendings_name_their_try() -> None:
    assert isinstance(ModelRows(tables(), "old").sending(FIRST), Sending)
    assert request(FIRST, 1) != request(FIRST, 2)
