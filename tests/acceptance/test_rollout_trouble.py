"""What a rollout does to real workers when its hop kills processes, and what it leaves alone while others wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graph_migrator import migrate_graph
from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import Cluster
from tests.integration.console import spawn
from tests.rows import properties, rows
from tests.waiting import until

SOON = 60
PLACES = 3
DEADLY = range(4, 12)
"""Graphs whose hop kills its process. Twelve in all: a rollout that did not stop would kill 24 processes."""


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Any:
    env = {"GRAPH_MIGRATOR_HEALTH_LIMITS": '{"broker_queue": [5, 10]}'}
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, env=env) as cluster:
        yield cluster


def command(cluster: Cluster, *words: object) -> str:
    outcome = spawn("rollout", *words, env=cluster.environment)
    assert outcome.exit_code == 0, outcome
    return outcome.out


def hold(cluster: Cluster) -> tuple[str, str | None]:
    ((status, reason),) = rows(cluster.engine, "SELECT status, hold->>'reason' FROM rollouts")
    return status, reason


def losses(cluster: Cluster) -> list[Any]:
    """How each attempt ended, and how its process died as far as the worker has seen it."""
    return rows(
        cluster.engine,
        "SELECT g.slug, a.id, a.status, a.worker, a.pid, l.because, l.how, a.started_at::time, a.finished_at::time, "
        "a.error_message FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id LEFT JOIN losses l "
        "ON l.attempt_id = a.id WHERE a.hop_name = 'second' ORDER BY g.slug, a.id",
    )


def members(cluster: Cluster) -> dict[str, int]:
    return {
        status: count
        for status, count in rows(cluster.engine, "SELECT status, count(*) FROM rollout_members GROUP BY 1")
    }


@pytest.mark.timeout(240)
def test_a_storm_of_hops_that_kill_their_process_is_stopped_and_others_go_on(
    cluster: Cluster,
) -> None:
    slugs = [f"g{number:02}" for number in range(12)]
    for slug in slugs:
        cluster.add_graph(slug, "trail")
    orders = [cluster.steer("kill", slugs[number], "second") for number in DEADLY]
    workers = [cluster.start_worker(name, wait=False) for name in ("w1", "w2")]
    for worker in workers:
        worker.wait_until_ready()
    command(
        cluster, "start", "trail", "--to", 3, "--all", "--canaries", 0, "--waves", 100,
        "--max-in-flight", PLACES,
    )  # fmt: skip
    until(lambda: hold(cluster) == ("held", "breaker"), "the breaker holds it", seconds=2 * SOON)
    until(lambda: "dispatched" not in members(cluster), "what was in flight has ended", seconds=SOON)
    shown = command(cluster, "show", "trail").splitlines()
    assert "killed their process" in shown[0]

    # Two graphs are the limit; whatever else was in flight at the second one may have been as deadly.
    killed = [slugs[number] for number in DEADLY if cluster.started(slugs[number])["second"]]
    assert 2 <= members(cluster)["failed"] <= len(killed) <= 2 - 1 + PLACES
    starts = {slug: cluster.started(slug)["second"] for slug in killed}
    # Three deaths are the limit; one more where a busy worker records one later than the pause before the next start.
    assert all(count <= 4 for count in starts.values()), (starts, losses(cluster))
    cluster.add_graph("other", "trail")
    assert migrate_graph.delay("other", 3).get(timeout=SOON).version == 3
    assert all(worker.is_alive for worker in workers)

    for order in orders:
        order.unlink()
    command(cluster, "retry", "trail")
    command(cluster, "resume", "trail")
    until(lambda: hold(cluster)[0] == "succeeded", "all graphs are moved", seconds=2 * SOON)
    assert members(cluster) == {"succeeded": 12}
    for slug in slugs:
        for values in properties(cluster.engine, slug).values():
            assert values["trail"] == ["first", "second"]


@pytest.mark.timeout(240)
def test_a_full_queue_holds_a_rollout_until_the_calls_of_others_are_through(cluster: Cluster) -> None:
    for number in range(16):
        cluster.add_graph(f"call{number:02}", "trail")
    for number in range(6):
        cluster.add_graph(f"g{number}", "batched_trail")
    held = cluster.steer("hold", "call00", "first")
    calls = [migrate_graph.delay(f"call{number:02}", 2) for number in range(16)]
    worker = cluster.start_worker(concurrency=1)
    until(lambda: "call00 first" in begun(cluster), "the only process is busy", seconds=SOON)
    command(
        cluster, "start", "batched_trail", "--all", "--canaries", 0, "--waves", "50,100", "--max-in-flight", 2,
    )  # fmt: skip
    until(lambda: hold(cluster) == ("held", "health"), "the full queue holds it", seconds=SOON)
    assert "broker_queue is " in command(cluster, "show", "batched_trail").splitlines()[0]
    sent = rows(cluster.engine, "SELECT count(*) FROM rollout_members WHERE status <> 'pending'")
    assert sent[0][0] <= 2

    held.unlink()
    for call in calls:
        assert call.get(timeout=SOON).version == 2
    assert hold(cluster)[0] == "held"

    def through() -> bool:
        with cluster.engine.begin() as connection:  # thirty seconds pass
            connection.execute(
                text("UPDATE health_signals SET better_since = better_since - interval '31 s'")
            )
        return hold(cluster)[0] == "succeeded"

    until(through, "it went on by itself", seconds=SOON, pause=0.5)
    assert worker.is_alive
    assert members(cluster) == {"succeeded": 6}


def begun(cluster: Cluster) -> str:
    path = cluster.folder / "invocations"
    return path.read_text() if path.exists() else ""
