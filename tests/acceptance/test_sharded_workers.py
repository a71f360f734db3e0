"""Hops in shards on real workers: what else they hold up, time limits, deaths and deploys on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graph_migrator import migrate_graph, retry_migration
from graph_migrator.core.errors import HopCodeChanged, HopTimedOut
from graph_migrator.core.statuses import MigrationStatus
from tests.acceptance.cluster import Cluster
from tests.rows import graph_row, migration_of, properties, rows
from tests.waiting import until

SOON = 40
NEXT_RELEASE = {
    "GRAPH_MIGRATOR_TYPES": "tests.acceptance.sharded_types:NEXT",
    "GRAPH_MIGRATOR_DEPLOY_SECONDS": "1",
}


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("shards"), types="tests.acceptance.sharded_types:ALL") as cluster:
        yield cluster


def shards(cluster: Cluster, slug: str) -> list[tuple[object, ...]]:
    """(shard, status) of all attempts, in order of their start."""
    return rows(
        cluster.engine,
        "SELECT a.shard, a.status FROM hop_attempts a JOIN graphs g ON g.id = a.graph_id WHERE g.slug = :slug "
        "ORDER BY a.id",
        slug=slug,
    )


def wait_for_announcements(cluster: Cluster, workers: int) -> None:
    """No more shards are in flight than the workers that are known have processes."""
    known = "SELECT name FROM workers"
    until(lambda: len(rows(cluster.engine, known)) == workers, "all announced", seconds=SOON)


def assert_once(cluster: Cluster, slug: str, hop: str) -> None:
    assert {tuple(values["trail"]) for values in properties(cluster.engine, slug).values()} == {(hop,)}
    assert graph_row(cluster.engine, slug).version == 2
    assert rows(cluster.engine, "SELECT * FROM shards") == []


def test_each_message_of_another_graph_waits_for_one_shard_at_most(cluster: Cluster) -> None:
    cluster.add_graph("large", "wide", nodes=40)
    cluster.add_graph("small", "trail")
    cluster.start_worker(concurrency=1)
    wait_for_announcements(cluster, 1)
    hold = cluster.steer("hold", "large", "widen")
    large = migrate_graph.delay("large", 2)
    cluster.pid_in("large", "widen")
    small = migrate_graph.delay("small", 2)
    until(lambda: cluster.queue_length() >= 1, "the call waits", seconds=SOON)
    hold.unlink()
    assert small.get(timeout=SOON).version == large.get(timeout=SOON).version == 2
    order = [line.split()[0] for line in (cluster.folder / "invocations").read_text().splitlines()]
    # Two messages, the call's and its hop's: each may find a shard before it in the queue.
    assert order.index("small") <= 3
    assert order.count("large") == 4
    assert_once(cluster, "large", "widen")


def test_two_workers_share_the_shards_of_one_graph(cluster: Cluster) -> None:
    cluster.add_graph("large", "wide", nodes=40)
    for name in ("w1", "w2"):
        cluster.start_worker(name, concurrency=1)
    wait_for_announcements(cluster, 2)
    hold = cluster.steer("hold", "large", "widen")
    large = migrate_graph.delay("large", 2)
    until(lambda: len({pid for _, pid in cluster.invocations("large")}) == 2, "two processes", seconds=SOON)
    assert sorted(shards(cluster, "large")) == [(1, "running"), (2, "running")]
    hold.unlink()
    assert large.get(timeout=SOON).version == 2
    assert_once(cluster, "large", "widen")


def test_a_shard_that_reaches_its_time_limit_fails_the_hop_and_a_retry_does_the_rest(
    cluster: Cluster,
) -> None:
    cluster.add_graph("large", "limited", nodes=40)
    cluster.start_worker(concurrency=1)
    slow = cluster.folder / "slow-large"
    slow.touch()
    with pytest.raises(HopTimedOut):
        migrate_graph.delay("large", 2).get(timeout=SOON)
    assert shards(cluster, "large") == [(1, "succeeded"), (2, "failed")]
    assert (graph_row(cluster.engine, "large").version, migration_of(cluster.engine, "large").status) == (
        1,
        "failed",
    )
    slow.unlink()
    retry_migration.delay("large").get(timeout=SOON)
    until(lambda: graph_row(cluster.engine, "large").version == 2, "the retry ended", seconds=SOON)
    assert_once(cluster, "large", "hurry")
    assert sorted(shards(cluster, "large"), key=str)[:2] == [(1, "succeeded"), (2, "failed")]


def test_after_a_deploy_no_shard_runs_other_code_and_a_retry_takes_it(cluster: Cluster) -> None:
    cluster.add_graph("large", "wide", nodes=40)
    old = cluster.start_worker("old", concurrency=1)
    hold = cluster.steer("hold", "large", "widen")
    large = migrate_graph.delay("large", 2)
    cluster.pid_in("large", "widen")
    cluster.kill_worker(old)
    hold.unlink()
    cluster.start_worker("new", concurrency=1, env=NEXT_RELEASE)
    with pytest.raises(HopCodeChanged):
        large.get(timeout=SOON)
    assert shards(cluster, "large") == [(1, "lost")]
    assert all("trail" not in values for values in properties(cluster.engine, "large").values())
    retry_migration.delay("large", accept_new_code=True).get(timeout=SOON)
    until(lambda: graph_row(cluster.engine, "large").version == 2, "the retry ended", seconds=SOON)
    assert migration_of(cluster.engine, "large").status == MigrationStatus.SUCCEEDED
    assert_once(cluster, "large", "widen")
