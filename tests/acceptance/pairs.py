"""What has to hold on every pair of broker and result backend; see docs/brokers.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph_migrator import lock_graph, migrate_graph, wait_for
from graph_migrator.core.embedded import Redis
from graph_migrator.core.errors import ResultsNotKept
from graph_migrator.core.settings import settings
from graph_migrator.tasks.answers import backend_answers
from tests.acceptance.cluster import TYPES
from tests.acceptance.crash.stage import Stage
from tests.integration.console import call
from tests.rows import attempts, graph_row, rows
from tests.waiting import until

SOON = 60.0


def stage_of(
    folder: Path, database_url: str, redis: Redis, *, broker: str | None, results: str | None
) -> Stage:
    """Servers and no worker yet.

    Args:
        folder: For logs.
        database_url: The database of graphs.
        redis: A running Redis.
        broker: The broker's URL; None for that Redis.
        results: The result backend's URL; None for that Redis, ``db`` for the database of graphs.
    """
    env = {}
    if broker is not None:
        env["CELERY_BROKER_URL"] = broker
    if results == "db":
        results = "db+" + database_url.replace("postgresql://", "postgresql+psycopg2://", 1)
    if results is not None:
        env["CELERY_RESULT_BACKEND"] = results
    return Stage(folder, database_url=database_url, redis=redis, types=TYPES, env=env)


def everything_holds(stage: Stage) -> None:
    """A chain, a failing hop, a killed worker and `migrate --wait`; every caller is answered or refused."""
    stage.keep(2)
    a_chain_ends_in_a_report(stage)
    a_failing_hop_is_raised(stage)
    a_killed_workers_hop_is_run_by_another(stage)
    migrate_wait_ends_with_the_migration(stage)
    an_operators_call_is_answered(stage)
    no_caller_is_left(stage)


def a_chain_ends_in_a_report(stage: Stage) -> None:
    stage.add_graph("chain", "trail")
    result = migrate_graph.delay("chain", 4)
    report = wait_for(result, SOON)
    assert (report.status, report.version, len(report.hops)) == ("succeeded", 4, 3)
    watched = call("watch", "chain")
    assert (watched.exit_code, "succeeded" in watched.out) == (0, True)
    if backend_answers():
        assert result.get(timeout=SOON) == report
    else:
        with pytest.raises(ResultsNotKept, match="wait_for"):
            result.get(timeout=SOON)


def a_failing_hop_is_raised(stage: Stage) -> None:
    stage.add_graph("failing", "trail")
    stage.steer("fail", "failing", "second", "no luck")
    result = migrate_graph.delay("failing", 4)
    with pytest.raises(Exception, match="no luck"):
        wait_for(result, SOON)
    assert graph_row(stage.engine, "failing").version == 2
    if backend_answers():
        with pytest.raises(Exception, match="no luck"):
            result.get(timeout=SOON)


def a_killed_workers_hop_is_run_by_another(stage: Stage) -> None:
    stage.add_graph("killed", "trail")
    held = stage.steer("hold", "killed", "second")
    result = migrate_graph.delay("killed", 4)
    stage.worker_of(stage.pid_in("killed", "second")).kill()
    until(lambda: stage.started("killed")["second"] == 2, "another worker in the hop", seconds=SOON)
    held.unlink()
    assert wait_for(result, SOON).version == 4
    assert attempts(stage.engine, "killed") == [
        ("first", "succeeded"),
        ("second", "lost"),
        ("second", "succeeded"),
        ("third", "succeeded"),
    ]
    if backend_answers():
        assert result.get(timeout=SOON).version == 4


def migrate_wait_ends_with_the_migration(stage: Stage) -> None:
    stage.add_graph("waited", "trail")
    outcome = call("migrate", "waited", "--to", "3", "--wait")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "second: succeeded" in outcome.out
    assert "waited: succeeded, v1→v3" in outcome.out
    stage.steer("fail", "waited", "third", "no luck")
    outcome = call("migrate", "waited", "--to", "4", "--wait")
    assert outcome.exit_code == 1
    assert "no luck" in outcome.err


def an_operators_call_is_answered(stage: Stage) -> None:
    """Its message is its own, so that only a missing backend leaves it without an answer."""
    result = lock_graph.delay("chain")
    if not settings().result_backend.startswith("disabled"):
        assert result.get(timeout=SOON)["graph"] == "chain"
    until(lambda: graph_row(stage.engine, "chain").owner_read_only, "the graph locked", seconds=SOON)


def no_caller_is_left(stage: Stage) -> None:
    """Recovery has dealt with every call, and no sweep failed for it."""
    left = "SELECT task_id FROM requests WHERE answered_at IS NULL"
    until(lambda: not rows(stage.engine, left), "every call dealt with", seconds=SOON)
    because = {why for (why,) in rows(stage.engine, "SELECT unanswered_because FROM requests")}
    name = settings().result_backend.partition(":")[0]
    assert because == ({None} if backend_answers() else {f"{name}:// keeps no results"})
    assert not [worker.name for worker in stage.workers if "sweep did not finish" in worker.text()]
