"""A rollout with real workers: a canary catches a fault, workers are killed, and each effect is there once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import Cluster
from tests.integration.console import spawn
from tests.rows import properties, rows
from tests.waiting import until

TYPES = "tests.acceptance.fleet_types:tenant"
MENDED = {"GRAPH_MIGRATOR_TEST_MENDED": "1"}
GRAPHS = 60


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Any:
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, types=TYPES) as cluster:
        yield cluster


def command(cluster: Cluster, *words: object, env: dict[str, str] | None = None) -> str:
    outcome = spawn("rollout", *words, env=cluster.environment | (env or {}))
    assert outcome.exit_code == 0, outcome
    return outcome.out


def state(cluster: Cluster) -> tuple[str, str | None]:
    ((status, reason),) = rows(cluster.engine, "SELECT status, hold->>'reason' FROM rollouts")
    return status, reason


@pytest.mark.timeout(240)
def test_sixty_graphs_with_a_fault_that_a_canary_catches_and_workers_that_are_killed(
    cluster: Cluster,
) -> None:
    odd = {f"t{number:02}" for number in (17, 41)}
    for number in range(GRAPHS):
        slug = f"t{number:02}"
        cluster.add_graph(slug, "tenant", nodes=2, label="Odd" if slug in odd else "Person")
    first, second = (cluster.start_worker(name, wait=False) for name in ("w1", "w2"))
    first.wait_until_ready()
    second.wait_until_ready()

    command(cluster, "start", "tenant", "--all", "--canaries", 4, "--bake-seconds", 0, "--max-in-flight", 4)
    until(lambda: state(cluster) == ("held", "breaker"), "the canary with the odd shape holds it", seconds=60)
    shown = command(cluster, "show", "tenant").splitlines()
    assert "of the canaries failed (t" in shown[0]
    assert "rollout errors" in shown[1]
    until(lambda: counts(cluster).get("dispatched", 0) == 0, "what was in flight has ended", seconds=60)
    assert counts(cluster) == {"failed": 1, "succeeded": 3, "pending": GRAPHS - 4}

    # The deploy that mends the hop.
    for worker in (first, second):
        cluster.kill_worker(worker)
    third = cluster.start_worker("w3", env=MENDED)
    cluster.start_worker("w4", env=MENDED)
    command(cluster, "retry", "tenant")
    command(cluster, "resume", "tenant", "--accept-new-code", env=MENDED)
    until(lambda: state(cluster) == ("held", "gate"), "the canaries have passed", seconds=60)

    hold = cluster.folder / "hold-t30"
    hold.touch()
    command(cluster, "promote", "tenant")
    until(lambda: "t30 " in (cluster.folder / "begun").read_text(), "a hop of the wave runs", seconds=60)
    cluster.kill_worker(third)
    hold.unlink()
    cluster.start_worker("w5", env=MENDED)
    until(lambda: state(cluster)[0] == "succeeded", "all graphs are moved", seconds=120)

    assert counts(cluster) == {"succeeded": GRAPHS}
    assert rows(cluster.engine, "SELECT DISTINCT version FROM graphs") == [(3,)]
    assert rows(cluster.engine, "SELECT count(*), count(DISTINCT graph_id) FROM migrations") == [
        (GRAPHS, GRAPHS)
    ]
    for number in range(GRAPHS):
        for values in properties(cluster.engine, f"t{number:02}").values():
            assert values["trail"] == ["first", "second"]
    totals = rows(cluster.engine, "SELECT sum(succeeded), sum(size) FROM rollout_stages")
    assert totals == [(GRAPHS, GRAPHS)]


def counts(cluster: Cluster) -> dict[str, int]:
    found = rows(cluster.engine, "SELECT status, count(*) FROM rollout_members GROUP BY 1")
    return {status: count for status, count in found}
