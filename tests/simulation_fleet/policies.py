"""A fleet under an automatic policy: rollouts that end, and the next ones that the policy starts by itself."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from graph_migrator.core.rollouts.policy import Mode, PolicyFacts, StartRollout, decide_policy
from graph_migrator.core.rollouts.stages import cut_stages
from graph_migrator.core.rollouts.statuses import LIVE, MemberStatus, RolloutStatus
from tests.simulation_fleet.model import TARGET, Member, StageRow, Tables, Violated
from tests.simulation_fleet.world import World, tables

SETTLE = 12
"""Steps that all workers must have agreed."""
TRIES = 1_000
"""The tries of each rollout are numbered from a thousand of its own, as its requests bear its id."""


@dataclass(frozen=True)
class Past:
    """A rollout that has ended: what a policy asks of it."""

    automatic: bool
    code: str
    cancelled: bool
    left_out: frozenset[UUID]


class PolicyWorld(World):
    """The first rollout was started by hand; whatever is behind later is the policy's."""

    def __init__(self, t: Tables, seed: int = 0) -> None:
        super().__init__(t, seed)
        self.past: list[Past] = []
        self.automatic = False
        self.started_with = t.frozen
        self.agreed_since = 0
        self.new_graphs = 100

    # ── the policy's step ───────────────────────────────────────────────────────────────────────────

    def behind(self) -> list[UUID]:
        """Graphs that the policy may move with the code that is there."""
        left_out = {
            graph
            for past in self.past
            if past.automatic and past.code == self.codes[0]
            for graph in past.left_out
        }
        return [
            graph
            for graph, version in self.t.graphs.items()
            if version is not None
            and version < TARGET
            and graph not in self.t.claims
            and graph not in left_out
        ]

    def facts(self) -> PolicyFacts:
        """What `core.rollouts.policy` reads in Postgres."""
        mixed = len(set(self.codes)) > 1
        cancelled = any(p.automatic and p.cancelled and p.code == self.codes[0] for p in self.past)
        return PolicyFacts(
            mode=Mode.AUTOMATIC,
            live_rollout="it" if self.t.status in LIVE else None,
            fleet_held=self.t.fleet_held,
            workers=len(self.codes),
            lacking=(("w2", "has other code for its hops"),) if mixed else (),
            agreed_seconds=self.t.now - self.agreed_since,
            settle_seconds=SETTLE,
            behind=bool(self.behind()),
            cancelled="it" if cancelled else None,
        )

    def policy_turn(self) -> None:
        """A step of the sweep."""
        if self.t.status not in LIVE:
            self.put_aside()
        if isinstance(decide_policy(self.facts()), StartRollout):
            self.start(self.behind())
            self.happened["policy"] += 1

    def put_aside(self) -> None:
        """Remember the rollout that has ended, once."""
        t = self.t
        if not t.members:
            return
        left_out = {
            graph
            for graph, m in t.members.items()
            if m.status is MemberStatus.FAILED
            or (m.note == "taken out by an operator")
            or (m.status is MemberStatus.SKIPPED and m.sent and m.note != "the rollout was cancelled")
        }
        cancelled = t.status is RolloutStatus.CANCELLED
        self.past.append(Past(self.automatic, self.started_with, cancelled, frozenset(left_out)))
        t.members, t.stages, t.packs, self.executors = {}, [], {}, []
        self.broker.clear()

    def start(self, graphs: Collection[UUID]) -> None:
        """Start a rollout of these graphs, as `core.rollouts.start` does."""
        t = self.t
        if t.status in LIVE:
            raise Violated("F4", "a policy starts a second rollout of its type")
        if len(set(self.codes)) > 1 or t.now - self.agreed_since < SETTLE:
            raise Violated("F8", f"a policy starts in the middle of a deploy: {self.codes}")
        if t.fleet_held:
            raise Violated("F3", "a policy starts although all rollouts are held")
        for past in self.past:
            if (
                past.automatic
                and past.code == self.codes[0]
                and (past.cancelled or past.left_out & {*graphs})
            ):
                raise Violated(
                    "policy", "it starts again what it could not move, or what an operator cancelled"
                )
        canaries = min(2, len(graphs))
        stages = cut_stages(canaries, len(graphs) - canaries, (50, 100))
        numbers = [stage.number for stage in stages for _ in range(stage.size)]
        first = len(self.past) * TRIES + 1
        t.members = {
            g: Member(number, number=first) for g, number in zip(sorted(graphs), numbers, strict=True)
        }
        t.stages = [StageRow(Counter({MemberStatus.PENDING: stage.size})) for stage in stages]
        t.status, t.stage, t.held, t.pace = RolloutStatus.RUNNING, 0, None, None
        t.frozen = self.started_with = self.codes[0]
        t.counted_since, t.progress, self.automatic = t.now + 1, t.now, True

    # ── what happens ────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """As without a policy; and the policy's step, new graphs, and mended data."""
        before = list(self.codes)
        if self.t.members:
            super().step()
        else:
            self.t.now += 1
            if self.chance.random() < 0.1:
                self.codes = self.chance.choice([["old", "old"], ["old", "new"], ["new", "new"]])
        if self.codes != before:
            self.agreed_since = self.t.now
        dice = self.chance.random()
        if dice < 0.2:
            self.policy_turn()
        elif dice < 0.24:
            self.new_graphs += 1
            self.t.graphs[UUID(int=self.new_graphs)] = 1
            if self.chance.random() < 0.15:
                self.t.bad.add(UUID(int=self.new_graphs))

    def settle_down(self) -> None:
        """Nothing more goes wrong: the policy moves whatever is behind, and then starts nothing more."""
        self.codes, self.agreed_since = [self.codes[0]] * 2, self.t.now
        for _ in range(50):
            if self.t.status in LIVE:
                super().settle_down()
            self.t.fleet_held = False
            self.t.now += SETTLE
            self.policy_turn()
            if self.t.status not in LIVE:
                break
        else:
            raise Violated("policy", "it starts rollouts for ever")
        if self.behind() and not any(p.cancelled and p.automatic for p in self.past):
            raise Violated("policy", f"{self.behind()} were forgotten")


def explore_policy(seed: int, steps: int = 300) -> PolicyWorld:
    """One run."""
    chance = random.Random(f"policy {seed}")
    world = PolicyWorld(tables((1, 2, 2), bad=tuple(n for n in range(5) if chance.random() < 0.1)), seed)
    world.t.pack_size = chance.choice([1, 2, 4])
    for _ in range(steps):
        world.step()
    world.settle_down()
    return world
