"""Many runs on one database: until they are through, or until one breaks an invariant."""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import psycopg2

from graph_migrator.core.embedded import Postgres
from graph_migrator.core.execution.failpoints import POINTS
from graph_migrator.core.store.schema import upgrade
from tests.simulation.explorer import Run, run, shorten
from tests.simulation.world import Platform

CLEAN_EVERY = 100


@dataclass
class Tally:
    """What many runs amounted to."""

    runs: int = 0
    points: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    failure: str | None = None

    @property
    def never_reached(self) -> list[str]:
        """The failpoints that no run passed, or at which none was struck."""
        return [point for point in POINTS if not self.points[point] or not self.points[f"*{point}"]]

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.points += other.points
        self.ends += other.ends
        self.failure = self.failure or other.failure


def make_platform(url: str) -> Platform:
    """A database with our schema, made anew."""
    upgrade(url)
    return Platform(url)


def explore(
    platform: Platform,
    seeds: list[str],
    *,
    progress: bool = False,
    trace: bool = False,
    budget: float = math.inf,
) -> Tally:
    """Run seeds until one breaks an invariant; then look for a shorter way there.

    Args:
        platform: Where they run.
        seeds: One run each.
        progress: Print how many runs have ended.
        trace: Print what happens in each run.
        budget: Seconds after which no further run begins.
    """
    tally = Tally()
    began = time.monotonic()
    with platform.running():
        for number, seed in enumerate(seeds, 1):
            if time.monotonic() - began > budget:
                break
            if number % CLEAN_EVERY == 1:
                platform.clean()
            result = run(platform, seed)
            tally.add(Tally(1, result.points, Counter(result.ends)))
            if trace:
                print("\n".join(result.trace))
            if result.violation is not None:
                print(
                    f"\nseed {seed}: {result.violation}\nlooking for a shorter way there …", file=sys.stderr
                )
                tally.failure = describe(shorten(platform, result))
                return tally
            if progress and number % 100 == 0:
                rate = number / (time.monotonic() - began)
                print(f"\r{number} runs here, {rate:.1f} a second", end="", file=sys.stderr, flush=True)
    return tally


def describe(failed: Run) -> str:
    """The seed, the trace and what broke."""
    trace = "\n".join(f"  {line}" for line in failed.trace)
    return f"{trace}\n\n{failed.violation}\nagain: python -m tests.simulation --only {failed.seed}"


def explore_at(url: str, seeds: list[str], progress: bool, budget: float) -> Tally:
    """The same in a process of its own."""
    platform = make_platform(url)
    try:
        return explore(platform, seeds, progress=progress, budget=budget)
    finally:
        platform.close()


def explore_together(
    server: Postgres, seeds: list[str], *, jobs: int, progress: bool = False, budget: float = math.inf
) -> Tally:
    """The same in several processes, each with a database of its own."""
    tally = Tally()
    urls = [make_database(server, f"simulation_{job}") for job in range(jobs)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [
            pool.submit(explore_at, url, seeds[job::jobs], progress and job == 0, budget)
            for job, url in enumerate(urls)
        ]
        for share in shares:
            tally.add(share.result())
    return tally


def make_database(server: Postgres, name: str) -> str:
    """An empty database on a server."""
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {name}")
    finally:
        connection.close()
    return server.url_of(name)
