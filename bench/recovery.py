"""Seconds from SIGKILL to the hop running again. Redis' visibility timeout stays at an hour.

    python -m bench.recovery

Two workers with two processes each, settings as delivered, real processes killed in the middle of a hop's
data. The clock stops at the start of the hop's next attempt, as its audit row has it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results import at_most, table
from tests.acceptance.crash.stage import PATIENT, Stage
from tests.rows import rows
from tests.waiting import until

ROUNDS = 12
# The goals of the pool's child and of the worker; a statement must first be ended by Postgres, which
# looks for its client every half second.
GOALS = {
    "pool child killed": 0.7,
    "worker killed, another alive": 0.7,
    "worker killed inside a statement": 1.5,
}


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure on private servers.

    Returns:
        One entry for each kind of death: `name`, all `seconds` and their `median`; the rest as
        `bench.results.at_most` has it, in seconds.
    """
    rounds = 3 if quick else ROUNDS
    delivered = {"GRAPH_MIGRATOR_DEADLINE_SECONDS": "30"}
    with (
        tempfile.TemporaryDirectory(prefix="gm-bench-") as folder,
        Stage(Path(folder) / "stage", env=delivered) as stage,
    ):
        deaths: dict[str, Callable[[Stage], float]] = {
            "pool child killed": _child,
            "worker killed, another alive": _worker,
            "worker killed inside a statement": _inside_a_statement,
        }
        measured = {name: [death(stage) for _ in range(rounds)] for name, death in deaths.items()}
    return [
        at_most(f"seconds: {name}", seconds, GOALS[name])
        | {"seconds": [round(s, 3) for s in seconds], "median": round(statistics.median(seconds), 3)}
        for name, seconds in measured.items()
    ]


def _child(stage: Stage) -> float:
    slug, pid = _held(stage)
    killed = time.time()
    stage.kill_process(pid)
    return _started_again(stage, slug) - killed


def _worker(stage: Stage) -> float:
    slug, pid = _held(stage)
    killed = time.time()
    stage.kill_group(pid)
    return _started_again(stage, slug) - killed


def _inside_a_statement(stage: Stage) -> float:
    _two_workers(stage)
    slug = f"g-{uuid.uuid4().hex[:12]}"
    stage.migrate(slug, "sleeper", seconds=300)
    until(
        lambda: rows(stage.engine, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
        "the hop asleep in Postgres",
    )
    (pid,) = rows(stage.engine, "SELECT pid FROM hop_attempts WHERE status = 'running'")[0]
    killed = time.time()
    stage.kill_group(pid)
    return _started_again(stage, slug) - killed


def _two_workers(stage: Stage) -> None:
    while len(stage.alive) < 2:
        stage.start_another(concurrency=2)
    stage.keep(2)
    # The pools are whole again too: what is measured is recovery, not the start of a process.
    until(lambda: all(len(worker.child_pids()) == 2 for worker in stage.alive), "whole pools")


def _held(stage: Stage) -> tuple[str, int]:
    """A hop held in the middle of its data: the graph and the process."""
    _two_workers(stage)
    slug = f"g-{uuid.uuid4().hex[:12]}"
    stage.arm("hop_in_data:2")
    stage.migrate(slug)
    return slug, stage.held()


def _started_again(stage: Stage, slug: str) -> float:
    """When the hop's next attempt began; the migration is at rest afterwards."""
    found = until(
        lambda: rows(
            stage.engine,
            "SELECT extract(epoch FROM a.started_at) FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id "
            "WHERE g.slug = :slug AND a.attempt = 2",
            slug=slug,
        ),
        "the hop running again",
        seconds=PATIENT,
    )
    until(
        lambda: rows(
            stage.engine, "SELECT 1 FROM graphs WHERE slug = :slug AND migration_id IS NULL", slug=slug
        ),
        "the migration at its end",
        seconds=PATIENT,
    )
    return float(found[0][0])


if __name__ == "__main__":
    lines = run()
    print(table(lines))
    for line in lines:
        print(f"{line['name']}: {line['seconds']}")
