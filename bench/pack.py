"""What one graph of a pack costs, beside a plain loop of the same commits: one process each, without Celery.

    python -m bench.pack [--graphs 150] [--rounds 8] [--functions]

Rounds are in pairs, and short, so that what else the machine does falls on both. CPU is this process's and that of its
sessions in Postgres; the rest of the time is waiting, for the disk above all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psutil

from bench import peers
from bench.chain import _MAKE_PLAIN, _PLAIN
from bench.database import connect, make_graphs, server
from bench.types import small
from graph_migrator.core.execution.model import Worker
from graph_migrator.core.graph_types import registry
from graph_migrator.core.rollouts.controller import move_rollouts_on
from graph_migrator.core.rollouts.packs import PackReport, Surroundings, run_pack
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.rollouts.turn import SendingPack
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

STRATEGY = Strategy(canaries=0, waves=(100,), bake_seconds=0, gate="auto", max_in_flight=1, pack_seconds=600)


@dataclass
class Cost:
    """Milliseconds."""

    wall: float = 0.0
    own: float = 0.0
    server: float = 0.0

    def of(self, count: int) -> Cost:
        """Of one of so many."""
        return Cost(self.wall / count, self.own / count, self.server / count)

    def __str__(self) -> str:
        return f"{self.wall:5.2f} ms: {self.own:4.2f} ms CPU of the process, {self.server:4.2f} of Postgres"


def measured(cost: Cost, pids: list[int], do: Callable[[], None]) -> None:
    """Add what something costs this process and those of Postgres."""
    began, own, theirs = time.perf_counter(), time.process_time(), _cpu(pids)
    do()
    cost.wall += (time.perf_counter() - began) * 1e3
    cost.own += (time.process_time() - own) * 1e3
    cost.server += (_cpu(pids) - theirs) * 1e3


def _cpu(pids: list[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


class Packs:
    """Rollouts whose packs this process runs."""

    def __init__(self, url: str) -> None:
        self.executors = Executors(make_engine(url))
        with self.executors.borrow() as one, self.executors.borrow() as other:
            self.pids = [one.backend_pid, other.backend_pid]

    def move(self, graphs: list[UUID]) -> Cost:
        """What all packs of a rollout cost, without the turns in between."""
        cost = Cost()
        request = RolloutRequest(graph_type="bench-small", graphs=tuple(map(str, graphs)), strategy=STRATEGY)
        with self.executors.borrow() as executor:
            start(executor, request)
        while packs := self._turn():
            for pack in packs:
                measured(cost, self.pids, lambda pack=pack: self._run(pack))  # type: ignore[misc]
        return cost.of(len(graphs))

    def _turn(self) -> list[SendingPack]:
        with self.executors.borrow() as executor:
            return [each for each in move_rollouts_on(executor) if isinstance(each, SendingPack)]

    def _run(self, pack: SendingPack) -> None:
        report = run_pack(self.executors, pack.pack_id, Worker("bench"), Surroundings(lambda *_: None))
        assert isinstance(report, PackReport)
        assert report.moved == pack.size


def _loop(cursor: Any, count: int) -> Cost:
    cost, ids = Cost(), [str(uuid4()) for _ in range(count)]
    cursor.execute(_MAKE_PLAIN, {"ids": ids})

    def run() -> None:
        for graph in ids:
            for hop in peers.HOPS:
                peers.commit_hop(graph, hop)

    measured(cost, [peers._connection().info.backend_pid], run)
    return cost.of(count)


def run(graphs: int, rounds: int, *, functions: bool = False) -> list[float]:
    """The rates of packs, each over that of the loop beside it."""
    registry.register(small)
    with ExitStack() as stack:
        postgres = stack.enter_context(server(track_functions="all" if functions else "none"))
        upgrade(postgres.url)
        os.environ["BENCH_DATABASE"] = postgres.url
        cursor = connect(postgres.url).cursor()
        cursor.execute(_PLAIN)
        packs = Packs(postgres.url)
        stack.callback(packs.executors.close)
        packs.move(make_graphs(cursor, "bench-small", 40))
        _loop(cursor, 40)
        cursor.execute("SELECT pg_stat_reset()")
        ratios = []
        for turn in range(rounds):
            loop = _loop(cursor, graphs) if turn % 2 else None
            pack = packs.move(make_graphs(cursor, "bench-small", graphs))
            loop = loop or _loop(cursor, graphs)
            print(f"a graph of a pack {pack}; in a plain loop {loop}", flush=True)
            ratios.append(loop.wall / pack.wall)
        print(f"packs / plain loop: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        if functions:
            packs.executors.close()
            _print_functions(cursor, graphs * rounds)
        return ratios


def _print_functions(cursor: Any, graphs: int) -> None:
    time.sleep(1.5)  # the server's counters come late
    cursor.execute(
        "SELECT funcname, calls, self_time * 1000 FROM pg_stat_user_functions WHERE calls >= %s ORDER BY 3 DESC",
        (graphs // 2,),
    )
    for name, calls, micros in cursor.fetchall():
        print(f"{name:22} {calls / graphs:4.1f} calls a graph, {micros / graphs:5.0f} µs by itself")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.pack", description=__doc__)
    parser.add_argument("--graphs", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--functions", action="store_true", help="also what each function of the schema costs"
    )
    given = parser.parse_args()
    run(given.graphs, given.rounds, functions=given.functions)
