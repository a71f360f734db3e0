"""How often canaries and breaker stop a fault in time: ``python -m tests.simulation_fleet --seeds 100``."""

from __future__ import annotations

import argparse
import sys
import time

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.store.connections import make_engine
from graph_migrator.core.store.schema import upgrade
from graph_migrator.core.store.session import Executors
from tests.databases import FAST, Databases, administer
from tests.simulation_fleet.breaker import MAX_FAILURES, caught_by_a_canary, failed_without_canaries

SHARE = 0.95
"""Of all fleets, in which a canary must meet the fault."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation_fleet", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = range(parser.parse_args().seeds)
    began = time.monotonic()
    most = [failed_without_canaries(seed) for seed in seeds]
    over = [seed for seed in seeds if most[seed][0] > MAX_FAILURES + most[seed][1]]
    print(
        f"without canaries: held after {MAX_FAILURES} failures, {max(failed for failed, _ in most)} failed at most; "
        f"more than that and what was in flight: {len(over)} of {len(seeds)} fleets {over or ''}"
    )
    with Postgres(durable=False, settings=FAST) as server:
        administer(server, "CREATE DATABASE template_migrated")
        upgrade(server.url_of("template_migrated"))
        databases = Databases(server, "template_migrated")
        missed = [seed for seed in seeds if not _caught(databases, seed)]
    print(
        f"with shapes: a canary met the fault before the first wave in {len(seeds) - len(missed)} of {len(seeds)} "
        f"fleets; missed by seeds {missed}; {time.monotonic() - began:.0f} s"
    )
    return int(bool(over) or len(missed) > (1 - SHARE) * len(seeds))


def _caught(databases: Databases, seed: int) -> bool:
    with databases.borrow() as url:
        engine = make_engine(url)
        executors = Executors(engine)
        try:
            return caught_by_a_canary(engine, executors, seed)
        finally:
            executors.close()
            engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
