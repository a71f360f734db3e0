"""Crashes and interruptions are recorded and counted apart; a hop that never ends gives its pool's slot back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from graph_migrator import migrate_graph, release_graph, resume_migration, retry_migration
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import HopTimedOut, MigrationReleased
from graph_migrator.core.execution import operations
from graph_migrator.core.execution.begin import begin_migration
from graph_migrator.core.execution.model import Caller
from graph_migrator.core.inspection.diagnosis import Fleet, explain
from graph_migrator.core.inspection.graph_state import graph_state
from graph_migrator.core.inspection.history import history
from graph_migrator.core.store.lock_sessions import lock_sessions
from graph_migrator.tasks.runtime import executors
from tests.acceptance.cluster import Cluster
from tests.rows import attempts, graph_row, migration_of, rows
from tests.waiting import until

SOON = 60
QUICK = {"GRAPH_MIGRATOR_WATCH_SECONDS": "0.5", "GRAPH_MIGRATOR_QUIET_SECONDS": "1"}


@pytest.fixture
def cluster(tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Cluster]:
    env = QUICK | {"GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS": "1"}
    with Cluster(tmp_path, database_url=database_url, redis=redis_server, env=env) as cluster:
        yield cluster


def status_of(cluster: Cluster, slug: str) -> str:
    """Of the graph's latest migration."""
    return str(history(cluster.engine, slug)[0].report.status)


def losses(cluster: Cluster, slug: str) -> list[tuple[str | None, str | None]]:
    """How each lost attempt went, oldest first."""
    statement = (
        "SELECT l.because, l.how FROM hop_attempts a LEFT JOIN losses l ON l.attempt_id = a.id "
        "WHERE a.graph_id = :g AND a.status = 'lost' ORDER BY a.id"
    )
    return [tuple(row) for row in rows(cluster.engine, statement, g=graph_row(cluster.engine, slug).id)]


def backend_of(cluster: Cluster, slug: str) -> int:
    """The session that holds a graph's lock."""
    (holder,) = lock_sessions(cluster.engine, graph_row(cluster.engine, slug).id)
    assert holder.pid is not None
    return holder.pid


def test_a_process_that_dies_while_its_worker_lives_is_a_crash(cluster: Cluster) -> None:
    cluster.start_worker(concurrency=1)
    cluster.add_graph("g", "trail")
    hold = cluster.steer("hold", "g", "first")
    result = migrate_graph.delay("g", 2)
    for number in (1, 2):
        until(lambda: cluster.started("g")["first"] == number, "it starts again")  # noqa: B023
        cluster.kill_child(cluster.invocations("g")[-1][1])
        until(lambda: len(losses(cluster, "g")) == number, "it is found")  # noqa: B023
    hold.unlink()
    assert result.get(timeout=SOON).version == 2
    # Its main process records what it saw in a thread of its own, perhaps after the hop has ended.
    crashes = [("process", "signal 9 (SIGKILL)")] * 2
    until(lambda: losses(cluster, "g") == crashes, "both deaths are recorded")


@pytest.mark.timeout(180)
def test_three_workers_that_go_do_not_fail_the_migration(cluster: Cluster) -> None:
    """Each is killed with its whole process group, as where a machine goes."""
    cluster.add_graph("g", "trail")
    hold = cluster.steer("hold", "g", "first")
    worker = cluster.start_worker("w0", concurrency=1)
    result = migrate_graph.delay("g", 2)
    for number in range(1, 4):
        until(lambda: cluster.started("g")["first"] == number, "it starts again", seconds=60)  # noqa: B023
        cluster.kill_worker(worker)
        worker = cluster.start_worker(f"w{number}", concurrency=1)
    hold.unlink()
    assert result.get(timeout=SOON).version == 2
    assert attempts(cluster.engine, "g") == [("first", "lost")] * 3 + [("first", "succeeded")]
    assert losses(cluster, "g") == [(None, None)] * 3


def test_a_session_that_is_terminated_is_no_crash(cluster: Cluster) -> None:
    cluster.start_worker(concurrency=2)
    cluster.add_graph("g", "trail")
    hold = cluster.steer("hold", "g", "first")
    result = migrate_graph.delay("g", 2)
    pid = cluster.pid_in("g", "first")
    rows(cluster.engine, f"SELECT pg_terminate_backend({backend_of(cluster, 'g')})")
    until(lambda: cluster.started("g")["first"] == 2, "recovery starts it again")
    hold.unlink()
    assert result.get(timeout=SOON).version == 2
    until(lambda: losses(cluster, "g")[0][0] == "session", "the process that lived on says so")
    assert migration_of(cluster.engine, "g").status == "succeeded"
    assert "crash" not in str(losses(cluster, "g"))
    assert pid


