"""A rollout of small graphs: 2,000 graphs x 3 small hops through two worker processes, against the alternatives.

    python -m bench.rollout [--graphs 2000] [--rounds 4]

All contenders commit the same three hops a graph. Rounds are interleaved, and nobody else's workers run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.chain import DBOS, Contender, _contenders, _Race, _start, _stop
from bench.database import connect, environment, server
from bench.results import at_least
from graph_migrator.core.embedded import Redis
from graph_migrator.core.rollouts.request import RolloutRequest
from graph_migrator.core.rollouts.start import start
from graph_migrator.core.rollouts.strategy import Strategy
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors

ROLLOUT, LOOPS, CHAIN = "rollout", "plain loops", "graph-migrator"
STRATEGY = Strategy(canaries=0, waves=(100,), bake_seconds=0, gate="auto", max_in_flight=4)
"""Two packs run, two wait for the next free process."""
LOOP = [sys.executable, "-m", "bench.peers", "loop"]


def run(quick: bool = False, *, graphs: int = 2_000, rounds: int = 4) -> list[dict[str, Any]]:
    """Rates of all contenders. With few graphs the start of a rollout, two turns of the controller, is most of it."""
    graphs, rounds = (200, 2) if quick else (graphs, rounds)
    with ExitStack() as stack:
        postgres, redis = stack.enter_context(server()), stack.enter_context(Redis())
        upgrade(postgres.url)
        os.environ |= environment(postgres, redis)
        race = _RolloutRace(connect(postgres.url))
        executors = Executors(make_engine(postgres.url))
        stack.callback(executors.close)
        contenders = _named(postgres.url)
        for contender in contenders:
            stack.callback(_stop, contender)
        for turn in range(rounds):
            for contender in contenders if turn % 2 == 0 else contenders[::-1]:
                _start(contender)
                race.race(contender, 100, executors, record=False)
                race.race(contender, graphs, executors)
                _stop(contender)
        for each in contenders:
            print(
                f"rollout: {each.name:24} {statistics.median(each.rates):6.1f} graphs/s "
                f"({min(each.rates):.0f} to {max(each.rates):.0f})",
                flush=True,
            )
        return _lines({each.name: each for each in contenders})


def _named(url: str) -> list[Contender]:
    by_name = {each.name: each for each in _contenders(url)}
    ours = by_name[CHAIN]
    rollout = Contender(ROLLOUT, ours.send, ours.command, ready=ours.ready, ours=True)
    loops = Contender(LOOPS, ours.send)
    return [rollout, by_name["Procrastinate"], by_name[DBOS], ours, loops]


def _lines(by_name: dict[str, Contender]) -> list[dict[str, Any]]:
    def rate(name: str) -> list[float]:
        return [a / b for a, b in zip(by_name[ROLLOUT].rates, by_name[name].rates, strict=True)]

    return [
        at_least("Rollout: graphs/s / Procrastinate", rate("Procrastinate"), 2.0),
        at_least(f"Rollout: graphs/s / best {DBOS}", rate(DBOS), 2.0),
        at_least("Rollout: graphs/s / our own chain", rate(CHAIN), 3.5),
        at_least("Rollout: graphs/s / plain loop of commits in as many processes", rate(LOOPS), 0.55),
    ]


class _RolloutRace(_Race):
    def race(self, contender: Contender, count: int, executors: Executors, *, record: bool = True) -> None:
        """Move so many graphs, and wait for the last one."""
        ids = self._graphs(contender, count)
        loops = (
            [subprocess.Popen(LOOP, stdin=subprocess.PIPE, text=True) for _ in range(2)]
            if contender.name == LOOPS
            else []
        )
        if loops:
            time.sleep(1.5)  # their imports are no part of it
        began = time.perf_counter()
        if contender.name == ROLLOUT:
            self._start_rollout(ids, executors)
        elif loops:
            for place, loop in enumerate(loops):
                assert loop.stdin is not None
                loop.stdin.write("\n".join(ids[place::2]))
                loop.stdin.close()
        else:
            for graph in ids:
                contender.send(graph)
        self._wait(contender, ids, 0.01)
        if record:
            contender.rates.append(count / (time.perf_counter() - began))
        for loop in loops:
            loop.wait()
        if contender.name == ROLLOUT:
            self._wait_for_the_end()

    def _start_rollout(self, ids: list[str], executors: Executors) -> None:
        request = RolloutRequest(graph_type="bench-small", graphs=tuple(ids), strategy=STRATEGY)
        with executors.borrow() as executor:
            start(executor, request)

    def _wait_for_the_end(self) -> None:
        """The next one may start: the controller has taken everything in."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.cursor.execute(
                "SELECT count(*) FROM graph_migrator.rollouts WHERE status NOT IN ('succeeded', 'cancelled')"
            )
            if not self.cursor.fetchone()[0]:
                return
            time.sleep(0.05)
        raise TimeoutError("the rollout did not end")


if __name__ == "__main__":
    from bench.results import table

    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("--graphs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    print(table(run(graphs=given.graphs, rounds=given.rounds)))
