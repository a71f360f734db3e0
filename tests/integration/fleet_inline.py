"""A rollout without a broker: turns of the controller, and members that run in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from graph_migrator import GraphType, HopContext
from graph_migrator.core.decisions import Ignored
from graph_migrator.core.errors import GraphMigratorError
from graph_migrator.core.execution.in_process import follow
from graph_migrator.core.execution.model import Dispatch, Worker
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.inspection import RolloutState, show
from graph_migrator.core.rollouts.members import OtherCode, begin_member
from graph_migrator.core.rollouts.packs import PackReport, Surroundings, run_pack
from graph_migrator.core.rollouts.request import RolloutPlan, RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn import Sending, SendingPack
from graph_migrator.core.store.session import Executors
from tests.rows import add_graph, rows

QUICK = Strategy(bake_seconds=0, gate="auto", canaries=2, max_in_flight=4, packs=False)
PACKED = QUICK.model_copy(update={"packs": True, "canaries": 0, "waves": (100,)})


def tenants(
    broken: Callable[[str], bool] = lambda _: False,
    name: str = "tenant",
    *,
    retry_on: tuple[type[Exception], ...] = (),
) -> GraphType:
    """A type of three versions; its second hop fails on some graphs."""
    made = GraphType(name)

    @made.hop(1, 2)
    def rename(ctx: HopContext) -> None:
        """A hop."""
        ctx.execute("UPDATE nodes SET label = 'Renamed' WHERE graph_id = :graph_id")

    def divide(ctx: HopContext) -> None:
        """Another hop."""
        if broken(ctx.graph.slug):
            raise ValueError(f"graph {ctx.graph.slug} has an odd node 'n{len(ctx.graph.slug)}'")
        ctx.execute("UPDATE nodes SET properties = properties || '{\"v\": 3}' WHERE graph_id = :graph_id")

    made.hop(2, 3, retry_on=retry_on)(divide)
    return made


def mended(name: str = "tenant") -> GraphType:
    """The same type after the deploy that mends its second hop."""
    made = GraphType(name)

    @made.hop(1, 2)
    def rename(ctx: HopContext) -> None:
        """A hop."""
        ctx.execute("UPDATE nodes SET label = 'Renamed' WHERE graph_id = :graph_id")

    @made.hop(2, 3)
    def divide(ctx: HopContext) -> None:
        """Another hop, mended."""
        ctx.execute("UPDATE nodes SET properties = properties || '{\"v\": 3}' WHERE graph_id = :graph_id")

    return made


def add_tenants(engine: Engine, count: int, *, version: int = 1, prefix: str = "t", **options: Any) -> None:
    for number in range(count):
        add_graph(engine, f"{prefix}{number:03}", "tenant", version, nodes=1 + number % 3, **options)


class Fleet:
    """Drives rollouts on one database."""

    def __init__(self, executors: Executors) -> None:
        self.executors = executors
        self.queue: list[Sending | SendingPack] = []
        self.chains: list[Dispatch] = []  # what packs have sent on

    def start(self, strategy: Strategy = QUICK, **values: Any) -> RolloutPlan:
        with self.executors.borrow() as executor:
            return start(executor, RolloutRequest(graph_type="tenant", strategy=strategy, **values))

    def do(self, verb: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self.executors.borrow() as executor:
            return verb(executor, *arguments, **options)

    def show(self) -> RolloutState:
        found: RolloutState = self.do(show, "tenant")
        return found

    def turn(self) -> list[Sending | SendingPack]:
        """One turn; its messages wait in `queue`."""
        with self.executors.borrow() as executor:
            sent = move_rollouts_on(executor)
        self.queue += sent
        return sent

    def begin(self, sending: Sending) -> Any:
        """What the task does with a message; an error is what the caller would get."""
        with self.executors.borrow() as executor, suppress(GraphMigratorError):
            return begin_member(executor, sending.rollout_id, sending.graph_id, sending.number)
        return None

    def run_pack(self, pack_id: UUID, **around: Any) -> PackReport | Ignored | OtherCode:
        """What the task does with a pack's message."""
        around = {"send_later": lambda dispatch, seconds: self.chains.append(dispatch)} | around
        return run_pack(self.executors, pack_id, Worker("w"), Surroundings(**around))

    def deliver(self) -> None:
        """Every message that waits; those that this process has not the code for wait on."""
        waiting, self.queue = self.queue, []
        chains, self.chains = self.chains, []
        for dispatch in chains:
            with suppress(Exception):
                follow(self.executors, dispatch)
        for sending in waiting:
            if isinstance(sending, SendingPack):
                if isinstance(self.run_pack(sending.pack_id), OtherCode):
                    self.queue.append(sending)
                continue
            match self.begin(sending):
                case Dispatch() as begun:
                    with suppress(Exception):
                        follow(self.executors, begun)
                case OtherCode():
                    self.queue.append(sending)
                case Ignored() | _:
                    pass

    def run(self, most: int = 200) -> RolloutState:
        """Turns and deliveries until nothing moves any more."""
        for _ in range(most):
            sent = self.turn()
            if not sent and not self.queue and not self.chains:
                self.turn()  # the outcomes of the last delivery
                if not self.queue:
                    return self.show()
            self.deliver()
        raise AssertionError(f"it still moves: {self.show()}")


def counted_right(engine: Engine) -> bool:
    """F6: the counters are what a count finds."""
    return not rows(
        engine,
        "SELECT s.number FROM rollout_stages s WHERE (s.pending, s.dispatched, s.succeeded, s.failed, s.skipped) <> "
        "(SELECT count(*) FILTER (WHERE m.status = 'pending'), count(*) FILTER (WHERE m.status = 'dispatched'), "
        "count(*) FILTER (WHERE m.status = 'succeeded'), count(*) FILTER (WHERE m.status = 'failed'), "
        "count(*) FILTER (WHERE m.status = 'skipped') FROM rollout_members m "
        "WHERE m.rollout_id = s.rollout_id AND m.stage = s.number)",
    )
