"""A storm over a rollout: workers, broker and Postgres are hit while it moves a fleet, and its code changes half-way.

What hits it: everything that `Killer` knows; and the worker that moves the rollout on, or one with a pack in hand, is
killed at each place between two commits. An operator retries what failed, and resumes what is held.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy.exc import DBAPIError

from graph_migrator.core.rollouts.statuses import LIVE
from tests.acceptance.cluster import Worker
from tests.acceptance.crash.stage import Stage
from tests.acceptance.soak.killer import Killer
from tests.acceptance.soak.verdict import violations
from tests.integration.console import spawn
from tests.rows import add_graph, rows
from tests.waiting import until

PLACES = (
    "turn_before_commit",
    "turn_committed",
    "turn_sent",
    "pack_taken",
    "pack_looked",
    "pack_begun",
    "pack_left",
)
"""Where a worker dies: three places of the controller's turn, four of a pack."""
LARGE = 12
"""Nodes of the graphs that are too large for packs."""
ENVIRONMENT = {
    # The storm may hit one hop any number of times; that is no fault of the hop's.
    "GRAPH_MIGRATOR_MAX_CRASHES": "100000",
    "GRAPH_MIGRATOR_MAX_INTERRUPTIONS": "100000",
    "GRAPH_MIGRATOR_MAX_TRANSIENT_TRIES": "100000",
    "GRAPH_MIGRATOR_DEADLINE_MAX_SECONDS": "5",
}


class Fleet(Stage):
    """A stage whose workers have one of two releases."""

    release = 1
    size = 3
    """How many workers it has."""

    def start_another(self, **options: Any) -> Worker:
        """Start a worker with the present release."""
        options.setdefault("environment", {"GRAPH_MIGRATOR_TEST_RELEASE": str(self.release)})
        return super().start_another(**options)

    def rollout(self, *words: object) -> str:
        """Run a command of `rollout` as an operator with the present release; what it says."""
        environment = self.environment | {"GRAPH_MIGRATOR_TEST_RELEASE": str(self.release)}
        outcome = spawn("rollout", *words, env=environment)
        return outcome.out + outcome.err

    def standing(self) -> tuple[str, str | None, int]:
        """Status of the rollout, what it is held for, and how many members have settled."""
        ((status, reason, settled),) = rows(
            self.engine,
            "SELECT status, hold->>'reason', (SELECT sum(succeeded + failed + skipped)::integer FROM rollout_stages) "
            "FROM rollouts",
        )
        return status, reason, settled


@contextmanager
def fleet(
    folder: Path, graphs: int, *, workers: int = 3, knobs: tuple[object, ...] = ("--max-in-flight", 6)
) -> Iterator[tuple[Fleet, list[str]]]:
    """Servers, workers and a rollout that has just been started; every tenth graph is a large one."""
    slugs = [f"s-{number:04}" for number in range(graphs)]
    with Fleet(folder, types="tests.acceptance.soak.storm_types:storm", env=ENVIRONMENT) as made:
        for number, slug in enumerate(slugs):
            add_graph(made.engine, slug, "storm", nodes=2 if number % 10 else LARGE)
        made.size = workers
        for _ in range(workers):
            made.start_another(concurrency=2)
        for worker in made.alive:
            worker.wait_until_ready()
        said = made.rollout(
            "start", "storm", "--all", "--canaries", 4, "--bake-seconds", 0, "--gate", "auto",
            "--pack-rows", LARGE - 1, "--pack-seconds", 1, "--health", "false", *knobs,
        )  # fmt: skip
        assert "started" in said, said
        yield made, slugs


class Storm(Killer):
    """What hits the fleet."""

    stage: Fleet

    def __init__(self, stage: Fleet, random: Random) -> None:
        super().__init__(stage, random)
        self.deployed = False

    def strike(self) -> str:
        """Every third time a worker is killed at one of `PLACES`."""
        if self.random.random() < 0.35:
            return self.at(self.random.choice(PLACES))
        return super().strike()

    def at(self, place: str, *, seconds: float = 4) -> str:
        """Kill the worker that next gets to a place, with all its processes; nothing where none gets there in time."""
        self.stage.arm(place)
        try:
            (held,) = until(lambda: [*self.stage.hold.glob("held.*")], place, seconds=seconds, pause=0.005)
        except AssertionError:
            with suppress(FileNotFoundError):
                (self.stage.hold / "armed").unlink()
                return place
            (held,) = self.stage.hold.glob("held.*")
        pid = int(held.suffix[1:])
        with suppress(StopIteration):  # its worker has been killed meanwhile
            worker = self.stage.worker_of(pid)
            self._note(*worker.child_pids())
            worker.kill()
            self.tally[place] += 1
        self.stage.let_go()
        self.refill()
        return place

    def refill(self) -> None:
        """Start workers for those that are gone."""
        for _ in range(self.stage.size - len(self.stage.alive)):
            self.stage.start_another(concurrency=2)

    def deploy(self) -> None:
        """Replace the workers by those of the next release, one after another, as a rolling deploy does."""
        self.stage.release += 1
        for worker in self.stage.alive:
            with suppress(ProcessLookupError):
                worker.kill()
            self.stage.start_another(concurrency=2).wait_until_ready()
        self.tally["deploy"] += 1
        self.deployed = True


