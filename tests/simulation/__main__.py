"""Simulated crashes and races by the thousand: ``python -m tests.simulation --runs 20000 --seed 7``."""

from __future__ import annotations

import argparse
import math
import sys
import time

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution.failpoints import POINTS
from tests.simulation.runs import Tally, explore, explore_together, make_database, make_platform


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no run after this time")
    parser.add_argument("--every-point", action="store_true", help="fail where a failpoint was never reached")
    parser.add_argument("--only", help="one run by its own seed, as a failure names it; prints what happens")
    given = parser.parse_args()
    began = time.monotonic()
    with Postgres(durable=False) as server:
        if given.only:
            platform = make_platform(make_database(server, "simulation"))
            tally = explore(platform, [given.only], trace=True)
            platform.close()
        else:
            seeds = [f"{given.seed}:{i}" for i in range(given.runs)]
            tally = explore_together(server, seeds, jobs=given.jobs, progress=True, budget=given.seconds)
    _print(tally, time.monotonic() - began)
    if given.every_point and tally.never_reached:
        print(f"\nno run passed, or none was struck at: {tally.never_reached}")
        return 1
    return 1 if tally.failure else 0


def _print(tally: Tally, seconds: float) -> None:
    print(f"\n{tally.runs} runs in {seconds:.1f} s, {tally.runs / seconds:.1f} a second")
    print("migrations ended " + ", ".join(f"{status} {count}" for status, count in tally.ends.most_common()))
    width = max(map(len, POINTS))
    for point in POINTS:
        print(f"  {point:{width}} passed {tally.points[point]:7}, struck {tally.points[f'*{point}']:6}")
    statements = sum(
        count for point, count in tally.points.items() if point.startswith(("*before", "*after"))
    )
    print(f"  before or after a statement: struck {statements}")
    if tally.failure:
        print(f"\n{tally.failure}")


if __name__ == "__main__":
    sys.exit(main())
