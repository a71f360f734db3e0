"""The Prometheus endpoint of a real worker."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from graph_migrator import migrate_graph
from graph_migrator.core.embedded import Postgres, Redis, free_port
from graph_migrator.core.store.schema import upgrade
from tests.acceptance.cluster import Cluster
from tests.waiting import until

SOON = 40


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster


def scraped(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_worker_exports_what_happened_to_all(cluster: Cluster) -> None:
    port = free_port()
    worker = cluster.start_worker(arguments=("--metrics-port", str(port)))
    cluster.add_graph("good", "trail")
    cluster.add_graph("bad", "trail")
    cluster.steer("fail", "bad", "second", "not today")
    kill = cluster.steer("kill", "good", "second")
    good, bad = migrate_graph.delay("good", 3), migrate_graph.delay("bad", 5)
    until(lambda: cluster.started("good")["second"] == 2, "killed once, started again", seconds=SOON)
    kill.unlink(missing_ok=True)
    with pytest.raises(Exception, match="not today"):
        bad.get(timeout=SOON)
    good.get(timeout=SOON)
    found = scraped(port)
    assert found["graph_migrator_up", ()] == 1
    assert found["graph_migrator_migrations", ("trail", "succeeded")] == 1
    assert found["graph_migrator_migrations", ("trail", "failed")] == 1
    assert found["graph_migrator_hop_seconds_count", ("trail", "first", "succeeded")] == 2
    assert found["graph_migrator_lost_attempts_total", ("trail", "second")] >= 1
    assert found["graph_migrator_recovery_seconds_count", ()] >= 1
    assert found["graph_migrator_rows_changed_total", ("trail", "first")] == 6
    assert found["graph_migrator_graphs_behind", ("trail",)] == 2  # at 3 and 2, of 5
    assert found["graph_migrator_queue_age_seconds", ()] == 0

    # Another worker exports the same, and on a port that is taken a worker works all the same.
    other = free_port()
    cluster.start_worker("w2", env={"GRAPH_MIGRATOR_METRICS_PORT": str(other)})
    counted = {key: value for key, value in found.items() if key[0].endswith("_total")}
    assert {key: scraped(other)[key] for key in counted} == counted
    third = cluster.start_worker("w3", arguments=("--metrics-port", str(port)))
    assert "no metrics are served on 127.0.0.1" in third.text()

    assert cluster.terminate(worker, seconds=60) == 0
    with pytest.raises(urllib.error.URLError):
        scraped(port)


def test_it_listens_on_loopback_only(cluster: Cluster) -> None:
    port = free_port()
    worker = cluster.start_worker(arguments=("--metrics-port", str(port)))
    addresses = {
        each.laddr.ip
        for each in psutil.Process(worker.pid).net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }
    assert addresses == {"127.0.0.1"}


def test_a_child_forked_later_does_not_keep_the_port(cluster: Cluster) -> None:
    """Else the port would stay taken for as long as that child outlives a main process that was killed."""
    port = free_port()
    worker = cluster.start_worker(concurrency=1, arguments=("--metrics-port", str(port)))
    (first,) = worker.child_pids()
    cluster.kill_child(first)
    (second,) = until(lambda: [p for p in worker.child_pids() if p != first], "a new child", seconds=SOON)

    def listens() -> bool:
        found = psutil.Process(second).net_connections(kind="inet")
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)

    until(lambda: not listens(), "the new child let go of the port", seconds=SOON)
    assert scraped(port)["graph_migrator_up", ()] == 1


def test_a_scrape_says_when_postgres_is_away(tmp_path: Path, redis_server: Redis) -> None:
    port = free_port()
    with Postgres(durable=False) as postgres:
        upgrade(postgres.url)
        with Cluster(tmp_path, database_url=postgres.url, redis=redis_server) as cluster:
            cluster.start_worker(arguments=("--metrics-port", str(port)))
            assert scraped(port)["graph_migrator_up", ()] == 1
            postgres.stop()
            assert scraped(port) == {("graph_migrator_up", ()): 0}
            postgres.start()
            assert scraped(port)["graph_migrator_up", ()] == 1