def reasons(cluster: Cluster, slug: str) -> dict[str, str]:
    """What `status` says."""
    state = graph_state(cluster.engine, slug)
    found = explain(state, lock_sessions(cluster.engine, state.graph.id), Fleet)
    return {each.kind: str(each) for each in found}


def test_a_hop_that_never_ends_is_named_and_its_process_ends_with_the_release(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = cluster.start_worker(concurrency=1)
    cluster.add_graph("g", "trail")
    cluster.add_graph("next", "trail")
    spin = cluster.steer("spin", "g", "first")
    result = migrate_graph.delay("g", 2)
    spinning = cluster.pid_in("g", "first")
    until(lambda: "event=hop_quiet" in worker.text(), "the worker warns of it")
    with executors().borrow() as executor:
        operations.cancel(executor, "g", Caller(requested_by="ada"))
    shown = until(lambda: reasons(cluster, "g").get("quiet-hop"), "status names it")
    assert "takes effect at its next boundary only" in shown
    assert f"py-spy dump --pid {spinning}" in shown
    assert "release g --force --terminate" in shown

    with executors().borrow() as executor:
        operations.release(executor, "g", Caller(requested_by="ada"), force=True, terminate=True)
    until(lambda: not psutil.pid_exists(spinning), "the process ends", seconds=30)
    assert spin.exists(), "it did not end by itself"
    with pytest.raises(MigrationReleased):
        result.get(timeout=SOON)
    assert migrate_graph.delay("next", 2).get(timeout=SOON).version == 2, "the pool's slot is free"
    assert losses(cluster, "g") == [("operator", "ada")]
    (story,) = history(cluster.engine, "g")
    assert [(a.status, a.lost_because, a.lost_how) for a in story.attempts] == [("lost", "operator", "ada")]
    assert "types_for_tests.py" in worker.text(), "the log says where the code was"


def test_a_limit_for_all_hops_ends_one_that_never_ends(cluster: Cluster) -> None:
    cluster.start_worker(concurrency=1, env={"GRAPH_MIGRATOR_HOP_TIMEOUT_SECONDS": "1"})
    cluster.add_graph("g", "trail")
    cluster.steer("spin", "g", "first")
    with pytest.raises(HopTimedOut, match="took longer than its 1 s"):
        migrate_graph.delay("g", 2).get(timeout=SOON)


def test_a_busy_graph_does_not_hold_the_only_slot(cluster: Cluster) -> None:
    """Open write transactions are waited for in the queue."""
    cluster.start_worker(concurrency=1, env={"GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS": "30"})
    graph = cluster.add_graph("busy", "trail")
    cluster.add_graph("free", "trail")
    with cluster.engine.connect() as writer:
        _write(writer, graph)
        waiting = migrate_graph.delay("busy", 2)
        for _ in range(3):
            assert migrate_graph.delay("free", 2).get(timeout=5).version == 2
        assert not waiting.ready()
        writer.commit()
    assert waiting.get(timeout=SOON).version == 2


def test_verbs_that_wait_for_a_graph_do_not_hold_the_only_slot(cluster: Cluster) -> None:
    """A message waits for the lock in short turns, and is in the queue between them."""
    cluster.start_worker(concurrency=1, env={"GRAPH_MIGRATOR_WRITER_DRAIN_SECONDS": "60"})
    graphs = [cluster.add_graph(slug, "trail") for slug in ("paused", "failed", "released")]
    cluster.add_graph("free", "trail")
    with executors().borrow() as executor:
        begin_migration(executor, "paused", 2)
        operations.pause(executor, "paused")
    assert status_of(cluster, "paused") == "paused", "at once, since nobody executes"
    reasons_to_fail = [cluster.steer("fail", slug, "first", "not today") for slug in ("failed", "released")]
    for slug in ("failed", "released"):
        with pytest.raises(Exception, match="not today"):
            migrate_graph.delay(slug, 2).get(timeout=SOON)
    for reason in reasons_to_fail:
        reason.unlink()
    with cluster.engine.connect() as holder:
        for graph in graphs:
            holder.exec_driver_sql("SELECT pg_advisory_lock(graph_migrator.lock_key(%s))", (str(graph),))
        waiting = [
            resume_migration.delay("paused"), retry_migration.delay("failed"), release_graph.delay("released")
        ]  # fmt: skip
        for target in (2, 1):
            assert migrate_graph.delay("free", target).get(timeout=SOON).version == target
        assert not any(result.ready() for result in waiting)
        holder.exec_driver_sql("SELECT pg_advisory_unlock_all()")
    done = [result.get(timeout=SOON)["status"] for result in waiting]
    assert done == ["running", "running", "released"]
    until(lambda: {status_of(cluster, slug) for slug in ("paused", "failed")} == {"succeeded"}, "they go on")


def _write(writer: Any, graph: Any) -> None:
    writer.exec_driver_sql("UPDATE nodes SET label = 'Held' WHERE graph_id = %s", (graph,))
