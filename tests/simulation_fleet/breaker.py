"""A fault that meets two graphs in a hundred, all of one shape: what canaries and breaker let through.

``python -m tests.simulation_fleet`` plays a hundred fleets each way and prints how it went.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from random import Random

from sqlalchemy import Engine, text

from graph_migrator import GraphType, HopContext
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts.stages import cut_stages
from graph_migrator.core.rollouts.statuses import HoldReason, MemberStatus, RolloutStatus
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.session import Executors
from tests.integration.fleet_inline import Fleet
from tests.simulation_fleet.model import ModelRows
from tests.simulation_fleet.world import PackExecutor, World, tables

GRAPHS = 300
ODD = GRAPHS * 2 // 100
LABELS = ("Person", "Place", "Thing", "Topic")
EDGES = ("KNOWS", "NEAR", "ABOUT")


@dataclass(frozen=True)
class Shape:
    """Which labels and edge types a graph has."""

    labels: tuple[str, ...]
    edges: tuple[str, ...]


def draw_shapes(chance: Random) -> list[tuple[Shape, int]]:
    """Up to eight ordinary shapes, each with a weight, from common to rare."""
    made = {
        Shape(
            tuple(sorted(chance.sample(LABELS, chance.randint(1, 3)))),
            tuple(sorted(chance.sample(EDGES, chance.randint(0, 2)))),
        ): chance.choice((1, 2, 5, 10, 30))
        for _ in range(chance.randint(1, 8))
    }
    return list(made.items())


def odd_kind() -> GraphType:
    """v1 to v3; its second hop does not expect a label that few graphs have."""
    kind = GraphType("tenant")

    @kind.hop(1, 2)
    def rename(ctx: HopContext) -> None:
        ctx.execute("UPDATE nodes SET properties = properties || '{\"v\": 2}' WHERE graph_id = :graph_id")

    @kind.hop(2, 3)
    def divide(ctx: HopContext) -> None:
        odd = "SELECT count(*) FROM nodes WHERE graph_id = :graph_id AND label = 'Odd'"
        if count := ctx.execute(odd).scalar_one():
            raise ValueError(f"{count} nodes have no name")

    return kind


def fill(engine: Engine, chance: Random) -> None:
    """A fleet of `GRAPHS` graphs, `ODD` of them of the one odd shape, in any order."""
    shapes = draw_shapes(chance)
    odd = Shape(tuple(sorted(("Odd", chance.choice(LABELS)))), chance.choice(((), ("KNOWS",))))
    chosen = [odd] * ODD + chance.choices(
        [shape for shape, _ in shapes], [weight for _, weight in shapes], k=GRAPHS - ODD
    )
    chance.shuffle(chosen)
    versions = chance.choice(((1,), (1, 2)))
    graphs, nodes, edges = [], [], []
    for number, shape in enumerate(chosen):
        slug = f"t{number:03}"
        graphs.append({"slug": slug, "version": chance.choice(versions)})
        count = len(shape.labels) + int(chance.expovariate(0.3))
        labels = [*shape.labels, *chance.choices(shape.labels, k=count - len(shape.labels))]
        nodes += [{"slug": slug, "id": f"n{place}", "label": label} for place, label in enumerate(labels)]
        edges += [{"slug": slug, "id": f"e{place}", "type": kind} for place, kind in enumerate(shape.edges)]
    with engine.begin() as connection:
        for statement, rows in (
            (
                "INSERT INTO graphs (id, slug, graph_type, version) SELECT gen_random_uuid(), v.slug, 'tenant', "
                "v.version FROM jsonb_to_recordset(:rows) v (slug text, version integer)",
                graphs,
            ),
            (
                "INSERT INTO nodes (graph_id, id, label) SELECT g.id, v.id, v.label "
                "FROM jsonb_to_recordset(:rows) v (slug text, id text, label text) JOIN graphs g USING (slug)",
                nodes,
            ),
            (
                "INSERT INTO edges (graph_id, id, source, target, type) SELECT g.id, v.id, 'n0', 'n0', v.type "
                "FROM jsonb_to_recordset(:rows) v (slug text, id text, type text) JOIN graphs g USING (slug)",
                edges,
            ),
        ):
            connection.execute(text(statement), {"rows": json.dumps(rows)})


def caught_by_a_canary(engine: Engine, executors: Executors, seed: int) -> bool:
    """Play a rollout on real tables: whether its canaries hold it before any graph of the first wave was sent."""
    registry.reset()
    registry.register(odd_kind())
    fill(engine, Random(f"shapes {seed}"))
    fleet = Fleet(executors)
    # What follows the canaries is not played where they have missed the fault: the gate holds there.
    fleet.start(Strategy(bake_seconds=0))
    state = fleet.run()
    assert state.rollout.hold in {HoldReason.BREAKER, HoldReason.GATE}, state
    with engine.begin() as connection:
        sent = "SELECT count(*) FROM graph_migrator.rollout_members WHERE stage > 1 AND status <> 'pending'"
        assert connection.execute(text(sent)).scalar_one() == 0
    return state.rollout.hold is HoldReason.BREAKER


class _Patient(World):
    """Packs run their graphs to the end, but for those that began together with one that fails: these are chains."""

    def carry_on(self, executor: PackExecutor) -> None:
        for number in executor.in_hand:
            if executor.failed:
                self.let_go(executor, number)
                continue
            self.advance(number)
            executor.failed |= self.t.claims.get(self.t.migrations[number].graph) is not None
        executor.in_hand = []


def failed_without_canaries(seed: int) -> tuple[int, int]:
    """Play a rollout on the model, without canaries.

    Returns:
        How many graphs failed before it was held, and how many its packs may have in hand.
    """
    chance = Random(f"no shapes {seed}")
    stages = tuple(stage.size for stage in cut_stages(0, GRAPHS, Strategy().waves))
    # The model's first stage is that of the canaries: here it is empty.
    odd = tuple(chance.sample(range(GRAPHS), ODD))
    world = _Patient(tables((0, *stages), odd), seed)
    world.t.stages[0].promoted = True
    world.t.pack_size, world.t.max_in_flight = chance.choice((1, 5, 20)), chance.choice((1, 4, 8, 16))
    world.together = chance.choice((1, 2, 4))
    while world.t.held is None and world.t.status is RolloutStatus.RUNNING:
        world.t.now += 1
        world.turn()
        _work(world, chance)
    assert world.t.held is None or world.t.held.reason is HoldReason.BREAKER, world.t.held
    for _ in range(10):  # what is in flight ends
        _work(world, chance, always=True)
    world.turn()
    counts = Counter(member.status for member in world.t.members.values())
    return counts[MemberStatus.FAILED], world.t.max_in_flight * world.together


def _work(world: World, chance: Random, *, always: bool = False) -> None:
    """What workers do between two turns: they take messages, and about half of them end what they have in hand."""
    for _ in range(len(world.broker)):
        world.deliver()
    for executor in list(world.executors):
        for _ in range(chance.randrange(60) if not always else 60):
            if executor in world.executors:
                world.work_on(executor)
    for number in [*world.t.claims.values()]:
        if not world.run_by_a_pack(number) and (always or chance.random() < 0.5):
            world.advance(number)


MAX_FAILURES = ModelRows.strategy.max_failures
