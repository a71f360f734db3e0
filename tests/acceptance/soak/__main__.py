"""A soak: 20 graphs go up and down while processes are killed at random. ``make soak DURATION=600 SEED=7``.

Ends with a tally, and with exit code 1 if anything was lost, done twice or left unexplained.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random, SystemRandom

from sqlalchemy.exc import DBAPIError

from graph_migrator import migrate_graph
from tests.acceptance.crash.stage import Stage
from tests.acceptance.soak import storm, tide
from tests.acceptance.soak.killer import Killer
from tests.acceptance.soak.verdict import violations
from tests.rows import add_graph, rows
from tests.waiting import until

GRAPHS, TOP = 20, 7
SETTLING_SECONDS = 180
# The killer may hit one hop any number of times; that is no fault of the hop's.
ENVIRONMENT = {
    "GRAPH_MIGRATOR_MAX_CRASHES": "100000",
    "GRAPH_MIGRATOR_MAX_INTERRUPTIONS": "100000",
    "GRAPH_MIGRATOR_MAX_TRANSIENT_TRIES": "100000",
    "GRAPH_MIGRATOR_DEADLINE_MAX_SECONDS": "10",
}


class Callers:
    """Ask for each graph's next migration when the last one has ended."""

    def __init__(self, stage: Stage, slugs: list[str]) -> None:
        self.stage = stage
        self.asked = dict.fromkeys(slugs, 0.0)
        self.calls = 0

    def ask(self) -> None:
        """Call `migrate_graph` for every graph that stands still."""
        for slug, version in rows(
            self.stage.engine, "SELECT slug, version FROM graphs WHERE migration_id IS NULL"
        ):
            # A call that vanished with the broker before any worker began it is the caller's to repeat.
            if time.monotonic() - self.asked[slug] > 3:
                migrate_graph.delay(slug, TOP if version < TOP else 1)
                self.asked[slug] = time.monotonic()
                self.calls += 1

    def see(self) -> None:
        """Note which graphs are on their way: the next call need not wait."""
        for (slug,) in rows(self.stage.engine, "SELECT slug FROM graphs WHERE migration_id IS NOT NULL"):
            self.asked[slug] = 0.0


def soak(duration: float, seed: int) -> int:
    """Run it; the exit code."""
    print(f"soak of {duration:g} s, seed {seed}", flush=True)
    slugs = [f"tide-{i:02}" for i in range(GRAPHS)]
    with (
        tempfile.TemporaryDirectory(prefix="gm-soak-") as folder,
        Stage(Path(folder) / "stage", types="tests.acceptance.soak.tide:tide", env=ENVIRONMENT) as stage,
    ):
        for slug in slugs:
            add_graph(stage.engine, slug, "tide", nodes=tide.NODES)
        for _ in range(2):
            stage.start_another(concurrency=2)
        for worker in stage.alive:
            worker.wait_until_ready()
        killer, callers = Killer(stage, Random(seed)), Callers(stage, slugs)
        _storm(duration, killer, callers)
        settled = _settle(stage)
        wrong = violations(stage, slugs) + ([] if settled else [f"not at rest after {SETTLING_SECONDS} s"])
        _report(stage, killer, callers, wrong)
    return 1 if wrong else 0


def _storm(duration: float, killer: Killer, callers: Callers) -> None:
    end = time.monotonic() + duration
    strike = time.monotonic() + killer.pause()
    while time.monotonic() < end:
        with suppress(DBAPIError):  # Postgres is being restarted
            callers.see()
            callers.ask()
            if time.monotonic() >= strike:
                killer.strike()
                strike = time.monotonic() + killer.pause()
        time.sleep(0.1)


def _settle(stage: Stage) -> bool:
    stage.keep(2)
    try:
        until(lambda: not _busy(stage), "every migration ended", seconds=SETTLING_SECONDS, pause=0.5)
        stage.an_hour_passes()  # what dead workers had in hand comes back now, and must do nothing
        until(lambda: not stage.unsettled_messages(), "no message left", seconds=SETTLING_SECONDS, pause=0.5)
    except AssertionError:
        return False
    return True


def _busy(stage: Stage) -> list[object]:
    return list(
        rows(
            stage.engine,
            "SELECT 1 FROM graphs WHERE migration_id IS NOT NULL OR changed_at IS NULL "
            "UNION ALL SELECT 1 FROM requests WHERE answered_at IS NULL",
        )
    )


def _report(stage: Stage, killer: Killer, callers: Callers, wrong: list[str]) -> None:
    log = "".join(worker.text() for worker in stage.workers)
    ends = dict(rows(stage.engine, "SELECT status, count(*) FROM hop_attempts GROUP BY status"))
    ((migrations,),) = rows(stage.engine, "SELECT count(*) FROM migrations")
    print(f"migrations      {migrations} of {GRAPHS} graphs, by {callers.calls} calls")
    print(f"hops committed  {ends.get('succeeded', 0)}")
    for kind, count in sorted(killer.tally.items()):
        print(f"  {kind:<20} {count}")
    print(f"attempts lost   {ends.get('lost', 0)}, failed and tried again {ends.get('failed', 0)}")
    print(
        f"recoveries      {log.count('(Redispatch)')} dispatched anew, {log.count('(Redeliver)')} redelivered for"
    )
    seconds = _seconds_to_next_attempt(stage, killer)
    if len(seconds) > 1:
        p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        print(
            f"kill to next attempt  p50 {statistics.median(seconds):.2f} s, p95 {p95:.2f} s, "
            f"max {max(seconds):.2f} s (of {len(seconds)})"
        )
    print(f"invariant violations  {len(wrong)}")
    for line in wrong:
        print(f"  {line}")


def _seconds_to_next_attempt(stage: Stage, killer: Killer) -> list[float]:
    lost = rows(
        stage.engine,
        "SELECT pid, extract(epoch FROM started_at), extract(epoch FROM (SELECT min(b.started_at) FROM hop_attempts b "
        "WHERE b.migration_id = a.migration_id AND b.id > a.id)) FROM hop_attempts a WHERE status = 'lost'",
    )
    seconds = []
    for pid, started, next_started in lost:
        kills = [at for killed, at in killer.killed if killed == pid and started <= at <= (next_started or 0)]
        if kills:
            seconds.append(float(next_started) - min(kills))
    return seconds


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.soak", description=__doc__)
    parser.add_argument("--duration", type=float, default=120, help="seconds of killing")
    parser.add_argument("--seed", type=int, default=0, help="what happens when; 0 draws one")
    parser.add_argument("--rollout", action="store_true", help="a storm over a rollout of 500 graphs instead")
    parser.add_argument("--graphs", type=int, default=500, help="how many graphs the rollout moves")
    options = parser.parse_args()
    seed = options.seed or SystemRandom().randrange(1, 1_000_000)
    if options.rollout:
        print(
            f"storm over a rollout of {options.graphs} graphs, {options.duration:g} s, seed {seed}",
            flush=True,
        )
        with tempfile.TemporaryDirectory(prefix="gm-storm-") as folder:
            return storm.run(Path(folder) / "stage", options.graphs, options.duration, seed)
    return soak(options.duration, seed)


if __name__ == "__main__":
    sys.exit(main())
