"""An automatic policy in the simulation: one rollout at a time, never in a deploy, nothing forgotten, nothing again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from graph_migrator.core.rollouts import policy
from graph_migrator.core.rollouts.policy import PolicyFacts, StartRollout
from graph_migrator.core.rollouts.statuses import RolloutStatus
from tests.simulation_fleet import policies
from tests.simulation_fleet.model import TARGET, Violated
from tests.simulation_fleet.policies import SETTLE, PolicyWorld, explore_policy
from tests.simulation_fleet.world import tables


def test_the_invariants_hold_under_a_policy() -> None:
    worlds = [explore_policy(seed) for seed in range(40)]
    assert sum(world.happened["policy"] for world in worlds) > 40
    assert any(past.cancelled and past.automatic for world in worlds for past in world.past)
    assert any(past.left_out and past.automatic for world in worlds for past in world.past)


@pytest.mark.parametrize(
    ("ignored", "invariant"),
    [
        ({"live_rollout": None}, "F4"),
        ({"lacking": ()}, "F8"),
        ({"agreed_seconds": 1_000.0}, "F8"),
        ({"fleet_held": False}, "F3"),
        ({"cancelled": None}, "policy"),
    ],
)
def test_a_policy_that_ignores_a_fact_is_found(
    monkeypatch: pytest.MonkeyPatch, ignored: dict[str, Any], invariant: str
) -> None:
    def decide(facts: PolicyFacts) -> object:
        return policy.decide_policy(PolicyFacts(**{**vars(facts), **ignored}))

    monkeypatch.setattr(policies, "decide_policy", decide)
    for seed in range(60):
        try:
            explore_policy(seed)
        except Violated as violated:
            if violated.invariant == invariant:
                return
    pytest.fail("no seed finds it")


def ended(bad: tuple[int, ...] = ()) -> PolicyWorld:
    """A fleet whose rollout by hand has ended; all workers have agreed for long."""
    world = PolicyWorld(tables((1, 2), bad))
    world.t.max_in_flight = 5
    world.settle_down()
    return world


def test_a_graph_that_is_behind_later_is_moved_by_itself() -> None:
    world = ended()
    world.t.graphs[UUID(int=200)] = 1  # restored from a backup
    world.settle_down()
    assert world.t.graphs[UUID(int=200)] == TARGET
    assert world.happened["policy"] == 1


def test_a_graph_that_failed_is_not_moved_again_before_the_next_deploy() -> None:
    world = ended()
    world.t.graphs[UUID(int=200)] = 1
    world.t.bad.add(UUID(int=200))
    world.settle_down()
    assert world.happened["policy"] == 1
    assert world.t.graphs[UUID(int=200)] == 1
    world.finish(
        len(world.t.migrations) - 1, world.t.migrations[-1].status
    )  # released: no claim keeps it any more
    world.settle_down()
    assert world.happened["policy"] == 1
    world.codes = ["new", "new"]
    world.settle_down()
    assert world.happened["policy"] == 2
    assert world.t.graphs[UUID(int=200)] == TARGET


def test_what_an_operator_cancelled_is_not_started_again() -> None:
    world = ended()
    world.t.graphs[UUID(int=200)] = 1
    world.t.now += SETTLE
    world.policy_turn()
    world.cancel()
    world.turn()
    assert world.t.status is RolloutStatus.CANCELLED
    world.settle_down()
    assert world.happened["policy"] == 1
    assert not isinstance(policy.decide_policy(world.facts()), StartRollout)