class Operator:
    """Does what `rollout show` says is to be done."""

    def __init__(self, stage: Fleet) -> None:
        self.stage = stage
        self.did: list[str] = []

    def look(self) -> bool:
        """Do what the rollout asks for next; whether it has ended and nothing more is to be done."""
        status, reason, _ = self.stage.standing()
        if status == "finished_with_failures":
            self._do("retry", "storm")
            return False
        if reason == "breaker":
            self._do("retry", "storm")
        if status == "held":
            self._do("resume", "storm", "--accept-new-code")
        return status not in LIVE

    def _do(self, *words: object) -> None:
        self.did.append(f"{words[0]}: {self.stage.rollout(*words).strip()}")


def rage(stage: Fleet, storm: Storm, operator: Operator, *, duration: float) -> None:
    """Strike until the time is over or nothing is left to be hit."""
    end, graphs = time.monotonic() + duration, _members(stage)
    strike = time.monotonic() + storm.pause()
    while time.monotonic() < end:
        with suppress(DBAPIError):  # Postgres is being restarted
            if not storm.deployed and stage.standing()[2] > graphs / 2:
                storm.deploy()
            if operator.look():
                break
            if time.monotonic() >= strike:
                storm.strike()
                strike = time.monotonic() + storm.pause()
        time.sleep(0.1)


def settle(stage: Fleet, operator: Operator, *, seconds: float) -> list[str]:
    """Wait for the end of the rollout with nothing more going wrong; what does not end, in words."""
    stage.keep(2)
    try:
        until(operator.look, "the rollout ended", seconds=seconds, pause=0.5)
        stage.an_hour_passes()  # what dead workers had in hand comes back now, and must do nothing
        until(lambda: not stage.unsettled_messages(), "no message left", seconds=60, pause=0.2)
        until(
            lambda: not rows(stage.engine, "SELECT FROM requests WHERE answered_at IS NULL"),
            "callers answered",
            seconds=60,
        )
    except AssertionError as error:
        return [str(error), stage.rollout("show", "storm"), *map(str, _in_hand(stage))]
    return []


def wrong(stage: Fleet, slugs: list[str]) -> list[str]:
    """Everything that does not hold after the storm, in words; empty when all is well."""
    found = violations(stage, slugs)
    counted = "SELECT stage, status, count(*) FROM rollout_members GROUP BY 1, 2"
    kept = (
        "SELECT number, v.status, v.count FROM rollout_stages, LATERAL (VALUES ('pending', pending), "
        "('dispatched', dispatched), ('succeeded', succeeded), ('failed', failed), ('skipped', skipped)) "
        "v (status, count) WHERE v.count > 0"
    )
    if set(map(tuple, rows(stage.engine, counted))) != set(map(tuple, rows(stage.engine, kept))):
        found.append(f"counters differ: {rows(stage.engine, counted)}, {rows(stage.engine, kept)}")
    for what, query in {
        "members not at the target": "SELECT m.graph, m.status, m.note, g.version FROM rollout_members m "
        "JOIN graphs g ON g.id = m.graph_id WHERE m.status <> 'succeeded' OR g.version <> 4",
        "packs open": "SELECT id, status FROM packs WHERE status <> 'closed'",
        "migrated twice": "SELECT graph_id, count(*) FROM migrations GROUP BY 1 HAVING count(*) <> 1",
        "tries that nobody sent": "SELECT m.graph, m.number, count(*) FROM rollout_members m JOIN requests q "
        "ON q.graph_id = m.graph_id GROUP BY 1, 2 HAVING count(*) > m.number",
    }.items():
        if left := rows(stage.engine, query):
            found.append(f"{what}: {left[:5]}")
    return found


def _members(stage: Fleet) -> int:
    ((count,),) = rows(stage.engine, "SELECT count(*) FROM rollout_members")
    return int(count)


def _in_hand(stage: Fleet) -> list[Any]:
    return rows(
        stage.engine,
        "SELECT m.graph, m.number, m.pack_id, g.status, g.dispatch, g.deadline - now() AS rest, a.hop_name, a.status, "
        "a.started_at FROM rollout_members m LEFT JOIN requests q ON q.task_id = m.request_id::text "
        "LEFT JOIN migrations g ON g.id = q.migration_id LEFT JOIN LATERAL (SELECT * FROM hop_attempts a "
        "WHERE a.migration_id = g.id ORDER BY id DESC LIMIT 1) a ON true WHERE m.status = 'dispatched'",
    )


def run(folder: Path, graphs: int, duration: float, seed: int) -> int:
    """The whole storm, with a tally; the exit code."""
    began = time.monotonic()
    with fleet(folder, graphs) as (stage, slugs):
        storm, operator = Storm(stage, Random(seed)), Operator(stage)
        rage(stage, storm, operator, duration=duration)
        raged = time.monotonic() - began
        found = settle(stage, operator, seconds=300) or wrong(stage, slugs)
        attempts = dict(rows(stage.engine, "SELECT status, count(*) FROM hop_attempts GROUP BY 1"))
        packs = rows(stage.engine, "SELECT count(*), sum(size) FROM packs")
        print(f"{graphs} graphs, {raged:.0f} s of storm, settled after {time.monotonic() - began:.0f} s")
        for kind, count in sorted(storm.tally.items()):
            print(f"  {kind:<20} {count}")
        print(f"hop attempts {attempts}, packs and their graphs {packs}")
        print("\n".join(f"operator: {each}" for each in operator.did))
        print(f"invariant violations  {len(found)}")
        print("\n".join(f"  {each}" for each in found))
    return 1 if found else 0
